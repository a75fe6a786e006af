//! Small steps on JSON that cannot fail half way.

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
