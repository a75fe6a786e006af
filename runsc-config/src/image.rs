//! The content of an image under the policy's scratch: its own /tmp and /run, and its volumes.
//!
//! gVisor's tmpfs copies nothing, so mounts stand in: a tmpfs with the owner and mode of the image's folder, one for
//! each folder in it, and the image's files bound into them, read-only. Each costs a mount, so their number is bounded.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::hardened::HardenedSpec;
use crate::report::Report;
use crate::text;

/// How many mounts all that the image has there may add to a container. Each bind costs a start about 3 ms on two busy cores, and its
/// gofer a socket: runsc takes 128 of them at once (`maxFiles` in `pkg/urpc/urpc.go`), the request's own binds included.
const MOUNTS_MAX: usize = 48;
/// How many folders deep what is there can be written to; what lies deeper is as it is in the image.
const DEPTH_MAX: usize = 4;
/// The least a folder gets, in bytes.
const SIZE_MIN: u64 = 64 * 1024;

/// A scratch of a container at which the content of a folder is to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenery {
    /// Where in the container, as asked for: links of the image may lead elsewhere.
    pub destination: PathBuf,
    /// The folder of the host that it is a copy of; the image's own at that place, if none.
    pub source: Option<PathBuf>,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The absolute path in the container, without links.
    pub place: PathBuf,
    /// The folder on the host.
    pub source: PathBuf,
    /// The folder and those in it that can be written to, each after the one that it lies in.
    pub folders: Vec<SeenFolder>,
    /// What is bound, below the place.
    pub bound: Vec<PathBuf>,
    /// What cannot be shown, below the place, and why not.
    pub hidden: Vec<(PathBuf, &'static str)>,
}

/// A folder in memory, in place of the image's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenFolder {
    /// Below the place; empty for the place itself.
    pub path: PathBuf,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its mode, without its type.
    pub mode: u32,
}

/// What becomes of a place, once it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scene {
    /// What is seen of a folder.
    Seen(Seen),
    /// The root can be written, and its own folder is there: nothing is mounted over it.
    OfTheRoot,
    /// Another mount is there.
    Covered,
    /// The image has nothing there.
    Absent,
    /// No scratch can be there.
    None {
        /// Why.
        reason: &'static str,
    },
}

/// What is left of a container's mounts for the content of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    mounts: usize,
    folders: usize,
}

impl Budget {
    /// That of a container.
    pub const OF_A_CONTAINER: Self = Self {
        mounts: MOUNTS_MAX,
        folders: 0,
    };

    /// The same, for a place of so many bytes: half of them are for the place itself, and folders in it share the rest.
    #[must_use]
    pub fn at(self, bytes: u64) -> Self {
        let folders = usize::try_from(bytes / 2 / SIZE_MIN).unwrap_or(usize::MAX);
        Self { folders, ..self }
    }

    /// The most entries that a folder may have.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.mounts
    }

    /// Takes the mounts that `entries` need; `false` where there are too few.
    pub fn take(&mut self, entries: usize) -> bool {
        let left = self.mounts.checked_sub(entries);
        self.mounts = left.unwrap_or(self.mounts);
        left.is_some()
    }

    /// Takes a folder, `depth` below the place, that is to be written to: its mount is taken already, `entries` are in it.
    pub fn take_folder(&mut self, depth: usize, entries: usize) -> bool {
        if depth > DEPTH_MAX || self.folders == 0 || !self.take(entries) {
            return false;
        }
        self.folders -= 1;
        true
    }
}

impl HardenedSpec {
    /// The same spec with what was found at its [`HardenedSpec::sceneries`], in their order; `report` gets what is not as it is in
    /// the image.
    #[must_use]
    pub fn with_scenes(&self, scenes: &[Scene], report: &mut Report) -> Self {
        let mut spec = self.clone();
        for (scenery, scene) in self.sceneries().iter().zip(scenes) {
            let key = match scenery.source {
                None => "rootfs.writable",
                Some(_) => "image_volumes",
            };
            let place = scenery.destination.display();
            match scene {
                Scene::OfTheRoot | Scene::Covered => spec.unmount(&scenery.destination),
                Scene::Absent => {}
                Scene::None { reason } => {
                    report.note("image", format!("scratch at {place}"), reason, "");
                    spec.unmount(&scenery.destination);
                }
                Scene::Seen(seen) => {
                    let Some(base) = spec.mount_at(&scenery.destination) else {
                        continue;
                    };
                    let mounts = seen.mounts(base);
                    seen.tell(base, key, report);
                    spec.unmount(&scenery.destination);
                    spec.mount_first(mounts);
                }
            }
        }
        spec
    }
}

