//! Every program on every contender. On Bulkhead each attempt gets nothing and the twin's work goes well; on runc each
//! attempt works, or the program says why it does not: otherwise it would show nothing.

use integration::bed::Bed;
use integration::cases;
use integration::policy::NodePolicy;
use integration::processes::{self, Role};
use integration::runtime::Needs;
use integration::spec::ask_capabilities;
use serde_json::{Value, json};

use crate::contender::Contender;
use crate::outcome::Outcome;
use crate::stage::Stage;

macro_rules! programs {
    ($($test:ident: $program:literal, $title:literal $(, $change:expr)?;)*) => {
        $(async fn $test(bed: &Bed) {
            #[allow(unused_mut, unused_assignments, reason = "most change nothing")]
            let mut change: fn(&mut Value) = |_| {};
            $(change = $change;)?
            judge(bed, $program, $title, change).await;
        })*
        cases! { Needs::Bulkhead => [$($test),*, output_without_end, an_exec_that_asks_for_more, a_request_that_opens_itself] }
    };
}

programs! {
    the_seed_attack: "seed.py", "escape from the language";
    what_is_the_hosts: "host_files.py", "what is the host's";
    the_network: "network.py", "the network";
    tasks: "tasks.py", "processes and threads";
    memory: "memory.py", "memory";
    disk: "disk.py", "disk";
    writes_and_mounts: "writes.py", "files, mounts, namespaces";
    deep_system_calls: "kernel_calls.py", "deep system calls";
    files_and_devices_of_a_kernel: "kernel_files.py", "files and devices of a kernel";
    sockets_and_fifos_of_the_host: "peers.py", "sockets and FIFOs of the host";
    set_uid_programs: "set_uid.py", "set-uid programs", |spec| {
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    };
    exhaustion: "exhaustion.py", "what a kernel counts";
}

/// What stands for runsc by its command, where the attempt is a request to containerd.
const NO_REQUEST: &str = "not run: its command takes no requests of containerd's";

/// How much of an endless output reaches a client that reads all it gets, in five seconds.
async fn output_without_end(bed: &Bed) {
    const MIB: u64 = 1 << 20;
    let mut lengths = Vec::new();
    for contender in [Contender::Runc, Contender::Bulkhead] {
        // Not as the first process, which nobody in its pid namespace can kill.
        let builder = bed.shell("timeout -s KILL 5 yes; true");
        let mut container = contender.by_containerd(builder).run().await.expect("run");
        container.wait().await.expect("wait");
        lengths.push(container.streams.stdout().await.length / MIB);
        container.delete().await.expect("delete");
    }
    append(&format!(
        "| what a kernel counts | endless output, for 5 s | {} MiB | not run: its command has no client of containerd's | {} MiB, by back-pressure |\n",
        lengths[0], lengths[1]
    ));
    assert!(lengths[0] > 100, "on runc it is a flood: {lengths:?} MiB");
    // 10 MiB a second, some of them in buffers at once. That nothing is dropped is shown in `suite`, io::.
    assert!((20..80).contains(&lengths[1]), "{lengths:?} MiB");
}

