//! Namespaces for the testbed. The test program starts itself again inside of them: the first of the new pid namespace
//! collects orphans, the second runs the tests. When the program ends, however it ends, the kernel ends everything that
//! the tests started, mounts and network go with their namespaces, and the outermost process removes cgroups and files.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::ground::cgroups;

const STAGE: &str = "BULKHEAD_SUITE_STAGE";
const FOLDER: &str = "BULKHEAD_SUITE_FOLDER";

/// Returns in a process that has the namespaces for itself, with the testbed's folder on disk. Must be called before
/// there is a second thread.
#[must_use]
pub fn enter() -> PathBuf {
    match std::env::var(STAGE).as_deref() {
        Err(_) => std::process::exit(supervise()),
        Ok("init") => std::process::exit(collect_orphans()),
        Ok(_) => std::env::var_os(FOLDER)
            .expect("the folder is given by the first stage")
            .into(),
    }
}

/// The same program with the same arguments, for the next stage.
fn next_stage(stage: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("find the test program"));
    command.args(std::env::args_os().skip(1)).env(STAGE, stage);
    command
}

#[allow(
    clippy::zombie_processes,
    reason = "waitpid(2) waits, for this and for others"
)]
fn spawn(mut command: Command) -> Pid {
    let child = command.spawn().expect("start the next stage");
    Pid::from_raw(i32::try_from(child.id()).expect("a pid"))
}

extern "C" fn interrupt(_: nix::libc::c_int) {}

fn supervise() -> i32 {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("error: the tests need root: they make namespaces, mounts and cgroups");
        return 2;
    }
    let name = format!("bulkhead-suite-{}", std::process::id());
    let folder = std::env::temp_dir().join(&name);
    fs::create_dir_all(&folder).expect("make the testbed's folder");
    let groups = cgroups::make(&name).expect("make the testbed's cgroups");
    let code = run_isolated(&folder, &groups);
    for group in &groups {
        if let Err(error) = cgroups::remove(group) {
            eprintln!("note: {} stays: {error}", group.display());
        }
    }
    if let Err(error) = fs::remove_dir_all(&folder) {
        eprintln!("note: {} stays: {error}", folder.display());
    }
    code
}

fn run_isolated(folder: &Path, groups: &[PathBuf]) -> i32 {
    // Without SA_RESTART a wait is interrupted, and what has been made can be removed.
    let action = SigAction::new(
        SigHandler::Handler(interrupt),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing.
        unsafe { sigaction(signal, &action) }.expect("handle signals");
    }
    unshare(CloneFlags::CLONE_NEWPID).expect("make a pid namespace");
    let groups: Vec<PathBuf> = groups
        .iter()
        .map(|group| group.join("cgroup.procs"))
        .collect();
    let mut command = next_stage("init");
    command.env(FOLDER, folder);
    // SAFETY: the parent has one thread, so the child may allocate between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for group in &groups {
                fs::write(group, "0")?;
            }
            unshare(
                CloneFlags::CLONE_NEWCGROUP
                    | CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWNET
                    | CloneFlags::CLONE_NEWIPC
                    | CloneFlags::CLONE_NEWUTS,
            )?;
            die_with_parent()
        });
    }
    let pid = spawn(command);
    loop {
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(..)) => return 1,
            Ok(_) => {}
            Err(_) => drop(kill(pid, Signal::SIGKILL)),
        }
    }
}

fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one plain argument.
    let result = unsafe { nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The first process of the pid namespace.
fn collect_orphans() -> i32 {
    furnish().expect("prepare the namespaces");
    let tests = spawn(next_stage("tests"));
    loop {
        match waitpid(Pid::from_raw(-1), None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == tests => return code,
            Ok(WaitStatus::Signaled(pid, ..)) if pid == tests => return 1,
            _ => {}
        }
    }
}

/// Makes the machine look empty: nothing in /run, no policy file, one loopback device, cgroups of its own.
fn furnish() -> io::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    cgroups::remount()?;
    mount(
        Some("run"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )?;
    for folder in ["/etc", "/var/lib", "/var/log"] {
        cover(folder)?;
    }
    let _ = fs::remove_dir_all("/etc/bulkhead");
    if let Ok(policy) = std::env::var("BULKHEAD_TEST_POLICY") {
        fs::create_dir("/etc/bulkhead")?;
        fs::write("/etc/bulkhead/config.toml", policy)?;
    }
    loopback_up()
}

/// Puts a layer over a folder that takes what is written there.
fn cover(folder: &str) -> io::Result<()> {
    let layer = format!("/run/etc{folder}");
    for part in ["upper", "work"] {
        fs::create_dir_all(Path::new(&layer).join(part))?;
    }
    let layers = format!("lowerdir={folder},upperdir={layer}/upper,workdir={layer}/work");
    let kind = Some("overlay");
    mount(kind, folder, kind, MsFlags::empty(), Some(layers.as_str()))?;
    Ok(())
}

/// Switches on the loopback device of this thread's network namespace.
///
/// # Errors
/// The kernel's.
pub fn loopback_up() -> io::Result<()> {
    use nix::libc::{IFF_UP, SIOCSIFFLAGS, c_char, ifreq, ioctl};
    use std::os::fd::AsRawFd as _;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: ifreq is plain data for which zero is valid.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(IFF_UP).expect("a flag");
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let result = unsafe { ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the program ended with, as a shell says it.
#[must_use]
pub fn code_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