impl Seen {
    /// In place of one tmpfs: that and all that is seen in it.
    fn mounts(&self, base: &Value) -> Vec<Value> {
        let sizes = Sizes::of(base, self);
        let folders = self.folders.iter().map(|folder| {
            let is_place = folder.path == Path::new("");
            let size = if is_place { sizes.place } else { sizes.folder };
            let mut options = kept(base);
            options.extend([
                format!("mode={:o}", folder.mode),
                format!("uid={}", folder.uid),
                format!("gid={}", folder.gid),
                format!("size={size}"),
            ]);
            let place = self.at(&folder.path);
            json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options })
        });
        let bound = self.bound.iter().map(|path| {
            // It is as executable as it is in the image.
            let options = ["bind", "rprivate", "ro", "nosuid", "nodev"];
            let (place, source) = (self.at(path), self.source.join(path));
            json!({ "destination": place, "type": "bind", "source": source, "options": options })
        });
        folders.chain(bound).collect()
    }

    fn at(&self, path: &Path) -> PathBuf {
        // `join` would end the place itself by a slash.
        self.place.iter().chain(path.iter()).collect()
    }

    fn tell(&self, base: &Value, key: &'static str, report: &mut Report) {
        let place = self.place.display();
        let sizes = Sizes::of(base, self);
        if sizes.folders > 0 {
            let asked = format!("{} bytes for all of {place}", sizes.all);
            let (own, folder, folders) = (sizes.place, sizes.folder, sizes.folders);
            let given = format!("{own} bytes, and {folder} for each of its {folders} folders");
            report.note("image", asked, given, "");
        }
        if !self.bound.is_empty() {
            let names = names(self.bound.iter());
            let asked = format!("{names} in {place}, to write");
            report.note("image", asked, "read-only", key);
        }
        let reasons: BTreeSet<&str> = self.hidden.iter().map(|(_, reason)| *reason).collect();
        for reason in reasons {
            let hidden = self.hidden.iter().filter(|(_, why)| *why == reason);
            let names = names(hidden.map(|(path, _)| path));
            report.note("image", format!("{names} in {place}"), reason, key);
        }
    }
}

/// How the bytes of a place are shared out.
struct Sizes {
    all: u64,
    place: u64,
    folders: u64,
    /// Of each folder in it.
    folder: u64,
}

impl Sizes {
    /// Half of them are for the place itself.
    fn of(base: &Value, seen: &Seen) -> Self {
        let all = size(base).unwrap_or(SIZE_MIN);
        let folders = u64::try_from(seen.folders.len().saturating_sub(1)).unwrap_or(u64::MAX);
        let folder = (all / 2).checked_div(folders).unwrap_or(0);
        Self {
            all,
            place: all - folder * folders,
            folders,
            folder,
        }
    }
}

/// The names of some, and how many more there are.
fn names<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> String {
    text::some(paths.map(|path| path.display().to_string()).collect(), ", ")
}

/// The options of a tmpfs that hold for all in its place.
fn kept(base: &Value) -> Vec<String> {
    let own = ["mode=", "uid=", "gid=", "size="];
    let options = options(base);
    let kept = options.filter(|option| !own.iter().any(|own| option.starts_with(own)));
    kept.map(str::to_owned).collect()
}

/// The bytes of a tmpfs that was hardened.
pub(crate) fn size(mount: &Value) -> Option<u64> {
    options(mount).find_map(|option| option.strip_prefix("size=")?.parse().ok())
}

