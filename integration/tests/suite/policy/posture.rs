//! What a program finds in a container: gVisor, and the strictest policy, whatever the spec asked for.

use integration::bed::Bed;
use integration::policy::NodePolicy;
use integration::runtime::Needs;

use integration::cases;

cases! {
    Needs::Gvisor => [
        the_kernel_is_gvisors,
    ],
    Needs::Bulkhead => [
        the_network_is_loopback_only,
        the_root_is_read_only_even_where_the_spec_says_writable,
        init_has_no_capabilities_no_new_privileges_and_a_filter,
        the_sentry_is_not_root,
        a_device_of_the_host_is_refused_by_name,
        a_hosts_network_namespace_is_refused_by_name,
        a_hosts_network_namespace_is_refused_by_its_path,
        a_hook_gets_the_environment_of_its_spec_and_no_more,
        a_hook_that_hangs_is_ended_with_its_create,
        starting_one_container_changes_no_limits_of_another,
    ],
}

async fn output(bed: &Bed, script: &str) -> String {
    bed.shell(script)
        .run()
        .await
        .expect("run")
        .finish()
        .await
        .stdout
}

async fn the_kernel_is_gvisors(bed: &Bed) {
    assert!(output(bed, "dmesg").await.contains("Starting gVisor"));
}

async fn the_network_is_loopback_only(bed: &Bed) {
    assert_eq!(
        output(
            bed,
            "ls /sys/class/net 2>/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1"
        )
        .await
        .trim(),
        "lo"
    );
    // Loopback itself works.
    let script = "nc -l -p 7777 -e echo there & sleep 0.5; nc 127.0.0.1 7777 </dev/null";
    assert_eq!(output(bed, script).await, "there\n");
}

async fn the_root_is_read_only_even_where_the_spec_says_writable(bed: &Bed) {
    let script = "touch /etc/x 2>&1; touch /tmp/fine && echo scratch";
    let change = |spec: &mut serde_json::Value| spec["root"]["readonly"] = false.into();
    let done = bed
        .shell(script)
        .with(change)
        .run()
        .await
        .expect("run")
        .finish()
        .await;
    assert!(
        done.stdout.contains("Read-only file system") && done.stdout.ends_with("scratch\n"),
        "{done:?}"
    );
}

async fn init_has_no_capabilities_no_new_privileges_and_a_filter(bed: &Bed) {
    let text = output(bed, "cat /proc/self/status").await;
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .trim()
            .to_owned()
    };
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(name), "0000000000000000", "{name}");
    }
    assert_eq!(
        (field("NoNewPrivs"), field("Seccomp")),
        ("1".into(), "2".into())
    );
}

async fn the_sentry_is_not_root(bed: &Bed) {
    use integration::processes::{Role, of};
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let sandbox = &of(Role::Sandbox, &container.id)[0];
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", sandbox.pid)).expect("read its status");
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect(name)
            .trim()
            .to_owned()
    };
    assert!(field("Uid:").starts_with("65534"), "{status}");
    assert_eq!(field("CapEff:"), "0000000000000000");
    container.remove().await;
}

async fn refused(bed: &Bed, change: impl FnOnce(&mut serde_json::Value), names: &str) {
    let error = bed
        .container(&["true"])
        .with(change)
        .create()
        .await
        .expect_err("refused");
    assert!(error.message().contains(names), "{error:?}");
}

async fn a_device_of_the_host_is_refused_by_name(bed: &Bed) {
    let device = serde_json::json!([{ "path": "/dev/mem", "type": "c", "major": 1, "minor": 1 }]);
    refused(bed, |spec| spec["linux"]["devices"] = device, "/dev/mem").await;
}

async fn a_hosts_network_namespace_is_refused_by_name(bed: &Bed) {
    let change = |spec: &mut serde_json::Value| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "network");
    };
    refused(bed, change, "network").await;
}

async fn a_hosts_network_namespace_is_refused_by_its_path(bed: &Bed) {
    // Under a policy with a network it would be the one that the container gets.
    let _policy = NodePolicy::set("network = \"sandbox\"");
    let link = bed.folder.join(bed.id("netns"));
    std::os::unix::fs::symlink("/proc/self/ns/net", &link).expect("link");
    for path in ["/proc/1/ns/net", link.to_str().expect("text")] {
        let change = |spec: &mut serde_json::Value| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
            for namespace in namespaces.iter_mut().filter(|one| one["type"] == "network") {
                namespace["path"] = path.into();
            }
        };
        refused(bed, change, path).await;
    }
}

/// A hook is a program of the host's: what is in the environment of containerd and of the shim is none of its business.
async fn a_hook_gets_the_environment_of_its_spec_and_no_more(bed: &Bed) {
    use integration::processes::{Role, of};
    let variables = |text: String| -> Vec<String> {
        let all = text.split('\0').filter(|one| !one.is_empty());
        all.map(str::to_owned).collect()
    };
    for (given, expected) in [
        (Some("[\"MINE=1\"]"), vec!["MINE=1"]),
        (Some("[]"), vec![]),
        // Without one it has what runsc itself has.
        (
            None,
            vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        ),
    ] {
        let file = bed.folder.join(bed.id("environment"));
        // The shell's own, as it was started: what it adds is not in there.
        let script = format!("cat /proc/$$/environ >{}", file.display());
        let container = bed.container(&["sleep", "1000"]).with(|spec| {
            let mut hook = serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
            if let Some(env) = given {
                hook["env"] = serde_json::from_str(env).expect("a list");
            }
            spec["hooks"]["createRuntime"] = serde_json::json!([hook]);
        });
        let container = container.run().await.expect("run");
        let shim = &of(Role::Shim, &container.id)[0];
        let shims = std::fs::read_to_string(format!("/proc/{}/environ", shim.pid));
        let shims = variables(shims.expect("the shim's environment"));
        assert!(
            shims.iter().any(|one| one.starts_with("TTRPC_ADDRESS=")),
            "{shims:?}"
        );
        let hooks = variables(std::fs::read_to_string(&file).expect("the hook ran"));
        assert_eq!(hooks, expected, "{given:?}");
        container.remove().await;
    }
}

/// A create that ran into its deadline leaves nothing: what a hook has started is none of runsc's detached processes.
async fn a_hook_that_hangs_is_ended_with_its_create(bed: &Bed) {
    let mark = "1000.25";
    let script = format!("sleep {mark}; true");
    for kind in ["prestart", "createRuntime"] {
        let container = bed.container(&["sleep", "1000"]).with(|spec| {
            let hook = serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
            spec["hooks"][kind] = serde_json::json!([hook]);
        });
        let container = container.policy("", "runsc.create_timeout = 2");
        let error = container.create().await.map(drop).expect_err("it hangs");
        assert!(error.message().contains("within 2 s"), "{error:?}");
        let left = integration::processes::all();
        let left = left.iter().filter(|one| one.command.contains(mark));
        assert_eq!(left.count(), 0, "{kind}");
    }
}

async fn starting_one_container_changes_no_limits_of_another(bed: &Bed) {
    let limits = "ulimit -n; ulimit -u";
    let first = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let before = first
        .exec("before", &["sh", "-c", limits])
        .finish()
        .await
        .stdout;
    let second = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let after = first
        .exec("after", &["sh", "-c", limits])
        .finish()
        .await
        .stdout;
    assert_eq!(before, after);
    assert!(!before.contains("unlimited"), "{before}");
    first.remove().await;
    second.remove().await;
}
