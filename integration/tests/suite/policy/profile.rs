//! The two forms of the seccomp profile, inside of real sandboxes: each call of the binary's table is decided alike by both, and
//! what the table lacks is answered with ENOSYS.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice::from_ref;

use containerd_client::types::Mount;
use integration::bed::Bed;
use integration::cases;
use integration::client::NAMESPACE;
use integration::runtime::Needs;
use integration::wrapper::Wrapper;
use serde::Deserialize;
use serde_json::Value;

use crate::figures::metrics;

cases! {
    Needs::Bulkhead => [
        both_forms_decide_every_call_of_the_table_alike,
        a_runsc_whose_table_is_nonsense_gets_the_allow_list,
        another_binary_is_asked_for_its_own_table,
        two_binaries_at_once_keep_their_answers,
    ],
}

/// What `profile.py` found: a word or an errno for each number.
#[derive(Debug, PartialEq, Deserialize)]
struct Decisions {
    table: BTreeMap<u32, Value>,
    beyond: BTreeMap<u32, Value>,
    clone: Vec<Value>,
    clone3: Value,
    x32: Vec<Value>,
    negative: Vec<Value>,
    i386: Vec<i32>,
}

/// The question that the shim asks as well.
const QUESTION: [&str; 8] = [
    "help",
    "syscalls",
    "-os",
    "linux",
    "-arch",
    ARCHITECTURE,
    "-format",
    "json",
];
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// The table of a runsc, by its own word.
fn table(runsc: &Path) -> BTreeMap<u32, String> {
    let told = Command::new(runsc).args(QUESTION).output().expect("ask");
    let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    let calls = told["linux"][ARCHITECTURE]["syscalls"].as_object();
    let calls = calls.expect("calls").iter();
    let call = |(number, call): (&String, &Value)| {
        let name = call["name"].as_str().expect("a name").to_owned();
        (number.parse().expect("a number"), name)
    };
    calls.map(call).collect()
}

/// TRAP in the place of ERRNO, and a runsc that answers `table` for its table, where there is one.
fn trapping(bed: &Bed, table: Option<&str>) -> Wrapper {
    let told = table.map_or_else(String::new, |text| format!("help) {text}; exit 0;;"));
    let fault = format!(
        "case $sub in {told}\ncreate) sed -i s/SCMP_ACT_ERRNO/SCMP_ACT_TRAP/g \"$bundle/config.json\";; esac"
    );
    Wrapper::at(bed, "help|create", &fault)
}

/// The form of a container's profile, by its sandbox's own series.
pub(crate) fn form(id: &str) -> String {
    label(id, "profile_form")
}

fn label(id: &str, name: &str) -> String {
    let text = metrics::scrape(&metrics::socket(id));
    let (_, rest) = text.split_once(&format!("{name}=\"")).expect("the label");
    rest.split('"').next().expect("its end").to_owned()
}

/// What gVisor's systrap ends a program with, once in a while and on a loaded machine, while thousands of its calls trap: SIGILL.
/// That is not what is judged here.
const ILL: u32 = 128 + 4;

/// Of init and of an exec in one container, and the form of its profile.
async fn decisions(
    bed: &Bed,
    image: &Path,
    table: &BTreeMap<u32, String>,
) -> (Vec<Decisions>, String) {
    for _ in 0..4 {
        if let Some(told) = decisions_once(bed, image, table).await {
            return told;
        }
    }
    panic!("SIGILL each time")
}

async fn decisions_once(
    bed: &Bed,
    image: &Path,
    table: &BTreeMap<u32, String>,
) -> Option<(Vec<Decisions>, String)> {
    let script = include_str!("profile.py");
    let numbers = format!("{:?}", table.keys().collect::<Vec<_>>());
    let stay = format!("{script}\nsys.stdout.flush()\nos.close(1)\nsignal.pause()");
    let rootfs = Mount {
        r#type: "bind".into(),
        source: image.display().to_string(),
        target: String::new(),
        options: vec!["rbind".into(), "ro".into()],
    };
    let mut container = bed
        .container(&["/usr/bin/python3", "-c", &stay, &numbers])
        .rootfs(rootfs)
        .run()
        .await
        .expect("run");
    let args = ["/usr/bin/python3", "-c", script, &numbers];
    let info = metrics::scrape(&metrics::socket(&container.id));
    // An old runsc applies no profile to an exec: there is nothing to be told.
    let exec = if info.contains("seccomp for exec") {
        None
    } else {
        Some(container.exec("profile", &args).finish().await)
    };
    let form = form(&container.id);
    let init = container.streams.stdout().await.text();
    let _ = container.kill(9).await;
    let status = container.wait().await.expect("wait").status;
    let error = container.streams.stderr().await.text();
    container.delete().await.expect("delete");
    if status == ILL || exec.as_ref().is_some_and(|exec| exec.status == ILL) {
        return None;
    }
    let read =
        |text: &str| serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text} {error}"));
    let mut all = vec![read(&init)];
    if let Some(exec) = exec {
        assert_eq!(exec.status, 0, "{exec:?} {init}\n{error}");
        all.push(read(&exec.stdout));
    }
    Some((all, form))
}

