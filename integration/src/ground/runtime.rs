//! The runtime under test, and what can be expected of it.

/// A containerd runtime by name.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// As containerd knows it: `io.containerd.bulkhead.v1`.
    pub name: String,
}

/// What a test needs of the runtime to make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Any runtime of containerd has this behaviour.
    Any,
    /// The container runs in gVisor.
    Gvisor,
    /// A promise of Bulkhead's own.
    Bulkhead,
    /// A promise of Bulkhead's own, shown with a tool that not everybody has.
    Tool(&'static str),
    /// What containerd and the OCI specification ask for and stock runc answers otherwise; the text says how.
    NotRunc(&'static str),
}

impl Runtime {
    /// The runtime that `BULKHEAD_TEST_RUNTIME` names, Bulkhead by default.
    #[must_use]
    pub fn from_environment() -> Self {
        let name = std::env::var("BULKHEAD_TEST_RUNTIME")
            .unwrap_or_else(|_| "io.containerd.bulkhead.v1".to_owned());
        Self { name }
    }

    /// The shim's binary: `io.containerd.runc.v2` is run by `containerd-shim-runc-v2`.
    #[must_use]
    pub fn binary(&self) -> String {
        let mut parts = self.name.rsplit('.');
        let (version, name) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        format!("containerd-shim-{name}-{version}")
    }

    /// Whether it is Bulkhead's.
    #[must_use]
    pub fn is_bulkhead(&self) -> bool {
        self.name.starts_with("io.containerd.bulkhead.")
    }

    /// Whether it is stock runc's.
    #[must_use]
    pub fn is_runc(&self) -> bool {
        self.name.starts_with("io.containerd.runc.")
    }

    /// Whether its shim only starts in a user namespace where nobody may lower oom_score_adj: gVisor's own takes that for
    /// fatal everywhere else.
    #[must_use]
    pub fn needs_user_namespace(&self) -> bool {
        self.name.contains("runsc")
    }

    /// Whether containers run in gVisor.
    #[must_use]
    pub fn is_gvisor(&self) -> bool {
        self.is_bulkhead() || self.name.contains("runsc")
    }

    /// Annotations without which the runtime does not run a plain container: gVisor's own shim wants to be told that it
    /// is the root of a sandbox.
    #[must_use]
    pub fn annotations(&self) -> Vec<(&'static str, &'static str)> {
        if self.name.contains("runsc") {
            vec![("io.kubernetes.cri.container-type", "sandbox")]
        } else {
            Vec::new()
        }
    }

    /// Why a test with these needs is skipped, if it is.
    #[must_use]
    pub fn lacks(&self, needs: Needs) -> Option<String> {
        match needs {
            Needs::Gvisor if !self.is_gvisor() => {
                Some(format!("{} does not run gVisor", self.name))
            }
            Needs::Bulkhead if !self.is_bulkhead() => {
                Some(format!("a promise of Bulkhead's, not of {}", self.name))
            }
            Needs::Tool(_) if !self.is_bulkhead() => self.lacks(Needs::Bulkhead),
            Needs::Tool(name) if crate::ground::places::tool(name).is_none() => {
                Some(format!("{name} is not there: make tools"))
            }
            Needs::NotRunc(how) if self.is_runc() => {
                Some(format!("known difference of {}: {how}", self.name))
            }
            _ => None,
        }
    }
}
