//! Any bytes as a caller's seccomp profile: it narrows the built-in one, or is refused.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::{Allowed, Asker, assert_held, base, hardened};
use libfuzzer_sys::{Corpus, fuzz_target};
use runsc_config::Policy;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(profile) = serde_json::from_slice::<Value>(bytes) else {
        return Corpus::Reject;
    };
    let mut asked = base();
    asked["linux"]["seccomp"] = profile;
    if let Ok(hardened) = hardened(asked.clone(), &Policy::strict(), Asker::Client) {
        assert_held(&asked, &hardened, &Allowed::nothing(), Asker::Client);
    }
    Corpus::Keep
});
