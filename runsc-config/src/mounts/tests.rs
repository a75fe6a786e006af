use super::*;
use crate::spec::tests::context;

fn hardened(mounts: Value) -> Result<(Vec<Value>, Report), Refusal> {
    hardened_in(mounts, &context())
}

fn hardened_in(mounts: Value, context: &Context<'_>) -> Result<(Vec<Value>, Report), Refusal> {
    hardened_under(&Policy::strict(), mounts, context)
}

fn hardened_under(
    policy: &Policy,
    mounts: Value,
    context: &Context<'_>,
) -> Result<(Vec<Value>, Report), Refusal> {
    let mut spec = Map::from_iter([("mounts".to_owned(), mounts)]);
    let mut report = Report::default();
    let mut shared = match context.kind {
        ContainerKind::PodContainer(shared) => shared.clone(),
        _ => Shared {
            memory: 512 * MIB,
            ..Shared::default()
        },
    };
    harden(&mut spec, &mut shared, policy, context, &mut report)?;
    Ok((spec["mounts"].as_array().expect("list").clone(), report))
}

fn options_at(mounts: &[Value], place: &str) -> Vec<String> {
    let mount = mounts
        .iter()
        .find(|mount| mount["destination"] == place)
        .expect(place);
    serde_json::from_value(mount["options"].clone()).expect("options")
}

#[test]
fn the_usual_places_are_writable_and_small() {
    let (mounts, _) =
        hardened(json!([{ "destination": "/dev", "type": "tmpfs", "source": "tmpfs" }]))
            .expect("ok");
    assert!(options_at(&mounts, "/tmp").contains(&format!("size={}", 64 * MIB)));
    assert!(options_at(&mounts, "/tmp").contains(&"noexec".to_owned()));
    assert!(options_at(&mounts, "/dev").contains(&"ro".to_owned()));
    let order: Vec<_> = mounts
        .iter()
        .map(|m| m["destination"].as_str().expect("text"))
        .collect();
    let position = |place| order.iter().position(|p| *p == place).expect(place);
    assert!(position("/dev/shm") > position("/dev"));
}

#[test]
fn a_tmpfs_is_cut_to_size_and_stripped_of_rights() {
    for (asked, given) in [
        ("size=1g", 64 * MIB),
        ("size=50%", 64 * MIB),
        ("size=1m", MIB),
        ("size=0", 64 * MIB),
    ] {
        let mount = json!([{ "destination": "/data", "type": "tmpfs", "options": ["exec", "suid", asked] }]);
        let (mounts, _) = hardened(mount).expect("ok");
        let options = options_at(&mounts, "/data");
        assert!(
            options.contains(&format!("size={given}")),
            "{asked}: {options:?}"
        );
        assert!(!options.contains(&"exec".to_owned()) && !options.contains(&"suid".to_owned()));
    }
}

#[test]
fn a_recursively_read_only_bind_is_read_only() {
    let mount = json!([{
        "destination": "/x", "type": "bind", "source": "/home/u/work", "options": ["rbind", "rw", "rro"],
    }]);
    let (mounts, _) = hardened(mount).expect("ok");
    let options = options_at(&mounts, "/x");
    let has = |option: &str| options.iter().any(|given| given == option);
    assert!(has("ro") && !has("rw") && !has("rro"), "{options:?}");
}

#[test]
fn a_bind_is_private_whatever_was_asked() {
    for asked in ["rshared", "slave", "rprivate", "private", "nodev"] {
        let mount = json!([{
            "destination": "/x", "type": "bind", "source": "/home/u/work", "options": ["rbind", asked],
        }]);
        let (mounts, _) = hardened(mount).expect("ok");
        let options = options_at(&mounts, "/x");
        let words = options
            .iter()
            .filter(|option| ["private", "rprivate"].contains(&option.as_str()));
        assert_eq!(words.count(), 1, "{asked}: {options:?}");
        assert!(
            !options
                .iter()
                .any(|option| ["rshared", "slave"].contains(&option.as_str()))
        );
    }
}

