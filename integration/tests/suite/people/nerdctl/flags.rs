//! What `nerdctl run`'s flags ask for beyond the policy: refused in words that a person understands, or clamped.

use std::fs;

use containerd_client::tonic::Code;
use integration::bed::Bed;
use integration::cases;
use integration::runtime::Needs;
use serde_json::{Value, json};

use super::request::Store;

cases! {
    Needs::Bulkhead => [
        flags_that_share_the_host_are_refused_in_words,
        flags_that_ask_for_more_are_clamped,
        a_tmpfs_has_the_size_that_fits_and_no_programs,
        a_volume_is_bound_with_the_mode_that_it_asks_for,
        a_seccomp_profile_narrows_and_never_widens,
    ],
}

fn drop_namespace(spec: &mut Value, kind: &str) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    namespaces
        .expect("a list")
        .retain(|one| one["type"] != kind);
}

fn join_namespace(spec: &mut Value, kind: &str) {
    drop_namespace(spec, kind);
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    let joined = json!({ "type": kind, "path": format!("/proc/1/ns/{kind}") });
    namespaces.expect("a list").push(joined);
}

fn bind(spec: &mut Value, source: &str, options: &[&str]) {
    // `-v` has the type "none" (`pkg/mountutil/mountutil.go`).
    let mount =
        json!({ "destination": "/mnt", "type": "none", "source": source, "options": options });
    spec["mounts"].as_array_mut().expect("mounts").push(mount);
}

fn device(spec: &mut Value, path: &str, major: i64, minor: i64) {
    let device =
        json!({ "path": path, "type": "c", "major": major, "minor": minor, "fileMode": 438 });
    let devices = &mut spec["linux"]["devices"];
    if devices.is_null() {
        *devices = json!([]);
    }
    devices.as_array_mut().expect("devices").push(device);
}

type Change = fn(&mut Value);

/// A flag, what nerdctl makes of it (`run_linux.go`, `run_security_linux.go`, `run_cgroup_linux.go`, `pkg/ipcutil`), and words
/// of the answer.
const REFUSED: [(&str, Change, &str); 10] = [
    (
        "--net host",
        |spec| drop_namespace(spec, "network"),
        "the host's network namespace",
    ),
    (
        "--pid host",
        |spec| drop_namespace(spec, "pid"),
        "the host's pid namespace",
    ),
    (
        "--ipc host",
        |spec| drop_namespace(spec, "ipc"),
        "the host's ipc namespace",
    ),
    (
        "--pid container:x",
        |spec| join_namespace(spec, "pid"),
        "joining another container",
    ),
    (
        "--ipc container:x",
        |spec| join_namespace(spec, "ipc"),
        "joining another container",
    ),
    (
        "--device /dev/fuse",
        |spec| device(spec, "/dev/fuse", 10, 229),
        "/dev/fuse: a sandbox has no device of the host",
    ),
    (
        "--privileged",
        // `WithAllDevices` and `WithAllCapabilities` among others.
        |spec| {
            for (path, major, minor) in [
                ("/dev/autofs", 10, 235),
                ("/dev/fuse", 10, 229),
                ("/dev/mem", 1, 1),
            ] {
                device(spec, path, major, minor);
            }
            for unset in ["maskedPaths", "readonlyPaths", "seccomp"] {
                spec["linux"][unset] = Value::Null;
            }
        },
        "/dev/autofs and 2 more, as of a privileged container: a sandbox has no device of the host",
    ),
    (
        "-v /:/mnt",
        |spec| bind(spec, "/", &["rbind", "rprivate"]),
        "/ of the host is never given",
    ),
    (
        "-v SOCKET:/mnt",
        |spec| bind(spec, "/run/b/c.sock", &["rbind", "rprivate"]),
        "gives control of the node",
    ),
    (
        "--sysctl kernel.msgmax=1",
        |spec| spec["linux"]["sysctl"]["kernel.msgmax"] = "1".into(),
        "kernel.msgmax: runsc sets fs.nr_open and",
    ),
];

async fn flags_that_share_the_host_are_refused_in_words(bed: &Bed) {
    let store = Store::new(bed);
    for (flag, change, words) in REFUSED {
        let run = store.run(bed, &["true"]).with(change);
        let error = run.create().await.expect_err(flag);
        assert_eq!(error.code(), Code::PermissionDenied, "{flag}: {error}");
        assert!(error.message().contains(words), "{flag}: {error}");
    }
    assert_eq!(store.read("hooks"), "", "nothing has run for them");
}

