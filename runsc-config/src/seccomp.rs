//! System calls that a program may make of gVisor.
//!
//! The built-in profile is an allow list of what gVisor implements, less what only an escape needs. A caller's profile
//! narrows it: a call passes only if both allow it. A rule of the caller's that denies a call denies it in its own way (an errno, a
//! signal, the end of the program). The profile is written in the terms that runsc understands
//! (`runsc/specutils/seccomp/seccomp.go`): it tries rules in order and the first match decides; every errno
//! becomes EPERM; several conditions on one argument are alternatives; an argument index above 5 kills the sandbox.
//!
//! runsc compiles a profile when a container starts and at each exec. That time grows faster than the number of names. So the
//! allow list is written as its complement if the binary reports its whole table of calls ([`Calls`]): allowed by default, with a
//! rule for each call of the table that is not allowed. Each of them is decided as by the list. A number that the table lacks
//! gets EPERM from the list. With the complement it reaches the sentry, which answers ENOSYS.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::calls::Calls;
use crate::features::Features;
use crate::policy::Policy;
use crate::report::{Refusal, Report};
use crate::text::NAMES_MAX;

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
/// Nothing traces a guest, so this is ENOSYS there: the one way to say "not implemented" to glibc.
const TRACE: &str = "SCMP_ACT_TRACE";
const ENOSYS: u64 = 38;
const MASKED_EQ: &str = "SCMP_CMP_MASKED_EQ";
/// The clone flags that make namespaces (CLONE_NEW*, `include/uapi/linux/sched.h`).
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// What every program may call, by group.
const GROUPS: [(&str, &str); 12] = [
    (
        "files by descriptor",
        "read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3 \
         fcntl flock fsync fdatasync ftruncate fallocate fadvise64 readahead sync_file_range syncfs sync sendfile splice \
         tee vmsplice copy_file_range ioctl getdents getdents64 fstat fstatfs fchmod fchown fchdir",
    ),
    (
        "files by name",
        "open openat openat2 creat stat lstat newfstatat statx statfs access faccessat faccessat2 truncate rename renameat \
         renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat readlink readlinkat chmod fchmodat \
         fchmodat2 chown lchown fchownat utime utimes futimesat utimensat umask getcwd chdir mknod mknodat setxattr \
         lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr \
         fremovexattr",
    ),
    (
        "waiting",
        "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd \
         eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime inotify_init inotify_init1 \
         inotify_add_watch inotify_rm_watch pipe pipe2 io_setup io_destroy io_getevents io_pgetevents io_submit io_cancel",
    ),
    (
        "sockets",
        "socket socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt shutdown sendto \
         recvfrom sendmsg recvmsg sendmmsg recvmmsg",
    ),
    (
        "memory",
        "mmap munmap mremap mprotect brk madvise mincore msync mlock mlock2 mlockall munlock munlockall membarrier \
         memfd_create mbind set_mempolicy get_mempolicy pkey_alloc pkey_free pkey_mprotect remap_file_pages",
    ),
    (
        "processes and threads",
        "fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid set_tid_address set_robust_list \
         get_robust_list futex arch_prctl prctl rseq getpgid getpgrp setpgid getsid setsid getrusage times \
         pidfd_open pidfd_send_signal restart_syscall",
    ),
    (
        "scheduling",
        "sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler \
         sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_getattr \
         sched_setattr getpriority setpriority ioprio_get ioprio_set getcpu",
    ),
    (
        "signals",
        "kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo \
         rt_tgsigqueueinfo rt_sigsuspend sigaltstack pause alarm getitimer setitimer",
    ),
    (
        "time",
        "time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep timer_create timer_settime timer_gettime \
         timer_getoverrun timer_delete",
    ),
    (
        "identity and limits; capabilities still decide what changes",
        "getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid setresgid \
         setgroups setfsuid setfsgid capget capset getrlimit setrlimit prlimit64 personality seccomp",
    ),
    (
        "IPC inside the sandbox",
        "shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink \
         mq_timedsend mq_timedreceive mq_notify mq_getsetattr",
    ),
    (
        "facts about the system, all of them gVisor's own",
        "uname sysinfo syslog getrandom",
    ),
];

