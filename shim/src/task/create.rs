//! Create: from a request to a container in its sandbox. A failure undoes everything before it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runsc_config::{ContainerKind, Context, Features, Hardened, Policy, Role, Shared, harden};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::{self, Clients, ProcessIo, Stdio, Throttle};
use crate::runsc::command::{Given, Runsc, look_up};
use crate::runsc::features;
use crate::sandbox::changes;
use crate::sandbox::furnish::binds::{self, Opened};
use crate::sandbox::furnish::masks;
use crate::sandbox::furnish::mount;
use crate::sandbox::furnish::program;
use crate::sandbox::furnish::scenes;
use crate::sandbox::furnish::small::Messages;
use crate::sandbox::furnish::workdir;
use crate::sandbox::layout::{self, Bundle};
use crate::sandbox::network;
use crate::sandbox::{Plan, Sandbox};
use crate::sys::aside;
use crate::sys::counters::Counters;
use crate::sys::logging;
use crate::task::container::{Confinement, Container, Parts};
use crate::task::names::Names;
use crate::task::pod::Pod;
use crate::task::process::{Phase, Process};
use crate::task::request::CreateRequest;
use node::host;
use node::trail;

/// How long the policy's file, which a client may name, is waited for.
const POLICY_LIMIT: Duration = Duration::from_secs(10);

/// A request, as far as it can be judged without its sandbox.
struct Asked<'a> {
    request: &'a CreateRequest,
    counters: &'a Counters,
    bundle: Bundle,
    stdio: Stdio,
    spec: Value,
}

/// A [`ContainerKind`] that owns what it tells.
enum Kind {
    Sandbox { is_pod: bool },
    PodContainer(Shared),
}

impl Asked<'_> {
    /// What the policy makes of the spec. It looks at paths of the caller's, and so is done aside.
    async fn judge(
        &self,
        pod: &Pod,
        policy: &Policy,
        features: &Features,
        sandbox: &str,
        kind: Kind,
    ) -> Result<Hardened> {
        let (spec, policy, features) = (self.spec.clone(), policy.clone(), features.clone());
        let (id, sandbox) = (self.request.id.clone(), sandbox.to_owned());
        let (owner, bundle) = (pod.owner.clone(), self.bundle.clone());
        let limit = create_limit(&policy);
        let judge = move || {
            let context = Context {
                id: &id,
                sandbox_id: &sandbox,
                kind: match &kind {
                    Kind::Sandbox { is_pod: true } => ContainerKind::PodSandbox,
                    Kind::Sandbox { is_pod: false } => ContainerKind::Plain,
                    Kind::PodContainer(shared) => ContainerKind::PodContainer(shared),
                },
                namespace: &owner.namespace,
                bundle: bundle.path(),
                features: &features,
                host: host::facts(&owner.containerd),
            };
            Ok(harden(spec, &policy, &context)?)
        };
        aside::VOLUMES
            .within(limit, "judge the spec", judge, drop)
            .await
    }

    /// Refuses a request that does not fit its spec, and tells what the policy has changed.
    fn accept(&self, hardened: Hardened) -> Result<Hardened> {
        if hardened.spec.terminal() != self.request.streams.terminal {
            return Err(Error::invalid(format!(
                "the request says terminal {}, process.terminal of the spec says {}",
                self.request.streams.terminal,
                hardened.spec.terminal()
            )));
        }
        changes::tell(&self.request.id, &hardened.report, self.counters);
        Ok(hardened)
    }

    /// Puts the bundle in order for runsc. Returns what is to be given to the command that starts the gofer.
    async fn furnish(&self, hardened: &Hardened, runsc: &Arc<Runsc>) -> Result<Opened> {
        let limit = create_limit(&hardened.policy);
        if !self.request.rootfs.is_empty() {
            let (mounts, target) = (&self.request.rootfs, self.bundle.rootfs());
            mount::mount_rootfs(mounts, &target, limit).await?;
        }
        let (spec, bundle, runsc) = (
            hardened.spec.clone(),
            self.bundle.clone(),
            Arc::clone(runsc),
        );
        let is_foreign = self.request.rootfs.is_empty();
        let open = move || {
            let root = spec.root().unwrap_or(Path::new("rootfs"));
            let root = bundle.path().join(root);
            let (spec, report) = scenes::show(&spec, &root)?;
            let spec = masks::hide(&spec, &bundle)?;
            program::look_for(&spec, &root)?;
            // What is refused below leaves nothing, and where an overlay is laid over the root it has the folder.
            let folder = workdir::make(&spec, &root)?;
            let root = binds::Root {
                path: &root,
                is_foreign,
            };
            let name = || runsc.scratch_path("bind");
            let (spec, opened) = binds::open(&spec, root, folder.place(), runsc.root(), name)?;
            if !opened.is_shielded() {
                folder.keep();
            }
            Ok((spec, report, opened))
        };
        // What is opened too late is closed again.
        let (spec, report, opened) = aside::VOLUMES
            .within(limit, "open what is mounted", open, drop)
            .await?;
        changes::tell(&self.request.id, &report, self.counters);
        let mut explanation = hardened.explanation();
        explanation.changes.extend(report.changes);
        self.bundle.write_spec(&spec, &explanation)?;
        Ok(opened)
    }

    /// Init, with the client's streams connected to pipes, and the ends of those for the sandbox; a terminal comes later,
    /// from runsc.
    async fn init(&self, owner: io::Owner<'_>, hardened: &Hardened) -> Result<(Process, Given)> {
        let stdio = Stdio {
            throttle: hardened.policy.output_rate().map(Throttle::shared),
            ..self.stdio.clone()
        };
        let init = Process::new(String::new(), stdio, None);
        if init.stdio.terminal {
            init.set_first_size(hardened.spec.console_size());
            return Ok((init, Given::default()));
        }
        let (io, [stdin, stdout, stderr]) = ProcessIo::pipes(&init.stdio, owner).await?;
        init.set_io(io);
        let ends = Given {
            stdin,
            stdout,
            stderr,
            binds: Opened::default(),
        };
        Ok((init, ends))
    }

    fn parts(
        &self,
        hardened: Hardened,
        init: Process,
        sandbox: Arc<Sandbox>,
        given_at_start: Given,
        messages: Messages,
        pod: &Pod,
    ) -> Parts {
        Parts {
            id: self.request.id.clone(),
            bundle: self.bundle.clone(),
            init,
            sandbox,
            names: Names::of(&self.spec),
            has_poststop_hooks: hardened.spec.has_poststop_hooks(),
            confinement: Confinement::of(&hardened.spec),
            ceiling: hardened.exec,
            given_at_start,
            messages,
            events: pod.events().clone(),
        }
    }
}

