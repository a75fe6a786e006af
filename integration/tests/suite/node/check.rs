//! `bulkhead check`: what a node has and lacks.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use integration::bed::{Bed, PATH_FOLDER, is_before_2, tool};
use integration::cases;
use integration::policy::NodePolicy;
use integration::processes::eventually;
use integration::runtime::Needs;
use integration::sidecars::{PREWARMER, SENTRY, Sidecars};
use integration::wrapper::Wrapper;
use serde_json::Value;

cases! {
    Needs::Tool("bulkhead") => [
        this_node_is_found_fit,
        a_policy_that_does_not_parse_is_found,
        a_runsc_that_is_missing_or_anybodys_is_found,
        what_is_beside_runsc_is_found_with_its_faults,
        a_runsc_that_uses_no_sidecars_is_not_judged_by_them,
        a_folder_of_the_policy_that_others_may_write_is_found,
        handlers_of_containerd_are_found_with_their_faults,
        handlers_that_no_pod_would_reach_are_found,
        handlers_in_several_files_are_what_containerd_makes_of_them,
        a_class_without_its_handler_is_found,
        a_containerd_that_would_not_find_the_programs_is_found,
        a_containerd_that_started_before_its_handlers_were_written_is_found,
        two_shims_of_which_one_is_never_run_are_found,
    ],
}

/// Findings: what, state, found.
fn check(args: &[&str], path: &str) -> (bool, Vec<[String; 4]>) {
    let output = Command::new(tool("bulkhead").expect("found before"))
        .env("PATH", path)
        .args(["check", "--json"])
        .args(args)
        .output()
        .expect("run bulkhead");
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = all.as_array().expect("a list").iter();
    let findings = findings.map(|finding| {
        ["what", "state", "found", "fix"]
            .map(|field| finding[field].as_str().expect("text").to_owned())
    });
    (output.status.success(), findings.collect())
}

/// What is not well.
fn faults(args: &[&str]) -> Vec<[String; 4]> {
    let (fit, mut findings) = check(args, PATH_FOLDER);
    findings.retain(|finding| finding[1] != "ok");
    assert_eq!(
        fit,
        findings.iter().all(|finding| finding[1] == "warn"),
        "{findings:?}"
    );
    assert!(
        findings.iter().all(|finding| !finding[3].is_empty()),
        "each fault has its fix: {findings:?}"
    );
    findings
}

fn assert_found(faults: &[[String; 4]], what: &str, state: &str, text: &str) {
    let found = faults
        .iter()
        .any(|fault| fault[0] == what && fault[1] == state && fault[2].contains(text));
    assert!(found, "{what} {state} {text}: {faults:?}");
}

async fn this_node_is_found_fit(bed: &Bed) {
    // The first container makes the state folder.
    bed.container(&["true"])
        .run()
        .await
        .expect("run")
        .finish()
        .await;
    let (fit, findings) = check(&[], PATH_FOLDER);
    assert!(fit, "{findings:?}");
    for what in ["policy", "runsc", "platform", "kernel", "cgroups", "state"] {
        let found = findings.iter().find(|finding| finding[0] == what);
        assert_eq!(found.expect(what)[1], "ok", "{findings:?}");
    }
    // There is no containerd's configuration where it usually is.
    assert_found(&findings, "containerd", "warn", "no handler");
    let _wrapper = Wrapper::at(bed, "help", "echo {}; exit");
    assert_found(&faults(&[]), "runsc", "warn", "allow lists");
}

async fn a_policy_that_does_not_parse_is_found(_: &Bed) {
    let _policy = NodePolicy::set("\nlimits.pidz = 3\n");
    let faults = faults(&[]);
    assert_found(&faults, "policy", "fail", "pidz");
    assert_found(&faults, "policy", "fail", "line 2");
}

