//! `start`: find the pod's shim or start one, and print where it listens.
//!
//! containerd reads stdout and stderr together as the answer, so a successful start writes nothing else.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim::{Flags, StartOpts};
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};
use crate::sandbox::id;
use crate::sandbox::layout;
use crate::startup::bootstrap::{self, Params};
use node::dial;

/// How long another start may hold the socket folder.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(15);

/// Runs the `start` action in the bundle, which is the working folder.
///
/// # Errors
/// When the request makes no sense, or no shim can be started; containerd shows the message to its client.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let input =
        bootstrap::read_input().map_err(|e| Error::io("read the start request from stdin", &e))?;
    let params = Params::new(flags, &input, |name| std::env::var(name).ok());
    id::validate("-id", &params.id)?;
    id::validate("-namespace", &params.namespace)?;
    if params.ttrpc_address.is_empty() {
        return Err(Error::invalid(
            "start: containerd gave no ttrpc address (TTRPC_ADDRESS) to send events to",
        ));
    }
    let bundle = std::env::current_dir().map_err(|e| Error::io("find the bundle", &e))?;
    if !bundle.join("config.json").is_file() {
        return Err(Error::invalid(format!(
            "start: {} has no config.json",
            bundle.display()
        )));
    }
    let sandbox = id::sandbox_of_bundle(&bundle, &params.id);
    id::validate("sandbox id", &sandbox)?;
    let path = socket_path(&params, &sandbox);
    let address = format!("unix://{}", path.display());
    let folder = path.parent().unwrap_or(Path::new("/"));
    // One that is there is containerd's; the socket's own mode protects it.
    layout::make_dir(folder)
        .map_err(|e| Error::io(format!("make the socket folder {}", folder.display()), &e))?;
    {
        // Two starts for one pod must not both find the socket dead and replace each other's.
        let _lock = lock(folder, LOCK_LIMIT)?;
        if dial::is_alive(&path) {
            write(&bundle, "address", &address)?;
        } else {
            let listener = bind(&path)?;
            let started = spawn_server(&params, &sandbox, &path, listener);
            // A containerd that was killed and is back may have taken the bundle away meanwhile: nobody would end this shim.
            let announced = started.and_then(|mut server| {
                announce(&bundle, server.id(), &address).inspect_err(|_| {
                    let _ = server.kill().and_then(|()| server.wait());
                })
            });
            announced.inspect_err(|_| {
                let _ = std::fs::remove_file(&path);
            })?;
        }
    }
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(params.answer(&address).as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|e| Error::io("answer containerd", &e))
}

/// The socket of a pod's shim: where containerd asks for it, under the name it computes itself.
pub(crate) fn socket_path(params: &Params, sandbox: &str) -> PathBuf {
    let options = StartOpts {
        address: params.grpc_address.clone(),
        namespace: params.namespace.clone(),
        socket_dir: params.socket_dir.clone(),
        ..StartOpts::default()
    };
    PathBuf::from(
        options
            .socket_address(sandbox)
            .trim_start_matches("unix://"),
    )
}

/// Locks the folder itself, so that no lock file stays behind.
pub(crate) fn lock(folder: &Path, limit: Duration) -> Result<Flock<File>> {
    let open =
        || File::open(folder).map_err(|e| Error::io(format!("open {}", folder.display()), &e));
    let (deadline, mut file) = (Instant::now() + limit, open()?);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, error)) if Instant::now() >= deadline => {
                return Err(Error::internal(format!(
                    "lock {} within {limit:?}: {error}",
                    folder.display()
                )));
            }
            Err((returned, _)) => file = returned,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn bind(socket: &Path) -> Result<UnixListener> {
    let failed = |e: io::Error| Error::io(format!("listen at {}", socket.display()), &e);
    match std::fs::symlink_metadata(socket) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            std::fs::remove_file(socket).map_err(failed)?
        }
        Ok(_) => {
            return Err(Error::internal(format!(
                "{} is in the way and is no socket",
                socket.display()
            )));
        }
        Err(_) => {}
    }
    // Nobody but root may connect, not even between bind and chmod.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(socket).map_err(failed);
    nix::sys::stat::umask(before);
    let listener = listener?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Starts the serving shim with the listener as its stdin: nothing is lost between the answer and the first accept.
fn spawn_server(
    params: &Params,
    sandbox: &str,
    socket: &Path,
    listener: UnixListener,
) -> Result<Child> {
    let program =
        std::env::current_exe().map_err(|e| Error::io("find the shim's own binary", &e))?;
    let mut command = Command::new(program);
    command
        .args([
            "-namespace",
            &params.namespace,
            "-id",
            sandbox,
            "-address",
            &params.grpc_address,
        ])
        .arg("-socket")
        .arg(socket);
    if params.debug {
        command.arg("-debug");
    }
    // containerd's environment may hold secrets: the shim keeps what it needs and no more.
    let path = std::env::var_os("PATH").unwrap_or_default();
    command
        .env_clear()
        .env("PATH", path)
        .env("TTRPC_ADDRESS", &params.ttrpc_address);
    // A group of its own: a signal to containerd's group is not for the shim.
    command
        .process_group(0)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
        .spawn()
        .map_err(|e| Error::io("start the serving shim", &e))
}

/// containerd 1.x finds the shim again by the address after a restart.
fn announce(bundle: &Path, pid: u32, address: &str) -> Result<()> {
    write(bundle, node::names::SHIM_PID, &pid.to_string())?;
    write(bundle, "address", address)
}

fn write(bundle: &Path, name: &str, content: &str) -> Result<()> {
    layout::write_private(&bundle.join(name), content.as_bytes())
        .map_err(|e| Error::io(format!("write {name} in the bundle"), &e))
}
