//! `bulkhead explain`: what a container asked for, what it is given, and by which key.

use std::path::{Path, PathBuf};
use std::process::Output;

use integration::bed::{Bed, tool};
use integration::cases;
use integration::client::NAMESPACE;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use serde_json::Value;

use crate::life::pod::{end, member, sandbox};

cases! {
    Needs::Tool("bulkhead") => [
        a_running_container_is_explained,
        a_container_of_a_pod_is_explained,
        another_policy_gives_another_answer,
        what_would_be_refused_is_said_with_the_rule,
        what_is_no_spec_is_named,
        a_running_container_is_found_by_its_id,
        nothing_waits_for_a_fifo,
        what_is_printed_has_no_control_characters,
    ],
}

/// Where the tool is run.
const HERE: &str = "/run/b";

fn explain(args: &[&str], path: &Path) -> Output {
    let mut command = std::process::Command::new(tool("bulkhead").expect("found before"));
    let path_variable = std::env::var("PATH").unwrap_or_default();
    command
        .env(
            "PATH",
            format!("{}:{path_variable}", integration::bed::PATH_FOLDER),
        )
        .current_dir(HERE)
        .arg("explain")
        .args(args)
        .arg(path);
    command.output().expect("run bulkhead")
}

/// The changes by their control: what was given, and the key.
fn changes(args: &[&str], path: &Path) -> Vec<(String, String, String)> {
    let output = explain(&[args, &["--json"]].concat(), path);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let changes = report["changes"].as_array().expect("changes").iter();
    let text = |change: &Value, field: &str| change[field].as_str().expect("text").to_owned();
    changes
        .map(|change| {
            let field = |name| text(change, name);
            (field("control"), field("given"), field("key"))
        })
        .collect()
}

async fn a_running_container_is_explained(bed: &Bed) {
    let ask = |spec: &mut Value| {
        spec["root"]["readonly"] = false.into();
        spec["process"]["capabilities"]["bounding"] = serde_json::json!(["CAP_SYS_ADMIN"]);
    };
    let container = bed.container(&["sleep", "1000"]).with(ask);
    let container = container.run().await.expect("run");
    let bundle = bed.bundle(&container.id);
    let found = changes(&[], &bundle);
    let key = |control: &str| {
        let change = found.iter().find(|change| change.0 == control);
        change.map(|change| change.2.as_str())
    };
    // The spec in the bundle is the hardened one; what is explained is what was asked.
    assert_eq!(key("capabilities"), Some("capabilities.allow"), "{found:?}");
    assert_eq!(key("rootfs"), Some("rootfs.writable"), "{found:?}");
    let table = explain(&[], &bundle).stdout;
    let table = String::from_utf8_lossy(&table);
    for text in [
        "POLICY KEY",
        "CAP_AUDIT_WRITE",
        "seccomp profile: complement\n",
        "--network=none",
    ] {
        assert!(table.contains(text), "{text}: {table}");
    }
    container.remove().await;
}

async fn a_container_of_a_pod_is_explained(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let found = changes(&[], &bed.bundle(&one.id));
    assert!(
        found.iter().any(|change| change.0 == "seccomp"),
        "{found:?}"
    );
    one.remove().await;
    end(pod).await;
}

async fn another_policy_gives_another_answer(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let policy = bed.folder.join(bed.id("policy"));
    std::fs::write(&policy, "limits.memory_mib = 100").expect("write a policy");
    let policy = policy.display().to_string();
    let found = changes(&["--policy", &policy], &bed.bundle(&container.id));
    let memory = found.iter().find(|change| change.0 == "memory");
    assert_eq!(memory.expect("memory").1, "104857600 bytes");
    container.remove().await;
}

/// A spec that no policy allows.
fn with_a_device(bed: &Bed) -> PathBuf {
    let mut spec = bed.container(&["true"]).spec;
    spec["linux"]["devices"] =
        serde_json::json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]);
    let path = bed.folder.join("config.json");
    std::fs::write(&path, spec.to_string()).expect("write");
    path
}