fn options(mount: &Value) -> impl Iterator<Item = &str> {
    let options = mount.get("options").and_then(Value::as_array);
    options.into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn spec(sceneries: &[(&str, Option<&str>)]) -> HardenedSpec {
        let mounts = sceneries.iter().map(|(place, _)| {
            let options = ["rw", "nosuid", "noexec", "mode=755", "size=8388608"];
            json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options })
        });
        let bind = json!({ "destination": "/run/own", "type": "bind", "source": "/srv" });
        let mounts: Vec<Value> = mounts.chain([bind]).collect();
        let json = Map::from_iter([("mounts".to_owned(), json!(mounts))]);
        let sceneries = sceneries.iter().map(|(place, source)| Scenery {
            destination: place.into(),
            source: source.map(PathBuf::from),
        });
        HardenedSpec::new(
            json,
            None,
            Vec::new(),
            Vec::new(),
            sceneries.collect(),
            Default::default(),
        )
    }

    fn seen(folders: &[&str], bound: &[&str], hidden: &[(&str, &'static str)]) -> Scene {
        let folders = folders.iter().map(|path| SeenFolder {
            path: path.into(),
            uid: 5,
            gid: 6,
            mode: 0o2750,
        });
        Scene::Seen(Seen {
            place: "/var/run".into(),
            source: "/image/var/run".into(),
            folders: folders.collect(),
            bound: bound.iter().map(PathBuf::from).collect(),
            hidden: hidden
                .iter()
                .map(|(path, why)| (path.into(), *why))
                .collect(),
        })
    }

    fn shown(sceneries: &[(&str, Option<&str>)], scenes: &[Scene]) -> (Vec<Value>, Vec<String>) {
        let mut report = Report::default();
        let spec = spec(sceneries).with_scenes(scenes, &mut report);
        let told = report.changes.iter().map(ToString::to_string).collect();
        let mounts = spec.as_map()["mounts"].as_array().expect("mounts");
        (mounts.clone(), told)
    }

    #[test]
    fn a_scratch_becomes_that_of_the_image() {
        let scene = seen(&["", "app", "app/in"], &["file", "app/conf"], &[]);
        let (mounts, told) = shown(&[("/run", None)], &[scene]);
        let tmpfs = |place: &str, size: u64| {
            let size = format!("size={size}");
            let options = [
                "rw",
                "nosuid",
                "noexec",
                "mode=2750",
                "uid=5",
                "gid=6",
                &size,
            ];
            json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options })
        };
        let file = |path: &str| {
            let options = ["bind", "rprivate", "ro", "nosuid", "nodev"];
            let (place, source) = (format!("/var/run/{path}"), format!("/image/var/run/{path}"));
            json!({ "destination": place, "type": "bind", "source": source, "options": options })
        };
        let (expected, own) = mounts.split_at(5);
        let all = [
            tmpfs("/var/run", 4 << 20),
            tmpfs("/var/run/app", 2 << 20),
            tmpfs("/var/run/app/in", 2 << 20),
            file("file"),
            file("app/conf"),
        ];
        assert_eq!(expected, all);
        assert_eq!(own.first().expect("the bind")["destination"], "/run/own");
        assert_eq!(
            told,
            [
                "image: asked 8388608 bytes for all of /var/run, given 4194304 bytes, and 2097152 for each of its 2 folders",
                "image: asked file, app/conf in /var/run, to write, given read-only (policy key rootfs.writable)",
            ]
        );
    }

    #[test]
    fn what_is_not_shown_is_told_by_its_reason() {
        let many: Vec<(String, &str)> = (0..10).map(|n| (format!("l{n}"), "a link")).collect();
        let hidden: Vec<(&str, &str)> = many
            .iter()
            .map(|(name, why)| (name.as_str(), *why))
            .collect();
        let (_, told) = shown(&[("/data", Some("/v"))], &[seen(&[""], &[], &hidden)]);
        let line = "image: asked l0, l1, l2, l3, l4, l5, l6, l7 and 2 more in /var/run, given a link (policy key image_volumes)";
        assert_eq!(told, [line]);
    }

    #[test]
    fn what_needs_no_scratch_has_none() {
        let places = [
            ("/tmp", None),
            ("/run", None),
            ("/data", None),
            ("/none", None),
        ];
        let none = Scene::None { reason: "too odd" };
        let scenes = [Scene::OfTheRoot, Scene::Covered, none, Scene::Absent];
        let (mounts, told) = shown(&places, &scenes);
        let left: Vec<_> = mounts.iter().map(|mount| &mount["destination"]).collect();
        assert_eq!(left, ["/none", "/run/own"]);
        assert_eq!(told, ["image: asked scratch at /data, given too odd"]);
    }

    #[test]
    fn the_mounts_of_a_container_are_bounded() {
        let mut budget = Budget::OF_A_CONTAINER.at(8 << 20);
        assert!(!budget.take(MOUNTS_MAX + 1) && budget.take(MOUNTS_MAX - 2));
        assert_eq!(budget.entries(), 2);
        assert!(!budget.take_folder(1, 3) && !budget.take_folder(DEPTH_MAX + 1, 0));
        assert!(budget.take_folder(DEPTH_MAX, 2) && budget.take_folder(1, 0));
        // What is at another place takes from the same.
        assert_eq!(budget.at(1).entries(), 0);
        // No folder is smaller than the least.
        let mut small = Budget::OF_A_CONTAINER.at(4 * SIZE_MIN);
        assert!(small.take_folder(1, 0) && small.take_folder(1, 0) && !small.take_folder(1, 0));
    }
}
