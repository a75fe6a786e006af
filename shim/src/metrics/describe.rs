//! The families of a sandbox, one after the other: name, unit, help, and the source of the value.

use std::collections::BTreeSet;
use std::sync::Arc;

use runsc_config::RunscFlags;

use crate::metrics::collect::GuestSide;
use crate::metrics::sentry::KNOWN;
use crate::metrics::text::Kind::{Counter, Gauge, Histogram, Info};
use crate::metrics::text::{Seconds, Text};
use crate::sandbox::Sandbox;
use crate::sys::counters::{Counters, Labelled, Operation};
use crate::task::container::Container;
use crate::task::process::Phase;
use node::cgroup::read_small;

/// The value of runsc's --network for a sandbox that has none.
const NO_NETWORK: &str = "none";
/// The policy of a node whose handler names none.
const POLICY_PATH: &str = "/etc/bulkhead/config.toml";

/// What stays as it is for the sandbox's life.
#[derive(Debug)]
pub(super) struct Facts {
    namespace: String,
    handler: String,
    runsc_version: String,
    network: String,
    platform: String,
    /// Whether runsc applies what a spec says of seccomp.
    enforces: bool,
}

impl Facts {
    pub(super) fn of(root: &Container, namespace: &str) -> Self {
        let sandbox = root.sandbox();
        let flag = |name: &str| {
            let flags = sandbox.runsc.flags();
            let found = flags
                .iter()
                .find_map(|flag| flag.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or("default").to_owned()
        };
        Self {
            namespace: namespace.to_owned(),
            handler: handler(sandbox.policy.origin()),
            runsc_version: sandbox.features.version().to_owned(),
            network: flag("--network"),
            platform: flag("--platform"),
            enforces: flag("--oci-seccomp") == "true",
        }
    }
}

/// containerd does not tell a shim its handler's name. Handlers differ by their policy, so its file stands for it.
fn handler(origin: &str) -> String {
    let file = std::path::Path::new(origin);
    let default = !file.is_absolute() || origin == POLICY_PATH;
    let stem = file.file_stem().filter(|_| !default);
    stem.map_or_else(
        || "default".to_owned(),
        |stem| stem.to_string_lossy().into_owned(),
    )
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole text of one scrape; `capacity` is how long it may become.
pub(super) fn text(
    facts: &Facts,
    root: &Container,
    containers: &[Arc<Container>],
    guest: &GuestSide,
    gofers: impl Iterator<Item = i32>,
    capacity: usize,
) -> String {
    let sandbox = root.sandbox();
    let common = [
        ("sandbox", sandbox.id.as_str()),
        ("namespace", &facts.namespace),
        ("pod", &root.names.pod),
        ("pod_namespace", &root.names.pod_namespace),
        ("handler", &facts.handler),
    ];
    let mut text = Text::new(&common, capacity);
    about(&mut text, facts, root, containers, guest);
    cgroup(&mut text, sandbox);
    guest_side(&mut text, facts, sandbox, guest);
    for_containers(&mut text, containers, guest);
    processes(&mut text, sandbox, gofers);
    counted(&mut text, sandbox.counters());
    text.finish()
}

fn about(
    text: &mut Text,
    facts: &Facts,
    root: &Container,
    containers: &[Arc<Container>],
    guest: &GuestSide,
) {
    let sandbox = root.sandbox();
    // One container is enough to make a sandbox writable or without a filter.
    let all = || containers.iter().map(|container| &container.confinement);
    let is_writable = all().any(|confinement| confinement.has_writable_root);
    let is_held = facts.enforces && all().all(|confinement| confinement.profile.is_some());
    let profiles: BTreeSet<&[u8; 32]> = all().filter_map(|it| it.profile.as_ref()).collect();
    let profiles: Vec<String> = profiles.into_iter().map(|it| hexadecimal(it)).collect();
    let forms: BTreeSet<&str> = all().filter_map(|it| it.form).collect();
    let forms: Vec<&str> = forms.into_iter().collect();
    // What an old runsc cannot enforce, where the policy accepts that.
    let lacks = RunscFlags::check(&sandbox.policy, &sandbox.features).unwrap_or_default();
    text.family("sandbox", Info, "", "What the sandbox runs with.");
    text.sample(
        &[
            ("version", env!("CARGO_PKG_VERSION")),
            ("runsc_version", &facts.runsc_version),
            ("platform", &facts.platform),
            ("network", &facts.network),
            ("rootfs", if is_writable { "writable" } else { "read-only" }),
            ("seccomp", if is_held { "enforced" } else { "off" }),
            ("profile_sha256", &profiles.join(",")),
            ("profile_form", &forms.join(",")),
            ("lacks", &lacks.join(",")),
        ],
        1,
    );
    text.family(
        "sandbox_state",
        Gauge,
        "",
        "1 for the state the sandbox is in.",
    );
    let state = match root.init.phase() {
        _ if root.sandbox().exit.get().is_some() => "stopped",
        Phase::Created | Phase::Starting => "created",
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Stopped(_) => "stopped",
    };
    for name in ["created", "running", "paused", "stopped"] {
        text.sample(&[("state", name)], u8::from(name == state));
    }
    let up = guest.is_asked.then(|| u8::from(guest.is_up()));
    text.single(
        "sandbox_guest_up",
        Gauge,
        "",
        "Whether the sentry answered this scrape in time.",
        up,
    );
    let started = root.sandbox().started.duration_since(std::time::UNIX_EPOCH);
    let nanos = u64::try_from(started.unwrap_or_default().as_nanos()).unwrap_or_default();
    let help = "When the sandbox was created, since 1970.";
    text.single(
        "sandbox_start_time_seconds",
        Gauge,
        "seconds",
        help,
        Some(Seconds(nanos)),
    );
}

fn cgroup(text: &mut Text, sandbox: &Sandbox) {
    let figures = sandbox.cgroups.figures();
    let mut nanos = |name: &str, help: &str, value: Option<u64>| {
        text.single(name, Counter, "seconds", help, value.map(Seconds));
    };
    nanos(
        "cpu_usage_seconds",
        "CPU time of all processes of the sandbox.",
        figures.cpu_nanos,
    );
    nanos(
        "cpu_throttled_seconds",
        "Time it was kept from running by its CPU limit.",
        figures.throttled_nanos,
    );
    let help = "Periods in which it was kept from running by its CPU limit.";
    text.single(
        "cpu_throttled_periods",
        Counter,
        "",
        help,
        figures.throttled_periods,
    );
    let mut bytes = |name: &str, help: &str, value: Option<u64>| {
        text.single(name, Gauge, "bytes", help, value);
    };
    bytes(
        "memory_usage_bytes",
        "Memory of the sandbox's cgroup, caches included.",
        figures.memory,
    );
    bytes(
        "memory_working_set_bytes",
        "Memory less what the kernel can drop at once.",
        figures.working_set,
    );
    bytes(
        "memory_peak_bytes",
        "The most memory it ever used.",
        figures.memory_peak,
    );
    bytes(
        "memory_limit_bytes",
        "What it may use. Missing if there is no limit.",
        figures.memory_limit,
    );
    let help = "Processes killed for want of memory.";
    text.single("oom_kills", Counter, "", help, Some(sandbox.oom_kills()));
    let mut bytes = |name: &str, help: &str, value: Option<u64>| {
        text.single(name, Counter, "bytes", help, value);
    };
    bytes("io_read_bytes", "Read from block devices.", figures.io_read);
    bytes(
        "io_written_bytes",
        "Written to block devices.",
        figures.io_written,
    );
    let help = "Tasks of one uid that the guest may have.";
    text.single("pids_limit", Gauge, "", help, Some(sandbox.tasks_limit()));
}

fn guest_side(text: &mut Text, facts: &Facts, sandbox: &Sandbox, guest: &GuestSide) {
    text.family(
        "pids",
        Gauge,
        "",
        "Tasks: of the guest, as the sentry counts them, and of the host in the cgroup.",
    );
    if guest.told_all {
        let tasks: u64 = guest
            .usage
            .values()
            .fold(0, |sum, usage| sum.saturating_add(usage.tasks));
        text.sample(&[("kind", "guest")], tasks);
    }
    if let Some(tasks) = sandbox.cgroups.tasks() {
        text.sample(&[("kind", "host")], tasks);
    }
    let help = "Memory of the guest, as the sentry counts it.";
    text.single("memory_guest_bytes", Gauge, "bytes", help, guest.memory);
    // Without a network there is none to tell of, whatever the sentry says.
    if facts.network != NO_NETWORK {
        network(text, sandbox, guest);
    }
    let Some(counts) = &guest.counts else { return };
    let help = "System calls of the guest that gVisor does not implement.";
    text.single(
        "unimplemented_syscalls",
        Counter,
        "",
        help,
        Some(counts.unimplemented_syscalls),
    );
    for known in &KNOWN {
        let value = counts.values.get(known.theirs).copied().unwrap_or_default();
        let kind = if known.is_counter { Counter } else { Gauge };
        text.single(known.ours, kind, "", known.help, Some(value));
    }
}

fn network(text: &mut Text, sandbox: &Sandbox, guest: &GuestSide) {
    // All containers have the interfaces of the sandbox; the loopback says nothing of a network.
    let told = guest.usage.get(&sandbox.id);
    let interfaces = told
        .or_else(|| guest.usage.values().next())
        .map(|usage| usage.interfaces.as_slice());
    let interfaces = interfaces
        .unwrap_or_default()
        .iter()
        .filter(|i| i.name != "lo");
    let interfaces: Vec<_> = interfaces.collect();
    if interfaces.is_empty() {
        return;
    }
    type Value = fn(&crate::runsc::usage::Interface) -> u64;
    let families: [(&str, &str, &str, Value); 6] = [
        (
            "network_receive_bytes",
            "bytes",
            "Received by the sandbox.",
            |i| i.rx_bytes,
        ),
        (
            "network_receive_packets",
            "packets",
            "Packets received by the sandbox.",
            |i| i.rx_packets,
        ),
        (
            "network_receive_drops",
            "",
            "Packets dropped on their way in.",
            |i| i.rx_dropped,
        ),
        (
            "network_transmit_bytes",
            "bytes",
            "Sent by the sandbox.",
            |i| i.tx_bytes,
        ),
        (
            "network_transmit_packets",
            "packets",
            "Packets sent by the sandbox.",
            |i| i.tx_packets,
        ),
        (
            "network_transmit_drops",
            "",
            "Packets dropped on their way out.",
            |i| i.tx_dropped,
        ),
    ];
    for (name, unit, help, value) in families {
        text.family(name, Counter, unit, help);
        for interface in &interfaces {
            text.sample(&[("interface", &interface.name)], value(interface));
        }
    }
}

fn for_containers(text: &mut Text, containers: &[Arc<Container>], guest: &GuestSide) {
    let name = |container: &Container| container.names.container.clone();
    let shares: Vec<_> = containers
        .iter()
        .map(|container| {
            let usage = guest.usage.get(&container.id).cloned();
            let told = usage.is_some();
            (
                container,
                name(container),
                container.part(usage.as_ref()),
                told,
                usage,
            )
        })
        .collect();
    text.family(
        "container_cpu_usage_seconds",
        Counter,
        "seconds",
        "CPU time of the container, as the sentry counts it.",
    );
    for (container, name, share, _, _) in &shares {
        text.sample(
            &[("container", name), ("container_id", &container.id)],
            Seconds(share.cpu_nanos),
        );
    }
    text.family(
        "container_memory_bytes",
        Gauge,
        "bytes",
        "Memory of the container, as the sentry counts it.",
    );
    for (container, name, share, told, _) in &shares {
        if *told {
            text.sample(
                &[("container", name), ("container_id", &container.id)],
                share.memory,
            );
        }
    }
    text.family(
        "container_tasks",
        Gauge,
        "",
        "Tasks of the container, as the sentry counts them.",
    );
    for (container, name, _, _, usage) in &shares {
        if let Some(usage) = usage {
            text.sample(
                &[("container", name), ("container_id", &container.id)],
                usage.tasks,
            );
        }
    }
    text.family(
        "log_bytes",
        Counter,
        "bytes",
        "Written by init to its outputs and passed on.",
    );
    for (container, name, ..) in &shares {
        let bytes = container.init.stdio.counts.bytes();
        text.sample(
            &[("container", name), ("container_id", &container.id)],
            bytes,
        );
    }
    text.family(
        "log_dropped_bytes",
        Counter,
        "bytes",
        "Written by init and lost, because its log could not be written.",
    );
    for (container, name, ..) in &shares {
        let dropped = container.init.stdio.counts.dropped();
        text.sample(
            &[("container", name), ("container_id", &container.id)],
            dropped,
        );
    }
    text.family(
        "log_throttled_seconds",
        Counter,
        "seconds",
        "Time that init's output waited for its rate.",
    );
    for (container, name, ..) in &shares {
        let waited = Seconds(container.init.stdio.counts.waited_nanos());
        text.sample(
            &[("container", name), ("container_id", &container.id)],
            waited,
        );
    }
}

fn processes(text: &mut Text, sandbox: &Sandbox, gofers: impl Iterator<Item = i32>) {
    let mut resident = |name: &str, help: &str, value: Option<u64>| {
        text.single(name, Gauge, "bytes", help, value);
    };
    let sentry = sandbox
        .exit
        .get()
        .is_none()
        .then(|| Some(Resident::of(&sandbox.pid().to_string())?.all()));
    resident(
        "sentry_resident_memory_bytes",
        "Resident memory of the sentry.",
        sentry.flatten(),
    );
    let gofers: Vec<_> = gofers
        .filter_map(|pid| Resident::of(&pid.to_string()))
        .collect();
    resident(
        "gofer_resident_memory_bytes",
        "Resident memory of the sandbox's gofers, with the pages of runsc's file that they share counted once.",
        Some(together(&gofers)),
    );
    resident(
        "shim_resident_memory_bytes",
        "Resident memory of the shim.",
        Resident::of("self").map(Resident::all),
    );
}

/// Memory of a process that is there, in bytes.
#[derive(Debug, Clone, Copy)]
struct Resident {
    own: u64,
    /// Of files: its program, for the most part, which others that run it have as well.
    of_files: u64,
}

impl Resident {
    /// The second and third field of statm, in pages (proc_pid_statm(5)).
    fn of(pid: &str) -> Option<Self> {
        let statm = read_small(format!("/proc/{pid}/statm").as_ref()).ok()?;
        let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
        let size = u64::try_from(size).ok()?;
        let mut fields = statm.split(' ').skip(1);
        let mut bytes = || Some(fields.next()?.parse::<u64>().ok()?.saturating_mul(size));
        let (all, of_files) = (bytes()?, bytes()?);
        Some(Self {
            own: all.saturating_sub(of_files),
            of_files,
        })
    }

    fn all(self) -> u64 {
        self.own.saturating_add(self.of_files)
    }
}

/// What processes of one program have together.
fn together(processes: &[Resident]) -> u64 {
    let own: u64 = processes.iter().map(|one| one.own).sum();
    let shared = processes.iter().map(|one| one.of_files).max();
    own.saturating_add(shared.unwrap_or_default())
}

fn counted(text: &mut Text, counters: &Counters) {
    for operation in Operation::ALL {
        let (name, help) = match operation {
            Operation::Create => ("create_duration_seconds", "How long Create took."),
            Operation::Start => (
                "start_duration_seconds",
                "How long Start of a container took.",
            ),
            Operation::Exec => ("exec_duration_seconds", "How long Start of an exec took."),
            Operation::Delete => (
                "delete_duration_seconds",
                "How long Delete of a container or an exec took.",
            ),
        };
        if let Some((buckets, count, nanos)) = counters.read_operation(operation) {
            text.family(name, Histogram, "seconds", help);
            text.histogram(&[], &buckets, count, Seconds(nanos));
        }
    }
    text.family(
        "runsc_command_duration_seconds",
        Histogram,
        "seconds",
        "How long runsc commands took.",
    );
    for (command, (buckets, count, nanos)) in counters.read_commands() {
        text.histogram(&[("command", &command)], &buckets, count, Seconds(nanos));
    }
    let families: [(&str, &str, &str, &Labelled); 7] = [
        (
            "runsc_command_failures",
            "command",
            "runsc commands that failed or were killed for taking too long.",
            &counters.command_failures,
        ),
        (
            "control_fallbacks",
            "method",
            "Methods of the control socket that were given up, or answered a scrape wrongly.",
            &counters.fallbacks,
        ),
        (
            "execs",
            "outcome",
            "Execs: started, failed to start, or refused before that.",
            &counters.execs,
        ),
        (
            "exits",
            "reason",
            "Processes (init and execs) that have ended; sandbox_died: by no fault of the program.",
            &counters.exits,
        ),
        (
            "sandbox_forced_ends",
            "reason",
            "Times that the shim killed the sandbox because its sentry did not do, or answer, what it was told.",
            &counters.forced_ends,
        ),
        (
            "policy_denials",
            "control",
            "Requests that the policy refused.",
            &counters.denials,
        ),
        (
            "policy_rewrites",
            "control",
            "Parts of requests that the policy changed.",
            &counters.rewrites,
        ),
    ];
    for (name, label, help, counter) in families {
        text.family(name, Counter, "", help);
        for (value, count) in counter.read() {
            text.sample(&[(label, &value)], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gofers_have_their_program_in_memory_once() {
        let gofer = |own, of_files| Resident { own, of_files };
        assert_eq!(together(&[gofer(2, 20), gofer(3, 21), gofer(4, 19)]), 30);
        assert_eq!(together(&[]), 0);
        let this = Resident::of("self").expect("it runs");
        assert!(this.own > 0 && this.of_files > 0, "{this:?}");
    }

    #[test]
    fn a_handler_is_called_by_its_policys_file() {
        assert_eq!(handler("/etc/bulkhead/bulkhead-net.toml"), "bulkhead-net");
        assert_eq!(handler("no file: the strictest"), "default");
        assert_eq!(handler(POLICY_PATH), "default");
    }
}
