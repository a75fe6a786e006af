use super::*;
use crate::spec::tests::context;

fn given(
    policy: &Policy,
    granted: &[&str],
    asked: Option<&Value>,
) -> Result<Option<Value>, Refusal> {
    let mut report = Report::default();
    effective(asked, granted, policy, context().features, &mut report)
}

fn profile(asked: Option<Value>) -> Result<Value, Refusal> {
    given(&Policy::strict(), &[], asked.as_ref()).map(|given| given.expect("a profile"))
}

/// The actions a profile has for a call, in order; its default where it has none.
fn actions(profile: &Value, name: &str) -> Vec<(String, usize)> {
    let entries = profile["syscalls"].as_array().expect("list");
    let named = entries.iter().filter(|e| {
        e["names"]
            .as_array()
            .expect("names")
            .iter()
            .any(|n| n == name)
    });
    named
        .map(|e| {
            (
                e["action"].as_str().expect("action").to_owned(),
                e["args"].as_array().map_or(0, Vec::len),
            )
        })
        .collect()
}

#[test]
fn the_lists_of_allowed_and_denied_calls_do_not_meet() {
    let built_in = built_in(&[]);
    for (reason, names) in DENIED {
        for name in names.split_whitespace() {
            assert!(!built_in.contains_key(name), "{name} ({reason})");
        }
    }
    let mut names: Vec<_> = GROUPS
        .iter()
        .flat_map(|(_, names)| names.split_whitespace())
        .collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "a call is in two groups");
}

#[test]
fn some_calls_come_with_their_capability_alone() {
    for (capability, names) in WITH_CAPABILITY {
        for name in names.split_whitespace() {
            let has = |granted: &[&str]| built_in(granted).get(name) == Some(&Rule::allow());
            assert!(has(&[capability, "CAP_CHOWN"]), "{name}");
            assert!(!has(&[]) && !has(&["CAP_CHOWN"]), "{name}");
        }
    }
    // Whatever a container has, nothing of it traces, which TRACE stands on, and nothing mounts or makes namespaces.
    let all = built_in(&["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_CHROOT"]);
    for name in ["ptrace", "process_vm_writev", "mount", "unshare", "setns"] {
        assert!(!all.contains_key(name), "{name}");
    }
    assert_eq!(all["clone"].args.len(), 1);
    assert_eq!(all["clone3"].action, TRACE);
}

#[test]
fn what_a_capability_brings_a_callers_profile_takes_away() {
    let names = ["setdomainname", "sethostname"];
    let asked = json!({ "defaultAction": ERRNO, "syscalls": [{ "names": ["setdomainname"], "action": ALLOW }] });
    let counted = |asked: Option<&Value>| {
        let given = given(&Policy::strict(), &["CAP_SYS_ADMIN"], asked).expect("given");
        let given = given.expect("a profile");
        names.map(|name| actions(&given, name).len())
    };
    assert_eq!(counted(None), [1, 1]);
    assert_eq!(counted(Some(&asked)), [1, 0]);
}

#[test]
fn without_a_profile_the_built_in_one_holds() {
    let profile = profile(None).expect("profile");
    assert_eq!(profile["defaultAction"], ERRNO);
    assert_eq!(actions(&profile, "read"), [(ALLOW.to_owned(), 0)]);
    assert_eq!(actions(&profile, "clone"), [(ALLOW.to_owned(), 1)]);
    assert_eq!(actions(&profile, "clone3"), [(TRACE.to_owned(), 0)]);
    assert!(actions(&profile, "ptrace").is_empty() && actions(&profile, "mount").is_empty());
}

#[test]
fn nothing_is_enforced_where_the_policy_allows_that_and_no_profile_is_asked_for() {
    let policy = Policy::parse("allow_unconfined = true", "x").expect("a policy");
    for none in [None, Some(Value::Null)] {
        assert_eq!(given(&policy, &[], none.as_ref()), Ok(None));
    }
    for some in [
        json!({ "defaultAction": ALLOW }),
        json!({ "defaultAction": ERRNO }),
    ] {
        let strict = given(&Policy::strict(), &[], Some(&some));
        assert!(strict.as_ref().is_ok_and(Option::is_some), "{strict:?}");
        assert_eq!(given(&policy, &[], Some(&some)), strict);
    }
    let broken = json!({ "defaultAction": "SCMP_ACT_LOG" });
    given(&policy, &[], Some(&broken)).expect_err("refused");
}

