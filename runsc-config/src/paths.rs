//! Paths that a container may not read or not write. runsc applies neither list. Everything below /proc and /sys is
//! gVisor's own. Elsewhere mounts hold what can be held.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::mounts::normal;
use crate::report::{Refusal, Report};

/// Something to be hidden, as it was found in the container's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Where in the container, without links.
    pub place: String,
    /// A folder, and not a file.
    pub is_folder: bool,
}

impl Mask {
    /// The mount that hides it, as the specification has masked paths: an empty folder, or `empty`, a file of the host.
    pub(crate) fn mount(&self, empty: &str) -> Value {
        if self.is_folder {
            let options = ["ro", "nosuid", "nodev", "noexec", "size=64k"];
            json!({ "destination": self.place, "type": "tmpfs", "source": "tmpfs", "options": options })
        } else {
            let options = ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"];
            json!({ "destination": self.place, "type": "bind", "source": empty, "options": options })
        }
    }
}

/// Makes mounts at read-only paths read-only, and tells of each path that stays as it is. Returns the paths that are to be
/// masked: what is there is known when the root filesystem is.
///
/// # Errors
/// `InvalidArgument` for one that is not absolute.
pub(crate) fn hold(
    spec: &mut Map<String, Value>,
    report: &mut Report,
) -> Result<Vec<PathBuf>, Refusal> {
    let asked = |list: &str| -> Vec<String> {
        let paths = spec.get("linux").and_then(|linux| linux.get(list));
        let paths = paths.and_then(Value::as_array).into_iter().flatten();
        let paths = paths.filter_map(Value::as_str);
        paths.map(str::to_owned).collect()
    };
    let (masked, read_only) = (asked("maskedPaths"), asked("readonlyPaths"));
    let mut masks = Vec::with_capacity(masked.len());
    for path in masked {
        let place = normal(Path::new(&path)).ok_or_else(|| {
            Refusal::invalid("linux.maskedPaths", format!("{path:?} must be absolute"))
        })?;
        if !is_gvisors(&place) {
            masks.push(place);
        }
    }
    // A folder before what is in it, which is hidden with it.
    masks.sort();
    masks.dedup();
    let is_root_writable = spec
        .get("root")
        .and_then(|root| root.get("readonly"))
        .is_none_or(|readonly| readonly != true);
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    let mut mounts: Vec<_> = mounts.into_iter().flatten().collect();
    for path in read_only {
        if is_gvisors(Path::new(&path)) {
            continue;
        }
        // Of several mounts at one place the last is seen.
        let mut at = mounts.iter_mut().rev();
        match at.find(|mount| is_at(mount, &path)) {
            Some(mount) => set_read_only(mount),
            None if is_root_writable => {
                let asked = format!("linux.readonlyPaths: {path}");
                report.note("paths", asked, "writable: it is no mount of its own", "");
            }
            None => {}
        }
    }
    Ok(masks)
}

fn is_gvisors(path: &Path) -> bool {
    ["/proc", "/sys"].iter().any(|own| path.starts_with(own))
}

fn is_at(mount: &Value, path: &str) -> bool {
    let destination = mount.get("destination").and_then(Value::as_str);
    destination.is_some_and(|destination| Path::new(destination) == Path::new(path))
}

fn set_read_only(mount: &mut Value) {
    let options = mount.get_mut("options").and_then(Value::as_array_mut);
    if let Some(options) = options {
        options.retain(|option| option != "rw" && option != "ro");
        options.push(json!("ro"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(readonly_root: bool, linux: Value) -> (Value, Vec<String>) {
        let (mounts, told, _) = all_of(readonly_root, linux).expect("held");
        (mounts, told)
    }

    type Held = (Value, Vec<String>, Vec<PathBuf>);

    fn all_of(readonly_root: bool, mut linux: Value) -> Result<Held, Refusal> {
        let mut report = Report::default();
        let mounts = json!([
            { "destination": "/tmp", "type": "tmpfs", "options": ["rw", "nosuid"] },
            { "destination": "/proc", "type": "proc", "options": ["nosuid"] },
        ]);
        let mut spec = Map::from_iter([
            ("root".to_owned(), json!({ "readonly": readonly_root })),
            ("mounts".to_owned(), mounts),
            ("linux".to_owned(), linux.take()),
        ]);
        let masks = hold(&mut spec, &mut report)?;
        let changes = report.changes.into_iter().map(|change| change.asked);
        Ok((
            spec.remove("mounts").expect("mounts"),
            changes.collect(),
            masks,
        ))
    }

    #[test]
    fn what_is_to_be_masked_is_told_without_what_is_gvisors() {
        let asked = json!({
            "maskedPaths": [
                "/srv/x", "/bin/ls", "/proc/kcore", "/srv/../sys/firmware", "/bin/./ls", "/proc/../etc/shadow",
            ],
        });
        let (_, told, masks) = all_of(false, asked).expect("held");
        assert_eq!(
            masks,
            ["/bin/ls", "/etc/shadow", "/srv/x"].map(PathBuf::from)
        );
        assert!(told.is_empty(), "{told:?}");
        let refusal = all_of(false, json!({ "maskedPaths": ["etc"] })).expect_err("refused");
        assert!(
            refusal
                .to_string()
                .contains("maskedPaths: \"etc\" must be absolute"),
            "{refusal}"
        );
    }

    #[test]
    fn a_mount_at_a_read_only_path_is_read_only() {
        let (mounts, told) = held(false, json!({ "readonlyPaths": ["/tmp/", "/proc/sys"] }));
        assert_eq!(mounts[0]["options"], json!(["nosuid", "ro"]));
        assert_eq!(mounts[1]["options"], json!(["nosuid"]));
        assert!(told.is_empty(), "{told:?}");
    }

    #[test]
    fn what_cannot_be_held_is_told() {
        let asked = json!({
            "readonlyPaths": ["/etc", "/sys/fs"], "maskedPaths": ["/proc/kcore", "/bin/ls"],
        });
        let (_, told) = held(false, asked.clone());
        assert_eq!(told, ["linux.readonlyPaths: /etc"]);
        // A read-only root holds it.
        let (_, told) = held(true, asked);
        assert!(told.is_empty(), "{told:?}");
    }
}
