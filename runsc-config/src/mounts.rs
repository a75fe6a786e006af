//! Mounts: what a container may see of the host, and where it may write.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::binds::{Access, Binds};
use crate::pod::{self, Shared, Volume};
use crate::policy::Policy;
use crate::report::{Refusal, Report};
use crate::spec::{ContainerKind, Context};

const MIB: u64 = 1024 * 1024;
/// Memory that scratch must leave to the programs and the sentry, in MiB.
const MEMORY_LEFT_MIB: u64 = 48;

/// The least a place to write gets, in bytes.
const SIZE_MIN: u64 = 64 * 1024;

/// What became of a container's mounts.
pub(crate) struct Scratch {
    tmp: u64,
    run: u64,
    shm: u64,
}

impl Scratch {
    /// Sizes in bytes, shrunk in proportion so that they leave room in the memory they are taken from. In a pod that room
    /// is what earlier containers have left, and /dev/shm is one for all.
    fn new(policy: &Policy, kind: ContainerKind<'_>, memory: u64) -> Self {
        let (taken, shm) = match kind {
            ContainerKind::Plain => (0, policy.scratch.shm_mib),
            ContainerKind::PodSandbox => {
                // A pod's first container only holds its sandbox: it has nothing to write.
                let room = memory.saturating_sub(MEMORY_LEFT_MIB * MIB) / 4;
                let shm = policy
                    .scratch
                    .shm_mib
                    .saturating_mul(MIB)
                    .min(room.max(MIB));
                let least = SIZE_MIN;
                return Self {
                    tmp: least,
                    run: least,
                    shm,
                };
            }
            ContainerKind::PodContainer(shared) => (shared.scratch, 0),
        };
        let asked = [policy.scratch.tmp_mib, policy.scratch.run_mib, shm];
        let sum = asked.iter().sum::<u64>().max(1).saturating_mul(MIB);
        let room = memory
            .saturating_sub(MEMORY_LEFT_MIB * MIB)
            .saturating_sub(taken)
            .max(MIB);
        let sized = |mib: u64| {
            let bytes = mib.saturating_mul(MIB);
            if sum <= room {
                bytes
            } else {
                scale(bytes, room, sum).max(SIZE_MIN)
            }
        };
        let [tmp, run, shm] = asked.map(sized);
        Self { tmp, run, shm }
    }

    /// The place's own size, or the largest for any other.
    fn limit(&self, destination: &Path) -> u64 {
        match destination.to_str() {
            Some("/run" | "/var/run") => self.run,
            Some("/dev/shm") => self.shm,
            _ => self.tmp,
        }
    }
}

fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(numerator) / u128::from(denominator.max(1)))
        .unwrap_or(value)
}

/// Replaces the mounts of a spec by what the policy gives of them, and adds the pod's /dev/shm to what a pod shares.
/// Returns the bytes of scratch given.
pub(crate) fn harden(
    spec: &mut Map<String, Value>,
    shared: &mut Shared,
    policy: &Policy,
    context: &Context<'_>,
    report: &mut Report,
) -> Result<u64, Refusal> {
    let asked = match spec.get("mounts") {
        None | Some(Value::Null) => Vec::new(),
        Some(mounts) => mounts
            .as_array()
            .cloned()
            .ok_or_else(|| Refusal::invalid("mounts", "must be a list"))?,
    };
    let binds = Binds::new(spec, policy, context);
    let scratch = Scratch::new(policy, context.kind, shared.memory);
    if context.kind == ContainerKind::PodSandbox {
        shared.volumes.push(Volume {
            source: PathBuf::from(pod::SHM),
            in_memory: true,
            size: Some(scratch.shm),
        });
    }
    let in_pod = context.kind != ContainerKind::Plain;
    let mut given = Vec::with_capacity(asked.len() + 3);
    for (number, mount) in asked.iter().enumerate() {
        let mount = Mount::read(number, mount)?;
        if in_pod && mount.destination == Path::new(pod::SHM) {
            continue;
        }
        given.push(mount.harden(policy, context, &binds, &scratch, shared, report)?);
    }
    if in_pod {
        insert_below_dev(&mut given, shared_shm(policy));
    }
    if context.kind != ContainerKind::PodSandbox {
        add_scratch(&mut given, policy, &scratch);
    }
    spec.insert("mounts".to_owned(), Value::Array(given));
    Ok(scratch
        .tmp
        .saturating_add(scratch.run)
        .saturating_add(scratch.shm))
}