/// A flag, what nerdctl makes of it, what to look with, and what is seen.
const CLAMPED: [(&str, Change, &str, &str); 11] = [
    (
        "--cap-add SYS_ADMIN",
        |spec| {
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN", "CAP_CHOWN"]);
            }
        },
        "grep CapEff /proc/self/status",
        "CapEff:\t0000000000000000\n",
    ),
    (
        "(no --security-opt no-new-privileges)",
        |_| {},
        "grep NoNew /proc/self/status",
        "NoNewPrivs:\t1\n",
    ),
    (
        "(no --read-only)",
        |_| {},
        "touch /new 2>&1",
        "touch: /new: Read-only file system\n",
    ),
    (
        "--read-only",
        |spec| spec["root"]["readonly"] = true.into(),
        "touch /new 2>&1; touch /tmp/new && echo scratch",
        "touch: /new: Read-only file system\nscratch\n",
    ),
    (
        "--net none",
        |spec| spec["annotations"]["nerdctl/networks"] = "[\"none\"]".into(),
        "tail -n +3 /proc/net/dev | cut -d: -f1",
        "    lo\n",
    ),
    (
        "--security-opt seccomp=unconfined",
        |spec| spec["linux"]["seccomp"] = Value::Null,
        "grep Seccomp: /proc/self/status; unshare -U true 2>/dev/null || echo refused",
        "Seccomp:\t2\nrefused\n",
    ),
    (
        "--security-opt systempaths=unconfined",
        |spec| {
            spec["linux"]["maskedPaths"] = Value::Null;
            spec["linux"]["readonlyPaths"] = Value::Null;
        },
        "ls -d /proc/kcore /proc/keys; ls -A /sys/firmware",
        "",
    ),
    (
        "--ulimit nofile=100000",
        |spec| {
            let limit = json!([{ "type": "RLIMIT_NOFILE", "hard": 100_000, "soft": 100_000 }]);
            spec["process"]["rlimits"] = limit;
        },
        "ulimit -n",
        "1024\n",
    ),
    (
        "--pids-limit 20000",
        |spec| spec["linux"]["resources"]["pids"] = json!({ "limit": 20_000 }),
        "ulimit -u",
        "256\n",
    ),
    (
        "--pids-limit 20",
        |spec| spec["linux"]["resources"]["pids"] = json!({ "limit": 20 }),
        "ulimit -u",
        "20\n",
    ),
    (
        "--oom-kill-disable -m 64m",
        |spec| {
            spec["linux"]["resources"]["memory"] =
                json!({ "limit": 67_108_864, "swap": 134_217_728, "disableOOMKiller": true });
        },
        "free -m | awk '/^Mem/ { print $2 } /^Swap/ { print $2 }'",
        "64\n0\n",
    ),
];

async fn flags_that_ask_for_more_are_clamped(bed: &Bed) {
    let store = Store::new(bed);
    for (flag, change, script, seen) in CLAMPED {
        let run = store.run(bed, &["sh", "-c", script]).with(change);
        let done = run.run().await.expect(flag).finish().await;
        assert_eq!(done.stdout, seen, "{flag}: {done:?}");
    }
}

/// `--tmpfs /scratch:size=1g`: `ProcessFlagTmpfs` in `pkg/mountutil/mountutil_linux.go`.
async fn a_tmpfs_has_the_size_that_fits_and_no_programs(bed: &Bed) {
    let store = Store::new(bed);
    let script =
        "df -k /scratch | awk 'END { print $2 }'; cp /bin/busybox /scratch/true && /scratch/true";
    for (size, blocks) in [("size=1g", 65_536), ("size=8m", 8_192)] {
        let run = store.run(bed, &["sh", "-c", script]).with(|spec| {
            let options = json!(["noexec", "nosuid", "nodev", size]);
            let mount = json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": options });
            spec["mounts"].as_array_mut().expect("mounts").push(mount);
        });
        let done = run.run().await.expect("run").finish().await;
        assert_eq!(done.stdout, format!("{blocks}\n"), "{done:?}");
        assert_eq!(done.status, 126, "not executable: {done:?}");
    }
}

async fn a_volume_is_bound_with_the_mode_that_it_asks_for(bed: &Bed) {
    let store = Store::new(bed);
    let folder = store.path("volume");
    fs::create_dir_all(&folder).expect("make a folder");
    fs::write(folder.join("in"), "data\n").expect("write");
    for (mode, fits) in [("rw", true), ("ro", false)] {
        let script = format!("cat /mnt/in; echo made >/mnt/{mode}");
        let run = store.run(bed, &["sh", "-c", &script]).with(|spec| {
            bind(
                spec,
                &folder.display().to_string(),
                &[mode, "rprivate", "rbind"],
            );
        });
        let done = run.run().await.expect("run").finish().await;
        assert_eq!(
            (done.stdout.as_str(), done.status == 0),
            ("data\n", fits),
            "{mode}: {done:?}"
        );
        assert_eq!(folder.join(mode).exists(), fits, "{mode}");
    }
}

/// `--security-opt seccomp=FILE`: the file as it is (`seccomp.WithProfile` of containerd).
async fn a_seccomp_profile_narrows_and_never_widens(bed: &Bed) {
    let store = Store::new(bed);
    let script = "mkdir /tmp/x; echo $?; unshare -n true; echo $?; echo fine >/tmp/y && cat /tmp/y";
    for (profile, mkdir) in [
        (json!({ "defaultAction": "SCMP_ACT_ALLOW" }), 0),
        (
            json!({ "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }] }),
            1,
        ),
    ] {
        let run = store.run(bed, &["sh", "-c", script]);
        let run = run.with(|spec| spec["linux"]["seccomp"] = profile);
        let done = run.run().await.expect("run").finish().await;
        assert_eq!(done.stdout, format!("{mkdir}\n1\nfine\n"), "{done:?}");
    }
    let run = store.run(bed, &["true"]);
    let run =
        run.with(|spec| spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_NOTIFY" }));
    let error = run.create().await.expect_err("not to be had");
    assert!(error.message().contains("SCMP_ACT_NOTIFY"), "{error}");
}
