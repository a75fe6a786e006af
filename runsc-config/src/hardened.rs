//! The one kind of spec that can be written to a bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::binds::Writes;
use crate::cgroups;
use crate::image::{self, Scenery};
use crate::json::is_empty;
use crate::paths::Mask;
use crate::process;
use crate::seccomp;

/// A file or folder of the host that a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Its place among the spec's mounts.
    pub number: usize,
    /// Its absolute path on the host; for one that was there when it was judged, without links.
    pub source: &'a Path,
    /// Its absolute path in the container, as asked for: links of the image may lead elsewhere.
    pub destination: &'a Path,
    /// With what is mounted below it.
    pub recursive: bool,
    /// Nothing can be written.
    pub read_only: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
    /// Without what the host mounts later.
    pub private: bool,
    /// It hides what it is mounted over: an empty file.
    pub is_mask: bool,
    /// Where that goes which the container writes to it. A copy is for the caller to make.
    pub writes: Writes,
}

/// Where a bind comes to stand, once that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its absolute path in the container, without links.
    pub destination: String,
    /// Others were mounted below its source, and come with it.
    pub holds_others: bool,
    /// The mount itself is read-only already, with what it had; what was mounted below it since may be written.
    pub is_sealed: bool,
}

/// A spec that may be written to a bundle. Made by [`harden`](crate::harden) alone.
#[derive(Debug, Clone, PartialEq)]
pub struct HardenedSpec {
    json: Map<String, Value>,
    cgroup: Option<String>,
    masked: Vec<PathBuf>,
    inside: Vec<PathBuf>,
    sceneries: Vec<Scenery>,
    copies: BTreeMap<PathBuf, Writes>,
    empty: Option<PathBuf>,
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

impl Place {
    fn apply(&self, mount: &mut Map<String, Value>) {
        let destination = Value::String(self.destination.clone());
        mount.insert("destination".to_owned(), destination);
        let options = mount.get_mut("options").and_then(Value::as_array_mut);
        let Some(options) = options else { return };
        let mut exchange = |from: &str, to: &str| {
            options.retain(|option| option != from && option != to);
            options.push(Value::String(to.to_owned()));
        };
        if self.holds_others {
            exchange("bind", "rbind");
        }
        if self.is_sealed {
            exchange("ro", "rw");
        }
    }
}

impl HardenedSpec {
    pub(crate) fn new(
        json: Map<String, Value>,
        cgroup: Option<String>,
        masked: Vec<PathBuf>,
        inside: Vec<PathBuf>,
        sceneries: Vec<Scenery>,
        copies: BTreeMap<PathBuf, Writes>,
    ) -> Self {
        Self {
            json,
            cgroup,
            masked,
            inside,
            sceneries,
            copies,
            empty: None,
        }
    }

    /// Where the content of the image, or a copy of it, is to be seen in memory. It is for the caller to look at what is there, and
    /// to show it by [`HardenedSpec::with_scenes`].
    #[must_use]
    pub fn sceneries(&self) -> &[Scenery] {
        &self.sceneries
    }

    /// The places of its mounts, in their order.
    pub fn destinations(&self) -> impl Iterator<Item = &Path> {
        self.mounts().filter_map(destination)
    }

    /// The places of its mounts that are no binds, as asked for. Nothing of the root filesystem is to be seen in them.
    pub fn veils(&self) -> impl Iterator<Item = &Path> {
        let binds: BTreeSet<usize> = self.binds().map(|bind| bind.number).collect();
        let mounts = self.mounts().enumerate();
        let veils = mounts.filter(move |(number, _)| !binds.contains(number));
        veils.filter_map(|(_, mount)| destination(mount))
    }

    fn mounts(&self) -> impl Iterator<Item = &Value> {
        let mounts = self.json.get("mounts").and_then(Value::as_array);
        mounts.into_iter().flatten()
    }

    /// The mount that a path lies in, by its name alone.
    fn mount_around(&self, place: &Path) -> Option<&Value> {
        let is_around = |mount: &&Value| destination(mount).is_some_and(|at| place.starts_with(at));
        let depth = |mount: &&Value| destination(mount).map(|at| at.components().count());
        // Of several at one place the last is seen, and `max_by_key` takes the last of equals.
        self.mounts().filter(is_around).max_by_key(depth)
    }

    /// The size of the filesystem in memory at a place.
    #[must_use]
    pub fn size_at(&self, place: &Path) -> Option<u64> {
        image::size(self.mount_at(place)?)
    }

    pub(crate) fn mount_at(&self, place: &Path) -> Option<&Value> {
        self.mounts()
            .find(|mount| destination(mount) == Some(place))
    }

