use super::*;
use crate::report::Change;
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
    harden(
        &mut spec,
        &mut shared,
        policy,
        Caller::Node,
        context,
        &mut report,
    )?;
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
    let context = context();
    let mut spec = Map::from_iter([(
        "mounts".to_owned(),
        json!([{
            "destination": "/m", "type": "bind", "source": "/srv/models", "options": ["rbind", "rw"],
        }]),
    )]);
    let (mut shared, mut report) = (Shared::default(), Report::default());
    harden(
        &mut spec,
        &mut shared,
        &policy,
        Caller::Kubernetes,
        &context,
        &mut report,
    )
    .expect("given");
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
    let given = harden(
        &mut spec,
        &mut shared,
        &policy,
        Caller::Node,
        &context(),
        &mut report,
    )
    .expect("ok");
    let sizes = sizes(spec["mounts"].as_array().expect("list"));
    assert!(
        given.scratch <= 44 * MIB
            && sizes.iter().map(|(_, size)| size).sum::<u64>() <= given.scratch
    );
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
        pod: pod::Identity::default(),
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
    let of_the_cri = Path::new("/run/containerd/cri/sandboxes/c/shm");
    assert_eq!(at_shm(container, bind(of_the_cri)), (pods.clone(), 0));
    // CRI-O's, which makes no pod here.
    let cri_os = Path::new("/run/x/c/userdata/shm");
    assert_eq!(
        at_shm(container, bind(cri_os)),
        (["bind".to_owned(), text(cri_os)], 0)
    );
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
        let given = harden(
            &mut spec,
            &mut own,
            &policy,
            Caller::Node,
            &context,
            &mut report,
        )
        .expect("ok");
        // The pod's own /dev/shm has its size from the sandbox.
        let sizes = sizes(spec["mounts"].as_array().expect("list"));
        assert!(sizes.iter().map(|(_, size)| size).sum::<u64>() <= given.scratch);
        shared.scratch += given.scratch;
    }
    let sum = shared.scratch;
    assert!(sum <= (512 - MEMORY_LEFT_MIB + 40) * MIB, "{sum}");
}

/// What a client mounts hides what is there; what its engine mounts by itself does not.
#[test]
fn the_images_own_is_seen_where_nobody_has_asked_for_an_empty_place() {
    let engines = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    let tmpfs = |place: &str, options: &[&str]| json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options });
    let volume = "/run/containerd/io.containerd.grpc.v1.cri/containers/c1/volumes/v";
    let bind = json!({ "destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rw"] });
    let sceneries = |policy: &str, is_pod: bool, mounts: Value| {
        let annotations = json!({ "io.kubernetes.cri.container-type": "container" });
        let mut spec = Map::from_iter([("mounts".to_owned(), mounts)]);
        let mut context = context();
        context.bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io/c1");
        context.id = "c1";
        if is_pod {
            context.namespace = "k8s.io";
            spec.insert("annotations".to_owned(), annotations);
        }
        let policy = Policy::parse(policy, "x").expect("a policy");
        let mut shared = Shared {
            memory: 512 * MIB,
            ..Shared::default()
        };
        let given = harden(
            &mut spec,
            &mut shared,
            &policy,
            if context.namespace == "k8s.io" {
                Caller::Kubernetes
            } else {
                Caller::Node
            },
            &context,
            &mut Report::default(),
        );
        let given = given.map(|given| given.sceneries);
        let places = |one: Scenery| (one.destination.display().to_string(), one.source);
        let places = given.map(|all| all.into_iter().map(places).collect::<Vec<_>>());
        (places, spec["mounts"].clone())
    };
    let of = |names: &[&str]| {
        let names = names.iter().map(|name| ((*name).to_owned(), None));
        Ok(names.collect::<Vec<(String, Option<PathBuf>)>>())
    };
    for (mounts, seen) in [
        (json!([]), of(&["/run", "/tmp"])),
        (json!([tmpfs("/run", &engines)]), of(&["/run", "/tmp"])),
        (
            json!([tmpfs("/run", &["mode=755"]), tmpfs("/tmp", &[])]),
            of(&[]),
        ),
        (
            json!([tmpfs("/tmp", &["tmpcopyup"]), tmpfs("/var", &engines)]),
            of(&["/run", "/tmp"]),
        ),
        (
            json!([tmpfs("/dev/x", &["tmpcopyup"])]),
            of(&["/run", "/tmp"]),
        ),
        (json!([bind]), of(&["/run", "/tmp"])),
    ] {
        let (places, mounts) = sceneries("", false, mounts);
        assert_eq!(places, seen);
        assert!(!mounts.to_string().contains("tmpcopyup"), "{mounts}");
    }
    // A volume of the image, which a pod has in memory unless the policy leaves it where it is.
    let (places, mounts) = sceneries("", true, json!([bind]));
    let mut seen = of(&["/run", "/tmp"]).expect("places");
    seen.push(("/data".to_owned(), Some(volume.into())));
    assert_eq!(places, Ok(seen));
    let mounts = mounts.as_array().expect("mounts");
    let options = options_at(mounts, "/data");
    assert!(
        options.contains(&format!("size={}", 64 * MIB)),
        "{options:?}"
    );
    assert!(options.contains(&"noexec".to_owned()) && options.contains(&"nodev".to_owned()));
    let (places, mounts) = sceneries("image_volumes = \"host\"", true, json!([bind]));
    assert_eq!(places, of(&["/run", "/tmp"]));
    assert!(mounts.to_string().contains(volume), "{mounts}");
}

