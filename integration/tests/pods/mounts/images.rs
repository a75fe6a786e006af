//! What the image of a pod's container brings: its /tmp and /run, and the volumes that it declares.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use integration::bed::{Bed, IMAGE};
use integration::cases;
use integration::cri::{NAMESPACE, Pod};
use integration::patience::patience;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use k8s_cri::v1::{ContainerConfig, ImageSpec};

cases! {
    Needs::Any => [
        what_an_image_has_in_tmp_and_run_is_there_in_a_pod,
        a_volume_of_an_image_is_its_users_to_write,
        redis_and_mariadb_start_on_the_folders_of_their_image,
    ],
    Needs::Bulkhead => [
        a_volume_of_an_image_has_a_size_unless_the_policy_leaves_it_on_the_host,
        a_volume_of_an_image_is_the_images_folder_in_a_writable_root,
    ],
}

const NAME: &str = "bulkhead.test/brought:latest";
const ARCHIVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testbed/oci_archive.py");

/// An image with something in each place, a user and a volume of its own.
fn image(bed: &Bed) {
    let tree = bed.folder.join("brought");
    let _ = fs::remove_dir_all(&tree);
    let copied = Command::new("cp").arg("-a").arg(IMAGE).arg(&tree).status();
    assert!(copied.expect("cp").success());
    let own = |path: &Path, mode: u32, user: u32| {
        chown(path, Some(user), Some(user)).expect("chown");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for (name, mode, user) in [
        ("tmp", 0o1777, 0),
        ("run", 0o755, 0),
        ("run/app", 0o750, 1000),
        ("data", 0o2770, 1000),
        ("data/sub", 0o700, 1000),
    ] {
        let folder = tree.join(name);
        fs::create_dir_all(&folder).expect("make a folder");
        own(&folder, mode, user);
    }
    for (name, text, mode, user) in [
        ("tmp/run.sh", "#!/bin/sh\necho ran\n", 0o755, 0),
        ("run/app/conf", "configured\n", 0o640, 1000),
        ("data/sub/file", "kept\n", 0o640, 1000),
    ] {
        let file = tree.join(name);
        fs::write(&file, text).expect("write");
        own(&file, mode, user);
    }
    let archive: PathBuf = bed.folder.join("brought.tar");
    let made = Command::new("python3")
        .args(["-I", ARCHIVE])
        .arg(&tree)
        .arg(NAME)
        .arg(&archive)
        .arg("sh")
        .env(
            "IMAGE_CONFIG",
            r#"{ "User": "1000:1000", "Volumes": { "/data": {} }, "WorkingDir": "/run/app" }"#,
        )
        .status();
    assert!(made.expect("python3").success());
    bed.import_archive(NAMESPACE, &archive);
    fs::remove_dir_all(&tree).expect("remove");
    fs::remove_file(&archive).expect("remove");
}

fn of_the_image(mut config: ContainerConfig) -> ContainerConfig {
    config.image = Some(ImageSpec {
        image: NAME.into(),
        ..ImageSpec::default()
    });
    config
}

/// Runs a script in a container of the image.
async fn run(bed: &Bed, policy: &str, script: &str) -> String {
    image(bed);
    let _policy = NodePolicy::set(policy);
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let container = pod
        .launch(of_the_image(pod.shell("one", "sleep 1000")))
        .await;
    let container = container.expect("launch");
    let (code, text) = pod.exec(&container, &["sh", "-c", script]).await;
    pod.remove().await;
    assert_eq!(code, 0, "{text}");
    text
}

async fn what_an_image_has_in_tmp_and_run_is_there_in_a_pod(bed: &Bed) {
    let script =
        "/tmp/run.sh; pwd; cat conf; echo new >new && cat new && stat -c '%a %u %g' . conf /tmp";
    let text = run(bed, "", script).await;
    assert_eq!(
        text,
        "ran\n/run/app\nconfigured\nnew\n750 1000 1000\n640 1000 1000\n1777 0 0\n"
    );
}

async fn a_volume_of_an_image_is_its_users_to_write(bed: &Bed) {
    let script = "cat /data/sub/file && echo new >/data/new && echo new >/data/sub/new && cat /data/new /data/sub/new && \
                  stat -c '%a %u %g' /data /data/sub /data/sub/file";
    let text = run(bed, "", script).await;
    assert_eq!(
        text,
        "kept\nnew\nnew\n2770 1000 1000\n700 1000 1000\n640 1000 1000\n"
    );
}

async fn a_volume_of_an_image_has_a_size_unless_the_policy_leaves_it_on_the_host(bed: &Bed) {
    let script = "dd if=/dev/zero of=/data/x bs=1M count=70 2>/dev/null || echo full; \
                  echo more >>/data/sub/file && echo written; cat /data/sub/file";
    let text = run(bed, "", &format!("{script}; true")).await;
    assert_eq!(text, "full\nkept\n");
    let text = run(bed, "image_volumes = \"host\"", script).await;
    assert_eq!(text, "written\nkept\nmore\n");
}

async fn a_volume_of_an_image_is_the_images_folder_in_a_writable_root(bed: &Bed) {
    let script = "echo more >>/data/sub/file && cat /data/sub/file && rm /tmp/run.sh 2>&1; mount | grep -c ' /data '; \
                  stat -c '%a %u %g' /data /data/sub /data/sub/file";
    let text = run(bed, "rootfs.writable = true", script).await;
    let refused = "rm: can't remove '/tmp/run.sh': Operation not permitted\n";
    assert_eq!(
        text,
        format!("kept\nmore\n{refused}0\n2770 1000 1000\n700 1000 1000\n640 1000 1000\n")
    );
}

/// Each as its package sets it up: by the name of its user, with a socket in its folder of /run and data in a volume of the image.
async fn redis_and_mariadb_start_on_the_folders_of_their_image(bed: &Bed) {
    const REDIS: &str = "exec redis-server /tmp/redis.conf";
    const REDIS_ASKS: &str = "redis-cli -s /run/redis/redis.sock set key kept && redis-cli -s /run/redis/redis.sock save && \
                              redis-cli -s /run/redis/redis.sock get key; test -s /data/dump.rdb && stat -c '%U' /data /run/redis";
    const MARIADB: &str = "mariadb-install-db --skip-test-db --auth-root-authentication-method=normal --innodb-log-file-size=4M \
                           >/tmp/log 2>&1 || cat /tmp/log; exec mariadbd --skip-networking --innodb-log-file-size=4M \
                           --innodb-buffer-pool-size=16M --socket=/run/mysqld/mysqld.sock";
    const MARIADB_ASKS: &str = "mariadb -N -u root --socket=/run/mysqld/mysqld.sock -e 'create database d; use d; \
                                create table t (x int); insert into t values (40), (2); select sum(x) from t' && \
                                stat -c '%U' /var/lib/mysql /run/mysqld";
    let ordinary = include_str!("../../../../docs/policies/ordinary.toml");
    bed.import(NAMESPACE, "databases");
    for policy in ["", ordinary] {
        let _policy = NodePolicy::set(policy);
        for (user, program, asks, says) in [
            ("redis", REDIS, REDIS_ASKS, "OK\nOK\nkept\nredis\nredis\n"),
            ("mysql", MARIADB, MARIADB_ASKS, "42\nmysql\nmysql\n"),
        ] {
            let pod = Pod::run(Pod::config(bed)).await.expect("run");
            let mut config = pod.shell("server", program);
            config.image = Some(ImageSpec {
                image: "bulkhead.test/databases:latest".into(),
                ..ImageSpec::default()
            });
            let linux = config.linux.as_mut().expect("linux");
            let context = linux.security_context.as_mut().expect("a context");
            user.clone_into(&mut context.run_as_username);
            let server = pod.launch(config).await.expect("launch");
            let mut said = (1, String::new());
            for _ in 0..60 {
                said = pod.exec(&server, &["sh", "-c", asks]).await;
                if said.0 == 0 {
                    break;
                }
                tokio::time::sleep(patience(Duration::from_millis(500))).await;
            }
            let log = Path::new(&pod.config.log_directory).join("server.log");
            let log = fs::read_to_string(log).unwrap_or_default();
            assert_eq!(said, (0, says.to_owned()), "{user} under {policy:?}: {log}");
            pod.remove().await;
        }
    }
}
