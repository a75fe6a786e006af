//! How long the tests wait. A slow machine (an emulated one, for example) gets `BULKHEAD_TEST_SLOWNESS` times as long.

use std::sync::LazyLock;
use std::time::Duration;

static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
    let text = std::env::var("BULKHEAD_TEST_SLOWNESS").unwrap_or_default();
    text.parse().unwrap_or(1).clamp(1, 100)
});

/// The wait that is meant by `usual`, on this machine.
#[must_use]
pub fn patience(usual: Duration) -> Duration {
    usual * *SLOWNESS
}
