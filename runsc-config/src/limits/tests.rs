use super::*;

const GIB: u64 = 1024 * MIB;

fn cpu(quota: u64) -> CpuTime {
    CpuTime {
        quota,
        period: PERIOD,
    }
}

#[test]
fn a_container_that_declares_nothing_has_the_policys_limits() {
    let limits = SandboxLimits::of_container(Declared::default(), &Policy::strict());
    assert_eq!((limits.memory, limits.cpu), (512 * MIB, cpu(PERIOD)));
    let declared = Declared {
        memory: Some(GIB),
        cpu: Some(cpu(50_000)),
        shares: None,
    };
    let limits = SandboxLimits::of_container(declared, &Policy::strict());
    assert_eq!((limits.memory, limits.cpu), (GIB, cpu(50_000)));
}

#[test]
fn tasks_fit_below_what_the_cgroups_above_allow_or_are_refused() {
    let fit = |above| fit_tasks(256, above, &mut Report::default());
    assert_eq!(fit(None), Ok(256));
    assert_eq!(fit(Some(4096)), Ok(256));
    assert_eq!(fit(Some(1280)), Ok(256));
    assert_eq!(fit(Some(600)), Ok(86));
    assert_eq!(fit(Some(320)), Ok(16));
    let refusal = fit(Some(319)).expect_err("too few").to_string();
    assert!(
        refusal.contains("319") && refusal.contains("320"),
        "{refusal}"
    );
    let mut report = Report::default();
    fit_tasks(256, Some(600), &mut report).expect("fits");
    assert_eq!(report.changes.len(), 1, "{report:?}");
}

#[test]
fn a_pods_own_cgroup_decides_where_it_has_limits() {
    let pod = Declared {
        memory: Some(GIB),
        cpu: Some(cpu(50_000)),
        shares: None,
    };
    let containers = Declared {
        memory: Some(2 * GIB),
        cpu: Some(cpu(300_000)),
        shares: Some(512),
    };
    let limits = SandboxLimits::of_pod(pod, containers, &Policy::strict());
    assert_eq!(
        limits,
        SandboxLimits {
            memory: GIB,
            cpu: cpu(50_000),
            shares: Some(512)
        }
    );
}

#[test]
fn without_them_the_sum_counts_but_never_less_than_the_default() {
    let of = |memory, quota| {
        let containers = Declared {
            memory,
            cpu: Some(cpu(quota)),
            shares: None,
        };
        SandboxLimits::of_pod(Declared::default(), containers, &Policy::strict())
    };
    assert_eq!(
        (of(Some(64 * MIB), 10_000).memory, of(None, 10_000).memory),
        (512 * MIB, 512 * MIB)
    );
    assert_eq!(of(Some(GIB), 10_000).memory, GIB);
    assert_eq!(
        (of(None, 10_000).cpu, of(None, 250_000).cpu),
        (cpu(100_000), cpu(250_000))
    );
}

#[test]
fn declarations_add_up() {
    let one = Declared {
        memory: Some(MIB),
        cpu: Some(CpuTime {
            quota: 5_000,
            period: 10_000,
        }),
        shares: Some(2),
    };
    let two = Declared {
        memory: None,
        cpu: Some(cpu(25_000)),
        shares: Some(3),
    };
    let sum = Declared::sum([one, two].into_iter());
    assert_eq!(
        sum,
        Declared {
            memory: Some(MIB),
            cpu: Some(cpu(75_000)),
            shares: Some(5)
        }
    );
}

#[test]
fn annotations_of_a_pod_are_read_and_zeroes_are_no_limit() {
    let spec = json!({ "annotations": { POD_MEMORY: "1048576", POD_QUOTA: "0", POD_SHARES: "x" } });
    let declared = Declared::of_pod_annotations(spec.as_object().expect("object"));
    assert_eq!(
        declared,
        Declared {
            memory: Some(MIB),
            cpu: None,
            shares: None
        }
    );
}

fn updated(resources: Value) -> Result<Declared, Refusal> {
    let before = Declared {
        memory: Some(GIB),
        cpu: Some(cpu(20_000)),
        shares: None,
    };
    before.updated(&resources, 256, &mut Report::default())
}

