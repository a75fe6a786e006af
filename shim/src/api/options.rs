//! Runtime options: the policy that containerd's configuration or the client names for a handler, or the options of runc's shim, of
//! which a client sends some whatever the runtime.

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;

use crate::error::{Error, Result};
use crate::task::request;

/// Message name of the options every runtime but runc's gets (`api/types/runtimeoptions/v1/api.proto`).
const TYPE: &str = "runtimeoptions.v1.Options";

/// Message name of runc's (`api/types/runc/options/oci.proto`).
const RUNC_TYPE: &str = "containerd.runc.v1.Options";

/// `runtimeoptions.v1.Options`.
#[derive(Clone, PartialEq, prost::Message)]
struct Options {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// The fields of runc's options that are set and mean nothing here, under their names in containerd's configuration.
fn not_followed(options: &oci::Options) -> Vec<(&'static str, String)> {
    let given = |is_set: bool, value: String| is_set.then_some(value);
    let flag = |value: bool| given(value, "true".to_owned());
    let number = |value: u32| given(value != 0, value.to_string());
    let text = |value: &str| given(!value.is_empty(), format!("{value:?}"));
    let fields = [
        ("NoPivotRoot", flag(options.no_pivot_root)),
        ("NoNewKeyring", flag(options.no_new_keyring)),
        ("IoUid", number(options.io_uid)),
        ("IoGid", number(options.io_gid)),
        ("SystemdCgroup", flag(options.systemd_cgroup)),
        ("CriuImagePath", text(&options.criu_image_path)),
        ("CriuWorkPath", text(&options.criu_work_path)),
        ("TaskApiAddress", text(&options.task_api_address)),
        ("TaskApiVersion", number(options.task_api_version)),
    ];
    let set = fields.into_iter();
    set.filter_map(|(field, value)| Some((field, value?)))
        .collect()
}

/// What the options of a request ask for.
///
/// # Errors
/// `InvalidArgument` for options of another type, and for what the policy alone decides.
pub(crate) fn read(options: Option<&Any>) -> Result<request::Options> {
    let Some(any) = options.filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) else {
        return Ok(request::Options::None);
    };
    // containerd writes the bare name, protobuf libraries put a host in front of it.
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name == RUNC_TYPE {
        return read_runc(&any.value);
    }
    if name != TYPE {
        return Err(Error::invalid(format!(
            "options: type {:?} is not supported: give {TYPE} with ConfigPath or config_body",
            any.type_url
        )));
    }
    let options = <Options as prost::Message>::decode(any.value.as_slice())
        .map_err(|e| Error::invalid(format!("options: {TYPE} does not parse: {e}")))?;
    // A `config_body` replaces the file as well.
    if !options.config_body.is_empty() {
        let body = String::from_utf8(options.config_body)
            .map_err(|e| Error::invalid(format!("options: config_body is not UTF-8: {e}")))?;
        return Ok(request::Options::PolicyText(body));
    }
    if !options.config_path.is_empty() {
        return Ok(request::Options::PolicyFile(options.config_path.into()));
    }
    Ok(request::Options::None)
}

/// runc's options, which must not name another program than the policy does, or another place for its state.
fn read_runc(value: &[u8]) -> Result<request::Options> {
    let options = oci::Options::parse_from_bytes(value)
        .map_err(|e| Error::invalid(format!("options: {RUNC_TYPE} does not parse: {e}")))?;
    for (field, value, key) in [
        ("BinaryName", &options.binary_name, "runsc.path"),
        ("Root", &options.root, "runsc.root"),
    ] {
        if !value.is_empty() {
            return Err(Error::invalid(format!(
                "options: {field} {value:?} of {RUNC_TYPE} must not be set: the node's policy names it (policy key {key})"
            )));
        }
    }
    Ok(request::Options::Runc {
        not_followed: not_followed(&options),
        shim_cgroup: options.shim_cgroup,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.into(),
            value,
            ..Any::default()
        }
    }

    #[test]
    fn options_of_another_runtime_are_refused_by_name() {
        let error = read(Some(&any("containerd.other.v1.Options", vec![1])));
        let error = error.expect_err("refused");
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("containerd.other.v1.Options"));
    }

    fn runc(options: &oci::Options) -> Any {
        any(RUNC_TYPE, options.write_to_bytes().expect("encode"))
    }

    #[test]
    fn what_runcs_options_must_not_set_is_named_with_its_value_and_the_key() {
        let named = [
            (
                oci::Options {
                    binary_name: "other".into(),
                    ..oci::Options::default()
                },
                ["BinaryName", "\"other\"", "runsc.path"],
            ),
            (
                oci::Options {
                    root: "/elsewhere".into(),
                    ..oci::Options::default()
                },
                ["Root", "\"/elsewhere\"", "runsc.root"],
            ),
        ];
        for (options, words) in named {
            let error = read(Some(&runc(&options))).expect_err("refused");
            assert_eq!(error.kind(), Kind::InvalidArgument);
            for word in words {
                assert!(error.to_string().contains(word), "{word}: {error}");
            }
        }
        let error = read(Some(&any(RUNC_TYPE, vec![0xff; 3]))).expect_err("no message");
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }

    #[test]
    fn the_other_fields_of_runc_are_taken_and_those_that_are_set_reported() {
        let options = oci::Options {
            io_uid: 7,
            systemd_cgroup: true,
            ..oci::Options::default()
        };
        read(Some(&runc(&options))).expect("taken");
        let reported = not_followed(&options);
        let expected = [
            ("IoUid", "7".to_owned()),
            ("SystemdCgroup", "true".to_owned()),
        ];
        assert_eq!(reported, expected);
        assert!(not_followed(&oci::Options::default()).is_empty());
    }

    #[test]
    fn a_missing_config_path_is_named() {
        let options = Options {
            config_path: "/nonexistent/policy.toml".into(),
            ..Options::default()
        };
        let asked = read(Some(&any(TYPE, prost::Message::encode_to_vec(&options))));
        let error = asked.expect("read").load_policy().expect_err("refused");
        assert!(error.to_string().contains("/nonexistent/policy.toml"));
    }

    #[test]
    fn a_malformed_body_says_where() {
        let options = Options {
            config_body: b"no_such_key = 1\n".to_vec(),
            ..Options::default()
        };
        let asked = read(Some(&any(TYPE, prost::Message::encode_to_vec(&options))));
        let error = asked.expect("read").load_policy().expect_err("refused");
        assert!(
            error.to_string().contains("config_body") && error.to_string().contains("no_such_key")
        );
    }

    #[test]
    fn bytes_that_are_no_message_are_invalid() {
        let error = read(Some(&any(TYPE, vec![0xff; 3]))).expect_err("refused");
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
}
