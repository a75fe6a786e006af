//! What a program finds around it, the same on every runtime: an image that can be written, the folder of an agent bound in,
//! a network, and, beside that folder on the host, what it must not get.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use integration::bed::Bed;
use integration::container::{Builder, overlay};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::contender::Contender;
use crate::outcome::Outcome;
use crate::wire::{HOST4, HOST6, Network, Wire, note};

/// The programs.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hostile");

fn image(bed: &Bed) -> PathBuf {
    bed.image_path("python")
}

/// Mounts the images.
pub(crate) fn prepare(bed: &Bed) {
    for image in ["python", "workbench"] {
        let _ = bed.image(image);
    }
}

/// One run of one program.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    bed: &'a Bed,
    /// Of the run, on the host.
    folder: PathBuf,
    change: fn(&mut Value),
}

impl<'a> Stage<'a> {
    pub(crate) fn set(bed: &'a Bed) -> Self {
        let folder = bed.folder.join(bed.id("stage"));
        for part in ["home/agent", "upper/opt"] {
            fs::create_dir_all(folder.join(part)).expect("make a folder");
        }
        Self {
            bed,
            folder,
            change: |_| {},
        }
    }

    /// With a change to the request.
    pub(crate) fn with(mut self, change: fn(&mut Value)) -> Self {
        self.change = change;
        self
    }

    fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    fn agent(&self) -> PathBuf {
        self.home().join("agent")
    }

    /// Runs a program on one of them and looks at what came of it.
    pub(crate) async fn play(&self, contender: Contender, program: &str) -> Outcome {
        let token = self.bed.id("token");
        let wire = Wire::listen(&token);
        let network = Network::new(self.bed);
        self.furnish(&token, wire.port);
        let peers = Peers::new(&self.agent(), &token);
        let builder = self.request(&network, program);
        let text = contender.run(self.bed, builder).await;
        drop(network);
        let mut heard = wire.finish();
        heard.extend(peers.finish(&token));
        Outcome::read(text, heard)
    }

    /// As an agent's code is commonly run: as root, with the usual capabilities, no limits, and everything to write to.
    fn request(&self, network: &Network, program: &str) -> Builder<'a> {
        let rootfs = overlay(&image(self.bed), &self.folder);
        let agent = self.agent();
        let change = self.change;
        let program = format!("/agent/{program}");
        let builder = self.bed.container(&["python3", "-B", &program]);
        builder.rootfs(rootfs).with(|spec| {
            spec["root"]["readonly"] = false.into();
            spec["process"]["noNewPrivileges"] = false.into();
            // containerd's own.
            spec["process"]["rlimits"] = json!([]);
            let mounts = spec["mounts"].as_array_mut().expect("a list");
            mounts.push(json!({
                "destination": "/agent", "type": "bind", "source": agent, "options": ["rbind", "rw"],
            }));
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
            for namespace in namespaces.iter_mut().filter(|n| n["type"] == "network") {
                namespace["path"] = json!(network.path);
            }
            change(spec);
        })
    }

    /// Plants what is to be stolen, and tells the program what to look for.
    fn furnish(&self, token: &str, port: u16) {
        let (home, agent) = (self.home(), self.agent());
        for entry in fs::read_dir(PROGRAMS).expect("list the programs").flatten() {
            fs::copy(entry.path(), agent.join(entry.file_name())).expect("copy a program");
        }
        let secret = format!("secret-of-{token}");
        fs::write(home.join(".env"), format!("API_KEY={secret}\n")).expect("plant a secret");
        symlink("..", agent.join("up")).expect("link");
        let read = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let meminfo = read("/proc/meminfo");
        let memory = meminfo.split_whitespace().nth(1).unwrap_or_default();
        let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let disks: Vec<String> = disks
            .map(|disk| disk.file_name().to_string_lossy().into_owned())
            .collect();
        let facts = json!({
            "secret": secret, "token": token, "home": home, "folder": self.folder, "disks": disks,
            "release": read("/proc/sys/kernel/osrelease"), "boot_id": read("/proc/sys/kernel/random/boot_id"),
            "command_line": read("/proc/cmdline"), "memory": memory, "cgroup": integration::client::NAMESPACE,
            "host4": HOST4, "host6": HOST6, "port": port,
        });
        fs::write(agent.join("facts.json"), facts.to_string()).expect("write the facts");
        self.furnish_image();
    }

    /// Programs that want to be root, in the image's writable layer.
    fn furnish_image(&self) {
        let upper = self.folder.join("upper/opt");
        let (set_uid, capable) = (upper.join("set-uid-id"), upper.join("capable"));
        fs::copy(image(self.bed).join("usr/bin/id"), &set_uid).expect("copy a program");
        fs::copy(image(self.bed).join("bin/cat"), &capable).expect("copy a program");
        fs::set_permissions(&set_uid, fs::Permissions::from_mode(0o4755)).expect("chmod");
        give_net_raw(&capable);
    }
}

