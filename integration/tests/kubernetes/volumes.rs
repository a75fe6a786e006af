//! Volumes, as the kubelet makes them.

use std::time::Duration;

use integration::bed::Bed;
use integration::cases;
use integration::kubernetes::Pod;
use integration::runtime::Needs;
use serde_json::json;

use crate::cluster;

cases! {
    Needs::Any => [
        an_empty_dir_on_disk_and_in_memory_is_shared,
        config_maps_and_secrets_are_read_and_a_change_arrives,
        a_pod_reads_about_itself,
        a_part_of_a_config_map_is_read,
        the_termination_log_reaches_the_status,
    ],
}

async fn an_empty_dir_on_disk_and_in_memory_is_shared(bed: &Bed) {
    for source in [
        json!({ "emptyDir": {} }),
        json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } }),
    ] {
        let read = "until [ -e /work/done ]; do sleep 0.1; done; cat /work/x";
        let pod = Pod::new(bed, cluster(), "bulkhead", read)
            .and("writer", "echo through >/work/x; touch /work/done")
            .volume("work", "/work", &source);
        assert_eq!(pod.end().await, "Succeeded", "{source}");
        assert_eq!(pod.logs("main").await, "through\n");
        pod.delete().await;
    }
}

async fn config_maps_and_secrets_are_read_and_a_change_arrives(bed: &Bed) {
    let make = |value: &str| {
        json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" }, "data": { "key": value } },
            { "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "hidden" }, "stringData": { "key": value } },
        ]})
        .to_string()
    };
    let apply = ["apply", "-f", "-"];
    cluster().kubectl_with(&apply, &make("old")).await.ok();
    let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000")
        .with(
            "/containers/0/env",
            json!([{ "name": "KEY", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "key" } } }]),
        )
        .volume("settings", "/settings", &json!({ "configMap": { "name": "settings" } }))
        .volume("hidden", "/hidden", &json!({ "secret": { "secretName": "hidden" } }))
        .up()
        .await;
    let show = ["sh", "-c", "cat /settings/key /hidden/key; echo $KEY"];
    assert_eq!(
        pod.exec("main", &show).await.text(),
        "oldold".to_owned() + "old\n"
    );
    let refused = pod
        .exec("main", &["sh", "-c", "echo x >/settings/key"])
        .await;
    assert_ne!(refused.code, 0, "{refused:?}");
    cluster().kubectl_with(&apply, &make("new")).await.ok();
    let args = [
        "exec",
        pod.name.as_str(),
        "--",
        "cat",
        "/settings/key",
        "/hidden/key",
    ];
    let limit = Duration::from_secs(90);
    cluster()
        .until("the change arrives", limit, &args, |answer| {
            answer.stdout == "newnew"
        })
        .await;
    pod.delete().await;
    let gone = ["delete", "configmap/settings", "secret/hidden"];
    cluster().kubectl(&gone).await.ok();
}

async fn a_pod_reads_about_itself(bed: &Bed) {
    let script = "cat /about/name; echo; cat /about/memory; echo; hostname; echo $NODE";
    let pod = Pod::new(bed, cluster(), "bulkhead", script)
        .with("/containers/0/resources", json!({ "limits": { "memory": "128Mi" } }))
        .with(
            "/containers/0/env",
            json!([{ "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }]),
        )
        .volume(
            "about",
            "/about",
            &json!({ "downwardAPI": { "items": [
                { "path": "name", "fieldRef": { "fieldPath": "metadata.name" } },
                { "path": "memory", "resourceFieldRef":
                    { "containerName": "main", "resource": "limits.memory", "divisor": "1Mi" } },
            ]}}),
        );
    assert_eq!(pod.end().await, "Succeeded");
    let name = &pod.name;
    assert_eq!(
        pod.logs("main").await,
        format!("{name}\n128\n{name}\nnode\n")
    );
    pod.delete().await;
}

async fn a_part_of_a_config_map_is_read(bed: &Bed) {
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "parts" },
        "data": { "a": "one", "b": "two" } });
    let apply = ["apply", "-f", "-"];
    cluster().kubectl_with(&apply, &map.to_string()).await.ok();
    let pod = Pod::new(bed, cluster(), "bulkhead", "cat /etc/part")
        .with(
            "/containers/0/volumeMounts",
            json!([{ "name": "parts", "mountPath": "/etc/part", "subPath": "b" }]),
        )
        .with(
            "/volumes",
            json!([{ "name": "parts", "configMap": { "name": "parts" } }]),
        );
    assert_eq!(pod.end().await, "Succeeded");
    assert_eq!(pod.logs("main").await, "two");
    pod.delete().await;
    cluster().kubectl(&["delete", "configmap/parts"]).await.ok();
}

async fn the_termination_log_reaches_the_status(bed: &Bed) {
    let script = "echo because >/dev/termination-log; exit 1";
    let pod = Pod::new(bed, cluster(), "bulkhead", script);
    assert_eq!(pod.end().await, "Failed");
    let message = "{.status.containerStatuses[0].state.terminated.message}";
    assert_eq!(pod.get(message).await, "because\n");
    pod.delete().await;
}