/// Denied, though gVisor has them or answers for them, with the reason; a test holds both lists apart. Some come with a
/// capability: [`WITH_CAPABILITY`].
#[cfg(test)]
const DENIED: [(&str, &str); 8] = [
    (
        "other processes' memory and registers",
        "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd",
    ),
    (
        "the mount table",
        "mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick open_by_handle_at",
    ),
    ("namespaces", "unshare setns sethostname setdomainname"),
    (
        "the kernel",
        "init_module finit_module delete_module kexec_load kexec_file_load reboot bpf perf_event_open",
    ),
    (
        "large kernel surfaces with their own history",
        "io_uring_setup io_uring_enter io_uring_register userfaultfd",
    ),
    ("keys", "keyctl add_key request_key"),
    (
        "the host's clock and accounting",
        "settimeofday clock_settime adjtimex clock_adjtime acct quotactl",
    ),
    ("devices and swap", "swapon swapoff iopl ioperm vhangup"),
];

/// One rule for one call, in runsc's terms.
#[derive(Debug, Clone, PartialEq)]
struct Rule {
    action: &'static str,
    args: Vec<Value>,
}

impl Rule {
    fn allow() -> Self {
        Self::always(ALLOW)
    }

    fn always(action: &'static str) -> Self {
        Self {
            action,
            args: Vec::new(),
        }
    }
}

/// Calls that are of use with a capability alone, which the policy may give: without it they are an escape's. None that would undo
/// other rules: with ptrace(2) every filter can be passed (gVisor lets a tracer change a call that was checked already), and with
/// mount(2) and unshare(2) so can the sizes and options of what is mounted.
const WITH_CAPABILITY: [(&str, &str); 2] = [
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_ADMIN", "sethostname setdomainname"),
];

/// The built-in profile of a container that has these capabilities.
fn built_in(granted: &[&str]) -> BTreeMap<&'static str, Rule> {
    let mut rules: BTreeMap<_, _> = GROUPS
        .iter()
        .flat_map(|(_, names)| names.split_whitespace())
        .map(|name| (name, Rule::allow()))
        .collect();
    // New threads and processes, in the namespaces there are.
    let same_namespaces =
        json!({ "index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": MASKED_EQ });
    rules.insert(
        "clone",
        Rule {
            action: ALLOW,
            args: vec![same_namespaces],
        },
    );
    // Its flags are in memory, out of a filter's reach. Told that it is not there, glibc uses clone.
    rules.insert(
        "clone3",
        Rule {
            action: TRACE,
            args: Vec::new(),
        },
    );
    for (capability, names) in WITH_CAPABILITY {
        if granted.contains(&capability) {
            rules.extend(names.split_whitespace().map(|name| (name, Rule::allow())));
        }
    }
    rules
}

/// The profile that is enforced: the built-in one for these capabilities, narrowed by the caller's. None where nothing is
/// asked for and the policy takes that at its word.
pub(crate) fn effective(
    asked: Option<&Value>,
    granted: &[&str],
    policy: &Policy,
    features: &Features,
    report: &mut Report,
) -> Result<Option<Value>, Refusal> {
    let caller = match asked {
        // CRI sends the same for "no profile" and for "unconfined".
        None | Some(Value::Null) if policy.allow_unconfined => return Ok(None),
        None | Some(Value::Null) => {
            let (asked, given) = ("no profile", "the built-in one");
            report.note("seccomp", asked, given, "allow_unconfined");
            None
        }
        Some(profile) => Some(Profile::read(profile, features, report)?),
    };
    let built_in = built_in(granted);
    let mut decided: BTreeMap<&str, Vec<Rule>> = BTreeMap::new();
    for (name, own) in &built_in {
        let rules = match &caller {
            Some(profile) => profile.narrow(name, own)?,
            None => vec![own.clone()],
        };
        decided.insert(name, rules);
    }
    if let Some(profile) = &caller {
        let names = profile.rules.keys().map(String::as_str);
        for name in names.filter(|name| !built_in.contains_key(name)) {
            decided.insert(name, profile.narrow(name, &Rule::always(ERRNO))?);
        }
        if let Some(calls) = features.calls() {
            profile.tell_missing(calls, report);
        }
    }
    let (default, rules) = match features.calls() {
        Some(calls) => (ALLOW, complement(&decided, calls)),
        None => (ERRNO, each(decided)),
    };
    Ok(Some(json!({
        "defaultAction": default,
        "architectures": [native_architecture()],
        "syscalls": grouped(rules),
    })))
}