async fn what_is_beside_runsc_is_found_with_its_faults(bed: &Bed) {
    let is_faulty = |fault: &[String; 4]| matches!(&*fault[0], "runsc" | "sidecars");
    let fit = |text: &str| {
        let (_, findings) = check(&[], PATH_FOLDER);
        assert!(!faults(&[]).iter().any(is_faulty), "{findings:?}");
        assert_found(&findings, "sidecars", "ok", text);
    };
    fit("no gvisor-bin beside");
    let sidecars = Sidecars::beside_runsc(bed);
    let folder = sidecars.folder.display().to_string();
    fit(&format!("{folder}, of runsc's release"));
    let moved = sidecars.at(".moved");
    for name in [SENTRY, PREWARMER] {
        fs::rename(sidecars.at(name), &moved).expect("move");
        let text = format!("{folder} lacks {name}");
        assert_found(&faults(&[]), "sidecars", "warn", &text);
        fs::rename(&moved, sidecars.at(name)).expect("move back");
    }
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for path in [&sidecars.folder, &sidecars.at(PREWARMER)] {
        chmod(path, 0o777);
        let text = format!("{} has mode 0777", path.display());
        assert_found(&faults(&[]), "runsc", "fail", &text);
        chmod(path, 0o755);
    }
    sidecars.script(
        SENTRY,
        "#!/bin/sh\necho 'runsc version release-20250101.0'\n",
    );
    assert_found(&faults(&[]), "runsc", "fail", "release-20250101.0");
}

async fn a_runsc_that_uses_no_sidecars_is_not_judged_by_them(bed: &Bed) {
    let old = bed.folder.join(bed.id("old"));
    fs::create_dir(&old).expect("make a folder");
    fs::copy(
        tool("old-runsc").expect("old-runsc: make tools"),
        old.join("runsc"),
    )
    .expect("copy");
    let sidecars = Sidecars::beside(&old.join("runsc"));
    let _policy = NodePolicy::set(&format!(
        "allow_old_runsc = true\nrunsc.path = {:?}",
        old.join("runsc")
    ));
    sidecars.script(
        SENTRY,
        "#!/bin/sh\necho 'runsc version release-20250101.0'\n",
    );
    let (_, findings) = check(&[], PATH_FOLDER);
    assert_found(&findings, "sidecars", "ok", "does not use it");
    let container = bed.container(&["true"]).run().await.expect("run");
    assert_eq!(container.finish().await.status, 0);
}

