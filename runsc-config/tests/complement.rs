//! The two forms of the profile decide every call of the binary's table alike, whatever a caller's profile says, and neither
//! allows more than the built-in profile and the caller's.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod common;
mod generate;

use std::collections::{BTreeMap, BTreeSet};

use common::profile::{Arguments, Filter, NAMESPACE_FLAGS, TABLE};
use common::{Asker, base, features, hardened_on, without_table};
use generate::{CALLED, VALUES, profile};
use proptest::prelude::*;
use proptest::sample::select;
use runsc_config::{Calls, Features, Policy, Refusal};
use serde_json::{Value, json};

/// The profile of a container that asks for these capabilities and this profile.
fn given(features: &Features, asked: &Value, capabilities: &[&str]) -> Result<Value, Refusal> {
    let policy = "capabilities.allow = [\"CAP_SYS_ADMIN\", \"CAP_SYS_CHROOT\", \"CAP_SYS_PTRACE\"]";
    let policy = Policy::parse(policy, "p").expect("a policy");
    let mut spec = base();
    spec["process"]["capabilities"] =
        json!({ "bounding": capabilities, "permitted": capabilities });
    spec["linux"]["seccomp"] = asked.clone();
    let hardened = hardened_on(features, spec, &policy, Asker::Client)?;
    Ok(hardened.spec.seccomp().expect("a profile").clone())
}

/// How runsc has what a rule of a caller's profile denies; nothing for one that allows.
fn denial(name: &str, rule: &Value) -> Option<&'static str> {
    match rule["action"].as_str().expect("an action") {
        "SCMP_ACT_ALLOW" => None,
        // To glibc, clone3 is there or it is not.
        "SCMP_ACT_ERRNO" if rule["errnoRet"] == 38 || name == "clone3" => Some("SCMP_ACT_TRACE"),
        "SCMP_ACT_KILL_PROCESS" => Some("SCMP_ACT_KILL"),
        action => ["SCMP_ACT_ERRNO", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"]
            .into_iter()
            .find(|known| *known == action),
    }
}

fn arguments() -> impl Strategy<Value = Vec<Arguments>> {
    let one = || select(VALUES.to_vec());
    let all = (one(), one(), one()).prop_map(|(a, b, c)| [a, b, c, 0, 1, 2]);
    proptest::collection::vec(all, 12)
}

fn capabilities() -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(
        vec!["CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE"],
        0..=3,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_forms_decide_alike_and_neither_allows_more(
        asked in profile(), capabilities in capabilities(), tried in arguments(),
    ) {
        let list = given(&without_table(), &asked, &capabilities);
        let complement = given(&features(), &asked, &capabilities);
        let (Ok(list), Ok(complement)) = (&list, &complement) else {
            prop_assert_eq!(list, complement, "one form alone is refused");
            return Ok(());
        };
        let own = given(&without_table(), &Value::Null, &capabilities).expect("the built-in one");
        let [list, complement, own, asked] = [list, complement, &own, &asked].map(Filter::of);
        for (_, name) in TABLE.iter() {
            // What the caller's profile names nowhere is like many others: one set of arguments is enough.
            let count = if CALLED.contains(&name.as_str()) { tried.len() } else { 1 };
            for arguments in tried.iter().take(count) {
                let word = list.decide(name, arguments);
                prop_assert_eq!(word, complement.decide(name, arguments), "{} {:?}", name, arguments);
                if word == "SCMP_ACT_ALLOW" {
                    prop_assert!(own.allows(name, arguments), "{} {:?}: not in the built-in one", name, arguments);
                    prop_assert!(asked.allows(name, arguments), "{} {:?}: not in the caller's", name, arguments);
                }
                // What a rule of the caller's denies, it denies in the rule's own way.
                if let Some(rule) = asked.rule(name, arguments)
                    && let Some(denial) = denial(name, rule)
                {
                    prop_assert_eq!(word, denial, "{} {:?}: not as the caller's rule has it", name, arguments);
                }
            }
        }
    }
}