/// How a profile of this crate is written.
#[must_use]
pub(crate) fn form(profile: &Value) -> &'static str {
    if profile.get("defaultAction").and_then(Value::as_str) == Some(ALLOW) {
        "complement"
    } else {
        "allow-list"
    }
}

fn each(decided: BTreeMap<&str, Vec<Rule>>) -> Vec<(&str, Rule)> {
    let rules = |(name, rules): (_, Vec<Rule>)| rules.into_iter().map(move |rule| (name, rule));
    decided.into_iter().flat_map(rules).collect()
}

/// What has to be said where all is allowed by default. `decided` has the rules of each call that may be allowed; after them, and
/// for every other call, comes EPERM.
fn complement<'a>(decided: &BTreeMap<&str, Vec<Rule>>, calls: &'a Calls) -> Vec<(&'a str, Rule)> {
    let rules = |name| decided.get(name).map(Vec::as_slice).unwrap_or_default();
    let denied = |name| {
        denials(rules(name))
            .into_iter()
            .map(move |rule| (name, rule))
    };
    calls.names().flat_map(denied).collect()
}

/// The rules for one call where it is allowed by default, from those where it is denied by default.
fn denials(rules: &[Rule]) -> Vec<Rule> {
    if let [only] = rules
        && let Some(bits) = without_bits(only)
    {
        return bits;
    }
    let mut given = Vec::new();
    for rule in rules {
        if *rule == Rule::allow() {
            return given;
        }
        given.push(rule.clone());
        if rule.args.is_empty() {
            return given;
        }
    }
    given.push(Rule::always(ERRNO));
    given
}

/// The denials that a rule amounts to which allows an argument that has none of some bits: one for each bit, so that no order
/// matters, nor how conditions on one argument come together.
fn without_bits(rule: &Rule) -> Option<Vec<Rule>> {
    let [condition] = rule.args.as_slice() else {
        return None;
    };
    let number = |key: &str| condition.get(key).and_then(Value::as_u64);
    if rule.action != ALLOW
        || condition.get("op")?.as_str()? != MASKED_EQ
        || number("valueTwo")? != 0
    {
        return None;
    }
    let (index, mask) = (number("index")?, number("value")?);
    let bits = (0..u64::BITS)
        .map(|bit| 1_u64 << bit)
        .filter(|bit| mask & bit != 0);
    let denial = |bit: u64| Rule {
        action: ERRNO,
        args: vec![json!({ "index": index, "value": bit, "valueTwo": bit, "op": MASKED_EQ })],
    };
    Some(bits.map(denial).collect())
}

/// Calls with the same rule share an entry; those with conditions keep one each, in their order and before what has none.
fn grouped(rules: Vec<(&str, Rule)>) -> Vec<Value> {
    let entry = |names: &[&str], rule: &Rule| json!({ "names": names, "action": rule.action, "args": rule.args });
    let mut always: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut entries = Vec::new();
    for (name, rule) in &rules {
        if rule.args.is_empty() {
            always.entry(rule.action).or_default().push(name);
        } else {
            entries.push(entry(&[name], rule));
        }
    }
    let plain = |(action, names): (_, Vec<&str>)| json!({ "names": names, "action": action });
    entries.extend(always.into_iter().map(plain));
    entries
}

const fn native_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "SCMP_ARCH_AARCH64"
    } else {
        "SCMP_ARCH_X86_64"
    }
}

/// A caller's profile, read.
struct Profile {
    default: &'static str,
    /// In the order of the profile.
    rules: BTreeMap<String, Vec<Rule>>,
}

