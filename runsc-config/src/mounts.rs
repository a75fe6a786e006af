//! Mounts: what a container may see of the host, and where it may write.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::binds::{Access, Binds, ImageVolumes, Writes};
use crate::image::Scenery;
use crate::json::text_of;
use crate::pod::{self, Shared, Volume};
use crate::policy::Policy;
use crate::report::{Refusal, Report};
use crate::spec::{Caller, ContainerKind, Context};

const MIB: u64 = 1024 * 1024;
/// Memory that scratch must leave to the programs and the sentry, in MiB.
const MEMORY_LEFT_MIB: u64 = 48;

/// The least a place to write gets, in bytes.
const SIZE_MIN: u64 = 64 * 1024;

/// What a container may write in memory: its usual places, and whatever else it mounts.
pub(crate) struct Scratch {
    tmp: u64,
    run: u64,
    shm: u64,
    /// What each place asks for.
    parts: Vec<u64>,
    /// What there is; all shrinks in proportion where it does not fit.
    room: u64,
}

impl Scratch {
    /// Sizes in bytes, that leave room in the memory they are taken from. In a pod that room is what earlier containers have
    /// left, and /dev/shm is one for all. `mounts` are what the request asks for.
    fn new(policy: &Policy, kind: ContainerKind<'_>, memory: u64, mounts: &[Mount]) -> Self {
        let [tmp, run, shm] = [
            policy.scratch.tmp_mib,
            policy.scratch.run_mib,
            policy.scratch.shm_mib,
        ]
        .map(|mib| mib.saturating_mul(MIB));
        let (taken, shm) = match kind {
            ContainerKind::Plain => (0, shm),
            ContainerKind::PodSandbox => {
                // A pod's first container only holds its sandbox: it has nothing to write.
                let room = memory.saturating_sub(MEMORY_LEFT_MIB * MIB) / 4;
                return Self {
                    tmp: SIZE_MIN,
                    run: SIZE_MIN,
                    shm: shm.min(room.max(MIB)),
                    parts: vec![SIZE_MIN; 2],
                    room: u64::MAX,
                };
            }
            ContainerKind::PodContainer(shared) => (shared.scratch, 0),
        };
        let room = memory
            .saturating_sub(MEMORY_LEFT_MIB * MIB)
            .saturating_sub(taken)
            .max(MIB);
        let mut all = Self {
            tmp,
            run,
            shm,
            parts: Vec::new(),
            room,
        };
        all.parts = [tmp, run, shm]
            .into_iter()
            .chain(all.others(mounts))
            .collect();
        all
    }

    /// What the places ask for that are not the usual ones.
    fn others(&self, mounts: &[Mount]) -> impl Iterator<Item = u64> {
        let usual = ["/tmp", "/run", "/dev/shm"].map(Path::new);
        mounts
            .iter()
            .filter(|mount| mount.is_scratch())
            .filter(move |mount| !usual.contains(&mount.destination.as_path()))
            .map(|mount| self.most(&mount.destination).0.min(mount.size()))
    }

    /// The most that a place may have, before all shrink, and the key that says so.
    fn most(&self, destination: &Path) -> (u64, &'static str) {
        match destination.to_str() {
            Some("/run" | "/var/run") => (self.run, "scratch.run_mib"),
            Some("/dev/shm") => (self.shm, "scratch.shm_mib"),
            _ => (self.tmp, "scratch.tmp_mib"),
        }
    }

    fn sized(&self, bytes: u64) -> u64 {
        let asked = self.parts.iter().copied().fold(0, u64::saturating_add);
        if asked <= self.room {
            bytes
        } else {
            scale(bytes, self.room, asked).max(SIZE_MIN)
        }
    }

    /// The most that all of it may hold, in bytes.
    fn sum(&self) -> u64 {
        let sizes = self.parts.iter().map(|part| self.sized(*part));
        sizes.fold(0, u64::saturating_add)
    }
}

fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(numerator) / u128::from(denominator.max(1)))
        .unwrap_or(value)
}

/// What a container was given to write in memory.
#[derive(Debug)]
pub(crate) struct Given {
    /// The most that all of it may hold, in bytes.
    pub(crate) scratch: u64,
    /// Where the image's own is to be seen in it.
    pub(crate) sceneries: Vec<Scenery>,
    /// The files of the host of which it has a copy to write, by their paths without links.
    pub(crate) copies: BTreeMap<PathBuf, Writes>,
}

/// Replaces the mounts of a spec by what the policy gives of them, and adds the pod's /dev/shm to what a pod shares.
pub(crate) fn harden(
    spec: &mut Map<String, Value>,
    shared: &mut Shared,
    policy: &Policy,
    caller: Caller,
    context: &Context<'_>,
    report: &mut Report,
) -> Result<Given, Refusal> {
    let asked = match spec.get("mounts") {
        None | Some(Value::Null) => Vec::new(),
        Some(mounts) => mounts
            .as_array()
            .cloned()
            .ok_or_else(|| Refusal::invalid("mounts", "must be a list"))?,
    };
    let asked = asked.iter().enumerate();
    let asked = asked
        .map(|(number, mount)| Mount::read(number, mount))
        .collect::<Result<Vec<_>, _>>()?;
    let image_volumes = ImageVolumes::new(policy, caller, context);
    let is_in_place = |mount: &Mount| {
        let volume = mount.image_volume(&image_volumes, context);
        let is_in_place = volume.is_none() || !mount.is_where_no_volume_is();
        if !is_in_place {
            let asked = format!("a volume of the image at {}", mount.destination.display());
            let given = "none: what gVisor has there is no place for one";
            report.note("image", asked, given, "");
        }
        is_in_place
    };
    let asked = asked.into_iter().filter(is_in_place).collect();
    let mut asked = last_of_each_place(asked);
    let binds = Binds::new(spec, policy, caller, context);
    let sceneries = asked.iter_mut();
    let sceneries = sceneries.filter_map(|mount| mount.scenery(&image_volumes, context));
    let mut sceneries: Vec<Scenery> = sceneries.collect();
    let scratch = Scratch::new(policy, context.kind, shared.memory, &asked);
    if context.kind == ContainerKind::PodSandbox {
        shared.volumes.push(Volume {
            source: PathBuf::from(pod::SHM),
            in_memory: true,
            size: Some(scratch.shm),
        });
    }
    let in_pod = context.kind != ContainerKind::Plain;
    let mut copies = BTreeMap::new();
    let mut given = Vec::with_capacity(asked.len() + 4);
    for mount in asked {
        if in_pod
            && mount.destination == Path::new(pod::SHM)
            && !mount.replaces_shm(context, report)
        {
            continue;
        }
        let mount = mount.harden(policy, context, &binds, &scratch, shared, report)?;
        copies.extend(mount.copy(&binds));
        given.push(mount.to_json());
    }
    // It would be laid over what the pod shares.
    sceneries.retain(|scenery| {
        let mut places = given
            .iter()
            .filter_map(|mount| mount.get("destination")?.as_str());
        places.any(|place| Path::new(place) == scenery.destination)
    });
    if !given.iter().any(|mount| is_at(mount, DEV)) {
        // runsc's own can be written, is executable and has no size.
        given.insert(0, read_only_dev());
    }
    if in_pod && !given.iter().any(|mount| is_at(mount, pod::SHM)) {
        insert_below_dev(&mut given, shared_shm(policy));
    }
    if context.kind == ContainerKind::PodSandbox {
        sceneries.clear();
    } else {
        let added = add_scratch(&mut given, policy, &scratch);
        sceneries.extend(added.into_iter().map(|place| Scenery {
            destination: PathBuf::from(place),
            source: None,
        }));
        // What they hold shares a number of mounts: a volume has the least need.
        sceneries.sort_by_key(|one| (one.source.is_some(), one.destination.clone()));
    }
    spec.insert("mounts".to_owned(), Value::Array(given));
    Ok(Given {
        scratch: scratch.sum(),
        sceneries,
        copies,
    })
}

