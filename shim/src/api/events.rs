//! Events to containerd: one ordered queue, retried until delivered.
//!
//! containerd orders nothing itself, and a client that misses a TaskExit waits for ever. So the shim sends an event only after
//! containerd has accepted the one before it. While containerd is away, it makes the connection anew. The queue is
//! bounded: if containerd stays away for very long, the shim drops the oldest events that no client waits for.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::MessageDyn;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::context;
use tokio::sync::Notify;

use crate::api::{clock, convert};
use crate::task::event::{Event, Publish};
use node::dial::dial;

/// How many undelivered events are kept: about 1 MiB at the usual 250 bytes each.
const QUEUE_MAX: usize = 4096;
/// How long containerd may take to accept one event, in nanoseconds.
const SEND_LIMIT_NANOS: i64 = 5_000_000_000;
/// How long its queue of connections may stay full until the pause before the next try.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<VecDeque<Envelope>>,
    changed: Notify,
}

/// Puts events into the queue; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    namespace: String,
    queue: Arc<Queue>,
}

impl Events {
    /// Starts delivering to containerd's ttrpc address.
    pub(crate) fn new(namespace: String, ttrpc_address: String) -> Self {
        let queue = Arc::<Queue>::default();
        tokio::spawn(deliver(Arc::clone(&queue), ttrpc_address));
        Self { namespace, queue }
    }

    /// Queues one message.
    fn queue(&self, topic: String, message: &dyn MessageDyn) {
        let value = match message.write_to_bytes_dyn() {
            Ok(value) => value,
            Err(error) => return tracing::error!(%topic, %error, "event not encoded"),
        };
        let type_url = message.descriptor_dyn().full_name().to_owned();
        let mut envelope = Envelope::new();
        envelope.timestamp = MessageField::some(clock::timestamp(clock::now()));
        envelope.namespace.clone_from(&self.namespace);
        envelope.topic = topic;
        envelope.event = MessageField::some(Any {
            type_url,
            value,
            ..Any::default()
        });
        {
            let mut waiting = self
                .queue
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= QUEUE_MAX {
                let dispensable = waiting
                    .iter()
                    .position(|e| !matches!(e.topic.as_str(), "/tasks/exit" | "/tasks/oom"));
                let given_up = waiting.remove(dispensable.unwrap_or(0));
                tracing::error!(
                    topic = given_up.map(|e| e.topic),
                    "containerd is away for too long: event given up"
                );
            }
            waiting.push_back(envelope);
        }
        self.queue.changed.notify_waiters();
    }

