//! The one kind of spec that can be written to a bundle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::cgroups;
use crate::json::is_empty;
use crate::paths::Mask;

/// A file or folder of the host that a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Its place among the spec's mounts.
    pub number: usize,
    /// Its absolute path on the host; for one that was there when it was judged, without links.
    pub source: &'a Path,
    /// With what is mounted below it.
    pub recursive: bool,
}

/// A spec that may be written to a bundle. Made by [`harden`](crate::harden) alone.
#[derive(Debug, Clone, PartialEq)]
pub struct HardenedSpec {
    json: Map<String, Value>,
    cgroup: Option<String>,
    masked: Vec<PathBuf>,
}

/// What a path of a container lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder<'a> {
    /// Its root filesystem.
    Root,
    /// A file or folder of the host, by its path there, and the rest of the path below it.
    Bind(&'a Path, PathBuf),
    /// What the containers of a pod share inside of their sandbox.
    Shared,
    /// A filesystem of gVisor's, with nothing in it that is not gVisor's own.
    Other,
}

impl HardenedSpec {
    pub(crate) fn new(
        json: Map<String, Value>,
        cgroup: Option<String>,
        masked: Vec<PathBuf>,
    ) -> Self {
        Self {
            json,
            cgroup,
            masked,
        }
    }

    /// As `config.json`.
    #[must_use]
    pub fn to_json_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.json).unwrap_or_default()
    }

    /// Whether the container's stdio is a terminal.
    #[must_use]
    pub fn terminal(&self) -> bool {
        self.get("/process/terminal")
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }

    /// Where the sandbox's cgroup lies below the root of each hierarchy; `None` for a container that joins a sandbox, and
    /// where none was asked for.
    #[must_use]
    pub fn cgroup(&self) -> Option<&str> {
        self.cgroup.as_deref()
    }

    /// Whether programs may write to the root filesystem.
    #[must_use]
    pub fn has_writable_root(&self) -> bool {
        self.get("/root/readonly").and_then(Value::as_bool) != Some(true)
    }

    /// Its seccomp profile, in the words of the OCI specification (`config-linux.md`, Seccomp).
    #[must_use]
    pub fn seccomp(&self) -> Option<&Value> {
        self.get("/linux/seccomp")
    }

    /// The cgroup that it lies in, if that is not the root.
    #[must_use]
    pub fn cgroup_above(&self) -> Option<&str> {
        cgroups::parent(self.cgroup()?)
    }

    /// The spec, to read.
    #[must_use]
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.json
    }

    /// Its root filesystem, as a path of the host or below the bundle.
    #[must_use]
    pub fn root(&self) -> Option<&Path> {
        self.get("/root/path")?.as_str().map(Path::new)
    }

    /// Its binds of the host's files and folders.
    pub fn binds(&self) -> impl Iterator<Item = Bind<'_>> {
        let mounts = self.json.get("mounts").and_then(Value::as_array);
        let mounts = mounts.into_iter().flatten().enumerate();
        mounts.filter_map(|(number, mount)| {
            let text = |key: &str| mount.get(key).and_then(Value::as_str);
            let options = mount.get("options").and_then(Value::as_array);
            (text("type") == Some("bind")).then_some(Bind {
                number,
                source: Path::new(text("source")?),
                recursive: options.is_some_and(|options| options.iter().any(|one| one == "rbind")),
            })
        })
    }

    /// The same spec with other names for the sources of some binds, by [`Bind::number`]: for a caller that has opened
    /// these very sources and gives them to runsc under names of its own.
    #[must_use]
    pub fn with_sources(&self, names: &BTreeMap<usize, PathBuf>) -> Self {
        let mut spec = self.clone();
        let mounts = spec.json.get_mut("mounts").and_then(Value::as_array_mut);
        let mounts = mounts.into_iter().flatten().enumerate();
        for (number, mount) in mounts {
            let is_bind = mount.get("type").and_then(Value::as_str) == Some("bind");
            if let (Some(name), Some(mount), true) =
                (names.get(&number), mount.as_object_mut(), is_bind)
            {
                let name = name.to_string_lossy().into_owned();
                mount.insert("source".to_owned(), Value::String(name));
            }
        }
        spec
    }

    /// The paths that are to be hidden, each absolute, sorted. It is for the caller to look at what is there, and to hide it
    /// by [`HardenedSpec::with_masks`].
    pub fn masked(&self) -> impl Iterator<Item = &Path> {
        self.masked.iter().map(PathBuf::as_path)
    }

    /// What an absolute path of the container lies in, by its name alone.
    #[must_use]
    pub fn holder(&self, place: &Path) -> Holder<'_> {
        let mounts = self.json.get("mounts").and_then(Value::as_array);
        let above = mounts.into_iter().flatten().filter_map(|mount| {
            let text = |key: &str| mount.get(key).and_then(Value::as_str);
            let below = place.strip_prefix(text("destination")?).ok()?;
            Some((below, text("type")?, text("source")))
        });
        // Of several at one place the last is seen, and `min_by_key` would take the first.
        let nearest = above
            .rev()
            .min_by_key(|(below, ..)| below.components().count());
        match nearest {
            None => Holder::Root,
            Some((below, "bind", Some(source))) => {
                Holder::Bind(Path::new(source), below.to_owned())
            }
            Some((_, "tmpfs", Some(source))) if source.starts_with('/') => Holder::Shared,
            Some(_) => Holder::Other,
        }
    }

    /// Whether something is mounted at just this place.
    #[must_use]
    pub fn has_mount_at(&self, place: &Path) -> bool {
        let mounts = self.json.get("mounts").and_then(Value::as_array);
        let mut mounts = mounts.into_iter().flatten();
        mounts.any(|mount| destination(mount) == Some(place))
    }

    /// The same spec with these hidden; `empty` is an empty file of the host for every file among them. What is mounted at or
    /// below a place that is hidden is not mounted: runsc mounts by the length of the places, and not in the order of the list.
    #[must_use]
    pub fn with_masks(&self, masks: &[Mask], empty: &Path) -> Self {
        let mut spec = self.clone();
        let mounts = spec.json.get_mut("mounts").and_then(Value::as_array_mut);
        if let Some(mounts) = mounts {
            mounts.retain(|mount| {
                let place = destination(mount);
                !place.is_some_and(|place| masks.iter().any(|mask| place.starts_with(&mask.place)))
            });
            mounts.extend(masks.iter().map(|mask| mask.mount(empty)));
        }
        spec
    }

    /// Whether runsc has something to do after the container has gone.
    #[must_use]
    pub fn has_poststop_hooks(&self) -> bool {
        self.get("/hooks/poststop")
            .is_some_and(|hooks| !is_empty(hooks))
    }

    /// Whether its network namespace is made for it, not somebody's that it joins.
    pub(crate) fn has_own_network(&self) -> bool {
        let namespaces = self.get("/linux/namespaces").and_then(Value::as_array);
        namespaces.into_iter().flatten().any(|namespace| {
            let text = |key: &str| namespace.get(key).and_then(Value::as_str);
            text("type") == Some("network") && text("path").unwrap_or_default().is_empty()
        })
    }

    fn get(&self, pointer: &str) -> Option<&Value> {
        let (first, rest) = pointer.strip_prefix('/')?.split_once('/')?;
        self.json.get(first)?.pointer(&format!("/{rest}"))
    }
}

