//! Work on paths that a pod, a client or containerd chose, done aside from the one thread that serves the pod.
//!
//! A dead filesystem (NFS, FUSE) holds whoever touches it for as long as it is dead, and no call on it can be interrupted. So
//! each such piece of work has a thread of its own and is waited for until a deadline. When it comes back later it finds that
//! nobody waits, and undoes what it has done. How many may hang at once is bounded.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::error::{Code, Error, Result};
use crate::trail::Trail;

/// How much work may hang at once in one shim.
const WORK_MAX: usize = 16;
/// How much of cleaning up may: it has places of its own, so that creates that hang leave it room.
const CLEANING_MAX: usize = 32;
/// How long what is cleaned up is waited for: containerd gives a whole `delete` action 5 s.
pub(crate) const CLEANING_LIMIT: Duration = Duration::from_secs(3);

static WORK: Semaphore = Semaphore::const_new(WORK_MAX);
static CLEANING: Semaphore = Semaphore::const_new(CLEANING_MAX);

/// Does `work`. Where it is done too late for anybody to wait for it, `undo` gets what it has made.
///
/// # Errors
/// What the work answers; `DeadlineExceeded` with the path that hangs.
pub(crate) async fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    undo: impl FnOnce(T) + Send + 'static,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let Ok(Ok(place)) = timeout_at(deadline, WORK.acquire()).await else {
        return Err(Error::new(
            Code::DeadlineExceeded,
            format!(
                "{what}: not begun within {limit:?}: {WORK_MAX} earlier looks at files of this pod hang"
            ),
        ));
    };
    run(place, deadline, what, work, undo)
        .await
        .unwrap_or_else(|path| {
            Err(Error::new(
                Code::DeadlineExceeded,
                format!(
                    "{what}: {} does not answer within {limit:?}; is its filesystem dead?",
                    path.display()
                ),
            ))
        })
}

/// Cleans up at `path`. What takes longer than `limit` goes on; where it fails, or too much hangs already, that is logged.
pub(crate) async fn clean(
    path: &Path,
    limit: Duration,
    work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) {
    let deadline = Instant::now() + limit;
    let work = move || work().map_err(|error| Error::internal(error.to_string()));
    let done = match CLEANING.try_acquire() {
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

/// The path that hangs is the error.
async fn run<T: Send + 'static>(
    place: SemaphorePermit<'static>,
    deadline: Instant,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    undo: impl FnOnce(T) + Send + 'static,
) -> std::result::Result<Result<T>, PathBuf> {
    let trail = Arc::<Trail>::default();
    let (sender, receiver) = oneshot::channel();
    let own = Arc::clone(&trail);
    let thread = std::thread::Builder::new().spawn(move || {
        let _place = place;
        own.follow();
        if let Err(Ok(made)) = sender.send(work()) {
            undo(made);
        }
    });
    if let Err(error) = thread {
        return Ok(Err(Error::io(format!("{what}: start a thread"), &error)));
    }
    match timeout_at(deadline, receiver).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Ok(Err(Error::internal(format!("{what}: its thread died")))),
        Err(_) => Err(trail.give_up()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail;
    use std::sync::mpsc;

    #[tokio::test(flavor = "current_thread")]
    async fn what_hangs_is_named_and_undone_when_it_comes_back() {
        let (go_on, hang) = mpsc::channel::<()>();
        let (told, undone) = mpsc::channel();
        let work = move || {
            trail::at(Path::new("/srv/dead"));
            let _ = hang.recv();
            Ok(trail::is_wanted())
        };
        let undo = move |was_wanted| told.send(was_wanted).expect("told");
        let limit = Duration::from_millis(50);
        let error = within(limit, "look", work, undo).await.expect_err("late");
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert!(error.to_string().contains("look: /srv/dead "), "{error}");
        assert!(undone.try_recv().is_err(), "it still hangs");
        go_on.send(()).expect("it waits");
        let was_wanted = undone.recv_timeout(Duration::from_secs(5));
        assert_eq!(was_wanted, Ok(false));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_done_in_time_is_handed_over() {
        let done = within(Duration::from_secs(5), "count", || Ok(7), |_| {}).await;
        assert_eq!(done.expect("done"), 7);
        let wrong = || Err::<(), _>(Error::not_found("gone"));
        let failed = within(Duration::from_secs(5), "look", wrong, |()| {}).await;
        assert_eq!(failed.expect_err("gone").code(), Code::NotFound);
    }
}
