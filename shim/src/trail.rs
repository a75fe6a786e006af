//! What a thread that works aside touches, and whether anybody waits for it still.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    static OWN: RefCell<Option<Arc<Trail>>> = const { RefCell::new(None) };
}

/// What is known of a piece of work while it is done.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    path: Mutex<PathBuf>,
    is_given_up: AtomicBool,
}

impl Trail {
    /// Makes it that of this thread.
    pub(crate) fn follow(self: Arc<Self>) {
        OWN.set(Some(self));
    }

    /// Gives the work up. Returns the path that it touched last.
    pub(crate) fn give_up(&self) -> PathBuf {
        self.is_given_up.store(true, Ordering::Relaxed);
        let path = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        path.clone()
    }
}

/// Notes the path that is about to be touched: an error at the deadline names it.
pub(crate) fn at(path: &Path) {
    OWN.with_borrow(|trail| {
        if let Some(trail) = trail {
            path.clone_into(&mut trail.path.lock().unwrap_or_else(PoisonError::into_inner));
        }
    });
}

/// Whether somebody still waits for the work of this thread. What is touched by its name after that may be a later one's.
pub(crate) fn is_wanted() -> bool {
    OWN.with_borrow(|trail| {
        let trail = trail.as_ref();
        trail.is_none_or(|trail| !trail.is_given_up.load(Ordering::Relaxed))
    })
}
