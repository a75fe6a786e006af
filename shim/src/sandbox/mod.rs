//! A sandbox: one sentry and its gofers, started by `runsc create` of the first container and gone with it.

mod books;
pub(crate) mod changes;
pub(crate) mod cleanup;
pub(crate) mod furnish;
pub(crate) mod held;
pub(crate) mod id;
pub(crate) mod layout;
pub(crate) mod limits;
pub(crate) mod network;
pub(crate) mod oom;
pub(crate) mod systemd;

use std::any::Any;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use runsc_config::{Backend, Declared, Features, Hardened, Policy, trusted};
use tokio::sync::watch;

use crate::error::{Error, Kind, Result};
use crate::io;
use crate::io::console::ConsoleSocket;
use crate::io::{Holds, Throttle};
use crate::runsc::command::{Given, Runsc};
use crate::runsc::control::Control;
use crate::runsc::state_file::StateFile;
use crate::sandbox::books::{Books, Entry};
use crate::sandbox::layout::{Bundle, Record};
use crate::sandbox::oom::Kills;
use crate::sandbox::systemd::Unit;
use crate::sys::counters::Counters;
use crate::sys::oom_score;
use crate::sys::reaper::{ExitWatch, Moment, Reaper};
use node::cgroup::Cgroups;

/// How long a sandbox may take to exit after its last container has.
pub(crate) const EXIT_GRACE: Duration = Duration::from_secs(10);

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
    pub(crate) binary: PathBuf,
    pub(crate) features: &'a Features,
    pub(crate) hardened: &'a Hardened,
    /// Whether further containers may join.
    pub(crate) is_pod: bool,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) holds: Arc<Holds>,
}

impl Plan<'_> {
    /// The cgroup to be made. Without one nothing would be limited, so the spec always has one.
    fn cgroup(&self) -> &str {
        self.hardened.spec.cgroup().unwrap_or(self.id)
    }

    fn filestores(&self) -> Vec<PathBuf> {
        let volumes = &self.hardened.shared.volumes;
        let on_disk = volumes.iter().filter(|volume| !volume.in_memory);
        on_disk
            .map(|volume| cleanup::filestore(&volume.source, self.id))
            .collect()
    }

    fn record(&self, sandbox_pid: Option<i32>, cgroups: Option<&Cgroups>) -> Record {
        Record {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            id: self.id.to_owned(),
            namespace: self.owner.namespace.clone(),
            containerd: self.owner.containerd.clone(),
            bundle: self.bundle.path().to_owned(),
            shim_pid: std::process::id(),
            runsc: self.binary.clone(),
            flags: self.hardened.flags.args(),
            sandbox_pid,
            cgroups: cgroups.cloned(),
            filestores: self.filestores(),
        }
    }
}

/// A running sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    namespace: String,
    holds: Arc<Holds>,
    pub(crate) runsc: Arc<Runsc>,
    pub(crate) control: Control,
    pub(crate) exit: ExitWatch,
    pub(crate) cgroups: Cgroups,
    kills: Arc<Kills>,
    /// systemd's, where it has made the cgroup.
    unit: Option<Unit>,
    /// The policy it was made under. It keeps it: half a pod under one policy and half under another would have neither.
    pub(crate) policy: Policy,
    pub(crate) features: Features,
    pub(crate) is_pod: bool,
    /// The cgroup that the sandbox's own lies in.
    pod_cgroup: Option<String>,
    filestores: Vec<PathBuf>,
    books: Mutex<Books>,
    pub(crate) started: SystemTime,
    was_ended: AtomicBool,
    has_died: AtomicBool,
    /// What ends with the sandbox.
    kept: Mutex<Vec<Box<dyn Any + Send>>>,
    /// Held while limits are written, so that two updates do not mix.
    updating: Mutex<()>,
    pub(crate) untold: Untold,
    /// What the outputs of all execs share: the shim copies them, and its time is nobody's limit.
    pub(crate) exec_output: Option<Arc<Throttle>>,
}

/// How many containers of a pod, its first not counted, have an exit that has not been told yet.
#[derive(Debug)]
pub(crate) struct Untold(watch::Sender<usize>);

impl Default for Untold {
    fn default() -> Self {
        Self(watch::channel(0).0)
    }
}

impl Untold {
    pub(crate) fn exit_expected(&self) {
        self.0.send_modify(|count| *count = count.saturating_add(1));
    }

