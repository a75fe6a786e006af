//! Any bytes as a spec, for each kind of container, and the same as an exec's process: no panic, and nothing beyond the strictest
//! policy.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::{Allowed, Asker, assert_held, base, hardened};
use libfuzzer_sys::{Corpus, fuzz_target};
use runsc_config::{Policy, harden_exec};
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(asked) = serde_json::from_slice::<Value>(bytes) else {
        return Corpus::Reject;
    };
    for asker in [Asker::Client, Asker::Sandbox, Asker::Container] {
        if let Ok(hardened) = hardened(asked.clone(), &Policy::strict(), asker) {
            assert_held(&asked, &hardened, &Allowed::nothing(), asker);
        }
    }
    let process = asked.get("process").unwrap_or(&asked).clone();
    if let Ok(base) = hardened(base(), &Policy::strict(), Asker::Client)
        && let Ok(process) = harden_exec(process, &base.exec)
    {
        let sets = process.capabilities();
        assert_eq!(sets.permitted | sets.effective | sets.bounding, 0);
        assert_eq!(sets.inheritable | sets.ambient, 0);
        assert!(process.no_new_privileges());
    }
    Corpus::Keep
});
