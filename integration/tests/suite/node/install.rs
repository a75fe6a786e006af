//! `bulkhead install` and `uninstall` into a private root, with configurations of real containerds that read what came out. What runs
//! by it is in `tests/pods/node/install.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use integration::bed::{Bed, PATH_FOLDER, tool};
use integration::cases;
use integration::processes::eventually;
use integration::runtime::Needs;
use integration::sidecars::{PREWARMER, SENTRY, Sidecars};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount, umount};

cases! {
    Needs::Tool("bulkhead") => [
        a_dry_run_shows_everything_and_changes_nothing,
        what_containerd_2_prints_as_its_configuration_gets_an_import,
        what_containerd_1_7_prints_as_its_configuration_gets_the_handlers,
        a_second_time_there_is_nothing_to_do,
        what_an_administrator_changed_stays,
        uninstall_leaves_what_was_there_before,
        a_node_that_cannot_be_installed_to_is_refused_and_left,
        an_old_runsc_is_refused,
        what_is_beside_runsc_comes_and_goes_with_it,
        a_package_is_not_hidden_by_a_copy,
        two_first_installations_do_not_meet,
        no_other_user_can_hold_an_installation_back,
        a_package_is_not_removed_while_sandboxes_run,
        a_package_is_not_removed_while_a_sandbox_has_lost_its_shim,
        a_package_takes_the_place_of_copies,
        root_needs_no_capability_of_its_own,
    ],
}

/// A node's file system of its own.
struct Node {
    root: PathBuf,
}

/// Everything below a folder: mode, and content, or what shows that a large file was written anew.
type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

impl Node {
    fn new(bed: &Bed) -> Self {
        let root = bed.folder.join(bed.id("node"));
        fs::create_dir(&root).expect("make a folder");
        Self { root }
    }

    /// With what this containerd prints as its configuration.
    fn with_default_of(bed: &Bed, containerd: &Path) -> Self {
        let node = Self::new(bed);
        let output = Command::new(containerd)
            .args(["config", "default"])
            .output();
        node.write(
            "etc/containerd/config.toml",
            &text(&output.expect("run containerd").stdout),
        );
        node
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, text).expect("write");
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn run(&self, args: &[&str]) -> Output {
        let root = self.root.display().to_string();
        let mut all = args.to_vec();
        all.extend(["--root", &root]);
        bulkhead(&all)
    }

    fn ok(&self, args: &[&str]) -> String {
        said(&self.run(args))
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        walk(&self.root, &mut tree);
        tree
    }
}

fn walk(folder: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(folder).expect("list").flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().expect("stat"));
        let content = match metadata.len() {
            _ if metadata.is_dir() => Vec::new(),
            0..1_000_000 => fs::read(&path).expect("read"),
            size => format!("{size} {} {}", metadata.ino(), metadata.mtime_nsec()).into_bytes(),
        };
        tree.insert(path.clone(), (metadata.permissions().mode(), content));
        if metadata.is_dir() {
            walk(&path, tree);
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bulkhead(args: &[&str]) -> Output {
    let output = Command::new(tool("bulkhead").expect("found before"))
        .env(
            "PATH",
            format!("{PATH_FOLDER}:/usr/sbin:/usr/bin:/sbin:/bin"),
        )
        .args(args)
        .output();
    output.expect("run bulkhead")
}

/// What a run that went well printed.
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// What a run that was refused complained of.
fn complained(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    text(&output.stderr)
}

fn old_containerd() -> PathBuf {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/containerd-1.7/containerd");
    assert!(path.is_file(), "{} is missing: make tools", path.display());
    path
}

/// What a containerd makes of a configuration, with this node's `/etc/containerd` in the place of the machine's.
fn dump(containerd: &Path, node: &Node) -> toml::Table {
    let (place, none) = ("/etc/containerd", None::<&str>);
    fs::create_dir_all(place).expect("make a folder");
    let folder = node.root.join("etc/containerd");
    mount(Some(&folder), place, none, MsFlags::MS_BIND, none).expect("bind");
    let output = Command::new(containerd).args(["config", "dump"]).output();
    umount(place).expect("unmount");
    let output = output.expect("run containerd");
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout).parse().expect("TOML")
}

