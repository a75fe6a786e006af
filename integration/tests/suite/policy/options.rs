//! Where the policy comes from, and what its keys for runsc and for the log do.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::tonic::{Code, Status};
use integration::bed::Bed;
use integration::cases;
use integration::container::Builder;
use integration::policy::{self, NodePolicy};
use integration::processes::{self, Role};
use integration::runtime::Needs;
use integration::wrapper::Wrapper;

cases! {
    Needs::Bulkhead => [
        a_body_goes_before_a_path_before_the_default_file,
        sources_are_never_merged,
        a_config_path_that_is_missing_is_named,
        a_config_path_that_is_no_file_is_refused,
        a_policy_that_does_not_parse_is_named_with_file_line_and_key,
        a_value_out_of_range_is_named_with_file_line_and_key,
        a_config_body_that_does_not_parse_is_named,
        a_policy_file_that_others_may_write_is_refused,
        a_policy_file_of_another_owner_is_refused,
        a_policy_file_in_a_folder_that_others_may_write_is_refused,
        the_path_the_root_and_the_platform_of_runsc_are_followed,
        a_runsc_that_is_missing_is_named_with_its_key,
        the_log_goes_to_its_folder_with_its_level,
        what_runsc_logs_goes_there_as_well,
        a_log_folder_that_cannot_be_used_fails_create,
        a_folder_of_the_policy_that_is_there_keeps_its_mode,
        a_folder_of_the_policy_that_others_can_write_fails_create,
        options_of_runcs_are_taken_and_what_is_not_followed_is_logged,
        the_shim_goes_into_the_cgroup_that_runcs_options_name,
        what_runcs_options_ask_of_the_policys_own_is_refused_by_name,
    ],
}

/// `containerd.runc.v1.Options` (`api/types/runc/options/oci.proto` in containerd), as far as the tests need it.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    #[prost(string, tag = "3")]
    shim_cgroup: String,
    #[prost(uint32, tag = "4")]
    io_uid: u32,
    #[prost(string, tag = "6")]
    binary_name: String,
    #[prost(string, tag = "7")]
    root: String,
    #[prost(bool, tag = "9")]
    systemd_cgroup: bool,
}

fn with_runcs<'a>(builder: Builder<'a>, options: &RuncOptions) -> Builder<'a> {
    let encoded = prost::Message::encode_to_vec(options);
    builder.options("containerd.runc.v1.Options", encoded)
}

async fn options_of_runcs_are_taken_and_what_is_not_followed_is_logged(bed: &Bed) {
    let folder = bed.folder.join(bed.id("log"));
    let _default = NodePolicy::set(&format!("[log]\nfolder = {folder:?}\n"));
    let options = RuncOptions {
        io_uid: 7,
        systemd_cgroup: true,
        ..RuncOptions::default()
    };
    let container = with_runcs(bed.shell("echo ran"), &options).run().await;
    let container = container.expect("run");
    let log = folder.join(format!("suite--{}.log", container.id));
    assert_eq!(container.finish().await.stdout, "ran\n");
    let text = fs::read_to_string(&log).expect("read the log");
    for said in ["IoUid 7: not followed", "SystemdCgroup true: not followed"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("NoPivotRoot"), "it was not set: {text}");
}

