//! From `start` on the shim's command line to a running task.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use containerd_client::tonic::Code;
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::Message as _;
use integration::bed::{Bed, SOCKET};
use integration::client::NAMESPACE;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use integration::{shim, spec};

use integration::cases;

use crate::trouble::neighbours::Full;
use integration::harness::join_all;

cases! {
    Needs::Any => [
        fifty_containers_at_once_each_keep_their_code,
        the_longest_id_works,
        an_id_that_is_too_long_is_invalid,
        version_is_printed,
        info_is_printed_to_a_caller_without_a_bundle,
        an_unknown_flag_is_an_error,
        delete_from_nothing_but_the_id_succeeds_twice,
        start_twice_is_refused,
    ],
    Needs::NotRunc("a killed shim's socket stays") => [
        a_dead_shim_is_replaced_for_the_same_id,
    ],
    Needs::NotRunc("a shim that has never had a task does not end on Shutdown") => [
        start_with_the_new_protocol_answers_cleanly,
    ],
    Needs::NotRunc("a bare `start` without BootstrapParams is answered all the same, but in another form") => [
        start_with_the_old_protocol_answers_version_2,
    ],
    Needs::Bulkhead => [
        a_legacy_start_with_options_on_stdin_answers_version_2,
        start_without_config_json_says_so,
        start_without_containerd_listening_does_not_hang,
        start_whose_stdin_never_ends_says_so,
        a_shim_whose_queue_is_full_is_neither_waited_for_nor_replaced,
        a_shim_that_waits_for_the_folders_lock_to_leave_still_answers,
        the_socket_is_roots_alone,
        a_dead_socket_is_replaced,
        a_file_in_the_place_of_the_socket_is_named,
    ],
}

async fn fifty_containers_at_once_each_keep_their_code(bed: &Bed) {
    let one = async |code: u32| {
        let container = bed.shell(&format!("exit {code}")).run().await.expect("run");
        container.finish().await.status
    };
    let mut all = Vec::new();
    for code in 0..50 {
        all.push(one(code));
    }
    let codes = join_all(all).await;
    assert_eq!(codes, (0..50).collect::<Vec<_>>());
}

async fn the_longest_id_works(bed: &Bed) {
    let id = "x".repeat(76);
    let container = bed
        .named(&id, &["sh", "-c", "exit 4"])
        .run()
        .await
        .expect("run");
    assert_eq!(container.finish().await.status, 4);
}

async fn an_id_that_is_too_long_is_invalid(bed: &Bed) {
    let error = bed
        .named(&"x".repeat(77), &["true"])
        .create()
        .await
        .expect_err("refused");
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
}

async fn a_dead_shim_is_replaced_for_the_same_id(bed: &Bed) {
    let id = bed.id("same");
    for _ in 0..2 {
        let container = bed.named(&id, &["sleep", "100"]).run().await.expect("run");
        assert_eq!(processes::kill_role(Role::Shim, &id), 1, "one shim");
        container.remove().await;
    }
}

async fn version_is_printed(bed: &Bed) {
    let output = shim::run(bed, &bed.folder, &["-v"], b"");
    assert!(
        output.status.success() && !output.stdout.is_empty(),
        "{output:?}"
    );
}

async fn info_is_printed_to_a_caller_without_a_bundle(bed: &Bed) {
    let output = shim::run(bed, &bed.folder, &["-info"], b"");
    assert!(output.status.success(), "{output:?}");
    let info =
        containerd_shim_protos::types::introspection::RuntimeInfo::parse_from_bytes(&output.stdout);
    let info = info.expect("a RuntimeInfo");
    assert!(!info.name.is_empty());
}

async fn an_unknown_flag_is_an_error(bed: &Bed) {
    let output = shim::run(bed, &bed.folder, &["-no-such-flag"], b"");
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no-such-flag"),
        "{output:?}"
    );
}

/// A bundle as containerd makes it, but for the mounts.
pub(crate) fn bundle(bed: &Bed, id: &str) -> PathBuf {
    let folder = bed.folder.join(id);
    fs::create_dir_all(folder.join("rootfs")).expect("make a bundle");
    let mut config = spec::container(NAMESPACE, id, &["true"]);
    for (key, value) in bed.runtime.annotations() {
        config["annotations"][key] = value.into();
    }
    fs::write(folder.join("config.json"), config.to_string()).expect("write config.json");
    nix::unistd::mkfifo(&folder.join("log"), nix::sys::stat::Mode::S_IRWXU)
        .expect("make the log FIFO");
    folder
}

pub(crate) fn answer(output: &std::process::Output) -> serde_json::Value {
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stderr.is_empty(),
        "containerd reads stderr as part of the answer: {output:?}"
    );
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Ends the shim of a bundle that no containerd knows.
async fn end(bed: &Bed, id: &str, folder: &std::path::Path, address: &str) {
    let client = shim::Shim::at(address).await;
    let body = containerd_shim_protos::api::ShutdownRequest {
        id: id.into(),
        ..Default::default()
    };
    // The shim may go before it has answered.
    let _ = client
        .call::<containerd_shim_protos::api::Empty>(3, "Shutdown", &body)
        .await;
    eventually("the shim ends", Duration::from_secs(5), || {
        processes::of(Role::Shim, id).is_empty()
    })
    .await;
    let output = shim::run(
        bed,
        folder,
        &[&shim::flags(id)[..], &["-bundle", ".", "delete"]].concat(),
        b"",
    );
    assert!(output.status.success(), "{output:?}");
}