async fn a_runsc_that_is_missing_or_anybodys_is_found(bed: &Bed) {
    let (fit, findings) = check(&[], "/nonexistent");
    assert!(!fit);
    assert_found(&findings, "runsc", "fail", "not in PATH");
    let folder = bed.folder.join(bed.id("open"));
    fs::create_dir(&folder).expect("make a folder");
    let ran = folder.join("ran");
    let script = format!("#!/bin/sh\necho ran >> {}\n", ran.display());
    fs::write(folder.join("runsc"), script).expect("write");
    for (path, mode) in [(folder.join("runsc"), 0o755), (folder.clone(), 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let path = format!("{}:{PATH_FOLDER}", folder.display());
    let (fit, findings) = check(&[], &path);
    assert!(!fit);
    assert_found(&findings, "runsc", "fail", "only root may write");
    // The same for a spec that is explained, and for the runsc of a handler's policy.
    let spec = folder.join("config.json");
    fs::write(&spec, bed.container(&["true"]).spec.to_string()).expect("write");
    let mut explain = Command::new(tool("bulkhead").expect("found before"));
    let explain = explain.env("PATH", &path).arg("explain").arg(&spec);
    let output = explain.output().expect("run bulkhead");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("only root may write"),
        "{said}"
    );
    assert!(!ran.exists(), "a runsc that was found untrusted has run");
    // And nothing is made with it.
    let _policy = NodePolicy::set(&format!("runsc.path = {:?}", folder.join("runsc")));
    let error = bed
        .container(&["true"])
        .create()
        .await
        .expect_err("refused");
    assert!(error.message().contains("only root may write"), "{error:?}");
}

/// As a create judges it; one that others may only look into is fine, as each sandbox in it is root's alone.
async fn a_folder_of_the_policy_that_others_may_write_is_found(bed: &Bed) {
    let folder = bed.folder.join(bed.id("state"));
    fs::create_dir(&folder).expect("make a folder");
    for (what, policy) in [
        ("state", format!("runsc.root = {folder:?}")),
        ("state", format!("runsc.root = {:?}", folder.join("below"))),
        ("log", format!("log.folder = {folder:?}")),
        ("log", format!("log.folder = {:?}", folder.join("below"))),
    ] {
        let _policy = NodePolicy::set(&policy);
        let judged = |mode| {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("chmod");
            let (_, findings) = check(&[], PATH_FOLDER);
            let found = findings.iter().find(|finding| finding[0] == what);
            let [_, state, text, _] = found.expect("the folder");
            format!("{state}: {text}")
        };
        for fine in [0o700, 0o755] {
            assert!(
                judged(fine).starts_with("ok: "),
                "{policy}: {}",
                judged(fine)
            );
        }
        let open = judged(0o777);
        assert!(
            open.starts_with("fail: ") && open.contains("0777"),
            "{policy}: {open}"
        );
    }
}

async fn handlers_of_containerd_are_found_with_their_faults(bed: &Bed) {
    let folder = bed.folder.join(bed.id("config"));
    fs::create_dir_all(folder.join("conf.d")).expect("make a folder");
    let main = folder.join("config.toml");
    fs::write(&main, "version = 3\nimports = [\"conf.d/*.toml\"]\n").expect("write");
    let handler = |name: &str, rest: &str| {
        format!(
            "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]\n\
             runtime_type = \"io.containerd.bulkhead.v1\"\n{rest}\n"
        )
    };
    let write = |name: &str, text: &str| {
        fs::write(folder.join("conf.d").join(name), text).expect("write");
    };
    let main = main.display().to_string();
    let found = || faults(&["--containerd-config", &main]);
    assert_found(&found(), "containerd", "warn", "no handler");
    write(
        "a.toml",
        &handler("good", "pod_annotations = [\"dev.bulkhead.*\"]"),
    );
    assert!(found().is_empty(), "{:?}", found());
    // As containerd matches them, with Go's path.Match.
    for open in [
        "*",
        "io.*",
        "i*",
        "[i]o.*",
        "[^a-h]?.kubernetes.cri.sandbox-?d",
    ] {
        for key in ["pod_annotations", "container_annotations"] {
            let mut patterns = String::from("pod_annotations = [\"dev.bulkhead.*\"]");
            match key {
                "pod_annotations" => patterns = format!("{key} = [\"dev.bulkhead.*\", {open:?}]"),
                _ => patterns.push_str(&format!("\n{key} = [{open:?}]")),
            }
            write("b.toml", &handler("open", &patterns));
            let told =
                format!("open: {key} lets a pod write containerd's own annotations: {open:?}");
            assert_found(&found(), "containerd", "warn", &told);
        }
    }
    let closed = "pod_annotations = [\"dev.*\", \"io.x/*\"]\ncontainer_annotations = [\"[^i]*\"]";
    write("b.toml", &handler("closed", closed));
    assert!(found().is_empty(), "{:?}", found());
    // By the file that is run, whatever the type says.
    let other = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.path]\n\
                 runtime_type = \"io.containerd.runc.v2\"\n";
    let by_path = format!(
        "{other}runtime_path = \"{}/containerd-shim-bulkhead-v1\"\n",
        folder.display()
    );
    write("b.toml", &by_path);
    assert_found(&found(), "containerd", "fail", "path: runtime_path");
    assert_found(&found(), "containerd", "warn", "path: what pods ask for");
    write("b.toml", other);
    assert!(found().is_empty(), "{:?}", found());
    for (settings, told) in [
        (
            "pod_annotations = \"*\"",
            "pod_annotations is string and must be a list of strings",
        ),
        (
            "container_annotations = [\"x\", 1]",
            "container_annotations is an array with others than strings and must be",
        ),
        (
            "options.ConfigPath = 1",
            "options.ConfigPath is integer and must be a string",
        ),
    ] {
        write("b.toml", &handler("mistyped", settings));
        assert_found(&found(), "containerd", "fail", told);
    }
    write("b.toml", &handler("deaf", ""));
    assert_found(&found(), "containerd", "warn", "deaf: what pods ask for");
    let options =
        "pod_annotations = [\"dev.bulkhead.*\"]\noptions.ConfigPath = \"/nonexistent/p.toml\"";
    write("b.toml", &handler("lost", options));
    assert_found(&found(), "containerd", "fail", "/nonexistent/p.toml");
    // As the guides of kubeadm have it for runc.
    let options = "pod_annotations = [\"dev.bulkhead.*\"]\noptions.SystemdCgroup = true";
    write("b.toml", &handler("copied", options));
    assert_found(
        &found(),
        "containerd",
        "fail",
        "SystemdCgroup, which is runc's",
    );
    let own = folder.join("own.toml");
    fs::write(&own, "").expect("write");
    let named = format!("{options}\noptions.ConfigPath = {own:?}");
    write("b.toml", &handler("copied", &named));
    assert_found(
        &found(),
        "containerd",
        "warn",
        "SystemdCgroup, which is runc's",
    );
    fs::write(&own, "runsc.path = \"/nonexistent/runsc\"").expect("write");
    let options = format!("pod_annotations = [\"dev.bulkhead.*\"]\noptions.ConfigPath = {own:?}");
    write("b.toml", &handler("bare", &options));
    assert_found(&found(), "runsc", "fail", "handler bare, policy");
    assert_found(&found(), "runsc", "fail", "/nonexistent/runsc is not");
    write("b.toml", "not toml");
    assert_found(&found(), "containerd", "fail", "b.toml");
}

