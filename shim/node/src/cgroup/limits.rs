//! Limits that cgroups have: those of a pod decide what its sandbox gets.

use std::fs;

use runsc_config::{CpuTime, Declared};

use crate::cgroup::{Cgroups, Mode, parse_number};

/// The limits of the cgroup at `place`, below the root of each hierarchy.
pub fn of_cgroup(place: &str) -> Declared {
    Cgroups::expected(place)
        .map(|cgroups| read(&cgroups))
        .unwrap_or_default()
}

/// The limits of these cgroups.
pub fn read(cgroups: &Cgroups) -> Declared {
    let period = |period: Option<u64>| period.filter(|period| *period > 0).unwrap_or(100_000);
    match cgroups.mode {
        Mode::V1 => Declared {
            // No limit is the largest number of bytes that is a number of pages.
            memory: cgroups
                .number("memory", "memory.limit_in_bytes")
                .filter(|limit| *limit < i64::MAX as u64 / 2),
            // No quota is -1, which is no number here.
            cpu: cgroups
                .number("cpu", "cpu.cfs_quota_us")
                .filter(|quota| *quota > 0)
                .map(|quota| CpuTime {
                    quota,
                    period: period(cgroups.number("cpu", "cpu.cfs_period_us")),
                }),
            shares: None,
        },
        Mode::V2 => {
            let max = cgroups.read("", "cpu.max").unwrap_or_default();
            let mut numbers = max.split_whitespace().map(|text| text.parse::<u64>().ok());
            let (quota, length) = (numbers.next().flatten(), numbers.next().flatten());
            Declared {
                memory: cgroups
                    .number("", "memory.max")
                    .filter(|limit| *limit < u64::MAX),
                cpu: quota.map(|quota| CpuTime {
                    quota,
                    period: period(length),
                }),
                shares: None,
            }
        }
    }
}

/// The lowest `pids.max` of the cgroups above the one at `place`, as far as they are made. The host's root has none, the
/// root that a container sees may have one.
pub fn tasks_above(place: &str) -> Option<u64> {
    let cgroups = Cgroups::expected(place).ok()?;
    let above = cgroups.folder("pids")?.ancestors().skip(1);
    above
        .filter_map(|folder| fs::read_to_string(folder.join("pids.max")).ok())
        .filter_map(|limit| parse_number(limit.trim()))
        .filter(|limit| *limit < u64::MAX)
        .min()
}
