//! What people ask for and what becomes of it: names of a newer kernel, limits, sysctls, mounts at one place. What is not given is
//! told.

use std::fs;
use std::path::PathBuf;

use integration::bed::Bed;
use integration::cases;
use integration::container::Builder;
use integration::runtime::Needs;
use serde_json::{Value, json};

use crate::figures::metrics::{scrape, socket, value};

cases! {
    Needs::Bulkhead => [
        names_that_nobody_knows_are_dropped_with_a_line_that_is_one,
        limits_below_the_policys_are_given_to_a_container_and_its_execs,
        sysctls_that_runsc_sets_have_their_effect,
        a_spec_without_a_dev_has_one_that_holds_no_files,
        of_mounts_at_one_place_the_last_is_seen_and_a_mask_instead_of_any,
    ],
}

async fn output(builder: Builder<'_>) -> String {
    let done = builder.run().await.expect("run").finish().await;
    assert_eq!(done.status, 0, "{done:?}");
    done.stdout
}

fn folder(bed: &Bed, name: &str) -> PathBuf {
    let folder = bed.folder.join(bed.id(name));
    fs::create_dir_all(&folder).expect("make a folder");
    folder
}

async fn names_that_nobody_knows_are_dropped_with_a_line_that_is_one(bed: &Bed) {
    const FORGED: &str = "CAP_LATER\nINFO policy: forged";
    let folder = folder(bed, "log");
    let unknown = |process: &mut Value| {
        process["capabilities"]["bounding"] = json!(["CAP_CHOWN", FORGED]);
        process["scheduler"] = json!({ "policy": "SCHED_LATER" });
        process["ioPriority"] = json!({ "class": "IOPRIO_CLASS_LATER", "priority": 0 });
        process["user"]["umask"] = 0o77.into();
    };
    let container = bed.container(&["sleep", "1000"]).with(|spec| {
        unknown(&mut spec["process"]);
        spec["linux"]["personality"] = json!({ "domain": "LATER" });
        spec["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_LATER" });
    });
    let policy = format!("log.folder = {:?}", folder.display());
    let container = container.policy("", &policy).run().await.expect("run");
    let rewrites = |control: &str| {
        let label = format!("control=\"{control}\"");
        let name = "bulkhead_policy_rewrites_total";
        value(&scrape(&socket(&container.id)), name, &[&label]).unwrap_or_default()
    };
    let kinds = ["capabilities", "process", "rlimits", "umask"];
    let before = kinds.map(rewrites);
    let exec = container
        .exec("later", &["sh", "-c", "umask"])
        .with(unknown);
    let exec = exec.with(|process| {
        process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "hard": 9999, "soft": 9 }]);
    });
    assert_eq!(exec.finish().await.stdout.trim(), "0022");
    tokio::time::sleep(crate::figures::series::FRESH).await;
    let counted: Vec<f64> = kinds
        .map(rewrites)
        .iter()
        .zip(before)
        .map(|(a, b)| a - b)
        .collect();
    assert_eq!(counted, [2.0, 2.0, 1.0, 1.0], "{kinds:?}");
    let log = fs::read_dir(&folder).expect("list").flatten().next();
    let log = fs::read_to_string(log.expect("a log").path()).expect("read");
    let of_the_exec = |line: &&str| line.contains("exec=\"later\"");
    for told in [
        r"capabilities: asked CAP_LATER\nINFO policy: forged, given none",
        "process: asked process.scheduler, given dropped",
        "process: asked process.ioPriority, given dropped",
    ] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(told)).collect();
        assert_eq!(lines.len(), 2, "{told}: {log}");
        assert_eq!(lines.into_iter().filter(of_the_exec).count(), 1, "{log}");
    }
    for told in [
        "rlimits: asked RLIMIT_NOFILE 9999 (soft 9), given 1024",
        "umask: asked 0o77, given 0o22",
    ] {
        let lines = log.lines().filter(|line| line.contains(told));
        assert_eq!(lines.filter(of_the_exec).count(), 1, "{told}: {log}");
    }
    // A line begins with the time.
    let year = |line: &str| line.starts_with("20");
    assert!(log.lines().all(year), "{log}");
    container.remove().await;
    fs::remove_dir_all(folder).expect("remove");
}