/// Handlers that run Bulkhead: name, and the policy of its own.
fn handlers(dump: &toml::Table, plugin: &str) -> Vec<(String, Option<String>)> {
    let runtimes = &dump["plugins"][plugin]["containerd"]["runtimes"];
    let runtimes = runtimes.as_table().expect("a table").iter();
    let ours = runtimes
        .filter(|(_, one)| one["runtime_type"].as_str() == Some("io.containerd.bulkhead.v1"));
    ours.map(|(name, one)| {
        assert_eq!(one["pod_annotations"].as_array().expect("a list").len(), 1);
        let policy = one
            .get("options")
            .and_then(|options| options.get("ConfigPath"));
        (
            name.clone(),
            policy.and_then(toml::Value::as_str).map(str::to_owned),
        )
    })
    .collect()
}

fn both() -> [(String, Option<String>); 2] {
    let network = Some("/etc/bulkhead/network.toml".to_owned());
    [
        ("bulkhead".to_owned(), None),
        ("bulkhead-net".to_owned(), network),
    ]
}

const INSTALLED: [&str; 6] = [
    "usr/local/bin/bulkhead",
    "usr/local/bin/containerd-shim-bulkhead-v1",
    "etc/bulkhead/config.toml",
    "etc/bulkhead/network.toml",
    "etc/bulkhead/runtimeclass.yaml",
    "var/lib/bulkhead/installed.json",
];

async fn a_dry_run_shows_everything_and_changes_nothing(bed: &Bed) {
    let node = Node::with_default_of(bed, &tool("containerd").expect("containerd"));
    // The default imports a folder; this one does not.
    let config = node.read("etc/containerd/config.toml");
    let config = config.replace(
        "imports = ['/etc/containerd/conf.d/*.toml']",
        "imports = []",
    );
    node.write("etc/containerd/config.toml", &config);
    let before = node.tree();
    let shown = node.ok(&["install", "--dry-run"]);
    assert_eq!(node.tree(), before);
    for path in INSTALLED.iter().filter(|path| !path.ends_with("json")) {
        assert!(
            shown.contains(&format!("put     /{path}")),
            "{path}: {shown}"
        );
    }
    for line in [
        "edit    /etc/containerd/config.toml",
        "-imports = []",
        "+imports = [\"/etc/containerd/conf.d/bulkhead*.toml\"]",
        "+++ /etc/containerd/conf.d/bulkhead.toml",
        "+runtime_type = \"io.containerd.bulkhead.v1\"",
        "nothing was changed: --dry-run",
    ] {
        assert!(shown.lines().any(|one| one == line), "{line}: {shown}");
    }
    // And the real run does what was shown.
    let done = node.ok(&["install"]);
    let actions = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| line.starts_with("put") || line.starts_with("edit"));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(actions(&done), actions(&shown));
    let before = node.tree();
    node.ok(&["uninstall", "--dry-run"]);
    assert_eq!(node.tree(), before);
}

async fn what_containerd_2_prints_as_its_configuration_gets_an_import(bed: &Bed) {
    let containerd = tool("containerd").expect("containerd");
    for imports in ["[]", "['/etc/containerd/conf.d/*.toml']"] {
        let node = Node::with_default_of(bed, &containerd);
        let config = node.read("etc/containerd/config.toml");
        let config = config.replace(
            "imports = ['/etc/containerd/conf.d/*.toml']",
            &format!("imports = {imports}"),
        );
        node.write("etc/containerd/config.toml", &config);
        node.ok(&["install"]);
        for path in INSTALLED {
            assert!(node.root.join(path).is_file(), "{path}");
        }
        // What is imported already needs no edit.
        assert_eq!(
            node.read("etc/containerd/config.toml") == config,
            imports != "[]"
        );
        assert_eq!(
            handlers(&dump(&containerd, &node), "io.containerd.cri.v1.runtime"),
            both()
        );
    }
    // A node without any configuration gets the smallest one.
    let node = Node::new(bed);
    node.ok(&["install", "--containerd-version", "2"]);
    assert_eq!(
        handlers(&dump(&containerd, &node), "io.containerd.cri.v1.runtime"),
        both()
    );
}