/// An exec whose process is forged: root again, with every capability and privileges to gain, in a container of neither.
async fn an_exec_that_asks_for_more(bed: &Bed) {
    const ALL: [&str; 4] = [
        "CAP_SYS_ADMIN",
        "CAP_DAC_OVERRIDE",
        "CAP_NET_ADMIN",
        "CAP_SETUID",
    ];
    let attempts = [
        (
            "a capability",
            "! grep -q 'CapEff:.0000000000000000' /proc/self/status",
        ),
        (
            "a capability to gain",
            "! grep -q 'CapBnd:.0000000000000000' /proc/self/status",
        ),
        ("a file system mounted", "mount -t tmpfs none /srv"),
    ];
    let mut got = Vec::new();
    for contender in [Contender::Runc, Contender::Bulkhead] {
        let builder = bed.shell("sleep 1000").with(|spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            spec["process"]["capabilities"] = json!({});
        });
        let container = contender.by_containerd(builder).run().await.expect("run");
        for (number, (_, script)) in attempts.iter().enumerate() {
            let exec = container.exec(&format!("e{number}"), &["sh", "-c", script]);
            let exec = exec.with(|process| {
                process["user"] = json!({ "uid": 0, "gid": 0 });
                process["noNewPrivileges"] = false.into();
                ask_capabilities(process, &ALL);
            });
            got.push(exec.finish().await.status == 0);
        }
        // The twin: what an exec is for.
        let work = ["sh", "-c", "echo done >/tmp/x && cat /tmp/x && id -u"];
        let twin = container.exec("twin", &work).with(|process| {
            process["user"] = json!({ "uid": 1000, "gid": 1000 });
        });
        let done = twin.finish().await;
        assert_eq!(done.stdout, "done\n1000\n", "{contender:?}: {done:?}");
        container.remove().await;
    }
    let (runc, bulkhead) = got.split_at(attempts.len());
    for ((name, _), (runc, bulkhead)) in attempts.iter().zip(runc.iter().zip(bulkhead)) {
        let word = |works: &bool| if *works { "**works**" } else { "held" };
        let (runc, bulkhead) = (word(runc), word(bulkhead));
        append(&format!(
            "| a forged exec | {name} | {runc} | {NO_REQUEST} | {bulkhead} |\n"
        ));
    }
    assert_eq!(runc, [true; 3], "otherwise it shows nothing");
    assert_eq!(bulkhead, [false; 3]);
}

/// A request that asks for the host itself. What is refused at create is not run at all.
async fn a_request_that_opens_itself(bed: &Bed) {
    fn without(spec: &mut Value, kind: &str) {
        let namespaces = spec["linux"]["namespaces"].as_array_mut();
        let namespaces = namespaces.expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != kind);
    }
    type Change = fn(&mut Value);
    let host = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}"));
        let link = link.expect("a namespace").display().to_string();
        format!("[ \"$(readlink /proc/self/ns/{kind})\" = '{link}' ]")
    };
    let requests: [(&str, String, Change); 6] = [
        ("the host's network", host("net"), |spec| {
            without(spec, "network")
        }),
        ("the host's network, by its path", host("net"), |spec| {
            without(spec, "network");
            let path = json!({ "type": "network", "path": "/proc/1/ns/net" });
            let namespaces = spec["linux"]["namespaces"].as_array_mut();
            namespaces.expect("namespaces").push(path);
        }),
        ("the host's processes", host("pid"), |spec| {
            without(spec, "pid")
        }),
        ("the host's IPC", host("ipc"), |spec| without(spec, "ipc")),
        (
            "a device of the host",
            "[ -c /dev/kmsg ]".to_owned(),
            |spec| {
                let device = json!({ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11 });
                spec["linux"]["devices"] = json!([device]);
            },
        ),
        (
            "the processes of the host, bound in",
            "[ -e /srv/1/environ ]".to_owned(),
            |spec| {
                let mounts = spec["mounts"].as_array_mut().expect("mounts");
                let options = ["rbind", "ro"];
                mounts.push(json!({ "destination": "/srv", "type": "bind", "source": "/proc", "options": options }));
            },
        ),
    ];
    // The twin: what of all this an ordinary request asks for.
    for contender in [Contender::Runc, Contender::Bulkhead] {
        let builder = bed.shell("ls /srv && echo x >/dev/null").with(|spec| {
            let options = ["rbind", "ro"];
            let bind = json!({
                "destination": "/srv", "type": "bind", "source": bed.folder, "options": options,
            });
            spec["mounts"].as_array_mut().expect("mounts").push(bind);
        });
        let container = contender.by_containerd(builder).run().await;
        let done = container.expect("run").finish().await;
        assert_eq!(done.status, 0, "{contender:?}: {done:?}");
    }
    for (name, script, change) in requests {
        let mut got = Vec::new();
        for contender in [Contender::Runc, Contender::Bulkhead] {
            let builder = contender.by_containerd(bed.shell(&script).with(change));
            let id = builder.id.clone();
            let ran = match builder.run().await {
                Ok(container) => {
                    assert_eq!(contender, Contender::Runc, "{name}: it was not refused");
                    container.finish().await.status == 0
                }
                Err(error) => {
                    assert_eq!(contender, Contender::Bulkhead, "{name}: {error}");
                    bed.remove(&id).await;
                    false
                }
            };
            got.push(ran);
        }
        assert_eq!(got, [true, false], "{name}");
        append(&format!(
            "| a request that opens itself | {name} | **works** | {NO_REQUEST} | held: refused |\n"
        ));
    }
    // What would configure runsc itself does not reach it.
    let open = bed.shell("sleep 1000").with(|spec| {
        for flag in ["network=host", "host-uds=all", "oci-seccomp=false"] {
            let (flag, value) = flag.split_once('=').expect("a flag");
            spec["annotations"][format!("dev.gvisor.flag.{flag}")] = value.into();
        }
    });
    let container = open.run().await.expect("run");
    let sandbox = &processes::of(Role::Sandbox, &container.id)[0];
    for flag in ["--network=none", "--host-uds=none", "--oci-seccomp=true"] {
        assert!(
            sandbox.command.contains(flag),
            "{flag}: {}",
            sandbox.command
        );
    }
    container.remove().await;
    append(&format!(
        "| a request that opens itself | runsc's flags, by annotations | held: it reads none | {NO_REQUEST} | held |\n"
    ));
    let more = bed.shell("true").with(|spec| {
        spec["annotations"]["dev.bulkhead.network"] = "sandbox".into();
    });
    more.create().await.map(drop).expect_err("refused");
    append(&format!(
        "| a request that opens itself | a network, by Bulkhead's own annotation | held: it reads none | {NO_REQUEST} | held: refused |\n"
    ));
    a_hook_where_hooks_are_refused(bed).await;
    labels_of_an_lsm(bed).await;
}

