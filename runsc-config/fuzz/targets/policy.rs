//! Any text as a policy file: no panic, and a container can be judged under whatever is taken.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::{Asker, base, hardened};
use libfuzzer_sys::{Corpus, fuzz_target};
use runsc_config::Policy;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Corpus::Reject;
    };
    match Policy::parse(text, "fuzzed") {
        Ok(policy) => {
            let given = hardened(base(), &policy, Asker::Client);
            // What no policy gives.
            if let Ok(given) = given {
                let flags = given.flags.args();
                assert!(flags.iter().any(|flag| flag == "--host-uds=none"));
                assert!(flags.iter().any(|flag| flag == "--oci-seccomp=true"));
            }
        }
        Err(error) => assert!(error.to_string().contains("fuzzed"), "{error}"),
    }
    Corpus::Keep
});