async fn handlers_that_no_pod_would_reach_are_found(bed: &Bed) {
    let folder = bed.folder.join(bed.id("config"));
    fs::create_dir_all(folder.join("conf.d")).expect("make a folder");
    let main = folder.join("config.toml");
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("write");
    let path = main.display().to_string();
    let found = || faults(&["--containerd-config", &path]);
    let handler =
        "runtime_type = \"io.containerd.bulkhead.v1\"\npod_annotations = [\"dev.bulkhead.*\"]\n";
    let under = |plugin: &str, name: &str| {
        format!("[plugins.\"{plugin}\".containerd.runtimes.{name}]\n{handler}")
    };
    // A file of handlers that nothing imports.
    let (old, new) = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime");
    write("config.toml", "version = 3\n");
    write("conf.d/bulkhead.toml", &under(new, "bulkhead"));
    assert_found(&found(), "containerd", "fail", "is not imported by");
    // The section of another version, which containerd passes over.
    write(
        "config.toml",
        &format!("version = 3\n{}", under(old, "bulkhead")),
    );
    fs::remove_file(folder.join("conf.d/bulkhead.toml")).expect("remove");
    assert_found(
        &found(),
        "containerd",
        "fail",
        "does not read in a file of version 3",
    );
    write(
        "config.toml",
        &format!("version = 2\n{}", under(new, "bulkhead")),
    );
    assert_found(
        &found(),
        "containerd",
        "fail",
        "does not read in a file of version 2",
    );
    write(
        "config.toml",
        &format!("version = 4\n{}", under(old, "bulkhead")),
    );
    assert_found(
        &found(),
        "containerd",
        "fail",
        "which containerd does not read in a file of version 4",
    );
    // A part of a handler of ours in such a section, and handlers in both of them.
    let text = format!(
        "version = 3\nimports = [\"conf.d/*.toml\"]\n{}",
        under(new, "bulkhead")
    );
    write("config.toml", &text);
    write(
        "conf.d/x.toml",
        &format!(
            "version = 3\n[plugins.\"{old}\".containerd.runtimes.bulkhead]\nsnapshotter = \"x\"\n"
        ),
    );
    let both = found();
    assert_found(
        &both,
        "containerd",
        "fail",
        "which containerd 2.0 to 2.2 does not read in a file of version 3",
    );
    assert_found(
        &both,
        "containerd",
        "warn",
        "containerd 2.0 to 2.2 reads the latter alone",
    );
    // Two sections, of which 1.7 takes one.
    write(
        "conf.d/x.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n",
    );
    let text = format!(
        "version = 2\nimports = [\"conf.d/*.toml\"]\n{}",
        under(old, "bulkhead")
    );
    write("config.toml", &text);
    assert_found(&found(), "containerd", "warn", "reads the former alone");
    // Whichever files they are in.
    write(
        "config.toml",
        "version = 2\nimports = [\"conf.d/*.toml\"]\n",
    );
    write(
        "conf.d/a.toml",
        &format!("version = 2\n{}", under(old, "bulkhead")),
    );
    assert_found(&found(), "containerd", "warn", "x.toml has a section");
    fs::remove_file(folder.join("conf.d/a.toml")).expect("remove");
    // A shim that is not where the handler says, and CRI switched off.
    let text = format!(
        "version = 3\ndisabled_plugins = [\"{new}\"]\n{}runtime_path = \"/nonexistent/shim\"\n",
        under(new, "bulkhead")
    );
    fs::remove_file(folder.join("conf.d/x.toml")).expect("remove");
    write("config.toml", &text);
    assert_found(
        &found(),
        "containerd",
        "fail",
        "runtime_path /nonexistent/shim is not there",
    );
    assert_found(&found(), "containerd", "warn", "disabled_plugins has");
}

