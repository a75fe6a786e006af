//! The admission policy of the documentation, as it stands: what holds the author of a pod to a runtime class.

use std::fs;
use std::path::Path;
use std::time::Duration;

use integration::bed::Bed;
use integration::cases;
use integration::kubernetes::{Answer, NODE, manifest, note};
use integration::runtime::Needs;
use serde_json::{Value, json};

use crate::cluster;

cases! {
    Needs::Bulkhead => [
        a_labelled_namespace_holds_its_pods_to_a_runtime_class,
    ],
}

const FILE: &str = "../docs/kubernetes/admission.yaml";
const LABEL: &str = "dev.bulkhead/runtime-class";

async fn create(namespace: &str, object: &Value, how: &[&str]) -> Answer {
    let mut args = vec!["create", "-n", namespace, "-f", "-"];
    args.extend(how);
    cluster().kubectl_with(&args, &object.to_string()).await
}

/// Its last answer, once it would take a pod or would not: it learns of a policy and of a label a moment later.
async fn once(namespace: &str, pod: &Value, is_taken: bool) -> Answer {
    let mut answer = would(namespace, pod).await;
    for _ in 0..100 {
        if (answer.code == 0) == is_taken {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        answer = would(namespace, pod).await;
    }
    answer
}

/// Asks the API server whether it would take a pod.
async fn would(namespace: &str, pod: &Value) -> Answer {
    create(namespace, pod, &["--dry-run=server"]).await
}

fn phase<'a>(namespace: &'a str, pod: &'a str) -> [&'a str; 7] {
    [
        "get",
        "pod",
        "-n",
        namespace,
        pod,
        "-o",
        "jsonpath={.status.phase}",
    ]
}

async fn a_labelled_namespace_holds_its_pods_to_a_runtime_class(bed: &Bed) {
    let (held, free) = (bed.id("held"), bed.id("free"));
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let text = fs::read_to_string(text).expect("read the policy");
    let apply = cluster().kubectl_with(&["apply", "-f", "-"], &text);
    apply.await.ok();
    for namespace in [&held, &free] {
        cluster()
            .kubectl(&["create", "namespace", namespace])
            .await
            .ok();
    }
    let jailed = manifest("jailed", "bulkhead", "sleep 1000");
    let mut plain = manifest("plain", "bulkhead", "sleep 1000");
    plain["spec"]
        .as_object_mut()
        .expect("a spec")
        .remove("runtimeClassName");
    // Was there before the label: it is let be, and ends.
    create(&held, &plain, &[]).await.ok();
    let label = format!("{LABEL}=bulkhead");
    cluster()
        .kubectl(&["label", "namespace", &held, &label])
        .await
        .ok();

    let mut early = plain.clone();
    early["metadata"]["name"] = "early".into();
    let refused = once(&held, &early, false).await;
    note("admission.txt", &refused.stderr);
    let said = "spec.runtimeClassName is '' and must be 'bulkhead'";
    assert!(
        refused.code != 0 && refused.stderr.contains(said),
        "{refused:?}"
    );

    let mut other = jailed.clone();
    other["spec"]["runtimeClassName"] = "bulkhead-net".into();
    let refused = would(&held, &other).await;
    assert!(
        refused.stderr.contains("is 'bulkhead-net' and must be"),
        "{refused:?}"
    );
    let mut with_host = jailed.clone();
    with_host["spec"]["volumes"] = json!([
        { "name": "a", "emptyDir": {} }, { "name": "b", "hostPath": { "path": "/etc" } },
    ]);
    let refused = would(&held, &with_host).await;
    assert!(
        refused.code != 0 && refused.stderr.contains("hostPath"),
        "{refused:?}"
    );
    note("admission.txt", &refused.stderr);
    // What a controller makes is a pod as well: here it is asked as one, by its template.
    let replicas = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": { "name": "many" },
        "spec": {
            "replicas": 1, "selector": { "matchLabels": { "app": "many" } },
            "template": {
                "metadata": { "labels": { "app": "many" } },
                "spec": { "nodeName": NODE, "containers": plain["spec"]["containers"] },
            },
        },
    });
    let controllers = cluster().start_controllers(bed, &["replicaset"]);
    create(&held, &replicas, &[]).await.ok();
    let failure = "jsonpath={.status.conditions[?(@.type=='ReplicaFailure')].message}";
    let failure = [
        "get",
        "replicaset",
        "-n",
        held.as_str(),
        "many",
        "-o",
        failure,
    ];
    let limit = Duration::from_secs(60);
    let wanted = |answer: &Answer| answer.stdout.contains(said);
    cluster()
        .until("its pods are refused", limit, &failure, wanted)
        .await;
    let delete = [
        "delete",
        "replicaset",
        "-n",
        held.as_str(),
        "many",
        "--timeout=60s",
    ];
    cluster().kubectl(&delete).await.ok();
    drop(controllers);

    let empty = format!("{LABEL}=");
    let label = ["label", "namespace", &held, &empty, "--overwrite"];
    cluster().kubectl(&label).await.ok();
    let refused = once(&held, &jailed, false).await;
    assert_ne!(refused.code, 0, "a label without a value: {refused:?}");
    assert_ne!(would(&held, &early).await.code, 0);
    let label = format!("{LABEL}=bulkhead");
    let label = ["label", "namespace", &held, &label, "--overwrite"];
    cluster().kubectl(&label).await.ok();
    once(&held, &jailed, true).await.ok();

    // Others are as they were.
    would(&free, &early).await.ok();
    would(&free, &with_host).await.ok();
    create(&held, &jailed, &[]).await.ok();
    let wanted = |answer: &Answer| answer.stdout == "Running";
    cluster()
        .until("a jailed pod runs", limit, &phase(&held, "jailed"), wanted)
        .await;
    for pod in ["jailed", "plain"] {
        let delete = ["delete", "pod", "-n", held.as_str(), pod, "--timeout=60s"];
        cluster().kubectl(&delete).await.ok();
    }
    let delete = cluster().kubectl_with(&["delete", "-f", "-"], &text);
    delete.await.ok();
    cluster().collect().await;
}