async fn what_would_be_refused_is_said_with_the_rule(bed: &Bed) {
    let path = with_a_device(bed);
    let output = explain(&[], &path);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("refused") && said.contains("/dev/kvm"),
        "{said}"
    );
    // What only a look at the host tells.
    let mut spec = bed.container(&["true"]).spec;
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
    for namespace in namespaces.iter_mut().filter(|one| one["type"] == "network") {
        namespace["path"] = "/proc/self/ns/net".into();
    }
    std::fs::write(&path, spec.to_string()).expect("write");
    let output = explain(&[], &path);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/proc/self/ns/net"), "{said}");
}

async fn a_running_container_is_found_by_its_id(bed: &Bed) {
    let policy = NodePolicy::set("limits.open_files = 333");
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    drop(policy);
    // By the sandbox's record, wherever containerd's state is. A file of that name here is no container.
    let _decoy = Decoy::fifo(Path::new(HERE).join(&container.id));
    let output = explain(&["--json"], Path::new(&container.id));
    assert!(output.status.success(), "{output:?}");
    let explained: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // What it was given, though the policy is another one by now.
    assert_eq!(explained["policy"], "/etc/bulkhead/config.toml");
    let flags = explained["flags"].as_array().expect("flags");
    assert!(
        flags.iter().any(|flag| flag == "--network=none"),
        "{flags:?}"
    );
    let limit = explained["changes"].as_array().expect("changes").iter();
    let limit = limit
        .map(ToString::to_string)
        .find(|change| change.contains("333"));
    assert!(limit.is_some(), "{explained}");
    for (namespace, id, told) in [
        (NAMESPACE, "none", "no container none runs"),
        ("other", container.id.as_str(), "no container"),
    ] {
        let output = explain(&["--namespace", namespace], Path::new(id));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(told), "{said}");
    }
    container.remove().await;
    // A refusal is JSON too.
    let path = with_a_device(bed);
    let refused: Value = serde_json::from_slice(&explain(&["--json"], &path).stdout).expect("JSON");
    assert!(
        refused["refused"].to_string().contains("/dev/kvm"),
        "{refused}"
    );
}

/// A FIFO, which nobody may read, for as long as a test needs it.
struct Decoy(PathBuf);

impl Decoy {
    fn fifo(path: PathBuf) -> Self {
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::unistd::mkfifo(&path, mode).expect("mkfifo");
        Self(path)
    }
}

impl Drop for Decoy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn nothing_waits_for_a_fifo(bed: &Bed) {
    let bundle = bed.folder.join(bed.id("bundle"));
    std::fs::create_dir(&bundle).expect("make a folder");
    let fifo = Decoy::fifo(bundle.join("config.json"));
    for path in [&fifo.0, &bundle] {
        let output = explain(&[], path);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("is not a regular file"),
            "{said}"
        );
    }
    // A name is an id; nothing here is looked at.
    let output = explain(&[], Path::new("config.json"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no container config.json runs"), "{said}");
}

/// Keys of a spec are shown as they are told.
async fn what_is_printed_has_no_control_characters(bed: &Bed) {
    let mut spec = bed.container(&["true"]).spec;
    spec["linux"]["resources"]["\u{1b}[2J\u{9b}2J\nok"] = 7.into();
    spec["process"]["env"] = serde_json::json!(["A=\u{1b}[2J"]);
    let path = bed.folder.join("config.json");
    std::fs::write(&path, spec.to_string()).expect("write");
    for args in [&[][..], &["--json"]] {
        let output = explain(args, &path);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
        assert!(text.contains("[2J"), "{text:?}");
        assert!(
            !text.replace('\n', "").contains(char::is_control),
            "{text:?}"
        );
        assert!(!text.lines().any(|line| line.starts_with("ok")), "{text:?}");
    }
}

async fn what_is_no_spec_is_named(bed: &Bed) {
    let path = bed.folder.join("config.json");
    for text in ["", "{", "[]", "{\"process\": 7}"] {
        std::fs::write(&path, text).expect("write");
        let output = explain(&[], &path);
        assert_eq!(output.status.code(), Some(1), "{text}: {output:?}");
        assert!(!output.stderr.is_empty(), "{text}");
    }
}
