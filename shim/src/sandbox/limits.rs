//! Limits of a sandbox's cgroup: checked after its create, and changed while it runs.
//!
//! `runsc update` does nothing for the containers of a pod, so the shim writes the sandbox's cgroup here. If systemd has made the
//! cgroup, the shim changes its unit too (`systemd.rs`).

use std::fs;
use std::io;
use std::path::Path;

use runsc_config::{CpuTime, SandboxLimits};

use crate::error::{Error, Result};
use node::cgroup::limits::read;
use node::cgroup::{Cgroups, Mode};

const SWAP: &str = "memory.swap.max";

/// Checks that a sandbox's cgroups hold it to its limits, once they have been made: a runsc that finds a cgroup, or has none
/// to put a sandbox in, sets none and says nothing.
///
/// # Errors
/// `FailedPrecondition`, naming the limit that does not hold.
pub(crate) fn check(cgroups: &Cgroups, limits: &SandboxLimits) -> Result<()> {
    // systemd counts CPU time in hundredths of a CPU and rounds up (`runsc/cgroup/systemd.go`).
    const ROUNDED_BY: f64 = 0.01;
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of a period are far below 2^52"
    )]
    let share = |cpu: CpuTime| cpu.quota as f64 / cpu.period.max(1) as f64;
    let failed = |limit: &str, asked: String, found: Option<String>| {
        let found = found.unwrap_or_else(|| "no limit".to_owned());
        Err(Error::precondition(format!(
            "linux.resources: the sandbox's cgroup has {found} of {limit} where {asked} was set"
        )))
    };
    let found = read(cgroups);
    if found.memory.is_none_or(|memory| memory > limits.memory) {
        let asked = format!("{} bytes", limits.memory);
        let found = found.memory.map(|bytes| format!("{bytes} bytes"));
        return failed("memory", asked, found);
    }
    if found
        .cpu
        .is_none_or(|cpu| share(cpu) > share(limits.cpu) + ROUNDED_BY)
    {
        let text = |cpu: CpuTime| format!("{} of {} us", cpu.quota, cpu.period);
        return failed("CPU time", text(limits.cpu), found.cpu.map(text));
    }
    Ok(())
}

/// What a cgroup is held to, as the kernel has it. What is remembered of that may be undone: systemd puts the values of a unit back
/// whenever it looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// Bytes; the largest number for none.
    pub(crate) memory: u64,
    /// The largest quota for none.
    pub(crate) cpu: CpuTime,
    /// `cpu.shares` on v1, `cpu.weight` on v2.
    pub(crate) weight: Option<u64>,
}

impl Held {
    fn now(cgroups: &Cgroups) -> Self {
        let found = read(cgroups);
        let file = match cgroups.mode {
            Mode::V1 => "cpu.shares",
            Mode::V2 => "cpu.weight",
        };
        let none = CpuTime {
            quota: u64::MAX,
            period: 100_000,
        };
        Self {
            memory: found.memory.unwrap_or(u64::MAX),
            cpu: found.cpu.unwrap_or(none),
            weight: cgroups.number("cpu", file),
        }
    }

    pub(crate) fn wanted(cgroups: &Cgroups, limits: &SandboxLimits) -> Self {
        Self {
            // In whole pages, as the kernel counts.
            memory: limits.memory & !4095,
            cpu: limits.cpu,
            weight: limits.shares.map(|shares| match cgroups.mode {
                Mode::V1 => shares,
                Mode::V2 => weight(shares),
            }),
        }
    }
}

/// Gives a running sandbox new limits, as far as the kernel has others. Returns what it had where that was changed. When one of them is
/// not taken, the ones before are put back.
///
/// # Errors
/// `FailedPrecondition` when the sandbox uses more memory already, or the cgroup above allows less.
pub(crate) fn change(cgroups: &Cgroups, limits: &SandboxLimits) -> Result<Option<Held>> {
    let (old, new) = (Held::now(cgroups), Held::wanted(cgroups, limits));
    let is_held = old.memory == new.memory
        && old.cpu == new.cpu
        && new.weight.is_none_or(|weight| old.weight == Some(weight));
    if is_held {
        return Ok(None);
    }
    match set(cgroups, &old, &new) {
        Ok(()) => Ok(Some(old)),
        Err(error) => {
            put_back(cgroups, &old);
            Err(error)
        }
    }
}

/// Whether the kernel gives the sandbox as much as this, or more.
pub(crate) fn gives(cgroups: &Cgroups, limits: &SandboxLimits) -> bool {
    let (held, wanted) = (Held::now(cgroups), Held::wanted(cgroups, limits));
    let share =
        |one: CpuTime, other: CpuTime| u128::from(one.quota) * u128::from(other.period.max(1));
    held.memory >= wanted.memory && share(held.cpu, wanted.cpu) >= share(wanted.cpu, held.cpu)
}

/// Puts back what an update has changed that did not come to its end.
pub(crate) fn put_back(cgroups: &Cgroups, before: &Held) {
    if let Err(error) = set(cgroups, &Held::now(cgroups), before) {
        tracing::warn!(%error, "not every limit was restored after a failed update");
    }
}

