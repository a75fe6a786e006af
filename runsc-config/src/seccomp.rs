//! System calls a program may make of gVisor.
//!
//! The built-in profile is an allow list of what gVisor implements, less what only an escape needs. A caller's profile
//! narrows it: a call passes only if both allow it. The profile is written in the terms runsc understands
//! (`runsc/specutils/seccomp/seccomp.go`): rules are tried in order and the first that matches decides; every errno
//! becomes EPERM; several conditions on one argument are alternatives; an argument index above 5 kills the sandbox.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::features::Features;
use crate::policy::Policy;
use crate::report::{Refusal, Report};

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
/// Nothing traces a guest, so this is ENOSYS there: the one way to say "not implemented" to glibc.
const TRACE: &str = "SCMP_ACT_TRACE";
const ENOSYS: u64 = 38;
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
        Self {
            action: ALLOW,
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
        json!({ "index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" });
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
    let mut rules: Vec<(&str, Rule)> = Vec::new();
    for (name, own) in &built_in(granted) {
        match &caller {
            Some(profile) => rules.extend(
                profile
                    .narrow(name, own)?
                    .into_iter()
                    .map(|rule| (*name, rule)),
            ),
            None => rules.push((name, own.clone())),
        }
    }
    Ok(Some(json!({
        "defaultAction": ERRNO,
        "architectures": [native_architecture()],
        "syscalls": grouped(rules),
    })))
}

/// Calls with the same rule share an entry; those with conditions keep one each, in their order.
fn grouped(rules: Vec<(&str, Rule)>) -> Vec<Value> {
    let entry = |names: &[&str], rule: &Rule| {
        if rule.args.is_empty() {
            json!({ "names": names, "action": rule.action })
        } else {
            json!({ "names": names, "action": rule.action, "args": rule.args })
        }
    };
    let (plain, conditional): (Vec<_>, Vec<_>) = rules
        .into_iter()
        .partition(|(_, rule)| *rule == Rule::allow());
    let mut entries: Vec<Value> = conditional
        .iter()
        .map(|(name, rule)| entry(&[name], rule))
        .collect();
    let names: Vec<&str> = plain.iter().map(|(name, _)| *name).collect();
    if !names.is_empty() {
        entries.push(entry(&names, &Rule::allow()));
    }
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
    allows_by_default: bool,
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
        let allows_by_default = action(profile, "defaultAction")? == ALLOW;
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
        for rule in rules.values().flatten() {
            if !features.has_action(rule.action) && features.is_current() {
                let what = format!("linux.seccomp: action {}", rule.action);
                return Err(refused(what, "this runsc does not have it"));
            }
        }
        Ok(Self {
            allows_by_default,
            rules,
        })
    }

    /// The rules for one call that the built-in profile has a rule for.
    fn narrow(&self, name: &str, own: &Rule) -> Result<Vec<Rule>, Refusal> {
        if own.action != ALLOW {
            return Ok(vec![own.clone()]);
        }
        let rules = self.rules.get(name).map(Vec::as_slice).unwrap_or_default();
        if let Some(rule) = rules
            .iter()
            .find(|rule| rule.action != ALLOW && rule.args.is_empty())
        {
            // Told apart from a denial by default: the program may rely on ENOSYS.
            return Ok(if rule.action == ERRNO {
                Vec::new()
            } else {
                vec![rule.clone()]
            });
        }
        let denials: Vec<Rule> = rules
            .iter()
            .filter(|rule| rule.action != ALLOW)
            .cloned()
            .collect();
        let allows: Vec<&Rule> = rules.iter().filter(|rule| rule.action == ALLOW).collect();
        let allowed_always =
            self.allows_by_default || allows.iter().any(|rule| rule.args.is_empty());
        // Denials come first: whatever order the caller had, the narrower reading of its rules counts.
        let mut given = denials;
        if allowed_always {
            given.push(own.clone());
            return Ok(given);
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
        if given.iter().all(|rule| rule.action == ERRNO) {
            given.clear();
        }
        Ok(given)
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
