//! What people run, under the strict policy or the smallest that is documented for it: each ends well.

use std::fs;

use integration::bed::Bed;
use integration::cases;
use integration::container::{Finished, overlay};
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use serde_json::{Value, json};

cases! {
    Needs::Bulkhead => [
        a_shell,
        python_with_threads_processes_and_a_database,
        numpy_from_the_image,
        a_wheel_needs_scratch_that_runs,
        a_static_program_of_go,
        a_static_program_of_rust,
        a_jupyter_kernel_on_loopback,
        postgresql_from_initdb_to_a_query,
        nginx_as_its_package_sets_it_up,
        what_traces_and_what_makes_a_sandbox_of_its_own,
    ],
}

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benign");
/// What engines and kubelets bind into every container.
const USUAL: [(&str, &str); 4] = [
    ("/etc/hosts", "127.0.0.1 localhost\n"),
    ("/etc/hostname", "benign\n"),
    ("/etc/resolv.conf", "nameserver 127.0.0.1\n"),
    ("/dev/termination-log", ""),
];
const STRICT: &str = "";
const WHEEL: &str = include_str!("../../../docs/policies/wheels.toml");
const ORDINARY: &str = include_str!("../../../docs/policies/ordinary.toml");
const WEB: &str = include_str!("../../../docs/policies/nginx.toml");

async fn run(bed: &Bed, policy: &str, args: &[&str], change: fn(&mut Value)) -> Finished {
    let _policy = NodePolicy::set(policy);
    let folder = bed.folder.join(bed.id("benign"));
    let rootfs = overlay(&bed.image_path("workbench"), &folder);
    let container = bed.container(args).rootfs(rootfs).with(|spec| {
        spec["root"]["readonly"] = false.into();
        let mounts = spec["mounts"].as_array_mut().expect("a list");
        mounts.push(json!({
            "destination": "/agent", "type": "bind", "source": PROGRAMS, "options": ["rbind", "ro"],
        }));
        for (place, text) in USUAL {
            let source = folder.join(place.replace('/', "-"));
            fs::write(&source, text).expect("write");
            mounts.push(json!({
                "destination": place, "type": "bind", "source": source, "options": ["rbind", "rw"],
            }));
        }
        change(spec);
    });
    let done = container.run().await.expect("run").finish().await;
    fs::remove_dir_all(&folder).expect("remove the layers");
    done
}

async fn goes_well(bed: &Bed, policy: &str, args: &[&str], says: &str) {
    let done = run(bed, policy, args, |_| {}).await;
    assert!(
        done.status == 0 && done.stdout.contains(says),
        "{args:?}: {done:?}"
    );
}

fn as_agent(spec: &mut Value) {
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    spec["process"]["cwd"] = json!("/tmp");
}

async fn a_shell(bed: &Bed) {
    let script = "cd /tmp && for i in 3 1 2; do echo line $i; done | sort >list && grep -c line list && \
                  sed s/line/word/ list | head -n 1 && kill -0 $$ && (exit 3) || echo code $?";
    goes_well(bed, STRICT, &["sh", "-c", script], "3\nword 1\ncode 3\n").await;
}

async fn python_with_threads_processes_and_a_database(bed: &Bed) {
    let args = ["python3", "/agent/threads.py"];
    goes_well(bed, STRICT, &args, "threads 499500").await;
}

async fn numpy_from_the_image(bed: &Bed) {
    let args = ["python3", "/agent/arrays.py"];
    goes_well(bed, STRICT, &args, "arrays 500").await;
}

async fn a_wheel_needs_scratch_that_runs(bed: &Bed) {
    let args = ["python3", "/agent/wheel.py"];
    let strict = run(bed, STRICT, &args, |_| {}).await;
    assert!(
        strict.status != 0 && strict.stderr.contains("ImportError"),
        "{strict:?}"
    );
    goes_well(bed, WHEEL, &args, "wheel BZ2Compressor").await;
}

async fn a_static_program_of_go(bed: &Bed) {
    goes_well(bed, STRICT, &["/opt/static-go"], "go 500500").await;
}

async fn a_static_program_of_rust(bed: &Bed) {
    goes_well(bed, STRICT, &["/opt/static-rust"], "rust 20825").await;
}

async fn a_jupyter_kernel_on_loopback(bed: &Bed) {
    let args = ["python3", "/agent/kernel.py"];
    goes_well(bed, STRICT, &args, "kernel 42").await;
}

async fn postgresql_from_initdb_to_a_query(bed: &Bed) {
    let done = run(bed, STRICT, &["sh", "/agent/database.sh"], as_agent).await;
    assert!(
        done.status == 0 && done.stdout.contains("database 500500"),
        "{done:?}"
    );
}

async fn nginx_as_its_package_sets_it_up(bed: &Bed) {
    let args = ["sh", "/agent/web.sh"];
    let strict = run(bed, STRICT, &args, |_| {}).await;
    assert_ne!(strict.status, 0, "it needs its policy: {strict:?}");
    goes_well(bed, WEB, &args, "web True").await;
}

/// Debuggers, and what browsers and builds do without privileges: namespaces of their own. None of it is for the built-in profile.
async fn what_traces_and_what_makes_a_sandbox_of_its_own(bed: &Bed) {
    const PROGRAMS: [(&str, &str); 4] = [
        (
            "strace -f -e trace=openat sh -c 'cat </etc/group >/tmp/x; true' 2>&1",
            "openat(AT_FDCWD, \"/etc/group\"",
        ),
        (
            "gdb -batch -ex starti -ex 'stepi 3' -ex 'print $pc != 0' -ex kill /opt/static-rust 2>&1",
            "$1 = 1\n",
        ),
        (
            "bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-uts --ro-bind / / --ro-bind /tmp /srv --tmpfs /tmp \
             --proc /proc --dev /dev sh -c '! touch /srv/x 2>/dev/null && touch /tmp/x && ls /tmp && echo $$'",
            "x\n2\n",
        ),
        (
            "unshare --user --map-root-user --mount --pid --fork sh -c 'id -u; echo $$'",
            "0\n1\n",
        ),
    ];
    const UNFILTERED: &str = "allow_unconfined = true";
    for (program, says) in PROGRAMS {
        let args = ["sh", "-c", program];
        let held = run(bed, ORDINARY, &args, as_agent).await;
        assert!(!held.stdout.contains(says), "{program}: {held:?}");
        let done = run(bed, UNFILTERED, &args, as_agent).await;
        assert!(
            done.status == 0 && done.stdout.contains(says),
            "{program}: {done:?}"
        );
    }
    let network = ["bwrap", "--unshare-net", "--ro-bind", "/", "/", "true"];
    let done = run(bed, UNFILTERED, &network, as_agent).await;
    assert!(done.stderr.contains("RTM_NEWADDR"), "{done:?}");
}
