//! The system calls that a runsc binary reports. The complement of the allow list is made of them.
//!
//! `runsc help syscalls` prints the table that its sentry runs by, unimplemented calls included (`runsc/cmd/syscalls.go`). A
//! profile that allows by default would allow every call that the table lacks. So the shim believes a table as a whole or not at
//! all.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::features::{Features, FeaturesError};
use crate::sidecars::Sidecars;

/// How Go names the architecture.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};
/// How many calls a table has: 295 for arm64 and 352 for amd64 as of 2026-09.
const COUNT: std::ops::RangeInclusive<usize> = 250..=600;
/// Above all numbers of Linux; it has had 470 in 2026.
const NUMBER_MAX: u32 = 1023;
/// The longest text that is read, in bytes; the table of 2026-09 has 55 KB.
const TEXT_MAX: usize = 256 * 1024;
/// The flag by which runsc makes a sentry of another release panic (`runsc/gvisorbinaries`).
pub(crate) const RELEASE_FLAG: &str = "sidecar-release-enforcement-policy";

/// Calls that every table has, with their numbers on this machine. Most are calls that no sandbox may make.
const KNOWN: [(&str, libc::c_long); 40] = [
    ("read", libc::SYS_read),
    ("write", libc::SYS_write),
    ("openat", libc::SYS_openat),
    ("mmap", libc::SYS_mmap),
    ("clone", libc::SYS_clone),
    ("execve", libc::SYS_execve),
    ("exit_group", libc::SYS_exit_group),
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("kcmp", libc::SYS_kcmp),
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("unshare", libc::SYS_unshare),
    ("setns", libc::SYS_setns),
    ("sethostname", libc::SYS_sethostname),
    ("setdomainname", libc::SYS_setdomainname),
    ("init_module", libc::SYS_init_module),
    ("finit_module", libc::SYS_finit_module),
    ("delete_module", libc::SYS_delete_module),
    ("kexec_load", libc::SYS_kexec_load),
    ("reboot", libc::SYS_reboot),
    ("bpf", libc::SYS_bpf),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("keyctl", libc::SYS_keyctl),
    ("add_key", libc::SYS_add_key),
    ("request_key", libc::SYS_request_key),
    ("settimeofday", libc::SYS_settimeofday),
    ("clock_settime", libc::SYS_clock_settime),
    ("adjtimex", libc::SYS_adjtimex),
    ("clock_adjtime", libc::SYS_clock_adjtime),
    ("acct", libc::SYS_acct),
    ("quotactl", libc::SYS_quotactl),
    ("swapon", libc::SYS_swapon),
    ("swapoff", libc::SYS_swapoff),
    ("vhangup", libc::SYS_vhangup),
];

/// The names of all calls that one runsc has a number for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls(BTreeSet<String>);

impl Calls {
    /// The arguments of runsc that make it tell.
    pub const QUESTION: [&str; 8] = [
        "help",
        "syscalls",
        "-os",
        "linux",
        "-arch",
        ARCHITECTURE,
        "-format",
        "json",
    ];

    /// The table in the answer to [`Self::QUESTION`]; `None` if runsc did not exit with 0. `version` is what it calls itself,
    /// `sidecars` what is beside it.
    ///
    /// # Errors
    /// When the answer cannot be the whole table of the sentry that will run.
    pub fn of(
        sidecars: Option<&Sidecars>,
        version: &str,
        features: &Features,
        answer: Option<&str>,
    ) -> Result<Vec<(u32, String)>, FeaturesError> {
        let text = answer.ok_or_else(|| {
            FeaturesError::new(format!("it does not answer `{}`", Self::QUESTION.join(" ")))
        })?;
        let table = Self::read(text)?;
        Self::new(&table)?;
        // A sentry of its own has a table of its own, and no command to tell it by.
        match sidecars.and_then(Sidecars::sentry) {
            Some(sentry) if !(is_release(version) && features.has_flag(RELEASE_FLAG)) => {
                Err(FeaturesError::new(format!(
                    "its table of system calls may not be that of {}: runsc holds the two to one release only if it is a release",
                    sentry.display()
                )))
            }
            _ => Ok(table),
        }
    }

