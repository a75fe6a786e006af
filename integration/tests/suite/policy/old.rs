//! A runsc that is too old to hold the policy: refused, unless the policy accepts that.

use containerd_client::tonic::Code;
use integration::bed::{Bed, tool};
use integration::cases;
use integration::container::Builder;
use integration::runtime::Needs;

use crate::figures::metrics;
use crate::policy::profile::form;

cases! {
    Needs::Tool("old-runsc") => [
        an_old_runsc_is_refused_by_the_controls_it_lacks,
        an_old_runsc_that_is_accepted_runs_containers,
        what_an_old_runsc_lacks_is_told,
    ],
}

fn under<'a>(bed: &'a Bed, script: &str, more: &str) -> Builder<'a> {
    let runsc = tool("old-runsc").expect("found before");
    let policy = format!(
        "{more}\n[runsc]\npath = {:?}\n",
        runsc.display().to_string()
    );
    bed.shell(script).policy("", &policy)
}

async fn an_old_runsc_is_refused_by_the_controls_it_lacks(bed: &Bed) {
    let error = under(bed, "true", "")
        .create()
        .await
        .map(drop)
        .expect_err("refused");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    for text in ["too old", "seccomp for exec", "allow_old_runsc"] {
        assert!(error.message().contains(text), "{text}: {error}");
    }
}

async fn an_old_runsc_that_is_accepted_runs_containers(bed: &Bed) {
    let container = under(
        bed,
        "dmesg | grep -c gVisor; exit 3",
        "allow_old_runsc = true",
    );
    let done = container.run().await.expect("run").finish().await;
    assert_eq!((done.status, done.stdout.trim()), (3, "1"));
}

async fn what_an_old_runsc_lacks_is_told(bed: &Bed) {
    let container = under(bed, "sleep 1000", "allow_old_runsc = true");
    let container = container.run().await.expect("run");
    let text = metrics::scrape(&metrics::socket(&container.id));
    let info = text
        .lines()
        .find(|line| line.starts_with("bulkhead_sandbox_info{"))
        .expect("what the sandbox runs with");
    assert!(
        info.contains("lacks=\"") && info.contains("seccomp for exec"),
        "{info}"
    );
    // It tells its table of system calls, so its profile is the complement of that.
    assert_eq!(form(&container.id), "complement");
    container.remove().await;
}