async fn both_forms_decide_every_call_of_the_table_alike(bed: &Bed) {
    let image = bed.image("python");
    let table = table(bed.runsc.as_deref().expect("runsc"));
    let wrapper = trapping(bed, None);
    let complement = decisions(bed, &image, &table).await;
    drop(wrapper);
    let wrapper = trapping(bed, Some("echo {}"));
    let list = decisions(bed, &image, &table).await;
    drop(wrapper);
    bed.ctr_ok(&["image", "unmount", "--rm", &image.display().to_string()]);
    assert_eq!(
        (complement.1.as_str(), list.1.as_str()),
        ("complement", "allow-list")
    );
    let all = |words: &[Value], expected: &[Value]| {
        let odd = words.iter().find(|word| !expected.contains(word));
        assert_eq!(odd, None, "{expected:?}");
    };
    let (enosys, trap): (Value, Value) = (38.into(), "trap".into());
    for (complement, list) in complement.0.iter().zip(&list.0) {
        assert_eq!(complement.table, list.table);
        assert_eq!(
            (&complement.clone, &complement.clone3),
            (&list.clone, &list.clone3)
        );
        assert_eq!(complement.table.len(), table.len());
        let allowed = |decided: &&Value| decided.as_str() == Some("allowed");
        let denied = |decided: &&Value| **decided == trap;
        let count = (
            complement.table.values().filter(allowed).count(),
            complement.table.values().filter(denied).count(),
        );
        assert_eq!(count.0 + count.1, table.len(), "{complement:?}");
        // Of runsc 20260905 for amd64. clone with all flags is denied; clone3 by itself says ENOSYS, see below, and lets the
        // test's own filter speak.
        if table.len() == 352 {
            assert_eq!(count, (280, 72), "{complement:?}");
        }
        assert_eq!(complement.clone3, enosys);
        all(&complement.clone[..3], &["allowed".into()]);
        assert_eq!(complement.clone.len(), 18);
        all(&complement.clone[3..], from_ref(&trap));
        assert_eq!(complement.beyond.len(), 1024 - table.len());
        let beyond: Vec<Value> = complement.beyond.values().cloned().collect();
        all(&beyond, from_ref(&enosys));
        all(&complement.x32, from_ref(&enosys));
        all(&complement.negative, from_ref(&enosys));
        let beyond: Vec<Value> = list.beyond.values().cloned().collect();
        all(&beyond, from_ref(&trap));
        all(&list.x32, from_ref(&trap));
        // A 32-bit call is no call: the child is ended, or told that there is none.
        assert!(
            complement.i386.iter().all(|end| *end != 0),
            "{:?}",
            complement.i386
        );
    }
}

async fn a_runsc_whose_table_is_nonsense_gets_the_allow_list(bed: &Bed) {
    let folder = bed.folder.join(bed.id("log"));
    let policy = format!("log.folder = {folder:?}\n");
    let real = "\"$real\" \"$@\"";
    let twice = format!("{real} | sed 's/\"1\": {{/\"1000\": {{\"name\": \"read\"}},&/'");
    let large = format!("{real}; head -c 2000000 /dev/zero | tr '\\0' ' '");
    let failed = format!("{real}; exit 1");
    let last = "echo nonsense";
    for answer in ["true", &twice, &large, &failed, last] {
        let _wrapper = Wrapper::at(bed, "help", &format!("{answer}; exit $?"));
        // It is warned of when it is asked, and not again.
        for warnings in if answer == last { 1..=2 } else { 1..=1 } {
            let container = bed.container(&["sleep", "1000"]).policy("", &policy);
            let container = container.run().await.expect("run");
            assert_eq!(form(&container.id), "allow-list", "{answer}");
            container.remove().await;
            let log = folder.join(format!("{NAMESPACE}--{}.log", container.id));
            let log = fs::read_to_string(log).expect("read the log");
            let told = log.matches("seccomp profiles are allow lists").count();
            assert_eq!(told, 2 - warnings, "{answer}: {log}");
        }
    }
}

async fn another_binary_is_asked_for_its_own_table(bed: &Bed) {
    let run = async || {
        let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
        let form = form(&container.id);
        container.remove().await;
        form
    };
    assert_eq!(run().await, "complement");
    let wrapper = Wrapper::at(bed, "help", "exit 1");
    assert_eq!(run().await, "allow-list");
    drop(wrapper);
    assert_eq!(run().await, "complement");
}

async fn two_binaries_at_once_keep_their_answers(bed: &Bed) {
    let (other, asked) = (bed.folder.join("other-runsc"), bed.folder.join("asked"));
    let real = bed.runsc.as_deref().expect("runsc").display();
    let text = format!(
        "#!/bin/sh\necho \"$1\" >> {}\n[ \"$1\" = --version ] && echo 'runsc version release-20990101.0' && exit\nexec {real} \"$@\"\n",
        asked.display()
    );
    fs::write(&other, text).expect("write the script");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).expect("chmod");
    let policy = format!("runsc.path = {other:?}\n");
    let mut running = Vec::new();
    for policy in ["", &policy, "", &policy] {
        let container = bed.container(&["sleep", "1000"]).policy("", policy);
        running.push(container.run().await.expect("run"));
    }
    let versions: Vec<String> = running
        .iter()
        .map(|container| label(&container.id, "runsc_version"))
        .collect();
    for container in running {
        container.remove().await;
    }
    let others: Vec<bool> = versions.iter().map(|v| v == "release-20990101.0").collect();
    assert_eq!(others, [false, true, false, true], "{versions:?}");
    let asked = fs::read_to_string(&asked).expect("read");
    let questions = asked.lines().filter(|line| *line == "flags").count();
    assert_eq!(questions, 1, "{asked}");
    fs::remove_file(&other).expect("remove the script");
    // What is known of it goes with it.
    let kept = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.contains("release-20990101.0")
    };
    let entries = fs::read_dir("/run/bulkhead").expect("the base folder");
    let files = entries.map(|entry| entry.expect("an entry").path());
    let files: Vec<PathBuf> = files.filter(kept).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    fs::remove_file(&files[0]).expect("remove the answers");
}