async fn what_containerd_1_7_prints_as_its_configuration_gets_the_handlers(bed: &Bed) {
    let containerd = old_containerd();
    let node = Node::with_default_of(bed, &containerd);
    // An administrator's own settings have to be there afterwards.
    let config = node.read("etc/containerd/config.toml");
    let config = config.replace("registry.k8s.io/pause:3.8", "own.test/pause:1");
    assert!(config.contains("own.test"));
    node.write("etc/containerd/config.toml", &config);
    node.ok(&["install"]);
    let plugin = "io.containerd.grpc.v1.cri";
    let read = dump(&containerd, &node);
    assert_eq!(handlers(&read, plugin), both());
    assert_eq!(
        read["plugins"][plugin]["sandbox_image"].as_str(),
        Some("own.test/pause:1")
    );
    assert!(
        read["plugins"][plugin]["containerd"]["runtimes"]
            .get("runc")
            .is_some()
    );
    // A containerd 2 that the node is upgraded to reads the same file.
    let newer = dump(&tool("containerd").expect("containerd"), &node);
    assert_eq!(handlers(&newer, "io.containerd.cri.v1.runtime"), both());
    let node = Node::new(bed);
    node.ok(&["install", "--containerd-version", "1.7"]);
    assert_eq!(handlers(&dump(&containerd, &node), plugin), both());
}

async fn a_second_time_there_is_nothing_to_do(bed: &Bed) {
    for containerd in [tool("containerd").expect("containerd"), old_containerd()] {
        let node = Node::with_default_of(bed, &containerd);
        node.ok(&["install"]);
        let before = node.tree();
        assert_eq!(node.ok(&["install"]), "nothing to do\n");
        assert_eq!(node.ok(&["install", "--dry-run"]), "nothing to do\n");
        assert_eq!(node.tree(), before);
    }
}

async fn what_an_administrator_changed_stays(bed: &Bed) {
    let node = Node::with_default_of(bed, &old_containerd());
    node.write(
        "etc/bulkhead/network.toml",
        "network = \"sandbox\"\nlimits.pids = 32\n",
    );
    let shown = node.ok(&["install"]);
    assert!(
        shown.contains("note: /etc/bulkhead/network.toml is not as"),
        "{shown}"
    );
    assert!(shown.contains("-limits.pids = 32"), "{shown}");
    assert!(node.read("etc/bulkhead/network.toml").contains("pids = 32"));
    assert!(
        !node
            .read("etc/bulkhead/network.toml.bulkhead-new")
            .contains("pids = 32")
    );
    // Said again, done no more.
    let again = node.ok(&["install"]);
    assert!(
        again.contains("note: /etc/bulkhead/network.toml") && again.ends_with("nothing to do\n"),
        "{again}"
    );
    // A handler that was changed, and a policy.
    let config =
        node.read("etc/containerd/config.toml")
            .replacen("\"dev.bulkhead.*\"", "\"dev.*\"", 1);
    node.write("etc/containerd/config.toml", &config);
    let policy = node.read("etc/bulkhead/config.toml") + "limits.pids = 33\n";
    node.write("etc/bulkhead/config.toml", &policy);
    let again = node.ok(&["install"]);
    assert!(again.contains("handler bulkhead is not as"), "{again}");
    assert_eq!(node.read("etc/containerd/config.toml"), config);
    let shown = node.ok(&["uninstall"]);
    assert!(
        shown.contains("/etc/bulkhead/config.toml was changed"),
        "{shown}"
    );
    assert!(shown.contains("handler bulkhead was changed"), "{shown}");
    assert_eq!(node.read("etc/bulkhead/config.toml"), policy);
    assert!(node.read("etc/bulkhead/network.toml").contains("pids = 32"));
    let config = node.read("etc/containerd/config.toml");
    assert!(
        config.contains("\"dev.*\"") && !config.contains("bulkhead-net"),
        "{config}"
    );
    // A program that is somebody else's stops everything, and is kept beside when that is asked for.
    node.write("usr/local/bin/containerd-shim-bulkhead-v1", "theirs");
    let before = node.tree();
    let complaint = complained(&node.run(&["install"]));
    assert!(
        complaint.contains("nothing was changed: /usr/local/bin/containerd-shim"),
        "{complaint}"
    );
    assert_eq!(node.tree(), before);
    node.ok(&["install", "--replace"]);
    assert_eq!(
        node.read("usr/local/bin/containerd-shim-bulkhead-v1.bulkhead-old"),
        "theirs"
    );
}

