//! A sandbox: one sentry and its gofers, started by `runsc create` of the first container and gone with it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use runsc_config::{HardenedSpec, RunscFlags};

use crate::cgroup::Cgroups;
use crate::cleanup;
use crate::error::{Error, Result};
use crate::io::console::ConsoleSocket;
use crate::layout::{self, Bundle, Record};
use crate::reaper::{ExitWatch, Reaper};
use crate::runsc::command::{Runsc, Stdio3};
use crate::runsc::control::Control;
use crate::runsc::state_file::StateFile;

/// How long a sandbox may take to exit after its last container has.
const EXIT_GRACE: Duration = Duration::from_secs(10);

/// Who a sandbox belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) namespace: String,
    /// containerd's gRPC address.
    pub(crate) containerd: String,
}

/// What is needed to start one.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) id: &'a str,
    pub(crate) owner: &'a Owner,
    pub(crate) bundle: &'a Bundle,
    pub(crate) base: &'a Path,
    pub(crate) binary: PathBuf,
    pub(crate) spec: &'a HardenedSpec,
    pub(crate) flags: RunscFlags,
    pub(crate) use_socket: bool,
    pub(crate) limit: Duration,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) reaper: Arc<Reaper>,
}

/// A running sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    id: String,
    pub(crate) runsc: Arc<Runsc>,
    pub(crate) control: Control,
    pub(crate) exit: ExitWatch,
    pub(crate) cgroups: Cgroups,
}