async fn the_shim_goes_into_the_cgroup_that_runcs_options_name(bed: &Bed) {
    let name = bed.id("shims");
    let mount = std::path::Path::new("/sys/fs/cgroup");
    let hierarchies = if crate::figures::limits::is_v2() {
        vec![mount.to_owned()]
    } else {
        vec![mount.join("memory"), mount.join("pids")]
    };
    let folders: Vec<PathBuf> = hierarchies.iter().map(|at| at.join(&name)).collect();
    folders
        .iter()
        .for_each(|folder| fs::create_dir(folder).expect("make a cgroup"));
    let asked = |path: String| RuncOptions {
        shim_cgroup: path,
        ..RuncOptions::default()
    };
    let builder = with_runcs(
        bed.container(&["sleep", "1000"]),
        &asked(format!("/{name}")),
    );
    let container = builder.run().await.expect("run");
    let shims = processes::of(Role::Shim, &container.id);
    let [shim] = shims.as_slice() else {
        panic!("one shim: {shims:?}")
    };
    for folder in &folders {
        let procs = fs::read_to_string(folder.join("cgroup.procs")).expect("read");
        let is_listed = |pid: i32| procs.lines().any(|line| line == pid.to_string());
        assert!(is_listed(shim.pid), "{}: {procs}", folder.display());
        let sandbox = i32::try_from(container.pid).expect("a pid");
        assert!(!is_listed(sandbox), "it has its own: {procs}");
    }
    container.remove().await;
    // The shim is gone a moment after its last container.
    for folder in &folders {
        let limit = Duration::from_secs(10);
        processes::eventually("the shim has left its cgroup", limit, || {
            fs::remove_dir(folder).is_ok()
        })
        .await;
    }
    for (path, says) in [
        (format!("/{name}"), "ShimCgroup"),
        ("relative".to_owned(), "absolute"),
        ("/../up".to_owned(), "/../up"),
    ] {
        let builder = with_runcs(bed.container(&["true"]), &asked(path));
        told(builder, &["ShimCgroup", says]).await;
    }
}

async fn what_runcs_options_ask_of_the_policys_own_is_refused_by_name(bed: &Bed) {
    for (options, says) in [
        (
            RuncOptions {
                binary_name: "runc-fp".into(),
                ..RuncOptions::default()
            },
            ["BinaryName", "\"runc-fp\"", "runsc.path"],
        ),
        (
            RuncOptions {
                root: "/run/other".into(),
                ..RuncOptions::default()
            },
            ["Root", "\"/run/other\"", "runsc.root"],
        ),
    ] {
        let builder = with_runcs(bed.container(&["true"]), &options);
        let error = builder.create().await.map(drop).expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        for said in says {
            assert!(error.message().contains(said), "{said}: {error}");
        }
    }
}

/// A policy file of the test's own, in a folder of its own.
fn file(bed: &Bed, text: &str) -> PathBuf {
    let folder = bed.folder.join(bed.id("policy"));
    fs::create_dir(&folder).expect("make a folder");
    let path = folder.join("policy.toml");
    fs::write(&path, text).expect("write a policy");
    path
}

fn under<'a>(builder: Builder<'a>, path: &std::path::Path) -> Builder<'a> {
    builder.policy(&path.display().to_string(), "")
}

/// What a container under a policy file that cannot be used is told.
async fn refused(bed: &Bed, path: &std::path::Path, says: &[&str]) {
    told(under(bed.container(&["true"]), path), says).await;
}

async fn told(builder: Builder<'_>, says: &[&str]) {
    let error: Status = builder.create().await.map(drop).expect_err("refused");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    for text in says {
        assert!(error.message().contains(text), "{text}: {error}");
    }
}

async fn open_files(builder: Builder<'_>) -> String {
    let done = builder.run().await.expect("run").finish().await;
    done.stdout.trim().to_owned()
}

async fn a_body_goes_before_a_path_before_the_default_file(bed: &Bed) {
    let _default = NodePolicy::set("limits.open_files = 333");
    let path = file(bed, "limits.open_files = 222");
    let path = path.display().to_string();
    let shell = || bed.shell("ulimit -n");
    assert_eq!(open_files(shell()).await, "333");
    assert_eq!(open_files(shell().policy(&path, "")).await, "222");
    let body = "limits.open_files = 111";
    assert_eq!(open_files(shell().policy(&path, body)).await, "111");
}

async fn sources_are_never_merged(bed: &Bed) {
    let _default = NodePolicy::set("limits.open_files = 333");
    let path = file(bed, "limits.pids = 100");
    assert_eq!(
        open_files(under(bed.shell("ulimit -n"), &path)).await,
        "1024"
    );
}

