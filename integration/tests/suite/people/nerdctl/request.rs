//! A container as `nerdctl run` asks for it, and a program in nerdctl's place. Facts are from nerdctl 2.4 and, for what it
//! leaves to containerd's client, from containerd 2.4; each has its file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use containerd_client::types::Mount;
use integration::bed::{Bed, IMAGE, IMAGE_NAME};
use integration::client::NAMESPACE;
use integration::container::{Builder, overlay};
use integration::fifo::sha256;
use serde_json::{Value, json};

/// The first argument by which nerdctl knows that it is to log (`pkg/logging/logging.go`).
pub(super) const LOGGING: &str = "_NERDCTL_INTERNAL_LOGGING";

/// nerdctl's data store: what it keeps of containers, and what the program in its place writes down.
#[derive(Debug)]
pub(super) struct Store(PathBuf);

/// nerdctl is its own logger and its own OCI hook. Here a script is: it writes down how it was called, logs like the original,
/// and as a hook goes on with `EVENT.sh` of the store.
const PROGRAM: &str = r#"
case $1 in
_NERDCTL_INTERNAL_LOGGING)
  printf '%s\n' "$@" >$store/logger.args
  tr '\0' '\n' </proc/$$/environ >$store/logger.env
  cat <&3 >>$store/out 5>&- & cat <&4 >>$store/err 5>&- & exec 5>&-
  wait ;;
internal)
  tr '\0' '\n' </proc/$$/environ >$store/$3.env
  printf '%s\n' "$0" "$@" >$store/$3.args
  cat >$store/$3.state
  echo "$3" >>$store/hooks
  if [ -e $store/$3.sh ]; then . $store/$3.sh; fi ;;
esac
"#;

impl Store {
    pub(super) fn new(bed: &Bed) -> Self {
        let folder = bed.folder.join(bed.id("nerdctl"));
        fs::create_dir_all(&folder).expect("make the store");
        let store = Self(folder);
        let program = format!("#!/bin/sh\nstore={}\n{PROGRAM}", store.0.display());
        fs::write(store.0.join("nerdctl"), program).expect("write the program");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(store.0.join("nerdctl"), mode).expect("make it executable");
        store
    }

