//! What the containers of a pod share, and what they see of the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::bed::Bed;
use integration::cases;
use integration::cri::{Pod, mount};
use integration::policy::NodePolicy;
use integration::processes::eventually;
use integration::runtime::Needs;
use k8s_cri::v1::MountPropagation;
use nix::mount::{MsFlags, umount};

cases! {
    Needs::Any => [
        shm_is_shared_in_a_pod_and_bounded,
        an_empty_dir_is_shared_and_survives_its_containers,
        an_empty_dir_in_memory_is_shared_and_bounded,
        an_empty_dir_at_dev_shm_is_what_is_there,
        a_fifo_in_an_empty_dir_connects_containers,
        a_volume_can_be_read_only_in_one_container,
        a_config_map_is_read_and_follows_the_node,
        a_sub_path_of_a_config_map_and_of_a_mounted_volume_is_given,
        hosts_and_resolv_conf_are_there,
    ],
    Needs::Bulkhead => [
        a_part_of_an_empty_dir_is_refused_with_its_reason,
        a_sub_path_of_a_host_folder_is_refused,
        a_forged_hint_of_a_pod_has_no_effect,
        a_read_only_volume_is_so_with_what_is_mounted_below_it,
        what_the_host_mounts_later_stays_outside,
        what_the_host_mounts_later_appears_where_the_policy_gives_it,
        a_folder_of_the_host_is_refused_by_name,
        a_folder_of_the_host_is_given_as_the_policy_lists_it,
    ],
}

/// An empty dir, as the kubelet makes it before the pod.
fn empty_dir(config: &k8s_cri::v1::PodSandboxConfig, name: &str) -> PathBuf {
    let uid = &config.metadata.as_ref().expect("metadata").uid;
    let path = PathBuf::from(integration::cri::KUBELET)
        .join("pods")
        .join(uid)
        .join("volumes/kubernetes.io~empty-dir")
        .join(name);
    fs::create_dir_all(&path).expect("make the volume");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&path, mode).expect("open the volume");
    path
}

async fn shm_is_shared_in_a_pod_and_bounded(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let one = pod
        .launch(pod.shell("one", "echo shared >/dev/shm/x; sleep 1000"))
        .await
        .expect("launch");
    let two = pod
        .launch(pod.container("two", &["sleep", "1000"]))
        .await
        .expect("launch");
    assert_eq!(
        pod.exec(&two, &["cat", "/dev/shm/x"]).await,
        (0, "shared\n".into())
    );
    let (code, _) = pod
        .exec(
            &one,
            &["dd", "if=/dev/zero", "of=/dev/shm/y", "bs=1M", "count=70"],
        )
        .await;
    assert_ne!(code, 0, "more than its size fits into /dev/shm");
    pod.remove().await;
}

async fn an_empty_dir_is_shared_and_survives_its_containers(bed: &Bed) {
    let config = Pod::config(bed);
    let volume = empty_dir(&config, "work");
    let pod = Pod::run(config).await.expect("run");
    let with = |mut config: k8s_cri::v1::ContainerConfig| {
        config.mounts.push(mount(&volume, "/work", false));
        config
    };
    let writer = pod
        .launch(with(pod.shell("writer", "echo kept >/work/x")))
        .await
        .expect("launch");
    assert_eq!(pod.ended(&writer).await.exit_code, 0);
    pod.remove_container(&writer).await;
    let reader = pod
        .launch(with(pod.shell("reader", "cat /work/x; sleep 1000")))
        .await
        .expect("launch");
    assert_eq!(
        pod.exec(&reader, &["cat", "/work/x"]).await,
        (0, "kept\n".into())
    );
    pod.remove().await;
    assert!(!volume.exists());
}

async fn an_empty_dir_in_memory_is_shared_and_bounded(bed: &Bed) {
    let config = Pod::config(bed);
    let volume = empty_dir(&config, "fast");
    let size = Some("size=8m");
    nix::mount::mount(Some("fast"), &volume, Some("tmpfs"), MsFlags::empty(), size).expect("mount");
    let pod = Pod::run(config).await.expect("run");
    let with = |mut config: k8s_cri::v1::ContainerConfig| {
        config.mounts.push(mount(&volume, "/fast", false));
        config
    };
    let one = pod
        .launch(with(pod.shell("one", "echo shared >/fast/x; sleep 1000")))
        .await
        .expect("launch");
    let two = pod
        .launch(with(pod.container("two", &["sleep", "1000"])))
        .await
        .expect("launch");
    assert_eq!(
        pod.exec(&two, &["cat", "/fast/x"]).await,
        (0, "shared\n".into())
    );
    let (code, _) = pod
        .exec(
            &one,
            &["dd", "if=/dev/zero", "of=/fast/y", "bs=1M", "count=9"],
        )
        .await;
    assert_ne!(code, 0, "more than its size fits into the volume");
    pod.stop().await;
    umount(&volume).expect("unmount");
    pod.remove().await;
}

