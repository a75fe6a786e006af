//! What Create refuses, with which code, and that nothing stays of it.

use std::fs;
use std::path::Path;

use containerd_client::tonic::Code;
use containerd_client::types::Mount;
use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, Empty, ExecProcessRequest,
};
use containerd_shim_protos::ttrpc;
use integration::bed::{Bed, IMAGE};
use integration::runtime::Needs;
use integration::shim::{self, Shim};
use serde_json::json;

use integration::cases;

cases! {
    Needs::Any => [
        a_created_task_is_not_running_yet,
        a_container_that_was_never_started_can_be_deleted,
        a_duplicate_id_already_exists,
        a_rootfs_that_cannot_be_mounted_leaves_nothing,
        the_second_of_two_rootfs_mounts_failing_undoes_the_first,
        a_spec_without_args_is_refused,
        a_spec_with_wrong_types_is_refused,
        an_unknown_program_fails_and_is_named,
        a_program_that_is_not_executable_fails,
        a_working_folder_that_is_missing_is_no_hang,
        options_of_an_unknown_type_are_refused,
    ],
    Needs::NotRunc("it looks for the program in what is mounted as well") => [
        a_program_in_a_mount_is_looked_for_in_the_sandbox,
    ],
    Needs::Bulkhead => [
        a_program_that_the_image_lacks_fails_at_create_and_leaves_nothing,
        a_spec_without_root_is_invalid,
        a_spec_without_process_is_invalid,
        a_truncated_config_json_is_invalid,
        a_config_json_of_another_type_is_invalid,
        a_missing_config_json_is_invalid,
        a_config_json_that_is_no_file_is_invalid,
        a_duplicate_id_on_the_shim_already_exists,
        an_id_that_is_malformed_or_too_long_is_invalid_on_the_shim,
        an_id_that_is_a_prefix_of_another_touches_only_its_own,
    ],
}

async fn a_created_task_is_not_running_yet(bed: &Bed) {
    let container = bed.container(&["true"]).create().await.expect("create");
    let status = container.status().await.expect("state");
    assert_eq!(status, containerd_client::types::v1::Status::Created);
    assert!(container.pid > 0);
    container.start().await.expect("start");
    assert_eq!(container.finish().await.status, 0);
}

async fn a_container_that_was_never_started_can_be_deleted(bed: &Bed) {
    let container = bed.container(&["true"]).create().await.expect("create");
    container.delete().await.expect("delete");
}

async fn a_duplicate_id_already_exists(bed: &Bed) {
    let container = bed.container(&["sleep", "100"]).run().await.expect("run");
    // containerd itself answers for the container; its task is asked for by name.
    let error = bed
        .named(&container.id, &["true"])
        .create()
        .await
        .expect_err("refused");
    assert_eq!(error.code(), Code::AlreadyExists, "{error:?}");
    let body = containerd_client::services::v1::CreateTaskRequest {
        container_id: container.id.clone(),
        ..Default::default()
    };
    let error = bed.client().create(body).await.expect_err("refused");
    assert_eq!(error.code(), Code::AlreadyExists, "{error:?}");
    let done = container.exec("still", &["echo", "alive"]).finish().await;
    assert_eq!(done.stdout, "alive\n");
    container.remove().await;
}

fn bind(source: &str) -> Mount {
    let options = vec!["rbind".to_owned(), "ro".to_owned()];
    Mount {
        r#type: "bind".into(),
        source: source.into(),
        target: String::new(),
        options,
    }
}

async fn a_rootfs_that_cannot_be_mounted_leaves_nothing(bed: &Bed) {
    let mut builder = bed.container(&["true"]);
    builder.rootfs = vec![bind("/no/such/folder")];
    builder.create().await.expect_err("refused");
}

async fn the_second_of_two_rootfs_mounts_failing_undoes_the_first(bed: &Bed) {
    let mut builder = bed.container(&["true"]);
    builder.rootfs = vec![bind(IMAGE), bind("/no/such/folder")];
    builder.create().await.expect_err("refused");
}

async fn a_spec_without_args_is_refused(bed: &Bed) {
    let error = bed.container(&[]).run().await.expect_err("refused");
    assert!(!error.message().is_empty());
}

async fn a_spec_with_wrong_types_is_refused(bed: &Bed) {
    let change =
        |spec: &mut serde_json::Value| spec["process"]["args"] = json!({ "not": "a list" });
    let created = bed.container(&["true"]).with(change).run().await;
    let error = created.map(drop).expect_err("refused");
    if bed.runtime.is_bulkhead() {
        // containerd 2.4 reads the spec as well, and is the first to refuse it.
        let by_containerd = error.message().contains("process.args");
        let by_shim = error.code() == Code::InvalidArgument;
        assert!(by_containerd || by_shim, "{error}");
    }
}

