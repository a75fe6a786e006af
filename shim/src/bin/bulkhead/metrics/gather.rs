//! Asks every shim of the node, all at once: one that hangs costs its own time alone.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::text::{self, Family, Sample};

/// Name of the socket in a sandbox's folder.
const SOCKET: &str = "metrics.sock";
/// How many shims are asked at a time.
const AT_A_TIME: usize = 64;
/// A shim's answer is some 20 KiB, more with many containers; bytes.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

/// Asks the shims with sandboxes in some folders.
#[derive(Debug, Clone)]
pub(super) struct Gatherer {
    roots: Arc<[PathBuf]>,
    limit: Duration,
}

/// What the shims said.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    families: BTreeMap<String, Family>,
}

/// What became of asking one shim.
enum Asked {
    Up(Vec<Family>),
    /// It is there and does not answer as it should.
    Down(String),
    /// Nobody has the socket.
    Dead,
}

impl Gatherer {
    pub(super) fn new(roots: &[PathBuf], limit: Duration) -> Self {
        Self {
            roots: roots.into(),
            limit,
        }
    }

    /// Asks every shim once.
    pub(super) async fn gather(&self) -> Gathered {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        let mut asked = JoinSet::new();
        for folder in self.roots.iter().flat_map(|root| folders(root)) {
            let (places, limit) = (Arc::clone(&places), self.limit);
            asked.spawn(async move {
                let _place = places.acquire().await;
                let answer = tokio::time::timeout(limit, ask(&folder.join(SOCKET))).await;
                let late = || Asked::Down(format!("no answer within {} s", limit.as_secs()));
                (folder, answer.unwrap_or_else(|_| late()))
            });
        }
        let mut gathered = Gathered::default();
        let (mut dead, mut shims) = (0, Vec::new());
        let mut answers = asked.join_all().await;
        answers.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (folder, answer) in answers {
            let up = match answer {
                Asked::Up(families) => {
                    gathered.add(families);
                    "1"
                }
                Asked::Down(problem) => {
                    eprintln!("bulkhead: {}: {problem}", folder.display());
                    "0"
                }
                Asked::Dead => {
                    dead += 1;
                    continue;
                }
            };
            shims.push((folder, up));
        }
        gathered.add(own(&shims, dead));
        gathered
    }
}

/// The folders that a shim has served in.
fn folders(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.map(|entry| entry.path());
    folders
        .filter(|folder| folder.join(SOCKET).exists())
        .collect()
}

async fn ask(socket: &Path) -> Asked {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Asked::Dead,
                _ => Asked::Down(error.to_string()),
            };
        }
    };
    match exchange(stream).await {
        Ok(families) => Asked::Up(families),
        Err(problem) => Asked::Down(problem.to_string()),
    }
}

async fn exchange(stream: UnixStream) -> Result<Vec<Family>, crate::Failure> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the sender, or with the answer.
    let connection = tokio::spawn(connection);
    let request = Request::get("/metrics")
        .header("Host", "shim")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        if !answer.status().is_success() {
            return Err(format!("it answers {}", answer.status()).into());
        }
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|e| format!("read its answer: {e}"))?;
        let text = String::from_utf8(body.to_bytes().to_vec())?;
        Ok(text::parse(&text)?)
    }
    .await;
    connection.abort();
    answer
}

/// What is known of the shims themselves.
fn own(shims: &[(PathBuf, &str)], dead: u64) -> Vec<Family> {
    let up = shims.iter().map(|(folder, up)| Sample {
        name: "bulkhead_shim_up".to_owned(),
        labels: BTreeMap::from([("folder".to_owned(), folder.display().to_string())]),
        value: (*up).to_owned(),
    });
    let dead = Sample {
        name: "bulkhead_shims_dead".to_owned(),
        labels: BTreeMap::new(),
        value: dead.to_string(),
    };
    let gauge = |name: &str, help: &str, samples: Vec<Sample>| Family {
        name: name.to_owned(),
        kind: "gauge".to_owned(),
        unit: String::new(),
        help: help.to_owned(),
        samples,
    };
    vec![
        gauge(
            "bulkhead_shim_up",
            "Whether the shim of a sandbox's folder has answered.",
            up.collect(),
        ),
        gauge(
            "bulkhead_shims_dead",
            "Sockets of shims that nobody has any more.",
            vec![dead],
        ),
    ]
}

impl Gathered {
    fn add(&mut self, families: Vec<Family>) {
        for family in families {
            match self.families.get_mut(&family.name) {
                // Two versions of the shim may describe it in other words: the first one's are kept.
                Some(known) => known.samples.extend(family.samples),
                None => {
                    self.families.insert(family.name.clone(), family);
                }
            }
        }
    }

    /// By name, in its order.
    pub(super) fn families(&self) -> Vec<&Family> {
        self.families.values().collect()
    }

    /// The samples of a family.
    pub(super) fn samples(&self, family: &str) -> &[Sample] {
        self.families
            .get(family)
            .map_or(&[], |family| &family.samples)
    }

    /// As OpenMetrics.
    pub(super) fn text(&self) -> String {
        text::write(self.families.values())
    }
}