#[test]
fn what_the_host_mounts_later_appears_where_the_policy_gives_that_to_who_asks() {
    let policy = Policy::parse("binds.propagation = true", "x").expect("a policy");
    for (asked, given, told) in [
        ("slave", "rslave", 0),
        ("rslave", "rslave", 0),
        // What is mounted inside never reaches the host.
        ("rshared", "rslave", 1),
        ("rprivate", "rprivate", 0),
        ("nodev", "rprivate", 0),
    ] {
        let mount = json!([
            { "destination": "/x", "type": "bind", "source": "/home/u/work", "options": ["rbind", asked] },
            { "destination": "/y", "type": "tmpfs", "options": [asked, "size=1m"] },
        ]);
        let (mounts, report) = hardened_under(&policy, mount, &context()).expect("ok");
        let words = [
            "private", "rprivate", "shared", "rshared", "slave", "rslave",
        ];
        let words = |place| {
            let options = options_at(&mounts, place).into_iter();
            let words = options.filter(|option| words.contains(&option.as_str()));
            words.collect::<Vec<_>>()
        };
        assert_eq!(words("/x"), [given], "{asked}");
        assert!(words("/y").is_empty(), "{asked}");
        let noted = report.changes.iter();
        let noted = noted.filter(|change| {
            change.control == "propagation" && change.asked.starts_with("mounts[0]")
        });
        assert_eq!(noted.count(), told, "{asked}");
    }
}

#[test]
fn a_link_to_a_forbidden_place_is_followed_before_judging() {
    let mut context = context();
    context.host.resolve = |path| {
        path.ends_with("link")
            .then(|| PathBuf::from("/run/docker.sock"))
    };
    let mount = json!([{ "destination": "/x", "type": "bind", "source": "/home/u/link", "options": ["bind"] }]);
    let result = hardened_in(mount, &context);
    assert!(
        result
            .expect_err("refused")
            .to_string()
            .contains("never given")
    );
}

#[test]
fn a_forbidden_place_is_known_by_any_name() {
    for source in [
        "/run/../run/docker.sock",
        "/home/../proc/1",
        "/./sys",
        "../../../../../dev",
        "/home/u/../..",
    ] {
        let mount = json!([{ "destination": "/x", "type": "bind", "source": source }]);
        let refusal = hardened(mount).expect_err(source).to_string();
        assert!(refusal.contains("never given"), "{source}: {refusal}");
    }
}

#[test]
fn the_socket_of_this_containerd_is_never_bound_wherever_it_is() {
    let mut context = context();
    context.host.sockets = vec![PathBuf::from("/srv/c/containerd.sock")];
    for (source, refused) in [
        ("/srv/c/containerd.sock", true),
        ("/srv/c", true),
        ("/srv/c/work", false),
    ] {
        let mount = json!([{ "destination": "/x", "type": "bind", "source": source }]);
        let result = hardened_in(mount, &context);
        assert_eq!(result.is_err(), refused, "{source}");
    }
}

#[test]
fn an_ordinary_bind_keeps_its_mode_and_loses_devices() {
    for mode in ["ro", "rw"] {
        let mount = json!([{
            "destination": "/work", "type": "bind", "source": "/home/u/work", "options": ["rbind", "rshared", mode],
        }]);
        let (mounts, report) = hardened(mount).expect("ok");
        let options = options_at(&mounts, "/work");
        assert!(
            options.contains(&mode.to_owned()) && options.contains(&"nodev".to_owned()),
            "{options:?}"
        );
        assert!(!options.contains(&"rshared".to_owned()));
        assert!(
            report
                .changes
                .iter()
                .any(|change| change.control == "propagation")
        );
    }
}

#[test]
fn what_the_policy_lists_to_be_read_is_mounted_read_only() {
    let mut policy = Policy::strict();
    policy.binds.read_only = vec!["/srv/models".into()];
    let mut context = context();
    context.namespace = "k8s.io";
    let mut spec = Map::from_iter([
        (
            "annotations".to_owned(),
            json!({ "io.kubernetes.cri.container-type": "container" }),
        ),
        (
            "mounts".to_owned(),
            json!([{
                "destination": "/m", "type": "bind", "source": "/srv/models", "options": ["rbind", "rw"],
            }]),
        ),
    ]);
    let (mut shared, mut report) = (Shared::default(), Report::default());
    harden(&mut spec, &mut shared, &policy, &context, &mut report).expect("given");
    let options = options_at(spec["mounts"].as_array().expect("list"), "/m");
    assert!(
        options.contains(&"ro".to_owned()) && !options.contains(&"rw".to_owned()),
        "{options:?}"
    );
    assert!(
        report
            .changes
            .iter()
            .any(|change| change.key == "binds.writable")
    );
}

#[test]
fn mounts_of_the_hosts_filesystems_are_refused() {
    for kind in ["ext4", "overlay", "nfs", "fuse", "debugfs", ""] {
        let mount = json!([{ "destination": "/x", "type": kind, "source": "/dev/sda1" }]);
        assert!(hardened(mount).is_err(), "{kind}");
    }
    assert!(hardened(json!([{ "destination": "relative", "type": "tmpfs" }])).is_err());
    assert!(
        hardened(
            json!([{ "destination": "/x", "type": "bind", "source": "/h", "options": ["idmap"] }])
        )
        .is_err()
    );
}

