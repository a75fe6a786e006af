//! Pods as people write them.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::kubectl::Answer;
use super::programs::NODE;
use crate::bed::Bed;
use crate::ground::places::IMAGE_NAME;

/// A pod of one container named `main` that runs a shell script, on the tests' node. What a test is about it changes by
/// its path.
#[must_use]
pub fn manifest(name: &str, class: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "runtimeClassName": class,
            "nodeName": NODE,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [container("main", script)],
        },
    })
}

/// A container that runs a shell script.
fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name, "image": IMAGE_NAME, "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
    })
}

/// A pod to be, and then the pod.
#[derive(Debug)]
pub struct Pod<'a> {
    cluster: &'a Cluster,
    /// Its name.
    pub name: String,
    /// What it is to be.
    pub manifest: Value,
}

impl<'a> Pod<'a> {
    /// A pod that runs a script under a RuntimeClass.
    #[must_use]
    pub fn new(bed: &Bed, cluster: &'a Cluster, class: &str, script: &str) -> Self {
        let name = bed.id("pod");
        let manifest = manifest(&name, class, script);
        Self {
            cluster,
            name,
            manifest,
        }
    }

    /// Sets a part of the manifest, named as a JSON pointer below `spec`: `/containers/0/stdin`.
    ///
    /// # Panics
    /// When the part it lies in is not there.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let pointer = format!("/spec{pointer}");
        let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
        let parent = self.manifest.pointer_mut(parent).expect("its parent");
        match parent {
            Value::Array(list) => list.push(value),
            other => other[last] = value,
        }
        self
    }

    /// Adds a container that runs a script.
    #[must_use]
    pub fn and(self, name: &str, script: &str) -> Self {
        self.with("/containers/-", container(name, script))
    }

    /// Adds a container that has to end before the others begin.
    #[must_use]
    pub fn first(mut self, name: &str, script: &str) -> Self {
        let list = &mut self.manifest["spec"]["initContainers"];
        let entry = container(name, script);
        match list {
            Value::Array(list) => list.push(entry),
            other => *other = json!([entry]),
        }
        self
    }

    /// Adds a volume and mounts it into every container at `place`.
    #[must_use]
    pub fn volume(mut self, name: &str, place: &str, source: &Value) -> Self {
        let mut volume = source.clone();
        volume["name"] = name.into();
        push(&mut self.manifest["spec"]["volumes"], volume);
        for kind in ["initContainers", "containers"] {
            let containers = self.manifest["spec"][kind].as_array_mut();
            for container in containers.into_iter().flatten() {
                let mount = json!({ "name": name, "mountPath": place });
                push(&mut container["volumeMounts"], mount);
            }
        }
        self
    }

    /// Hands it to the API server.
    pub async fn apply(&self) {
        let text = self.manifest.to_string();
        let answer = self.cluster.kubectl_with(&["apply", "-f", "-"], &text);
        answer.await.ok();
    }

    /// Hands it over and waits until every container runs, and is ready where it has a probe.
    pub async fn up(self) -> Self {
        self.apply().await;
        self.until("{.status.conditions[?(@.type=='Ready')].status}", |text| {
            text == "True"
        })
        .await;
        self
    }

    /// Hands it over and waits until it has ended; returns `Succeeded` or `Failed`.
    pub async fn end(&self) -> String {
        self.apply().await;
        self.until("{.status.phase}", |text| {
            ["Succeeded", "Failed"].contains(&text)
        })
        .await
    }

    /// A part of its state, by a JSONPath.
    pub async fn get(&self, path: &str) -> String {
        self.query(path).await.text()
    }

    async fn query(&self, path: &str) -> Answer {
        let path = format!("jsonpath={path}");
        let args = ["get", "pod", self.name.as_str(), "-o", path.as_str()];
        self.cluster.kubectl(&args).await
    }

    /// Waits until a part of its state is as wanted, and returns it.
    pub async fn until(&self, path: &str, wanted: impl Fn(&str) -> bool) -> String {
        let output = format!("jsonpath={path}");
        let args = ["get", "pod", self.name.as_str(), "-o", output.as_str()];
        let what = format!("{path} of {}", self.name);
        let wanted = |answer: &Answer| answer.code == 0 && wanted(&answer.stdout);
        self.cluster
            .until(&what, Duration::from_secs(60), &args, wanted)
            .await
            .stdout
    }

    /// What a container has printed.
    pub async fn logs(&self, container: &str) -> String {
        let args = ["logs", &self.name, "-c", container];
        self.cluster.kubectl(&args).await.text()
    }

    /// Runs a program in a container.
    pub async fn exec(&self, container: &str, args: &[&str]) -> Answer {
        let mut all = vec!["exec", self.name.as_str(), "-c", container, "--"];
        all.extend(args);
        self.cluster.kubectl(&all).await
    }

    /// Runs a script in an ephemeral container, with the processes of the container `target` where that is named.
    pub async fn debug(&self, name: &str, target: Option<&str>, script: &str) {
        let image = format!("--image={IMAGE_NAME}");
        let target = target.map(|target| format!("--target={target}"));
        let mut args = vec!["debug", &self.name, &image, "--image-pull-policy=Never"];
        args.extend(["-c", name]);
        args.extend(target.as_deref());
        args.extend(["--", "sh", "-c", script]);
        self.cluster.kubectl(&args).await.ok();
    }

    /// Waits for an event about it that says `text`, and returns its whole message.
    pub async fn event(&self, text: &str) -> String {
        let selector = format!("involvedObject.name={}", self.name);
        let args = [
            "get",
            "events",
            "--field-selector",
            &selector,
            "-o",
            "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}",
        ];
        let what = format!("an event that says {text:?}");
        let answer = self
            .cluster
            .until(&what, Duration::from_secs(60), &args, |answer| {
                answer.stdout.contains(text)
            })
            .await;
        let line = answer.stdout.lines().find(|line| line.contains(text));
        let line = line.unwrap_or_default().to_owned();
        super::note("events.txt", &format!("{line}\n"));
        line
    }

    /// Deletes it and waits until nothing of it is left.
    pub async fn delete(self) {
        let args = ["delete", "pod", self.name.as_str(), "--timeout=60s"];
        self.cluster.kubectl(&args).await.ok();
        self.cluster.collect().await;
    }
}

/// Adds to a list that may not be there yet.
fn push(list: &mut Value, value: Value) {
    match list {
        Value::Array(list) => list.push(value),
        other => *other = json!([value]),
    }
}
