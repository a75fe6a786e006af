//! Pods: which sandbox a container belongs to, and what its containers share there.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::json::object;
use crate::origins::Origin;
use crate::policy::Policy;
use crate::report::Refusal;
use crate::spec::Caller;

/// containerd's annotation for what a container is in its pod (`internal/cri/annotations` in containerd).
pub(crate) const TYPE: &str = "io.kubernetes.cri.container-type";
/// containerd's annotation that names the sandbox a container belongs to.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// What all of CRI-O's begin with. runsc would follow some of them (`runsc/specutils/cri.go`).
pub(crate) const CRI_O: &str = "io.kubernetes.cri-o.";
/// The namespace of the pod as Kubernetes knows it; containerd writes it after everything that a pod can pass.
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
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
    /// `InvalidArgument` for annotations that contradict each other, and for CRI-O's.
    pub fn of(spec: &Value, id: &str) -> Result<Self, Refusal> {
        let sandbox = sandbox_of(spec);
        let invalid = |problem: String| Refusal::invalid("annotations", problem);
        let annotations = spec.get("annotations");
        let all = annotations.and_then(Value::as_object);
        let mut keys = all.into_iter().flat_map(Map::keys);
        if let Some(foreign) = keys.find(|key| key.starts_with(CRI_O)) {
            return Err(invalid(format!(
                "{foreign:?} is CRI-O's, whose pods are not supported: a pod's containers are told by containerd's {TYPE:?} and {SANDBOX_ID:?} alone"
            )));
        }
        match (annotation(annotations, TYPE), sandbox) {
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
    annotation(spec.get("annotations"), SANDBOX_ID)
}

/// One that is empty says nothing.
fn annotation<'a>(annotations: Option<&'a Value>, key: &str) -> Option<&'a str> {
    let text = annotations?.get(key)?.as_str();
    text.filter(|text| !text.is_empty())
}

/// The pod that a container says it is of, in what containerd's CRI plugin writes for all containers of one alike, and who asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The pod's uid in Kubernetes.
    uid: Option<String>,
    /// Its namespace there.
    namespace: Option<String>,
    /// What is trusted of who made it; none before there is one.
    caller: Option<Caller>,
}

impl Identity {
    pub(crate) fn of(spec: &Map<String, Value>, caller: Caller) -> Self {
        let text = |key: &str| annotation(spec.get("annotations"), key).map(str::to_owned);
        Self {
            uid: text(POD_UID),
            namespace: text(POD_NAMESPACE),
            caller: Some(caller),
        }
    }

    /// Refuses a container that names the sandbox of a pod which it is not of, or which another kind of caller made: a client that
    /// writes a pod's annotations is not the kubelet, and what is a kubelet's pod has the grants of its namespace.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the annotation that differs, or the one that tells who asks.
    pub(crate) fn expect(&self, asked: &Self) -> Result<(), Refusal> {
        for (key, has, given) in [
            (POD_UID, &self.uid, &asked.uid),
            (POD_NAMESPACE, &self.namespace, &asked.namespace),
        ] {
            if has != given {
                let shown = |text: &Option<String>| text.clone().unwrap_or_default();
                return Err(Refusal::invalid(
                    "annotations",
                    format!(
                        "{key:?} is {:?} and must be that of the sandbox, {:?}: a container joins the sandbox of its own pod alone",
                        shown(given),
                        shown(has)
                    ),
                ));
            }
        }
        if self.caller != asked.caller {
            let shown = |caller: Option<Caller>| caller.map_or("nobody's", Caller::whose);
            return Err(Refusal::invalid(
                "annotations",
                format!(
                    "by {TYPE:?} and containerd's namespace the container is {} and its sandbox {}: both must be of one kind",
                    shown(asked.caller),
                    shown(self.caller)
                ),
            ));
        }
        Ok(())
    }
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
    /// The pod they are of.
    pub pod: Identity,
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
    is_name.then(|| folders(policy).join(uid))
}

/// The kubelet's folder of all pods.
pub(crate) fn folders(policy: &Policy) -> PathBuf {
    policy.kubernetes.kubelet_root.join("pods")
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
    annotations.insert(TYPE.to_owned(), json!(kind));
    annotations.insert(SANDBOX_ID.to_owned(), json!(sandbox));
    Ok(())
}

/// Tells runsc nothing of pods: an annotation that is empty, or of no meaning together with the others, has one for runsc.
pub(crate) fn annotate_nothing(spec: &mut Map<String, Value>) {
    if let Some(annotations) = spec.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| !is_of_pods(key));
    }
}

fn is_of_pods(key: &str) -> bool {
    [TYPE, SANDBOX_ID].contains(&key) || key.starts_with(CRI_O)
}