    /// The same with a script that a hook goes on with: `$store` is this folder.
    pub(super) fn with_hook(bed: &Bed, event: &str, script: &str) -> Self {
        let store = Self::new(bed);
        fs::write(store.0.join(format!("{event}.sh")), script).expect("write the script");
        store
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn program(&self) -> String {
        self.path("nerdctl").display().to_string()
    }

    pub(super) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// `GenerateLogURI` in `pkg/cmd/container/create.go`; containerd's client encodes the value (`pkg/cio/io.go`).
    pub(super) fn log_uri(&self) -> String {
        let store = self.0.display().to_string().replace('/', "%2F");
        format!("binary://{}?{LOGGING}={store}", self.program())
    }

    /// What a snapshot of the overlay snapshotter is: the image, and a layer for what is written.
    pub(super) fn snapshot(&self) -> Mount {
        overlay(Path::new(IMAGE), &self.0)
    }

    /// `nerdctl run IMAGE ARGS`, with what it asks for when no flag says otherwise.
    pub(super) fn run<'a>(&self, bed: &'a Bed, args: &[&str]) -> Builder<'a> {
        // 64 hexadecimal digits (`pkg/idgen/idgen.go`).
        let id = sha256([bed.id("nerdctl").into_bytes()]);
        let state = self.path("containers").join(NAMESPACE).join(&id);
        fs::create_dir_all(&state).expect("make the state folder");
        let hostname = id.get(..12).expect("an id").to_owned();
        fs::write(state.join("hostname"), format!("{hostname}\n")).expect("write");
        fs::write(state.join("resolv.conf"), "nameserver 192.0.2.53\n").expect("write");
        // Empty until the hook has networks to write down (`pkg/dnsutil/hostsstore`).
        fs::write(self.path("hosts"), "").expect("write");
        let builder = bed.named(&id, args).rootfs(self.snapshot());
        builder.with(|spec| {
            spec["hostname"] = hostname.clone().into();
            spec["root"] = json!({ "path": "rootfs" });
            self.process(&mut spec["process"], &hostname);
            self.mounts(&mut spec["mounts"], &state);
            linux(&mut spec["linux"]);
            spec["linux"]["seccomp"] = default_profile(bed).clone();
            spec["annotations"] = self.annotations(&id, &hostname, &state);
            spec["hooks"] = self.hooks();
        })
    }

    /// Without `--security-opt no-new-privileges` there is `WithNewPrivileges` (`run_security_linux.go`), without
    /// `--ulimit` no limit at all (`run_linux.go`).
    fn process(&self, process: &mut Value, hostname: &str) {
        process["noNewPrivileges"] = false.into();
        process
            .as_object_mut()
            .expect("a process")
            .remove("rlimits");
        let env = process["env"].as_array_mut().expect("env");
        env.push(format!("HOSTNAME={hostname}").into());
    }

    /// No /run (`WithoutRunMount`), the host's cgroups (`run_linux.go`), and three files of nerdctl's own
    /// (`pkg/containerutil/container_network_manager.go`).
    fn mounts(&self, mounts: &mut Value, state: &std::path::Path) {
        let mounts = mounts.as_array_mut().expect("mounts");
        mounts.retain(|mount| mount["destination"] != "/run" && mount["destination"] != "/tmp");
        mounts.push(
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                            "options": ["ro", "nosuid", "noexec", "nodev"] }),
        );
        for (place, source) in [
            ("/etc/resolv.conf", state.join("resolv.conf")),
            ("/etc/hosts", self.path("hosts")),
            ("/etc/hostname", state.join("hostname")),
        ] {
            let options = ["bind", "rprivate"];
            mounts.push(json!({ "destination": place, "type": "bind", "source": source, "options": options }));
        }
    }

    /// nerdctl's labels, which it also gives as annotations: its hooks read them from the state they are told
    /// (`pkg/labels/labels.go`, `propagateInternalContainerdLabelsToOCIAnnotations` in `create.go`).
    fn annotations(&self, id: &str, hostname: &str, state: &std::path::Path) -> Value {
        json!({
            "nerdctl/namespace": NAMESPACE,
            "nerdctl/name": format!("busybox-{}", &id[..5]),
            "nerdctl/hostname": hostname,
            "nerdctl/domainname": "",
            "nerdctl/extraHosts": "[]",
            "nerdctl/networks": "[\"bridge\"]",
            "nerdctl/state-dir": state,
            "nerdctl/platform": "linux/amd64",
            "nerdctl/auto-remove": "false",
            "nerdctl/ipc": "{\"mode\":\"private\"}",
            "nerdctl/log-uri": self.log_uri(),
            "nerdctl/log-config": "{\"driver\":\"json-file\",\"address\":\"/run/b/c.sock\"}",
        })
    }

    /// `withNerdctlOCIHook` in `create.go`: the environment is all of the caller's, with one more PATH.
    fn hooks(&self) -> Value {
        let hook = |event: &str| {
            let program = self.program();
            json!([{
                "path": program,
                "args": [program, "internal", "oci-hook", event],
                "env": ["CALLERS=own", "PATH=/nowhere", "PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
            }])
        };
        json!({ "createRuntime": hook("createRuntime"), "poststop": hook("postStop") })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// containerd's own profile, which nerdctl asks for without `--security-opt seccomp=…` (`run_security_linux.go`), by the word
/// of containerd's client.
fn default_profile(bed: &Bed) -> &'static Value {
    static PROFILE: OnceLock<Value> = OnceLock::new();
    PROFILE.get_or_init(|| {
        let id = bed.id("profile");
        bed.ctr_ok(&["container", "create", "--seccomp", IMAGE_NAME, &id]);
        let spec = bed.ctr_ok(&["container", "info", "--spec", &id]);
        bed.ctr_ok(&["container", "delete", &id]);
        let spec: Value = serde_json::from_str(&spec).expect("a spec");
        assert!(spec["linux"]["seccomp"]["syscalls"].is_array(), "{spec}");
        spec["linux"]["seccomp"].clone()
    })
}

/// `withDefaultUnprivilegedPortSysctl` (`create.go`), `generateCgroupOpts` (`run_cgroup_linux.go`), which leaves empty parts,
/// and containerd's `WithDefaultUnixDevices`. The range for ping is what containerd's CRI adds in the same place.
fn linux(linux: &mut Value) {
    linux["sysctl"] = json!({
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    });
    linux["resources"]["memory"] = json!({});
    linux["resources"]["cpu"] = json!({ "realtimeRuntime": 0, "realtimePeriod": 0 });
    let devices = linux["resources"]["devices"].as_array_mut();
    devices.expect("devices").extend([(1, 3), (1, 8), (5, 0), (5, 2)].map(|(major, minor)| {
        json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" })
    }));
}
