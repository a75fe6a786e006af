//! Whether what a process holds stays as it is while the same work is done again and again.

use std::fs;

use crate::look::processes;

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Resident memory in kilobytes, but for pages of files: those of code come and go with the kernel's room.
    pub resident_kb: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Held {
    /// What it holds now; none of a process that has gone.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.count();
        Some(Self {
            resident_kb: processes::anonymous_kb(pid)?,
            descriptors: processes::descriptors(pid)?.try_into().ok()?,
            threads: threads.try_into().ok()?,
        })
    }
}

/// By how much the least that a process holds may grow from the first half of the work to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Of memory, in kilobytes.
    pub resident_kb: u64,
    /// Of descriptors. A sentry has some for each process that runs the guest's code, and those come and go.
    pub descriptors: u64,
    /// Of threads. A Go program never ends one, and makes one whenever all others happen to wait; a pool keeps some for a while.
    pub threads: u64,
}

/// What a process has held between the pieces of the work.
#[derive(Debug, Clone)]
pub struct Gauge {
    name: String,
    pid: i32,
    held: Vec<Held>,
}

impl Gauge {
    /// For a process; `name` says what it is.
    #[must_use]
    pub fn new(name: &str, pid: i32) -> Self {
        Self {
            name: name.to_owned(),
            pid,
            held: Vec::new(),
        }
    }

    /// Reads what it holds.
    ///
    /// # Panics
    /// When it has gone.
    pub fn read(&mut self) {
        let (name, pid) = (&self.name, self.pid);
        let held = Held::of(pid).unwrap_or_else(|| panic!("{name} (pid {pid}) has gone"));
        self.held.push(held);
    }

    /// The least of one thing in the first half of the work, and in the second. A heap is full of air at any one moment: between two
    /// collections, and where another size was asked for. The least of many moments is what is in use, and that of a leak grows by what
    /// half of the work leaks.
    fn least(&self, of: impl Fn(&Held) -> u64) -> (u64, u64) {
        let (first, second) = self.held.split_at(self.held.len() / 2);
        let least = |half: &[Held]| half.iter().map(&of).min().unwrap_or_default();
        (least(first), least(second))
    }

    /// What has grown by more than it may, in words.
    #[must_use]
    pub fn grown(&self, bound: Bound) -> Vec<String> {
        let all = [
            (
                "kB of memory",
                self.least(|held| held.resident_kb),
                bound.resident_kb,
            ),
            (
                "descriptors",
                self.least(|held| held.descriptors),
                bound.descriptors,
            ),
            ("threads", self.least(|held| held.threads), bound.threads),
        ];
        let grown = all
            .into_iter()
            .filter(|(_, (first, second), bound)| *second > first + bound);
        grown
            .map(|(what, (first, second), bound)| {
                let name = &self.name;
                format!("{name}: {first} {what} in the first half of the work, {second} in the second, of which {bound} more are allowed")
            })
            .collect()
    }

    /// The same figures whether they have grown or not.
    #[must_use]
    pub fn told(&self) -> String {
        let pair = |(first, second): (u64, u64)| format!("{first} → {second}");
        format!(
            "{}: {} kB, {} descriptors, {} threads",
            self.name,
            pair(self.least(|held| held.resident_kb)),
            pair(self.least(|held| held.descriptors)),
            pair(self.least(|held| held.threads))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Bound = Bound {
        resident_kb: 750,
        descriptors: 0,
        threads: 0,
    };

    /// 100 moments of a heap that a collector lets grow by a third before it looks.
    fn gauge(leaks: impl Fn(u64) -> Held) -> Gauge {
        let mut gauge = Gauge::new("it", 1);
        gauge.held = (0..100)
            .map(|moment| {
                let air = moment * 7919 % 13 * 1000;
                let leak = leaks(moment);
                Held {
                    resident_kb: 40_000 + air + leak.resident_kb,
                    descriptors: 20 + moment % 3 + leak.descriptors,
                    threads: 9 + moment % 2 + leak.threads,
                }
            })
            .collect();
        gauge
    }

    fn nothing(_: u64) -> Held {
        Held {
            resident_kb: 0,
            descriptors: 0,
            threads: 0,
        }
    }

    #[test]
    fn a_heap_that_breathes_is_flat() {
        assert_eq!(gauge(nothing).grown(BOUND), Vec::<String>::new());
    }

    #[test]
    fn a_kibibyte_each_time_is_a_leak() {
        // 20 times between two moments.
        let grown = gauge(|moment| Held {
            resident_kb: moment * 20,
            ..nothing(0)
        });
        let grown = grown.grown(BOUND);
        assert!(grown.len() == 1 && grown[0].contains("memory"), "{grown:?}");
    }

    #[test]
    fn one_descriptor_or_thread_is_a_leak() {
        let late = |moment| u64::from(moment >= 50);
        let grown = gauge(|moment| Held {
            descriptors: late(moment),
            threads: late(moment),
            ..nothing(0)
        });
        assert_eq!(grown.grown(BOUND).len(), 2, "{:?}", grown.grown(BOUND));
    }

    #[test]
    fn what_this_process_holds_is_read() {
        let held = Held::of(std::process::id().cast_signed()).expect("its own");
        assert!(
            held.resident_kb > 0 && held.descriptors > 2 && held.threads > 0,
            "{held:?}"
        );
    }
}