    /// Reads numbers with names, in the order of the text.
    ///
    /// # Errors
    /// When it is no table for this machine. [`Self::new`] judges what it says.
    pub fn read(text: &str) -> Result<Vec<(u32, String)>, FeaturesError> {
        let broken = |problem: &dyn fmt::Display| {
            FeaturesError::new(format!("its table of system calls: {problem}"))
        };
        if text.len() > TEXT_MAX {
            return Err(broken(&format!("more than {TEXT_MAX} bytes")));
        }
        let table: Told = serde_json::from_str(text).map_err(|e| broken(&e))?;
        let [one] = <[_; 1]>::try_from(table.linux.0)
            .map_err(|all| broken(&format!("{} architectures, not one", all.len())))?;
        if one.0 != ARCHITECTURE {
            return Err(broken(&format!("it is for {:?}", one.0)));
        }
        let read = |(number, call): (String, ToldCall)| {
            let parsed = number.parse();
            parsed
                .map(|number| (number, call.name))
                .map_err(|_| broken(&format!("{number:?} is no number of a call")))
        };
        one.1.syscalls.0.into_iter().map(read).collect()
    }

    /// A table, if it can be believed.
    ///
    /// # Errors
    /// When it is too small or too large, says something twice, or lacks calls that every runsc has or gives them other numbers.
    pub fn new(table: &[(u32, String)]) -> Result<Self, FeaturesError> {
        let wrong = |what: String| {
            Err(FeaturesError::new(format!(
                "its table of system calls {what}"
            )))
        };
        if !COUNT.contains(&table.len()) {
            return wrong(format!("has {} entries", table.len()));
        }
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (number, name) in table {
            let is_name = |name: &str| {
                let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
                (1..=32).contains(&name.len()) && name.bytes().all(plain)
            };
            if !is_name(name) || *number > NUMBER_MAX {
                return wrong(format!("has no call {number}, {name:.40?}"));
            }
            if !numbers.insert(*number) || !names.insert(name.clone()) {
                return wrong(format!("has {name} or {number} twice"));
            }
        }
        for (known, number) in KNOWN {
            let is_it =
                |(n, name): &(u32, String)| name == known && libc::c_long::from(*n) == number;
            if !table.iter().any(is_it) {
                return wrong(format!("does not have {known} as {number}"));
            }
        }
        Ok(Self(names))
    }

    /// The names, in their order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// Whether a version is that of a release build, as runsc tells it (`runsc/config`, `IsReleaseVersion`).
fn is_release(version: &str) -> bool {
    let Some((kind, date)) = version.split_once('-') else {
        return false;
    };
    let is_kind = kind == "release"
        || kind
            .strip_prefix('g')
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_lowercase()));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (day, patch) = date.split_once('.').unwrap_or((date, "0"));
    is_kind && day.len() == 8 && is_number(day) && is_number(patch)
}

#[derive(serde::Deserialize)]
struct Told {
    linux: Pairs<ToldArchitecture>,
}

#[derive(serde::Deserialize)]
struct ToldArchitecture {
    syscalls: Pairs<ToldCall>,
}

#[derive(serde::Deserialize)]
struct ToldCall {
    name: String,
}

