//! How much a stream may carry in a second.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may come at once after a silence: the bytes of so much time.
const BURST: Duration = Duration::from_secs(1);

/// What a piece costs at the least, in bytes: a program that writes byte by byte would have the shim wake for each of them. While a
/// read waits its turn, what is written gathers in the pipe.
const PIECE_COST: usize = 4096;

/// A rate that several streams share.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// Bytes a second.
    rate: NonZeroU64,
    /// When all that was taken so far is paid for at that rate.
    paid: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(rate: NonZeroU64) -> Self {
        let paid = Mutex::new(Instant::now());
        Self { rate, paid }
    }

    pub(crate) fn shared(rate: NonZeroU64) -> Arc<Self> {
        Arc::new(Self::new(rate))
    }

    /// Returns when a piece that was read may pass.
    pub(crate) async fn take_piece(&self, bytes: usize) {
        self.take(bytes.max(PIECE_COST)).await;
    }

    /// Returns when so many bytes may pass.
    pub(crate) async fn take(&self, bytes: usize) {
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / self.rate;
        let now = Instant::now();
        let due = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            *paid = (*paid).max(earliest) + Duration::from_nanos(nanos);
            *paid
        };
        if due > now {
            tokio::time::sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn time_of(throttle: &Throttle, pieces: &[usize]) -> Duration {
        let began = Instant::now();
        for piece in pieces {
            throttle.take(*piece).await;
        }
        began.elapsed()
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_burst_passes_and_the_rest_takes_its_time() {
        let throttle = Throttle::new(NonZeroU64::new(1000).expect("a rate"));
        tokio::time::sleep(Duration::from_secs(60)).await;
        // However long the silence was, one second's worth is free.
        assert_eq!(time_of(&throttle, &[600, 400]).await, Duration::ZERO);
        let slow = time_of(&throttle, &[500; 6]).await;
        assert!(slow >= Duration::from_millis(2990), "{slow:?}");
        assert!(slow <= Duration::from_millis(3010), "{slow:?}");
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn streams_share_the_rate() {
        let throttle = Throttle::new(NonZeroU64::new(1000).expect("a rate"));
        let began = Instant::now();
        tokio::join!(throttle.take(2000), throttle.take(2000));
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(3990), "{took:?}");
    }
}
