//! `delete` on the shim's command line, with a part of what it could go by missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse};
use containerd_shim_protos::protobuf::Message as _;
use integration::bed::Bed;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use integration::shim;
use integration::wrapper::Wrapper;

use integration::cases;

cases! {
    Needs::Bulkhead => [
        a_sandbox_whose_shim_died_while_containerd_was_away_ends_with_its_return,
        delete_without_config_json_leaves_nothing,
        delete_without_the_root_in_the_bundle_leaves_nothing,
        delete_without_the_address_leaves_nothing,
        delete_without_the_record_leaves_nothing,
        delete_without_runscs_state_leaves_nothing,
        delete_without_any_of_them_leaves_nothing,
        delete_believes_nothing_that_others_can_write,
        delete_ends_a_shim_that_has_nothing_and_a_client,
        what_a_delete_runs_is_not_spared_as_containerd_is,
        delete_of_a_pods_container_without_config_json_spares_the_pod,
        delete_of_a_pods_container_without_config_json_and_record_spares_the_pod,
    ],
}

/// What `delete` could go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Spec,
    Root,
    Address,
    Record,
    State,
}

impl Lost {
    fn take_away(self, bundle: &Path, root: &Path) {
        let remove = |path: PathBuf| {
            fs::remove_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        };
        match self {
            Self::Spec => remove(bundle.join("config.json")),
            Self::Root => remove(bundle.join("bulkhead-root")),
            Self::Address => remove(bundle.join("address")),
            Self::Record => remove(root.join("bulkhead.json")),
            Self::State => {
                let entries = fs::read_dir(root).expect("read the root").flatten();
                let paths = entries.map(|entry| entry.path());
                let states: Vec<_> = paths
                    .filter(|path| path.extension().is_some_and(|end| end == "state"))
                    .collect();
                assert!(!states.is_empty(), "no state in {}", root.display());
                states.into_iter().for_each(remove);
            }
        }
    }
}

pub(crate) fn root_of(bundle: &Path) -> PathBuf {
    let text = fs::read_to_string(bundle.join("bulkhead-root")).expect("read the root's name");
    PathBuf::from(text.trim())
}

fn delete(bed: &Bed, id: &str) {
    let bundle = bed.bundle(id);
    let path = bundle.display().to_string();
    let args = [&shim::flags(id)[..], &["-bundle", &path, "delete"]].concat();
    let output = shim::run(bed, &bundle, &args, b"");
    assert!(output.status.success(), "{output:?}");
    let answer = DeleteResponse::parse_from_bytes(&output.stdout);
    assert_eq!(answer.expect("a DeleteResponse").exit_status, 137);
}

/// Kills a container's shim. containerd goes before: it would run `delete` as soon as the shim is gone.
async fn lose_shim(bed: &Bed, id: &str) {
    bed.kill_containerd();
    assert_eq!(processes::kill_role(Role::Shim, id), 1, "one shim");
    eventually("the shim is gone", Duration::from_secs(5), || {
        processes::of(Role::Shim, id).is_empty()
    })
    .await;
}

async fn delete_without(bed: &Bed, lost: &[Lost]) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let (id, bundle) = (&container.id, bed.bundle(&container.id));
    let root = root_of(&bundle);
    lose_shim(bed, id).await;
    assert_eq!(processes::of(Role::Sandbox, id).len(), 1, "it runs on");
    for lost in lost {
        lost.take_away(&bundle, &root);
    }
    for _ in 0..2 {
        delete(bed, id);
        assert_eq!(processes::of(Role::Sandbox, id), []);
        assert_eq!(processes::of(Role::Gofer, id), []);
        assert!(!root.exists(), "{} stays", root.display());
    }
    bed.start_containerd().await;
    container.remove().await;
}

/// A containerd that was killed between the answer to a delete and the order to end finds the shim, gives it up, and stays connected.
async fn delete_ends_a_shim_that_has_nothing_and_a_client(bed: &Bed) {
    let container = bed.container(&["true"]).run().await.expect("run");
    container.wait().await.expect("wait");
    let id = &container.id;
    let client = shim::Shim::of(bed, id).await;
    bed.kill_containerd();
    let request = DeleteRequest {
        id: id.clone(),
        ..DeleteRequest::default()
    };
    let deleted: Result<DeleteResponse, _> = client.call(2, "Delete", &request).await;
    deleted.expect("Delete");
    delete(bed, id);
    eventually("the shim ends", Duration::from_secs(10), || {
        processes::of(Role::Shim, id).is_empty()
    })
    .await;
    drop(client);
    bed.start_containerd().await;
    container.remove().await;
}