/// A program of the host's, run as root beside the container.
async fn a_hook_where_hooks_are_refused(bed: &Bed) {
    let mark = bed.folder.join(bed.id("mark"));
    for contender in [Contender::Runc, Contender::Bulkhead] {
        let arguments = ["touch", mark.to_str().expect("text")];
        let builder = contender.by_containerd(bed.shell("true")).with(|spec| {
            spec["hooks"]["createRuntime"] = json!([{ "path": "/bin/touch", "args": arguments }]);
        });
        let _policy = NodePolicy::set("hooks = \"refuse\"");
        let ran = builder.run().await;
        assert_eq!(ran.is_ok(), contender == Contender::Runc, "{contender:?}");
        if let Ok(container) = ran {
            container.finish().await;
            std::fs::remove_file(&mark).expect("on runc the hook runs");
        }
        assert!(!mark.exists(), "on Bulkhead it does not");
    }
    append(&format!(
        "| a request that opens itself | a hook, under `hooks = \"refuse\"` | **works** | {NO_REQUEST} | held: refused |\n"
    ));
}

/// Profiles of Linux security modules are no part of what holds in a sandbox, and do not reach runsc, which fails on one.
async fn labels_of_an_lsm(bed: &Bed) {
    let container = bed.shell("sleep 1000").with(|spec| {
        spec["process"]["apparmorProfile"] = "unconfined".into();
        spec["process"]["selinuxLabel"] = "system_u:system_r:spc_t:s0".into();
        spec["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0".into();
    });
    let container = container.run().await.expect("run");
    let given = std::fs::read_to_string(bed.bundle(&container.id).join("config.json"));
    let given = given.expect("the spec that runs");
    for label in ["apparmorProfile", "selinuxLabel", "mountLabel"] {
        assert!(!given.contains(label), "{label}: {given}");
    }
    container.remove().await;
    append(&format!(
        "| a request that opens itself | labels of a Linux security module | held: this host has none | {NO_REQUEST} | held: dropped |\n"
    ));
}

async fn judge(bed: &Bed, program: &str, title: &str, change: fn(&mut Value)) {
    let mut outcomes = Vec::new();
    let mut faults = Vec::new();
    for contender in Contender::ALL {
        let stage = Stage::set(bed).with(change);
        let outcome = if contender == Contender::Bulkhead {
            beside_a_neighbour(bed, &mut faults, stage.play(contender, program)).await
        } else {
            stage.play(contender, program).await
        };
        outcomes.push(outcome);
    }
    let [runc, runsc, bulkhead] = &outcomes[..] else {
        unreachable!("one for each contender");
    };
    write_down(title, runc, runsc, bulkhead);
    for (name, attempt) in &runc.attempts {
        if !attempt.got && attempt.runc.is_empty() {
            faults.push(format!("on runc: {name}: {attempt:?}"));
        }
        // Memory that runs out ends the program before it can say what it got.
        if !bulkhead.attempts.contains_key(name) && program != "memory.py" {
            faults.push(format!("on Bulkhead {name} did not run: {}", bulkhead.text));
        }
    }
    if runc.attempts.is_empty() {
        faults.push(format!("on runc nothing ran: {}", runc.text));
    }
    let broken = bulkhead.broken();
    faults.extend(broken.iter().map(|what| format!("Bulkhead gave {what}")));
    faults.extend(
        bulkhead
            .heard
            .iter()
            .map(|way| format!("heard from Bulkhead by {way}")),
    );
    for (where_, outcome) in [("runc", runc), ("Bulkhead", bulkhead)] {
        if outcome.work == 0 {
            faults.push(format!(
                "the twin did not run on {where_}: {}",
                outcome.text
            ));
        }
        faults.extend(
            outcome
                .failed
                .iter()
                .map(|what| format!("twin on {where_}: {what}")),
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Another sandbox has to do its work whatever this one does.
async fn beside_a_neighbour(
    bed: &Bed,
    faults: &mut Vec<String>,
    program: impl Future<Output = Outcome>,
) -> Outcome {
    let neighbour = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let outcome = program.await;
    let work = ["sh", "-c", "head -c 33554432 /dev/zero | wc -c"];
    match neighbour.exec("work", &work).run().await {
        Ok(exec) => {
            let done = exec.finish().await;
            if done.stdout.trim() != "33554432" {
                faults.push(format!("another sandbox was harmed: {done:?}"));
            }
        }
        Err(error) => faults.push(format!("another sandbox was harmed: {error}")),
    }
    neighbour.remove().await;
    outcome
}

/// Appends the rows to the table that `BULKHEAD_HOSTILE_TABLE` names.
fn write_down(title: &str, runc: &Outcome, runsc: &Outcome, bulkhead: &Outcome) {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (name, on_runc) in &runc.attempts {
        let word = |outcome: &Outcome| match outcome.attempts.get(name) {
            Some(attempt) if attempt.got => "**works**",
            Some(_) => "held",
            None => "held: ended",
        };
        let reason = &on_runc.runc;
        let held = if reason.is_empty() {
            "held".to_owned()
        } else {
            format!("held: {reason}")
        };
        let on_runc = if on_runc.got { "**works**" } else { &held };
        let _ = writeln!(
            text,
            "| {title} | {name} | {on_runc} | {} | {} |",
            word(runsc),
            word(bulkhead)
        );
    }
    append(&text);
}

pub(crate) fn append(text: &str) {
    let Some(path) = std::env::var_os("BULKHEAD_HOSTILE_TABLE") else {
        return;
    };
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    std::io::Write::write_all(&mut file.expect("open the table"), text.as_bytes()).expect("write");
}
