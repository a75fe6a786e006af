//! What Kubernetes calls a container and its pod, as containerd writes it into the spec.

use serde_json::Value;

/// A name of Kubernetes is no longer (RFC 1123 subdomain).
const NAME_MAX: usize = 253;

/// Kubernetes' names; empty outside of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// The pod's.
    pub(crate) pod: String,
    /// The namespace of Kubernetes that the pod is in.
    pub(crate) pod_namespace: String,
    /// The container's in its pod; none for the sandbox container.
    pub(crate) container: String,
}

impl Names {
    /// Reads containerd's annotations (`internal/cri/annotations/annotations.go`). They were written by the client, not by
    /// the guest, but are bounded all the same: they become labels.
    pub(crate) fn of(spec: &Value) -> Self {
        let annotation = |key: &str| {
            let value = spec.get("annotations").and_then(|all| all.get(key));
            let value = value.and_then(Value::as_str).unwrap_or_default();
            value.chars().take(NAME_MAX).collect()
        };
        Self {
            pod: annotation("io.kubernetes.cri.sandbox-name"),
            pod_namespace: annotation("io.kubernetes.cri.sandbox-namespace"),
            container: annotation("io.kubernetes.cri.container-name"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_annotations_and_bounded() {
        let long = "x".repeat(1000);
        let spec = serde_json::json!({ "annotations": {
            "io.kubernetes.cri.sandbox-name": long, "io.kubernetes.cri.container-name": "main" } });
        let names = Names::of(&spec);
        assert_eq!(
            (names.pod.len(), names.container.as_str()),
            (NAME_MAX, "main")
        );
        assert_eq!(Names::of(&Value::Null), Names::default());
    }
}
