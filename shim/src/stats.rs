//! Task stats: the cgroup metrics message of the host's own mode, from the sandbox's cgroup.
//!
//! Every sub-message that clients look into is set, even where it is empty: `nerdctl stats` dereferences them. The tasks
//! counted under `pids` are the guest's, because that is what the pids limit of a sandbox counts; the host's own count
//! is of the sentry's threads and says nothing about the program.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::cgroup::{Cgroups, Mode};
use crate::error::{Error, Result};

/// What the sandbox itself counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GuestCounts {
    /// Tasks (threads) of the guest.
    pub(crate) tasks: Option<u64>,
    /// The limit on them (RLIMIT_NPROC).
    pub(crate) tasks_limit: Option<u64>,
}

/// The metrics message for a sandbox's cgroup.
///
/// # Errors
/// Only when the message cannot be encoded.
pub(crate) fn collect(cgroups: &Cgroups, guest: GuestCounts) -> Result<Any> {
    let (type_url, encoded) = match cgroups.mode {
        // The names containerd registers for its own types (`github.com/containerd/cgroups/v3/*/stats`).
        Mode::V1 => (
            "io.containerd.cgroups.v1.Metrics",
            metrics_v1(cgroups, guest).write_to_bytes(),
        ),
        Mode::V2 => (
            "io.containerd.cgroups.v2.Metrics",
            metrics_v2(cgroups, guest).write_to_bytes(),
        ),
    };
    let value = encoded.map_err(|e| Error::internal(format!("encode the metrics: {e}")))?;
    Ok(Any {
        type_url: type_url.to_owned(),
        value,
        ..Any::default()
    })
}

fn metrics_v1(cgroups: &Cgroups, guest: GuestCounts) -> v1::Metrics {
    let mut metrics = v1::Metrics::new();
    metrics.cpu = MessageField::some(cpu_v1(cgroups));
    metrics.memory = MessageField::some(memory_v1(cgroups));
    metrics.blkio = MessageField::some(blkio_v1(cgroups));
    let mut pids = v1::PidsStat::new();
    pids.current = guest
        .tasks
        .or_else(|| cgroups.number("pids", "pids.current"))
        .unwrap_or_default();
    pids.limit = guest.tasks_limit.unwrap_or_default();
    metrics.pids = MessageField::some(pids);
    let mut oom = v1::MemoryOomControl::new();
    let control = cgroups.table("memory", "memory.oom_control");
    oom.oom_kill_disable = control.get("oom_kill_disable").copied().unwrap_or_default();
    oom.under_oom = control.get("under_oom").copied().unwrap_or_default();
    oom.oom_kill = control.get("oom_kill").copied().unwrap_or_default();
    metrics.memory_oom_control = MessageField::some(oom);
    metrics
}

fn cpu_v1(cgroups: &Cgroups) -> v1::CPUStat {
    // Values of cpuacct.stat are in USER_HZ, which is 100 on every Linux the shim runs on.
    const NANOS_PER_TICK: u64 = 10_000_000;
    let mut usage = v1::CPUUsage::new();
    usage.total = cgroups
        .number("cpuacct", "cpuacct.usage")
        .unwrap_or_default();
    usage.per_cpu = cgroups
        .read("cpuacct", "cpuacct.usage_percpu")
        .map(|text| {
            text.split_whitespace()
                .filter_map(|value| value.parse().ok())
                .collect()
        })
        .unwrap_or_default();
    let stat = cgroups.table("cpuacct", "cpuacct.stat");
    let nanos = |key: &str| {
        stat.get(key)
            .copied()
            .unwrap_or_default()
            .saturating_mul(NANOS_PER_TICK)
    };
    usage.user = nanos("user");
    usage.kernel = nanos("system");
    let throttled = cgroups.table("cpu", "cpu.stat");
    let count = |key: &str| throttled.get(key).copied().unwrap_or_default();
    let mut throttling = v1::Throttle::new();
    throttling.periods = count("nr_periods");
    throttling.throttled_periods = count("nr_throttled");
    throttling.throttled_time = count("throttled_time");
    let mut cpu = v1::CPUStat::new();
    cpu.usage = MessageField::some(usage);
    cpu.throttling = MessageField::some(throttling);
    cpu
}