async fn uninstall_leaves_what_was_there_before(bed: &Bed) {
    let newer = tool("containerd").expect("containerd");
    for (containerd, imports) in [
        (Some(newer.clone()), false),
        (Some(newer), true),
        (Some(old_containerd()), true),
        (None, true),
    ] {
        let node = match &containerd {
            Some(containerd) => Node::with_default_of(bed, containerd),
            None => Node::new(bed),
        };
        if !imports {
            let config = node.read("etc/containerd/config.toml");
            node.write(
                "etc/containerd/config.toml",
                &config.replace("imports = ['/etc/containerd/conf.d/*.toml']\n", ""),
            );
        }
        node.write("etc/hostname", "node\n");
        let before = node.tree();
        node.ok(&["install", "--containerd-version", "2"]);
        assert_ne!(node.tree(), before);
        node.ok(&["uninstall"]);
        assert_eq!(node.tree(), before, "{containerd:?}");
        assert!(node.ok(&["uninstall"]).starts_with("nothing to do"));
    }
}

async fn a_node_that_cannot_be_installed_to_is_refused_and_left(bed: &Bed) {
    let cases = [
        ("disabled_plugins = [\"cri\"]\n", "is of version 1"),
        ("version = [\n", "mend it first"),
        (
            "version = 3\nimports = [\"/etc/containerd/missing.toml\"]\n",
            "missing.toml",
        ),
        ("version = 3\nimports = 7\n", "imports is not a list"),
        ("version = 2\nplugins = { }\n", "on one line"),
        (
            "version = 2\nimports = [\"/etc/containerd/cri.toml\"]\n",
            "containerd 1.7 takes instead",
        ),
    ];
    for (config, expected) in cases {
        let node = Node::new(bed);
        node.write("etc/containerd/config.toml", config);
        node.write(
            "etc/containerd/cri.toml",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n",
        );
        let before = node.tree();
        for args in [&["install"][..], &["install", "--dry-run"]] {
            let complaint = complained(&node.run(args));
            assert!(complaint.contains(expected), "{config}: {complaint}");
            assert!(
                complaint.contains("/etc/containerd/") && complaint.contains("nothing was changed"),
                "{complaint}"
            );
        }
        assert_eq!(node.tree(), before);
        // The rest can do without containerd's configuration.
        node.ok(&["install", "--without", "containerd"]);
        assert_eq!(node.read("etc/containerd/config.toml"), config);
    }
    let node = Node::new(bed);
    let complaint = complained(&node.run(&["install"]));
    assert!(
        complaint.contains("give --containerd-version"),
        "{complaint}"
    );
    node.write("usr", "a file");
    let complaint = complained(&node.run(&["install", "--containerd-version", "2"]));
    assert!(complaint.contains("/usr is not a folder"), "{complaint}");
    let complaint = complained(&node.run(&["install", "--prefix", "bin"]));
    assert!(
        complaint.contains("--prefix bin: must be an absolute path"),
        "{complaint}"
    );
}

/// What a package has put where containerd looks is upgraded there, so that a copy in front of it would stay what it is for ever.
async fn a_package_is_not_hidden_by_a_copy(bed: &Bed) {
    let node = Node::new(bed);
    node.write("etc/containerd/config.toml", "version = 3\n");
    node.ok(&["install"]);
    let copies =
        ["bulkhead", "containerd-shim-bulkhead-v1"].map(|name| format!("usr/local/bin/{name}"));
    for copy in &copies {
        assert!(node.root.join(copy).exists(), "{copy}");
    }
    node.write("usr/bin/containerd-shim-bulkhead-v1", "a package's");
    let said = node.ok(&["install"]);
    let note = "note: /usr/bin/containerd-shim-bulkhead-v1 is there, and containerd finds it";
    assert!(said.contains(note), "{said}");
    for copy in &copies {
        assert!(!node.root.join(copy).exists(), "{said}");
    }
    let said = node.ok(&["install"]);
    assert!(
        said.contains(note) && said.ends_with("nothing to do\n"),
        "{said}"
    );
    // Where containerd does not look, nothing is in front of anything.
    node.ok(&["install", "--prefix", "/opt/b"]);
    assert!(node.root.join("opt/b/bulkhead").exists());
    let shim = node.read("usr/bin/containerd-shim-bulkhead-v1");
    assert_eq!(shim, "a package's");
}