impl Pod {
    /// Makes a container whose place in the pod has been claimed.
    ///
    /// # Errors
    /// As [`Pod::create`].
    pub(crate) async fn make(&self, request: &CreateRequest) -> Result<Arc<Container>> {
        let stdio = Stdio {
            stdin: request.streams.stdin.clone(),
            stdout: request.streams.stdout.clone(),
            stderr: request.streams.stderr.clone(),
            terminal: request.streams.terminal,
            clients: Clients::Return,
            throttle: None,
            counts: Arc::default(),
        };
        stdio.validate()?;
        let bundle = Bundle::new(&request.bundle);
        let spec = bundle.read_spec()?;
        // Types first: what is read below is what the specification says.
        runsc_config::validate(&spec)?;
        let role = Role::of(&spec, &request.id)?;
        let asked = Asked {
            request,
            counters: &self.counters,
            bundle,
            stdio,
            spec,
        };
        match role {
            Role::Plain => self.make_sandbox(&asked, false).await,
            Role::PodSandbox => self.make_sandbox(&asked, true).await,
            Role::PodContainer { sandbox } => self.make_further(&asked, &sandbox).await,
        }
    }

    async fn make_sandbox(&self, asked: &Asked<'_>, is_pod: bool) -> Result<Arc<Container>> {
        let id = &asked.request.id;
        if self.has_others(id) {
            return Err(Error::precondition(format!(
                "this shim already serves a sandbox other than {id:?}"
            )));
        }
        let options = asked.request.options.clone();
        let (namespace, owner) = (self.owner.namespace.clone(), id.clone());
        let load = move || {
            let at = |path: &Path| trail::at(path).map_err(|e| Error::io("read the policy", &e));
            let policy = options.load_policy()?;
            // Before anything in it is believed: the answers of runsc, what is left of a sandbox.
            at(&policy.runsc().root)?;
            layout::state_dir(&policy.runsc().root)?;
            if let Some(folder) = &policy.log().folder {
                at(folder)?;
            }
            logging::follow(policy.log(), &namespace, &owner)?;
            options.follow(&owner)?;
            at(&policy.runsc().path)?;
            let binary = find_runsc(&policy)?;
            Ok((policy, binary))
        };
        let (policy, binary) = aside::VOLUMES
            .within(POLICY_LIMIT, "read the policy", load, drop)
            .await?;
        let features = features::of(&binary, &policy.runsc().root, &self.reaper).await?;
        let kind = Kind::Sandbox { is_pod };
        let hardened = asked.judge(self, &policy, &features, id, kind).await?;
        let hardened = asked.accept(hardened)?;
        let plan = Plan {
            id,
            owner: &self.owner,
            bundle: &asked.bundle,
            binary,
            features: &features,
            hardened: &hardened,
            is_pod,
            reaper: Arc::clone(&self.reaper),
            counters: Arc::clone(&self.counters),
            holds: Arc::clone(&self.holds),
        };
        let runsc = Sandbox::prepare(&plan).await?;
        match create_sandbox(asked, &plan, &runsc).await {
            Ok((sandbox, init, messages)) => {
                let (sandbox, stdio) = (Arc::new(sandbox), Given::default());
                let parts = asked.parts(hardened, init, sandbox, stdio, messages, self);
                Ok(Container::watch(parts))
            }
            Err(error) => {
                Sandbox::undo(&runsc, id, &asked.bundle).await;
                Err(error)
            }
        }
    }