/// What is seen of several mounts at one place: the last. runsc sorts mounts by the length of their places, and which of two at
/// one place comes last is then by chance (`runsc/boot/vfs.go`).
fn last_of_each_place(mounts: Vec<Mount>) -> Vec<Mount> {
    let mut seen = BTreeSet::new();
    let mut last: Vec<Mount> = mounts
        .into_iter()
        .rev()
        .filter(|mount| seen.insert(mount.destination.clone()))
        .collect();
    last.reverse();
    last
}

/// Device nodes work on a read-only /dev, and nothing can be stored in it.
const DEV: &str = "/dev";
const DEV_OPTIONS: [&str; 3] = ["nosuid", "noexec", "ro"];

fn read_only_dev() -> Value {
    let options: Vec<&str> = DEV_OPTIONS.into_iter().chain(["mode=755"]).collect();
    json!({ "destination": DEV, "type": "tmpfs", "source": "tmpfs", "options": options })
}

/// A container's mount of the /dev/shm that its pod shares.
fn shared_shm(policy: &Policy) -> Value {
    let mut options = vec!["rw", "nosuid", "nodev"];
    if !policy.scratch.exec {
        options.push("noexec");
    }
    json!({ "destination": pod::SHM, "type": "tmpfs", "source": pod::SHM, "options": options })
}

/// An extension of runc's: a tmpfs gets a copy of what is at its place.
const COPY: &str = "tmpcopyup";

struct Mount {
    field: String,
    destination: PathBuf,
    kind: String,
    source: String,
    options: Vec<String>,
    mapped: bool,
}