impl Sandbox {
    /// Makes the folder and the runsc it is driven by; nothing runs yet.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(crate) async fn prepare(plan: &Plan<'_>) -> Result<Arc<Runsc>> {
        let root = layout::sandbox_root(
            plan.base,
            &plan.owner.containerd,
            &plan.owner.namespace,
            plan.id,
        );
        if root.exists() {
            // containerd holds this id to be free, so what is here belongs to a shim that died without a delete.
            let record = Record::read(&root);
            cleanup::remove_sandbox(
                &root,
                plan.id,
                record.as_ref().and_then(|r| r.cgroups.as_ref()),
            )
            .await;
        }
        layout::private_dir(plan.base)
            .map_err(|e| Error::io(format!("make {}", plan.base.display()), &e))?;
        layout::private_dir(&root)
            .map_err(|e| Error::io(format!("make {}", root.display()), &e))?;
        write_down(plan, &root).inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&root);
        })?;
        Ok(Arc::new(Runsc::new(
            plan.binary.clone(),
            root,
            plan.flags.args(),
            plan.oom_score_adj,
            Arc::clone(&plan.reaper),
        )))
    }

    /// Runs `runsc create` for the sandbox's first container. The returned descriptor is the master of its terminal,
    /// if it has one. On failure the caller undoes with [`Sandbox::undo`].
    ///
    /// # Errors
    /// runsc's own reason, a missing pid, or the deadline.
    pub(crate) async fn create(
        plan: &Plan<'_>,
        runsc: Arc<Runsc>,
        stdio: [Option<OwnedFd>; 3],
    ) -> Result<(Self, Option<OwnedFd>)> {
        let pid_file = runsc.scratch_path("pid");
        let console = plan
            .spec
            .terminal()
            .then(|| ConsoleSocket::bind(runsc.scratch_path("tty")))
            .transpose()?;
        let mut args: Vec<&OsStr> = vec![
            OsStr::new("--bundle"),
            plan.bundle.path().as_os_str(),
            OsStr::new("--pid-file"),
            pid_file.as_os_str(),
        ];
        if let Some(console) = &console {
            args.extend([OsStr::new("--console-socket"), console.path().as_os_str()]);
        }
        args.push(OsStr::new(plan.id));
        let [stdin, stdout, stderr] = stdio;
        runsc
            .run(
                "create",
                &args,
                Stdio3 {
                    stdin,
                    stdout,
                    stderr,
                },
                plan.limit,
            )
            .await?;
        let pid = read_pid(&pid_file)?;
        let exit = runsc.reaper().adopt(pid);
        let state = StateFile::read(runsc.root(), plan.id).ok_or_else(|| {
            Error::internal(format!(
                "runsc create left no readable state file for {:?}",
                plan.id
            ))
        })?;
        if state.sandbox_pid() != Some(pid) {
            return Err(Error::internal(format!(
                "runsc create wrote pid {pid}, its state file says {:?}",
                state.sandbox_pid()
            )));
        }
        if let Some(gofer) = state.gofer_pid() {
            // Watched only to be reaped under a name; it ends with the sandbox.
            runsc.reaper().adopt(gofer);
        }
        let cgroups_path = plan.spec.cgroups_path().unwrap_or(plan.id);
        let cgroups = Cgroups::of_sandbox(pid, cgroups_path)
            .map_err(|e| Error::io(format!("find the cgroups of sandbox process {pid}"), &e))?;
        record(plan, Some(pid), Some(&cgroups)).write(runsc.root())?;
        let socket = state
            .control_socket()
            .map(Path::to_owned)
            .unwrap_or_default();
        let control = Control::new(Arc::clone(&runsc), socket, exit.clone(), plan.use_socket);
        let master = match console {
            Some(console) => Some(console.receive().await?),
            None => None,
        };
        Ok((
            Self {
                id: plan.id.to_owned(),
                runsc,
                control,
                exit,
                cgroups,
            },
            master,
        ))
    }

    /// Undoes a create that failed at any step.
    pub(crate) async fn undo(runsc: &Runsc, id: &str, bundle: &Bundle) {
        let cgroups = Record::read(runsc.root()).and_then(|record| record.cgroups);
        cleanup::remove_container(runsc, id, &bundle.rootfs()).await;
        cleanup::remove_sandbox(runsc.root(), id, cgroups.as_ref()).await;
    }

    /// The sandbox's pid on the host. It is also what containerd is told for every process inside: a pid of the guest
    /// would name some unrelated process of the host.
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.exit.pid()).unwrap_or_default()
    }

    /// Kills the sentry, and so everything inside.
    pub(crate) fn kill(&self) {
        self.exit.signal(Signal::SIGKILL);
    }

    /// Waits for the sandbox to exit by itself; after the grace it is killed.
    pub(crate) async fn wait_gone(&self) {
        if self.exit.clone().wait_for(EXIT_GRACE).await.is_none() {
            tracing::warn!(
                id = self.id,
                "the sandbox outlived its container by {EXIT_GRACE:?} and is killed"
            );
            self.kill();
            self.exit.clone().wait_for(EXIT_GRACE).await;
        }
    }

    /// Removes the sandbox and its first container.
    pub(crate) async fn remove(&self, bundle: &Bundle) {
        cleanup::remove_container(&self.runsc, &self.id, &bundle.rootfs()).await;
        cleanup::remove_sandbox(self.runsc.root(), &self.id, Some(&self.cgroups)).await;
    }
}

/// Writes down what `delete` needs, before anything is started.
fn write_down(plan: &Plan<'_>, root: &Path) -> Result<()> {
    plan.bundle.set_sandbox_root(root)?;
    let cgroups = Cgroups::expected(plan.spec.cgroups_path().unwrap_or(plan.id))
        .map_err(|e| Error::io("look at the host's cgroups", &e))?;
    record(plan, None, Some(&cgroups)).write(root)
}

fn read_pid(path: &Path) -> Result<i32> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::internal(format!("runsc create succeeded but wrote no pid file: {e}"))
    })?;
    let _ = std::fs::remove_file(path);
    let pid = text.trim().parse().ok().filter(|pid: &i32| *pid > 1);
    pid.ok_or_else(|| {
        let text: String = text.chars().take(40).collect();
        Error::internal(format!("runsc create wrote {text:?} as the sandbox's pid"))
    })
}

fn record(plan: &Plan<'_>, sandbox_pid: Option<i32>, cgroups: Option<&Cgroups>) -> Record {
    Record {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        id: plan.id.to_owned(),
        namespace: plan.owner.namespace.clone(),
        containerd: plan.owner.containerd.clone(),
        bundle: plan.bundle.path().to_owned(),
        shim_pid: std::process::id(),
        runsc: plan.binary.clone(),
        flags: plan.flags.args(),
        sandbox_pid,
        cgroups: cgroups.cloned(),
    }
}
