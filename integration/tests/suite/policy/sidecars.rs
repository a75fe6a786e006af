//! The programs that a release of gVisor has beside runsc: sandboxes start by them, or without, or are refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use containerd_client::tonic::{Code, Status};
use integration::bed::Bed;
use integration::cases;
use integration::container::Container;
use integration::processes::{self, Role};
use integration::runtime::Needs;
use integration::sidecars::{PREWARMER, SENTRY, Sidecars};

cases! {
    Needs::Bulkhead => [
        a_sandbox_starts_by_its_sidecars_and_outlives_them,
        a_folder_that_lacks_a_program_is_done_without,
        sidecars_that_others_can_write_are_refused,
        sidecars_that_are_no_programs_of_this_release_are_refused,
    ],
}

const STRICT: &str = "--sidecar-usage-policy=STRICT";
const DEFAULT: &str = "--sidecar-usage-policy=DEFAULT";

async fn run(bed: &Bed) -> Result<Container<'_>, Status> {
    bed.container(&["sleep", "1000"]).run().await
}

/// The program that its sandbox is, and the flags that it has.
fn sandbox(container: &Container<'_>) -> (String, String) {
    let [sandbox] = &processes::of(Role::Sandbox, &container.id)[..] else {
        panic!("one sandbox");
    };
    let program = fs::read_link(format!("/proc/{}/exe", sandbox.pid)).expect("a program");
    let name = program.file_name().expect("a name").display().to_string();
    (name, sandbox.command.clone())
}

fn starts_by(container: &Container<'_>, program: &str, usage: &str) {
    let (name, flags) = sandbox(container);
    // A file that is gone has a word after its name.
    assert!(name.starts_with(program), "{name}: {flags}");
    for flag in [usage, "--sidecar-release-enforcement-policy=ALWAYS"] {
        assert!(flags.contains(flag), "{flag}: {flags}");
    }
}

async fn a_sandbox_starts_by_its_sidecars_and_outlives_them(bed: &Bed) {
    let without = run(bed).await.expect("run");
    starts_by(&without, "runsc", DEFAULT);
    let sidecars = Sidecars::beside_runsc(bed);
    let by_them = run(bed).await.expect("run");
    starts_by(&by_them, SENTRY, STRICT);
    // They are exchanged, and then taken away, under sandboxes that run.
    drop(sidecars);
    let sidecars = Sidecars::beside_runsc(bed);
    let exec = async |container: &Container<'_>, name: &str| {
        assert_eq!(container.exec(name, &["true"]).finish().await.status, 0);
    };
    exec(&by_them, "exchanged").await;
    exec(&without, "exchanged").await;
    // What starts it is run as well: this one does not start anything.
    sidecars.script(PREWARMER, "#!/bin/sh\nexit 3\n");
    run(bed).await.map(|_| ()).expect_err("no sentry");
    drop(sidecars);
    exec(&by_them, "gone").await;
    let again = run(bed).await.expect("run");
    starts_by(&again, "runsc", DEFAULT);
    for container in [without, by_them, again] {
        container.kill(9).await.expect("kill");
        assert_eq!(container.finish().await.status, 137);
    }
}

async fn a_folder_that_lacks_a_program_is_done_without(bed: &Bed) {
    let sidecars = Sidecars::beside_runsc(bed);
    fs::remove_file(sidecars.at(PREWARMER)).expect("remove");
    let container = run(bed).await.expect("run");
    starts_by(&container, SENTRY, DEFAULT);
    container.remove().await;
    fs::remove_file(sidecars.at(SENTRY)).expect("remove");
    let container = run(bed).await.expect("run");
    starts_by(&container, "runsc", DEFAULT);
    container.remove().await;
}

/// Nothing is made, and the words name the file and what to do.
async fn refused(bed: &Bed, words: &[&str]) {
    let error = run(bed).await.map(|_| ()).expect_err(words[0]);
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    for word in words {
        assert!(error.message().contains(word), "{word}: {error:?}");
    }
}

const FIX: &str = "take the folder away";

async fn sidecars_that_others_can_write_are_refused(bed: &Bed) {
    let sidecars = Sidecars::beside_runsc(bed);
    run(bed).await.expect("run").remove().await;
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for path in [
        sidecars.folder.clone(),
        sidecars.at(SENTRY),
        sidecars.at(PREWARMER),
    ] {
        chmod(&path, 0o777);
        let shown = path.display().to_string();
        refused(bed, &[&shown, "has mode 0777", FIX]).await;
        chmod(&path, 0o755);
    }
    // A link into a folder of others, whoever has put the file there.
    let open = bed.folder.join(bed.id("open"));
    fs::create_dir(&open).expect("make a folder");
    fs::copy(sidecars.at(SENTRY), open.join(SENTRY)).expect("copy");
    fs::remove_file(sidecars.at(SENTRY)).expect("remove");
    symlink(open.join(SENTRY), sidecars.at(SENTRY)).expect("link");
    chmod(&open, 0o777);
    let shown = open.display().to_string();
    refused(bed, &[&shown, "only root may write", FIX]).await;
    chmod(&open, 0o755);
    run(bed).await.expect("root's again").remove().await;
    fs::remove_dir_all(open).expect("remove");
}

async fn sidecars_that_are_no_programs_of_this_release_are_refused(bed: &Bed) {
    let sidecars = Sidecars::beside_runsc(bed);
    let sentry = sidecars.at(SENTRY).display().to_string();
    let other = "#!/bin/sh\necho 'runsc version release-20250101.0'\n";
    sidecars.script(SENTRY, other);
    let own = "\"release-20260905.0\"";
    refused(bed, &[&sentry, "\"release-20250101.0\"", own, FIX]).await;
    // By what was kept of it, too.
    refused(bed, &[&sentry, "\"release-20250101.0\"", own, FIX]).await;
    sidecars.script(SENTRY, "no program");
    refused(bed, &["cannot run", &sentry, FIX]).await;
    for name in [SENTRY, PREWARMER] {
        let path = sidecars.at(name);
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode));
        mode(0o644).expect("chmod");
        let shown = path.display().to_string();
        refused(bed, &[&shown, "is not executable", FIX]).await;
        mode(0o755).expect("chmod");
    }
    drop(sidecars);
    let folder = bed
        .runsc
        .as_deref()
        .expect("runsc")
        .with_file_name("gvisor-bin");
    fs::write(&folder, "").expect("write");
    let shown = folder.display().to_string();
    refused(bed, &[&shown, "cannot be read", FIX]).await;
    fs::remove_file(&folder).expect("remove");
    run(bed).await.expect("without").remove().await;
}