fn memory_v1(cgroups: &Cgroups) -> v1::MemoryStat {
    let stat = cgroups.table("memory", "memory.stat");
    let count = |key: &str| stat.get(key).copied().unwrap_or_default();
    let entry = |prefix: &str| {
        let number = |file: &str| {
            cgroups
                .number("memory", &format!("{prefix}.{file}"))
                .unwrap_or_default()
        };
        let mut entry = v1::MemoryEntry::new();
        entry.usage = number("usage_in_bytes");
        entry.limit = number("limit_in_bytes");
        entry.max = number("max_usage_in_bytes");
        entry.failcnt = number("failcnt");
        MessageField::some(entry)
    };
    let mut memory = v1::MemoryStat::new();
    memory.cache = count("cache");
    memory.rss = count("rss");
    memory.rss_huge = count("rss_huge");
    memory.mapped_file = count("mapped_file");
    memory.dirty = count("dirty");
    memory.writeback = count("writeback");
    memory.pg_pg_in = count("pgpgin");
    memory.pg_pg_out = count("pgpgout");
    memory.pg_fault = count("pgfault");
    memory.pg_maj_fault = count("pgmajfault");
    memory.inactive_anon = count("inactive_anon");
    memory.active_anon = count("active_anon");
    memory.inactive_file = count("inactive_file");
    memory.active_file = count("active_file");
    memory.unevictable = count("unevictable");
    memory.hierarchical_memory_limit = count("hierarchical_memory_limit");
    memory.hierarchical_swap_limit = count("hierarchical_memsw_limit");
    memory.total_cache = count("total_cache");
    memory.total_rss = count("total_rss");
    memory.total_rss_huge = count("total_rss_huge");
    memory.total_mapped_file = count("total_mapped_file");
    memory.total_dirty = count("total_dirty");
    memory.total_writeback = count("total_writeback");
    memory.total_pg_pg_in = count("total_pgpgin");
    memory.total_pg_pg_out = count("total_pgpgout");
    memory.total_pg_fault = count("total_pgfault");
    memory.total_pg_maj_fault = count("total_pgmajfault");
    memory.total_inactive_anon = count("total_inactive_anon");
    memory.total_active_anon = count("total_active_anon");
    memory.total_inactive_file = count("total_inactive_file");
    memory.total_active_file = count("total_active_file");
    memory.total_unevictable = count("total_unevictable");
    memory.usage = entry("memory");
    memory.swap = entry("memory.memsw");
    memory.kernel = entry("memory.kmem");
    memory.kernel_tcp = entry("memory.kmem.tcp");
    memory
}

fn blkio_v1(cgroups: &Cgroups) -> v1::BlkIOStat {
    let entries = |file: &str| {
        let text = cgroups.read("blkio", file).unwrap_or_default();
        text.lines().filter_map(blkio_entry).collect::<Vec<_>>()
    };
    let mut blkio = v1::BlkIOStat::new();
    blkio.io_service_bytes_recursive = entries("blkio.throttle.io_service_bytes_recursive");
    blkio.io_serviced_recursive = entries("blkio.throttle.io_serviced_recursive");
    blkio
}

/// One line of a blkio file: `8:0 Read 4096`.
fn blkio_entry(line: &str) -> Option<v1::BlkIOEntry> {
    let mut fields = line.split_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let mut entry = v1::BlkIOEntry::new();
    entry.major = major.parse().ok()?;
    entry.minor = minor.parse().ok()?;
    entry.op = fields.next()?.to_owned();
    entry.value = fields.next()?.parse().ok()?;
    Some(entry)
}

