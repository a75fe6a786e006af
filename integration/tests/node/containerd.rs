//! containerd as a unit of systemd: what is done to it is not done to the sandboxes.

use std::fs;
use std::time::Duration;

use integration::cri::Cri;
use integration::processes::eventually;

use crate::{Case, Node, Slice, block_on, declared, said, shell};

pub(crate) const CASES: &[Case] = &[
    (
        "containerd::restarted_stopped_or_killed_it_finds_its_pods",
        restarted_stopped_or_killed_it_finds_its_pods,
    ),
    (
        "containerd::a_shim_that_dies_while_it_is_away_takes_its_sandbox_along",
        a_shim_that_dies_while_it_is_away_takes_its_sandbox_along,
    ),
];

fn restarted_stopped_or_killed_it_finds_its_pods() {
    block_on(async {
        let mut node = Node::pod(Slice::default(), None).await;
        let id = node.container("one", declared(600, 1100)).await;
        for line in [
            "systemctl restart containerd",
            "systemctl stop containerd && sleep 2 && systemctl start containerd",
            // The unit says that it is started again.
            "systemctl kill --signal=KILL --kill-who=main containerd && sleep 6",
        ] {
            said(line);
            eventually("containerd is there", Duration::from_secs(30), || {
                shell("systemctl is-active --quiet containerd")
                    .status
                    .success()
            })
            .await;
            node.pod.cri = Cri::connect().await;
            node.works(&id).await;
        }
        node.remove().await;
    });
}

fn a_shim_that_dies_while_it_is_away_takes_its_sandbox_along() {
    block_on(async {
        let mut node = Node::pod(Slice::default(), None).await;
        node.container("one", declared(600, 1100)).await;
        said("systemctl stop containerd");
        let bundle = format!(
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}/shim.pid",
            node.pod.id
        );
        let shim = fs::read_to_string(bundle).expect("the shim's pid");
        said(&format!("kill -KILL {}", shim.trim()));
        let lives = || {
            fs::read_to_string(node.cgroup().join("cgroup.procs"))
                .is_ok_and(|pids| !pids.is_empty())
        };
        assert!(lives(), "nothing ties them while containerd is away");
        said("systemctl start containerd");
        eventually("the sandbox ends", Duration::from_secs(30), || !lives()).await;
        node.pod.cri = Cri::connect().await;
        node.remove().await;
    });
}