/// PyTorch's usual way to more shared memory.
async fn an_empty_dir_at_dev_shm_is_what_is_there(bed: &Bed) {
    let config = Pod::config(bed);
    let volume = empty_dir(&config, "shm");
    let size = Some("size=80m");
    nix::mount::mount(Some("shm"), &volume, Some("tmpfs"), MsFlags::empty(), size).expect("mount");
    let pod = Pod::run(config).await.expect("run");
    let with = |mut config: k8s_cri::v1::ContainerConfig, place: &str| {
        config.mounts.push(mount(&volume, place, false));
        config
    };
    // More than the policy's own and the CRI's have.
    let fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count=70 2>/dev/null && echo fits; sleep 1000";
    let one = with(pod.shell("one", fill), "/dev/shm");
    pod.launch(one).await.expect("launch");
    let two = with(pod.container("two", &["sleep", "1000"]), "/other");
    let two = pod.launch(two).await.expect("launch");
    let has_filled = || pod.log("one").contains("fits");
    eventually("it fits", Duration::from_secs(20), has_filled).await;
    let size = pod.exec(&two, &["stat", "-c", "%s", "/other/x"]).await;
    assert_eq!(
        size,
        (
            0,
            "73400320
"
            .into()
        )
    );
    let (_, there) = pod.exec(&two, &["ls", "/dev/shm"]).await;
    assert_eq!(there, "", "the pod's own is another one");
    pod.stop().await;
    umount(&volume).expect("unmount");
    pod.remove().await;
}

async fn a_fifo_in_an_empty_dir_connects_containers(bed: &Bed) {
    let config = Pod::config(bed);
    let volume = empty_dir(&config, "run");
    let pod = Pod::run(config).await.expect("run");
    let with = |mut config: k8s_cri::v1::ContainerConfig| {
        config.mounts.push(mount(&volume, "/work", false));
        config
    };
    let server = pod
        .launch(with(pod.container("server", &["sleep", "1000"])))
        .await
        .expect("launch");
    let client = pod
        .launch(with(pod.container("client", &["sleep", "1000"])))
        .await
        .expect("launch");
    assert_eq!(pod.exec(&server, &["mkfifo", "/work/f"]).await.0, 0);
    let reads = pod.exec(&server, &["cat", "/work/f"]);
    let writes = pod.exec(&client, &["sh", "-c", "echo through >/work/f"]);
    let (read, written) = tokio::join!(reads, writes);
    assert_eq!((read, written.0), ((0, "through\n".into()), 0));
    pod.remove().await;
}

async fn a_volume_can_be_read_only_in_one_container(bed: &Bed) {
    let config = Pod::config(bed);
    let volume = empty_dir(&config, "work");
    let pod = Pod::run(config).await.expect("run");
    let with = |mut config: k8s_cri::v1::ContainerConfig, readonly| {
        config.mounts.push(mount(&volume, "/work", readonly));
        config
    };
    let reads = pod
        .launch(with(pod.container("reads", &["sleep", "1000"]), true))
        .await
        .expect("launch");
    let writes = pod
        .launch(with(pod.container("writes", &["sleep", "1000"]), false))
        .await
        .expect("launch");
    assert_eq!(pod.exec(&writes, &["touch", "/work/x"]).await.0, 0);
    assert_eq!(pod.exec(&reads, &["ls", "/work"]).await, (0, "x\n".into()));
    assert_ne!(pod.exec(&reads, &["touch", "/work/y"]).await.0, 0);
    pod.remove().await;
}