async fn two_first_installations_do_not_meet(bed: &Bed) {
    let node = Node::new(bed);
    node.write("etc/containerd/config.toml", "version = 3\n");
    node.write("var/lib/bulkhead/lock", "");
    let place = node.root.join("var/lib/bulkhead/lock");
    fs::set_permissions(&place, fs::Permissions::from_mode(0o600)).expect("chmod");
    let other = fs::File::open(&place).expect("open");
    let lock = Flock::lock(other, FlockArg::LockExclusiveNonblock);
    let lock = lock.map_err(|(_, error)| error).expect("a lock");
    let before = node.tree();
    for args in [["install"], ["uninstall"]] {
        let complaint = complained(&node.run(&args));
        assert!(
            complaint.contains("another installation is at work"),
            "{complaint}"
        );
    }
    assert_eq!(node.tree(), before);
    // One that was killed leaves the file, and it holds nobody back.
    drop(lock);
    node.ok(&["install"]);
    assert!(!place.exists());
}

/// What anybody can open, anybody can lock.
async fn no_other_user_can_hold_an_installation_back(bed: &Bed) {
    let node = Node::new(bed);
    node.write("etc/containerd/config.toml", "version = 3\n");
    let before = node.tree();
    for args in [
        &["install"][..],
        &["install", "--without", "policy"],
        &["uninstall"],
        &["uninstall", "--unless-running"],
    ] {
        let tree = node.tree();
        let open_to_all =
            |(path, (mode, _)): (&PathBuf, &(u32, _))| (mode & 0o004 != 0).then(|| path.clone());
        let mut paths: Vec<_> = tree.iter().filter_map(open_to_all).collect();
        paths.push(node.root.clone());
        let locks: Vec<_> = paths
            .iter()
            .map(|path| {
                let file = fs::File::open(path).expect("open");
                let lock = Flock::lock(file, FlockArg::LockSharedNonblock);
                lock.map_err(|(_, error)| error).expect("a lock")
            })
            .collect();
        node.ok(args);
        drop(locks);
    }
    assert_eq!(node.tree(), before);
}

async fn a_package_is_not_removed_while_sandboxes_run(bed: &Bed) {
    let node = Node::new(bed);
    node.ok(&["uninstall", "--unless-running"]);
    node.write("run/bulkhead/0123456789abcdef/bulkhead.json", "{}");
    let before = node.tree();
    let complaint = complained(&node.run(&["uninstall", "--unless-running"]));
    assert!(complaint.contains("1 sandbox runs"), "{complaint}");
    assert_eq!(node.tree(), before);
    // Without it there is nothing that would be taken away.
    assert!(node.ok(&["uninstall"]).starts_with("nothing to do"));
    fs::remove_dir_all(node.root.join("run")).expect("remove");
    // Where the policy of a handler of the node's own puts it.
    node.write(
        "etc/containerd/config.toml",
        "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.builds]\n\
         runtime_type = 'io.containerd.bulkhead.v1'\noptions = { ConfigPath = '/etc/bulkhead/builds.toml' }\n",
    );
    node.write("etc/bulkhead/builds.toml", "runsc.root = '/run/builds'\n");
    node.write("run/builds/0123456789abcdef/bulkhead.json", "{}");
    let complaint = complained(&node.run(&["uninstall", "--unless-running"]));
    assert!(
        complaint.contains("/run/builds/0123456789abcdef"),
        "{complaint}"
    );
    fs::remove_dir_all(node.root.join("run")).expect("remove");
    node.ok(&["uninstall", "--unless-running"]);
    // A shim that runs, wherever its sandbox is.
    node.write("usr/bin/containerd-shim-bulkhead-v1", "");
    let program = node.root.join("usr/bin/containerd-shim-bulkhead-v1");
    fs::copy("/usr/bin/sleep", &program).expect("copy");
    let mut shim = Command::new(&program).arg("1000").spawn().expect("run");
    let line = format!("/proc/{}/cmdline", shim.id());
    let name = program.as_os_str().as_encoded_bytes();
    eventually("it runs", Duration::from_secs(10), || {
        fs::read(&line).is_ok_and(|line| line.starts_with(name))
    })
    .await;
    let complaint = complained(&node.run(&["uninstall", "--unless-running"]));
    let expected = format!("1 sandbox runs (of the shim with pid {})", shim.id());
    shim.kill().expect("kill");
    shim.wait().expect("wait");
    assert!(complaint.contains(&expected), "{complaint}");
    node.ok(&["uninstall", "--unless-running"]);
}

