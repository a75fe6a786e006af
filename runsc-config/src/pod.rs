//! Pods: which sandbox a container belongs to, and what its containers share there.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::json::object;
use crate::origins::Origin;
use crate::policy::Policy;
use crate::report::Refusal;

/// containerd's annotation for what a container is in its pod (`internal/cri/annotations` in containerd), then CRI-O's.
const TYPE: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
];
/// The annotation that names the sandbox a container belongs to: containerd's, then CRI-O's.
const SANDBOX_ID: [&str; 2] = [
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
];
/// The pod's uid as the kubelet knows it; containerd writes it.
const POD_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// What runsc takes a volume's treatment from (`runsc/boot/mount_hints.go`).
const HINT: &str = "dev.gvisor.spec.mount.";
/// Names the one /dev/shm of a pod to runsc; nothing of the host is there.
pub(crate) const SHM: &str = "/dev/shm";

/// What a container is, by its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A sandbox of its own: what `ctr run` and `nerdctl run` ask for.
    Plain,
    /// The first container of a pod, which its sandbox is made for.
    PodSandbox,
    /// A further container of a pod.
    PodContainer {
        /// The id of the pod's first container.
        sandbox: String,
    },
}

impl Role {
    /// Reads the role of the container `id`.
    ///
    /// # Errors
    /// `InvalidArgument` for annotations that contradict each other.
    pub fn of(spec: &Value, id: &str) -> Result<Self, Refusal> {
        let sandbox = sandbox_of(spec);
        let invalid = |problem: String| Refusal::invalid("annotations", problem);
        match (annotation(spec, &TYPE), sandbox) {
            (None, None) => Ok(Self::Plain),
            (None | Some("sandbox"), Some(sandbox)) if sandbox == id => Ok(Self::PodSandbox),
            (Some("sandbox"), None) => Ok(Self::PodSandbox),
            (None | Some("container"), Some(sandbox)) if sandbox != id => Ok(Self::PodContainer {
                sandbox: sandbox.to_owned(),
            }),
            (Some("container"), _) => Err(invalid(format!(
                "container {id:?} must name the sandbox of its pod, not {:?}",
                sandbox.unwrap_or_default()
            ))),
            (Some("sandbox"), Some(sandbox)) => Err(invalid(format!(
                "container {id:?} is to be a pod's sandbox and names another one, {sandbox:?}"
            ))),
            (Some(other), _) => Err(invalid(format!(
                "container type {other:?} must be \"sandbox\" or \"container\""
            ))),
            // Equal and unequal ids are both taken above.
            (None, Some(_)) => Ok(Self::Plain),
        }
    }
}

/// The sandbox a spec's annotations name.
#[must_use]
pub fn sandbox_of(spec: &Value) -> Option<&str> {
    annotation(spec, &SANDBOX_ID)
}

fn annotation<'a>(spec: &'a Value, keys: &[&str]) -> Option<&'a str> {
    let annotations = spec.get("annotations")?;
    keys.iter()
        .filter_map(|key| annotations.get(*key)?.as_str())
        .find(|text| !text.is_empty())
}

/// A volume that the containers of a pod share inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its folder on the host, with all links resolved; containers name it as the source of a mount.
    pub source: PathBuf,
    /// Whether its content is in the sandbox's memory, or in a file in that folder.
    pub in_memory: bool,
    /// The most it may hold, in bytes.
    pub size: Option<u64>,
}

/// What the containers of a pod share, as decided when its sandbox was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    /// Tasks of one uid in the sandbox.
    pub tasks_limit: u64,
    /// The sandbox's memory, in bytes.
    pub memory: u64,
    /// Shared volumes.
    pub volumes: Vec<Volume>,
    /// Bytes of scratch that the containers so far may take.
    pub scratch: u64,
}

impl Shared {
    /// The shared volume at `source`.
    pub(crate) fn volume(&self, source: &Path) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.source == source)
    }

    /// The shared volume that what lies at `origin` is a part of.
    pub(crate) fn volume_around(
        &self,
        origin: &Origin,
        of: fn(&Path) -> Option<Origin>,
    ) -> Option<&Volume> {
        let of_the_host = self
            .volumes
            .iter()
            .filter(|volume| volume.source != Path::new(SHM));
        let mut around = of_the_host
            .filter(|volume| of(&volume.source).is_some_and(|folder| origin.is_in(&folder)));
        around.next()
    }
}

/// The pod's folder in the kubelet's, where its uid is known.
pub(crate) fn folder(spec: &Map<String, Value>, policy: &Policy) -> Option<PathBuf> {
    let uid = spec.get("annotations")?.get(POD_UID)?.as_str()?;
    let is_name = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_name.then(|| policy.kubernetes.kubelet_root.join("pods").join(uid))
}

/// The folder in which the kubelet keeps the empty-dir volumes of a pod.
pub(crate) fn empty_dirs(spec: &Map<String, Value>, policy: &Policy) -> Option<PathBuf> {
    Some(folder(spec, policy)?.join("volumes/kubernetes.io~empty-dir"))
}