async fn an_unknown_program_fails_and_is_named(bed: &Bed) {
    let error = bed
        .container(&["/no/such/program"])
        .run()
        .await
        .expect_err("refused");
    assert!(error.message().contains("/no/such/program"), "{error:?}");
}

async fn a_program_that_the_image_lacks_fails_at_create_and_leaves_nothing(bed: &Bed) {
    for (program, says) in [
        ("no-such", "executable file not found in $PATH"),
        ("/no/such/program", "no such file or directory"),
        ("./no-such", "no such file or directory"),
    ] {
        let error = bed.container(&[program]).create().await;
        let error = error.map(drop).expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        for said in ["process.args", program, says] {
            assert!(error.message().contains(said), "{said}: {error:?}");
        }
    }
    let path = |path: &str| {
        let path = format!("PATH={path}");
        move |spec: &mut serde_json::Value| spec["process"]["env"] = json!([path])
    };
    let error = bed.container(&["true"]).with(path("/usr/sbin:/opt"));
    let error = error.create().await.map(drop).expect_err("no folder");
    assert!(error.message().contains("/usr/sbin:/opt"), "{error:?}");
    let found = bed.container(&["true"]).with(path("/opt:/bin")).run().await;
    assert_eq!(found.expect("run").finish().await.status, 0);
}

async fn a_program_in_a_mount_is_looked_for_in_the_sandbox(bed: &Bed) {
    let folder = bed.folder.join(bed.id("programs"));
    fs::create_dir(&folder).expect("make a folder");
    fs::copy(Path::new(IMAGE).join("bin/busybox"), folder.join("busybox")).expect("copy");
    let bound = |args: &[&str]| {
        bed.container(args).with(|spec| {
            spec["process"]["env"] = json!(["PATH=/srv"]);
            let mount = json!({ "destination": "/srv", "type": "bind", "source": folder, "options": ["rbind", "ro"] });
            spec["mounts"].as_array_mut().expect("mounts").push(mount);
        })
    };
    let found = bound(&["busybox", "true"]).run().await.expect("run");
    assert_eq!(found.finish().await.status, 0);
    let missing = bound(&["missing"]).create().await.expect("create");
    let error = missing.start().await.expect_err("it is not there");
    assert!(error.message().contains("missing"), "{error:?}");
    missing.remove().await;
}

async fn a_program_that_is_not_executable_fails(bed: &Bed) {
    bed.container(&["/etc/passwd"])
        .run()
        .await
        .expect_err("refused");
}

async fn a_working_folder_that_is_missing_is_no_hang(bed: &Bed) {
    // runc makes the folder where it can and fails on a read-only root; gVisor fails: either answers.
    if let Ok(container) = bed
        .container(&["true"])
        .with(|spec| spec["process"]["cwd"] = "/nowhere".into())
        .run()
        .await
    {
        container.finish().await;
    }
}

async fn options_of_an_unknown_type_are_refused(bed: &Bed) {
    let builder = bed
        .container(&["true"])
        .options("no.such.Options", vec![8, 1]);
    let error = builder.create().await.map(drop).expect_err("refused");
    if bed.runtime.is_bulkhead() {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("no.such.Options"), "{error}");
    }
}

async fn refused(bed: &Bed, change: impl FnOnce(&mut serde_json::Value), names: &str) {
    let error = bed
        .container(&["true"])
        .with(change)
        .create()
        .await
        .expect_err("refused");
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    assert!(error.message().contains(names), "{error:?}");
}

async fn a_spec_without_root_is_invalid(bed: &Bed) {
    refused(
        bed,
        |spec| drop(spec.as_object_mut().expect("object").remove("root")),
        "root",
    )
    .await;
}

async fn a_spec_without_process_is_invalid(bed: &Bed) {
    refused(
        bed,
        |spec| drop(spec.as_object_mut().expect("object").remove("process")),
        "process",
    )
    .await;
}

/// Asks the shim of a running container to create another one from a bundle with this `config.json`.
async fn create_from(bed: &Bed, config: Option<&str>) {
    create_in(bed, |folder| {
        if let Some(config) = config {
            fs::write(folder.join("config.json"), config).expect("write config.json");
        }
    })
    .await;
}

