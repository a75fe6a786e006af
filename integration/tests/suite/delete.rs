//! `delete` on the shim's command line, with a part of what it could go by missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message as _;
use integration::bed::Bed;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use integration::shim;

use integration::cases;

cases! {
    Needs::Bulkhead => [
        delete_without_config_json_leaves_nothing,
        delete_without_the_root_in_the_bundle_leaves_nothing,
        delete_without_the_address_leaves_nothing,
        delete_without_the_record_leaves_nothing,
        delete_without_runscs_state_leaves_nothing,
        delete_without_any_of_them_leaves_nothing,
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

async fn delete_without(bed: &Bed, lost: &[Lost]) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let (id, bundle) = (&container.id, bed.bundle(&container.id));
    let root = root_of(&bundle);
    // It would run `delete` as soon as the shim is gone.
    bed.kill_containerd();
    assert_eq!(processes::kill_role(Role::Shim, id), 1, "one shim");
    eventually("the shim is gone", Duration::from_secs(5), || {
        processes::of(Role::Shim, id).is_empty()
    })
    .await;
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
    let pod = crate::pod::sandbox(bed).await;
    let one = crate::pod::member(bed, &pod, "sleep 1000");
    let one = one.run().await.expect("run");
    let two = crate::pod::member(bed, &pod, "sleep 1000");
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
    crate::pod::end(pod).await;
}

async fn delete_of_a_pods_container_without_config_json_spares_the_pod(bed: &Bed) {
    delete_in_a_pod_without(bed, &[Lost::Spec]).await;
}

async fn delete_of_a_pods_container_without_config_json_and_record_spares_the_pod(bed: &Bed) {
    delete_in_a_pod_without(bed, &[Lost::Spec, Lost::Record]).await;
}
