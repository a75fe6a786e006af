//! Work on paths that a pod, a client or containerd chose, done aside from the one thread that serves the pod.
//!
//! A dead filesystem (NFS, FUSE) holds every caller for as long as it is dead, and no call on it can be interrupted. So
//! each such piece of work has a thread of its own, and the shim waits for it until a deadline. A thread that comes back later
//! finds that nobody waits, and undoes its work. A bound limits how many may hang at once.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Kind, Result};
use node::trail::Trail;

/// How long what is cleaned up is waited for: containerd gives a whole `delete` action 5 s.
pub(crate) const CLEANING_LIMIT: Duration = Duration::from_secs(3);

/// For what a container is made of.
pub(crate) static VOLUMES: Places = Places::new(16);
/// For what the streams of a process are connected to: a probe has its own places.
pub(crate) static STREAMS: Places = Places::new(16);
/// For cleaning up, so that creates that hang leave it room.
pub(crate) static CLEANING: Places = Places::new(32);

/// Bounds how much work of a kind hangs at once in one shim.
#[derive(Debug)]
pub(crate) struct Places {
    free: Semaphore,
    max: usize,
}

impl Places {
    const fn new(max: usize) -> Self {
        let free = Semaphore::const_new(max);
        Self { free, max }
    }

    /// Does `work`. Where nobody waits any more when it is done, `undo` gets what it has made.
    ///
    /// # Errors
    /// What the work answers; `DeadlineExceeded` with the path that hangs.
    pub(crate) async fn within<T: Send + 'static>(
        &'static self,
        limit: Duration,
        what: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        undo: impl FnOnce(T) + Send + 'static,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let late = |why: String| Error::new(Kind::DeadlineExceeded, format!("{what}: {why}"));
        let Ok(Ok(place)) = timeout_at(deadline, self.free.acquire()).await else {
            let max = self.max;
            return Err(late(format!(
                "not begun within {limit:?}: {max} other paths of this pod do not answer"
            )));
        };
        match run(place, deadline, what, work, undo).await {
            Ok(done) => done,
            Err(Hangs::Here(path)) => Err(late(format!(
                "{} does not answer within {limit:?}; is its filesystem dead?",
                path.display()
            ))),
            Err(Hangs::Already(path)) => Err(late(format!(
                "{} has not answered an earlier look yet; is its filesystem dead?",
                path.display()
            ))),
        }
    }

    /// Cleans up at `path`. What takes longer than `limit` goes on; where it fails, or too much hangs already, that is logged.
    pub(crate) async fn clean(
        &'static self,
        path: &Path,
        limit: Duration,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) {
        let deadline = Instant::now() + limit;
        let work = move || work().map_err(|error| Error::internal(error.to_string()));
        let done = match self.free.try_acquire() {
            Ok(place) => run(place, deadline, "clean up", work, drop).await,
            Err(_) => Ok(Err(Error::internal("too much hangs already"))),
        };
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, path = %path.display(), "not cleaned up"),
            Err(_) => tracing::warn!(
                path = %path.display(),
                "cleaning up takes longer than {limit:?}: it goes on aside"
            ),
        }
    }
}

/// Lets go of what may hang when it is let go of: the last close of a file writes what its filesystem still has to.
pub(crate) fn let_go(held: impl Send + 'static) {
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(held))),
        // A thread of its own already.
        Err(_) => drop(held),
    }
}

/// The path that does not answer.
enum Hangs {
    /// It was touched.
    Here(PathBuf),
    /// Earlier work hangs there, so that it was not.
    Already(PathBuf),
}

async fn run<T: Send + 'static>(
    place: SemaphorePermit<'static>,
    deadline: Instant,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    undo: impl FnOnce(T) + Send + 'static,
) -> std::result::Result<Result<T>, Hangs> {
    let trail = Arc::<Trail>::default();
    let (sender, receiver) = oneshot::channel();
    let own = Arc::clone(&trail);
    let thread = std::thread::Builder::new().spawn(move || {
        let _place = place;
        Arc::clone(&own).follow();
        let done = work();
        let unheard = match own.end() {
            None => sender
                .send(Ok(done))
                .err()
                .and_then(std::result::Result::ok),
            Some(path) => {
                let _ = sender.send(Err(Hangs::Already(path)));
                Some(done)
            }
        };
        if let Some(Ok(made)) = unheard {
            undo(made);
        }
    });
    if let Err(error) = thread {
        return Ok(Err(Error::io(format!("{what}: start a thread"), &error)));
    }
    match timeout_at(deadline, receiver).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Ok(Err(Error::internal(format!("{what}: its thread died")))),
        Err(_) => Err(Hangs::Here(trail.give_up())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::trail;
    use std::sync::mpsc;

    #[tokio::test(flavor = "current_thread")]
    async fn what_hangs_is_named_and_undone_when_it_comes_back() {
        let (go_on, hang) = mpsc::channel::<()>();
        let (told, undone) = mpsc::channel();
        let work = move || {
            trail::at(Path::new("/srv/dead")).expect("nothing hangs");
            let _ = hang.recv();
            Ok(trail::is_wanted())
        };
        let undo = move |was_wanted| told.send(was_wanted).expect("told");
        let limit = Duration::from_millis(50);
        let error = VOLUMES
            .within(limit, "look", work, undo)
            .await
            .expect_err("late");
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert!(error.to_string().contains("look: /srv/dead "), "{error}");
        assert!(undone.try_recv().is_err(), "it still hangs");
        // What comes meanwhile does not hang as well, whatever it makes of that.
        let again = || Ok(trail::at(Path::new("/srv/dead")).is_err());
        let hour = Duration::from_secs(3600);
        let error = VOLUMES.within(hour, "look", again, drop).await;
        assert_eq!(error.expect_err("hangs").kind(), Kind::DeadlineExceeded);
        let other = || Ok(trail::at(Path::new("/srv/alive")).is_ok());
        assert!(
            VOLUMES
                .within(hour, "look", other, drop)
                .await
                .expect("done")
        );
        go_on.send(()).expect("it waits");
        let was_wanted = undone.recv_timeout(Duration::from_secs(5));
        assert_eq!(was_wanted, Ok(false));
        let again = || Ok(trail::at(Path::new("/srv/dead")).is_ok());
        assert!(
            VOLUMES
                .within(hour, "look", again, drop)
                .await
                .expect("done")
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_done_in_time_is_handed_over() {
        let done = VOLUMES
            .within(Duration::from_secs(5), "count", || Ok(7), |_| {})
            .await;
        assert_eq!(done.expect("done"), 7);
        let wrong = || Err::<(), _>(Error::not_found("gone"));
        let failed = VOLUMES
            .within(Duration::from_secs(5), "look", wrong, |()| {})
            .await;
        assert_eq!(failed.expect_err("gone").kind(), Kind::NotFound);
    }
}