/// Tells runsc what a container is, in the annotations it reads, whatever form the caller used.
pub(crate) fn annotate(
    spec: &mut Map<String, Value>,
    kind: &str,
    sandbox: &str,
) -> Result<(), Refusal> {
    let annotations = object(spec, "annotations")?;
    annotations.retain(|key, _| !is_of_pods(key));
    let [kind_key, _] = TYPE;
    let [sandbox_key, _] = SANDBOX_ID;
    annotations.insert(kind_key.to_owned(), json!(kind));
    annotations.insert(sandbox_key.to_owned(), json!(sandbox));
    Ok(())
}

/// Tells runsc nothing of pods: an annotation that is empty, or of no meaning together with the others, has one for runsc.
pub(crate) fn annotate_nothing(spec: &mut Map<String, Value>) {
    if let Some(annotations) = spec.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| !is_of_pods(key));
    }
}

fn is_of_pods(key: &str) -> bool {
    TYPE.contains(&key) || SANDBOX_ID.contains(&key)
}

/// Tells runsc which volumes to share; it reads this from the sandbox's own spec only.
pub(crate) fn hint(spec: &mut Map<String, Value>, volumes: &[Volume]) -> Result<(), Refusal> {
    let annotations = object(spec, "annotations")?;
    for (number, volume) in volumes.iter().enumerate() {
        let size = volume
            .size
            .map_or(String::new(), |size| format!(",size={size}"));
        // A mount may only be stricter than the volume's own options: these are the least that all mounts have.
        let options = format!("rw,nosuid,nodev{size},mode=1777");
        for (field, value) in [
            ("source", volume.source.to_string_lossy().as_ref()),
            ("type", "tmpfs"),
            ("share", "pod"),
            ("options", options.as_str()),
        ] {
            annotations.insert(format!("{HINT}v{number}.{field}"), json!(value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(annotations: Value) -> Result<Role, Refusal> {
        Role::of(&json!({ "annotations": annotations }), "me")
    }

    #[test]
    fn annotations_say_what_a_container_is() {
        assert_eq!(role(json!(null)), Ok(Role::Plain));
        assert_eq!(role(json!({ "other": "x" })), Ok(Role::Plain));
        let sandbox = json!({ TYPE[0]: "sandbox", SANDBOX_ID[0]: "me" });
        assert_eq!(role(sandbox), Ok(Role::PodSandbox));
        assert_eq!(role(json!({ TYPE[1]: "sandbox" })), Ok(Role::PodSandbox));
        for keys in [0, 1] {
            let container = json!({ TYPE[keys]: "container", SANDBOX_ID[keys]: "pod" });
            let expected = Role::PodContainer {
                sandbox: "pod".into(),
            };
            assert_eq!(role(container), Ok(expected));
        }
    }

    #[test]
    fn an_empty_annotation_hides_no_other() {
        let member =
            json!({ TYPE[0]: "", TYPE[1]: "container", SANDBOX_ID[0]: "", SANDBOX_ID[1]: "pod" });
        let sandbox = "pod".into();
        assert_eq!(role(member), Ok(Role::PodContainer { sandbox }));
        let plain = json!({ TYPE[0]: "", SANDBOX_ID[0]: "", "mine": "x" });
        assert_eq!(role(plain.clone()), Ok(Role::Plain));
        let mut spec = Map::from_iter([("annotations".to_owned(), plain)]);
        annotate_nothing(&mut spec);
        assert_eq!(spec["annotations"], json!({ "mine": "x" }));
    }

    #[test]
    fn contradictions_are_refused() {
        for annotations in [
            json!({ TYPE[0]: "sandbox", SANDBOX_ID[0]: "other" }),
            json!({ TYPE[0]: "container" }),
            json!({ TYPE[0]: "container", SANDBOX_ID[0]: "me" }),
            json!({ TYPE[0]: "pod", SANDBOX_ID[0]: "me" }),
        ] {
            assert!(role(annotations.clone()).is_err(), "{annotations}");
        }
    }

    #[test]
    fn containerds_annotation_goes_before_cri_os() {
        let spec = json!({ "annotations": { SANDBOX_ID[1]: "b", SANDBOX_ID[0]: "a" } });
        assert_eq!(sandbox_of(&spec), Some("a"));
        assert_eq!(sandbox_of(&json!({ "annotations": null })), None);
    }

    #[test]
    fn a_uid_that_is_no_name_leads_nowhere() {
        let dirs = |uid: &str| {
            let spec = json!({ "annotations": { POD_UID: uid } });
            empty_dirs(spec.as_object().expect("object"), &Policy::strict())
        };
        assert!(
            dirs("7b8f-01").is_some_and(|path| path.starts_with("/var/lib/kubelet/pods/7b8f-01"))
        );
        for uid in ["", "..", "a/b"] {
            assert_eq!(dirs(uid), None);
        }
    }
}