    /// Whether all that was published has been taken.
    pub(crate) fn are_taken(&self) -> bool {
        self.queue
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// Waits, bounded, until all that was published has been taken.
    pub(crate) async fn flush(&self, limit: Duration) {
        let empty = async {
            loop {
                let changed = self.queue.changed.notified();
                if self.are_taken() {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(limit, empty).await;
    }
}

impl Publish for Events {
    fn publish(&self, event: Event) {
        let message = convert::event(event);
        let (topic, message): (_, &dyn MessageDyn) = (message.topic(), &*message);
        self.queue(topic, message);
    }
}

async fn deliver(queue: Arc<Queue>, address: String) {
    let address = Path::new(address.trim_start_matches("unix://"));
    let mut client: Option<EventsClient> = None;
    let mut pause = RETRY_FIRST;
    loop {
        let changed = queue.changed.notified();
        let next = queue
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .front()
            .cloned();
        let Some(envelope) = next else {
            changed.await;
            continue;
        };
        // The event stays in the queue until containerd has it, so that nothing can overtake it.
        match send(&mut client, address, &envelope).await {
            Ok(()) => {
                pause = RETRY_FIRST;
                let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                // The front may have been given up meanwhile.
                if waiting.front().is_some_and(|front| front == &envelope) {
                    waiting.pop_front();
                }
                drop(waiting);
                queue.changed.notify_waiters();
            }
            Err(error) => {
                client = None;
                tracing::debug!(%error, topic = envelope.topic, "event not taken, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn send(
    client: &mut Option<EventsClient>,
    address: &Path,
    envelope: &Envelope,
) -> Result<(), String> {
    let client = match client {
        Some(client) => client,
        None => {
            let stream = dial(address, DIAL_LIMIT).await;
            let stream = stream.map_err(|e| format!("connect to containerd: {e}"))?;
            client.insert(EventsClient::new(Client::new(Socket::new(stream))))
        }
    };
    let request = ForwardRequest {
        envelope: MessageField::some(envelope.clone()),
        ..ForwardRequest::default()
    };
    client
        .forward(context::with_timeout(SEND_LIMIT_NANOS), &request)
        .await
        .map(|_| ())
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::reaper::Exit;
    use crate::task::process::Exited;
    use async_trait::async_trait;
    use containerd_shim_protos::shim_async::create_events;
    use containerd_shim_protos::ttrpc;
    use containerd_shim_protos::ttrpc::asynchronous::Server;

    fn started() -> Event {
        let id = "c".to_owned();
        Event::Started { id, pid: 1 }
    }

    fn exited() -> Event {
        let (id, process) = ("c".to_owned(), "c".to_owned());
        let exited = Exited::now(Exit::Code(0));
        Event::Exited {
            id,
            process,
            pid: 1,
            exited,
        }
    }

    struct Containerd(Mutex<Vec<String>>, Mutex<u32>);

    struct Service(Arc<Containerd>);

    #[async_trait]
    impl containerd_shim_protos::shim_async::Events for Service {
        async fn forward(
            &self,
            _ctx: &ttrpc::asynchronous::TtrpcContext,
            request: ForwardRequest,
        ) -> ttrpc::Result<containerd_shim_protos::api::Empty> {
            let mut failures = self.0.1.lock().expect("lock");
            if *failures > 0 {
                *failures -= 1;
                return Err(ttrpc::Error::Others("not now".into()));
            }
            self.0
                .0
                .lock()
                .expect("lock")
                .push(request.envelope.topic.clone());
            Ok(containerd_shim_protos::api::Empty::new())
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn events_arrive_once_and_in_order_whatever_fails_on_the_way() {
        let folder = tempfile::tempdir().expect("tempdir");
        let address = format!("unix://{}", folder.path().join("c.ttrpc").display());
        let events = Events::new("default".into(), address.clone());
        // containerd is away when the first events are published, and refuses twice once it is back.
        events.publish(started());
        events.publish(exited());
        tokio::time::sleep(Duration::from_millis(120)).await;
        let containerd = Arc::new(Containerd(Mutex::default(), Mutex::new(2)));
        let mut server = Server::new()
            .bind(&address)
            .expect("bind")
            .register_service(create_events(Arc::new(Service(Arc::clone(&containerd)))));
        server.start().await.expect("start");
        events.publish(started());
        events.flush(Duration::from_secs(10)).await;
        assert_eq!(
            *containerd.0.lock().expect("lock"),
            ["/tasks/start", "/tasks/exit", "/tasks/start"]
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_containerd_that_accepts_nothing_holds_up_nothing() {
        let folder = tempfile::tempdir().expect("tempdir");
        let address = folder.path().join("c.ttrpc");
        let listener = std::os::unix::net::UnixListener::bind(&address).expect("bind");
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("0"))
            .expect("a short queue");
        let _first = dial(&address, Duration::ZERO).await.expect("has a place");
        let full = dial(&address, Duration::ZERO).await.expect_err("is full");
        assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
        let events = Events::new("default".into(), address.display().to_string());
        // Should something wait for a place, it gets one, too late.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(2));
            listener.incoming().take(4).for_each(drop);
        });
        events.publish(exited());
        let began = tokio::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        assert!(!events.are_taken());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_full_queue_gives_up_what_nobody_waits_for() {
        let events = Events::new("default".into(), "/nonexistent/c.ttrpc".into());
        events.publish(exited());
        for _ in 0..QUEUE_MAX + 10 {
            events.publish(started());
        }
        let waiting = events.queue.waiting.lock().expect("lock");
        assert_eq!(waiting.len(), QUEUE_MAX);
        assert_eq!(
            waiting.front().map(|e| e.topic.as_str()),
            Some("/tasks/exit")
        );
    }
}