async fn a_config_path_that_is_missing_is_named(bed: &Bed) {
    // Strictest is what an absent default file means, never an absent named one.
    refused(
        bed,
        "/no/such/policy.toml".as_ref(),
        &["/no/such/policy.toml"],
    )
    .await;
}

async fn a_config_path_that_is_no_file_is_refused(bed: &Bed) {
    refused(bed, "/etc".as_ref(), &["/etc", "not a regular file"]).await;
    refused(bed, "policy.toml".as_ref(), &["policy.toml", "absolute"]).await;
    // Nobody writes to it: whoever waited for that would wait for ever.
    let path = file(bed, "").with_extension("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    refused(bed, &path, &["policy.fifo", "not a regular file"]).await;
}

async fn a_policy_that_does_not_parse_is_named_with_file_line_and_key(bed: &Bed) {
    for (text, key) in [
        ("\n[limits]\npidz = 3\n", "pidz"),
        ("\n\nnetwork = \"host\"\n", "host"),
        ("\n\nnetwork = \n", "network"),
        ("\n\n[limits\n", "line 3"),
    ] {
        let path = file(bed, text);
        let name = path.display().to_string();
        refused(bed, &path, &[&name, "line 3", key]).await;
    }
}

async fn a_value_out_of_range_is_named_with_file_line_and_key(bed: &Bed) {
    let path = file(bed, "# Why.\n[limits]\npids = 0\n");
    let name = path.display().to_string();
    refused(bed, &path, &[&name, "line 3", "limits.pids = 0", "between"]).await;
}

async fn a_config_body_that_does_not_parse_is_named(bed: &Bed) {
    let builder = bed.container(&["true"]).policy("", "\nno_such_key = 1\n");
    told(builder, &["config_body", "line 2", "no_such_key"]).await;
}

async fn a_policy_file_that_others_may_write_is_refused(bed: &Bed) {
    let path = file(bed, "");
    for mode in [0o666, 0o664, 0o646] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        let name = path.display().to_string();
        refused(bed, &path, &[&name, "only root may write"]).await;
    }
    let _default = NodePolicy::set("");
    fs::set_permissions(policy::PATH, fs::Permissions::from_mode(0o666)).expect("chmod");
    let builder = bed.container(&["true"]);
    told(builder, &[policy::PATH, "only root may write"]).await;
}

async fn a_policy_file_of_another_owner_is_refused(bed: &Bed) {
    let path = file(bed, "");
    chown(&path, Some(1000), None).expect("chown");
    refused(bed, &path, &["uid 1000", "must belong to root"]).await;
}

async fn a_policy_file_in_a_folder_that_others_may_write_is_refused(bed: &Bed) {
    let path = file(bed, "");
    let folder = path.parent().expect("a folder");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("chmod");
    let name = folder.display().to_string();
    refused(bed, &path, &[&name, "only root may write"]).await;
}

async fn the_path_the_root_and_the_platform_of_runsc_are_followed(bed: &Bed) {
    let folder = bed.folder.join(bed.id("runsc"));
    fs::create_dir(&folder).expect("make a folder");
    let (path, root) = (folder.join("another-runsc"), folder.join("root"));
    symlink(bed.runsc.as_ref().expect("runsc"), &path).expect("link runsc");
    let policy = format!("[runsc]\npath = {path:?}\nroot = {root:?}\nplatform = \"ptrace\"\n");
    let builder = bed.container(&["sleep", "1000"]).policy("", &policy);
    let container = builder.run().await.expect("run");
    let [sandbox] = &processes::of(Role::Sandbox, &container.id)[..] else {
        panic!("one sandbox");
    };
    for text in ["--platform=ptrace", &format!("--root={}/", root.display())] {
        assert!(sandbox.command.contains(text), "{text}: {sandbox:?}");
    }
    assert_eq!(container.exec("still", &["true"]).finish().await.status, 0);
    container.remove().await;
    let left = fs::read_dir(&root).expect("read the root").flatten();
    let folders: Vec<_> = left.filter(|entry| entry.path().is_dir()).collect();
    assert!(folders.is_empty(), "{folders:?} stay in the root");
}