/// A generator whose profiles are all refused would show nothing.
#[test]
fn enough_of_what_is_generated_is_given() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let profiles = (0..400).map(|_| profile().new_tree(&mut runner).expect("a case").current());
    let given = profiles
        .filter(|asked| given(&features(), asked, &[]).is_ok())
        .count();
    assert!(given > 200, "{given} of 400");
}

#[test]
fn the_complement_is_written_for_each_call_of_the_table() {
    let (list, complement) = (
        given(&without_table(), &Value::Null, &[]).expect("a profile"),
        given(&features(), &Value::Null, &[]).expect("a profile"),
    );
    assert_eq!(list["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(complement["defaultAction"], "SCMP_ACT_ALLOW");
    let filters = [&list, &complement].map(Filter::of);
    let mut words = BTreeMap::<&str, usize>::new();
    for (_, name) in TABLE.iter() {
        for arguments in [[0; 6], [u64::MAX; 6]] {
            assert_eq!(
                filters[0].decide(name, &arguments),
                filters[1].decide(name, &arguments),
                "{name}"
            );
        }
        *words.entry(filters[1].decide(name, &[0; 6])).or_default() += 1;
    }
    let expected = [
        ("SCMP_ACT_ALLOW", 280),
        ("SCMP_ACT_ERRNO", 71),
        ("SCMP_ACT_TRACE", 1),
    ];
    assert_eq!(words.into_iter().collect::<Vec<_>>(), expected);
    // One flag at a time: nothing here stands on an order, or on how conditions on one argument come together.
    let entries = complement["syscalls"].as_array().expect("entries");
    let of_clone: Vec<&Value> = entries
        .iter()
        .filter(|entry| entry["names"] == json!(["clone"]))
        .collect();
    let flags: BTreeSet<u64> = of_clone
        .iter()
        .map(|entry| entry["args"][0]["value"].as_u64().expect("bits"))
        .collect();
    assert_eq!(flags, NAMESPACE_FLAGS.into());
    for entry in entries {
        assert_ne!(entry["action"], "SCMP_ACT_ALLOW", "{entry}");
        assert!(
            entry["args"].as_array().is_none_or(|args| args.len() == 1),
            "{entry}"
        );
    }
}

/// A binary that has a call more than another has a rule more: the table is its own, not this file's.
#[test]
fn the_table_is_that_of_the_binary() {
    let mut table = TABLE.clone();
    table.push((467, "new_call".to_owned()));
    let newer = without_table().with_calls(Some(Calls::new(&table).expect("calls")));
    let denied = |features: &Features| {
        let profile = given(features, &Value::Null, &[]).expect("a profile");
        Filter::of(&profile).decide("new_call", &[0; 6]).to_owned()
    };
    assert_eq!(denied(&newer), "SCMP_ACT_ERRNO");
    assert_eq!(denied(&features()), "SCMP_ACT_ALLOW", "it has no such call");
}

#[test]
fn what_a_caller_answers_by_default_is_kept_and_the_rest_is_told() {
    let named = json!([{ "names": ["read", "ptrace", "clone"], "action": "SCMP_ACT_ALLOW" }]);
    for (default, errno, word, told) in [
        ("SCMP_ACT_ERRNO", Value::Null, "SCMP_ACT_ERRNO", None),
        ("SCMP_ACT_ERRNO", json!(1), "SCMP_ACT_ERRNO", None),
        (
            "SCMP_ACT_ERRNO",
            json!(38),
            "SCMP_ACT_TRACE",
            Some("ENOSYS by default"),
        ),
        (
            "SCMP_ACT_TRACE",
            Value::Null,
            "SCMP_ACT_TRACE",
            Some("SCMP_ACT_TRACE by default"),
        ),
        (
            "SCMP_ACT_TRAP",
            Value::Null,
            "SCMP_ACT_TRAP",
            Some("SCMP_ACT_TRAP by default"),
        ),
        (
            "SCMP_ACT_KILL_PROCESS",
            Value::Null,
            "SCMP_ACT_KILL",
            Some("SCMP_ACT_KILL_PROCESS by default"),
        ),
    ] {
        let mut spec = base();
        spec["linux"]["seccomp"] =
            json!({ "defaultAction": default, "defaultErrnoRet": errno, "syscalls": named });
        for features in [features(), without_table()] {
            let hardened = hardened_on(&features, spec.clone(), &Policy::strict(), Asker::Client)
                .expect("given");
            let profile = Filter::of(hardened.spec.seccomp().expect("a profile"));
            assert_eq!(profile.decide("read", &[0; 6]), "SCMP_ACT_ALLOW");
            assert_eq!(profile.decide("write", &[0; 6]), word, "{default}");
            for denied in ["ptrace", "mount"] {
                assert_eq!(
                    profile.decide(denied, &[0; 6]),
                    "SCMP_ACT_ERRNO",
                    "{denied}"
                );
            }
            let lines = hardened
                .report
                .changes
                .iter()
                .filter(|change| change.control == "seccomp");
            let lines: Vec<&str> = lines.map(|change| change.asked.as_str()).collect();
            assert_eq!(lines, Vec::from_iter(told), "{default}");
        }
    }
}

/// What the built-in profile denies is denied as the caller's rule for it says, and what cannot be is told.
#[test]
fn what_a_callers_rule_denies_is_denied_as_it_says_and_the_rest_is_told() {
    let entry = |name: &str, action: &str| json!({ "names": [name], "action": action });
    let condition = json!([{ "index": 0, "value": 16, "op": "SCMP_CMP_EQ" }]);
    let asked = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        entry("ptrace", "SCMP_ACT_KILL_PROCESS"),
        entry("mount", "SCMP_ACT_TRAP"),
        entry("unshare", "SCMP_ACT_TRACE"),
        entry("bpf", "SCMP_ACT_ERRNO"),
        entry("setns", "SCMP_ACT_ALLOW"),
        { "names": ["keyctl", "read"], "action": "SCMP_ACT_KILL", "args": condition },
        entry("keyctl", "SCMP_ACT_ERRNO"),
        entry("read", "SCMP_ACT_ERRNO"),
        entry("clone3", "SCMP_ACT_KILL"),
        entry("no_such_a", "SCMP_ACT_KILL"),
        entry("no_such_b", "SCMP_ACT_ERRNO"),
        entry("no_such_c", "SCMP_ACT_TRACE"),
        entry("no_such_d", "SCMP_ACT_ALLOW"),
    ]});
    for (features, told) in [
        (
            features(),
            Some("denials of 2 calls that gVisor lacks: no_such_a, no_such_b"),
        ),
        (without_table(), None),
    ] {
        let mut spec = base();
        spec["linux"]["seccomp"] = asked.clone();
        let hardened =
            hardened_on(&features, spec, &Policy::strict(), Asker::Client).expect("given");
        let profile = Filter::of(hardened.spec.seccomp().expect("a profile"));
        for (name, first, word) in [
            ("ptrace", 0, "SCMP_ACT_KILL"),
            ("mount", 0, "SCMP_ACT_TRAP"),
            ("unshare", 0, "SCMP_ACT_TRACE"),
            ("bpf", 0, "SCMP_ACT_ERRNO"),
            ("setns", 0, "SCMP_ACT_ERRNO"),
            ("keyctl", 16, "SCMP_ACT_KILL"),
            ("keyctl", 0, "SCMP_ACT_ERRNO"),
            ("read", 16, "SCMP_ACT_KILL"),
            ("read", 0, "SCMP_ACT_ERRNO"),
            ("clone3", 0, "SCMP_ACT_KILL"),
        ] {
            let arguments = [first, 0, 0, 0, 0, 0];
            assert_eq!(profile.decide(name, &arguments), word, "{name} {first}");
        }
        let changes = hardened.report.changes.iter();
        let lines = changes.filter(|change| change.control == "seccomp");
        let lines: Vec<_> = lines
            .map(|change| (change.asked.as_str(), change.given.as_str()))
            .collect();
        assert_eq!(lines, Vec::from_iter(told.map(|told| (told, "ENOSYS"))));
    }
}