async fn a_config_map_is_read_and_follows_the_node(bed: &Bed) {
    let config = Pod::config(bed);
    let uid = &config.metadata.as_ref().expect("metadata").uid;
    let volume = PathBuf::from(integration::cri::KUBELET)
        .join("pods")
        .join(uid)
        .join("volumes/kubernetes.io~configmap/settings");
    // The kubelet writes a folder and swaps the link to it.
    let publish = |name: &str, text: &str| {
        fs::create_dir_all(volume.join(name)).expect("make a folder");
        fs::write(volume.join(name).join("key"), text).expect("write");
        let _ = fs::remove_file(volume.join("..new"));
        std::os::unix::fs::symlink(name, volume.join("..new")).expect("link");
        fs::rename(volume.join("..new"), volume.join("..data")).expect("swap");
    };
    publish("..1", "first\n");
    std::os::unix::fs::symlink("..data/key", volume.join("key")).expect("link");
    let pod = Pod::run(config).await.expect("run");
    let mut container = pod.container("main", &["sleep", "1000"]);
    container.mounts.push(mount(&volume, "/settings", true));
    let id = pod.launch(container).await.expect("launch");
    assert_eq!(
        pod.exec(&id, &["cat", "/settings/key"]).await,
        (0, "first\n".into())
    );
    publish("..2", "second\n");
    assert_eq!(
        pod.exec(&id, &["cat", "/settings/key"]).await,
        (0, "second\n".into())
    );
    assert_ne!(pod.exec(&id, &["touch", "/settings/x"]).await.0, 0);
    pod.remove().await;
}

