//! Pods when something dies: every container is told, the rest of the node is not.

use std::fs;
use std::path::Path;
use std::time::Duration;

use integration::bed::{Bed, PATH_FOLDER, tool};
use integration::cases;
use integration::cri::{Cri, Pod};
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use k8s_cri::v1::ContainerState;

cases! {
    Needs::Any => [
        a_sandbox_container_that_is_killed_ends_its_pod_or_only_itself,
        containerd_restarted_finds_running_pods,
        a_malformed_container_leaves_the_others_unharmed,
        a_container_cannot_be_made_in_a_stopped_pod,
        a_new_shim_binary_serves_new_pods_and_the_old_one_its_own,
    ],
    Needs::NotRunc("containerd takes a shim that answers Pids with none for a leak and removes it") => [
        an_exit_while_containerd_is_away_is_told,
    ],
    Needs::Gvisor => [
        a_killed_sentry_ends_every_container,
    ],
    Needs::Bulkhead => [
        a_killed_shim_ends_the_pod_and_leaves_nothing,
        a_killed_gofer_harms_no_other_pod,
    ],
}

async fn pair(pod: &Pod) -> [String; 2] {
    let one = pod
        .launch(pod.container("one", &["sleep", "1000"]))
        .await
        .expect("launch");
    let two = pod
        .launch(pod.container("two", &["sleep", "1000"]))
        .await
        .expect("launch");
    [one, two]
}

async fn a_sandbox_container_that_is_killed_ends_its_pod_or_only_itself(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let containers = pair(&pod).await;
    bed.ctr_ok(&[
        "--namespace",
        "k8s.io",
        "task",
        "kill",
        "-s",
        "SIGKILL",
        &pod.id,
    ]);
    if bed.runtime.is_gvisor() {
        for id in &containers {
            assert_eq!(pod.ended(id).await.exit_code, 137);
        }
    }
    pod.remove().await;
}

async fn a_killed_sentry_ends_every_container(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let containers = pair(&pod).await;
    let other = Pod::run(Pod::config(bed)).await.expect("run");
    assert_eq!(processes::kill_role(Role::Sandbox, &pod.id), 1);
    for id in &containers {
        assert_eq!(pod.ended(id).await.exit_code, 137);
    }
    let alive = other
        .launch(other.shell("main", "exit 0"))
        .await
        .expect("launch");
    assert_eq!(other.ended(&alive).await.exit_code, 0);
    other.remove().await;
    pod.remove().await;
}

async fn a_killed_shim_ends_the_pod_and_leaves_nothing(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let containers = pair(&pod).await;
    assert_eq!(processes::kill_role(Role::Shim, &pod.id), 1);
    for id in &containers {
        let status = pod.ended(id).await;
        assert_ne!(status.exit_code, 0, "nobody saw how it ended");
    }
    pod.remove().await;
}

async fn a_killed_gofer_harms_no_other_pod(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let containers = pair(&pod).await;
    let other = Pod::run(Pod::config(bed)).await.expect("run");
    assert!(processes::kill_role(Role::Gofer, &pod.id) > 0);
    for id in &containers {
        pod.ended(id).await;
    }
    let alive = other
        .launch(other.shell("main", "exit 0"))
        .await
        .expect("launch");
    assert_eq!(other.ended(&alive).await.exit_code, 0);
    other.remove().await;
    pod.remove().await;
}

async fn containerd_restarted_finds_running_pods(bed: &Bed) {
    let mut pod = Pod::run(Pod::config(bed)).await.expect("run");
    let containers = pair(&pod).await;
    bed.kill_containerd();
    bed.start_containerd().await;
    pod.cri = Cri::connect().await;
    for id in &containers {
        assert_eq!(
            pod.status(id).await.state(),
            ContainerState::ContainerRunning
        );
        assert_eq!(
            pod.exec(id, &["echo", "alive"]).await,
            (0, "alive\n".into())
        );
    }
    let more = pod
        .launch(pod.shell("more", "exit 4"))
        .await
        .expect("launch");
    assert_eq!(pod.ended(&more).await.exit_code, 4);
    pod.remove().await;
}

async fn an_exit_while_containerd_is_away_is_told(bed: &Bed) {
    let mut pod = Pod::run(Pod::config(bed)).await.expect("run");
    let stays = pod
        .launch(pod.container("stays", &["sleep", "1000"]))
        .await
        .expect("launch");
    let ends = pod
        .launch(pod.shell("ends", "sleep 2; exit 5"))
        .await
        .expect("launch");
    bed.kill_containerd();
    tokio::time::sleep(Duration::from_secs(3)).await;
    bed.start_containerd().await;
    pod.cri = Cri::connect().await;
    assert_eq!(pod.ended(&ends).await.exit_code, 5);
    assert_eq!(
        pod.status(&stays).await.state(),
        ContainerState::ContainerRunning
    );
    pod.remove().await;
}

async fn a_malformed_container_leaves_the_others_unharmed(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let good = pod
        .launch(pod.container("good", &["sleep", "1000"]))
        .await
        .expect("launch");
    let bad = pod
        .create(pod.container("bad", &["/no/such/program"]))
        .await
        .expect("create");
    pod.start(&bad).await.expect_err("no such program");
    assert_eq!(
        pod.exec(&good, &["echo", "alive"]).await,
        (0, "alive\n".into())
    );
    pod.remove_container(&bad).await;
    assert_eq!(
        pod.exec(&good, &["echo", "alive"]).await,
        (0, "alive\n".into())
    );
    pod.remove().await;
}

async fn a_container_cannot_be_made_in_a_stopped_pod(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    pod.stop().await;
    pod.create(pod.container("late", &["true"]))
        .await
        .expect_err("the pod has been stopped");
    pod.remove().await;
}

async fn a_new_shim_binary_serves_new_pods_and_the_old_one_its_own(bed: &Bed) {
    let old = Pod::run(Pod::config(bed)).await.expect("run");
    let id = old
        .launch(old.container("main", &["sleep", "1000"]))
        .await
        .expect("launch");
    let binary = bed.runtime.binary();
    let (link, copy) = (
        Path::new(PATH_FOLDER).join(&binary),
        bed.folder.join("upgrade"),
    );
    fs::create_dir_all(&copy).expect("make a folder");
    let real = tool(&binary).expect("the shim");
    fs::copy(&real, copy.join(&binary)).expect("copy the shim");
    let swap = |target: &Path| {
        let new = link.with_extension("new");
        std::os::unix::fs::symlink(target, &new).expect("link");
        fs::rename(&new, &link).expect("swap");
    };
    swap(&copy.join(&binary));
    let new = Pod::run(Pod::config(bed)).await;
    swap(&real);
    let new = new.expect("run");
    let program = |pod: &Pod| {
        let shim = processes::of(Role::Shim, &pod.id);
        fs::read_link(format!("/proc/{}/exe", shim[0].pid)).expect("the shim's program")
    };
    assert_eq!(program(&new), copy.join(&binary));
    assert_eq!(program(&old), real);
    assert_eq!(
        old.exec(&id, &["echo", "alive"]).await,
        (0, "alive\n".into())
    );
    let more = old
        .launch(old.shell("more", "exit 6"))
        .await
        .expect("launch");
    assert_eq!(old.ended(&more).await.exit_code, 6);
    eventually("two shims", Duration::from_secs(5), || {
        processes::of(Role::Shim, &old.id).len() + processes::of(Role::Shim, &new.id).len() == 2
    })
    .await;
    new.remove().await;
    old.remove().await;
    fs::remove_dir_all(&copy).expect("remove the copy");
}