#[test]
fn a_callers_profile_only_takes_away() {
    let open = json!({ "defaultAction": ALLOW });
    assert_eq!(
        profile(Some(open)),
        profile(None),
        "allowing all adds nothing"
    );
    let asked = json!({ "defaultAction": ALLOW, "syscalls": [
        { "names": ["socket"], "action": ERRNO },
        { "names": ["chmod"], "action": "SCMP_ACT_KILL_PROCESS" },
        { "names": ["statx"], "action": ERRNO, "errnoRet": 38 },
    ]});
    let narrowed = profile(Some(asked)).expect("profile");
    assert!(actions(&narrowed, "socket").is_empty());
    assert_eq!(
        actions(&narrowed, "chmod"),
        [("SCMP_ACT_KILL".to_owned(), 0)]
    );
    assert_eq!(actions(&narrowed, "statx"), [(TRACE.to_owned(), 0)]);
    let few = json!({ "defaultAction": ERRNO, "syscalls": [{ "names": ["read", "ptrace"], "action": ALLOW }] });
    let few = profile(Some(few)).expect("profile");
    assert_eq!(actions(&few, "read").len(), 1);
    assert!(actions(&few, "write").is_empty() && actions(&few, "ptrace").is_empty());
}

#[test]
fn conditions_are_kept_or_refused_but_never_lost() {
    let family = json!({ "index": 0, "value": 40, "op": "SCMP_CMP_NE" });
    let asked = json!({ "defaultAction": ERRNO, "syscalls": [
        { "names": ["socket"], "action": ALLOW, "args": [family] },
        { "names": ["clone"], "action": ALLOW, "args": [{
            "index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ",
        }] },
    ]});
    let narrowed = profile(Some(asked)).expect("profile");
    assert_eq!(actions(&narrowed, "socket"), [(ALLOW.to_owned(), 1)]);
    assert_eq!(actions(&narrowed, "clone"), [(ALLOW.to_owned(), 1)]);
    let twice = json!({ "defaultAction": ERRNO, "syscalls": [{
        "names": ["socket"], "action": ALLOW, "args": [
            { "index": 0, "value": 1, "op": "SCMP_CMP_GE" }, { "index": 0, "value": 3, "op": "SCMP_CMP_LE" },
        ],
    }]});
    let refusal = profile(Some(twice)).expect_err("runsc would take either for enough");
    assert!(refusal.to_string().contains("argument 0"), "{refusal}");
    let clash = json!({ "defaultAction": ERRNO, "syscalls": [{
        "names": ["clone"], "action": ALLOW, "args": [{ "index": 0, "value": 17, "op": "SCMP_CMP_EQ" }],
    }]});
    assert!(profile(Some(clash)).is_err());
}

#[test]
fn what_gvisor_cannot_enforce_is_refused_by_name() {
    for (asked, word) in [
        (json!({ "defaultAction": "SCMP_ACT_LOG" }), "SCMP_ACT_LOG"),
        (
            json!({ "defaultAction": ALLOW, "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_NOTIFY" }] }),
            "NOTIFY",
        ),
        (
            json!({ "defaultAction": ALLOW, "architectures": ["SCMP_ARCH_S390X"] }),
            "architectures",
        ),
        (
            json!({ "defaultAction": ALLOW, "listenerPath": "/run/x" }),
            "listenerPath",
        ),
        (
            json!({ "defaultAction": ALLOW, "syscalls": [{
                "names": ["read"], "action": ERRNO, "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }],
            }] }),
            "index",
        ),
    ] {
        let refusal = profile(Some(asked)).expect_err(word).to_string();
        assert!(refusal.contains(word), "{refusal}");
    }
}
