//! What a runsc binary can enforce, as the binary reports it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::calls::{Calls, RELEASE_FLAG};
use crate::sidecars::Sidecars;

/// The flag that tells runsc whether it may do without the programs beside it.
pub(crate) const USAGE_FLAG: &str = "sidecar-usage-policy";

/// A binary whose answers make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FeaturesError(String);

impl FeaturesError {
    pub(crate) fn new(problem: String) -> Self {
        Self(problem)
    }
}

/// The flags, seccomp actions and system calls of one runsc.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    flags: BTreeSet<String>,
    /// `None` for a runsc without `features`: it is too old to hold the policy.
    actions: Option<BTreeSet<String>>,
    /// `None` where its table is not known or not believed: the profile is an allow list then.
    calls: Option<Calls>,
    /// What it calls itself; empty if it was not asked.
    version: String,
    /// Whether all programs are beside it that it starts a sandbox by.
    is_accompanied: bool,
}

impl Features {
    /// Reads what `runsc flags` and `runsc features` print; the latter is `None` where the command is unknown.
    ///
    /// # Errors
    /// When the text is not that of runsc.
    pub fn parse(flags_help: &str, features_json: Option<&str>) -> Result<Self, FeaturesError> {
        let name = |line: &str| {
            let name = line.strip_prefix("  -")?.split_whitespace().next()?;
            Some(name.to_owned())
        };
        let flags: BTreeSet<String> = flags_help.lines().filter_map(name).collect();
        if !flags.contains("root") || !flags.contains("network") {
            return Err(FeaturesError(
                "`flags` lists neither -root nor -network: this is not runsc".to_owned(),
            ));
        }
        let actions = features_json.map(seccomp_actions).transpose()?;
        Ok(Self {
            flags,
            actions,
            calls: None,
            version: String::new(),
            is_accompanied: false,
        })
    }

    /// With what it says of its system calls.
    #[must_use]
    pub fn with_calls(self, calls: Option<Calls>) -> Self {
        Self { calls, ..self }
    }

    /// With what is beside it. A runsc that knows nothing of that has nothing of it.
    #[must_use]
    pub fn with_sidecars(self, sidecars: Option<&Sidecars>) -> Self {
        let is_whole = sidecars.is_some_and(|found| found.missing().is_empty());
        Self {
            is_accompanied: is_whole && self.knows_sidecars(),
            ..self
        }
    }

    /// Whether it starts sandboxes by what is beside it.
    #[must_use]
    pub fn knows_sidecars(&self) -> bool {
        self.has_flag(USAGE_FLAG) || self.has_flag(RELEASE_FLAG)
    }

    /// Whether all programs are beside it that it starts a sandbox by.
    pub(crate) fn is_accompanied(&self) -> bool {
        self.is_accompanied
    }

    /// With what it calls itself.
    #[must_use]
    pub fn with_version(self, version: String) -> Self {
        Self { version, ..self }
    }

    /// What it calls itself; empty if it was not asked.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its table of system calls, where that was told and is believed.
    #[must_use]
    pub fn calls(&self) -> Option<&Calls> {
        self.calls.as_ref()
    }

    /// Whether the binary has a global flag.
    #[must_use]
    pub fn has_flag(&self, name: &str) -> bool {
        self.flags.contains(name)
    }

    /// Whether the binary says what it can do: only then the policy holds for exec as well.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.actions.is_some()
    }

    /// Whether a seccomp action reaches the guest as it is named.
    pub(crate) fn has_action(&self, action: &str) -> bool {
        self.actions
            .as_ref()
            .is_some_and(|actions| actions.contains(action))
    }
}

fn seccomp_actions(json: &str) -> Result<BTreeSet<String>, FeaturesError> {
    let value: Value = serde_json::from_str(json)
        .map_err(|e| FeaturesError(format!("`features` is not JSON: {e}")))?;
    let actions = value
        .pointer("/linux/seccomp/actions")
        .and_then(Value::as_array);
    let actions =
        actions.ok_or_else(|| FeaturesError("`features` lists no seccomp actions".to_owned()))?;
    Ok(actions
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &str = "  -network value\n    \tnetwork: none\n  -oci-seccomp\n  -root string\n";

    #[test]
    fn flags_and_actions_are_read() {
        let json = r#"{"linux":{"seccomp":{"actions":["SCMP_ACT_ALLOW","SCMP_ACT_ERRNO"]}}}"#;
        let features = Features::parse(FLAGS, Some(json)).expect("features");
        assert!(
            features.has_flag("oci-seccomp")
                && !features.has_flag("seccomp")
                && features.is_current()
        );
        assert!(features.has_action("SCMP_ACT_ERRNO") && !features.has_action("SCMP_ACT_NOTIFY"));
    }

    #[test]
    fn another_program_is_not_taken_for_runsc() {
        assert!(Features::parse("Usage: busybox", None).is_err());
        assert!(Features::parse(FLAGS, Some("[]")).is_err());
        assert!(!Features::parse(FLAGS, None).expect("old").is_current());
    }
}
