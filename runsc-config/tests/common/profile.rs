//! What a seccomp profile decides, as runsc has it (`runsc/specutils/seccomp`): entries in their order, the first that matches;
//! conditions on one argument are alternatives, and then so are all of the entry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use runsc_config::Calls;
use serde_json::Value;

use super::texts;

/// The clone flags that make namespaces, one by one (`include/uapi/linux/sched.h`).
pub const NAMESPACE_FLAGS: [u64; 7] = [
    0x0002_0000,
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
];

/// The table of runsc 20260905 for amd64.
pub static TABLE: LazyLock<Vec<(u32, String)>> =
    LazyLock::new(|| Calls::read(include_str!("syscalls.json")).expect("a table"));

pub type Arguments = [u64; 6];

/// A profile, by the names in it.
#[derive(Debug)]
pub struct Filter<'a> {
    default: &'a str,
    entries: BTreeMap<&'a str, Vec<&'a Value>>,
}

impl<'a> Filter<'a> {
    pub fn of(profile: &'a Value) -> Self {
        let mut entries: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for entry in profile["syscalls"].as_array().into_iter().flatten() {
            for name in texts(entry, "/names") {
                entries.entry(name).or_default().push(entry);
            }
        }
        let default = profile["defaultAction"].as_str().expect("an action");
        Self { default, entries }
    }

    /// The action for a call that the table has.
    pub fn decide(&self, name: &str, arguments: &Arguments) -> &'a str {
        let rule = self.rule(name, arguments);
        rule.map_or(self.default, |rule| {
            rule["action"].as_str().expect("an action")
        })
    }

    /// The entry that decides; nothing where the default does.
    pub fn rule(&self, name: &str, arguments: &Arguments) -> Option<&'a Value> {
        let mut entries = self.entries.get(name).into_iter().flatten();
        entries.find(|entry| matches(entry, arguments)).copied()
    }

    pub fn allows(&self, name: &str, arguments: &Arguments) -> bool {
        self.decide(name, arguments) == "SCMP_ACT_ALLOW"
    }
}

fn matches(entry: &Value, arguments: &Arguments) -> bool {
    let conditions: Vec<&Value> = entry["args"].as_array().into_iter().flatten().collect();
    let mut indices: Vec<usize> = conditions.iter().map(|one| index(one)).collect();
    indices.sort_unstable();
    let is_twice = indices.windows(2).any(|pair| pair[0] == pair[1]);
    let holds = |condition: &&Value| holds(condition, arguments);
    if is_twice {
        conditions.iter().any(holds)
    } else {
        conditions.iter().all(holds)
    }
}

fn index(condition: &Value) -> usize {
    let index = condition["index"].as_u64().expect("an index");
    usize::try_from(index).expect("a small one")
}

fn holds(condition: &Value, arguments: &Arguments) -> bool {
    let argument = arguments[index(condition)];
    let number = |key: &str| condition[key].as_u64().unwrap_or(0);
    let value = number("value");
    match condition["op"].as_str().expect("an operator") {
        "SCMP_CMP_NE" => argument != value,
        "SCMP_CMP_LT" => argument < value,
        "SCMP_CMP_LE" => argument <= value,
        "SCMP_CMP_EQ" => argument == value,
        "SCMP_CMP_GE" => argument >= value,
        "SCMP_CMP_GT" => argument > value,
        "SCMP_CMP_MASKED_EQ" => argument & value == number("valueTwo"),
        other => panic!("{other}"),
    }
}

/// The calls of the table that a profile allows with some arguments, of those that its conditions tell apart one by one.
pub fn calls(profile: &Value) -> BTreeSet<String> {
    let filter = Filter::of(profile);
    let allowed = |name: &&String| {
        let entries = filter.entries.get(name.as_str()).into_iter().flatten();
        let near = entries.flat_map(|entry| entry["args"].as_array().into_iter().flatten());
        let near = near.flat_map(|condition| {
            let value = condition["value"].as_u64().unwrap_or(0);
            let two = condition["valueTwo"].as_u64().unwrap_or(0);
            let values = [value, value.wrapping_add(1), value.wrapping_sub(1), two];
            values.map(|near| {
                let mut arguments = [0; 6];
                arguments[index(condition)] = near;
                arguments
            })
        });
        let mut tried = [[0; 6], [u64::MAX; 6]].into_iter().chain(near);
        tried.any(|arguments| filter.allows(name, &arguments))
    };
    let names = TABLE.iter().map(|(_, name)| name);
    names.filter(allowed).cloned().collect()
}