async fn hosts_and_resolv_conf_are_there(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let id = pod
        .launch(pod.container("main", &["sleep", "1000"]))
        .await
        .expect("launch");
    let (code, _) = pod
        .exec(
            &id,
            &["cat", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"],
        )
        .await;
    assert_eq!(code, 0);
    let (_, name) = pod.exec(&id, &["hostname"]).await;
    assert_eq!(name.trim(), pod.config.hostname);
    pod.remove().await;
}

/// A part of a volume, where the kubelet binds it for a `subPath`, whatever kind of volume it is of.
struct SubPath(PathBuf);

impl SubPath {
    fn new(pod: &Pod, volume: &str, part: &Path) -> Self {
        let place = pod
            .folder()
            .join("volume-subpaths")
            .join(volume)
            .join("main/0");
        fs::create_dir_all(place.parent().expect("a folder")).expect("make a folder");
        if part.is_dir() {
            fs::create_dir(&place).expect("make a folder");
        } else {
            fs::write(&place, "").expect("make a file");
        }
        let bind = MsFlags::MS_BIND;
        nix::mount::mount(Some(part), &place, None::<&str>, bind, None::<&str>).expect("bind");
        Self(place)
    }
}

impl Drop for SubPath {
    fn drop(&mut self) {
        // The gofer of a container has it until it has ended.
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

async fn a_part_of_an_empty_dir_is_refused_with_its_reason(bed: &Bed) {
    let config = Pod::config(bed);
    let volume = empty_dir(&config, "work");
    let pod = Pod::run(config).await.expect("run");
    fs::create_dir(volume.join("part")).expect("make a folder");
    // By another name than the volume's: it is known by what it is.
    let part = SubPath::new(&pod, "other", &volume.join("part"));
    let mut container = pod.container("main", &["true"]);
    container.mounts.push(mount(&part.0, "/part", false));
    let id = pod.create(container).await.expect("create");
    let error = pod.start(&id).await.expect_err("refused");
    for text in ["subPath", "empty-dir"] {
        assert!(error.message().contains(text), "{text}: {error}");
    }
    drop(part);
    pod.remove().await;
}

async fn a_sub_path_of_a_host_folder_is_refused(bed: &Bed) {
    let folder = bed.folder.join(bed.id("host"));
    fs::create_dir_all(folder.join("etc")).expect("make a folder");
    fs::write(folder.join("etc/secret"), "of the node").expect("write");
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    for part in ["etc", "etc/secret"] {
        let part = SubPath::new(&pod, &part.replace('/', "-"), &folder.join(part));
        let mut container = pod.shell("main", "cat /x /x/secret; sleep 1000");
        container.mounts.push(mount(&part.0, "/x", false));
        let id = pod.create(container).await.expect("create");
        let error = pod.start(&id).await.expect_err("refused");
        for text in [part.0.to_str().expect("text"), "subPath", "hostPath"] {
            assert!(error.message().contains(text), "{text}: {error}");
        }
        pod.remove_container(&id).await;
    }
    pod.remove().await;
}

async fn a_sub_path_of_a_config_map_and_of_a_mounted_volume_is_given(bed: &Bed) {
    let config = Pod::config(bed);
    let volumes = PathBuf::from(integration::cri::KUBELET)
        .join("pods")
        .join(&config.metadata.as_ref().expect("metadata").uid)
        .join("volumes");
    let settings = volumes.join("kubernetes.io~configmap/settings/..1");
    fs::create_dir_all(&settings).expect("make the volume");
    fs::write(settings.join("key"), "of the pod\n").expect("write");
    let claim = volumes.join("kubernetes.io~csi/claim/mount");
    fs::create_dir_all(&claim).expect("make the volume");
    let tmpfs = nix::mount::mount(
        Some("claim"),
        &claim,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    );
    tmpfs.expect("mount");
    fs::create_dir(claim.join("part")).expect("make a folder");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(claim.join("part"), mode).expect("open the folder");
    let pod = Pod::run(config).await.expect("run");
    let key = SubPath::new(&pod, "settings", &settings.join("key"));
    let part = SubPath::new(&pod, "claim", &claim.join("part"));
    let mut container = pod.shell("main", "cat /etc/key && echo mine >/part/x");
    container.mounts.push(mount(&key.0, "/etc/key", true));
    container.mounts.push(mount(&part.0, "/part", false));
    let id = pod.launch(container).await.expect("launch");
    assert_eq!(pod.ended(&id).await.exit_code, 0);
    assert_eq!(pod.log("main"), "of the pod\n");
    let written = fs::read_to_string(claim.join("part/x"));
    assert_eq!(written.expect("the container's file"), "mine\n");
    pod.stop().await;
    drop((key, part));
    umount(&claim).expect("unmount");
    pod.remove().await;
}

async fn a_forged_hint_of_a_pod_has_no_effect(bed: &Bed) {
    let mut config = Pod::config(bed);
    for (field, value) in [
        ("source", "/dev/shm"),
        ("type", "bind"),
        ("share", "shared"),
    ] {
        config
            .annotations
            .insert(format!("dev.gvisor.spec.mount.v0.{field}"), value.into());
    }
    config
        .annotations
        .insert("dev.gvisor.flag.network".into(), "host".into());
    let pod = Pod::run(config).await.expect("run");
    let id = pod
        .launch(pod.shell("main", "grep -c : /proc/net/dev; df /dev/shm | tail -n 1"))
        .await
        .expect("launch");
    assert_eq!(pod.ended(&id).await.exit_code, 0);
    let log = pod.log("main");
    assert!(log.starts_with("1\n") && log.contains("16384"), "{log}");
    pod.remove().await;
}

async fn a_folder_of_the_host_is_refused_by_name(bed: &Bed) {
    let folder = bed.folder.join(bed.id("host"));
    fs::create_dir(&folder).expect("make a folder");
    let other = Pod::run(Pod::config(bed)).await.expect("run");
    let config = Pod::config(bed);
    let volume = empty_dir(&config, "work");
    let pod = Pod::run(config).await.expect("run");
    let link = volume.join("link");
    std::os::unix::fs::symlink(&folder, &link).expect("link");
    // Outside, a parent of what is its own, another pod's, and its own by name alone.
    let paths = [
        folder.as_path(),
        integration::cri::KUBELET.as_ref(),
        &other.folder(),
        &link,
    ];
    for (number, path) in paths.into_iter().enumerate() {
        // A name is the container's until it is removed.
        let mut container = pod.shell(&format!("main-{number}"), "sleep 1000");
        container.mounts.push(mount(path, "/x", true));
        let error = pod.launch(container).await.expect_err("refused");
        let name = if path == link { folder.as_path() } else { path };
        for text in [name.to_str().expect("text"), "binds.read_only"] {
            assert!(error.message().contains(text), "{text}: {error}");
        }
    }
    other.remove().await;
    pod.remove().await;
}

async fn a_read_only_volume_is_so_with_what_is_mounted_below_it(bed: &Bed) {
    let config = Pod::config(bed);
    let uid = &config.metadata.as_ref().expect("metadata").uid;
    let pods = PathBuf::from(integration::cri::KUBELET).join("pods");
    let volume = pods.join(uid).join("volumes/kubernetes.io~csi/data");
    let below = volume.join("below");
    fs::create_dir_all(&below).expect("make the volume");
    let no_data = None::<&str>;
    nix::mount::mount(
        Some("tmpfs"),
        &below,
        Some("tmpfs"),
        MsFlags::empty(),
        no_data,
    )
    .expect("mount a tmpfs");
    let pod = Pod::run(config).await.expect("run");
    for (name, recursive) in [("plain", false), ("recursive", true)] {
        let mut container = pod.container(name, &["sleep", "1000"]);
        // containerd refuses the recursive one of a runtime that does not say that it can.
        container.mounts.push(k8s_cri::v1::Mount {
            recursive_read_only: recursive,
            ..mount(&volume, "/data", true)
        });
        let id = pod.launch(container).await.expect("launch");
        for place in ["/data/x", "/data/below/x"] {
            let (code, _) = pod.exec(&id, &["touch", place]).await;
            assert_ne!(code, 0, "{name}: {place} was written");
        }
        let (code, text) = pod.exec(&id, &["ls", "/data/below"]).await;
        assert_eq!(code, 0, "{text}");
    }
    pod.stop().await;
    umount(&below).expect("unmount");
    pod.remove().await;
}

async fn what_the_host_mounts_later_stays_outside(bed: &Bed) {
    let empty = "/data:\nbelow\n\n/data/below:\n";
    assert_eq!(with_a_later_mount(bed).await, [empty; 3]);
}

/// By the container's request alone; and nothing that it mounts is to be seen on the host, which no container can.
async fn what_the_host_mounts_later_appears_where_the_policy_gives_it(bed: &Bed) {
    let _policy = NodePolicy::set("binds.propagation = true");
    let (empty, later) = (
        "/data:\nbelow\n\n/data/below:\n",
        "/data:\nbelow\n\n/data/below:\nlater\n",
    );
    assert_eq!(with_a_later_mount(bed).await, [empty, later, later]);
}

/// What containers see of what was mounted in their volume after they had started: one that asks for nothing of it, one for
/// the host's mounts, and one for both directions.
async fn with_a_later_mount(bed: &Bed) -> Vec<String> {
    let config = Pod::config(bed);
    let uid = &config.metadata.as_ref().expect("metadata").uid;
    let pods = PathBuf::from(integration::cri::KUBELET).join("pods");
    let volume = pods.join(uid).join("volumes/kubernetes.io~csi/data");
    let below = volume.join("below");
    fs::create_dir_all(&volume).expect("make the volume");
    let tmpfs = |place: &PathBuf, flags| {
        nix::mount::mount(Some("tmpfs"), place, Some("tmpfs"), flags, None::<&str>)
    };
    tmpfs(&volume, MsFlags::empty()).expect("mount the volume");
    tmpfs(&volume, MsFlags::MS_SHARED).expect("share the volume's mounts");
    fs::create_dir(&below).expect("make a folder");
    let pod = Pod::run(config).await.expect("run");
    let mut containers = Vec::new();
    for (name, propagation) in [
        ("private", MountPropagation::PropagationPrivate),
        ("slave", MountPropagation::PropagationHostToContainer),
        ("shared", MountPropagation::PropagationBidirectional),
    ] {
        let mut container = pod.container(name, &["sleep", "1000"]);
        container.mounts.push(k8s_cri::v1::Mount {
            propagation: propagation.into(),
            ..mount(&volume, "/data", false)
        });
        containers.push(pod.launch(container).await.expect("launch"));
    }
    tmpfs(&below, MsFlags::empty()).expect("mount later");
    fs::write(below.join("later"), "").expect("write");
    let mut seen = Vec::new();
    for id in &containers {
        let (code, text) = pod.exec(id, &["ls", "/data", "/data/below"]).await;
        assert_eq!(code, 0, "{text}");
        seen.push(text);
    }
    pod.stop().await;
    umount(&below).expect("unmount");
    umount(&volume).expect("unmount");
    pod.remove().await;
    seen
}

async fn a_folder_of_the_host_is_given_as_the_policy_lists_it(bed: &Bed) {
    let folder = bed.folder.join(bed.id("host"));
    let (models, results) = (folder.join("models"), folder.join("results"));
    for folder in [&models, &results] {
        fs::create_dir_all(folder).expect("make a folder");
        fs::write(folder.join("x"), "of the node").expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(folder, mode).expect("open the folder");
    }
    let policy = format!("[binds]\nread_only = [{models:?}]\nwritable = [{results:?}]\n");
    let _policy = NodePolicy::set(&policy);
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let script = "cat /models/x /results/x; echo mine >/results/y; echo mine >/models/y || exit 3";
    let mut container = pod.shell("main", script);
    container.mounts.push(mount(&models, "/models", false));
    container.mounts.push(mount(&results, "/results", false));
    let id = pod.launch(container).await.expect("launch");
    assert_eq!(pod.ended(&id).await.exit_code, 3);
    let written = |folder: &Path| fs::read_to_string(folder.join("y")).ok();
    assert_eq!(written(&results).as_deref(), Some("mine\n"));
    assert_eq!(written(&models), None);
    pod.remove().await;
}
