//! The example of `docs/agents.md`, run as it stands there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use integration::bed::{Bed, PATH_FOLDER, SOCKET};
use integration::cgroups;
use integration::client::NAMESPACE;
use integration::patience::patience;
use integration::runtime::Needs;

use integration::cases;

cases! {
    Needs::Bulkhead => [
        the_example_gives_its_result_and_a_hostile_step_gets_nothing,
        the_hostile_step_gets_something_on_runc,
        a_step_that_prints_without_end_is_stopped,
        a_step_that_takes_all_memory_ends_the_sandbox,
    ],
}

const BULKHEAD: &str = "io.containerd.bulkhead.v1";
const RUNC: &str = "io.containerd.runc.v2";
/// In the driver's environment, as the key of a model's provider would be.
const KEY: &str = "planted-by-the-test";

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/agent")
}

fn step(name: &str) -> PathBuf {
    example().join("steps").join(name)
}

/// Runs the driver; returns whether it succeeded and what it said.
fn drive(bed: &Bed, runtime: &str, steps: &[PathBuf]) -> (bool, String) {
    bed.import(NAMESPACE, "python");
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("python3")
        .args(["-B".as_ref(), example().join("agent.py").as_os_str()])
        .args(["--image", "bulkhead.test/python:latest"])
        .args(["--runtime", runtime, "--seconds"])
        .arg(patience(Duration::from_secs(8)).as_secs().to_string())
        .args(steps)
        .env("PATH", format!("{PATH_FOLDER}:{path}"))
        .env("CONTAINERD_ADDRESS", SOCKET)
        .env("CONTAINERD_NAMESPACE", NAMESPACE)
        .env("API_KEY", KEY)
        .stdin(Stdio::null())
        .output()
        .expect("run the driver");
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    (output.status.success(), format!("{said}{errors}"))
}

/// What the driver said of one step: its line, and what the step printed.
fn part<'a>(said: &'a str, title: &str) -> (&'a str, Vec<&'a str>) {
    let mut lines = said.lines().skip_while(|line| {
        !line
            .strip_prefix("== ")
            .is_some_and(|line| line.contains(title))
    });
    let head = lines.next().unwrap_or_else(|| panic!("{title}: {said}"));
    (
        head,
        lines.map_while(|line| line.strip_prefix("   ")).collect(),
    )
}

/// How many attempts the hostile step makes.
const ATTEMPTS: usize = 10;

async fn the_example_gives_its_result_and_a_hostile_step_gets_nothing(bed: &Bed) {
    let names = ["1-work.py", "2-hostile.py", "3-endless.py", "4-after.py"];
    let (good, said) = drive(bed, BULKHEAD, &names.map(step));
    assert!(good, "{said}");

    let (head, printed) = part(&said, "1-work.py");
    assert!(head.contains("exit code 0"), "{said}");
    assert_eq!(printed, ["counted 12 words"]);

    let (head, printed) = part(&said, "2-hostile.py");
    assert!(head.contains("exit code 0"), "{said}");
    assert_eq!(printed.len(), ATTEMPTS, "{said}");
    for attempt in printed {
        assert!(attempt.contains(": nothing"), "{attempt}");
    }
    assert!(!said.contains(KEY), "{said}");

    let (head, printed) = part(&said, "3-endless.py");
    assert!(
        head.contains("exit code 137") && head.contains("stopped: it ran longer than"),
        "{said}"
    );
    assert_eq!(printed, ["here I stay"]);

    // Its child in the background as well.
    let (_, printed) = part(&said, "4-after.py");
    assert_eq!(
        printed,
        [
            "the result is still {'the': 3, 'agent': 2}",
            "processes: 2 (the first one, and this)"
        ]
    );
    let (_, printed) = part(&said, "result.json");
    assert_eq!(printed, [r#"{"the": 3, "agent": 2}"#]);
}

/// The same request elsewhere: what the step tries can be had.
async fn the_hostile_step_gets_something_on_runc(bed: &Bed) {
    let groups = cgroups::hierarchies().into_iter();
    let groups: Vec<_> = groups.map(|it| it.path.join(NAMESPACE)).collect();
    let of_before: Vec<_> = groups.iter().filter(|it| it.is_dir()).collect();
    let (_, said) = drive(bed, RUNC, &[step("1-work.py"), step("2-hostile.py")]);
    let (_, printed) = part(&said, "2-hostile.py");
    assert_eq!(printed.len(), ATTEMPTS, "{said}");
    for what in [
        "the host's kernel",
        "another user's identity",
        "another root",
    ] {
        let got = format!("{what}: GOT");
        assert!(printed.iter().any(|line| line.starts_with(&got)), "{said}");
    }
    // runc leaves the namespace's own in a hierarchy that Bulkhead has not used.
    for group in groups.iter().filter(|it| it.is_dir()) {
        if !of_before.contains(&group) {
            fs::remove_dir(group).expect("an empty cgroup");
        }
    }
}

fn written(bed: &Bed, name: &str, text: &str) -> PathBuf {
    let path = bed.folder.join(name);
    fs::write(&path, text).expect("write the step");
    path
}

async fn a_step_that_prints_without_end_is_stopped(bed: &Bed) {
    let flood = written(bed, "flood.py", "while True:\n    print('x' * 1000)\n");
    let (good, said) = drive(bed, BULKHEAD, &[flood, step("1-work.py")]);
    let (head, printed) = part(&said, "flood.py");
    assert!(
        head.contains("exit code 137") && head.contains("it printed more than 65536 bytes"),
        "{head}"
    );
    let kept: usize = printed.iter().map(|line| line.len() + 1).sum();
    assert!((60_000..=65_537).contains(&kept), "{kept} bytes were kept");
    // The sandbox goes on.
    let (head, _) = part(&said, "1-work.py");
    assert!(good && head.contains("exit code 0"), "{head}");
}

async fn a_step_that_takes_all_memory_ends_the_sandbox(bed: &Bed) {
    let text = "kept = []\nwhile True:\n    kept.append(b'x' * (1 << 24))\n";
    let greedy = written(bed, "greedy.py", text);
    let (good, said) = drive(bed, BULKHEAD, &[greedy, step("1-work.py")]);
    assert!(!good, "{said}");
    assert!(
        said.contains("the sandbox ended during step-1: out of memory"),
        "{said}"
    );
}