async fn limits_below_the_policys_are_given_to_a_container_and_its_execs(bed: &Bed) {
    let limits = "ulimit -Sn; ulimit -Hn; ulimit -u; ulimit -Ss; ulimit -f; ulimit -l; ulimit -c";
    let expected = "100\n200\n50\n16384\n2048\n64\n0\n";
    let limit =
        |kind: &str, soft: u64, hard: u64| json!({ "type": kind, "soft": soft, "hard": hard });
    let asked = json!([
        limit("RLIMIT_NOFILE", 100, 200),
        limit("RLIMIT_NPROC", 50, 50),
        limit("RLIMIT_STACK", 16 << 20, u64::MAX),
        // In blocks of 512 bytes, where it is told.
        limit("RLIMIT_FSIZE", 1 << 20, 1 << 20),
        limit("RLIMIT_MEMLOCK", u64::MAX, u64::MAX),
        limit("RLIMIT_CORE", u64::MAX, u64::MAX),
    ]);
    let script = format!("{limits}; exec sleep 1000");
    let container = bed
        .shell(&script)
        .with(|spec| spec["process"]["rlimits"] = asked);
    let container = container.run().await.expect("run");
    let exec = container
        .exec("limits", &["sh", "-c", limits])
        .finish()
        .await;
    assert_eq!(exec.stdout, expected, "{exec:?}");
    container.kill(9).await.expect("kill");
    assert_eq!(container.finish().await.stdout, expected);
}

async fn sysctls_that_runsc_sets_have_their_effect(bed: &Bed) {
    let script =
        "cat /proc/sys/fs/nr_open; grep -c lo /proc/net/if_inet6; cat /proc/sys/net/ipv4/tcp_wmem";
    let under = |sysctls: Value| {
        let builder = bed
            .shell(&format!("{script}; true"))
            .policy("", "network = \"sandbox\"");
        output(builder.with(|spec| spec["linux"]["sysctl"] = sysctls))
    };
    let plain = under(json!({})).await;
    let [files, addresses, memory] = lines(&plain);
    assert_eq!(addresses, "1");
    let set = under(json!({
        "fs.nr_open": "2048", "net.ipv6.conf.all.disable_ipv6": "1",
        // Any pod may ask for it, and runsc does not set it.
        "net.ipv4.tcp_wmem": "4096 8192 16384",
    }));
    assert_eq!(lines(&set.await), ["2048", "0", memory]);
    assert_ne!(files, "2048");
}

fn lines(text: &str) -> [&str; 3] {
    let lines: Vec<&str> = text.lines().collect();
    lines.try_into().unwrap_or_else(|_| panic!("{text:?}"))
}

async fn a_spec_without_a_dev_has_one_that_holds_no_files(bed: &Bed) {
    let script = "touch /dev/x 2>/dev/null && echo stored; echo x >/dev/null && head -c 3 /dev/zero | wc -c; \
                  touch /dev/shm/x && echo shared";
    let builder = bed.shell(script).with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| {
            !mount["destination"]
                .as_str()
                .expect("text")
                .starts_with("/dev")
        });
    });
    assert_eq!(output(builder).await, "3\nshared\n");
}

async fn of_mounts_at_one_place_the_last_is_seen_and_a_mask_instead_of_any(bed: &Bed) {
    let folder = folder(bed, "places");
    for name in ["first", "last", "secret"] {
        fs::create_dir_all(folder.join(name).join("below")).expect("make a folder");
        fs::write(folder.join(name).join("name"), name).expect("write");
    }
    let bind = |name: &str, place: &str| {
        let source = folder.join(name);
        json!({ "destination": place, "type": "bind", "source": source, "options": ["rbind", "ro"] })
    };
    let script = "cat /run/name /home/name; ls -A /srv /var; \
                  for f in /srv/x /var/x; do touch $f 2>/dev/null && echo written; done; true";
    let builder = bed.shell(script).with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        // A tmpfs is at /run already.
        mounts.extend([
            bind("last", "/run"),
            bind("first", "/home"),
            bind("last", "/home"),
            bind("secret", "/srv"),
            bind("secret", "/srv/below"),
        ]);
        mounts.push(json!({ "destination": "/var", "type": "tmpfs", "source": "tmpfs" }));
        spec["linux"]["maskedPaths"] = json!(["/srv", "/var"]);
    });
    assert_eq!(output(builder).await, "lastlast/srv:\n\n/var:\n");
    fs::remove_dir_all(folder).expect("remove");
}
