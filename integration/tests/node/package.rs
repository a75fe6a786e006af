//! The Debian package: upgraded and removed while sandboxes run, and when none does.

use crate::{Case, Node, Slice, block_on, declared, said, shell};

pub(crate) const CASES: &[Case] = &[
    (
        "package::check_finds_the_node_fit",
        check_finds_the_node_fit,
    ),
    (
        "package::an_upgrade_leaves_sandboxes_alone",
        an_upgrade_leaves_sandboxes_alone,
    ),
    (
        "package::it_is_not_removed_while_sandboxes_run",
        it_is_not_removed_while_sandboxes_run,
    ),
    (
        "package::purged_it_leaves_the_node_as_it_was",
        purged_it_leaves_the_node_as_it_was,
    ),
];

fn check_finds_the_node_fit() {
    let said = said("bulkhead check");
    assert!(!said.contains("FAIL") && !said.contains("WARN"), "{said}");
    assert!(said.contains("cgroups      v2"), "{said}");
    // Handlers that containerd has not read.
    shell("sleep 2; touch /etc/containerd/conf.d/bulkhead.toml");
    let late = crate::said("bulkhead check");
    assert!(late.contains("systemctl restart containerd"), "{late}");
    crate::said("systemctl restart containerd");
}

fn an_upgrade_leaves_sandboxes_alone() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let id = node.container("one", declared(700, 1100)).await;
        said("dpkg -i /node/newer.deb");
        assert!(said("dpkg-query -W -f '${Version}' bulkhead").contains("newer"));
        node.look_again();
        node.works(&id).await;
        assert_eq!(node.limits().0, 700);
        // Its pod goes on as well.
        let two = node.container("two", declared(100, 100)).await;
        node.works(&two).await;
        assert_eq!(node.limits().0, 800);
        // No copy of a program hides the package's.
        said("bulkhead install");
        assert!(!shell("ls /usr/local/bin/*bulkhead*").status.success());
        node.remove().await;
    });
}

fn it_is_not_removed_while_sandboxes_run() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let id = node.container("one", declared(600, 1100)).await;
        let removed = shell("dpkg -r bulkhead");
        let complaint = String::from_utf8_lossy(&removed.stderr).into_owned();
        assert!(!removed.status.success(), "{removed:?}");
        assert!(complaint.contains("1 sandbox runs"), "{complaint}");
        node.works(&id).await;
        node.remove().await;
    });
}

fn purged_it_leaves_the_node_as_it_was() {
    said("dpkg -P bulkhead && systemctl restart containerd");
    let found = said(
        "find / -xdev -name '*bulkhead*' -not -path '/proc/*' -not -path '/var/lib/dpkg/*' -not -path '/run/*'",
    );
    let found: Vec<_> = found
        .lines()
        .filter(|path| !path.contains("/io.containerd."))
        .collect();
    assert!(found.is_empty(), "{found:?}");
    said("cmp /etc/containerd/config.toml /node/config.toml");
    let left =
        said("systemctl list-units --all --plain --no-legend 'cri-containerd-*' 'kubepods-pod*'");
    assert_eq!(left, "");
}