/// The sizes of all that can be written, by their places.
fn sizes(mounts: &[Value]) -> Vec<(String, u64)> {
    let of_memory = mounts
        .iter()
        .filter(|mount| mount["type"] == "tmpfs" && mount["destination"] != "/dev");
    let sizes = of_memory.filter_map(|mount| {
        let options = mount["options"].as_array()?.iter();
        let mut texts = options.filter_map(Value::as_str);
        let size = texts.find_map(|option| option.strip_prefix("size="))?;
        Some((
            mount["destination"].as_str()?.to_owned(),
            size.parse().ok()?,
        ))
    });
    sizes.collect()
}

#[test]
fn scratch_shrinks_with_the_memory_it_is_made_of() {
    let mut spec = Map::new();
    let mut shared = Shared {
        memory: 92 * MIB,
        ..Shared::default()
    };
    let (policy, mut report) = (Policy::strict(), Report::default());
    let given = harden(&mut spec, &mut shared, &policy, &context(), &mut report).expect("ok");
    let sizes = sizes(spec["mounts"].as_array().expect("list"));
    assert!(given <= 44 * MIB && sizes.iter().map(|(_, size)| size).sum::<u64>() <= given);
    let at = |place: &str| sizes.iter().find(|(at, _)| at == place).expect(place).1;
    assert!(at("/tmp") > at("/dev/shm") && at("/dev/shm") > at("/run"));
}

#[test]
fn every_place_in_memory_counts_whatever_its_number() {
    let shared = pod();
    let in_a_pod = Context {
        kind: ContainerKind::PodContainer(&shared),
        ..context()
    };
    for context in [context(), in_a_pod] {
        let asked: Vec<Value> = (0..100)
            .map(|number| format!("/data/{number}"))
            .chain(["/tmp".to_owned(), "/tmp".to_owned(), "/var/run".to_owned()])
            .map(|place| json!({ "destination": place, "type": "tmpfs", "options": ["size=32m"] }))
            .collect();
        let (mounts, report) = hardened_in(json!(asked), &context).expect("ok");
        let sizes = sizes(&mounts);
        let expected = if context.kind == ContainerKind::Plain {
            104
        } else {
            103
        };
        assert_eq!(sizes.len(), expected, "{:?}", context.kind);
        let sum: u64 = sizes.iter().map(|(_, size)| size).sum();
        assert!(sum <= (512 - MEMORY_LEFT_MIB) * MIB, "{sum}");
        // It is the memory that is too small, and not a key.
        let changes = report.changes.iter();
        let of_data = changes.filter(|change| change.asked.contains("/data/"));
        assert!(of_data.clone().count() == 100 && of_data.clone().all(|c| c.key.is_empty()));
    }
}

/// A pod with an empty dir in memory, and one on disk.
fn pod() -> Shared {
    let folder = Path::new("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir");
    let volume = |name: &str, in_memory| Volume {
        source: folder.join(name),
        in_memory,
        size: None,
    };
    Shared {
        tasks_limit: 256,
        memory: 512 * MIB,
        volumes: vec![volume("fast", true), volume("work", false)],
        scratch: 0,
    }
}

#[test]
fn a_pods_container_mounts_what_the_pod_shares() {
    let shared = pod();
    let context = Context {
        kind: ContainerKind::PodContainer(&shared),
        ..context()
    };
    let bind = |source: &Path, destination: &str| json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"] });
    let (fast, work) = (&shared.volumes[0].source, &shared.volumes[1].source);
    let asked = json!([
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
        bind(Path::new("/run/containerd/cri/sandboxes/c/shm"), "/dev/shm"),
        bind(fast, "/fast"), bind(work, "/work"),
    ]);
    let (mounts, _) = hardened_in(asked, &context).expect("ok");
    let at = |place: &str| {
        mounts
            .iter()
            .find(|m| m["destination"] == place)
            .expect(place)
    };
    assert_eq!(
        (&at("/dev/shm")["type"], &at("/dev/shm")["source"]),
        (&json!("tmpfs"), &json!(pod::SHM))
    );
    assert_eq!(
        (&at("/fast")["type"], &at("/fast")["source"]),
        (&json!("tmpfs"), &json!(fast))
    );
    assert_eq!(at("/work")["type"], json!("bind"));
    assert!(options_at(&mounts, "/fast").contains(&"ro".to_owned()));
    assert!(!options_at(&mounts, "/fast").contains(&"rbind".to_owned()));
}