#[test]
fn an_update_changes_what_it_names_and_no_more() {
    let after = updated(json!({ "memory": { "limit": 64 * MIB } })).expect("ok");
    assert_eq!(
        after,
        Declared {
            memory: Some(64 * MIB),
            cpu: Some(cpu(20_000)),
            shares: None
        }
    );
    let after = updated(json!({ "memory": { "limit": -1 }, "cpu": { "shares": 7 } })).expect("ok");
    assert_eq!(
        after,
        Declared {
            memory: None,
            cpu: Some(cpu(20_000)),
            shares: Some(7)
        }
    );
    assert!(updated(json!({ "pids": { "limit": 256 } })).is_ok());
    assert!(updated(json!({ "hugepageLimits": "later" })).is_ok());
}

#[test]
fn an_update_that_cannot_be_is_refused_by_field() {
    for (resources, field) in [
        (json!(null), "resources"),
        (json!([]), "resources"),
        (json!({ "memory": 7 }), "resources"),
        (json!({ "cpu": { "period": 10 } }), "resources.cpu.period"),
        (json!({ "cpu": { "quota": 10 } }), "resources.cpu.quota"),
        (json!({ "pids": { "limit": 20 } }), "resources.pids.limit"),
    ] {
        let refusal = updated(resources).expect_err(field).to_string();
        assert!(refusal.starts_with(field), "{refusal}");
    }
}

#[test]
fn there_is_no_swap_where_it_can_be_limited() {
    let limits = SandboxLimits::of_container(Declared::default(), &Policy::strict());
    let memory = |can| to_spec(&json!(null), &limits, 256, can)["memory"].clone();
    let bytes = 512 * MIB;
    assert_eq!(memory(true), json!({ "limit": bytes, "swap": bytes }));
    assert_eq!(memory(false), json!({ "limit": bytes }));
}

#[test]
fn less_than_a_sandbox_needs_is_refused() {
    let limits = SandboxLimits::of_container(
        Declared {
            memory: Some(MIB),
            ..Declared::default()
        },
        &Policy::strict(),
    );
    assert!(limits.check().is_err());
}

#[test]
fn what_was_announced_of_a_pod_is_the_least() {
    let declared = |memory, quota, shares| Declared {
        memory,
        cpu: Some(CpuTime {
            quota,
            period: 100_000,
        }),
        shares,
    };
    let sum = declared(Some(5), 300, Some(7));
    let more = sum.at_least(declared(Some(8), 200, None));
    assert_eq!(more, declared(Some(8), 300, Some(7)));
    assert_eq!(
        sum.at_least(declared(None, 400, Some(2))),
        declared(Some(5), 400, Some(2))
    );
    assert_eq!(Declared::default().at_least(sum), sum);
}

#[test]
fn a_pods_sandbox_says_what_it_has_and_why() {
    let cpu = |quota| CpuTime {
        quota,
        period: 100_000,
    };
    let limits = SandboxLimits {
        memory: 64 * MIB,
        cpu: cpu(50_000),
        shares: None,
    };
    let memory = |memory| Declared {
        memory: Some(memory),
        ..Declared::default()
    };
    let told = |pod, above| {
        let mut report = Report::default();
        limits.explain(Declared::default(), pod, above, &mut report);
        let changes = report.changes.iter().map(ToString::to_string);
        changes.collect::<Vec<_>>().join("; ")
    };
    let none = Declared::default();
    assert!(told(none, None).contains("memory: asked no limit, given 67108864 bytes"));
    let above = told(memory(9), Some(memory(64 * MIB)));
    assert!(
        above.contains("memory: asked the pod's cgroup has 67108864 bytes"),
        "{above}"
    );
    assert!(above.contains("cpu: asked no limit of the pod"), "{above}");
    let declared = told(memory(9), Some(none));
    assert!(
        declared.contains("memory: asked the pod's containers declare 9 bytes"),
        "{declared}"
    );
    let mut report = Report::default();
    limits.note_bound(memory(64 * MIB), &mut report);
    assert!(report.changes.is_empty());
    let more = Declared {
        cpu: Some(cpu(50_001)),
        ..memory(65 * MIB)
    };
    limits.note_bound(more, &mut report);
    assert_eq!(report.changes.len(), 2);
}