    pub(crate) fn exit_told(&self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }

    /// Waits until there is none, within bounds.
    pub(crate) async fn all_told(&self, limit: Duration) {
        let mut count = self.0.subscribe();
        let none = count.wait_for(|count| *count == 0);
        if tokio::time::timeout(limit, none).await.is_err() {
            tracing::warn!("some exits of the pod are reported after its sandbox's");
        }
    }
}

impl Sandbox {
    /// Makes the folder and the runsc it is driven by; nothing runs yet.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(crate) async fn prepare(plan: &Plan<'_>) -> Result<Arc<Runsc>> {
        let base = &plan.hardened.policy.runsc().root;
        let root =
            layout::sandbox_root(base, &plan.owner.containerd, &plan.owner.namespace, plan.id);
        if root.exists() {
            // containerd holds this id to be free, so what is here belongs to a shim that died without a delete. What others can
            // write is no record of one: it names what is killed and removed.
            trusted(&root).map_err(|problem| {
                Error::precondition(format!("policy: runsc.root = {base:?}: {problem}"))
            })?;
            let record = Record::read(&root);
            let cgroups = record.as_ref().and_then(|r| r.cgroups.as_ref());
            let filestores = record.as_ref().map_or(&[][..], |r| &r.filestores);
            cleanup::remove_sandbox(&root, plan.id, cgroups, filestores).await;
        }
        layout::sandbox_dir(&root)
            .map_err(|e| Error::io(format!("make {}", root.display()), &e))?;
        write_down(plan, &root).inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&root);
        })?;
        Ok(Arc::new(Runsc::new(
            plan.binary.clone(),
            root,
            plan.hardened.flags.args(),
            plan.hardened.flags.of_start(),
            Arc::clone(&plan.reaper),
            Arc::clone(&plan.counters),
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
        stdio: Given,
    ) -> Result<(Self, Option<OwnedFd>)> {
        let pid_file = runsc.scratch_path("pid");
        let before = runsc.reaper().moment();
        let master = run_create(
            &runsc,
            plan.id,
            plan.bundle,
            plan.hardened,
            Some(&pid_file),
            stdio,
            create_limit(&plan.hardened.policy),
        )
        .await?;
        let pid = read_pid(&pid_file)?;
        let exit = runsc.reaper().adopt(pid, before);
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
            runsc.reaper().adopt(gofer, before);
        }
        let cgroups = Cgroups::of_sandbox(pid, plan.cgroup())
            .map_err(|e| Error::io(format!("find the cgroups of sandbox process {pid}"), &e))?;
        limits::check(&cgroups, &plan.hardened.limits)?;
        limits::forbid_swap(&cgroups);
        plan.record(Some(pid), Some(&cgroups)).write(runsc.root())?;
        let socket = state
            .control_socket()
            .map(Path::to_owned)
            .unwrap_or_default();
        let use_socket = plan.hardened.policy.runsc().control == Backend::Socket;
        let control = Control::new(Arc::clone(&runsc), socket, exit.clone(), use_socket);
        let is_above_its_own = plan.is_pod && plan.hardened.spec.has_its_pods_cgroup_above();
        let kills = Arc::new(Kills::new(&cgroups, is_above_its_own));
        tokio::spawn(oom::watch(Arc::clone(&kills), exit.clone()));
        let hardened = plan.hardened;
        let entry = Entry {
            // A pod's first container declares what was announced of the others.
            declared: if plan.is_pod {
                Declared::default()
            } else {
                hardened.declared
            },
            scratch: hardened.shared.scratch,
        };
        let sandbox = Self {
            id: plan.id.to_owned(),
            namespace: plan.owner.namespace.clone(),
            holds: Arc::clone(&plan.holds),
            runsc,
            control,
            exit,
            kills,
            unit: Unit::of_sandbox(&cgroups, &plan.hardened.flags.args()),
            cgroups,
            policy: plan.hardened.policy.clone(),
            features: plan.features.clone(),
            is_pod: plan.is_pod,
            pod_cgroup: hardened.spec.cgroup_above().map(str::to_owned),
            filestores: plan.filestores(),
            books: Mutex::new(Books {
                shared: hardened.shared.clone(),
                announced: plan.is_pod.then_some(hardened.declared),
                containers: HashMap::from([(plan.id.to_owned(), entry)]),
            }),
            started: SystemTime::now(),
            was_ended: AtomicBool::new(false),
            has_died: AtomicBool::new(false),
            kept: Mutex::default(),
            updating: Mutex::default(),
            untold: Untold::default(),
            exec_output: hardened.exec.output_rate().map(Throttle::shared),
        };
        Ok((sandbox, master))
    }

    /// Undoes a create that failed at any step.
    pub(crate) async fn undo(runsc: &Runsc, id: &str, bundle: &Bundle) {
        let record = Record::read(runsc.root());
        let cgroups = record.as_ref().and_then(|record| record.cgroups.as_ref());
        let filestores = record.as_ref().map_or(&[][..], |record| &record.filestores);
        cleanup::remove_container(runsc, id, id, bundle).await;
        cleanup::remove_sandbox(runsc.root(), id, cgroups, filestores).await;
    }

    /// Runs `runsc create` for a container that has joined; what it starts with comes later. The returned descriptor is
    /// the master of its terminal, if it has one.
    ///
    /// # Errors
    /// runsc's own reason, or the deadline.
    pub(crate) async fn create_further(
        &self,
        id: &str,
        bundle: &Bundle,
        hardened: &Hardened,
    ) -> Result<Option<OwnedFd>> {
        let limit = create_limit(&self.policy);
        let stdio = Given::default();
        run_create(&self.runsc, id, bundle, hardened, None, stdio, limit).await
    }

    /// Takes over a gofer that was started for a further container since `before`, so that it is reaped under a name.
    pub(crate) fn adopt_gofer(&self, id: &str, before: Moment) {
        let state = StateFile::read(self.runsc.root(), id);
        if let Some(gofer) = state.and_then(|state| state.gofer_pid()) {
            self.runsc.reaper().adopt(gofer, before);
        }
    }

    /// Ends the gofer of a further container whose start has failed. It may be held by what it was to serve, and outlives the
    /// command that was killed at its deadline.
    pub(crate) async fn end_gofer(&self, bundle: &Bundle) {
        cleanup::kill_gofer(self.runsc.root(), bundle.path()).await;
    }

    /// Whose output it is that a process of this sandbox writes; `id` is the container's or the exec's.
    pub(crate) fn log_owner<'a>(&'a self, id: &'a str) -> io::Owner<'a> {
        io::Owner {
            namespace: &self.namespace,
            id,
            reaper: self.runsc.reaper(),
            holds: &self.holds,
        }
    }

    /// How long `runsc start` and its like may take.
    pub(crate) fn start_limit(&self) -> Duration {
        Duration::from_secs(self.policy.runsc().start_timeout)
    }

    /// Whether the kernel has killed something in it for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.oom_kills() > 0
    }

    /// How many processes of it the kernel has killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.kills.count()
    }

    /// The sandbox's pid on the host. It is also what containerd is told for every process inside: a pid of the guest
    /// would name some unrelated process of the host.
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.exit.pid()).unwrap_or_default()
    }

    /// Kills the sentry, and so everything inside.
    pub(crate) fn kill(&self) {
        self.was_ended.store(true, Ordering::Relaxed);
        self.exit.signal(Signal::SIGKILL);
    }

    /// Kills it because its sentry does not do, or answer, what it is told; `reason` is for the metrics.
    pub(crate) fn force_end(&self, reason: &'static str) {
        if self.exit.get().is_none() {
            self.counters().forced_ends.add(reason);
        }
        self.kill();
    }

    /// Looks, after a runsc command for one of its containers was ended at its deadline, whether the sentry still answers, and
    /// kills the sandbox where it does not: whoever restarts a container would wait for the same deadline for ever, and a pod is
    /// made anew only when its sandbox has gone.
    pub(crate) fn end_if_silent(self: &Arc<Self>, error: &Error) {
        if error.kind() != Kind::DeadlineExceeded {
            return;
        }
        let sandbox = Arc::clone(self);
        tokio::spawn(async move {
            // It needs the lock that a start, a create and a delete hold in the sentry (`runsc/boot/loader.go`).
            let answer = sandbox.control.state(&sandbox.id).await;
            let Err(error) = answer else { return };
            if error.kind() == Kind::DeadlineExceeded {
                tracing::error!(%error, id = sandbox.id, "the sentry hangs: killing the sandbox");
                sandbox.note_death();
                sandbox.force_end("silent");
            }
        });
    }

    /// Gives its stubs the score that its sentry has, which follows from the containers that are there. Nobody waits for it.
    pub(crate) fn spread_oom_score(&self) {
        let (cgroups, sentry) = (self.cgroups.clone(), self.exit.clone());
        tokio::task::spawn_blocking(move || {
            if sentry.get().is_none() {
                oom_score::spread(&cgroups, sentry.pid());
            }
        });
    }

    /// Whether the shim has killed it.
    pub(crate) fn was_ended(&self) -> bool {
        self.was_ended.load(Ordering::Relaxed)
    }

    /// Notes that it ended without a reason.
    pub(crate) fn note_death(&self) {
        self.has_died.store(true, Ordering::Relaxed);
    }

    /// Whether it ended without a reason.
    pub(crate) fn has_died(&self) -> bool {
        self.has_died.load(Ordering::Relaxed)
    }

    /// Waits for the sandbox to exit by itself; after the grace it is killed.
    pub(crate) async fn wait_gone(&self) {
        if self.exit.clone().wait_for(EXIT_GRACE).await.is_none() {
            tracing::warn!(
                id = self.id,
                "the sandbox outlived its container by {EXIT_GRACE:?} and is killed"
            );
            self.force_end("outlived");
            self.exit.clone().wait_for(EXIT_GRACE).await;
        }
    }

    /// Removes a container that has ended; with the first one, the sandbox.
    pub(crate) async fn remove(
        self: &Arc<Self>,
        id: &str,
        bundle: &Bundle,
        has_poststop_hooks: bool,
    ) {
        // All that `runsc delete` does is done here as well, but for hooks and for what lives on in the sentry.
        if has_poststop_hooks || self.exit.get().is_none() {
            cleanup::remove_container(&self.runsc, id, &self.id, bundle).await;
        } else {
            cleanup::remove_rootfs(&self.id, bundle).await;
        }
        if id == self.id {
            let (cgroups, files) = (Some(&self.cgroups), &self.filestores);
            cleanup::remove_sandbox(self.runsc.root(), &self.id, cgroups, files).await;
        } else {
            self.leave(id);
            cleanup::remove_locks(self.runsc.root(), |id| self.has(id));
            self.spread_oom_score();
        }
    }

    /// Keeps something for as long as the sandbox is known.
    pub(crate) fn keep(&self, thing: impl Any + Send) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(Box::new(thing));
    }

    /// What is counted of this shim.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        self.runsc.counters()
    }
}