#[test]
fn a_volume_at_dev_shm_is_mounted_there_and_what_is_dropped_is_told() {
    let shared = pod();
    let at_shm = |kind, mount: Value| {
        let context = Context { kind, ..context() };
        let (mounts, report) = hardened_in(json!([mount]), &context).expect("ok");
        let at: Vec<_> = mounts
            .iter()
            .filter(|one| one["destination"] == pod::SHM)
            .collect();
        assert_eq!(at.len(), 1, "{mounts:?}");
        let at = ["type", "source"].map(|key| at[0][key].as_str().expect(key).to_owned());
        let told = report.changes.iter();
        (
            at,
            told.filter(|one| one.asked.contains("/dev/shm")).count(),
        )
    };
    let bind = |source: &Path| json!({ "destination": "/dev/shm/", "type": "bind", "source": source, "options": ["rbind"] });
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (fast, work) = (&shared.volumes[0].source, &shared.volumes[1].source);
    let container = ContainerKind::PodContainer(&shared);
    let pods = ["tmpfs", pod::SHM].map(str::to_owned);
    assert_eq!(
        at_shm(container, bind(fast)),
        (["tmpfs".to_owned(), text(fast)], 0)
    );
    assert_eq!(
        at_shm(container, bind(work)),
        (["bind".to_owned(), text(work)], 0)
    );
    for of_the_cri in [
        "/run/containerd/cri/sandboxes/c/shm",
        "/run/x/c/userdata/shm",
    ] {
        let given = at_shm(container, bind(Path::new(of_the_cri)));
        assert_eq!(given, (pods.clone(), 0), "{of_the_cri}");
    }
    let tmpfs = json!({ "destination": "/dev/shm", "type": "tmpfs", "options": ["size=1g"] });
    assert_eq!(at_shm(container, tmpfs), (pods.clone(), 1));
    // It holds the pod's, and its own program does nothing.
    assert_eq!(
        at_shm(ContainerKind::PodSandbox, bind(Path::new("/x"))),
        (pods, 0)
    );
    // Another pod's is judged as any bind is.
    let mount = json!([bind(Path::new("/run/docker.sock"))]);
    let context = Context {
        kind: container,
        ..context()
    };
    hardened_in(mount, &context).expect_err("never given");
}

#[test]
fn a_spec_without_a_dev_has_one_that_holds_no_files() {
    let shared = pod();
    for kind in [
        ContainerKind::Plain,
        ContainerKind::PodSandbox,
        ContainerKind::PodContainer(&shared),
    ] {
        let context = Context { kind, ..context() };
        for asked in [
            json!([]),
            json!([{ "destination": "/dev/", "type": "tmpfs", "options": ["rw", "exec"] }]),
        ] {
            let (mounts, _) = hardened_in(asked, &context).expect("ok");
            let places = mounts.iter().filter(|one| one["destination"] == "/dev");
            assert_eq!(places.count(), 1, "{mounts:?}");
            let options = options_at(&mounts, "/dev");
            for option in ["ro", "nosuid", "noexec"] {
                assert!(options.iter().any(|one| one == option), "{options:?}");
            }
        }
    }
}

#[test]
fn of_mounts_at_one_place_the_last_alone_stays() {
    let bind = |destination: &str, source: &str| json!({ "destination": destination, "type": "bind", "source": source });
    let (mounts, _) = hardened(json!([
        { "destination": "/run", "type": "tmpfs" }, bind("/x", "/run/docker.sock"), bind("/x/y", "/home/u/y"),
        bind("/run/", "/home/u/run"), bind("/x/y/..", "/home/u/x"),
    ]))
    .expect("what is not mounted is not refused");
    let of = |place: &str| {
        let at = mounts.iter().filter(|one| one["destination"] == place);
        at.map(|one| one["source"].as_str().expect("a source"))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("/run"), ["/home/u/run"]);
    assert_eq!(of("/x"), ["/home/u/x"]);
    assert_eq!(of("/x/y"), ["/home/u/y"]);
}

#[test]
fn the_containers_of_a_pod_share_its_room_for_scratch() {
    let mut shared = pod();
    for _ in 0..40 {
        let so_far = shared.clone();
        let context = Context {
            kind: ContainerKind::PodContainer(&so_far),
            ..context()
        };
        let mut spec = Map::from_iter([(
            "mounts".to_owned(),
            json!([{ "destination": "/data", "type": "tmpfs" }]),
        )]);
        let (policy, mut report) = (Policy::strict(), Report::default());
        let mut own = so_far.clone();
        let given = harden(&mut spec, &mut own, &policy, &context, &mut report).expect("ok");
        // The pod's own /dev/shm has its size from the sandbox.
        let sizes = sizes(spec["mounts"].as_array().expect("list"));
        assert!(sizes.iter().map(|(_, size)| size).sum::<u64>() <= given);
        shared.scratch += given;
    }
    let sum = shared.scratch;
    assert!(sum <= (512 - MEMORY_LEFT_MIB + 40) * MIB, "{sum}");
}