fn destination(mount: &Value) -> Option<&Path> {
    mount.get("destination")?.as_str().map(Path::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with_mounts(mounts: Value) -> HardenedSpec {
        let json = Map::from_iter([("mounts".to_owned(), mounts)]);
        HardenedSpec::new(json, None, Vec::new())
    }

    #[test]
    fn a_path_lies_in_the_nearest_mount_above_it() {
        let bind = |destination: &str, source: &str| json!({ "destination": destination, "type": "bind", "source": source });
        let spec = with_mounts(json!([
            bind("/data", "/a"), bind("/data/in", "/b"), bind("/data/in", "/c"),
            { "destination": "/data/tmp", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "/dev/shm" },
        ]));
        let in_bind = |source, below: &str| Holder::Bind(Path::new(source), below.into());
        for (place, holder) in [
            ("/", Holder::Root),
            ("/database", Holder::Root),
            ("/data", in_bind("/a", "")),
            ("/data/x/y", in_bind("/a", "x/y")),
            ("/data/in/x", in_bind("/c", "x")),
            ("/data/tmp/x", Holder::Other),
            ("/dev/shm/x", Holder::Shared),
        ] {
            assert_eq!(spec.holder(Path::new(place)), holder, "{place}");
        }
    }

    #[test]
    fn what_is_masked_cannot_be_read_or_written() {
        let spec = with_mounts(json!([]));
        let mask = |place: &str, is_folder| Mask {
            place: place.into(),
            is_folder,
        };
        let masks = [mask("/bin/ls", false), mask("/srv", true)];
        let masked = spec.with_masks(&masks, Path::new("/b/empty"));
        let mounts = masked.as_map()["mounts"].as_array().expect("mounts");
        let seen: Vec<_> = mounts
            .iter()
            .map(|one| (&one["destination"], &one["type"], &one["source"]))
            .collect();
        let expected = json!(["/bin/ls", "bind", "/b/empty", "/srv", "tmpfs", "tmpfs"]);
        let expected: Vec<_> = expected
            .as_array()
            .expect("a list")
            .chunks(3)
            .map(|one| (&one[0], &one[1], &one[2]))
            .collect();
        assert_eq!(seen, expected);
        for mount in mounts {
            let options = mount["options"].as_array().expect("options");
            assert!(
                options.contains(&json!("ro")) && options.contains(&json!("noexec")),
                "{mount}"
            );
        }
        assert_eq!(spec.binds().count() + 1, masked.binds().count());
    }

    /// Which of two mounts at one place runsc shows is chance, and one below a mask would be seen.
    #[test]
    fn a_mask_replaces_what_is_mounted_at_its_place_and_below() {
        let bind = |destination: &str| json!({ "destination": destination, "type": "bind", "source": "/a" });
        let spec = with_mounts(json!([
            bind("/srv"),
            bind("/srv/data"),
            bind("/srvx"),
            bind("/etc/key"),
            bind("/"),
        ]));
        assert!(spec.has_mount_at(Path::new("/srv")) && !spec.has_mount_at(Path::new("/etc")));
        let masks = [("/srv", true), ("/etc/key", false)].map(|(place, is_folder)| Mask {
            place: place.into(),
            is_folder,
        });
        let masked = spec.with_masks(&masks, Path::new("/b/empty"));
        let mounts = masked.as_map()["mounts"].as_array().expect("mounts");
        let seen: Vec<_> = mounts
            .iter()
            .map(|one| (one["destination"].as_str(), one["source"].as_str()))
            .collect();
        let expected = [
            ("/srvx", "/a"),
            ("/", "/a"),
            ("/srv", "tmpfs"),
            ("/etc/key", "/b/empty"),
        ];
        assert_eq!(
            seen,
            expected.map(|(place, source)| (Some(place), Some(source)))
        );
    }
}