/// An object's fields as they come: a map would keep the last of two that have one key.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for All<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(All(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = include_str!("../tests/common/syscalls.json");

    fn table() -> Vec<(u32, String)> {
        Calls::read(TABLE).expect("a table")
    }

    fn refused(change: impl FnOnce(&mut Vec<(u32, String)>), word: &str) {
        let mut table = table();
        change(&mut table);
        let error = Calls::new(&table).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
    }

    #[test]
    fn the_table_of_a_runsc_is_read() {
        let calls = Calls::new(&table()).expect("calls");
        assert_eq!(calls.names().count(), 352);
        for name in ["read", "ptrace", "clone3", "mq_notify"] {
            assert!(calls.names().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn a_table_that_cannot_be_the_whole_one_is_not_believed() {
        refused(Vec::clear, "0 entries");
        refused(|table| table.truncate(200), "200 entries");
        refused(
            |table| table.extend((442..800).map(|n| (n, format!("more_{n}")))),
            "710 entries",
        );
        refused(|table| table.push((900, "read".to_owned())), "twice");
        refused(|table| table.push((0, "other".to_owned())), "twice");
        refused(|table| table.push((1024, "other".to_owned())), "1024");
        refused(|table| table.push((900, "a b".to_owned())), "a b");
        refused(|table| table.push((900, String::new())), "900");
        for (known, number) in KNOWN {
            let at = |table: &[(u32, String)]| table.iter().position(|(_, name)| name == known);
            let word = format!("does not have {known} as {number}");
            refused(|table| drop(table.remove(at(table).expect("there"))), &word);
            refused(
                |table| {
                    let at = at(table).expect("there");
                    table[at].0 = 900;
                },
                &word,
            );
        }
    }

    #[test]
    fn what_is_no_table_is_not_read() {
        let twice = TABLE.replacen("\"amd64\":", "\"arm64\":{\"syscalls\":{}},\"amd64\":", 1);
        let other = TABLE.replacen("\"amd64\"", "\"s390x\"", 1);
        let half = TABLE.get(..TABLE.len() / 2).expect("half of it");
        for text in [
            "",
            "{}",
            "nonsense",
            "[]",
            r#"{"linux":{}}"#,
            half,
            &twice,
            &other,
        ] {
            Calls::read(text).expect_err("refused");
        }
        let long = format!("{TABLE}{}", " ".repeat(TEXT_MAX));
        Calls::read(&long).expect_err("too long");
        // Two entries for one number are both seen.
        let twice = TABLE.replacen("\"0\":", "\"0\":{\"name\":\"mount\"},\"0\":", 1);
        let twice = Calls::read(&twice).expect("a table");
        assert_eq!(twice.len(), 353);
        Calls::new(&twice).expect_err("one number, two names");
    }

    #[test]
    fn releases_are_told_from_other_builds() {
        for version in [
            "release-20260905.0",
            "release-20260905",
            "google-20260905.12",
        ] {
            assert!(is_release(version), "{version}");
        }
        for version in [
            "VERSION_MISSING",
            "release-20260905.0-3-g0123abc",
            "release-2026090.0",
            "release-20260905.",
            "other-20260905.0",
            "release",
            "",
        ] {
            assert!(!is_release(version), "{version}");
        }
    }

    /// The sentry that runs decides which calls there are.
    #[test]
    fn a_sentry_of_its_own_has_the_table_of_its_release_alone() {
        let folder = std::env::temp_dir().join(format!("bulkhead-calls-{}", std::process::id()));
        let runsc = folder.join("runsc");
        std::fs::create_dir_all(folder.join("gvisor-bin")).expect("a folder");
        std::fs::write(&runsc, "").expect("a file");
        let features = |flags: &str| {
            let flags = format!("  -root string\n  -network value\n{flags}");
            Features::parse(&flags, None).expect("features")
        };
        let (new, old) = (
            features(&format!("  -{RELEASE_FLAG} value\n")),
            features(""),
        );
        let judge = |version: &str, features: &Features| {
            let sidecars = Sidecars::of(&runsc).expect("readable");
            Calls::of(sidecars.as_ref(), version, features, Some(TABLE)).is_ok()
        };
        assert!(judge("VERSION_MISSING", &new) && judge("release-20260905.0", &old));
        let sentry = folder.join("gvisor-bin/gvisor_sentry");
        std::fs::write(&sentry, "").expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(sentry, mode).expect("chmod");
        assert!(judge("release-20260905.0", &new));
        assert!(!judge("VERSION_MISSING", &new) && !judge("release-20260905.0", &old));
        Calls::of(None, "release-20260905.0", &new, None).expect_err("no answer");
        std::fs::remove_dir_all(folder).expect("remove the folder");
    }
}