/// Tells runsc which volumes to share; it reads this from the sandbox's own spec only.
pub(crate) fn hint(spec: &mut Map<String, Value>, volumes: &[Volume]) -> Result<(), Refusal> {
    let annotations = object(spec, "annotations")?;
    for (number, volume) in volumes.iter().enumerate() {
        let size = volume
            .size
            .map_or(String::new(), |size| format!(",size={size}"));
        // It was looked at when the volumes were found.
        let source = volume.source.to_str().unwrap_or_default();
        // A mount may only be stricter than the volume's own options: these are the least that all mounts have.
        let options = format!("rw,nosuid,nodev{size},mode=1777");
        for (field, value) in [
            ("source", source),
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
        let alone = json!({ TYPE: "sandbox" });
        for sandbox in [json!({ TYPE: "sandbox", SANDBOX_ID: "me" }), alone] {
            assert_eq!(role(sandbox), Ok(Role::PodSandbox));
        }
        let container = json!({ TYPE: "container", SANDBOX_ID: "pod" });
        let sandbox = "pod".into();
        assert_eq!(role(container), Ok(Role::PodContainer { sandbox }));
    }

    #[test]
    fn an_empty_annotation_says_nothing() {
        let plain = json!({ TYPE: "", SANDBOX_ID: "", "mine": "x" });
        assert_eq!(role(plain.clone()), Ok(Role::Plain));
        let mut spec = Map::from_iter([("annotations".to_owned(), plain)]);
        annotate_nothing(&mut spec);
        assert_eq!(spec["annotations"], json!({ "mine": "x" }));
    }

    #[test]
    fn contradictions_are_refused() {
        for annotations in [
            json!({ TYPE: "sandbox", SANDBOX_ID: "other" }),
            json!({ TYPE: "container" }),
            json!({ TYPE: "container", SANDBOX_ID: "me" }),
            json!({ TYPE: "pod", SANDBOX_ID: "me" }),
        ] {
            assert!(role(annotations.clone()).is_err(), "{annotations}");
        }
    }

    #[test]
    fn cri_os_annotations_are_refused_with_containerds_and_without() {
        for mut annotations in [
            json!({}),
            json!({ TYPE: "sandbox", SANDBOX_ID: "me" }),
            json!({ TYPE: "container", SANDBOX_ID: "pod" }),
        ] {
            let clean = annotations.clone();
            for (key, value) in [
                ("io.kubernetes.cri-o.ContainerType", "container"),
                ("io.kubernetes.cri-o.SandboxID", "other"),
                ("io.kubernetes.cri-o.SandboxID", ""),
                ("io.kubernetes.cri-o.Annotations", "{}"),
                ("io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", "true"),
            ] {
                annotations = clean.clone();
                annotations[key] = json!(value);
                let refusal = role(annotations.clone()).expect_err(key);
                assert!(refusal.to_string().contains("not supported"), "{refusal}");
            }
        }
        let spec = json!({ "annotations": { "io.kubernetes.cri-o.SandboxID": "b" } });
        assert_eq!(sandbox_of(&spec), None);
        assert_eq!(sandbox_of(&json!({ "annotations": null })), None);
    }

    #[test]
    fn a_container_joins_its_own_pod_alone() {
        let of = |annotations: Value| {
            Identity::of(
                json!({ "annotations": annotations })
                    .as_object()
                    .expect("object"),
                Caller::Kubernetes,
            )
        };
        let pod = of(json!({ POD_UID: "1-a", POD_NAMESPACE: "agents" }));
        assert_eq!(pod.expect(&pod), Ok(()));
        assert_eq!(of(json!({})).expect(&of(json!({ POD_UID: "" }))), Ok(()));
        for (other, key) in [
            (json!({ POD_UID: "1-b", POD_NAMESPACE: "agents" }), POD_UID),
            (
                json!({ POD_UID: "1-a", POD_NAMESPACE: "other" }),
                POD_NAMESPACE,
            ),
            (json!({ POD_NAMESPACE: "agents" }), POD_UID),
            (json!({ POD_UID: "1-a" }), POD_NAMESPACE),
        ] {
            let refusal = pod.expect(&of(other)).expect_err("another's");
            assert!(refusal.to_string().contains(key), "{refusal}");
        }
        assert!(of(json!({})).expect(&pod).is_err(), "a sandbox of no pod");
        let mut foreign = pod.clone();
        foreign.caller = Some(Caller::Foreign);
        for (has, asked) in [(&pod, &foreign), (&foreign, &pod)] {
            let refusal = has.expect(asked).expect_err("of another kind");
            assert!(refusal.to_string().contains("of one kind"), "{refusal}");
        }
        assert_eq!(foreign.expect(&foreign), Ok(()));
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
