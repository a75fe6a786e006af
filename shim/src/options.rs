//! Runtime options: the policy that containerd's configuration or the client names for a handler.

use std::path::Path;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use prost::Message as _;
use runsc_config::Policy;

use crate::error::{Error, Result};

/// Message name of the options every runtime but runc's gets (`api/types/runtimeoptions/v1/api.proto`).
const TYPE: &str = "runtimeoptions.v1.Options";

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

/// Reads the policy the options name. A `config_body` or `ConfigPath` replaces the default file; sources are never
/// merged.
///
/// # Errors
/// `InvalidArgument` for options of another type, `FailedPrecondition` for a policy that cannot be used.
pub(crate) fn load_policy(options: Option<&Any>) -> Result<Policy> {
    let options = read(options)?;
    if !options.config_body.is_empty() {
        let body = String::from_utf8(options.config_body)
            .map_err(|e| Error::invalid(format!("options: config_body is not UTF-8: {e}")))?;
        return Ok(Policy::parse(&body, "config_body")?);
    }
    if !options.config_path.is_empty() {
        return Ok(Policy::load(Path::new(&options.config_path))?);
    }
    Ok(Policy::load_default()?)
}

/// Checks options that are not followed: a container that joins a sandbox runs under the sandbox's policy.
///
/// # Errors
/// `InvalidArgument` for options of another type.
pub(crate) fn check(options: Option<&Any>) -> Result<()> {
    read(options).map(drop)
}

fn read(options: Option<&Any>) -> Result<Options> {
    let Some(any) = options.filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) else {
        return Ok(Options::default());
    };
    // containerd writes the bare name, protobuf libraries put a host in front of it.
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name != TYPE {
        return Err(Error::invalid(format!(
            "options: type {:?} is not supported: give {TYPE} with ConfigPath or config_body",
            any.type_url
        )));
    }
    Options::decode(any.value.as_slice())
        .map_err(|e| Error::invalid(format!("options: {TYPE} does not parse: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.into(),
            value,
            ..Any::default()
        }
    }

    #[test]
    fn options_of_another_runtime_are_refused_by_name() {
        let error =
            load_policy(Some(&any("containerd.runc.v1.Options", vec![1]))).expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.to_string().contains("containerd.runc.v1.Options"));
    }

    #[test]
    fn a_missing_config_path_is_named() {
        let options = Options {
            config_path: "/nonexistent/policy.toml".into(),
            ..Options::default()
        };
        let error = load_policy(Some(&any(TYPE, options.encode_to_vec()))).expect_err("refused");
        assert!(error.to_string().contains("/nonexistent/policy.toml"));
    }

    #[test]
    fn a_malformed_body_says_where() {
        let options = Options {
            config_body: b"no_such_key = 1\n".to_vec(),
            ..Options::default()
        };
        let error = load_policy(Some(&any(TYPE, options.encode_to_vec()))).expect_err("refused");
        assert!(
            error.to_string().contains("config_body") && error.to_string().contains("no_such_key")
        );
    }

    #[test]
    fn bytes_that_are_no_message_are_invalid() {
        let error = load_policy(Some(&any(TYPE, vec![0xff; 3]))).expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument);
    }
}
