//! Gives memory back: a create reads specs, policies and profiles, a scrape builds a text, and an idle shim keeps none of
//! that.

use std::time::Duration;

/// By then the request is answered and what it was made of is gone.
const SOON: Duration = Duration::from_secs(1);

/// Returns what is free of the heap to the kernel a little later.
pub(crate) fn give_back_soon() {
    tokio::spawn(async {
        tokio::time::sleep(SOON).await;
        give_back();
    });
}

/// Returns what is free of the heap to the kernel. The C library keeps it otherwise, for as long as the shim lives.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