fn create_limit(policy: &Policy) -> Duration {
    Duration::from_secs(policy.runsc().create_timeout)
}

async fn run_create(
    runsc: &Runsc,
    id: &str,
    bundle: &Bundle,
    hardened: &Hardened,
    pid_file: Option<&Path>,
    stdio: Given,
    limit: Duration,
) -> Result<Option<OwnedFd>> {
    let console = hardened
        .spec
        .terminal()
        .then(|| ConsoleSocket::bind(runsc.scratch_path("tty")))
        .transpose()?;
    let mut args: Vec<&OsStr> = vec![OsStr::new("--bundle"), bundle.path().as_os_str()];
    if let Some(pid_file) = pid_file {
        args.extend([OsStr::new("--pid-file"), pid_file.as_os_str()]);
    }
    if let Some(console) = &console {
        args.extend([OsStr::new("--console-socket"), console.path().as_os_str()]);
    }
    args.push(OsStr::new(id));
    runsc.run("create", &args, stdio, limit).await?;
    match console {
        Some(console) => Ok(Some(console.receive().await?)),
        None => Ok(None),
    }
}

/// Writes down what `delete` needs, before anything is started.
fn write_down(plan: &Plan<'_>, root: &Path) -> Result<()> {
    let cgroups = Cgroups::expected(plan.cgroup())
        .map_err(|e| Error::io("look at the host's cgroups", &e))?;
    // What is written down is killed when the sandbox ends.
    cgroups.clear().map_err(|(folder, error)| {
        Error::precondition(format!(
            "linux.cgroupsPath: {} is there already ({error}); a sandbox needs a cgroup that nothing else has",
            folder.display()
        ))
    })?;
    plan.bundle.set_sandbox_root(root)?;
    plan.record(None, Some(&cgroups)).write(root)
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