impl Profile {
    fn read(profile: &Value, features: &Features, report: &mut Report) -> Result<Self, Refusal> {
        let refused = |what: String, why: &str| Refusal::unenforceable("seccomp", what, why);
        let architectures = profile.get("architectures").and_then(Value::as_array);
        let names =
            architectures.map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        if names.is_some_and(|names| !names.is_empty() && !names.contains(&native_architecture())) {
            let what = format!(
                "linux.seccomp.architectures without {}",
                native_architecture()
            );
            return Err(refused(what, "the profile is not for this machine"));
        }
        for key in ["listenerPath", "listenerMetadata"] {
            if !profile.get(key).is_none_or(crate::json::is_empty) {
                return Err(refused(
                    format!("linux.seccomp.{key}"),
                    "gVisor notifies nobody of system calls",
                ));
            }
        }
        let mut coarse = 0_u32;
        let mut action = |value: &Value, field: &str| -> Result<&'static str, Refusal> {
            let name = value.get(field).and_then(Value::as_str).unwrap_or_default();
            let errno_field = if field == "action" {
                "errnoRet"
            } else {
                "defaultErrnoRet"
            };
            let errno = value.get(errno_field).and_then(Value::as_u64);
            Ok(match name {
                ALLOW => ALLOW,
                ERRNO if errno == Some(ENOSYS) => TRACE,
                ERRNO => {
                    coarse += u32::from(errno.is_some_and(|errno| errno != 1));
                    ERRNO
                }
                TRACE => TRACE,
                "SCMP_ACT_TRAP" => "SCMP_ACT_TRAP",
                "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" | "SCMP_ACT_KILL_PROCESS" => {
                    "SCMP_ACT_KILL"
                }
                other => {
                    let what = format!("linux.seccomp: action {other:?}");
                    return Err(refused(what, "gVisor cannot enforce it"));
                }
            })
        };
        let default = action(profile, "defaultAction")?;
        let mut rules: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for (number, entry) in profile
            .get("syscalls")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .enumerate()
        {
            let rule = Rule {
                action: action(entry, "action")?,
                args: conditions(number, entry)?,
            };
            for name in entry
                .get("names")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                rules.entry(name.to_owned()).or_default().push(rule.clone());
            }
        }
        if coarse > 0 {
            report.note(
                "seccomp",
                format!("{coarse} rules with other errors than EPERM"),
                "EPERM",
                "",
            );
        }
        let actions = rules.values().flatten().map(|rule| rule.action);
        for action in actions.chain([default]) {
            if !features.has_action(action) && features.is_current() {
                let what = format!("linux.seccomp: action {action}");
                return Err(refused(what, "this runsc does not have it"));
            }
        }
        if ![ALLOW, ERRNO].contains(&default) {
            let rest = if features.calls().is_some() {
                "EPERM if the built-in profile denies, ENOSYS for clone3 and for calls that gVisor lacks"
            } else {
                "EPERM if the built-in profile denies, ENOSYS for clone3"
            };
            // An ENOSYS is read as a trace action; what was asked for is told.
            let asked = match profile.get("defaultAction").and_then(Value::as_str) {
                Some(ERRNO) => "ENOSYS",
                asked => asked.unwrap_or(default),
            };
            report.note("seccomp", format!("{asked} by default"), rest, "");
        }
        Ok(Self { default, rules })
    }

    /// The rules for one call, of which the built-in profile has `own`.
    fn narrow(&self, name: &str, own: &Rule) -> Result<Vec<Rule>, Refusal> {
        // Denials come first: whatever order the caller had, the narrower reading of its rules counts.
        let mut given = self.denials(name);
        let is_denied = given.last().is_some_and(|rule| rule.args.is_empty());
        if own.action != ALLOW {
            // Denied whatever the caller says, whose word is how, if it is not just EPERM.
            for rule in given.iter_mut().filter(|rule| rule.action == ERRNO) {
                rule.action = own.action;
            }
            if !is_denied {
                given.push(own.clone());
            }
        } else if !is_denied {
            self.allow(name, own, &mut given)?;
        }
        // EPERM is what a call without a rule has.
        if given.iter().all(|rule| rule.action == ERRNO) {
            given.clear();
        }
        Ok(given)
    }

    /// The rules by which the profile denies a call, in their order and each in its own way, up to the first that asks for no
    /// argument.
    fn denials(&self, name: &str) -> Vec<Rule> {
        let rules = self.rules.get(name).map(Vec::as_slice).unwrap_or_default();
        let mut denials = Vec::new();
        for rule in rules.iter().filter(|rule| rule.action != ALLOW) {
            denials.push(rule.clone());
            if rule.args.is_empty() {
                break;
            }
        }
        denials
    }

    /// What comes after the denials of a call that the built-in profile allows.
    fn allow(&self, name: &str, own: &Rule, given: &mut Vec<Rule>) -> Result<(), Refusal> {
        let rules = self.rules.get(name).map(Vec::as_slice).unwrap_or_default();
        let allows: Vec<&Rule> = rules.iter().filter(|rule| rule.action == ALLOW).collect();
        if self.default == ALLOW || allows.iter().any(|rule| rule.args.is_empty()) {
            given.push(own.clone());
            return Ok(());
        }
        for allow in allows {
            let Some(args) = both(&allow.args, &own.args) else {
                return Err(Refusal::unenforceable(
                    "seccomp",
                    format!("linux.seccomp: the conditions for {name:?}"),
                    "gVisor cannot check them together with those of the built-in profile",
                ));
            };
            given.push(Rule {
                action: ALLOW,
                args,
            });
        }
        if self.default != ERRNO {
            given.push(Rule::always(self.default));
        }
        Ok(())
    }

    /// Tells of the denials that are none, as there is no such call. ENOSYS is what it answers in any case.
    fn tell_missing(&self, calls: &Calls, report: &mut Report) {
        let known: BTreeSet<&str> = calls.names().collect();
        let is_changed = |name: &str| self.denials(name).iter().any(|rule| rule.action != TRACE);
        let names = self.rules.keys().map(String::as_str);
        let missing: Vec<&str> = names
            .filter(|name| !known.contains(name) && is_changed(name))
            .collect();
        if let Some(first) = missing.get(..missing.len().min(NAMES_MAX))
            && !first.is_empty()
        {
            let more = if first.len() < missing.len() {
                ", …"
            } else {
                ""
            };
            let asked = format!(
                "denials of {} calls that gVisor lacks: {}{more}",
                missing.len(),
                first.join(", ")
            );
            report.note("seccomp", asked, "ENOSYS", "");
        }
    }
}

