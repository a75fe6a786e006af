//! The two protocols by which containerd starts a shim, and how to tell them apart.
//!
//! containerd 2.3 and later send `BootstrapParams` on stdin. Before that, stdin is empty or holds the options as a bare
//! `Any`, and flags and environment carry the rest. Both messages have a string in field 1 and one in field 2, so the
//! id in field 1 tells them apart. The answer follows: Task v3 for the new protocol, v2 for the old one, because
//! containerd 1.7 refuses anything else. Measured on 1.7.24 and 2.4.2.

use std::io::{self, Read as _};
use std::time::Duration;

use containerd_shim::Flags;
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::Message as _;

/// containerd's own limit on what it sends (`pkg/shim`).
const INPUT_MAX: u64 = 10 << 20;
/// How long it may take to send it.
const INPUT_LIMIT: Duration = Duration::from_secs(5);

/// What a shim is started with, whichever protocol brought it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Params {
    pub(crate) id: String,
    pub(crate) namespace: String,
    /// containerd's gRPC address: names the containerd the sandbox belongs to.
    pub(crate) grpc_address: String,
    /// Where events go.
    pub(crate) ttrpc_address: String,
    /// Where containerd wants the socket; none before 2.3.
    pub(crate) socket_dir: Option<String>,
    pub(crate) debug: bool,
    /// Version of the Task API to announce.
    pub(crate) task_version: u32,
}

/// Reads all that containerd put on stdin.
///
/// # Errors
/// When stdin cannot be read, or does not end in time.
pub(crate) fn read_input() -> io::Result<Vec<u8>> {
    // Somebody trying the binary by hand has a terminal there, and nothing to send.
    if io::IsTerminal::is_terminal(&io::stdin()) {
        return Ok(Vec::new());
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    // The process ends with an error where this thread is left behind.
    std::thread::spawn(move || {
        let mut input = Vec::new();
        let read = io::stdin().lock().take(INPUT_MAX).read_to_end(&mut input);
        let _ = sender.send(read.map(|_| input));
    });
    receiver.recv_timeout(INPUT_LIMIT).unwrap_or_else(|_| {
        let message = format!("stdin does not end within {INPUT_LIMIT:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    })
}

impl Params {
    /// `environment` looks a variable up.
    pub(crate) fn new(
        flags: &Flags,
        input: &[u8],
        environment: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let or_environment = |value: &str, name: &str| {
            if value.is_empty() {
                environment(name).unwrap_or_default()
            } else {
                value.to_owned()
            }
        };
        let sent = BootstrapParams::parse_from_bytes(input)
            .ok()
            .filter(|params| !params.instance_id.is_empty() && params.instance_id == flags.id);
        match sent {
            Some(sent) => Self {
                id: sent.instance_id.clone(),
                namespace: if sent.namespace.is_empty() {
                    flags.namespace.clone()
                } else {
                    sent.namespace.clone()
                },
                grpc_address: or_environment(
                    if sent.containerd_grpc_address.is_empty() {
                        &flags.address
                    } else {
                        &sent.containerd_grpc_address
                    },
                    "GRPC_ADDRESS",
                ),
                ttrpc_address: or_environment(&sent.containerd_ttrpc_address, "TTRPC_ADDRESS"),
                // Levels below INFO (0) are the more verbose ones.
                debug: flags.debug || sent.log_level.value() < 0,
                socket_dir: sent.socket_dir.filter(|folder| !folder.is_empty()),
                task_version: 3,
            },
            None => Self {
                id: flags.id.clone(),
                namespace: flags.namespace.clone(),
                grpc_address: or_environment(&flags.address, "GRPC_ADDRESS"),
                ttrpc_address: or_environment("", "TTRPC_ADDRESS"),
                socket_dir: None,
                debug: flags.debug,
                task_version: 2,
            },
        }
    }

    /// What `start` prints for a shim that listens at `address`: JSON, which every containerd since 1.7 reads.
    pub(crate) fn answer(&self, address: &str) -> String {
        serde_json::json!({ "version": self.task_version, "address": address, "protocol": "ttrpc" })
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    fn flags() -> Flags {
        Flags {
            id: "c1".into(),
            namespace: "default".into(),
            address: "/run/c.sock".into(),
            ..Flags::default()
        }
    }

    fn environment(name: &str) -> Option<String> {
        (name == "TTRPC_ADDRESS").then(|| "/run/c.sock.ttrpc".to_owned())
    }

    #[test]
    fn the_new_protocol_is_known_by_the_id_in_it() {
        let sent = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "/new.ttrpc".into(),
            containerd_grpc_address: "/new.sock".into(),
            socket_dir: Some("/run/s".into()),
            ..BootstrapParams::default()
        };
        let params = Params::new(
            &flags(),
            &sent.write_to_bytes().expect("encode"),
            environment,
        );
        assert_eq!(
            (params.task_version, params.namespace.as_str()),
            (3, "k8s.io")
        );
        assert_eq!(
            (params.grpc_address.as_str(), params.ttrpc_address.as_str()),
            ("/new.sock", "/new.ttrpc")
        );
        assert_eq!(params.socket_dir.as_deref(), Some("/run/s"));
    }

    #[test]
    fn options_or_nothing_on_stdin_are_the_old_protocol() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: vec![18, 1, b'x'],
            ..Any::default()
        };
        for input in [
            Vec::new(),
            options.write_to_bytes().expect("encode"),
            b"\xff\xff".to_vec(),
        ] {
            let params = Params::new(&flags(), &input, environment);
            assert_eq!((params.task_version, params.id.as_str()), (2, "c1"));
            assert_eq!(params.ttrpc_address, "/run/c.sock.ttrpc");
        }
    }

    #[test]
    fn the_answer_is_one_json_object() {
        let answer = Params {
            task_version: 2,
            ..Params::default()
        }
        .answer("unix:///run/s/a");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("json");
        assert_eq!(
            answer,
            serde_json::json!({"version": 2, "address": "unix:///run/s/a", "protocol": "ttrpc"})
        );
    }
}