    pub(crate) fn unmount(&mut self, place: &Path) {
        if let Some(mounts) = self.json.get_mut("mounts").and_then(Value::as_array_mut) {
            mounts.retain(|mount| destination(mount) != Some(place));
        }
    }

    /// Before all others: what the request mounts goes over it.
    pub(crate) fn mount_first(&mut self, new: Vec<Value>) {
        if let Some(mounts) = self.json.get_mut("mounts").and_then(Value::as_array_mut) {
            mounts.splice(0..0, new);
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

    /// Width and height of the terminal in characters, where they are asked for.
    #[must_use]
    pub fn console_size(&self) -> Option<(u32, u32)> {
        process::console_size(self.get("/process/consoleSize")?)
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

    /// How the profile is written: `complement` of the binary's own table of calls, or `allow-list`; `None` without a profile.
    #[must_use]
    pub fn profile_form(&self) -> Option<&'static str> {
        self.seccomp().map(seccomp::form)
    }

    /// The cgroup that it lies in, if that is not the root.
    #[must_use]
    pub fn cgroup_above(&self) -> Option<&str> {
        cgroups::parent(self.cgroup()?)
    }

    /// Whether the cgroup above the sandbox's is its pod's, and nobody else's.
    #[must_use]
    pub fn has_its_pods_cgroup_above(&self) -> bool {
        self.cgroup_above().is_some_and(cgroups::is_one_pods)
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

    /// The absolute path of its working folder.
    #[must_use]
    pub fn working_folder(&self) -> Option<&Path> {
        let folder = Path::new(self.get("/process/cwd")?.as_str()?);
        folder.is_absolute().then_some(folder)
    }

    /// The name of its program, as the spec has it.
    #[must_use]
    pub fn program(&self) -> Option<&str> {
        let program = self.get("/process/args")?.get(0)?.as_str()?;
        (!program.is_empty()).then_some(program)
    }

    /// The folders in which a program is looked for that is named without one: of several `PATH` the first, as in gVisor.
    #[must_use]
    pub fn search_path(&self) -> Option<&str> {
        let environment = self.get("/process/env")?.as_array()?;
        let mut values = environment.iter().filter_map(Value::as_str);
        values.find_map(|entry| entry.strip_prefix("PATH="))
    }

    /// Whether something else may change what it finds in its root before its program starts.
    #[must_use]
    pub fn has_hooks_before_start(&self) -> bool {
        let stages = [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
        ];
        stages.iter().any(|stage| {
            let hooks = self.get(&format!("/hooks/{stage}"));
            hooks.is_some_and(|hooks| !is_empty(hooks))
        })
    }

    /// Whether the mount that a path lies in cannot be written.
    #[must_use]
    pub fn is_read_only_at(&self, place: &Path) -> bool {
        let around = self.mount_around(place);
        let options = around.and_then(|mount| mount.get("options")?.as_array());
        options.is_some_and(|options| options.iter().any(|option| option == "ro"))
    }

    /// Its binds of the host's files and folders. A volume that is kept inside of the sandbox is none of them.
    pub fn binds(&self) -> impl Iterator<Item = Bind<'_>> {
        let mounts = self.json.get("mounts").and_then(Value::as_array);
        let mounts = mounts.into_iter().flatten().enumerate();
        mounts.filter_map(|(number, mount)| {
            let text = |key: &str| mount.get(key).and_then(Value::as_str);
            let options = mount.get("options").and_then(Value::as_array);
            let has = |name| options.is_some_and(|options| options.iter().any(|one| one == name));
            let source = Path::new(text("source")?);
            (text("type") == Some("bind") && !self.is_inside(source)).then_some(Bind {
                number,
                source,
                destination: Path::new(text("destination")?),
                recursive: has("rbind"),
                read_only: has("ro"),
                no_exec: has("noexec"),
                private: has("rprivate"),
                is_mask: self.empty.as_deref() == Some(source),
                writes: if has("ro") {
                    Writes::Host
                } else {
                    self.copies.get(source).copied().unwrap_or(Writes::Host)
                },
            })
        })
    }

    /// Whether the volume of this source is kept inside of the sandbox.
    fn is_inside(&self, source: &Path) -> bool {
        self.inside.iter().any(|volume| volume == source)
    }

    /// The same spec with some binds at other places, and without those that were mounted below others' sources, both by
    /// [`Bind::number`].
    #[must_use]
    pub fn with_places(&self, places: &BTreeMap<usize, Place>, gone: &BTreeSet<usize>) -> Self {
        let mut spec = self.clone();
        let mounts = spec.json.get_mut("mounts").and_then(Value::as_array_mut);
        let Some(mounts) = mounts else { return spec };
        let mut number = 0..;
        mounts.retain_mut(|mount| {
            let number = number.next().unwrap_or_default();
            if let (Some(place), Some(mount)) = (places.get(&number), mount.as_object_mut()) {
                place.apply(mount);
            }
            !gone.contains(&number)
        });
        spec
    }

    /// The same spec with other names for the sources of some binds, by [`Bind::number`]: for a caller that has opened
    /// these very sources and gives them to runsc under names of its own.
    #[must_use]
    pub fn with_sources(&self, names: &BTreeMap<usize, String>) -> Self {
        let mut spec = self.clone();
        let mounts = spec.json.get_mut("mounts").and_then(Value::as_array_mut);
        let mounts = mounts.into_iter().flatten().enumerate();
        for (number, mount) in mounts {
            let is_bind = mount.get("type").and_then(Value::as_str) == Some("bind");
            if let (Some(name), Some(mount), true) =
                (names.get(&number), mount.as_object_mut(), is_bind)
            {
                mount.insert("source".to_owned(), Value::String(name.clone()));
            }
        }
        spec
    }

    /// The same with its root filesystem under another name, where the caller has mounted it.
    #[must_use]
    pub fn with_root(&self, name: &str) -> Self {
        let mut spec = self.clone();
        let root = spec.json.get_mut("root");
        if let Some(path) = root.and_then(|root| root.get_mut("path")) {
            *path = Value::String(name.to_owned());
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
        let Some(mount) = self.mount_around(place) else {
            return Holder::Root;
        };
        let text = |key: &str| mount.get(key).and_then(Value::as_str);
        match (text("type"), text("source")) {
            (Some("bind"), Some(source)) if self.is_inside(Path::new(source)) => Holder::Shared,
            (Some("bind"), Some(source)) => {
                let at = destination(mount).unwrap_or(place);
                let below = place.strip_prefix(at).unwrap_or(place);
                Holder::Bind(Path::new(source), below.to_owned())
            }
            (Some("tmpfs"), Some(source)) if source.starts_with('/') => Holder::Shared,
            _ => Holder::Other,
        }
    }

    /// Whether something is mounted at just this place.
    #[must_use]
    pub fn has_mount_at(&self, place: &Path) -> bool {
        self.mount_at(place).is_some()
    }

    /// The same spec with these hidden; `empty` is an empty file of the host for every file among them. What is mounted at or
    /// below a place that is hidden is not mounted: runsc mounts by the length of the places, and not in the order of the list.
    #[must_use]
    pub fn with_masks(&self, masks: &[Mask], empty: &str) -> Self {
        let mut spec = self.clone();
        spec.empty = Some(PathBuf::from(empty));
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
        let inside = vec!["/volume".into()];
        HardenedSpec::new(json, None, Vec::new(), inside, Vec::new(), BTreeMap::new())
    }

    #[test]
    fn a_path_lies_in_the_nearest_mount_above_it() {
        let bind = |destination: &str, source: &str| json!({ "destination": destination, "type": "bind", "source": source });
        let spec = with_mounts(json!([
            bind("/data", "/a"), bind("/data/in", "/b"), bind("/data/in", "/c"),
            { "destination": "/data/tmp", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "/dev/shm" },
            bind("/cache", "/volume"),
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
            ("/cache/x", Holder::Shared),
        ] {
            assert_eq!(spec.holder(Path::new(place)), holder, "{place}");
        }
        assert!(spec.binds().all(|bind| bind.source != Path::new("/volume")));
        let veils = ["/data/tmp", "/dev/shm", "/cache"].map(Path::new);
        assert_eq!(spec.veils().collect::<Vec<_>>(), veils);
    }

    #[test]
    fn a_bind_that_was_placed_keeps_its_other_options() {
        let bind = |destination: &str| json!({ "destination": destination, "type": "bind", "source": "/a", "options": ["bind", "ro", "nodev"] });
        let spec = with_mounts(json!([bind("/link"), bind("/link/in"), bind("/srv")]));
        let place = Place {
            destination: "/data".into(),
            holds_others: true,
            is_sealed: true,
        };
        let placed = spec.with_places(&BTreeMap::from([(0, place)]), &BTreeSet::from([1]));
        let mut outer = bind("/data");
        outer["options"] = json!(["nodev", "rbind", "rw"]);
        assert_eq!(placed.as_map()["mounts"], json!([outer, bind("/srv")]));
    }

    #[test]
    fn what_is_masked_cannot_be_read_or_written() {
        let spec = with_mounts(json!([]));
        let mask = |place: &str, is_folder| Mask {
            place: place.into(),
            is_folder,
        };
        let masks = [mask("/bin/ls", false), mask("/srv", true)];
        let masked = spec.with_masks(&masks, "/b/empty");
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
        let masked = spec.with_masks(&masks, "/b/empty");
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
