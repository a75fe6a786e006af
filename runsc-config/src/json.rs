//! Small steps on JSON that cannot fail half way.

use std::path::Path;

use serde_json::{Map, Value};

use crate::report::Refusal;

/// The object at `key`, made where it is missing or null.
pub(crate) fn object<'a>(
    parent: &'a mut Map<String, Value>,
    key: &str,
) -> Result<&'a mut Map<String, Value>, Refusal> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value
        .as_object_mut()
        .ok_or_else(|| Refusal::invalid(key, "must be an object"))
}

/// Removes every key that is not named and returns those it removed, if they said anything.
pub(crate) fn retain(map: &mut Map<String, Value>, kept: &[&str]) -> Vec<String> {
    let mut removed = Vec::new();
    map.retain(|key, value| {
        let keep = kept.contains(&key.as_str());
        if !keep && !is_empty(value) {
            removed.push(key.clone());
        }
        keep
    });
    removed
}

/// Whether a value says nothing: null, or an empty text, list or object.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
/// A path as a spec has it. JSON is UTF-8, and a name that is not would become another one, which nobody has judged.
///
/// # Errors
/// `InvalidArgument`, naming the field and the path.
pub(crate) fn text_of(field: &str, path: &Path) -> Result<String, Refusal> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        Refusal::invalid(
            field,
            format!("leads to {path:?}, a name that is no UTF-8 and that no spec can have"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_text_has_no_place_in_a_spec() {
        use std::os::unix::ffi::OsStrExt as _;
        assert_eq!(text_of("x", Path::new("/a/ü")).as_deref(), Ok("/a/ü"));
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/a/\xff"));
        let refusal = text_of("mounts[1].source", odd).expect_err("refused");
        for said in ["mounts[1].source", "no UTF-8"] {
            assert!(refusal.to_string().contains(said), "{refusal}");
        }
    }
}