fn metrics_v2(cgroups: &Cgroups, guest: GuestCounts) -> v2::Metrics {
    let mut metrics = v2::Metrics::new();
    let cpu_stat = cgroups.table("", "cpu.stat");
    let count = |key: &str| cpu_stat.get(key).copied().unwrap_or_default();
    let mut cpu = v2::CPUStat::new();
    cpu.usage_usec = count("usage_usec");
    cpu.user_usec = count("user_usec");
    cpu.system_usec = count("system_usec");
    cpu.nr_periods = count("nr_periods");
    cpu.nr_throttled = count("nr_throttled");
    cpu.throttled_usec = count("throttled_usec");
    metrics.cpu = MessageField::some(cpu);
    metrics.memory = MessageField::some(memory_v2(cgroups));
    let events = cgroups.table("", "memory.events");
    let event = |key: &str| events.get(key).copied().unwrap_or_default();
    let mut memory_events = v2::MemoryEvents::new();
    memory_events.low = event("low");
    memory_events.high = event("high");
    memory_events.max = event("max");
    memory_events.oom = event("oom");
    memory_events.oom_kill = event("oom_kill");
    metrics.memory_events = MessageField::some(memory_events);
    let mut pids = v2::PidsStat::new();
    pids.current = guest
        .tasks
        .or_else(|| cgroups.number("", "pids.current"))
        .unwrap_or_default();
    pids.limit = guest.tasks_limit.unwrap_or_default();
    metrics.pids = MessageField::some(pids);
    let mut io = v2::IOStat::new();
    io.usage = cgroups
        .read("", "io.stat")
        .unwrap_or_default()
        .lines()
        .filter_map(io_entry)
        .collect();
    metrics.io = MessageField::some(io);
    metrics
}

fn memory_v2(cgroups: &Cgroups) -> v2::MemoryStat {
    let stat = cgroups.table("", "memory.stat");
    let count = |key: &str| stat.get(key).copied().unwrap_or_default();
    let number = |file: &str| cgroups.number("", file).unwrap_or_default();
    let mut memory = v2::MemoryStat::new();
    memory.anon = count("anon");
    memory.file = count("file");
    memory.kernel_stack = count("kernel_stack");
    memory.slab = count("slab");
    memory.sock = count("sock");
    memory.shmem = count("shmem");
    memory.file_mapped = count("file_mapped");
    memory.file_dirty = count("file_dirty");
    memory.file_writeback = count("file_writeback");
    memory.inactive_anon = count("inactive_anon");
    memory.active_anon = count("active_anon");
    memory.inactive_file = count("inactive_file");
    memory.active_file = count("active_file");
    memory.unevictable = count("unevictable");
    memory.pgfault = count("pgfault");
    memory.pgmajfault = count("pgmajfault");
    memory.usage = number("memory.current");
    memory.usage_limit = number("memory.max");
    memory.swap_usage = number("memory.swap.current");
    memory.swap_limit = number("memory.swap.max");
    memory
}

/// One line of io.stat: `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn io_entry(line: &str) -> Option<v2::IOEntry> {
    let mut fields = line.split_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let mut entry = v2::IOEntry::new();
    entry.major = major.parse().ok()?;
    entry.minor = minor.parse().ok()?;
    for (key, value) in fields.filter_map(|field| field.split_once('=')) {
        let value = value.parse().unwrap_or_default();
        match key {
            "rbytes" => entry.rbytes = value,
            "wbytes" => entry.wbytes = value,
            "rios" => entry.rios = value,
            "wios" => entry.wios = value,
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_lines_of_both_modes_are_read() {
        let entry =
            io_entry("253:1 rbytes=4096 wbytes=7 rios=1 wios=2 dbytes=0 dios=0").expect("entry");
        assert_eq!(
            (
                entry.major,
                entry.minor,
                entry.rbytes,
                entry.wbytes,
                entry.wios
            ),
            (253, 1, 4096, 7, 2)
        );
        let entry = blkio_entry("8:16 Write 512").expect("entry");
        assert_eq!(
            (entry.major, entry.minor, entry.op.as_str(), entry.value),
            (8, 16, "Write", 512)
        );
        assert!(blkio_entry("Total 512").is_none() && io_entry("garbage").is_none());
    }
}