/// Gives a program `CAP_NET_RAW` by its file: version 2 of `struct vfs_cap_data`, effective (`linux/capability.h`).
fn give_net_raw(program: &Path) {
    let mut value = [0; 20];
    value[..4].copy_from_slice(&0x0200_0001_u32.to_le_bytes());
    value[4..8].copy_from_slice(&(1_u32 << 13).to_le_bytes());
    let path = CString::new(program.as_os_str().as_bytes()).expect("a path");
    let name = c"security.capability".as_ptr();
    // SAFETY: both names end with zero, and the value is as long as is said.
    let result =
        unsafe { nix::libc::setxattr(path.as_ptr(), name, value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What listens in the folder that is bound in: a socket, a FIFO; and a device.
struct Peers {
    ways: Arc<Mutex<BTreeSet<String>>>,
    end: Arc<AtomicBool>,
    server: JoinHandle<()>,
    fifo: fs::File,
}

impl Peers {
    fn new(agent: &Path, token: &str) -> Self {
        let server = UnixListener::bind(agent.join("docker.sock")).expect("listen");
        server.set_nonblocking(true).expect("make it nonblocking");
        fs::set_permissions(agent.join("docker.sock"), fs::Permissions::from_mode(0o777))
            .expect("chmod");
        let path = agent.join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("make a FIFO");
        // Both ends: opening waits for nobody.
        let fifo = fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open the FIFO");
        assert!(fifo.metadata().expect("its metadata").file_type().is_fifo());
        let device = agent.join("device");
        // The kernel's log: of the standard devices gVisor has its own under the same numbers.
        mknod(
            &device,
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o666),
            makedev(1, 11),
        )
        .expect("make a node");
        let (ways, end) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let server = {
            let (ways, end, mark) = (Arc::clone(&ways), Arc::clone(&end), format!("{token}:"));
            std::thread::spawn(move || serve(&server, &end, &mark, &ways))
        };
        Self {
            ways,
            end,
            server,
            fifo,
        }
    }

    /// What came.
    fn finish(self, token: &str) -> BTreeSet<String> {
        use std::io::{Read as _, Write as _};
        self.end.store(true, Ordering::Relaxed);
        self.server.join().expect("end of the server");
        let mut fifo = self.fifo;
        fifo.write_all(b"\n").expect("something to read");
        let mut text = [0; 256];
        let size = fifo.read(&mut text).expect("read the FIFO");
        note(&text[..size], &format!("{token}:"), &self.ways);
        std::mem::take(&mut self.ways.lock().expect("unpoisoned"))
    }
}

/// Serves everybody who connects, as an engine's socket does.
fn serve(server: &UnixListener, end: &AtomicBool, mark: &str, ways: &Mutex<BTreeSet<String>>) {
    use std::io::{Read as _, Write as _};
    while !end.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = server.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        ways.lock().expect("unpoisoned").insert("connected".into());
        let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
        let mut text = [0; 256];
        let size = stream.read(&mut text).unwrap_or_default();
        note(&text[..size], mark, ways);
        let _ = stream.write_all(b"at your service");
    }
}