/// containerd's own word is its `config dump`: what is found of a handler there is found of the files, and nothing else.
async fn handlers_in_several_files_are_what_containerd_makes_of_them(bed: &Bed) {
    if is_before_2() {
        return;
    }
    let folder = bed.folder.join(bed.id("config"));
    let (main, dumped) = (
        folder.join("config.toml"),
        folder.join("dumped/config.toml"),
    );
    fs::create_dir_all(folder.join("conf.d")).expect("make a folder");
    fs::create_dir_all(folder.join("dumped")).expect("make a folder");
    let of_handlers = |config: &Path| {
        let config = config.display().to_string();
        let (_, mut findings) = check(&["--containerd-config", &config], PATH_FOLDER);
        findings.retain(|finding| finding[2].contains("handler ") && finding[1] != "fail");
        let text = |finding: [String; 4]| {
            let (_, of_handler) = finding[2].split_once("handler ").expect("kept for it");
            format!("{}: {of_handler}", finding[1])
        };
        let mut found: Vec<_> = findings.into_iter().map(text).collect();
        found.sort();
        found
    };
    let old =
        |name: &str| format!("[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.{name}]\n");
    let new = |name: &str| {
        format!("[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]\n")
    };
    let ours = "runtime_type = 'io.containerd.bulkhead.v1'\n";
    let hears = "pod_annotations = ['dev.bulkhead.*']\n";
    let import = "imports = ['conf.d/*.toml']\n";
    for (files, expected) in [
        // The type in one file, what pods may write in another.
        (
            vec![
                format!("version = 3\n{import}{}{ours}", new("x")),
                format!("{}pod_annotations = ['dev.bulkhead.*', 'io.*']", new("x")),
            ],
            &["ok: x", "warn: x: pod_annotations lets"][..],
        ),
        // A list of a later file takes the place of the earlier one's.
        (
            vec![
                format!(
                    "version = 3\n{import}{}{ours}pod_annotations = ['io.*']",
                    new("x")
                ),
                format!("{}{hears}", new("x")),
            ],
            &["ok: x"],
        ),
        (
            vec![
                format!("version = 3\n{import}{}{ours}{hears}", new("x")),
                format!("{}pod_annotations = []", new("x")),
            ],
            &["ok: x", "warn: x: what pods ask for"],
        ),
        // A runtime that a later file takes away, and one that it gives.
        (
            vec![
                format!(
                    "version = 3\n{import}{}{ours}{hears}{}{hears}",
                    new("x"),
                    new("y")
                ),
                format!("{}runtime_type = 'io.containerd.runc.v2'", new("x")),
                format!("{}{ours}", new("y")),
            ],
            &["ok: y"],
        ),
        // Files of other versions, with the plugin's older names.
        (
            vec![
                format!("version = 2\n{import}{}{ours}", old("x")),
                format!("version = 3\n{}{hears}", new("x")),
                format!("version = 4\n{}container_annotations = ['*']", old("x")),
            ],
            &["ok: x"],
        ),
        (
            vec![
                format!("version = 3\n{import}{}{hears}", old("x")),
                format!("[plugins.cri.containerd.runtimes.x]\n{ours}container_annotations = ['*']"),
            ],
            &["ok: x", "warn: x: container_annotations lets"],
        ),
        (
            vec![
                format!(
                    "version = 2\n{import}{}{ours}{hears}{}{ours}",
                    old("x"),
                    new("x")
                ),
                format!("{}container_annotations = ['*']", new("x")),
            ],
            &[
                "ok: x",
                "warn: x: container_annotations lets",
                "warn: x: what pods ask for",
            ],
        ),
    ] {
        for entry in fs::read_dir(folder.join("conf.d")).expect("read").flatten() {
            fs::remove_file(entry.path()).expect("remove");
        }
        for (number, text) in files.iter().enumerate() {
            let path = folder.join(format!("conf.d/{number}.toml"));
            fs::write(if number == 0 { &main } else { &path }, text).expect("write");
        }
        let containerd = Command::new(Path::new(PATH_FOLDER).join("containerd"))
            .arg("--config")
            .arg(&main)
            .args(["config", "dump"])
            .output()
            .expect("run containerd");
        assert!(containerd.status.success(), "{containerd:?}");
        fs::write(&dumped, &containerd.stdout).expect("write");
        let found = of_handlers(&main);
        assert_eq!(found, of_handlers(&dumped), "{files:?}");
        let is_as_expected = |(found, expected): (&String, &&str)| found.starts_with(expected);
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(is_as_expected),
            "{files:?}: {found:?}"
        );
    }
    // What is not looked at is told.
    for number in 0..300 {
        fs::write(folder.join(format!("conf.d/{number}.toml")), "").expect("write");
    }
    let main = main.display().to_string();
    let found = faults(&["--containerd-config", &main]);
    assert_found(
        &found,
        "containerd",
        "warn",
        "45 of them were not looked at",
    );
}

