//! CPUs that have something else to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The CPUs busy for as long as this is kept.
#[derive(Debug)]
pub struct Busy(Arc<AtomicBool>);

impl Busy {
    /// Keeps every CPU busy from now on.
    #[must_use]
    #[allow(
        clippy::new_without_default,
        reason = "what it does is no default of anything"
    )]
    pub fn new() -> Self {
        let is_over = Arc::<AtomicBool>::default();
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(is_over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
