//! Task stats of a host with cgroup v1 (`cgroup1/stats/metrics.proto` of containerd/cgroups).

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::protobuf::MessageField;

use crate::api::stats::{Guest, Share, page_sizes, scaled};
use crate::runsc::usage::Interface;
use node::cgroup::Cgroups;

/// The message for a sandbox's cgroups.
pub(super) fn metrics(cgroups: &Cgroups, guest: &Guest) -> v1::Metrics {
    let mut metrics = v1::Metrics::new();
    metrics.cpu = MessageField::some(cpu(cgroups));
    metrics.memory = MessageField::some(memory(cgroups));
    metrics.blkio = MessageField::some(blkio(cgroups));
    metrics.hugetlb = hugetlb(cgroups);
    // Nothing in a sandbox has RDMA devices, and the states of the sentry's threads are not those of the program.
    metrics.rdma = MessageField::some(v1::RdmaStat::new());
    metrics.cgroup_stats = MessageField::some(v1::CgroupStats::new());
    metrics.network = guest.interfaces.iter().map(network).collect();
    let mut pids = v1::PidsStat::new();
    pids.current = guest
        .tasks
        .or_else(|| cgroups.number("pids", "pids.current"))
        .unwrap_or_default();
    pids.limit = guest.tasks_limit;
    metrics.pids = MessageField::some(pids);
    let mut oom = v1::MemoryOomControl::new();
    let control = cgroups.table("memory", "memory.oom_control");
    oom.oom_kill_disable = control.get("oom_kill_disable").copied().unwrap_or_default();
    oom.under_oom = control.get("under_oom").copied().unwrap_or_default();
    oom.oom_kill = control.get("oom_kill").copied().unwrap_or_default();
    metrics.memory_oom_control = MessageField::some(oom);
    metrics
}