async fn a_class_without_its_handler_is_found(bed: &Bed) {
    let folder = bed.folder.join(bed.id("config"));
    fs::create_dir_all(&folder).expect("make a folder");
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("write");
    let path = |name: &str| folder.join(name).display().to_string();
    write(
        "config.toml",
        "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.bulkhead]\n\
         runtime_type = \"io.containerd.bulkhead.v1\"\npod_annotations = [\"dev.bulkhead.*\"]\n",
    );
    let (config, classes) = (path("config.toml"), path("classes.yaml"));
    let args = [
        "--containerd-config",
        &config,
        "--runtime-classes",
        &classes,
    ];
    assert_found(&faults(&args), "classes", "fail", "classes.yaml");
    let installed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/kubernetes/runtimeclass.yaml"
    );
    fs::copy(installed, folder.join("classes.yaml")).expect("copy");
    let found = faults(&args);
    assert_found(
        &found,
        "classes",
        "fail",
        "containerd has no handler bulkhead-net",
    );
    assert_eq!(found.len(), 1, "the other one is there: {found:?}");
}

/// A process with containerd's name that waits; its words are those of a containerd.
fn daemon(folder: &Path, config: &Path) -> Child {
    let (name, script) = (folder.join("containerd"), folder.join("script"));
    if !name.exists() {
        fs::copy("/bin/sh", &name).expect("copy");
        fs::write(&script, "read line").expect("write");
    }
    let mut daemon = Command::new(&name);
    daemon.arg(&script).arg("--config").arg(config);
    daemon
        .env("PATH", PATH_FOLDER)
        .stdin(Stdio::piped())
        .spawn()
        .expect("run")
}

async fn a_containerd_that_started_before_its_handlers_were_written_is_found(bed: &Bed) {
    let folder = bed.folder.join(bed.id("late"));
    fs::create_dir_all(folder.join("conf.d")).expect("make a folder");
    let config = folder.join("config.toml");
    // The one that imports was there before its import; and so was the file that it imports now.
    let (imports, imported) = (
        folder.join("imports.toml"),
        folder.join("conf.d/handler.toml"),
    );
    let handler = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.bulkhead]\n\
                   runtime_type = \"io.containerd.bulkhead.v1\"\npod_annotations = [\"dev.bulkhead.*\"]\n";
    fs::write(&imports, "version = 3\n").expect("write");
    fs::write(&imported, handler).expect("write");
    // A file without any handler of Bulkhead's is nothing to speak of.
    let other = folder.join("other.toml");
    let mut daemons = vec![
        daemon(&folder, &config),
        daemon(&folder, &imports),
        daemon(&folder, &other),
        // It reads another file.
        daemon(&folder, Path::new("/nonexistent.toml")),
    ];
    tokio::time::sleep(Duration::from_millis(2500)).await;
    fs::write(&config, handler).expect("write");
    let import = "version = 3\nimports = [\"conf.d/*.toml\"]\n";
    fs::write(&imports, import).expect("write");
    fs::write(&other, "version = 3\n").expect("write");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    daemons.extend([daemon(&folder, &config), daemon(&folder, &imports)]);
    let [of_config, of_imports, of_other] = [&config, &imports, &other].map(|config| {
        let path = config.display().to_string();
        let mut found = faults(&["--containerd-config", &path]);
        found.retain(|fault| fault[2].contains("was written after"));
        found
    });
    let early = [daemons[0].id(), daemons[1].id()];
    for mut daemon in daemons {
        daemon.kill().expect("kill");
        daemon.wait().expect("wait");
    }
    for (found, file, early) in [
        (&of_config, &config, early[0]),
        (&of_imports, &imports, early[1]),
    ] {
        assert_eq!(found.len(), 1, "{found:?}");
        assert_found(found, "containerd", "warn", &format!("(pid {early})"));
        let named = file.display().to_string();
        assert!(found[0][2].starts_with(&named), "{found:?}");
        assert!(found[0][3].contains("restart containerd"), "{found:?}");
    }
    assert!(of_other.is_empty(), "{of_other:?}");
}

