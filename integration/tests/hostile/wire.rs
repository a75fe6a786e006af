//! A network for a container, and what leaves it: every frame is seen on the bridge, so nobody has to be asked what was sent.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use integration::bed::{Bed, tool};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

/// The host's addresses on the bridge.
pub(crate) const HOST4: &str = "10.97.0.1";
pub(crate) const HOST6: &str = "fd97::1";

/// A network namespace with an interface on the bridge, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Network {
    id: String,
    folder: PathBuf,
    /// The namespace, as a spec names it.
    pub(crate) path: PathBuf,
}

impl Network {
    pub(crate) fn new(bed: &Bed) -> Self {
        let id = bed.id("net");
        let path = Path::new("/run/netns").join(&id);
        std::fs::create_dir_all("/run/netns").expect("make a folder");
        std::fs::write(&path, "").expect("make a file");
        let at = path.clone();
        // A thread of its own: the namespace of this one stays.
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace");
            integration::isolate::loopback_up().expect("loopback");
            let none = None::<&str>;
            let own = Some("/proc/thread-self/ns/net");
            mount(own, &at, none, MsFlags::MS_BIND, none).expect("pin the namespace");
        });
        thread.join().expect("make the network");
        let network = Self {
            id,
            folder: bed.folder.join("addresses"),
            path,
        };
        network.plugin("ADD");
        network
    }

    /// Runs CNI's bridge plugin (CNI specification 1.0, section 2).
    fn plugin(&self, command: &str) {
        let plugin = tool("bridge").expect("CNI plugins: make tools");
        let configuration = serde_json::json!({
            "cniVersion": "1.0.0", "name": "hostile", "type": "bridge", "bridge": "hostile0",
            "isGateway": true, "isDefaultGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": self.folder,
                "ranges": [[{ "subnet": "10.97.0.0/16" }], [{ "subnet": "fd97::/64" }]],
            },
        });
        let child = Command::new(&plugin)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", &self.path)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugin.parent().expect("a folder"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.expect("run the plugin");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin
            .write_all(configuration.to_string().as_bytes())
            .expect("configure the plugin");
        drop(stdin);
        let output = child.wait_with_output().expect("wait for the plugin");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}: {said}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.plugin("DEL");
        umount2(&self.path, MntFlags::MNT_DETACH).expect("unpin the namespace");
        std::fs::remove_file(&self.path).expect("remove its file");
    }
}

/// Listens on every interface of the host.
#[derive(Debug)]
pub(crate) struct Wire {
    ways: Arc<Mutex<BTreeSet<String>>>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Where TCP is answered, over IPv4 and IPv6.
    pub(crate) port: u16,
}

impl Wire {
    /// Notes every `TOKEN:way;` that goes by.
    pub(crate) fn listen(token: &str) -> Self {
        let ways = Arc::new(Mutex::new(BTreeSet::new()));
        let end = Arc::new(AtomicBool::new(false));
        let server = TcpListener::bind("[::]:0").expect("listen");
        let port = server.local_addr().expect("an address").port();
        server.set_nonblocking(true).expect("make it nonblocking");
        let answers = {
            let end = Arc::clone(&end);
            std::thread::spawn(move || answer(&server, &end))
        };
        let frames = {
            let (ways, end, mark) = (Arc::clone(&ways), Arc::clone(&end), format!("{token}:"));
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let all = socket(
                AddressFamily::Packet,
                SockType::Raw,
                flags,
                SockProtocol::EthAll,
            )
            .expect("see all frames");
            std::thread::spawn(move || {
                let mut frame = vec![0; 65536];
                while !end.load(Ordering::Relaxed) {
                    match recv(all.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                        Ok(size) => note(&frame[..size], &mark, &ways),
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
            })
        };
        Self {
            ways,
            end,
            threads: vec![answers, frames],
            port,
        }
    }

    /// The ways on which the token went by.
    pub(crate) fn finish(mut self) -> BTreeSet<String> {
        // What was sent last is on its way.
        std::thread::sleep(Duration::from_millis(50));
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("end of a listener");
        }
        std::mem::take(&mut self.ways.lock().expect("unpoisoned"))
    }
}

/// Takes what TCP brings, so that it is sent.
fn answer(server: &TcpListener, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        match server.accept() {
            Ok((mut stream, _)) => {
                let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
                let _ = stream.read(&mut [0; 4096]);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

pub(crate) fn note(bytes: &[u8], mark: &str, ways: &Mutex<BTreeSet<String>>) {
    let text = String::from_utf8_lossy(bytes);
    for part in text.split(mark).skip(1) {
        if let Some((way, _)) = part.split_once(';') {
            ways.lock().expect("unpoisoned").insert(way.to_owned());
        }
    }
}
