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

use super::text::{self, Family, Sample, Samples};
use crate::text::complain;
use node::names::{METRICS_SOCKET as SOCKET, RECORD};

/// How many shims are asked at a time: more than a node has, and few enough that there is a descriptor for each.
const AT_A_TIME: usize = 512;
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
    /// Why some of the sandboxes may be missing.
    pub(super) problems: Vec<String>,
}

/// What became of asking one shim.
enum Asked {
    Up(Vec<Family>),
    /// It is there and does not answer as it should.
    Down(String),
    /// Nobody has the socket.
    Dead,
    /// The sandbox was removed in the meantime.
    Gone,
}

impl Gatherer {
    pub(super) fn new(roots: &[PathBuf], limit: Duration) -> Self {
        Self {
            roots: roots.into(),
            limit,
        }
    }

    /// How long one shim may take.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Asks every shim once.
    pub(super) async fn gather(&self) -> Gathered {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        let mut asked = JoinSet::new();
        let mut gathered = Gathered::default();
        for root in self.roots.iter() {
            let found = folders(root).unwrap_or_else(|error| {
                let problem = format!("{}: {error}", root.display());
                gathered.problems.push(problem);
                Vec::new()
            });
            for folder in found {
                let (places, limit) = (Arc::clone(&places), self.limit);
                asked.spawn(async move {
                    let _place = places.acquire().await;
                    let answer = tokio::time::timeout(limit, ask(&folder.join(SOCKET))).await;
                    let late = || Asked::Down(format!("no answer within {} ms", limit.as_millis()));
                    (folder, answer.unwrap_or_else(|_| late()))
                });
            }
        }
        let (mut dead, mut shims) = (0, Vec::new());
        let mut answers = asked.join_all().await;
        answers.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (folder, answer) in answers {
            let added = match answer {
                Asked::Up(families) => gathered.add(families),
                Asked::Down(problem) => Err(problem),
                Asked::Gone => continue,
                Asked::Dead => {
                    dead += 1;
                    continue;
                }
            };
            if let Err(problem) = &added {
                complain(format_args!("{}: {problem}", folder.display()));
            }
            shims.push((folder, if added.is_ok() { "1" } else { "0" }));
        }
        if let Err(problem) = gathered.add(own(&shims, dead)) {
            gathered.problems.push(problem);
        }
        gathered
    }
}

/// The folders that a shim has served in; none where no sandbox has been made yet.
///
/// # Errors
/// When the folder cannot be read: only root can.
fn folders(root: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let folder = entry?.path();
        match std::fs::symlink_metadata(folder.join(SOCKET)) {
            Ok(_) => folders.push(folder),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
                _ => return Err(error),
            },
        }
    }
    Ok(folders)
}

async fn ask(socket: &Path) -> Asked {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::ConnectionRefused => Asked::Dead,
                io::ErrorKind::NotFound => Asked::Gone,
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
        let body = body.to_bytes();
        Ok(text::parse(std::str::from_utf8(&body)?)?)
    }
    .await;
    connection.abort();
    answer
}

/// What a shim has written down of its sandbox (`bulkhead.json`); empty where it has not yet.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Record {
    id: String,
    namespace: String,
}

impl Record {
    fn of(folder: &Path) -> Self {
        let text = std::fs::read(folder.join(RECORD)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

/// What is known of the shims themselves.
fn own(shims: &[(PathBuf, &str)], dead: u64) -> Vec<Family> {
    const UP: &str = "bulkhead_shim_up";
    const DEAD: &str = "bulkhead_shims_dead";
    let (mut up, mut without) = (Samples::default(), Samples::default());
    for (folder, answered) in shims {
        let (record, folder) = (Record::of(folder), folder.display().to_string());
        let labels = [
            ("folder", folder.as_str()),
            ("namespace", record.namespace.as_str()),
            ("sandbox", record.id.as_str()),
        ];
        up.push(UP, &labels, answered);
    }
    without.push(DEAD, &[], &dead.to_string());
    let gauge = |name: &str, help: &str, samples: Samples| Family {
        name: name.to_owned(),
        kind: "gauge".to_owned(),
        unit: String::new(),
        help: help.to_owned(),
        samples,
    };
    vec![
        gauge(
            UP,
            "Whether the shim of a sandbox's folder has answered.",
            up,
        ),
        gauge(DEAD, "Sockets at which no shim listens any more.", without),
    ]
}

impl Gathered {
    /// Adds what one shim said, all of it or nothing.
    ///
    /// # Errors
    /// For a family that is of another type or unit than the other shims': samples of both would make no valid text.
    fn add(&mut self, families: Vec<Family>) -> Result<(), String> {
        for family in &families {
            if let Some(known) = self.families.get(&family.name)
                && (&known.kind, &known.unit) != (&family.kind, &family.unit)
            {
                return Err(format!(
                    "{} is a {} in {:?}, and of other shims a {} in {:?}: is it of another version?",
                    family.name, family.kind, family.unit, known.kind, known.unit
                ));
            }
        }
        for family in families {
            match self.families.get_mut(&family.name) {
                // Two versions of the shim may describe it in other words: the first one's are kept.
                Some(known) => known.samples.extend(&family.samples),
                None => {
                    self.families.insert(family.name.clone(), family);
                }
            }
        }
        Ok(())
    }

    /// By name, in its order.
    pub(super) fn families(&self) -> Vec<&Family> {
        self.families.values().collect()
    }

    /// The samples of a family.
    pub(super) fn samples(&self, family: &str) -> impl Iterator<Item = Sample<'_>> {
        let family = self.families.get(family);
        family.into_iter().flat_map(|family| family.samples.iter())
    }

    /// As OpenMetrics.
    pub(super) fn text(&self) -> String {
        text::write(self.families.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(kind: &str, unit: &str) -> Family {
        let mut samples = Samples::default();
        samples.push("a", &[], "1");
        Family {
            name: "a".to_owned(),
            kind: kind.to_owned(),
            unit: unit.to_owned(),
            samples,
            ..Family::default()
        }
    }

    #[test]
    fn shims_that_mean_something_else_by_a_name_are_not_mixed() {
        let mut gathered = Gathered::default();
        gathered.add(vec![family("gauge", "bytes")]).expect("first");
        gathered.add(vec![family("gauge", "bytes")]).expect("same");
        for other in [family("counter", "bytes"), family("gauge", "seconds")] {
            let good = Family {
                name: "b".to_owned(),
                ..family("gauge", "")
            };
            gathered.add(vec![good, other]).expect_err("another");
        }
        assert_eq!(gathered.samples("a").count(), 2);
        assert!(gathered.samples("b").next().is_none(), "all or nothing");
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_a_problem_and_none_is_not() {
        let folder = tempfile::tempdir().expect("tempdir");
        assert_eq!(
            folders(&folder.path().join("none")).expect("none"),
            [""; 0].map(PathBuf::from)
        );
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("write");
        folders(&file).expect_err("a file");
        // What is no sandbox's folder is left alone.
        assert!(folders(folder.path()).expect("read").is_empty());
    }
}
