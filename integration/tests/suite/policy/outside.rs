//! What the host sees of a sandbox: every thread of its processes, their namespaces, what they hold open. Looked at after an
//! exec that asked for everything, since that is when something new could have come in.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use integration::bed::Bed;
use integration::container::Container;
use integration::processes::{self, Role};
use integration::runtime::Needs;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use serde_json::json;

use integration::cases;

cases! {
    Needs::Bulkhead => [
        every_thread_of_the_sandbox_is_nobody_and_has_nothing,
        every_thread_of_the_gofer_can_open_files_and_nothing_else,
        the_shim_holds_its_sandboxs_ends_and_nothing_of_containerds,
        masked_paths_show_nothing_and_few_settings_can_be_written,
        a_masked_path_is_empty_and_cannot_be_run_or_written,
    ],
}

/// A container in which an exec has asked for all there is.
async fn container(bed: &Bed) -> Container<'_> {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let all = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN"];
    let exec = container.exec("all", &["sh", "-c", "cat /etc/passwd >/tmp/x"]);
    let exec = exec.with(|process| {
        process["noNewPrivileges"] = false.into();
        for set in ["bounding", "effective", "permitted", "inheritable"] {
            process["capabilities"][set] = json!(all);
        }
    });
    assert_eq!(exec.finish().await.status, 0);
    container
}

/// The values that a line of `status` has in the threads of a process.
fn of_threads(pid: i32, name: &str) -> BTreeSet<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("list the threads");
    let status = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let line = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words: Vec<_> = line.unwrap_or_default().split_whitespace().collect();
        words.join(" ")
    };
    status.map(line).collect()
}

fn assert_threads(pid: i32, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        let seen = of_threads(pid, &format!("{name}:"));
        assert_eq!(
            seen,
            BTreeSet::from([(*value).to_owned()]),
            "{name} of {pid}"
        );
    }
}

/// The namespaces of a process that are those of the tests, which stand for the host.
fn shared_namespaces(pid: i32) -> Vec<&'static str> {
    let link = |pid: &str, kind: &str| {
        fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace")
    };
    ["user", "mnt", "net", "pid", "ipc", "uts"]
        .into_iter()
        .filter(|kind| link(&pid.to_string(), kind) == link("self", kind))
        .collect()
}

/// What a process holds open, but for what only it and its own have: memory, pipes, sockets, events.
fn open_files(pid: i32) -> BTreeSet<String> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("list the descriptors");
    let links = folder.flatten().filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        // A procfs of its own, by which a process of Go looks at itself.
        let is_proc =
            statfs(&entry.path()).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC);
        (!is_proc).then(|| link.display().to_string())
    });
    let own = ["anon_inode:", "pipe:", "socket:", "/memfd:", "/dev/null"];
    links
        .filter(|link| !own.iter().any(|own| link.starts_with(own)))
        .collect()
}

const NOTHING: &str = "0000000000000000";

async fn every_thread_of_the_sandbox_is_nobody_and_has_nothing(bed: &Bed) {
    let container = container(bed).await;
    let sandbox = processes::of(Role::Sandbox, &container.id)[0].pid;
    // And the processes that the guest's code runs in, which have no command line.
    let stubs = processes::all();
    let stubs = stubs.iter().filter(|process| process.command == "(exe)");
    let all: Vec<i32> = stubs.map(|stub| stub.pid).chain([sandbox]).collect();
    assert!(all.len() > 1, "no process of the guest was found");
    for pid in all {
        assert_threads(
            pid,
            &[
                ("Uid", "65534 65534 65534 65534"),
                ("Gid", "65534 65534 65534 65534"),
                ("Groups", ""),
                ("CapInh", NOTHING),
                ("CapPrm", NOTHING),
                ("CapEff", NOTHING),
                ("CapBnd", NOTHING),
                ("CapAmb", NOTHING),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
            ],
        );
        assert_eq!(shared_namespaces(pid), Vec::<&str>::new(), "{pid}");
    }
    for map in ["uid_map", "gid_map"] {
        let map = fs::read_to_string(format!("/proc/{sandbox}/{map}")).expect("read");
        assert_eq!(
            map.split_whitespace().collect::<Vec<_>>(),
            ["65534", "65534", "1"]
        );
    }
    // Files that the gofer has opened for it, in the root of the container; and the log.
    for file in open_files(sandbox) {
        let is_log = file.starts_with("/run/bulkhead/") && file.ends_with("/log-1 (deleted)");
        assert!(
            file.starts_with("/root/") || is_log,
            "the sandbox holds {file}"
        );
    }
    container.remove().await;
}

async fn every_thread_of_the_gofer_can_open_files_and_nothing_else(bed: &Bed) {
    let container = container(bed).await;
    let gofer = processes::of(Role::Gofer, &container.id)[0].pid;
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SYS_CHROOT.
    let files = "000000000004001f";
    assert_threads(
        gofer,
        &[
            ("CapInh", files),
            ("CapPrm", files),
            ("CapEff", files),
            ("CapBnd", files),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ],
    );
    assert_eq!(shared_namespaces(gofer), ["user"]);
    // It sees the root of the container and nothing beside it.
    let root = fs::read_link(format!("/proc/{gofer}/root")).expect("its root");
    assert_eq!(root, Path::new("/root"));
    let bundle = bed.bundle(&container.id);
    for file in open_files(gofer) {
        let known = file.starts_with("/root")
            || file == "/"
            || file.ends_with("/log-1 (deleted)")
            || Path::new(&file) == bundle.join("config.json")
            // Go reads how much CPU it has.
            || file.contains(&format!("{}/cpu.", container.id));
        assert!(known, "the gofer holds {file}");
    }
    container.remove().await;
}

