//! Paths that a container is not to read or not to write. runsc applies neither list: below /proc and /sys everything is
//! gVisor's own, and what can be held elsewhere is held by the mounts.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::report::Report;

/// Makes mounts at read-only paths read-only, and tells of each path that stays as it is.
pub(crate) fn hold(spec: &mut Map<String, Value>, report: &mut Report) {
    let asked = |list: &str| -> Vec<String> {
        let paths = spec.get("linux").and_then(|linux| linux.get(list));
        let paths = paths.and_then(Value::as_array).into_iter().flatten();
        let paths = paths.filter_map(Value::as_str);
        paths
            .filter(|path| !is_gvisors(path))
            .map(str::to_owned)
            .collect()
    };
    let (masked, read_only) = (asked("maskedPaths"), asked("readonlyPaths"));
    for path in masked {
        let asked = format!("linux.maskedPaths: {path}");
        report.note("paths", asked, "readable: gVisor masks no path", "");
    }
    let is_root_writable = spec
        .get("root")
        .and_then(|root| root.get("readonly"))
        .is_none_or(|readonly| readonly != true);
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    let mut mounts: Vec<_> = mounts.into_iter().flatten().collect();
    for path in read_only {
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
}

fn is_gvisors(path: &str) -> bool {
    ["/proc", "/sys"]
        .iter()
        .any(|own| Path::new(path).starts_with(own))
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

    fn held(readonly_root: bool, mut linux: Value) -> (Value, Vec<String>) {
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
        hold(&mut spec, &mut report);
        let changes = report.changes.into_iter().map(|change| change.asked);
        (spec.remove("mounts").expect("mounts"), changes.collect())
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
        assert_eq!(
            told,
            ["linux.maskedPaths: /bin/ls", "linux.readonlyPaths: /etc"]
        );
        // A read-only root holds the other.
        let (_, told) = held(true, asked);
        assert_eq!(told, ["linux.maskedPaths: /bin/ls"]);
    }
}
