//! `bulkhead check`: what a node has and lacks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use integration::bed::{Bed, PATH_FOLDER, tool};
use integration::cases;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use serde_json::Value;

cases! {
    Needs::Tool("bulkhead") => [
        this_node_is_found_fit,
        a_policy_that_does_not_parse_is_found,
        a_runsc_that_is_missing_or_anybodys_is_found,
        a_state_folder_that_others_may_enter_is_found,
        handlers_of_containerd_are_found_with_their_faults,
        handlers_that_no_pod_would_reach_are_found,
        a_class_without_its_handler_is_found,
        a_containerd_that_would_not_find_the_programs_is_found,
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
}

async fn a_policy_that_does_not_parse_is_found(_: &Bed) {
    let _policy = NodePolicy::set("\nlimits.pidz = 3\n");
    let faults = faults(&[]);
    assert_found(&faults, "policy", "fail", "pidz");
    assert_found(&faults, "policy", "fail", "line 2");
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

/// One that is empty holds nothing that others may not reach, and the first sandbox closes it: a DaemonSet's volume makes it so.
async fn a_state_folder_that_others_may_enter_is_found(bed: &Bed) {
    let root = bed.folder.join(bed.id("state"));
    fs::create_dir(&root).expect("make a folder");
    let _policy = NodePolicy::set(&format!("runsc.root = {root:?}"));
    let state = |mode| {
        fs::set_permissions(&root, fs::Permissions::from_mode(mode)).expect("chmod");
        let (_, findings) = check(&[], PATH_FOLDER);
        let state = findings.iter().find(|finding| finding[0] == "state");
        let [_, state, text, _] = state.expect("the state folder");
        format!("{state}: {text}")
    };
    assert!(state(0o755).starts_with("ok: "), "{}", state(0o755));
    assert!(
        state(0o777).starts_with("fail: ") && state(0o777).contains("0777"),
        "{}",
        state(0o777)
    );
    fs::create_dir(root.join("sandbox")).expect("make a folder");
    assert!(
        state(0o755).starts_with("fail: ") && state(0o755).contains("0755"),
        "{}",
        state(0o755)
    );
    assert!(state(0o700).starts_with("ok: "), "{}", state(0o700));
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
    write("b.toml", &handler("deaf", ""));
    assert_found(&found(), "containerd", "warn", "deaf: what pods ask for");
    let options =
        "pod_annotations = [\"dev.bulkhead.*\"]\noptions.ConfigPath = \"/nonexistent/p.toml\"";
    write("b.toml", &handler("lost", options));
    assert_found(&found(), "containerd", "fail", "/nonexistent/p.toml");
    let own = folder.join("own.toml");
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

/// A process with containerd's name and the PATH of one whose unit was written by somebody else.
async fn a_containerd_that_would_not_find_the_programs_is_found(bed: &Bed) {
    let place = bed.folder.join(bed.id("daemon"));
    fs::create_dir(&place).expect("make a folder");
    let name = place.join("containerd");
    fs::copy("/usr/bin/sleep", &name).expect("copy");
    let mut daemon = Command::new(&name)
        .arg("1000")
        .env("PATH", "/nonexistent/bin")
        .spawn()
        .expect("run");
    let found = faults(&[]);
    daemon.kill().expect("kill");
    daemon.wait().expect("wait");
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