async fn the_shim_holds_its_sandboxs_ends_and_nothing_of_containerds(bed: &Bed) {
    let container = container(bed).await;
    let shim = processes::of(Role::Shim, &container.id)[0].pid;
    // One that has done something aside stays for a second. With one thread nothing else can hold anything.
    let threads = || fs::read_dir(format!("/proc/{shim}/task")).map_or(0, Iterator::count);
    let limit = Duration::from_secs(5);
    processes::eventually("the shim has one thread", limit, || threads() == 1).await;
    // It is root on the node as the containerd that has started it, and has no more than that one.
    let [.., containerd] = bed.known_processes()[..] else {
        panic!("no containerd");
    };
    let containerd = i32::try_from(containerd).expect("a pid");
    for name in [
        "Uid:",
        "Gid:",
        "CapInh:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapAmb:",
        "NoNewPrivs:",
        "Seccomp:",
    ] {
        assert_eq!(
            of_threads(shim, name),
            of_threads(containerd, name),
            "{name}"
        );
    }
    let map = |pid: i32| fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("its uid map");
    assert_eq!(map(shim), map(containerd));
    assert_eq!(
        shared_namespaces(shim).len(),
        6,
        "of the host, as containerd's"
    );
    let bundle = bed.bundle(&container.id).display().to_string();
    for file in open_files(shim) {
        let known = file.starts_with(&bundle)
            || file.starts_with("/run/b/io/")
            || file.starts_with("/run/bulkhead/");
        assert!(known, "the shim holds {file}");
    }
    let environment = fs::read(format!(
        "/proc/{}/environ",
        processes::of(Role::Sandbox, &container.id)[0].pid
    ));
    let environment = environment.expect("its environment");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    for name in ["RUST_LOG", "HOME", "TTRPC_ADDRESS", "PATH"] {
        assert!(!environment.contains(name), "of the sandbox: {environment}");
    }
    container.remove().await;
}

/// What containerd asks to hide (`DefaultLinuxMaskedPaths`), and runsc does not: there is nothing to hide in gVisor's.
const MASKED: &str = "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list \
                      /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap";
/// Settings that root in the sandbox can change: the sandbox's own, and gone with it.
const WRITTEN: [&str; 9] = [
    "/proc/sys/fs/mount-max",
    "/proc/sys/fs/nr_open",
    "/proc/sys/kernel/yama/ptrace_scope",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv4/tcp_recovery",
    "/proc/sys/net/ipv4/tcp_rmem",
    "/proc/sys/net/ipv4/tcp_sack",
    "/proc/sys/net/ipv4/tcp_wmem",
    "/proc/sysrq-trigger",
];

async fn masked_paths_show_nothing_and_few_settings_can_be_written(bed: &Bed) {
    let script = format!(
        "for path in {MASKED}; do [ -z \"$(ls $path 2>/dev/null)\" ] || echo \"shown: $path\"; done\n\
         for file in $(find /proc/sys /proc/irq /proc/bus /proc/fs /proc/sysrq-trigger /sys -type f); do\n\
           cat $file >/tmp/value; cat /tmp/value >$file && echo \"written: $file\"; done 2>/dev/null"
    );
    let done = bed.shell(&script).run().await.expect("run").finish().await;
    let lines: BTreeSet<&str> = done.stdout.lines().collect();
    let known = WRITTEN.map(|path| format!("written: {path}"));
    let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
    assert!(
        lines.is_subset(&known),
        "{:?}",
        lines.difference(&known).collect::<Vec<_>>()
    );
}

/// Below /proc and /sys there is nothing to hide; elsewhere a mount hides it, by the links of the image.
async fn a_masked_path_is_empty_and_cannot_be_run_or_written(bed: &Bed) {
    let folder = bed.folder.join(bed.id("masked"));
    fs::create_dir_all(folder.join("secret")).expect("make a folder");
    for file in ["secret/file", "file", "shown", "program"] {
        fs::write(folder.join(file), "of the host").expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(folder.join(file), mode).expect("chmod");
    }
    let script = "cat /etc/passwd /srv/file /srv/shown; echo; ls /srv/secret; ls /tmp; test -e /nothing && echo made\n\
                  echo x >/srv/file && echo written; touch /srv/secret/x && echo made; umount /srv/secret && echo shown\n\
                  /srv/program || echo refused; cat /srv/file";
    let container = bed.shell(script).with(|spec| {
        let paths = [
            "/etc/passwd",
            "/srv/program",
            "/srv/file",
            "/srv/secret",
            "/srv/secret/file",
            "/nothing/at/all",
            "/tmp/later",
        ];
        spec["linux"]["maskedPaths"] = json!(paths);
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({
            "destination": "/srv", "type": "bind", "source": folder, "options": ["rbind", "rw"],
        }));
    });
    let done = container.run().await.expect("run").finish().await;
    assert_eq!(done.stdout, "of the host\nrefused\n", "{}", done.stderr);
    assert_eq!(
        fs::read_to_string(folder.join("file")).expect("read"),
        "of the host"
    );
}
