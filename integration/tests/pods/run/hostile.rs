//! What only the author of a pod can try: each is made on runc, to show that it is real, and on the runtime under test.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use integration::bed::Bed;
use integration::cases;
use integration::cri::{HANDLER, Pod, RUNC, mount};
use integration::runtime::Needs;
use k8s_cri::v1::{ContainerConfig, NamespaceMode, NamespaceOption};

cases! {
    Needs::Bulkhead => [
        what_a_pods_author_tries_is_held,
    ],
}

const SECRET: &str = "of the host alone";

/// Something of the host's, and a pod's way to it.
struct Attempt {
    name: &'static str,
    /// What the author writes of the pod and of its container.
    namespaces: fn(&mut NamespaceOption),
    is_privileged: bool,
    /// And of the container alone; the folder has the secret, in `key`.
    container: fn(&mut ContainerConfig, &Pod, &Path),
    script: String,
    /// What the script prints where it got it.
    sign: String,
}

fn nothing(_: &mut ContainerConfig, _: &Pod, _: &Path) {}

fn attempts() -> Vec<Attempt> {
    let read = || ("cat /host/key".to_owned(), SECRET.to_owned());
    let here = std::process::id();
    let of = |name, namespaces, container, (script, sign)| Attempt {
        name,
        namespaces,
        is_privileged: false,
        container,
        script,
        sign,
    };
    vec![
        of(
            "a file of the host by a hostPath",
            |_| (),
            |config, _, folder| config.mounts.push(mount(folder, "/host", true)),
            read(),
        ),
        of(
            "a file of the host by a link in a volume of its own",
            |_| (),
            |config, pod, folder| {
                let volume = pod.folder().join("volumes/kubernetes.io~csi/data/mount");
                fs::create_dir_all(&volume).expect("make a volume");
                symlink(folder, volume.join("link")).expect("link");
                let source = volume.join("link");
                config.mounts.push(mount(&source, "/host", true));
            },
            read(),
        ),
        of(
            "a folder of the host to write, by a hostPath",
            |_| (),
            |config, _, folder| config.mounts.push(mount(folder, "/host", false)),
            ("echo x >/host/new && ls /host".to_owned(), "new".to_owned()),
        ),
        of(
            "processes of the host by hostPID",
            |options| options.pid = NamespaceMode::Node.into(),
            nothing,
            (
                format!("tr '\\0' ' ' </proc/{here}/cmdline"),
                "pods-".to_owned(),
            ),
        ),
        of(
            "the host's network by hostNetwork",
            |options| options.network = NamespaceMode::Node.into(),
            nothing,
            ("cat /proc/net/dev".to_owned(), "pods0:".to_owned()),
        ),
        Attempt {
            is_privileged: true,
            ..of(
                "a device of the host by privileged",
                |_| (),
                nothing,
                ("ls /dev".to_owned(), "fuse".to_owned()),
            )
        },
    ]
}

/// Whether a pod by this handler gets it, or what it is refused with.
async fn got(bed: &Bed, handler: &str, attempt: &Attempt, folder: &Path) -> Result<bool, String> {
    let mut config = Pod::config(bed);
    let linux = config.linux.as_mut().expect("linux");
    let security = linux.security_context.as_mut().expect("security context");
    let namespaces = security.namespace_options.as_mut().expect("namespaces");
    (attempt.namespaces)(namespaces);
    // With the host's network comes the host's name: the kubelet gives none.
    if namespaces.network() == NamespaceMode::Node {
        config.hostname.clear();
    }
    security.privileged = attempt.is_privileged;
    let pod = Pod::run_by(handler, config).await;
    let pod = pod.map_err(|error| error.message().to_owned())?;
    let mut container = pod.shell("main", &attempt.script);
    let linux = container.linux.as_mut().expect("linux");
    let security = linux.security_context.as_mut().expect("security context");
    (attempt.namespaces)(security.namespace_options.as_mut().expect("namespaces"));
    security.privileged = attempt.is_privileged;
    (attempt.container)(&mut container, &pod, folder);
    let launched = pod.launch(container).await;
    let answer = match launched {
        Ok(id) => {
            pod.ended(&id).await;
            Ok(pod.log("main").contains(&attempt.sign))
        }
        Err(error) => Err(error.message().to_owned()),
    };
    pod.remove().await;
    answer
}

async fn what_a_pods_author_tries_is_held(bed: &Bed) {
    let mut rows = String::new();
    for attempt in attempts() {
        let folder: PathBuf = bed.folder.join(bed.id("host"));
        fs::create_dir_all(&folder).expect("make a folder");
        fs::write(folder.join("key"), SECRET).expect("write");
        let on_runc = got(bed, RUNC, &attempt, &folder).await;
        assert_eq!(on_runc, Ok(true), "{}: it is no attempt", attempt.name);
        let _ = fs::remove_file(folder.join("new"));
        let on_this = got(bed, HANDLER, &attempt, &folder).await;
        // A refusal says what was asked; another failure would show nothing.
        let refusal = on_this.expect_err(attempt.name);
        let words = ["hostPath", "hostPID", "hostNetwork", "privileged"];
        assert!(
            words.iter().any(|word| refusal.contains(word)),
            "{}: {refusal}",
            attempt.name
        );
        assert!(!folder.join("new").exists(), "{}", attempt.name);
        rows += &format!(
            "| the author of a pod | {} | **works** | held: refused by name |\n",
            attempt.name
        );
    }
    if let Some(table) = std::env::var_os("BULKHEAD_HOSTILE_TABLE") {
        let table = File::options().append(true).create(true).open(table);
        let mut table = table.expect("open the table");
        table.write_all(rows.as_bytes()).expect("write");
    }
}