pub(crate) fn params(id: &str) -> Vec<u8> {
    let params = BootstrapParams {
        instance_id: id.into(),
        namespace: NAMESPACE.into(),
        containerd_grpc_address: SOCKET.into(),
        containerd_ttrpc_address: format!("{SOCKET}.ttrpc"),
        containerd_binary: "containerd".into(),
        socket_dir: Some("/run/containerd/s".into()),
        ..BootstrapParams::default()
    };
    params.write_to_bytes().expect("encode")
}

async fn start_with_the_new_protocol_answers_cleanly(bed: &Bed) {
    let id = bed.id("new");
    let folder = bundle(bed, &id);
    let output = shim::run(
        bed,
        &folder,
        &[&shim::flags(&id)[..], &["start"]].concat(),
        &params(&id),
    );
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    // JSON or a BootstrapResult: both hold the address as it is.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let from = text
        .find("unix://")
        .unwrap_or_else(|| panic!("no address: {output:?}"));
    let address: String = text[from..]
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || ":/._-".contains(*c))
        .collect();
    end(bed, &id, &folder, &address).await;
}

async fn start_with_the_old_protocol_answers_version_2(bed: &Bed) {
    let id = bed.id("old");
    let folder = bundle(bed, &id);
    let output = shim::run(
        bed,
        &folder,
        &[&shim::flags(&id)[..], &["start"]].concat(),
        b"",
    );
    let answer = answer(&output);
    assert_eq!(
        (&answer["version"], &answer["protocol"]),
        (&2.into(), &"ttrpc".into())
    );
    end(
        bed,
        &id,
        &folder,
        answer["address"].as_str().expect("address"),
    )
    .await;
}

async fn a_legacy_start_with_options_on_stdin_answers_version_2(bed: &Bed) {
    let id = bed.id("old");
    let folder = bundle(bed, &id);
    let options = containerd_shim_protos::protobuf::well_known_types::any::Any {
        type_url: "runtimeoptions.v1.Options".into(),
        ..Default::default()
    };
    let input = options.write_to_bytes().expect("encode");
    let output = shim::run(
        bed,
        &folder,
        &[&shim::flags(&id)[..], &["start"]].concat(),
        &input,
    );
    let answer = answer(&output);
    assert_eq!(answer["version"], 2);
    end(
        bed,
        &id,
        &folder,
        answer["address"].as_str().expect("address"),
    )
    .await;
}

async fn start_without_config_json_says_so(bed: &Bed) {
    let id = bed.id("none");
    let folder = bed.folder.join(&id);
    fs::create_dir_all(&folder).expect("make a folder");
    let output = shim::run(
        bed,
        &folder,
        &[&shim::flags(&id)[..], &["start"]].concat(),
        &params(&id),
    );
    assert!(!output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("config.json"),
        "{output:?}"
    );
}

async fn start_without_containerd_listening_does_not_hang(bed: &Bed) {
    let id = bed.id("alone");
    let folder = bundle(bed, &id);
    bed.kill_containerd();
    let output = shim::run(
        bed,
        &folder,
        &[&shim::flags(&id)[..], &["start"]].concat(),
        &params(&id),
    );
    bed.start_containerd().await;
    let answer = answer(&output);
    end(
        bed,
        &id,
        &folder,
        answer["address"].as_str().expect("address"),
    )
    .await;
}

async fn start_whose_stdin_never_ends_says_so(bed: &Bed) {
    let id = bed.id("open");
    let folder = bundle(bed, &id);
    let args = [&shim::flags(&id)[..], &["start"]].concat();
    let (output, stdin) = shim::run_open(bed, &folder, &args);
    drop(stdin);
    assert!(!output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("stdin does not end"), "{said}");
    assert_eq!(processes::of(Role::Shim, &id), []);
}

/// As of a shim that is stopped, or has more to do than it can.
async fn a_shim_whose_queue_is_full_is_neither_waited_for_nor_replaced(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let address = shim::Shim::address(bed, &container.id);
    let path = PathBuf::from(address.trim_start_matches("unix://"));
    let aside = path.with_extension("aside");
    fs::rename(&path, &aside).expect("move the socket away");
    let _full = Full::at(&path);
    let began = Instant::now();
    let id = &container.id;
    let args = [&shim::flags(id)[..], &["start"]].concat();
    let output = shim::run(bed, &bed.bundle(id), &args, &params(id));
    assert_eq!(answer(&output)["address"], address.as_str());
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(processes::of(Role::Shim, id).len(), 1);
    fs::rename(&aside, &path).expect("put the socket back");
    container.remove().await;
}