impl Mount {
    fn read(number: usize, mount: &Value) -> Result<Self, Refusal> {
        let field = format!("mounts[{number}]");
        let text = |key: &str| {
            mount
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let destination = normal(Path::new(&text("destination"))).ok_or_else(|| {
            Refusal::invalid(
                format!("{field}.destination"),
                format!("{:?} must be absolute", text("destination")),
            )
        })?;
        let options = mount
            .get("options")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let options: Vec<String> = options
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let is_bind = options
            .iter()
            .any(|option| option == "bind" || option == "rbind");
        Ok(Self {
            field,
            destination,
            kind: if is_bind {
                "bind".to_owned()
            } else {
                text("type")
            },
            source: text("source"),
            options,
            mapped: ["uidMappings", "gidMappings"]
                .iter()
                .any(|key| !mount.get(*key).is_none_or(crate::json::is_empty)),
        })
    }

    fn harden(
        mut self,
        policy: &Policy,
        context: &Context<'_>,
        binds: &Binds,
        scratch: &Scratch,
        shared: &Shared,
        report: &mut Report,
    ) -> Result<Self, Refusal> {
        if self.mapped
            || self
                .options
                .iter()
                .any(|option| matches!(option.as_str(), "idmap" | "ridmap"))
        {
            return Err(Refusal::denied(
                "mounts",
                &self.field,
                "id-mapped mounts are not supported",
                None,
            ));
        }
        self.limit_propagation(policy, report);
        match self.kind.as_str() {
            "bind" => self.bind(binds, context, shared, report)?,
            "tmpfs" if self.destination == Path::new(DEV) => self.require(&DEV_OPTIONS),
            "tmpfs" => self.tmpfs(policy, scratch, report),
            "proc" => self.require(&["nosuid", "nodev", "noexec"]),
            "devpts" | "mqueue" => self.require(&["nosuid", "noexec"]),
            "sysfs" | "cgroup" | "cgroup2" => {
                if self.kind != "sysfs" && self.options.iter().any(|option| option == "rw") {
                    report.note("cgroup", "a writable cgroup mount", "a read-only one", "");
                }
                self.require(&["nosuid", "nodev", "noexec", "ro"]);
            }
            other => {
                let asked = format!(
                    "{}: type {other:?} at {}",
                    self.field,
                    self.destination.display()
                );
                let rule =
                    "only proc, sysfs, tmpfs, devpts, mqueue, cgroup and bind mounts are given";
                return Err(Refusal::denied("mounts", asked, rule, None));
            }
        }
        Ok(self)
    }

    fn to_json(&self) -> Value {
        json!({
            "destination": self.destination, "type": self.kind, "source": self.source, "options": self.options,
        })
    }

    /// The file of the host of which it is a copy.
    fn copy(&self, binds: &Binds) -> Option<(PathBuf, Writes)> {
        let source = PathBuf::from(&self.source);
        let writes = binds.writes(&source);
        let is_copy = self.kind == "bind" && !self.is("ro") && writes != Writes::Host;
        is_copy.then_some((source, writes))
    }

    fn is(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }

    /// Whether a mount at /dev/shm is a container's own, in place of what its pod shares: a volume. What the CRI makes for every pod is
    /// not; it says nothing of what the pod's author wants.
    fn replaces_shm(&self, context: &Context<'_>, report: &mut Report) -> bool {
        let (source, sandbox) = (Path::new(&self.source), context.sandbox_id);
        // containerd's (`internal/cri/server/helpers.go`).
        let of_the_cri = format!("sandboxes/{sandbox}/shm");
        if self.kind == "bind" {
            let is_the_cris = source.ends_with(of_the_cri);
            return context.kind != ContainerKind::PodSandbox && !is_the_cris;
        }
        let asked = format!("a {} of its own at {}", self.kind, pod::SHM);
        report.note("scratch", asked, "the one that the pod shares", "");
        false
    }

    fn bind(
        &mut self,
        binds: &Binds,
        context: &Context<'_>,
        shared: &Shared,
        report: &mut Report,
    ) -> Result<(), Refusal> {
        let asked = format!("{}: bind of {:?}", self.field, self.source);
        let base = if Path::new(&self.source).is_absolute() {
            Path::new("/")
        } else {
            context.bundle
        };
        let source = normal(&base.join(&self.source))
            .ok_or_else(|| Refusal::invalid(format!("{}.source", self.field), "must be a path"))?;
        // Both names count: the one asked for, and the one that links lead to.
        let real = (context.host.resolve)(&source);
        let access = binds.judge(&source, real.as_deref(), shared, &asked)?;
        // What was judged is what is mounted: no relative path and no link is left to be followed again.
        let source = real.unwrap_or(source);
        self.source = text_of(&format!("{}.source", self.field), &source)?;
        if shared
            .volume(&source)
            .is_some_and(|volume| volume.in_memory)
        {
            self.kind = "tmpfs".to_owned();
            self.options.retain(|option| {
                let option = option.as_str();
                !matches!(option, "bind" | "rbind" | "private" | "rprivate" | "rslave")
            });
        }
        self.require(&["nosuid", "nodev"]);
        // A read-only bind of gVisor's is so with all that is mounted below its source.
        if self.is("rro") {
            self.options.retain(|option| option != "rro");
            self.require(&["ro"]);
        }
        if access == Access::ReadOnly {
            if !self.is("ro") {
                report.note("binds", &asked, "read-only", "binds.writable");
            }
            self.require(&["ro"]);
        }
        if let Some(key) = binds.read_only_key(&self.destination)
            && !self.is("ro")
        {
            let asked = format!("{asked} at {}, to write", self.destination.display());
            report.note("binds", asked, "read-only, as the root is", key);
            self.require(&["ro"]);
        }
        if let Some((_, writes)) = self.copy(binds) {
            report.note("binds", format!("{asked}, to write"), writes.given(), "");
        }
        Ok(())
    }

    /// Nothing that is mounted later, inside or outside, is to appear on the other side, but what the host mounts where the
    /// policy gives that to those who ask.
    fn limit_propagation(&mut self, policy: &Policy, report: &mut Report) {
        const SHARED: [&str; 2] = ["shared", "rshared"];
        const SLAVE: [&str; 2] = ["slave", "rslave"];
        const OTHERS: [&str; 4] = ["private", "rprivate", "unbindable", "runbindable"];
        let asks = |names: &[&str]| {
            let mut options = self.options.iter();
            options.any(|option| names.contains(&option.as_str()))
        };
        let (shared, slave) = (asks(&SHARED), asks(&SLAVE));
        let given = if policy.binds.propagation && self.kind == "bind" && (shared || slave) {
            "rslave"
        } else {
            "rprivate"
        };
        if shared || (slave && given != "rslave") {
            let asked = format!("{} shared with the host", self.field);
            let key = if given == "rslave" {
                ""
            } else {
                "binds.propagation"
            };
            report.note("propagation", asked, given, key);
        }
        self.options.retain(|option| {
            let option = option.as_str();
            !SHARED.contains(&option) && !SLAVE.contains(&option) && !OTHERS.contains(&option)
        });
        // Without a word runsc's binds are slaves.
        if self.kind == "bind" {
            self.options.push(given.to_owned());
        }
    }

    /// Whether the image's own is to be seen where it is. A client that mounts something hides what is there, but for these: what
    /// an engine mounts by itself, what asks for a copy in the words of runc and its engines, and a volume of the image, of which
    /// the engine has made the copy.
    fn scenery(&mut self, volumes: &ImageVolumes, context: &Context<'_>) -> Option<Scenery> {
        let source = if self.kind == "bind" {
            let source = self.image_volume(volumes, context)?;
            self.kind = "tmpfs".to_owned();
            self.source = "tmpfs".to_owned();
            self.options.retain(|option| option == "ro");
            Some(source)
        } else {
            let asks = self.options.iter().any(|option| option == COPY);
            self.options.retain(|option| option != COPY);
            let is_gvisors = self.is_in_any(&["/dev", "/proc", "/sys"]);
            if self.kind != "tmpfs" || is_gvisors || !(asks || self.is_the_engines_run()) {
                return None;
            }
            None
        };
        Some(Scenery {
            destination: self.destination.clone(),
            source,
        })
    }

    /// The folder of the image's volume that it binds, where the policy keeps these in memory.
    fn image_volume(&self, volumes: &ImageVolumes, context: &Context<'_>) -> Option<PathBuf> {
        if self.kind != "bind" {
            return None;
        }
        let source = normal(&context.bundle.join(&self.source))?;
        volumes.find(&source, (context.host.resolve)(&source))
    }

    /// Whether a volume of the image, whose author nobody asked, would be in place of the root, of a filesystem of gVisor's, or of
    /// devices.
    fn is_where_no_volume_is(&self) -> bool {
        let whole = ["/", DEV].map(Path::new);
        whole.contains(&self.destination.as_path()) || self.is_in_any(&["/proc", "/sys"])
    }

    fn is_in_any(&self, folders: &[&str]) -> bool {
        let mut folders = folders.iter();
        folders.any(|folder| self.destination.starts_with(folder))
    }

    /// containerd's default (`defaultMounts` in `pkg/oci/mounts.go`), which `ctr` leaves in.
    fn is_the_engines_run(&self) -> bool {
        let options: BTreeSet<&str> = self.options.iter().map(String::as_str).collect();
        self.destination == Path::new("/run")
            && self.source == "tmpfs"
            && options == BTreeSet::from(["nosuid", "strictatime", "mode=755", "size=65536k"])
    }

    /// Whether it is a place to write in memory; what is in /dev itself cannot be written.
    fn is_scratch(&self) -> bool {
        self.kind == "tmpfs" && self.destination != Path::new(DEV)
    }

    /// The size that it asks for, in bytes; the largest where it asks for none.
    fn size(&self) -> u64 {
        let mut sizes = self.options.iter().rev();
        let asked = sizes.find_map(|option| size(option.strip_prefix("size=")?));
        asked.unwrap_or(u64::MAX)
    }

    fn tmpfs(&mut self, policy: &Policy, scratch: &Scratch, report: &mut Report) {
        let (most, key) = scratch.most(&self.destination);
        let asked = self.size();
        let given = scratch.sized(asked.min(most));
        if given < asked {
            let amount = match asked {
                u64::MAX => "no limit".to_owned(),
                asked => format!("{asked} bytes"),
            };
            let what = format!("{amount} at {}", self.destination.display());
            // Where the policy would allow it, it is the memory that does not.
            let key = if most < asked { key } else { "" };
            report.note("scratch", what, format!("{given} bytes"), key);
        }
        self.options
            .retain(|option| !option.starts_with("size=") && !option.starts_with("nr_"));
        self.options.push(format!("size={given}"));
        self.require(if policy.scratch.exec {
            &["nosuid", "nodev"]
        } else {
            &["nosuid", "nodev", "noexec"]
        });
    }

    /// Sets options and removes their opposites.
    fn require(&mut self, options: &[&str]) {
        for option in options {
            let opposite = match *option {
                "ro" => "rw",
                "nosuid" => "suid",
                "nodev" => "dev",
                _ => "exec",
            };
            self.options.retain(|given| given != opposite);
            if !self.is(option) {
                self.options.push((*option).to_owned());
            }
        }
    }
}

/// Gives the usual places to write where the request has nothing mounted there: runsc's own /tmp has no size. Returns those that
/// were added.
fn add_scratch(mounts: &mut Vec<Value>, policy: &Policy, scratch: &Scratch) -> Vec<&'static str> {
    let mut added = Vec::new();
    for (place, size, mode) in [
        ("/dev/shm", scratch.shm, "1777"),
        ("/run", scratch.run, "755"),
        ("/tmp", scratch.tmp, "1777"),
    ] {
        if mounts.iter().any(|mount| is_at(mount, place)) {
            continue;
        }
        let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
        if !policy.scratch.exec {
            options.push("noexec".to_owned());
        }
        options.extend([
            format!("mode={mode}"),
            format!("size={}", scratch.sized(size)),
        ]);
        let mount =
            json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options });
        if place.starts_with("/dev/") {
            insert_below_dev(mounts, mount);
        } else {
            // Before anything that is mounted below it.
            mounts.insert(0, mount);
            // An image has nothing in /dev.
            added.push(place);
        }
    }
    added
}

fn is_at(mount: &Value, place: &str) -> bool {
    mount.get("destination").and_then(Value::as_str) == Some(place)
}

fn insert_below_dev(mounts: &mut Vec<Value>, mount: Value) {
    let dev = mounts.iter().position(|mount| is_at(mount, DEV));
    mounts.insert(dev.map_or(0, |dev| dev + 1), mount);
}

/// An absolute path without `.` and `..`.
pub(crate) fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir => normal.push("/"),
            Component::Normal(name) if normal.has_root() => normal.push(name),
            Component::ParentDir if normal.has_root() => {
                normal.pop();
            }
            Component::CurDir => {}
            _ => return None,
        }
    }
    normal.has_root().then_some(normal)
}

/// A size as mount(8) takes it for tmpfs, in bytes; a percentage is not a number of bytes and counts as no limit.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (end, 'k' | 'K') => (text.get(..end)?, 1024),
        (end, 'm' | 'M') => (text.get(..end)?, MIB),
        (end, 'g' | 'G') => (text.get(..end)?, 1024 * MIB),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .filter(|size| *size > 0)
}

#[cfg(test)]
mod tests;