/// The conjunction of two lists of conditions, if runsc can express it: conditions on one argument are alternatives.
fn both(one: &[Value], other: &[Value]) -> Option<Vec<Value>> {
    let index = |condition: &Value| condition.get("index").and_then(Value::as_u64);
    let mut all = one.to_vec();
    for condition in other {
        if all.contains(condition) {
            continue;
        }
        if all.iter().any(|known| index(known) == index(condition)) {
            return None;
        }
        all.push(condition.clone());
    }
    Some(all)
}

fn conditions(number: usize, entry: &Value) -> Result<Vec<Value>, Refusal> {
    let mut conditions = Vec::new();
    let mut indices = Vec::new();
    for arg in entry
        .get("args")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let field = format!("linux.seccomp.syscalls[{number}].args");
        let index = arg.get("index").and_then(Value::as_u64).unwrap_or(u64::MAX);
        if index > 5 {
            return Err(Refusal::invalid(field, "index must be 0 to 5"));
        }
        if indices.contains(&index) {
            let what = format!("{field}: two conditions on argument {index}");
            return Err(Refusal::unenforceable(
                "seccomp",
                what,
                "runsc takes either of them for enough",
            ));
        }
        indices.push(index);
        conditions.push(json!({
            "index": index,
            "value": arg.get("value").and_then(Value::as_u64).unwrap_or(0),
            "valueTwo": arg.get("valueTwo").and_then(Value::as_u64).unwrap_or(0),
            "op": arg.get("op").and_then(Value::as_str).unwrap_or_default(),
        }));
    }
    Ok(conditions)
}

#[cfg(test)]
mod tests;