/// A program that a delete starts, and whatever that starts, can be what the kernel kills when memory ends: containerd and its
/// shims are not.
async fn what_a_delete_runs_is_not_spared_as_containerd_is(bed: &Bed) {
    let scores = bed.folder.join(bed.id("scores"));
    let tell = format!("cat /proc/self/oom_score_adj >>{}", scores.display());
    let wrapper = Wrapper::at(bed, "delete|kill|state", &tell);
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let (id, bundle) = (&container.id, bed.bundle(&container.id));
    lose_shim(bed, id).await;
    let _ = fs::remove_file(&scores);
    let path = bundle.display().to_string();
    let args = [&shim::flags(id)[..], &["-bundle", &path, "delete"]].concat();
    let output = shim::run_spared(bed, &bundle, &args);
    assert!(output.status.success(), "{output:?}");
    let told = fs::read_to_string(&scores).expect("runsc ran");
    assert!(told.lines().all(|score| score == "0"), "{told}");
    drop(wrapper);
    bed.start_containerd().await;
    container.remove().await;
}

/// Nothing ties them but containerd's `delete`, which it runs when it is there again.
async fn a_sandbox_whose_shim_died_while_containerd_was_away_ends_with_its_return(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let id = &container.id;
    lose_shim(bed, id).await;
    assert_eq!(processes::of(Role::Sandbox, id).len(), 1, "it runs on");
    bed.start_containerd().await;
    eventually("the sandbox ends", Duration::from_secs(10), || {
        processes::of(Role::Sandbox, id).is_empty() && processes::of(Role::Gofer, id).is_empty()
    })
    .await;
    container.remove().await;
}

async fn delete_without_config_json_leaves_nothing(bed: &Bed) {
    delete_without(bed, &[Lost::Spec]).await;
}

async fn delete_without_the_root_in_the_bundle_leaves_nothing(bed: &Bed) {
    delete_without(bed, &[Lost::Root]).await;
}

async fn delete_without_the_address_leaves_nothing(bed: &Bed) {
    delete_without(bed, &[Lost::Address]).await;
}

async fn delete_without_the_record_leaves_nothing(bed: &Bed) {
    delete_without(bed, &[Lost::Record]).await;
}

async fn delete_without_runscs_state_leaves_nothing(bed: &Bed) {
    delete_without(bed, &[Lost::State]).await;
}

async fn delete_without_any_of_them_leaves_nothing(bed: &Bed) {
    let all = [
        Lost::Spec,
        Lost::Root,
        Lost::Address,
        Lost::Record,
        Lost::State,
    ];
    delete_without(bed, &all).await;
}

/// containerd 1.7 runs `delete` after every task's own, while the pod goes on.
async fn delete_in_a_pod_without(bed: &Bed, lost: &[Lost]) {
    let pod = crate::life::pod::sandbox(bed).await;
    let one = crate::life::pod::member(bed, &pod, "sleep 1000");
    let one = one.run().await.expect("run");
    let two = crate::life::pod::member(bed, &pod, "sleep 1000");
    let two = two.run().await.expect("run");
    let bundle = bed.bundle(&one.id);
    let root = root_of(&bundle);
    for lost in lost {
        lost.take_away(&bundle, &root);
    }
    for _ in 0..2 {
        delete(bed, &one.id);
        let done = two.exec("e", &["echo", "alive"]).finish().await;
        assert_eq!(done.stdout, "alive\n");
    }
    for container in [one, two] {
        container.remove().await;
    }
    crate::life::pod::end(pod).await;
}

async fn delete_of_a_pods_container_without_config_json_spares_the_pod(bed: &Bed) {
    delete_in_a_pod_without(bed, &[Lost::Spec]).await;
}

async fn delete_of_a_pods_container_without_config_json_and_record_spares_the_pod(bed: &Bed) {
    delete_in_a_pod_without(bed, &[Lost::Spec, Lost::Record]).await;
}

/// A record names a program, and `delete` runs it as root.
async fn delete_believes_nothing_that_others_can_write(bed: &Bed) {
    let folder = bed.folder.join(bed.id("state"));
    let policy = format!("runsc.root = {folder:?}");
    let builder = bed.container(&["sleep", "1000"]).policy("", &policy);
    let container = builder.run().await.expect("run");
    let (id, root) = (&container.id, root_of(&bed.bundle(&container.id)));
    bed.kill_containerd();
    assert_eq!(processes::kill_role(Role::Shim, id), 1, "one shim");
    let (program, ran) = (folder.join("program"), folder.join("ran"));
    fs::write(
        &program,
        format!("#!/bin/sh\necho \"$@\" >>{}\n", ran.display()),
    )
    .expect("write");
    let mode = |path: &Path, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(path, mode).expect("chmod");
    };
    mode(&program, 0o755);
    let record = root.join("bulkhead.json");
    let text = fs::read(&record).expect("read the record");
    let mut text: serde_json::Value = serde_json::from_slice(&text).expect("parse the record");
    text["runsc"] = program.display().to_string().into();
    fs::write(&record, text.to_string()).expect("write the record");
    mode(&folder, 0o777);
    delete(bed, id);
    assert!(
        !ran.exists(),
        "{}",
        fs::read_to_string(&ran).unwrap_or_default()
    );
    assert_eq!(processes::of(Role::Sandbox, id), []);
    assert!(!root.exists(), "{} stays", root.display());
    bed.start_containerd().await;
    container.remove().await;
}