async fn a_shim_that_waits_for_the_folders_lock_to_leave_still_answers(bed: &Bed) {
    use nix::fcntl::{Flock, FlockArg};
    let container = bed.container(&["true"]).run().await.expect("run");
    let id = container.id.clone();
    let address = shim::Shim::address(bed, &id);
    let client = shim::Shim::at(&address).await;
    let socket = PathBuf::from(address.trim_start_matches("unix://"));
    let folder = fs::File::open(socket.parent().expect("a folder")).expect("open the folder");
    let lock = Flock::lock(folder, FlockArg::LockExclusive).expect("lock the folder");
    container.finish().await;
    // containerd has asked it to shut down.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let body = containerd_shim_protos::api::StateRequest {
        id: id.clone(),
        ..Default::default()
    };
    let state = client.call::<containerd_shim_protos::api::StateResponse>(3, "State", &body);
    let state = tokio::time::timeout(Duration::from_secs(3), state).await;
    let code = state.expect("an answer").expect_err("it is deleted");
    assert_eq!(code, containerd_shim_protos::ttrpc::Code::NOT_FOUND);
    drop(lock);
    eventually("the shim ends", Duration::from_secs(5), || {
        processes::of(Role::Shim, &id).is_empty()
    })
    .await;
}

async fn a_dead_socket_is_replaced(bed: &Bed) {
    let id = bed.id("dead");
    let folder = bundle(bed, &id);
    let action = [&shim::flags(&id)[..], &["start"]].concat();
    let start = || {
        let answer = answer(&shim::run(bed, &folder, &action, &params(&id)));
        let pid = fs::read_to_string(folder.join("shim.pid")).expect("shim.pid");
        let address = answer["address"].as_str().expect("address").to_owned();
        (address, pid.trim().parse::<i32>().expect("a pid"))
    };
    let (address, first) = start();
    processes::sigkill(first);
    eventually("the shim is gone", Duration::from_secs(5), || {
        processes::of(Role::Shim, &id).is_empty()
    })
    .await;
    let socket = PathBuf::from(address.trim_start_matches("unix://"));
    assert!(socket.exists(), "it left its socket");
    let (again, second) = start();
    assert_eq!(again, address);
    assert_ne!(first, second);
    let client = shim::Shim::at(&address).await;
    let body = containerd_shim_protos::api::StateRequest {
        id: id.clone(),
        ..Default::default()
    };
    let state = client.call::<containerd_shim_protos::api::StateResponse>(3, "State", &body);
    let code = state.await.expect_err("nothing was created");
    assert_eq!(code, containerd_shim_protos::ttrpc::Code::NOT_FOUND);
    drop(client);
    end(bed, &id, &folder, &address).await;
}

async fn a_file_in_the_place_of_the_socket_is_named(bed: &Bed) {
    let id = bed.id("way");
    let folder = bundle(bed, &id);
    let action = [&shim::flags(&id)[..], &["start"]].concat();
    let output = shim::run(bed, &folder, &action, &params(&id));
    let address = answer(&output)["address"]
        .as_str()
        .expect("address")
        .to_owned();
    end(bed, &id, &folder, &address).await;
    let place = address.trim_start_matches("unix://");
    fs::write(place, "somebody's").expect("write a file");
    let output = shim::run(bed, &folder, &action, &params(&id));
    assert!(!output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains(place) && told.contains("no socket"), "{told}");
    assert_eq!(fs::read_to_string(place).expect("read"), "somebody's");
    fs::remove_file(place).expect("remove the file");
}

async fn the_socket_is_roots_alone(bed: &Bed) {
    use std::os::unix::fs::PermissionsExt as _;
    let container = bed.container(&["sleep", "100"]).run().await.expect("run");
    let address = shim::Shim::address(bed, &container.id);
    let socket = PathBuf::from(address.trim_start_matches("unix://"));
    let mode =
        |path: &std::path::Path| fs::metadata(path).expect("stat").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    container.remove().await;
}

async fn delete_from_nothing_but_the_id_succeeds_twice(bed: &Bed) {
    let id = bed.id("nothing");
    let folder = bed.folder.join(&id);
    fs::create_dir_all(&folder).expect("make a folder");
    let path = folder.display().to_string();
    for _ in 0..2 {
        let args = [&shim::flags(&id)[..], &["-bundle", &path, "delete"]].concat();
        let output = shim::run(bed, &folder, &args, b"");
        assert!(output.status.success(), "{output:?}");
        let answer = containerd_shim_protos::api::DeleteResponse::parse_from_bytes(&output.stdout);
        assert_eq!(answer.expect("a DeleteResponse").exit_status, 137);
    }
}

async fn start_twice_is_refused(bed: &Bed) {
    let container = bed.container(&["sleep", "100"]).run().await.expect("run");
    container
        .start()
        .await
        .expect_err("a running task cannot be started");
    let status = container.status().await.expect("state");
    assert_eq!(status, containerd_client::types::v1::Status::Running);
    container.remove().await;
}
