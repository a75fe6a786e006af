//! A person at a terminal of a pod: what `kubectl exec -it` and `kubectl attach -it` send.

use integration::bed::Bed;
use integration::cases;
use integration::cri::Pod;
use integration::runtime::Needs;
use integration::session::{Session, obeys};
use k8s_cri::v1::{AttachRequest, ContainerConfig, ExecRequest};

cases! {
    Needs::Any => [
        an_exec_obeys_its_terminal,
        an_attached_container_obeys_its_terminal,
    ],
}

const SIZE: [u16; 2] = [33, 101];

async fn an_exec_obeys_its_terminal(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let config = pod.container("main", &["sleep", "1000"]);
    let container_id = pod.launch(config).await.expect("launch");
    let request = ExecRequest {
        container_id,
        cmd: vec!["sh".into()],
        tty: true,
        stdin: true,
        stdout: true,
        ..ExecRequest::default()
    };
    let url = pod.cri.exec(request).await.expect("Exec");
    assert_eq!(obeys(Session::cri(&url, SIZE)).await, 7);
    pod.remove().await;
}

async fn an_attached_container_obeys_its_terminal(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let config = ContainerConfig {
        tty: true,
        stdin: true,
        ..pod.container("main", &["sh"])
    };
    let id = pod.launch(config).await.expect("launch");
    let request = AttachRequest {
        container_id: id.clone(),
        tty: true,
        stdin: true,
        stdout: true,
        ..AttachRequest::default()
    };
    let url = pod.cri.attach(request).await.expect("Attach");
    // Of an attached program the client is told that it has ended, and not how.
    assert_eq!(obeys(Session::cri(&url, SIZE)).await, 0);
    assert_eq!(pod.ended(&id).await.exit_code, 7);
    pod.remove().await;
}
