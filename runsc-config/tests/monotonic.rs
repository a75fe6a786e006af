//! Whatever is asked, by whomever, under whatever policy, the result is never weaker than the policy; and nothing that is asked
//! makes it panic.
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

use common::profile::calls;
use common::{Allowed, Asker, assert_held, base, hardened, held_keys, texts};
use generate::{allowed, any_json, asker, capability_sets, looser, marked, spec};
use proptest::prelude::*;
use runsc_config::{Hardened, Policy, harden_exec};
use serde_json::{Value, json};

/// Whether `more` has all that `less` has.
fn assert_superset(less: &Hardened, more: &Hardened) {
    let [less_spec, more_spec] = [less, more].map(|one| Value::Object(one.spec.as_map().clone()));
    for set in [
        "bounding",
        "effective",
        "inheritable",
        "permitted",
        "ambient",
    ] {
        let pointer = format!("/process/capabilities/{set}");
        let more = texts(&more_spec, &pointer);
        let mut less = texts(&less_spec, &pointer).into_iter();
        assert!(less.all(|name| more.contains(&name)), "{set}");
    }
    let is_read_only = |spec: &Value| spec["root"]["readonly"] == json!(true);
    assert!(is_read_only(&less_spec) || !is_read_only(&more_spec));
    let [less_bound, more_bound] =
        [&less_spec, &more_spec].map(|spec| spec["process"]["noNewPrivileges"] == json!(true));
    assert!(less_bound || !more_bound);
    let limits = |spec: &Value| -> Vec<u64> {
        let list = spec["process"]["rlimits"].as_array().expect("rlimits");
        let hard = list
            .iter()
            .map(|limit| limit["hard"].as_u64().expect("hard"));
        let cgroup =
            ["/memory/limit", "/pids/limit"].map(|limit| spec["linux"]["resources"].pointer(limit));
        hard.chain(cgroup.into_iter().flatten().filter_map(Value::as_u64))
            .collect()
    };
    let (fewer, most) = (limits(&less_spec), limits(&more_spec));
    assert_eq!(fewer.len(), most.len());
    assert!(
        fewer.iter().zip(&most).all(|(less, more)| less <= more),
        "{fewer:?} {most:?}"
    );
    let [less_profile, more_profile] =
        [&less_spec, &more_spec].map(|spec| &spec["linux"]["seccomp"]);
    if !more_profile.is_null() {
        let [fewer, most] = [less_profile, more_profile].map(calls);
        assert!(fewer.is_subset(&most), "{:?}", fewer.difference(&most));
    }
    let (less_mounts, more_mounts) = (&less_spec["mounts"], &more_spec["mounts"]);
    let (less_mounts, more_mounts) = (less_mounts.as_array(), more_mounts.as_array());
    let (less_mounts, more_mounts) = (less_mounts.expect("mounts"), more_mounts.expect("mounts"));
    assert_eq!(less_mounts.len(), more_mounts.len());
    for (less, more) in less_mounts.iter().zip(more_mounts) {
        for key in ["destination", "type", "source"] {
            assert_eq!(less[key], more[key]);
        }
        for option in ["ro", "noexec"] {
            let [less, more] = [less, more].map(|one| texts(one, "/options").contains(&option));
            assert!(less || !more, "{option}: {less} {more}");
        }
    }
    let has = |one: &Hardened, flag: &str| one.flags.args().iter().any(|given| given == flag);
    for flag in [
        "--network=none",
        "--overlay2=none",
        "--directfs=false",
        "--allow-suid=false",
    ] {
        assert!(has(less, flag) || !has(more, flag), "{flag}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_spec_is_given_more_than_the_policy_allows(spec in spec(), allowed in allowed(), asker in asker()) {
        let asked = marked(spec, asker);
        let kinds = asked["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
        let host_network = !kinds.iter().any(|namespace| namespace["type"] == "network")
            || kinds.iter().any(|namespace| namespace["path"] == "/proc/1/ns/net");
        if let Ok(hardened) = hardened(asked.clone(), &allowed.policy(), asker) {
            prop_assert!(!host_network, "the host's network was given");
            assert_held(&asked, &hardened, &allowed, asker);
        }
    }

    #[test]
    fn a_looser_policy_gives_no_less(spec in spec(), both in looser(), asker in asker()) {
        let (strict, loose) = both;
        let mut asked = marked(spec, asker);
        // What a container may ask for depends on what its sandbox was made with.
        if asker == Asker::Container {
            let annotations = asked["annotations"].as_object_mut().expect("annotations");
            annotations.retain(|key, _| !key.starts_with("dev.bulkhead."));
        }
        if let Ok(less) = hardened(asked.clone(), &strict.policy(), asker) {
            let more = hardened(asked, &loose.policy(), asker);
            assert_superset(&less, &more.expect("what the stricter policy gives"));
        }
    }

    #[test]
    fn no_spec_is_given_more_than_the_strict_policy(spec in spec(), asker in asker()) {
        let asked = marked(spec, asker);
        if let Ok(hardened) = hardened(asked.clone(), &Policy::strict(), asker) {
            assert_held(&asked, &hardened, &Allowed::nothing(), asker);
        }
    }

    #[test]
    fn nothing_that_is_asked_panics(spec in any_json(), process in any_json(), asker in asker()) {
        let _ = hardened(spec.clone(), &Policy::strict(), asker);
        let mut with_extra = base();
        with_extra["linux"]["extra"] = spec;
        if let Ok(base) = hardened(with_extra, &Policy::strict(), asker) {
            let _ = harden_exec(process, &base.exec);
        }
    }

    #[test]
    fn an_exec_never_has_what_its_container_may_not(
        capabilities in capability_sets(), uid in any::<u32>(), bound in any::<bool>(), allowed in allowed(), asker in asker(),
    ) {
        let allowed = Allowed { root: true, ..allowed };
        let base = hardened(marked(base(), asker), &allowed.policy(), asker).expect("base");
        let process = json!({
            "args": ["sh"], "cwd": "/", "user": { "uid": uid, "gid": 0, "Uid": 0, "additionalGidſ": [0] },
            "capabilities": capabilities, "Capabilities": capabilities, "noNewPrivileges": bound,
            "rlimits": [{ "type": "RLIMIT_NPROC", "hard": 1_000_000, "soft": 1_000_000 }], "oomScoreAdj": -1000,
            "apparmorProfile": "unconfined", "selinuxLabel": "x",
        });
        let process = harden_exec(process, &base.exec).expect("exec");
        let mut mask = 0_u64;
        for (number, name) in [(0, "CAP_CHOWN"), (18, "CAP_SYS_CHROOT"), (19, "CAP_SYS_PTRACE"),
                               (21, "CAP_SYS_ADMIN"), (27, "CAP_MKNOD")] {
            if allowed.capabilities.iter().any(|one| one == name) {
                mask |= 1 << number;
            }
        }
        let sets = process.capabilities();
        for set in [sets.permitted, sets.inheritable, sets.effective, sets.bounding, sets.ambient] {
            prop_assert_eq!(set & !mask, 0, "more than the policy's");
        }
        prop_assert_eq!(process.no_new_privileges(), bound || !allowed.set_uid);
        let written: Value = serde_json::from_slice(&process.to_json_bytes()).expect("json");
        held_keys(&written);
        prop_assert!(written.get("rlimits").is_none(), "{}", written);
        prop_assert_eq!(&written["noNewPrivileges"], &json!(bound || !allowed.set_uid));
        for name in texts(&written, "/capabilities/ambient") {
            prop_assert!(allowed.capabilities.iter().any(|one| one == name), "{}", name);
        }
        // In Kubernetes an exec is its container's user, whoever is asked for.
        prop_assert_eq!(process.uid(), if asker == Asker::Client { uid } else { 0 });
    }

    #[test]
    fn no_policy_text_panics(text in ".{0,200}") {
        let _ = Policy::parse(&text, "p");
    }
}

/// A generator whose specs are all refused would show nothing.
#[test]
fn enough_of_what_is_generated_is_given() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let cases = (spec(), allowed());
    for asker in [Asker::Client, Asker::Sandbox, Asker::Container] {
        let mut given = 0;
        for _ in 0..400 {
            let (spec, allowed) = cases.new_tree(&mut runner).expect("a case").current();
            let result = hardened(marked(spec, asker), &allowed.policy(), asker);
            given += u32::from(result.is_ok());
        }
        assert!(given > 60, "{asker:?}: {given} of 400");
    }
}