fn cpu(cgroups: &Cgroups) -> v1::CPUStat {
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

fn memory(cgroups: &Cgroups) -> v1::MemoryStat {
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

fn blkio(cgroups: &Cgroups) -> v1::BlkIOStat {
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

/// The message for one container of a pod. They share one cgroup, so what it uses is what the sentry counts for it; what
/// only the sandbox as a whole has (limits, kills) is the sandbox's, and what nobody can tell apart is left at zero, so
/// that the sum over a pod is not a multiple of what was used.
pub(super) fn metrics_of_share(cgroups: &Cgroups, guest: &Guest, share: Share) -> v1::Metrics {
    let whole = metrics(cgroups, guest);
    let mut cpu = v1::CPUStat::new();
    cpu.usage = MessageField::some(cpu_of_share(&whole.cpu.usage, share));
    cpu.throttling = MessageField::some(v1::Throttle::new());
    let mut entry = v1::MemoryEntry::new();
    entry.usage = share.memory;
    entry.limit = whole.memory.usage.limit;
    entry.failcnt = whole.memory.usage.failcnt;
    let mut memory = v1::MemoryStat::new();
    memory.rss = share.memory;
    memory.total_rss = share.memory;
    memory.active_anon = share.memory;
    memory.total_active_anon = share.memory;
    memory.hierarchical_memory_limit = whole.memory.hierarchical_memory_limit;
    memory.hierarchical_swap_limit = whole.memory.hierarchical_swap_limit;
    memory.usage = MessageField::some(entry);
    memory.swap = MessageField::some(v1::MemoryEntry::new());
    memory.kernel = MessageField::some(v1::MemoryEntry::new());
    memory.kernel_tcp = MessageField::some(v1::MemoryEntry::new());
    v1::Metrics {
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        blkio: MessageField::some(v1::BlkIOStat::new()),
        hugetlb: Vec::new(),
        ..whole
    }
}

/// Where and in which mode a container's CPU time was spent the sentry does not say, so it is split as the sandbox's is.
/// `nerdctl stats` divides by the time in the kernel and multiplies by how many CPUs are listed: with zero and none, a busy
/// container would show as an idle one.
fn cpu_of_share(whole: &v1::CPUUsage, share: Share) -> v1::CPUUsage {
    let mut usage = v1::CPUUsage::new();
    usage.total = share.cpu_nanos;
    let modes = whole.user.saturating_add(whole.kernel);
    usage.kernel = scaled(share.cpu_nanos, whole.kernel, modes);
    usage.user = share.cpu_nanos - usage.kernel.min(share.cpu_nanos);
    let sum = whole
        .per_cpu
        .iter()
        .fold(0, |sum: u64, time| sum.saturating_add(*time));
    let parts = whole.per_cpu.iter();
    usage.per_cpu = parts
        .map(|part| scaled(share.cpu_nanos, *part, sum))
        .collect();
    usage
}

fn network(interface: &Interface) -> v1::NetworkStat {
    let mut stat = v1::NetworkStat::new();
    stat.name.clone_from(&interface.name);
    stat.rx_bytes = interface.rx_bytes;
    stat.rx_packets = interface.rx_packets;
    stat.rx_errors = interface.rx_errors;
    stat.rx_dropped = interface.rx_dropped;
    stat.tx_bytes = interface.tx_bytes;
    stat.tx_packets = interface.tx_packets;
    stat.tx_errors = interface.tx_errors;
    stat.tx_dropped = interface.tx_dropped;
    stat
}

fn hugetlb(cgroups: &Cgroups) -> Vec<v1::HugetlbStat> {
    let sizes = page_sizes(cgroups, "hugetlb", ".usage_in_bytes");
    sizes
        .into_iter()
        .map(|size| {
            let number = |file: &str| {
                let file = format!("hugetlb.{size}.{file}");
                cgroups.number("hugetlb", &file).unwrap_or_default()
            };
            let mut stat = v1::HugetlbStat::new();
            stat.usage = number("usage_in_bytes");
            stat.max = number("max_usage_in_bytes");
            stat.failcnt = number("failcnt");
            stat.pagesize = size;
            stat
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_blkio_are_read() {
        let entry = blkio_entry("8:16 Write 512").expect("entry");
        assert_eq!(
            (entry.major, entry.minor, entry.op.as_str(), entry.value),
            (8, 16, "Write", 512)
        );
        assert!(blkio_entry("Total 512").is_none());
    }

    /// The percentage that `nerdctl stats` shows on cgroup v1 (`pkg/statsutil`): CPU time by time in the kernel, times the
    /// number of CPUs.
    #[allow(clippy::cast_precision_loss, reason = "a percentage")]
    fn shown_by_nerdctl(before: &v1::CPUUsage, after: &v1::CPUUsage) -> f64 {
        let delta = |after: u64, before: u64| after as f64 - before as f64;
        let (total, kernel) = (
            delta(after.total, before.total),
            delta(after.kernel, before.kernel),
        );
        if kernel <= 0.0 || total <= 0.0 {
            return 0.0;
        }
        total / kernel * after.per_cpu.len() as f64 * 100.0
    }

    #[test]
    fn a_container_of_a_pod_shows_the_percentage_of_its_sandbox() {
        let whole = |nanos: u64| v1::CPUUsage {
            total: nanos,
            user: nanos / 4 * 3,
            kernel: nanos / 4,
            per_cpu: vec![nanos / 2, nanos / 2],
            ..v1::CPUUsage::default()
        };
        let of = |all: u64, part: u64| {
            let share = Share {
                cpu_nanos: part,
                memory: 0,
            };
            cpu_of_share(&whole(all), share)
        };
        let (before, after) = (
            of(4_000_000_000, 1_000_000_000),
            of(6_000_000_000, 2_000_000_000),
        );
        let shown = shown_by_nerdctl(&before, &after);
        let sandbox = shown_by_nerdctl(&whole(4_000_000_000), &whole(6_000_000_000));
        assert!(
            (shown - sandbox).abs() < 1.0 && shown > 0.0,
            "{shown}, {sandbox}"
        );
        assert_eq!(after.user + after.kernel, after.total);
        assert_eq!(after.per_cpu.iter().sum::<u64>(), after.total);
        // One whose sandbox has no figures has its own all the same.
        let alone = cpu_of_share(
            &v1::CPUUsage::new(),
            Share {
                cpu_nanos: 7,
                memory: 0,
            },
        );
        assert_eq!((alone.total, alone.user, alone.kernel), (7, 7, 0));
    }
}
