//! Pods with a network, under a RuntimeClass whose policy gives one.

use integration::bed::Bed;
use integration::cases;
use integration::kubernetes::Pod;
use integration::runtime::Needs;
use serde_json::json;

use crate::cluster;

cases! {
    Needs::Any => [
        http_and_tcp_probes_and_another_pod_reach_a_server,
    ],
    Needs::Bulkhead => [
        a_probe_that_needs_a_network_says_so_under_the_strict_class,
        a_pod_asks_for_a_network_and_its_namespace_is_granted_it,
    ],
}

/// Lists the network devices that there are beside the loopback.
const DEVICES: &str = "tail -n +3 /proc/net/dev | cut -d: -f1 | grep -v lo";

/// Serves `hello` on port 8080, ready after a second.
const SERVER: &str = "echo hello >/tmp/index.html; sleep 1; exec httpd -f -p 8080 -h /tmp";

/// Prints what a server says. busybox's wget, linked statically, crashes in the resolver of Debian's libc on any host.
fn fetch(address: &str) -> String {
    format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {address} 8080 >/tmp/x && tail -n 1 /tmp/x"
    )
}

async fn http_and_tcp_probes_and_another_pod_reach_a_server(bed: &Bed) {
    let probe = json!({ "httpGet": { "port": 8080, "path": "/" }, "periodSeconds": 1 });
    let open = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1, "failureThreshold": 30 });
    let server = Pod::new(bed, cluster(), "bulkhead-net", SERVER)
        .with("/containers/0/startupProbe", open)
        .with("/containers/0/readinessProbe", probe.clone())
        .with("/containers/0/livenessProbe", probe)
        .up()
        .await;
    let address = server.get("{.status.podIP}").await;
    let fetch = fetch(&address);
    let client = Pod::new(bed, cluster(), "bulkhead-net", &fetch);
    client.end().await;
    assert_eq!(client.logs("main").await, "hello\n");
    client.delete().await;
    // Under the strict class the same program finds no network.
    let strict = Pod::new(bed, cluster(), "bulkhead", &fetch);
    assert_eq!(strict.end().await, "Failed");
    strict.delete().await;
    server.delete().await;
}

async fn a_probe_that_needs_a_network_says_so_under_the_strict_class(bed: &Bed) {
    for kind in ["httpGet", "tcpSocket"] {
        // The server listens by then, and those inside reach it.
        let probe = json!({ kind: { "port": 8080 }, "periodSeconds": 1, "initialDelaySeconds": 5 });
        let pod = Pod::new(bed, cluster(), "bulkhead", SERVER)
            .with("/containers/0/readinessProbe", probe);
        pod.apply().await;
        let event = pod.event("Readiness probe failed").await;
        assert!(event.contains(":8080"), "{event}");
        let inside = pod.exec("main", &["sh", "-c", &fetch("127.0.0.1")]).await;
        assert_eq!(inside.text(), "hello\n");
        let ready = "{.status.conditions[?(@.type=='Ready')].status}";
        assert_eq!(pod.get(ready).await, "False");
        pod.delete().await;
    }
}

async fn a_pod_asks_for_a_network_and_its_namespace_is_granted_it(bed: &Bed) {
    let _policy = integration::policy::NodePolicy::set(
        "[kubernetes.namespaces.default]\nnetwork = \"sandbox\"\n",
    );
    let mut pod = Pod::new(bed, cluster(), "bulkhead", DEVICES);
    pod.manifest["metadata"]["annotations"] = json!({ "dev.bulkhead.network": "sandbox" });
    assert_eq!(pod.end().await, "Succeeded");
    assert!(pod.logs("main").await.contains("eth0"));
    pod.delete().await;
}
