//! What the README and the documentation tell people to type.

use std::fs;
use std::path::Path;
use std::time::Duration;

use integration::bed::{Bed, IMAGE_NAME};
use integration::cases;
use integration::cri::NAMESPACE;
use integration::kubernetes::{NODE, note};
use integration::runtime::Needs;

use crate::cluster;

cases! {
    Needs::Bulkhead => [
        the_pod_of_the_readme_is_applied_logs_and_answers,
    ],
}

/// The manifests in a document: what stands between fences that say `yaml`.
fn manifests(document: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(document);
    let text = fs::read_to_string(path).expect("read a document");
    let blocks = text.split("```yaml\n").skip(1);
    let blocks: Vec<&str> = blocks.filter_map(|rest| rest.split("```").next()).collect();
    blocks.join("---\n")
}

/// The images that manifests name, which no registry can be asked for here, are other names of the tests' own.
fn name_images(bed: &Bed, manifests: &str) {
    let images = manifests
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: "));
    for image in images {
        // The later of two --namespace counts.
        bed.ctr_ok(&[
            "--namespace",
            NAMESPACE,
            "image",
            "tag",
            "--force",
            IMAGE_NAME,
            image,
        ]);
    }
}

async fn the_pod_of_the_readme_is_applied_logs_and_answers(bed: &Bed) {
    let text = manifests("README.md");
    name_images(bed, &text);
    cluster()
        .kubectl_with(&["apply", "-f", "-"], &text)
        .await
        .ok();
    cluster().bind("agent").await;
    let ready = ["get", "pod", "agent", "-o", "jsonpath={.status.phase}"];
    let limit = Duration::from_secs(60);
    cluster()
        .until("it runs", limit, &ready, |answer| {
            answer.stdout == "Running"
        })
        .await;
    let log = ["logs", "agent"];
    let log = cluster()
        .until("it logs", limit, &log, |answer| {
            answer.stdout.contains("touch")
        })
        .await;
    assert!(log.stdout.contains("Starting gVisor"), "{log:?}");
    assert!(log.stdout.contains("Read-only file system"), "{log:?}");
    let exec = ["exec", "agent", "--", "cat", "/proc/net/dev"];
    let devices = cluster().kubectl(&exec).await.text();
    assert!(
        devices.contains("lo:") && !devices.contains("eth"),
        "{devices}"
    );
    let node = [
        "get",
        "pod",
        "agent",
        "-o",
        "jsonpath={.spec.nodeName} {.spec.overhead.memory}",
    ];
    assert_eq!(
        cluster().kubectl(&node).await.text(),
        format!("{NODE} 48Mi")
    );
    let describe = cluster()
        .kubectl(&["describe", "pod", "agent"])
        .await
        .text();
    assert!(describe.contains("Started"), "{describe}");
    show().await;
    cluster()
        .kubectl(&["delete", "pod", "agent", "--timeout=60s"])
        .await
        .ok();
    cluster().collect().await;
}

/// Writes down what a person would see.
async fn show() {
    for line in [
        "get runtimeclass",
        "get pod agent",
        "logs agent",
        "exec agent -- id",
        "exec agent -- uname -a",
        "exec agent -- cat /proc/net/dev",
        "exec agent -- mount",
        "describe pod agent",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let answer = cluster().kubectl(&args).await;
        let text = format!("$ kubectl {line}\n{}{}", answer.stdout, answer.stderr);
        note("agent.txt", &text);
    }
}
