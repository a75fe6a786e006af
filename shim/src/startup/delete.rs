//! `delete`: ends a container whose shim has died, from nothing but its id.
//!
//! containerd runs it when the connection to the shim has broken. The shim's records may be missing, half written
//! or wrong. So each step stands alone, and a second run does no harm.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_shim::Flags;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use nix::sys::signal::Signal;
use runsc_config::{Policy, trusted};
use serde_json::Value;

use crate::api::clock;
use crate::error::{Error, Result};
use crate::runsc::command::Runsc;
use crate::sandbox::cleanup;
use crate::sandbox::held::Held;
use crate::sandbox::id;
use crate::sandbox::layout::{self, Bundle, Record};
use crate::startup::bootstrap::Params;
use crate::startup::start;
use crate::sys::oom_score;
use crate::sys::reaper::{Exit, Reaper};
use node::cgroup::Cgroups;
use node::dial;

/// How long a killed shim may take to let go of its socket.
const ENDING_LIMIT: Duration = Duration::from_millis(300);
/// How long a start may hold the socket folder: containerd waits 5 s for all of a delete.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// Runs the `delete` action.
///
/// # Errors
/// When the id is malformed or the answer cannot be written; what cannot be cleaned up is logged, not fatal.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    id::validate("-id", &flags.id)?;
    let bundle = if flags.bundle.is_empty() {
        std::env::current_dir().map_err(|e| Error::io("find the bundle", &e))?
    } else {
        PathBuf::from(&flags.bundle)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("start the async runtime", &e))?;
    let pid = runtime.block_on(remove(flags, &Bundle::new(bundle)))?;
    let response = DeleteResponse {
        pid: pid
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap_or_default(),
        // Nobody saw how it ended; it was ended here.
        exit_status: Exit::Signal(Signal::SIGKILL as i32).status(),
        exited_at: MessageField::some(clock::timestamp(clock::now())),
        ..DeleteResponse::default()
    };
    let answer = response
        .write_to_bytes()
        .map_err(|e| Error::internal(format!("encode the answer: {e}")))?;
    std::io::stdout()
        .write_all(&answer)
        .map_err(|e| Error::io("answer containerd", &e))
}

/// Returns the pid the sandbox had, if it was written down.
async fn remove(flags: &Flags, bundle: &Bundle) -> Result<Option<i32>> {
    // runsc and the hooks that it runs are no part of containerd, which the kernel spares.
    let reaper = Reaper::install(oom_score::of_children())
        .map_err(|e| Error::io("become the reaper of sandboxes", &e))?;
    let spec = bundle.read_spec().ok();
    let root_in = |base: &Path, sandbox: &str| {
        layout::sandbox_root(base, &flags.address, &flags.namespace, sandbox)
    };
    let of_spec = spec
        .as_ref()
        .map(|spec| runsc_config::sandbox_of(spec).unwrap_or(&flags.id));
    let root = bundle.sandbox_root().unwrap_or_else(|| {
        let policy = Policy::load_default().unwrap_or_else(|_| Policy::strict());
        root_in(&policy.runsc().root, of_spec.unwrap_or(&flags.id))
    });
    // What others can write says nothing here: a record names a program to run, and processes to kill.
    let judged = trusted(&root);
    if let Err(problem) = &judged
        && root.exists()
    {
        tracing::warn!(root = %root.display(), "what is written there is not believed: {problem}");
    }
    let record = judged.is_ok().then(|| Record::read(&root)).flatten();
    // Whose sandbox it is decides who dies here: a container of a pod must never be taken for the pod. Without record and
    // spec the folder's name tells, since the id is hashed into it.
    let sandbox = match (&record, of_spec, root.parent()) {
        (Some(record), ..) => Some(record.id.clone()),
        (None, Some(of_spec), _) => Some(of_spec.to_owned()),
        (None, None, Some(base)) if root == root_in(base, &flags.id) => Some(flags.id.clone()),
        (None, None, _) => None,
    };
    let is_own = sandbox.as_ref() == Some(&flags.id);
    if is_own {
        match &record {
            Some(record) => end_shim(record, &flags.id),
            None => tell_shim(bundle, &flags.id),
        }
    }
    if let (Some(record), Some(sandbox)) = (&record, &sandbox) {
        let runsc = Runsc::new(
            record.runsc.clone(),
            root.clone(),
            record.flags.clone(),
            record.flags.clone(),
            Arc::clone(&reaper),
            Arc::default(),
        );
        cleanup::remove_container(&runsc, &flags.id, sandbox, bundle).await;
    } else {
        let sandbox = sandbox.as_deref().unwrap_or(&flags.id);
        cleanup::remove_rootfs(sandbox, bundle).await;
    }
    if is_own {
        let cgroups = record.as_ref().and_then(|record| record.cgroups.as_ref());
        let filestores = record.as_ref().map_or(&[][..], |record| &record.filestores);
        cleanup::remove_sandbox(&root, &flags.id, cgroups, filestores).await;
        if let (None, Some(spec)) = (&record, &spec) {
            remove_cgroups(bundle, spec).await;
        }
        remove_socket(flags, bundle);
    }
    Ok(record.and_then(|record| record.sandbox_pid))
}

