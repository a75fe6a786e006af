//! What of the host no sandbox ever has, whoever asks.

use std::path::{Path, PathBuf};

use crate::policy::Policy;
use crate::spec::HostFacts;

/// Folders of the kernel, with all that is below them.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Sockets that own the node, in either spelling of /run: of container engines, of what builds for them, of CRI.
const SOCKETS: [&str; 14] = [
    "buildkit/buildkitd.sock",
    "containerd/containerd.sock",
    "containerd/containerd.sock.ttrpc",
    "containerd/debug.sock",
    // Of shims.
    "containerd/s",
    "cri-dockerd.sock",
    "crio/crio.sock",
    "docker.sock",
    "docker/containerd/containerd.sock",
    "docker/containerd/containerd.sock.ttrpc",
    "dockershim.sock",
    "k3s/containerd/containerd.sock",
    "k3s/containerd/containerd.sock.ttrpc",
    "podman/podman.sock",
];

/// The list, as this node has it.
#[derive(Debug)]
pub(crate) struct Never {
    all: Vec<Forbidden>,
}

#[derive(Debug)]
struct Forbidden {
    path: PathBuf,
    /// Where its links lead.
    real: PathBuf,
    why: &'static str,
}

impl Never {
    pub(crate) fn new(policy: &Policy, host: &HostFacts) -> Self {
        let of_run = ["/run", "/var/run"]
            .into_iter()
            .flat_map(|run| SOCKETS.iter().map(move |name| Path::new(run).join(name)));
        let sockets = of_run.chain(host.sockets.iter().cloned());
        let kernel = KERNEL.map(|path| (PathBuf::from(path), "shows the host's kernel"));
        let sockets = sockets.map(|path| (path, "gives control of the node"));
        let state = (
            policy.runsc().root.clone(),
            "gives control of the sandboxes",
        );
        let all = kernel.into_iter().chain(sockets).chain([state]);
        let forbidden = all.map(|(path, why)| Forbidden {
            real: resolved(&path, host.resolve),
            path,
            why,
        });
        Self {
            all: forbidden.collect(),
        }
    }

    /// Why a path of the host, without `..`, is never given: what is forbidden, what is in it, and every folder that it is in.
    pub(crate) fn rule(&self, path: &Path) -> Option<String> {
        if path == Path::new("/") {
            return Some("/ of the host is never given to a sandbox".to_owned());
        }
        // What a link leads to is in the folder that the link leads to, and not in the link's own.
        let is_in = |one: &Forbidden| path.starts_with(&one.path) || path.starts_with(&one.real);
        let mut all = self.all.iter();
        let found = all.find(|one| is_in(one) || one.real.starts_with(path))?;
        let (path, why) = (path.display(), found.why);
        Some(format!("{path} {why} and is never given to a sandbox"))
    }
}

/// Where the links of a path lead, as far as it is there.
fn resolved(path: &Path, resolve: fn(&Path) -> Option<PathBuf>) -> PathBuf {
    let mut above = path.ancestors();
    let found = above.find_map(|part| {
        let rest = path.strip_prefix(part).ok()?;
        let real = resolve(part)?;
        Some(if rest == Path::new("") {
            real
        } else {
            real.join(rest)
        })
    });
    found.unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never(host: &HostFacts) -> Never {
        Never::new(&Policy::strict(), host)
    }

    #[test]
    fn what_owns_the_node_is_known_with_the_folders_it_is_in() {
        let never = never(&HostFacts::default());
        for path in [
            "/",
            "/proc",
            "/proc/1/root",
            "/sys/fs/cgroup",
            "/dev/sda",
            "/run",
            "/var/run",
            "/run/docker",
            "/run/docker.sock",
            "/run/docker/containerd",
            "/run/crio",
            "/run/k3s",
            "/run/k3s/containerd",
            "/run/containerd",
            "/run/containerd/s",
            "/run/containerd/s/0a1b",
            "/var/run/containerd",
            "/run/containerd/debug.sock",
            "/run/podman/podman.sock",
            "/run/cri-dockerd.sock",
            "/run/buildkit",
            "/run/bulkhead",
            "/run/bulkhead/x",
        ] {
            let rule = never.rule(Path::new(path)).expect(path);
            assert!(rule.contains("never given"), "{rule}");
        }
        for path in [
            "/home",
            "/run/user/1000",
            "/run/docker.sockx",
            "/run/containerd/io.containerd.runtime.v2.task/default/c/rootfs",
            "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s/shm",
            "/processes",
        ] {
            assert_eq!(never.rule(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn links_in_their_names_are_followed() {
        let host = HostFacts {
            sockets: vec!["/srv/link/containerd.sock".into()],
            resolve: |path| match path.to_str()? {
                // The socket itself is not there yet.
                "/srv/link" => Some("/data/c".into()),
                "/var/run" | "/run" => Some("/run".into()),
                "/run/bulkhead" => Some("/data/state".into()),
                "/" => Some("/".into()),
                _ => None,
            },
            ..HostFacts::default()
        };
        let never = never(&host);
        for path in [
            "/srv/link/containerd.sock",
            "/data/c/containerd.sock",
            "/data/c",
            "/data",
            "/data/state/x",
            "/run/bulkhead",
            "/run",
        ] {
            assert!(never.rule(Path::new(path)).is_some(), "{path}");
        }
        // A link's own folder has a link inside and nothing else of it.
        for path in ["/var", "/srv/link/x", "/data/c/work"] {
            assert_eq!(never.rule(Path::new(path)), None, "{path}");
        }
    }
}