/// A container's mount of the /dev/shm that its pod shares.
fn shared_shm(policy: &Policy) -> Value {
    let mut options = vec!["rw", "nosuid", "nodev"];
    if !policy.scratch.exec {
        options.push("noexec");
    }
    json!({ "destination": pod::SHM, "type": "tmpfs", "source": pod::SHM, "options": options })
}

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
        Ok(Self {
            field,
            destination,
            kind: text("type"),
            source: text("source"),
            options: options
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            mapped: ["uidMappings", "gidMappings"]
                .iter()
                .any(|key| !mount.get(*key).is_none_or(crate::json::is_empty)),
        })
    }

    fn harden(
        mut self,
        policy: &Policy,
        context: &Context<'_>,
        binds: &Binds<'_>,
        scratch: &Scratch,
        shared: &Shared,
        report: &mut Report,
    ) -> Result<Value, Refusal> {
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
        if self
            .options
            .iter()
            .any(|option| option == "bind" || option == "rbind")
        {
            self.kind = "bind".to_owned();
        }
        self.make_private(report);
        match self.kind.as_str() {
            "bind" => self.bind(binds, context, shared, report)?,
            "tmpfs" if self.destination == Path::new("/dev") => {
                // Device nodes still work on a read-only /dev, and nothing can be stored in it.
                self.require(&["nosuid", "noexec", "ro"]);
            }
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
        Ok(json!({
            "destination": self.destination, "type": self.kind, "source": self.source, "options": self.options,
        }))
    }

    fn bind(
        &mut self,
        binds: &Binds<'_>,
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
        let access = binds.judge(&source, real.as_deref(), &asked)?;
        // Content of a shared volume is inside the sandbox: the host's folder, which a part of it is bound from, has none.
        let part_of = std::iter::once(&source).chain(&real);
        if let Some(volume) = part_of.clone().find_map(|path| shared.sub_path_of(path)) {
            let rule = format!(
                "subPath of the empty-dir volume {} is not supported: mount the volume whole",
                volume.source.display()
            );
            return Err(Refusal::denied("binds", asked, rule, None));
        }
        // What was judged is what is mounted: no relative path and no link is left to be followed again.
        let source = real.unwrap_or(source);
        self.source = source.to_string_lossy().into_owned();
        if shared
            .volume(&source)
            .is_some_and(|volume| volume.in_memory)
        {
            self.kind = "tmpfs".to_owned();
            self.options
                .retain(|option| !matches!(option.as_str(), "bind" | "rbind"));
        }
        self.require(&["nosuid", "nodev"]);
        if access == Access::ReadOnly {
            if !self.options.iter().any(|option| option == "ro") {
                report.note("binds", asked, "read-only", "binds.writable");
            }
            self.require(&["ro"]);
        }
        Ok(())
    }

    /// Nothing that is mounted later, inside or outside, is to appear on the other side.
    fn make_private(&mut self, report: &mut Report) {
        const SHARED: [&str; 4] = ["shared", "rshared", "slave", "rslave"];
        const UNBINDABLE: [&str; 2] = ["unbindable", "runbindable"];
        if self
            .options
            .iter()
            .any(|option| SHARED.contains(&option.as_str()))
        {
            let asked = format!("{} shared with the host", self.field);
            report.note("propagation", asked, "private", "");
        }
        self.options.retain(|option| {
            let option = option.as_str();
            !SHARED.contains(&option) && !UNBINDABLE.contains(&option)
        });
    }

    fn tmpfs(&mut self, policy: &Policy, scratch: &Scratch, report: &mut Report) {
        let most = scratch.limit(&self.destination);
        let asked = self
            .options
            .iter()
            .rev()
            .find_map(|option| size(option.strip_prefix("size=")?));
        let given = asked.unwrap_or(u64::MAX).min(most);
        if asked.is_none_or(|asked| asked > most) {
            let asked = asked.map_or("no limit".to_owned(), |asked| format!("{asked} bytes"));
            let what = format!("{} at {}", asked, self.destination.display());
            report.note("scratch", what, format!("{given} bytes"), "scratch");
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
            if !self.options.iter().any(|given| given == option) {
                self.options.push((*option).to_owned());
            }
        }
    }
}

