use super::*;

#[test]
fn uid_0_is_refused_where_the_policy_says_so() {
    let policy = Policy::parse("run_as_non_root = true", "x").expect("a policy");
    let run = |user: Value| {
        let mut process = json!({ "args": ["a"], "cwd": "/", "user": user });
        let process = process.as_object_mut().expect("object");
        harden(process, "process", &policy, &mut Report::default())
    };
    for root in [json!({ "uid": 0, "gid": 5 }), json!({}), Value::Null] {
        let refusal = run(root).expect_err("refused");
        assert!(refusal.to_string().contains("run_as_non_root"), "{refusal}");
    }
    assert_eq!(run(json!({ "uid": 7, "gid": 0 })), Ok(()));
}

fn given(process: Value) -> (Map<String, Value>, Report) {
    let (mut process, mut report) = (process, Report::default());
    let map = process.as_object_mut().expect("object");
    harden(map, "process", &Policy::strict(), &mut report).expect("hardened");
    (map.clone(), report)
}

#[test]
fn a_key_in_another_case_is_not_passed_on() {
    let (process, report) = given(json!({
        "args": ["a"], "cwd": "/", "Args": ["b"], "uſer": { "uid": 0 },
        "user": { "uid": 7, "gid": 8, "Uid": 0, "additionalGids": [9], "additionalGidſ": [0], "umask": 18 },
        "consoleSize": { "height": 1, "width": 2, "Height": 3 },
    }));
    assert_eq!(
        process["user"],
        json!({ "uid": 7, "gid": 8, "additionalGids": [9], "umask": 18 })
    );
    assert_eq!(process["consoleSize"], json!({ "height": 1, "width": 2 }));
    assert!(process.get("Args").is_none() && process.get("uſer").is_none());
    let reported = report.changes.iter();
    assert!(reported.into_iter().any(|c| c.asked == "process.user.Uid"));
}

#[test]
fn no_sandbox_is_killed_after_what_the_node_needs() {
    for (asked, least) in [
        (-1000, -998),
        (i64::MIN, -998),
        (-998, -998),
        (-997, -997),
        (1000, 1000),
    ] {
        let (process, report) = given(json!({ "args": ["a"], "cwd": "/", "oomScoreAdj": asked }));
        assert_eq!(process["oomScoreAdj"], json!(least));
        let is_reported = report.changes.iter().any(|c| c.control == "oom_score");
        assert_eq!(is_reported, asked != least, "{asked}");
    }
    let (process, _) = given(json!({ "args": ["a"], "cwd": "/" }));
    assert!(process.get("oomScoreAdj").is_none());
}

#[test]
fn capabilities_have_the_kernels_numbers() {
    for (name, number) in [
        ("CAP_CHOWN", 0),
        ("CAP_SYS_ADMIN", 21),
        ("CAP_CHECKPOINT_RESTORE", 40),
    ] {
        assert_eq!(capability(name), Some(number));
    }
    assert_eq!(capability("SYS_ADMIN"), None);
}

#[test]
fn what_is_asked_is_cut_to_the_ceiling_in_all_sets() {
    let policy = Policy::parse("[capabilities]\nallow = [\"CAP_CHOWN\"]", "x").expect("policy");
    let mut process = json!({
        "args": ["sh"], "cwd": "/",
        "capabilities": { "bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN"], "ambient": ["CAP_SYS_ADMIN"] },
    });
    let mut report = Report::default();
    harden(
        process.as_object_mut().expect("object"),
        "process",
        &policy,
        &mut report,
    )
    .expect("hardened");
    let given = json!({
        "bounding": ["CAP_CHOWN"], "effective": [], "inheritable": [], "permitted": [], "ambient": [],
    });
    assert_eq!(process["capabilities"], given);
    assert_eq!(process["noNewPrivileges"], json!(true));
    assert!(
        report
            .changes
            .iter()
            .any(|c| c.control == "capabilities" && c.asked == "CAP_SYS_ADMIN")
    );
}

#[test]
fn a_process_that_cannot_run_is_refused_by_field() {
    for (process, field) in [
        (json!({ "cwd": "/" }), "process.args"),
        (json!({ "args": [], "cwd": "/" }), "process.args"),
        (json!({ "args": ["a"] }), "process.cwd"),
        (json!({ "args": ["a"], "cwd": "relative" }), "process.cwd"),
        (json!({ "args": ["a\0b"], "cwd": "/" }), "process.args"),
        (
            json!({ "args": ["x".repeat(TEXT_MAX)], "cwd": "/" }),
            "process.args",
        ),
    ] {
        let mut process = process;
        let refusal = harden(
            process.as_object_mut().expect("object"),
            "process",
            &Policy::strict(),
            &mut Report::default(),
        )
        .expect_err(field);
        assert!(refusal.to_string().starts_with(field), "{refusal}");
    }
}

#[test]
fn a_line_about_unknown_capabilities_is_bounded() {
    let names: Vec<String> = (10..30)
        .map(|n| format!("CAP_{n}_{}", "X".repeat(5000)))
        .collect();
    let (_, report) =
        given(json!({ "args": ["a"], "cwd": "/", "capabilities": { "bounding": names } }));
    let changes = report.changes.iter();
    let told: Vec<_> = changes
        .filter(|change| change.control == "capabilities")
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let asked = &told[0].asked;
    assert!(
        asked.starts_with("CAP_10_XX") && asked.ends_with("… and 12 more"),
        "{asked}"
    );
    assert!(asked.chars().count() < 600, "{asked}");
}
