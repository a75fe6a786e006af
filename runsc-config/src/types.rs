//! Types of a request. A value that is judged has the type of the specification. A value that is dropped is not parsed, so
//! a newer client's values in it do not refuse a container.

use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde_json::{Map, Value, json};

use crate::process::{self, capability};
use crate::report::Refusal;
use crate::{limits, linux, spec};

/// Checks the types of a whole spec.
///
/// # Errors
/// `InvalidArgument`, naming the field as far as the parser can.
pub(crate) fn of_spec(asked: &Value) -> Result<(), Refusal> {
    let asked = asked
        .as_object()
        .ok_or_else(|| Refusal::invalid("config.json", "must be an object"))?;
    let judged = spec::KEPT.iter().chain(&spec::JUDGED);
    let mut judged = only(asked, judged);
    if let Some(process) = judged.get_mut("process") {
        *process = judged_process(process);
    }
    if let Some(linux) = judged.get_mut("linux") {
        *linux = judged_linux(linux);
    }
    serde_json::from_value::<Spec>(Value::Object(judged))
        .map(drop)
        .map_err(|e| Refusal::invalid("config.json", e))
}

/// Checks the types of a process that is asked for by itself; one without a user is root's.
///
/// # Errors
/// `InvalidArgument`, as [`of_spec`].
pub(crate) fn of_process(asked: &Value) -> Result<(), Refusal> {
    let mut judged = judged_process(asked);
    if let Some(process) = judged.as_object_mut() {
        process
            .entry("user")
            .or_insert_with(|| json!({ "uid": 0, "gid": 0 }));
    }
    serde_json::from_value::<Process>(judged)
        .map(drop)
        .map_err(|e| Refusal::invalid("process", e))
}

/// Checks the types of the resources that an update asks for.
///
/// # Errors
/// `InvalidArgument`, as [`of_spec`].
pub(crate) fn of_resources(asked: &Value) -> Result<(), Refusal> {
    serde_json::from_value::<LinuxResources>(judged_resources(asked))
        .map(drop)
        .map_err(|e| Refusal::invalid("resources", e))
}

fn judged_process(asked: &Value) -> Value {
    let Some(process) = asked.as_object() else {
        return asked.clone();
    };
    let mut judged = only(process, process::KEPT.iter().chain(&process::DECIDED));
    let sets = judged
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for (_, set) in sets.into_iter().flatten() {
        if let Some(names) = set.as_array_mut() {
            names.retain(|name| name.as_str().is_none_or(|name| capability(name).is_some()));
        }
    }
    Value::Object(judged)
}

fn judged_linux(asked: &Value) -> Value {
    let Some(linux) = asked.as_object() else {
        return asked.clone();
    };
    let mut judged = only(linux, linux::KEPT.iter().chain(&linux::JUDGED));
    if let Some(resources) = judged.get_mut("resources") {
        *resources = judged_resources(resources);
    }
    if let Some(profile) = judged.get_mut("seccomp").and_then(Value::as_object_mut) {
        // gVisor has no flags, and another machine's name matters only where this one's is missing.
        profile.remove("flags");
        let architectures = profile.get_mut("architectures");
        if let Some(names) = architectures.and_then(Value::as_array_mut) {
            names.retain(|name| !name.is_string());
        }
    }
    Value::Object(judged)
}

fn judged_resources(asked: &Value) -> Value {
    asked.as_object().map_or_else(
        || asked.clone(),
        |resources| Value::Object(only(resources, limits::JUDGED.iter())),
    )
}

fn only<'a>(
    map: &Map<String, Value>,
    keys: impl Iterator<Item = &'a &'a str>,
) -> Map<String, Value> {
    let kept = keys.filter_map(|key| Some(((*key).to_owned(), map.get(*key)?.clone())));
    kept.collect()
}
