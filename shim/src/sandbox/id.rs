//! Ids, as containerd and CRI make them.

use std::path::Path;

use crate::error::{Error, Result};

/// containerd's own limit (`pkg/identifiers`).
const ID_MAX: usize = 76;

/// Checks an id by containerd's rule: at most 76 characters, letters and digits, single separators `.`, `_`, `-` between
/// them. It becomes part of paths and of command lines, so nothing else may pass.
///
/// # Errors
/// `InvalidArgument` naming the field, the value and the rule.
pub(crate) fn validate(field: &str, id: &str) -> Result<()> {
    let rule = if id.is_empty() {
        "must not be empty"
    } else if id.len() > ID_MAX {
        "must not be longer than 76 characters"
    } else if !is_well_formed(id) {
        "must be letters and digits, with single '.', '_' or '-' between them"
    } else {
        return Ok(());
    };
    let shown: String = id.chars().take(ID_MAX + 4).collect();
    Err(Error::invalid(format!("{field} {shown:?} {rule}")))
}

fn is_well_formed(id: &str) -> bool {
    id.split(['.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// The sandbox that the container of this bundle belongs to; the container itself when its spec cannot be read, since
/// create will say what is wrong with it.
pub(crate) fn sandbox_of_bundle(bundle: &Path, id: &str) -> String {
    let spec = crate::sandbox::layout::Bundle::new(bundle).read_spec().ok();
    spec.as_ref()
        .and_then(runsc_config::sandbox_of)
        .unwrap_or(id)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_containerd_accepts_pass_and_others_are_named() {
        for id in ["a", "redis-1", "a.b_c-d", &"x".repeat(76)] {
            validate("container id", id).expect(id);
        }
        for id in [
            "",
            "../x",
            "a/b",
            "-a",
            "a..b",
            "a b",
            "a\n",
            &"x".repeat(77),
        ] {
            let error = validate("container id", id).expect_err(id).to_string();
            assert!(error.starts_with("container id "), "{error}");
        }
    }
}
