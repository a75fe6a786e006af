//! Where a sandbox's cgroup goes: the client's choice, as long as it stays below the hierarchy's root.

use crate::report::Refusal;

/// A path longer than this is none that an engine makes.
const LENGTH_MAX: usize = 1024;

/// Where `cgroupsPath` lies below the root of each hierarchy.
///
/// Under the kubelet's systemd driver it has the form `SLICE:PREFIX:NAME`, which stands for the scope
/// `PREFIX-NAME.scope` in that slice (runc's `docs/systemd.md`); a slice `a-b.slice` lies in `a.slice` (systemd.slice(5)).
///
/// # Errors
/// `InvalidArgument` for a path that leads out of the hierarchy, is its root, or is no path.
pub(crate) fn place(path: &str) -> Result<String, Refusal> {
    let invalid = |problem: String| Refusal::invalid("linux.cgroupsPath", problem);
    if path.len() > LENGTH_MAX || path.contains(['\0', '\n']) {
        return Err(invalid("is no usable path".to_owned()));
    }
    if path.split(['/', ':']).any(|part| part == "..") {
        return Err(invalid(format!("{path:?} must not contain \"..\"")));
    }
    let parts: Vec<&str> = path.split(':').collect();
    let &[slice, prefix, name] = parts.as_slice() else {
        // A relative path has no meaning that a client could know: it is taken from the root, as containerd writes it.
        let path = path.strip_prefix('/').unwrap_or(path);
        // By another spelling a cgroup would be told from itself, and the root is everybody's.
        if path.split('/').any(|part| matches!(part, "" | ".")) {
            return Err(invalid(format!(
                "{path:?} must name a cgroup below the root, without \".\" and empty parts"
            )));
        }
        return Ok(format!("/{path}"));
    };
    if name.is_empty() || path.contains('/') {
        return Err(invalid(format!(
            "{path:?} must be a path, or slice:prefix:name without \"/\""
        )));
    }
    let unit = match prefix {
        _ if name.ends_with(".slice") => name.to_owned(),
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    };
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let Some(stem) = slice.strip_suffix(".slice") else {
        return Err(invalid(format!("{slice:?} must end in \".slice\"")));
    };
    let mut place = String::new();
    if stem != "-" {
        if stem.is_empty() || stem.split('-').any(str::is_empty) {
            return Err(invalid(format!("{slice:?} is no name of a slice")));
        }
        for (end, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
            let outer = stem.get(..end).unwrap_or(stem);
            place.push_str(&format!("/{outer}.slice"));
        }
    }
    Ok(format!("{place}/{unit}"))
}

/// Whether a path is one for systemd.
pub(crate) fn is_for_systemd(path: &str) -> bool {
    path.matches(':').count() == 2
}

/// The cgroup that a place lies in; `None` for the root and for a relative path.
pub(crate) fn parent(place: &str) -> Option<&str> {
    let (parent, _) = place.trim_end_matches('/').rsplit_once('/')?;
    (!parent.is_empty()).then_some(parent)
}

/// Whether a cgroup lies in the kubelet's, whose name is `kubepods` in both of its drivers, below any `--cgroup-root`
/// (`pkg/kubelet/cm` in Kubernetes).
pub(crate) fn is_kubelets(path: &str) -> bool {
    let is = |part: &str| {
        part.trim_end_matches(".slice")
            .split('-')
            .any(|name| name == "kubepods")
    };
    path.split(['/', ':']).any(is)
}

/// Whether a cgroup is that of one of the kubelet's pods, which it makes for that pod alone: `podUID`, or `…-podUID.slice`
/// (`pkg/kubelet/cm/pod_container_manager_linux.go`). A client of CRI may name any other, and put more into it.
pub(crate) fn is_one_pods(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    let name = last.trim_end_matches(".slice").rsplit('-').next();
    is_kubelets(path) && name.is_some_and(|name| name.starts_with("pod"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_cgroup_of_one_pod_is_known_in_both_forms() {
        let systemds = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for path in ["/kubepods/besteffort/pod1", "/kubepods/pod1", systemds] {
            assert!(is_one_pods(path), "{path}");
        }
        let of_many = [
            "/system.slice",
            "/kubepods.slice",
            "/kubepods.slice/kubepods-burstable.slice",
            "/kubepods/besteffort",
            "/pods",
            "/podman",
        ];
        for path in of_many {
            assert!(!is_one_pods(path), "{path}");
        }
    }

    #[test]
    fn the_kubelets_cgroups_are_known_in_all_their_forms() {
        for path in [
            "/kubepods/besteffort/pod1/c1",
            "/kubepods/pod1/c1",
            "kubepods-besteffort-pod1.slice:cri-containerd:c1",
            "kubepods-pod1.slice:docker:c1",
            "kubepods.slice:docker:c1",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/docker-1.scope",
            "/kubelet/kubepods/pod1/c1",
            "kubelet-kubepods-besteffort-pod1.slice:cri-containerd:c1",
        ] {
            assert!(is_kubelets(path), "{path}");
        }
        for path in [
            "",
            "/default/c1",
            "system.slice:nerdctl:c1",
            "/mykubepods/c1",
            "/kubepods2/c1",
        ] {
            assert!(!is_kubelets(path), "{path}");
        }
    }

    use super::*;

    #[test]
    fn a_slice_is_unfolded_the_way_systemd_nests_it() {
        let pod = "kubepods-burstable-pod1_2.slice:cri-containerd:abc";
        let unfolded = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-abc.scope";
        assert_eq!(place(pod).expect("place"), unfolded);
        assert!(is_for_systemd(pod));
        assert_eq!(place("::x").expect("place"), "/system.slice/x.scope");
        assert_eq!(place("-.slice:a:b").expect("place"), "/a-b.scope");
    }

    #[test]
    fn a_plain_path_stays_and_cannot_climb() {
        assert_eq!(
            place("/kubepods/pod1/abc").expect("place"),
            "/kubepods/pod1/abc"
        );
        assert_eq!(parent("/kubepods/pod1/abc"), Some("/kubepods/pod1"));
        assert_eq!(place("abc").expect("place"), "/abc");
        assert_eq!((parent("/abc"), parent("abc")), (None, None));
        let long = "x".repeat(LENGTH_MAX + 1);
        for path in [
            "/",
            "//",
            ".",
            "/.",
            "/./a",
            "/a/.",
            "/a//b",
            "//a",
            "/a/",
            "/a/../b",
            "a:..:b",
            "x:y:",
            "x:y:z",
            "a--b.slice:p:n",
            "a.slice:b/c:d",
            "/a\0",
            &long,
        ] {
            assert!(place(path).is_err(), "{path:?}");
        }
    }
}
