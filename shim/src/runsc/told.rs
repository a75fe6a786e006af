//! What a sandbox tells when it is looked at: the usage of its containers, its memory, its counters.
//!
//! Looking costs little whatever the sentry does. A question has a short limit, and after one that was not answered none
//! is asked for a while: containerd asks for every container of a node, one after the other and once a second, so that a
//! sandbox that hangs would take its limit from all others in every round. An answer ends the silence; unlike the methods
//! that control a sandbox, what only informs is never given up for good.
//!
//! An answer of `Stats` is not kept for the next one: rates are made from two of them, and two that show the same moment
//! show a busy container as an idle one.

use std::ffi::OsStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::runsc::control::{Control, Method, parse};
use crate::runsc::log::one_line;
use crate::runsc::socket::{self, CallError};
use crate::runsc::usage::{Event, EventOut, Names, Usage};

/// How long the sentry may take for one answer: without it the host's figures still stand.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// How long a runsc command may take to do the same; most of it is its start.
const COMMAND_LIMIT: Duration = Duration::from_secs(2);
/// For how long nothing is asked after a first failure; twice as long after each further one.
const SILENCE: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What is remembered of answers.
#[derive(Debug, Default)]
pub(super) struct Told {
    silences: Mutex<Silences>,
    /// The names of its network interfaces.
    names: Names,
}

#[derive(Debug, Default)]
struct Silences {
    /// After no answer in time: one that hangs hangs for every question.
    all: Silence,
    /// After an answer that is none, for each question.
    event: Silence,
    collect: Silence,
    export: Silence,
}

/// A time in which nothing is asked.
#[derive(Debug, Default)]
struct Silence {
    until: Option<Instant>,
    /// How long the last one was; zero after an answer.
    last: Duration,
}

impl Silence {
    fn is_kept(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Returns whether it is the first failure since an answer.
    fn begin(&mut self, now: Instant) -> bool {
        let is_first = self.last.is_zero();
        self.last = (self.last * 2).clamp(SILENCE, SILENCE_MAX);
        self.until = Some(now + self.last);
        is_first
    }

    fn end(&mut self) {
        *self = Self::default();
    }
}

impl Silences {
    fn of(&mut self, method: Method) -> &mut Silence {
        match method {
            Method::Collect => &mut self.collect,
            Method::Export => &mut self.export,
            _ => &mut self.event,
        }
    }
}

impl Control {
    /// Asks the sentry what a container uses, by the command where the socket does not serve it.
    ///
    /// # Errors
    /// When neither backend answers in time, or one has not lately.
    pub(crate) async fn usage(&self, id: &str) -> Result<Usage> {
        if self.silences().all.is_kept(Instant::now()) {
            return Err(Error::new(
                Kind::DeadlineExceeded,
                "the sentry did not answer, and the shim asks again in some seconds",
            ));
        }
        let asked = self.usage_by_either(id).await;
        match &asked {
            Ok(_) => self.silences().all.end(),
            Err(error) if error.kind() == Kind::DeadlineExceeded => {
                self.silences().all.begin(Instant::now());
            }
            Err(_) => {}
        }
        let mut usage = asked?;
        self.told.names.settle(&mut usage.interfaces);
        Ok(usage)
    }

    async fn usage_by_either(&self, id: &str) -> Result<Usage> {
        let arg = json!(id);
        let answer = self.call_within::<EventOut>(Method::Event, &arg, &[], ANSWER_LIMIT);
        if let Some(event) = answer.await? {
            return Ok(event.usage());
        }
        self.runsc.require(id)?;
        let args = [OsStr::new("--stats"), OsStr::new(id)];
        let text = self.runsc.output("events", &args, COMMAND_LIMIT).await?;
        Ok(parse::<Event>("events", &text)?.usage_of(Some(id)))
    }

    /// Whether a scrape has anybody to ask: it never runs a command.
    pub(crate) fn tells(&self) -> bool {
        self.use_socket
    }

    /// The usage of a container for a scrape: none where the socket does not tell in time.
    pub(crate) async fn usage_told(&self, id: &str) -> Option<Usage> {
        let told = self.told::<EventOut>(Method::Event, &json!(id)).await?;
        let mut usage = told.usage();
        self.told.names.settle(&mut usage.interfaces);
        Some(usage)
    }

    /// Memory of the guest in bytes (`control.MemoryUsage`), without an accounting of what it is used for.
    pub(crate) async fn guest_memory(&self) -> Option<u64> {
        #[derive(Deserialize)]
        struct Memory {
            #[serde(rename = "Total")]
            total: u64,
        }
        let arg = json!({ "Full": false });
        let memory = self.told::<Memory>(Method::Collect, &arg).await?;
        Some(memory.total)
    }

    /// The sentry's own counters, in the form that the caller reads them in.
    pub(crate) async fn export<R: DeserializeOwned>(&self, arg: &Value) -> Option<R> {
        self.told(Method::Export, arg).await
    }

    async fn told<R: DeserializeOwned>(&self, method: Method, arg: &Value) -> Option<R> {
        let is_kept = {
            let mut silences = self.silences();
            let now = Instant::now();
            silences.all.is_kept(now) || silences.of(method).is_kept(now)
        };
        if is_kept || !self.use_socket {
            return None;
        }
        let error = match socket::call(&self.socket, method.name(), arg, &[], ANSWER_LIMIT).await {
            Ok(answer) => {
                let mut silences = self.silences();
                silences.all.end();
                silences.of(method).end();
                return Some(answer);
            }
            Err(error) => error,
        };
        let message = one_line(&error.to_string());
        tracing::debug!(method = method.name(), message, "not told");
        if matches!(error, CallError::Answer(_)) {
            return None;
        }
        let is_late = matches!(error, CallError::Timeout(_));
        if !is_late && self.is_going(&error).await {
            return None;
        }
        let now = Instant::now();
        let mut silences = self.silences();
        if is_late {
            silences.all.begin(now);
        } else if silences.of(method).begin(now) {
            let then = "metrics do without it until it answers";
            self.tell_of_fallback(method, &error, then);
        }
        None
    }

    fn silences(&self) -> MutexGuard<'_, Silences> {
        let silences = &self.told.silences;
        silences.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_grows_to_its_bound_and_an_answer_ends_it() {
        let (mut silence, began) = (Silence::default(), Instant::now());
        assert!(!silence.is_kept(began));
        let told: Vec<(bool, u64)> = (0..6)
            .map(|_| (silence.begin(began), silence.last.as_secs()))
            .collect();
        assert_eq!(
            told,
            [
                (true, 1),
                (false, 2),
                (false, 4),
                (false, 8),
                (false, 10),
                (false, 10)
            ]
        );
        assert!(silence.is_kept(began + Duration::from_secs(9)));
        assert!(!silence.is_kept(began + Duration::from_secs(10)));
        silence.end();
        assert!(!silence.is_kept(began) && silence.begin(began));
    }
}