fn set(cgroups: &Cgroups, old: &Held, new: &Held) -> Result<()> {
    set_memory(cgroups, old.memory, new.memory).and_then(|()| set_cpu(cgroups, old, new))
}

/// Keeps a sandbox from swapping, also where swap is switched on later: on v2 there is a limit of its own. On v1 swap counts with memory.
pub(crate) fn forbid_swap(cgroups: &Cgroups) {
    if cgroups.mode == Mode::V2
        && cgroups.number("", SWAP).is_some_and(|swap| swap > 0)
        && let Err(error) = write(cgroups, "", SWAP, "0")
    {
        tracing::warn!(%error, "the sandbox may swap");
    }
}

/// Whether the kernel has a limit for swap alone.
pub(crate) fn limits_swap(cgroups: &Cgroups) -> bool {
    cgroups.mode == Mode::V2 && cgroups.number("", SWAP).is_some()
}

fn set_memory(cgroups: &Cgroups, old: u64, new: u64) -> Result<()> {
    if old == new {
        return Ok(());
    }
    let refused = |error: &io::Error| {
        let used = match cgroups.mode {
            Mode::V1 => cgroups.number("memory", "memory.usage_in_bytes"),
            Mode::V2 => cgroups.number("", "memory.current"),
        };
        Error::precondition(format!(
            "memory.limit: {new} bytes are not taken ({error}); the sandbox uses {} bytes",
            used.unwrap_or_default()
        ))
    };
    match cgroups.mode {
        Mode::V1 => {
            let files = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];
            let has_swap_limit = cgroups.read("memory", files[1]).is_some();
            // Memory may never exceed memory and swap: the larger one first on the way up.
            let order = if new > old { [1, 0] } else { [0, 1] };
            for index in order {
                let file = files.get(index).copied().unwrap_or_default();
                if index == 0 || has_swap_limit {
                    write(cgroups, "memory", file, &text(new, "-1")).map_err(|e| refused(&e))?;
                }
            }
            Ok(())
        }
        Mode::V2 => {
            // The kernel kills to reach a lower memory.max, but only reclaims to reach a lower memory.high.
            let bytes = text(new, "max");
            let written = write(cgroups, "", "memory.high", &bytes);
            let used = cgroups.number("", "memory.current").unwrap_or_default();
            let set = match written {
                Ok(()) if used <= new => write(cgroups, "", "memory.max", &bytes),
                Ok(()) => Err(io::ErrorKind::ResourceBusy.into()),
                Err(error) => Err(error),
            };
            let lifted = write(cgroups, "", "memory.high", "max");
            set.and(lifted).map_err(|e| refused(&e))
        }
    }
}

fn set_cpu(cgroups: &Cgroups, old: &Held, new: &Held) -> Result<()> {
    let refused = |field: &str, value: &str, error: &io::Error| {
        Error::precondition(format!("{field}: {value} is not taken ({error})"))
    };
    if let Some(weight) = new.weight.filter(|weight| old.weight != Some(*weight)) {
        let file = match cgroups.mode {
            Mode::V1 => "cpu.shares",
            Mode::V2 => "cpu.weight",
        };
        let value = weight.to_string();
        write(cgroups, "cpu", file, &value).map_err(|e| refused("cpu.shares", &value, &e))?;
    }
    if old.cpu == new.cpu {
        return Ok(());
    }
    let none = match cgroups.mode {
        Mode::V1 => "-1",
        Mode::V2 => "max",
    };
    let (quota, period) = (text(new.cpu.quota, none), new.cpu.period.to_string());
    let written = match cgroups.mode {
        Mode::V1 => {
            // Each pair in between must fit under the cgroup above as well: no quota does while the period changes.
            let ready = if old.cpu.period == new.cpu.period {
                Ok(())
            } else {
                write(cgroups, "cpu", "cpu.cfs_quota_us", none)
                    .and_then(|()| write(cgroups, "cpu", "cpu.cfs_period_us", &period))
            };
            ready.and_then(|()| write(cgroups, "cpu", "cpu.cfs_quota_us", &quota))
        }
        Mode::V2 => write(cgroups, "", "cpu.max", &format!("{quota} {period}")),
    };
    written.map_err(|e| refused("cpu.quota", &format!("{quota} of {period} us"), &e))
}

/// cgroup v2's weight for cgroup v1's shares: the linear map of 2..262144 to 1..10000 that runtimes share.
pub(crate) fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// A limit as the kernel takes it; the largest number is none.
fn text(number: u64, none: &str) -> String {
    if number == u64::MAX {
        none.to_owned()
    } else {
        number.to_string()
    }
}

fn write(cgroups: &Cgroups, controller: &str, file: &str, value: &str) -> io::Result<()> {
    let folder = cgroups
        .folder(controller)
        .unwrap_or(Path::new("/nonexistent"));
    fs::write(folder.join(file), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_at_both_ends() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
        assert_eq!([0, u64::MAX].map(weight), [1, 10_000]);
    }
}
