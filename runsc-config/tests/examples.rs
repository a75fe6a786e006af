//! The example policies of `docs/policies`.
#![allow(clippy::expect_used, reason = "this is a test")]

use runsc_config::Policy;

#[test]
fn the_strict_example_is_the_strictest_policy() {
    let text = include_str!("../../docs/policies/strict.toml");
    let policy = Policy::parse(text, "strict.toml").expect("a policy");
    assert_eq!(policy, Policy::strict());
}

#[test]
fn the_looser_examples_are_policies_and_differ_from_it() {
    for text in [
        include_str!("../../docs/policies/network.toml"),
        include_str!("../../docs/policies/ordinary.toml"),
        include_str!("../../docs/policies/compat.toml"),
        include_str!("../../docs/policies/nginx.toml"),
        include_str!("../../docs/policies/wheels.toml"),
    ] {
        let policy = Policy::parse(text, "example.toml").expect("a policy");
        assert_ne!(policy, Policy::strict());
    }
}