/// It is made by the image's author alone, and nobody can be asked for another place.
#[test]
fn a_volume_of_an_image_replaces_nothing_of_gvisors_or_of_the_pods() {
    let shared = pod();
    let mut context = context();
    context.bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io/c1");
    context.id = "c1";
    context.namespace = "k8s.io";
    context.kind = ContainerKind::PodContainer(&shared);
    let volume = "/run/containerd/io.containerd.grpc.v1.cri/containers/c1/volumes/v";
    let given = |place: &str| {
        let mounts = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": place, "type": "bind", "source": volume, "options": ["rbind", "rw"] },
        ]);
        let annotations = json!({ "io.kubernetes.cri.container-type": "container" });
        let mut spec = Map::from_iter([
            ("mounts".to_owned(), mounts),
            ("annotations".to_owned(), annotations),
        ]);
        let (mut report, mut shared) = (Report::default(), shared.clone());
        let (policy, caller) = (Policy::strict(), Caller::Kubernetes);
        let given = harden(
            &mut spec,
            &mut shared,
            &policy,
            caller,
            &context,
            &mut report,
        );
        let sceneries = given.expect("given").sceneries.into_iter();
        let places: Vec<_> = sceneries.map(|one| one.destination).collect();
        let told: Vec<_> = report.changes.iter().map(ToString::to_string).collect();
        (spec["mounts"].clone(), places, told)
    };
    let (mounts, places, told) = given("/dev/shm");
    let at_shm = mounts.as_array().expect("a list").iter();
    let at_shm: Vec<_> = at_shm.filter(|mount| is_at(mount, pod::SHM)).collect();
    assert!(
        at_shm.len() == 1 && at_shm[0]["source"] == pod::SHM,
        "{at_shm:?}"
    );
    assert_eq!(places, ["/run", "/tmp"].map(PathBuf::from));
    assert_eq!(
        told,
        ["scratch: asked a tmpfs of its own at /dev/shm, given the one that the pod shares"]
    );
    for place in ["/", "/dev", "/proc", "/proc/x", "/sys", "/sys/fs"] {
        let (mounts, places, told) = given(place);
        assert!(!mounts.to_string().contains(volume), "{mounts}");
        let at_proc = mounts.as_array().expect("a list").iter();
        let at_proc: Vec<_> = at_proc.filter(|mount| is_at(mount, "/proc")).collect();
        assert!(
            at_proc.len() == 1 && at_proc[0]["type"] == "proc",
            "{place}: {at_proc:?}"
        );
        assert_eq!(places, ["/run", "/tmp"].map(PathBuf::from), "{place}");
        let line = format!(
            "image: asked a volume of the image at {place}, given none: what gVisor has there is no place for one"
        );
        assert_eq!(told, [line]);
    }
    for place in ["/process", "/dev/x", "/data"] {
        let (_, places, _) = given(place);
        assert!(places.contains(&PathBuf::from(place)), "{place}");
    }
}