/// The shim was killed while containerd was away: its `delete` needs the program still.
async fn a_package_is_not_removed_while_a_sandbox_has_lost_its_shim(bed: &Bed) {
    let node = Node::new(bed);
    // Not where any policy of now would put it.
    let folder = "run/earlier/0123456789abcdef";
    let sentry = format!("exec -a sentry sh -c 'read line' --root=/{folder}");
    let mut sentry = Command::new("bash")
        .args(["-c", &sentry])
        .stdin(Stdio::piped())
        .spawn()
        .expect("run");
    let line = format!("/proc/{}/cmdline", sentry.id());
    eventually("it runs", Duration::from_secs(10), || {
        fs::read(&line).is_ok_and(|line| line.starts_with(b"sentry"))
    })
    .await;
    let record = format!("{{\"sandbox_pid\": {}}}", sentry.id());
    node.write(&format!("{folder}/bulkhead.json"), &record);
    let here = node.root.join(folder);
    fs::set_permissions(&here, fs::Permissions::from_mode(0o700)).expect("chmod");
    drop(UnixListener::bind(here.join("metrics.sock")).expect("bind"));
    let refused = node.run(&["uninstall", "--unless-running"]);
    sentry.kill().expect("kill");
    sentry.wait().expect("wait");
    let complaint = complained(&refused);
    assert!(complaint.contains(&format!("/{folder}")), "{complaint}");
    node.ok(&["uninstall", "--unless-running"]);
}

/// The package's script, with the package's tool, after an installation from a release's folder.
async fn a_package_takes_the_place_of_copies(bed: &Bed) {
    let node = Node::new(bed);
    node.write("etc/containerd/config.toml", "version = 3\n");
    node.ok(&["install"]);
    fs::create_dir_all(node.root.join("usr/bin")).expect("make a folder");
    let names = ["bulkhead", "containerd-shim-bulkhead-v1"];
    for name in names {
        let program = tool(name).expect("found before");
        fs::copy(program, node.root.join("usr/bin").join(name)).expect("copy");
    }
    let copies = names.map(|name| node.root.join("usr/local/bin").join(name));
    let configure = |version: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shim/debian/postinst");
        let output = Command::new("/bin/sh")
            .arg(script)
            .arg("configure")
            .args(version)
            .env("DPKG_ROOT", &node.root)
            .output();
        let output = output.expect("run the script");
        assert!(output.status.success(), "{output:?}");
        text(&[output.stdout, output.stderr].concat())
    };
    // containerd calls the copy for what it was started by, by its whole path.
    let record = "run/bulkhead/0123456789abcdef/bulkhead.json";
    node.write(record, "{}");
    let said = configure(&[]);
    assert!(said.contains("1 sandbox runs"), "{said}");
    assert!(!copies[0].exists() && copies[1].exists(), "{said}");
    fs::remove_file(node.root.join(record)).expect("remove");
    let said = configure(&["0.0.0"]);
    assert!(!copies[1].exists(), "{said}");
    assert!(!said.contains("in place of"), "{said}");
    assert!(
        !node
            .read("var/lib/bulkhead/installed.json")
            .contains("/usr/local/bin/")
    );
    // One on no record is somebody's, with an installation and without.
    fs::create_dir_all(node.root.join("usr/local/bin")).expect("make a folder");
    for installed in [true, false] {
        node.write("usr/local/bin/bulkhead", "somebody's");
        if !installed {
            node.ok(&["uninstall"]);
        }
        let said = configure(&["0.0.0"]);
        assert!(
            said.contains("/usr/local/bin/bulkhead is run in place of /usr/bin/bulkhead"),
            "{said}"
        );
        assert_eq!(node.read("usr/local/bin/bulkhead"), "somebody's");
    }
}

async fn an_old_runsc_is_refused(bed: &Bed) {
    let node = Node::new(bed);
    let old = tool("old-runsc")
        .expect("old-runsc: make tools")
        .display()
        .to_string();
    let install = ["install", "--containerd-version", "2", "--runsc"];
    let complaint = complained(&node.run(&[&install[..], &[&old]].concat()));
    assert!(
        complaint.contains("old-runsc") && complaint.contains("allow_old_runsc"),
        "{complaint}"
    );
    let complaint = complained(&node.run(&[&install[..], &["/nonexistent/runsc"]].concat()));
    assert!(
        complaint.contains("/nonexistent/runsc: there is no such file"),
        "{complaint}"
    );
    assert!(node.tree().is_empty());
    let real = bed.runsc.as_ref().expect("runsc").display().to_string();
    node.ok(&[&install[..], &[&real]].concat());
    let installed = fs::metadata(node.root.join("usr/local/bin/runsc")).expect("runsc");
    assert_eq!(installed.permissions().mode() & 0o7777, 0o755);
}