    async fn make_further(&self, asked: &Asked<'_>, sandbox_id: &str) -> Result<Arc<Container>> {
        let id = &asked.request.id;
        let root = self
            .container(sandbox_id)
            .map_err(|error| error.context("the sandbox to join"))?;
        match root.init.phase() {
            Phase::Running => {}
            Phase::Stopped(_) => {
                return Err(Error::precondition(format!(
                    "sandbox {sandbox_id:?} has exited"
                )));
            }
            Phase::Paused => {
                return Err(Error::precondition(format!(
                    "sandbox {sandbox_id:?} is paused"
                )));
            }
            Phase::Created | Phase::Starting => {
                return Err(Error::precondition(format!(
                    "sandbox {sandbox_id:?} has not been started"
                )));
            }
        }
        let sandbox = Arc::clone(root.sandbox());
        // Another may join while this one is judged, and leave it less.
        let hardened = loop {
            let shared = sandbox.shared()?;
            let (policy, features) = (&sandbox.policy, &sandbox.features);
            let kind = Kind::PodContainer(shared.clone());
            let hardened = asked
                .judge(self, policy, features, sandbox_id, kind)
                .await?;
            if sandbox.join(id, &shared, &hardened)? {
                break hardened;
            }
        };
        let hardened = asked.accept(hardened).inspect_err(|_| sandbox.leave(id))?;
        // What it declares is there before its program is.
        let settled = Arc::clone(&sandbox);
        tokio::task::spawn_blocking(move || settled.settle())
            .await
            .unwrap_or_else(|error| Err(Error::internal(error.to_string())))
            .inspect_err(|_| sandbox.leave(id))?;
        match create_further(asked, &sandbox, &hardened).await {
            Ok((init, mut stdio)) => {
                let messages = stdio.binds.take_messages();
                let parts = asked.parts(hardened, init, sandbox, stdio, messages, self);
                Ok(Container::watch(parts))
            }
            Err(error) => {
                let has_hooks = hardened.spec.has_poststop_hooks();
                sandbox.end_if_silent(&error);
                sandbox.remove(id, &asked.bundle, has_hooks).await;
                Err(error)
            }
        }
    }
}

fn create_limit(policy: &Policy) -> Duration {
    Duration::from_secs(policy.runsc().create_timeout)
}

async fn create_sandbox(
    asked: &Asked<'_>,
    plan: &Plan<'_>,
    runsc: &Arc<Runsc>,
) -> Result<(Sandbox, Process, Messages)> {
    let mut binds = asked.furnish(plan.hardened, runsc).await?;
    let owner = io::Owner {
        namespace: &plan.owner.namespace,
        id: plan.id,
        reaper: &plan.reaper,
        holds: &plan.holds,
    };
    let messages = binds.take_messages();
    let (init, given) = asked.init(owner, plan.hardened).await?;
    let given = Given { binds, ..given };
    let (sandbox, master) = Sandbox::create(plan, Arc::clone(runsc), given).await?;
    if plan.hardened.makes_network() {
        network::bring_up_loopback(sandbox.pid())?;
    }
    if let Some(master) = master {
        init.set_terminal(master, owner).await?;
    }
    Ok((sandbox, init, messages))
}

async fn create_further(
    asked: &Asked<'_>,
    sandbox: &Sandbox,
    hardened: &Hardened,
) -> Result<(Process, Given)> {
    let id = &asked.request.id;
    // The `delete` action finds the sandbox by this when the shim is gone.
    asked.bundle.set_sandbox_root(sandbox.runsc.root())?;
    let binds = asked.furnish(hardened, &sandbox.runsc).await?;
    let owner = sandbox.log_owner(id);
    let (init, given) = asked.init(owner, hardened).await?;
    let master = sandbox.create_further(id, &asked.bundle, hardened).await?;
    if let Some(master) = master {
        init.set_terminal(master, owner).await?;
    }
    Ok((init, Given { binds, ..given }))
}

/// Finds runsc, which nobody but root may be able to replace: it runs as root, with every container's files.
fn find_runsc(policy: &Policy) -> Result<PathBuf> {
    let asked = &policy.runsc().path;
    let found = look_up(asked)
        .filter(|found| found.exists())
        .ok_or_else(|| {
            let place = if asked.is_absolute() {
                "there"
            } else {
                "in PATH"
            };
            Error::precondition(format!(
                "runsc: {} is not {place}; install it or set runsc.path in the policy file",
                asked.display()
            ))
        })?;
    runsc_config::trusted_runsc(&found).map_err(|e| Error::precondition(format!("runsc: {e}")))?;
    Ok(found)
}