/// Of which binds a client's container has a copy, and what is told of its binds.
fn written(
    spec: &mut Map<String, Value>,
    policy: &Policy,
) -> (BTreeMap<PathBuf, Writes>, Vec<Change>) {
    let (mut shared, mut report) = (Shared::default(), Report::default());
    let (caller, context) = (Caller::Node, context());
    let given = harden(spec, &mut shared, policy, caller, &context, &mut report);
    let mut told = report.changes;
    told.retain(|one| one.control == "binds");
    (given.expect("ok").copies, told)
}

#[test]
fn what_engines_bind_into_the_root_is_as_writable_as_the_root() {
    let mut writable = Policy::strict();
    writable.rootfs.writable = true;
    let places = [
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/etc/hosts.d",
        "/data",
    ];
    let mounts: Vec<Value> = places
        .iter()
        .map(|place| json!({ "destination": place, "type": "bind", "source": "/srv/file", "options": ["rbind", "rw"] }))
        .collect();
    for (policy, is_read_only, keys) in [
        (Policy::strict(), true, vec!["rootfs.writable"; 3]),
        (writable.clone(), true, vec![""; 3]),
        (writable, false, Vec::new()),
    ] {
        let mut spec = Map::from_iter([
            ("mounts".to_owned(), json!(mounts)),
            (
                "root".to_owned(),
                json!({ "path": "/r", "readonly": is_read_only }),
            ),
        ]);
        let (copies, told) = written(&mut spec, &policy);
        assert!(copies.is_empty());
        let mounts = spec["mounts"].as_array().expect("a list");
        for (number, place) in places.iter().enumerate() {
            let options = options_at(mounts, place);
            let expected = if is_read_only && number < 3 {
                ["ro", "rw"]
            } else {
                ["rw", "ro"]
            };
            let has = expected.map(|option| options.iter().any(|one| one == option));
            assert_eq!(has, [true, false], "{place} under {policy:?}");
        }
        assert_eq!(
            told.iter().map(|one| one.key.as_ref()).collect::<Vec<_>>(),
            keys
        );
        assert!(
            told.iter().all(|one| one.asked.contains("/etc/")),
            "{told:?}"
        );
    }
}

#[test]
fn a_file_of_the_kubelets_that_is_written_is_a_copy_and_reported() {
    let log = "/var/lib/kubelet/pods/u/containers/main/1a2b";
    let hosts = "/var/lib/kubelet/pods/u/etc-hosts";
    let mut spec = Map::from_iter([(
        "mounts".to_owned(),
        json!([
            { "destination": "/dev/termination-log", "type": "bind", "source": log, "options": ["rbind", "rw"] },
            { "destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["rbind", "rw"] },
            { "destination": "/read", "type": "bind", "source": hosts.replace("/u/", "/v/"), "options": ["rbind", "ro"] },
        ]),
    )]);
    let (given, told) = written(&mut spec, &Policy::strict());
    let copies = BTreeMap::from([(log.into(), Writes::Told), (hosts.into(), Writes::Copy)]);
    assert_eq!(given, copies);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter().all(|one| one.given.contains("1 MiB")),
        "{told:?}"
    );
    let spec = crate::HardenedSpec::new(spec, None, Vec::new(), Vec::new(), Vec::new(), copies);
    let writes: Vec<_> = spec.binds().map(|bind| bind.writes).collect();
    assert_eq!(writes, [Writes::Told, Writes::Copy, Writes::Host]);
}