async fn what_is_beside_runsc_comes_and_goes_with_it(bed: &Bed) {
    let node = Node::with_default_of(bed, &tool("containerd").expect("containerd"));
    let before = node.tree();
    let real = bed.runsc.as_ref().expect("runsc").display().to_string();
    let install = ["install", "--runsc", &real];
    let sidecars = Sidecars::beside_runsc(bed);
    let place = |name: &str| node.root.join("usr/local/bin/gvisor-bin").join(name);
    let shown = node.ok(&[&install[..], &["--dry-run"]].concat());
    assert_eq!(node.tree(), before);
    let put = |shown: &str| {
        let lines = shown.lines().filter(|line| line.contains("gvisor-bin"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(put(&shown).len(), 3, "a folder and two files: {shown}");
    assert_eq!(put(&node.ok(&install)), put(&shown));
    for name in [SENTRY, PREWARMER] {
        let read = |path: &Path| fs::read(path).expect("read");
        assert!(read(&place(name)) == read(&sidecars.at(name)), "{name}");
        let mode = fs::metadata(place(name))
            .expect("stat")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o755, "{name}");
    }
    assert_eq!(node.ok(&install), "nothing to do\n");
    // Without --runsc both stay.
    assert_eq!(node.ok(&["install"]), "nothing to do\n");
    // What cannot be believed is not put on a node.
    let installed = node.tree();
    let refused = |words: &[&str]| {
        let complaint = complained(&node.run(&install));
        for word in words {
            assert!(complaint.contains(word), "{word}: {complaint}");
        }
        assert_eq!(node.tree(), installed);
    };
    for path in [&sidecars.folder, &sidecars.at(SENTRY)] {
        let mode = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        mode(0o777).expect("chmod");
        refused(&[&path.display().to_string(), "has mode 0777", "chmod"]);
        mode(0o755).expect("chmod");
    }
    let kept = sidecars.at(".kept");
    fs::rename(sidecars.at(SENTRY), &kept).expect("move");
    sidecars.script(
        SENTRY,
        "#!/bin/sh\necho 'runsc version release-20250101.0'\n",
    );
    refused(&["gvisor_sentry is of \"release-20250101.0\""]);
    fs::rename(&kept, sidecars.at(SENTRY)).expect("move back");
    // A file of the release is mended, one is somebody's, and a release that has no folder takes it away.
    sidecars.script(PREWARMER, "#!/bin/sh\nexit 1\n");
    let mended = node.ok(&install);
    assert_eq!(put(&mended).len(), 1, "{mended}");
    fs::write(place(SENTRY), "somebody's").expect("write");
    drop(sidecars);
    let complaint = complained(&node.run(&install));
    assert!(
        complaint.contains("gvisor-bin/gvisor_sentry is there"),
        "{complaint}"
    );
    node.ok(&[&install[..], &["--replace"]].concat());
    assert!(!place(SENTRY).exists() && !place(PREWARMER).exists());
    let old = place("gvisor_sentry.bulkhead-old");
    assert_eq!(fs::read_to_string(&old).expect("kept"), "somebody's");
    fs::remove_file(old).expect("remove");
    let sidecars = Sidecars::beside_runsc(bed);
    node.ok(&install);
    assert!(place(SENTRY).is_file());
    drop(sidecars);
    let back = node.ok(&install);
    assert!(back.contains("of the runsc before"), "{back}");
    assert!(!place("").exists(), "{back}");
    let sidecars = Sidecars::beside_runsc(bed);
    node.ok(&install);
    drop(sidecars);
    node.ok(&["uninstall"]);
    assert_eq!(node.tree(), before);
}

/// As the init container of `docs/kubernetes/daemonset.yaml` has it.
async fn root_needs_no_capability_of_its_own(bed: &Bed) {
    let node = Node::with_default_of(bed, &tool("containerd").expect("containerd"));
    let before = node.tree();
    let run = |action: &str| {
        let output = Command::new("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"])
            .arg(tool("bulkhead").expect("found before"))
            .args([action, "--root"])
            .arg(&node.root)
            .output()
            .expect("run setpriv");
        said(&output)
    };
    run("install");
    assert!(
        node.root
            .join("etc/containerd/conf.d/bulkhead.toml")
            .is_file()
    );
    assert_eq!(run("install"), "nothing to do\n");
    run("uninstall");
    assert_eq!(node.tree(), before);
}