/// Removes the cgroups that the spec names. Only a name that was judged counts, and processes in them are nobody's here.
async fn remove_cgroups(bundle: &Bundle, spec: &Value) {
    let path = spec.pointer("/linux/cgroupsPath").and_then(Value::as_str);
    if let Some(path) = path.filter(|_| bundle.is_hardened())
        && let Ok(cgroups) = Cgroups::expected(path)
    {
        cgroups.remove().await;
    }
}

/// A shim that has stopped answering but still runs would keep what is removed here in use.
fn end_shim(record: &Record, id: &str) {
    if let Some(shim) = shim_of(record.shim_pid, id) {
        shim.kill();
    }
}

/// Tells a shim to end that has deleted its sandbox, and so has no record of it any more, and still serves: a containerd that gave it up
/// may stay connected to it. One that was shut down has no socket. It hands over events and output, and ends by itself: containerd runs
/// this action after each delete as well.
fn tell_shim(bundle: &Bundle, id: &str) {
    let socket = address(bundle);
    if !(is_socket(&socket) && dial::is_alive(&socket)) {
        return;
    }
    if let Some(shim) = bundle.shim_pid().and_then(|pid| shim_of(pid, id)) {
        shim.terminate();
    }
}

/// The process of this number, if it is the shim of this id.
fn shim_of(pid: u32, id: &str) -> Option<Held> {
    let shim = i32::try_from(pid).ok().and_then(Held::open)?;
    let arguments = shim.arguments();
    let mut arguments = arguments.iter();
    let is_shim = arguments
        .next()
        .is_some_and(|program| program.ends_with(b"containerd-shim-bulkhead-v1"))
        && arguments.any(|argument| argument == id.as_bytes());
    is_shim.then_some(shim)
}

/// Where the shim of a bundle wrote that its socket is.
fn address(bundle: &Bundle) -> PathBuf {
    let written = std::fs::read_to_string(bundle.path().join("address")).unwrap_or_default();
    PathBuf::from(written.trim_start_matches("unix://"))
}

/// Removes the socket of the dead shim: where it wrote that it was, and where it would be by default.
fn remove_socket(flags: &Flags, bundle: &Bundle) {
    let params = Params {
        namespace: flags.namespace.clone(),
        grpc_address: flags.address.clone(),
        ..Params::default()
    };
    let mut sockets = vec![address(bundle), start::socket_path(&params, &flags.id)];
    sockets.dedup();
    for socket in sockets {
        if !is_socket(&socket) {
            continue;
        }
        // A start may be about to take it for its own, or to have put another one there.
        let folder = socket.parent().unwrap_or(Path::new("/"));
        let _lock = match start::lock(folder, LOCK_LIMIT) {
            Ok(lock) => lock,
            Err(error) => {
                // The next start of this id replaces it.
                tracing::warn!(%error, socket = %socket.display(), "socket not removed");
                continue;
            }
        };
        // A shim that was killed just now listens for as long as the kernel takes to end it.
        let deadline = Instant::now() + ENDING_LIMIT;
        while is_socket(&socket) {
            if !dial::is_alive(&socket) {
                let _ = std::fs::remove_file(&socket);
                break;
            }
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}