async fn two_shims_of_which_one_is_never_run_are_found(bed: &Bed) {
    let folder = bed.folder.join(bed.id("copy"));
    fs::create_dir(&folder).expect("make a folder");
    let copy = folder.join("containerd-shim-bulkhead-v1");
    let shim = tool("containerd-shim-bulkhead-v1").expect("found before");
    fs::copy(&shim, &copy).expect("copy");
    let path = format!("{}:{PATH_FOLDER}", folder.display());
    let beside = |findings: &[[String; 4]]| {
        let mut texts = findings.iter().map(|finding| &finding[2]);
        texts.any(|text| text.contains("is another one, which is not"))
    };
    let (_, findings) = check(&[], &path);
    assert!(!beside(&findings), "they are the same: {findings:?}");
    fs::OpenOptions::new()
        .append(true)
        .open(&copy)
        .and_then(|mut copy| copy.write_all(b"later"))
        .expect("write");
    let (fit, findings) = check(&[], &path);
    assert!(fit && beside(&findings), "{findings:?}");
    fs::remove_dir_all(folder).expect("remove");
}

/// A process with containerd's name and the PATH of one whose unit was written by somebody else.
async fn a_containerd_that_would_not_find_the_programs_is_found(bed: &Bed) {
    // Where anybody may run it.
    let place = Path::new("/tmp").join(bed.id("daemon"));
    fs::create_dir(&place).expect("make a folder");
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("chmod");
    let name = place.join("containerd");
    fs::copy("/usr/bin/sleep", &name).expect("copy");
    // Somebody's, and root's in other namespaces: not this node's.
    let (mut somebodys, mut elsewhere) = (Command::new(&name), Command::new("/usr/bin/unshare"));
    somebodys.uid(65534).gid(65534);
    elsewhere.arg("--mount").arg(&name);
    for mut command in [somebodys, elsewhere] {
        command.arg("1000").env("PATH", "/nonexistent/bin");
        let mut stranger = command.spawn().expect("run");
        let comm = format!("/proc/{}/comm", stranger.id());
        eventually("it has its name", Duration::from_secs(5), || {
            fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "containerd")
        })
        .await;
        let found = faults(&[]);
        stranger.kill().expect("kill");
        stranger.wait().expect("wait");
        let told = found.iter().find(|fault| fault[2].contains("that runs"));
        assert!(told.is_none(), "{command:?}: {told:?}");
    }
    let mut daemon = Command::new(&name)
        .arg("1000")
        .env("PATH", "/nonexistent/bin")
        .spawn()
        .expect("run");
    let found = faults(&[]);
    daemon.kill().expect("kill");
    daemon.wait().expect("wait");
    fs::remove_dir_all(&place).expect("remove");
    assert_found(
        &found,
        "containerd",
        "fail",
        "runsc is not in the PATH of the containerd that runs",
    );
    assert_found(
        &found,
        "containerd",
        "warn",
        "containerd-shim-bulkhead-v1 is not in the PATH",
    );
    assert!(
        !faults(&[])
            .iter()
            .any(|fault| fault[2].contains("that runs"))
    );
}
