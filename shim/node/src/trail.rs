//! What a thread that works aside touches, and whether anybody waits for it still.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

thread_local! {
    static OWN: RefCell<Option<Arc<Trail>>> = const { RefCell::new(None) };
}

/// The work that was given up and still hangs.
static HANGING: Mutex<Vec<Arc<Trail>>> = Mutex::new(Vec::new());

/// What is known of a piece of work while it is done.
#[derive(Debug, Default)]
pub struct Trail(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    path: PathBuf,
    is_given_up: bool,
    is_done: bool,
    /// A path that was not touched, since earlier work hangs there.
    refused: Option<PathBuf>,
}

impl Trail {
    /// Makes it that of this thread.
    pub fn follow(self: Arc<Self>) {
        OWN.set(Some(self));
    }

    /// Gives the work up. Returns the path that it touched last.
    pub fn give_up(self: Arc<Self>) -> PathBuf {
        let mut hanging = hanging();
        let mut state = self.state();
        state.is_given_up = true;
        let (path, is_done) = (state.path.clone(), state.is_done);
        drop(state);
        if !is_done {
            hanging.push(self);
        }
        path
    }

    /// The work has come to its end. Returns the path that it did not touch, where there is one: it may have taken that for
    /// one that is not there.
    pub fn end(self: &Arc<Self>) -> Option<PathBuf> {
        let mut hanging = hanging();
        hanging.retain(|other| !Arc::ptr_eq(other, self));
        let mut state = self.state();
        state.is_done = true;
        state.refused.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hanging() -> MutexGuard<'static, Vec<Arc<Trail>>> {
    HANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes the path that is about to be touched: an error at the deadline names it.
///
/// # Errors
/// `TimedOut` where earlier work hangs at the same path: more of it would hang as well, and a client that tries again and
/// again would take every place there is.
pub fn at(path: &Path) -> io::Result<()> {
    OWN.with_borrow(|own| {
        let Some(own) = own else { return Ok(()) };
        let hangs = |other: &Arc<Trail>| !Arc::ptr_eq(other, own) && other.state().path == path;
        let is_refused = hanging().iter().any(hangs);
        let mut state = own.state();
        if is_refused {
            state.refused = Some(path.to_owned());
            return Err(io::ErrorKind::TimedOut.into());
        }
        path.clone_into(&mut state.path);
        Ok(())
    })
}

/// Whether somebody still waits for the work of this thread. What is touched by its name after that may be a later one's.
pub fn is_wanted() -> bool {
    OWN.with_borrow(|own| own.as_ref().is_none_or(|own| !own.state().is_given_up))
}