/// Gives the usual places to write where the request has nothing mounted there: runsc's own /tmp has no size.
fn add_scratch(mounts: &mut Vec<Value>, policy: &Policy, scratch: &Scratch) {
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
        options.extend([format!("mode={mode}"), format!("size={size}")]);
        let mount =
            json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options });
        if place.starts_with("/dev/") {
            insert_below_dev(mounts, mount);
        } else {
            // Before anything that is mounted below it.
            mounts.insert(0, mount);
        }
    }
}

fn is_at(mount: &Value, place: &str) -> bool {
    mount.get("destination").and_then(Value::as_str) == Some(place)
}

fn insert_below_dev(mounts: &mut Vec<Value>, mount: Value) {
    let dev = mounts.iter().position(|mount| is_at(mount, "/dev"));
    mounts.insert(dev.map_or(0, |dev| dev + 1), mount);
}

/// An absolute path without `.` and `..`.
fn normal(path: &Path) -> Option<PathBuf> {
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
mod tests {
    use super::*;
    use crate::spec::tests::context;

    fn hardened(mounts: Value) -> Result<(Vec<Value>, Report), Refusal> {
        hardened_in(mounts, &context())
    }

    fn hardened_in(mounts: Value, context: &Context<'_>) -> Result<(Vec<Value>, Report), Refusal> {
        let mut spec = Map::from_iter([("mounts".to_owned(), mounts)]);
        let mut report = Report::default();
        let mut shared = match context.kind {
            ContainerKind::PodContainer(shared) => shared.clone(),
            _ => Shared {
                memory: 512 * MIB,
                ..Shared::default()
            },
        };
        let policy = Policy::strict();
        harden(&mut spec, &mut shared, &policy, context, &mut report)?;
        Ok((spec["mounts"].as_array().expect("list").clone(), report))
    }

    fn options_at(mounts: &[Value], place: &str) -> Vec<String> {
        let mount = mounts
            .iter()
            .find(|mount| mount["destination"] == place)
            .expect(place);
        serde_json::from_value(mount["options"].clone()).expect("options")
    }

    #[test]
    fn the_usual_places_are_writable_and_small() {
        let (mounts, _) =
            hardened(json!([{ "destination": "/dev", "type": "tmpfs", "source": "tmpfs" }]))
                .expect("ok");
        assert!(options_at(&mounts, "/tmp").contains(&format!("size={}", 64 * MIB)));
        assert!(options_at(&mounts, "/tmp").contains(&"noexec".to_owned()));
        assert!(options_at(&mounts, "/dev").contains(&"ro".to_owned()));
        let order: Vec<_> = mounts
            .iter()
            .map(|m| m["destination"].as_str().expect("text"))
            .collect();
        let position = |place| order.iter().position(|p| *p == place).expect(place);
        assert!(position("/dev/shm") > position("/dev"));
    }

    #[test]
    fn a_tmpfs_is_cut_to_size_and_stripped_of_rights() {
        for (asked, given) in [
            ("size=1g", 64 * MIB),
            ("size=50%", 64 * MIB),
            ("size=1m", MIB),
            ("size=0", 64 * MIB),
        ] {
            let mount = json!([{ "destination": "/data", "type": "tmpfs", "options": ["exec", "suid", asked] }]);
            let (mounts, _) = hardened(mount).expect("ok");
            let options = options_at(&mounts, "/data");
            assert!(
                options.contains(&format!("size={given}")),
                "{asked}: {options:?}"
            );
            assert!(!options.contains(&"exec".to_owned()) && !options.contains(&"suid".to_owned()));
        }
    }

    #[test]
    fn a_link_to_a_forbidden_place_is_followed_before_judging() {
        let mut context = context();
        context.host.resolve = |path| {
            path.ends_with("link")
                .then(|| PathBuf::from("/run/docker.sock"))
        };
        let mount = json!([{ "destination": "/x", "type": "bind", "source": "/home/u/link", "options": ["bind"] }]);
        let result = hardened_in(mount, &context);
        assert!(
            result
                .expect_err("refused")
                .to_string()
                .contains("never given")
        );
    }

    #[test]
    fn a_forbidden_place_is_known_by_any_name() {
        for source in [
            "/run/../run/docker.sock",
            "/home/../proc/1",
            "/./sys",
            "../../../../../dev",
            "/home/u/../..",
        ] {
            let mount = json!([{ "destination": "/x", "type": "bind", "source": source }]);
            let refusal = hardened(mount).expect_err(source).to_string();
            assert!(refusal.contains("never given"), "{source}: {refusal}");
        }
    }

    #[test]
    fn the_socket_of_this_containerd_is_never_bound_wherever_it_is() {
        let mut context = context();
        context.host.sockets = vec![PathBuf::from("/srv/c/containerd.sock")];
        for (source, refused) in [
            ("/srv/c/containerd.sock", true),
            ("/srv/c", true),
            ("/srv/c/work", false),
        ] {
            let mount = json!([{ "destination": "/x", "type": "bind", "source": source }]);
            let result = hardened_in(mount, &context);
            assert_eq!(result.is_err(), refused, "{source}");
        }
    }

    #[test]
    fn an_ordinary_bind_keeps_its_mode_and_loses_devices() {
        for mode in ["ro", "rw"] {
            let mount = json!([{
                "destination": "/work", "type": "bind", "source": "/home/u/work", "options": ["rbind", "rshared", mode],
            }]);
            let (mounts, report) = hardened(mount).expect("ok");
            let options = options_at(&mounts, "/work");
            assert!(
                options.contains(&mode.to_owned()) && options.contains(&"nodev".to_owned()),
                "{options:?}"
            );
            assert!(!options.contains(&"rshared".to_owned()));
            assert!(
                report
                    .changes
                    .iter()
                    .any(|change| change.control == "propagation")
            );
        }
    }

    #[test]
    fn what_the_policy_lists_to_be_read_is_mounted_read_only() {
        let mut policy = Policy::strict();
        policy.binds.read_only = vec!["/srv/models".into()];
        let mut context = context();
        context.namespace = "k8s.io";
        let mut spec = Map::from_iter([
            (
                "annotations".to_owned(),
                json!({ "io.kubernetes.cri.container-type": "container" }),
            ),
            (
                "mounts".to_owned(),
                json!([{
                    "destination": "/m", "type": "bind", "source": "/srv/models", "options": ["rbind", "rw"],
                }]),
            ),
        ]);
        let (mut shared, mut report) = (Shared::default(), Report::default());
        harden(&mut spec, &mut shared, &policy, &context, &mut report).expect("given");
        let options = options_at(spec["mounts"].as_array().expect("list"), "/m");
        assert!(
            options.contains(&"ro".to_owned()) && !options.contains(&"rw".to_owned()),
            "{options:?}"
        );
        assert!(
            report
                .changes
                .iter()
                .any(|change| change.key == "binds.writable")
        );
    }

    #[test]
    fn mounts_of_the_hosts_filesystems_are_refused() {
        for kind in ["ext4", "overlay", "nfs", "fuse", "debugfs", ""] {
            let mount = json!([{ "destination": "/x", "type": kind, "source": "/dev/sda1" }]);
            assert!(hardened(mount).is_err(), "{kind}");
        }
        assert!(hardened(json!([{ "destination": "relative", "type": "tmpfs" }])).is_err());
        assert!(hardened(json!([{ "destination": "/x", "type": "bind", "source": "/h", "options": ["idmap"] }])).is_err());
    }

    #[test]
    fn scratch_shrinks_with_the_memory_it_is_made_of() {
        let scratch = Scratch::new(&Policy::strict(), ContainerKind::Plain, 92 * MIB);
        assert!(scratch.tmp + scratch.run + scratch.shm <= 44 * MIB);
        assert!(scratch.tmp > scratch.shm && scratch.shm > scratch.run);
    }

    /// A pod with an empty dir in memory, and one on disk.
    fn pod() -> Shared {
        let folder = Path::new("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir");
        let volume = |name: &str, in_memory| Volume {
            source: folder.join(name),
            in_memory,
            size: None,
        };
        Shared {
            tasks_limit: 256,
            memory: 512 * MIB,
            volumes: vec![volume("fast", true), volume("work", false)],
            scratch: 0,
        }
    }

    #[test]
    fn a_pods_container_mounts_what_the_pod_shares() {
        let shared = pod();
        let context = Context {
            kind: ContainerKind::PodContainer(&shared),
            ..context()
        };
        let bind = |source: &Path, destination: &str| json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"] });
        let (fast, work) = (&shared.volumes[0].source, &shared.volumes[1].source);
        let asked = json!([
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            bind(Path::new("/run/containerd/x/shm"), "/dev/shm"),
            bind(fast, "/fast"), bind(work, "/work"),
        ]);
        let (mounts, _) = hardened_in(asked, &context).expect("ok");
        let at = |place: &str| {
            mounts
                .iter()
                .find(|m| m["destination"] == place)
                .expect(place)
        };
        assert_eq!(
            (&at("/dev/shm")["type"], &at("/dev/shm")["source"]),
            (&json!("tmpfs"), &json!(pod::SHM))
        );
        assert_eq!(
            (&at("/fast")["type"], &at("/fast")["source"]),
            (&json!("tmpfs"), &json!(fast))
        );
        assert_eq!(at("/work")["type"], json!("bind"));
        assert!(options_at(&mounts, "/fast").contains(&"ro".to_owned()));
        assert!(!options_at(&mounts, "/fast").contains(&"rbind".to_owned()));
    }

    #[test]
    fn a_part_of_a_shared_volume_is_refused_by_its_name() {
        let shared = pod();
        let context = Context {
            kind: ContainerKind::PodContainer(&shared),
            ..context()
        };
        let part = json!([{
            "destination": "/x", "type": "bind", "source": "/var/lib/kubelet/pods/u/volume-subpaths/work/c/0",
        }]);
        let refusal = hardened_in(part, &context)
            .expect_err("refused")
            .to_string();
        assert!(
            refusal.contains("subPath") && refusal.contains("work"),
            "{refusal}"
        );
    }

    #[test]
    fn the_containers_of_a_pod_share_its_room_for_scratch() {
        let mut shared = pod();
        let mut sum = 0;
        for _ in 0..40 {
            let scratch = Scratch::new(
                &Policy::strict(),
                ContainerKind::PodContainer(&shared),
                shared.memory,
            );
            shared.scratch += scratch.tmp + scratch.run + scratch.shm;
            sum = shared.scratch;
        }
        assert!(sum <= (512 - MEMORY_LEFT_MIB + 40) * MIB, "{sum}");
    }
}