/// The same, with whatever `furnish` puts into the bundle. It is refused by the name of the file.
async fn create_in(bed: &Bed, furnish: impl FnOnce(&Path)) {
    let container = bed.container(&["sleep", "100"]).run().await.expect("run");
    let shim = Shim::of(bed, &container.id).await;
    let id = bed.id("direct");
    let folder = bed.folder.join(&id);
    fs::create_dir_all(folder.join("rootfs")).expect("make a bundle");
    furnish(&folder);
    let body = CreateTaskRequest {
        id,
        bundle: folder.display().to_string(),
        ..Default::default()
    };
    let created = shim.told::<CreateTaskResponse>(3, "Create", &body).await;
    let (code, message) = created.expect_err("refused");
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT, "{message}");
    assert!(message.contains("config.json"), "{message}");
    drop(shim);
    let done = container.exec("still", &["true"]).finish().await;
    assert_eq!(done.status, 0, "the other container goes on");
    container.remove().await;
}

async fn a_truncated_config_json_is_invalid(bed: &Bed) {
    create_from(bed, Some("{\"ociVersion\": \"1.2.0\", \"process\"")).await;
}

async fn a_config_json_of_another_type_is_invalid(bed: &Bed) {
    for text in [
        "[]",
        "7",
        "\"text\"",
        "null",
        "{\"process\": 7, \"root\": {\"path\": \"rootfs\"}}",
        "{\"process\": {\"args\": {\"not\": \"a list\"}, \"cwd\": \"/\"}, \"root\": {\"path\": \"rootfs\"}}",
    ] {
        create_from(bed, Some(text)).await;
    }
}

async fn a_missing_config_json_is_invalid(bed: &Bed) {
    create_from(bed, None).await;
}

async fn a_config_json_that_is_no_file_is_invalid(bed: &Bed) {
    let fifo = |folder: &Path| {
        let path = folder.join("config.json");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    };
    create_in(bed, fifo).await;
    let folder = |folder: &Path| fs::create_dir(folder.join("config.json")).expect("mkdir");
    create_in(bed, folder).await;
}

async fn a_duplicate_id_on_the_shim_already_exists(bed: &Bed) {
    let container = bed.container(&["sleep", "100"]).run().await.expect("run");
    let shim = Shim::of(bed, &container.id).await;
    let bundle = bed.bundle(&container.id).display().to_string();
    let body = CreateTaskRequest {
        id: container.id.clone(),
        bundle,
        ..Default::default()
    };
    for version in [2, 3] {
        let code = shim
            .call::<CreateTaskResponse>(version, "Create", &body)
            .await
            .expect_err("refused");
        assert_eq!(code, ttrpc::Code::ALREADY_EXISTS);
    }
    drop(shim);
    assert_eq!(container.exec("still", &["true"]).finish().await.status, 0);
    container.remove().await;
}

async fn an_id_that_is_malformed_or_too_long_is_invalid_on_the_shim(bed: &Bed) {
    let container = bed.container(&["sleep", "100"]).run().await.expect("run");
    let shim = Shim::of(bed, &container.id).await;
    let bundle = bed.bundle(&container.id).display().to_string();
    for id in ["", "../x", "a/b", "a\nb", &"x".repeat(77)] {
        let body = CreateTaskRequest {
            id: id.into(),
            bundle: bundle.clone(),
            ..Default::default()
        };
        let created = shim.told::<CreateTaskResponse>(3, "Create", &body).await;
        let (code, message) = created.expect_err(id);
        assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT, "{id:?}");
        assert!(message.contains("container id"), "{id:?}: {message}");
        let body = ExecProcessRequest {
            id: container.id.clone(),
            exec_id: id.into(),
            ..Default::default()
        };
        let added = shim.told::<Empty>(3, "Exec", &body).await;
        let (code, message) = added.expect_err(id);
        assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT, "{id:?}");
        assert!(message.contains("exec id"), "{id:?}: {message}");
    }
    drop(shim);
    let bundle = bed.bundle(&container.id);
    let id = "x".repeat(77);
    for action in [&["start"][..], &["-bundle", ".", "delete"]] {
        let output = shim::run(bed, &bundle, &[&shim::flags(&id)[..], action].concat(), b"");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{action:?}: {output:?}");
        assert!(said.contains("longer than 76"), "{action:?}: {said}");
    }
    container.remove().await;
}

async fn an_id_that_is_a_prefix_of_another_touches_only_its_own(bed: &Bed) {
    let long = bed
        .named("prefixlong", &["sleep", "100"])
        .run()
        .await
        .expect("run");
    let short = bed
        .named("prefix", &["sleep", "100"])
        .run()
        .await
        .expect("run");
    short.kill(9).await.expect("kill");
    assert_eq!(short.finish().await.status, 137);
    assert_eq!(long.exec("still", &["true"]).finish().await.status, 0);
    long.remove().await;
}
