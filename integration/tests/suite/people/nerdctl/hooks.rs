//! nerdctl's OCI hooks: what they are told, and that what they do to the network reaches a sandbox that has one alone.

use std::fs;
use std::time::Duration;

use integration::bed::Bed;
use integration::cases;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use serde_json::Value;

use super::request::Store;

cases! {
    Needs::Any => [
        hooks_are_told_of_the_container_and_have_their_own_environment_alone,
        what_the_hook_writes_to_hosts_is_what_the_container_reads,
        a_hook_that_fails_is_told_in_its_own_words,
    ],
    Needs::NotRunc("a killed shim's socket stays") => [
        the_last_hook_runs_where_the_shim_was_killed,
    ],
    Needs::Bulkhead => [
        an_interface_of_the_hooks_is_not_the_sandboxs_without_a_network,
        the_loopback_is_up_in_a_network_that_nobody_has_set_up,
    ],
}

/// `pkg/ocihook/ocihook.go`: the state on stdin, with the annotations; the namespace by /proc/PID/ns/net; the bundle's
/// config.json for the root.
async fn hooks_are_told_of_the_container_and_have_their_own_environment_alone(bed: &Bed) {
    let look = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' $store/createRuntime.state | tr -d '\\n'); \
        readlink /proc/$pid/ns/net >$store/netns; \
        bundle=$(sed 's/.*\"bundle\": *\"\\([^\"]*\\)\".*/\\1/' $store/createRuntime.state | tr -d '\\n'); \
        cp $bundle/config.json $store/config.json";
    let store = Store::with_hook(bed, "createRuntime", look);
    let container = store.run(bed, &["sleep", "1000"]).run().await.expect("run");
    let state: Value = serde_json::from_str(&store.read("createRuntime.state")).expect("a state");
    assert_eq!(state["id"], container.id.as_str());
    assert_eq!(state["pid"], container.pid);
    for (key, value) in [("networks", "[\"bridge\"]"), ("extraHosts", "[]")] {
        assert_eq!(state["annotations"][format!("nerdctl/{key}")], value);
    }
    let folder = state["annotations"]["nerdctl/state-dir"].as_str();
    assert!(folder.is_some_and(|folder| folder.ends_with(&container.id)));
    let own = fs::read_link("/proc/self/ns/net").expect("the host's network");
    let of_sandbox = store.read("netns");
    assert!(of_sandbox.starts_with("net:["), "{of_sandbox}");
    assert_ne!(of_sandbox.trim(), own.display().to_string());
    let config: Value = serde_json::from_str(&store.read("config.json")).expect("a spec");
    assert!(
        config["root"]["path"]
            .as_str()
            .is_some_and(|path| path.ends_with("rootfs"))
    );

    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    container.delete().await.expect("delete");
    let program = store.program();
    for event in ["createRuntime", "postStop"] {
        let args = format!("{program}\ninternal\noci-hook\n{event}\n");
        assert_eq!(store.read(&format!("{event}.args")), args);
        let environment = store.read(&format!("{event}.env"));
        let others = environment
            .lines()
            .filter(|line| !line.starts_with("PATH="));
        assert_eq!(others.collect::<Vec<_>>(), ["CALLERS=own"], "{environment}");
    }
    assert_eq!(
        store.read("hooks"),
        "createRuntime\npostStop\n",
        "each once"
    );
}

async fn what_the_hook_writes_to_hosts_is_what_the_container_reads(bed: &Bed) {
    let script = "printf '10.4.0.2\\tdb\\n' >>$store/hosts";
    let store = Store::with_hook(bed, "createRuntime", script);
    let script = "cat /etc/hosts /etc/resolv.conf; [ \"$(cat /etc/hostname)\" = \"$(hostname)\" ] && echo $HOSTNAME";
    let run = store.run(bed, &["sh", "-c", script]);
    let hostname = run.id.get(..12).expect("an id").to_owned();
    let done = run.run().await.expect("run").finish().await;
    let expected = format!("10.4.0.2\tdb\nnameserver 192.0.2.53\n{hostname}\n");
    assert_eq!(done.stdout, expected, "{done:?}");
}

/// A missing CNI plugin, an address that is taken: nerdctl prints what the hook said.
async fn a_hook_that_fails_is_told_in_its_own_words(bed: &Bed) {
    let script = "echo 'failed to call cni.Setup: no plugin' >&2; exit 1";
    let store = Store::with_hook(bed, "createRuntime", script);
    let error = store
        .run(bed, &["true"])
        .create()
        .await
        .expect_err("failed");
    assert!(
        error
            .message()
            .contains("failed to call cni.Setup: no plugin"),
        "{error}"
    );
}

async fn the_last_hook_runs_where_the_shim_was_killed(bed: &Bed) {
    let store = Store::new(bed);
    let container = store.run(bed, &["sleep", "1000"]).run().await.expect("run");
    assert_eq!(processes::kill_role(Role::Shim, &container.id), 1);
    eventually("the last hook", Duration::from_secs(20), || {
        store.read("hooks").contains("postStop")
    })
    .await;
    container.remove().await;
    assert_eq!(store.read("hooks"), "createRuntime\npostStop\n", "once");
}

/// What a CNI plugin does to the container's namespace, as far as it goes.
const INTERFACE: &str = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' $store/createRuntime.state | tr -d '\\n'); \
    enter() { nsenter --target $pid --net -- ip \"$@\"; }; \
    enter link add eth0 type veth peer name away && enter link set away up && \
    enter addr add 192.0.2.7/24 dev eth0 && enter link set eth0 up || exit 1";

const ADDRESSES: &str = "ip -o addr | awk '{ print $2, $4 }' | grep -v : | sort";

async fn an_interface_of_the_hooks_is_not_the_sandboxs_without_a_network(bed: &Bed) {
    for (policy, expected) in [
        ("", "lo 127.0.0.1/8\n"),
        (
            "network = \"sandbox\"",
            "eth0 192.0.2.7/24\nlo 127.0.0.1/8\n",
        ),
    ] {
        let store = Store::with_hook(bed, "createRuntime", INTERFACE);
        let run = store.run(bed, &["sh", "-c", ADDRESSES]).policy("", policy);
        let done = run.run().await.expect("run").finish().await;
        assert_eq!(done.stdout, expected, "{policy}: {done:?}");
    }
}

/// nerdctl's networks have no loopback plugin: runc brings it up itself, and so `--net none` has one as well.
async fn the_loopback_is_up_in_a_network_that_nobody_has_set_up(bed: &Bed) {
    let store = Store::new(bed);
    let serve = "nc -l -p 7777 -e echo there & sleep 0.5; nc 127.0.0.1 7777 </dev/null";
    let script = format!("{ADDRESSES}; {serve}");
    let run = store.run(bed, &["sh", "-c", &script]);
    let run = run.policy("", "network = \"sandbox\"");
    let done = run.run().await.expect("run").finish().await;
    assert_eq!(done.stdout, "lo 127.0.0.1/8\nthere\n", "{done:?}");
}
