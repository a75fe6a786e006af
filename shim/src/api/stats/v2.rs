//! Task stats of a host with cgroup v2 alone (`cgroup2/stats/metrics.proto` of containerd/cgroups).

use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::MessageField;

use crate::api::stats::{Guest, Share, page_sizes, scaled};
use crate::runsc::usage::Interface;
use node::cgroup::Cgroups;

/// The message for a sandbox's cgroup.
pub(super) fn metrics(cgroups: &Cgroups, guest: &Guest) -> v2::Metrics {
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
    cpu.nr_bursts = count("nr_bursts");
    cpu.burst_usec = count("burst_usec");
    cpu.psi = pressure(cgroups, "cpu.pressure");
    metrics.cpu = MessageField::some(cpu);
    metrics.memory = MessageField::some(memory(cgroups));
    let events = cgroups.table("", "memory.events");
    let event = |key: &str| events.get(key).copied().unwrap_or_default();
    let mut memory_events = v2::MemoryEvents::new();
    memory_events.low = event("low");
    memory_events.high = event("high");
    memory_events.max = event("max");
    memory_events.oom = event("oom");
    memory_events.oom_kill = event("oom_kill");
    memory_events.oom_group_kill = event("oom_group_kill");
    metrics.memory_events = MessageField::some(memory_events);
    let mut pids = v2::PidsStat::new();
    pids.current = guest
        .tasks
        .or_else(|| cgroups.number("", "pids.current"))
        .unwrap_or_default();
    pids.limit = guest.tasks_limit;
    metrics.pids = MessageField::some(pids);
    let mut io = v2::IOStat::new();
    io.usage = cgroups
        .read("", "io.stat")
        .unwrap_or_default()
        .lines()
        .filter_map(io_entry)
        .collect();
    io.psi = pressure(cgroups, "io.pressure");
    metrics.io = MessageField::some(io);
    metrics.hugetlb = hugetlb(cgroups);
    // Nothing in a sandbox has RDMA devices.
    metrics.rdma = MessageField::some(v2::RdmaStat::new());
    metrics.network = guest.interfaces.iter().map(network).collect();
    metrics
}

fn memory(cgroups: &Cgroups) -> v2::MemoryStat {
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
    memory.anon_thp = count("anon_thp");
    memory.slab_reclaimable = count("slab_reclaimable");
    memory.slab_unreclaimable = count("slab_unreclaimable");
    memory.pgrefill = count("pgrefill");
    memory.pgscan = count("pgscan");
    memory.pgsteal = count("pgsteal");
    memory.pgactivate = count("pgactivate");
    memory.pgdeactivate = count("pgdeactivate");
    memory.pglazyfree = count("pglazyfree");
    memory.pglazyfreed = count("pglazyfreed");
    memory.thp_fault_alloc = count("thp_fault_alloc");
    memory.thp_collapse_alloc = count("thp_collapse_alloc");
    memory.workingset_nodereclaim = count("workingset_nodereclaim");
    // Since Linux 5.9 these two are counted for anonymous and file pages apart.
    memory.workingset_refault =
        count("workingset_refault_anon").saturating_add(count("workingset_refault_file"));
    memory.workingset_activate =
        count("workingset_activate_anon").saturating_add(count("workingset_activate_file"));
    memory.usage = number("memory.current");
    memory.usage_limit = number("memory.max");
    memory.swap_usage = number("memory.swap.current");
    memory.swap_limit = number("memory.swap.max");
    memory.max_usage = number("memory.peak");
    memory.swap_max_usage = number("memory.swap.peak");
    memory.psi = pressure(cgroups, "memory.pressure");
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

/// The message for one container of a pod. They share one cgroup, so what it uses is what the sentry counts for it; what
/// only the sandbox as a whole has (limits, kills, pressure) is the sandbox's, and what nobody can tell apart is left at
/// zero, so that the sum over a pod is not a multiple of what was used.
pub(super) fn metrics_of_share(cgroups: &Cgroups, guest: &Guest, share: Share) -> v2::Metrics {
    let whole = metrics(cgroups, guest);
    let mut cpu = v2::CPUStat::new();
    cpu.usage_usec = share.cpu_nanos / 1000;
    // The sentry does not tell its own work for the program from the program's: it is split as the sandbox's is.
    let modes = whole.cpu.user_usec.saturating_add(whole.cpu.system_usec);
    cpu.system_usec = scaled(cpu.usage_usec, whole.cpu.system_usec, modes);
    cpu.user_usec = cpu.usage_usec - cpu.system_usec.min(cpu.usage_usec);
    cpu.psi = whole.cpu.psi.clone();
    let mut memory = v2::MemoryStat::new();
    memory.anon = share.memory;
    memory.active_anon = share.memory;
    memory.usage = share.memory;
    memory.usage_limit = whole.memory.usage_limit;
    memory.swap_limit = whole.memory.swap_limit;
    memory.psi = whole.memory.psi.clone();
    let mut io = v2::IOStat::new();
    io.psi = whole.io.psi.clone();
    v2::Metrics {
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        io: MessageField::some(io),
        hugetlb: Vec::new(),
        ..whole
    }
}

fn network(interface: &Interface) -> v2::NetworkStat {
    let mut stat = v2::NetworkStat::new();
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

fn hugetlb(cgroups: &Cgroups) -> Vec<v2::HugeTlbStat> {
    let sizes = page_sizes(cgroups, "", ".current");
    sizes
        .into_iter()
        .map(|size| {
            let number = |file: &str| {
                let file = format!("hugetlb.{size}.{file}");
                cgroups.number("", &file).unwrap_or_default()
            };
            let mut stat = v2::HugeTlbStat::new();
            stat.current = number("current");
            stat.max = number("max");
            stat.failcnt = cgroups
                .table("", &format!("hugetlb.{size}.events"))
                .get("max")
                .copied()
                .unwrap_or_default();
            stat.pagesize = size;
            stat
        })
        .collect()
}

/// Pressure stall information (`Documentation/accounting/psi.rst`), where the kernel has it.
fn pressure(cgroups: &Cgroups, file: &str) -> MessageField<v2::PSIStats> {
    let Some(text) = cgroups.read("", file) else {
        return MessageField::none();
    };
    let mut stats = v2::PSIStats::new();
    for line in text.lines() {
        let Some((kind, figures)) = line.split_once(' ') else {
            continue;
        };
        let data = MessageField::some(pressure_data(figures));
        match kind {
            "some" => stats.some = data,
            "full" => stats.full = data,
            _ => {}
        }
    }
    MessageField::some(stats)
}

/// `avg10=0.00 avg60=0.00 avg300=0.00 total=0`; the total is in microseconds.
fn pressure_data(figures: &str) -> v2::PSIData {
    let mut data = v2::PSIData::new();
    for (key, value) in figures
        .split_whitespace()
        .filter_map(|field| field.split_once('='))
    {
        match key {
            "avg10" => data.avg10 = value.parse().unwrap_or_default(),
            "avg60" => data.avg60 = value.parse().unwrap_or_default(),
            "avg300" => data.avg300 = value.parse().unwrap_or_default(),
            "total" => data.total = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_io_stat_are_read() {
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
        assert!(io_entry("garbage").is_none());
    }

    #[test]
    fn pressure_is_read() {
        let data = pressure_data("avg10=1.50 avg60=0.25 avg300=0.00 total=123456");
        assert!((data.avg10 - 1.5).abs() < 1e-9 && (data.avg60 - 0.25).abs() < 1e-9);
        assert_eq!(data.total, 123_456);
    }
}