async fn a_runsc_that_is_missing_is_named_with_its_key(bed: &Bed) {
    let builder = bed.container(&["true"]);
    let builder = builder.policy("", "runsc.path = \"/no/such/runsc\"");
    told(builder, &["/no/such/runsc", "runsc.path"]).await;
}

async fn the_log_goes_to_its_folder_with_its_level(bed: &Bed) {
    let folder = bed.folder.join(bed.id("log"));
    for (level, expected) in [("debug", "DEBUG"), ("info", "policy:"), ("error", "")] {
        let policy = format!("[log]\nlevel = {level:?}\nfolder = {folder:?}\n");
        let container = bed.container(&["true"]).policy("", &policy);
        let container = container.run().await.expect("run");
        let name = format!("suite--{}.log", container.id);
        container.finish().await;
        let path = folder.join(name);
        let text = fs::read_to_string(&path).expect("read the log");
        assert!(text.contains(expected), "{level}: {text}");
        assert_eq!(text.contains("INFO"), level != "error", "{text}");
        let mode = fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

async fn what_runsc_logs_goes_there_as_well(bed: &Bed) {
    let folder = bed.folder.join(bed.id("log"));
    // The sandbox holds the log open by then: the first that closes it would else be its end.
    let fault = "\"$real\" \"$@\"; code=$?; log 'the moon is full'; exit $code";
    let _wrapper = Wrapper::at(bed, "create", fault);
    let policy = format!("[log]\nfolder = {folder:?}\n");
    let container = bed.container(&["true"]).policy("", &policy);
    let container = container.run().await.expect("run");
    let path = folder.join(format!("suite--{}.log", container.id));
    container.finish().await;
    let text = fs::read_to_string(&path).expect("read the log");
    assert!(text.contains("runsc: the moon is full"), "{text}");
}

async fn a_log_folder_that_cannot_be_used_fails_create(bed: &Bed) {
    let builder = bed.container(&["true"]);
    let builder = builder.policy("", "log.folder = \"/etc/passwd/x\"");
    told(builder, &["log.folder", "/etc/passwd/x"]).await;
}

/// A `log.folder` of /var/log is the node's own, with whatever reads it.
async fn a_folder_of_the_policy_that_is_there_keeps_its_mode(bed: &Bed) {
    let folder = bed.folder.join(bed.id("there"));
    fs::create_dir(&folder).expect("make a folder");
    let mode_of = || fs::metadata(&folder).expect("stat").permissions().mode() & 0o7777;
    for policy in [
        format!("log.folder = {folder:?}"),
        format!("runsc.root = {folder:?}"),
    ] {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("chmod");
        let container = bed.container(&["true"]).policy("", &policy);
        let container = container.run().await.expect("run");
        container.finish().await;
        assert_eq!(mode_of(), 0o755, "{policy}");
    }
}

async fn a_folder_of_the_policy_that_others_can_write_fails_create(bed: &Bed) {
    let folder = bed.folder.join(bed.id("open"));
    fs::create_dir(&folder).expect("make a folder");
    let mode = |mode| {
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for key in ["log.folder", "runsc.root"] {
        for (place, open) in [("", 0o777), ("below", 0o775)] {
            mode(open);
            let policy = format!("{key} = {:?}", folder.join(place));
            let builder = bed.container(&["true"]).policy("", &policy);
            told(builder, &[key, "only root may write"]).await;
            let left: Vec<_> = fs::read_dir(&folder).expect("list").flatten().collect();
            assert!(left.is_empty(), "{policy}: {left:?} was made there");
        }
        chown(&folder, Some(1000), None).expect("chown");
        mode(0o755);
        let policy = format!("{key} = {folder:?}");
        let builder = bed.container(&["true"]).policy("", &policy);
        told(builder, &[key, "belongs to uid 1000"]).await;
        chown(&folder, Some(0), None).expect("chown");
    }
}
