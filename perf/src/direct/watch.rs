//! A look at a running load from another thread: the latencies of one stretch of time after the other, while the same
//! users stay connected.

use crate::net::Clock;
use crate::report::{histogram, micros};
use hdrhistogram::Histogram;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shared by the run and whoever watches it.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The run's too.
    pub(crate) clock: Clock,
    stretch: Mutex<Stretch>,
    ended: AtomicBool,
}

/// The messages that were to be sent within some time.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    from_ns: u64,
    until_ns: u64,
    /// Sent so far.
    pub(crate) offered: u64,
    /// Of those that arrived, microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Stretch {
    fn contains(&self, at_ns: u64) -> bool {
        (self.from_ns..self.until_ns).contains(&at_ns)
    }
}

impl Watch {
    pub(crate) fn new() -> Self {
        let stretch = Stretch { from_ns: 0, until_ns: 0, offered: 0, latency: histogram() };
        Self { clock: Clock::start(), stretch: Mutex::new(stretch), ended: AtomicBool::new(false) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stretch> {
        self.stretch.lock().expect("nothing panics under this lock")
    }

    /// Forgets the last stretch and begins one of this length. When it ends.
    pub(crate) fn begin(&self, length_ns: u64) -> u64 {
        let from_ns = self.clock.now_ns();
        let until_ns = from_ns + length_ns;
        *self.lock() = Stretch { from_ns, until_ns, offered: 0, latency: histogram() };
        until_ns
    }

    /// What is known of the stretch by now.
    pub(crate) fn look(&self) -> Stretch {
        self.lock().clone()
    }

    /// The run is to send nothing more, and to end.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// A message was sent that was to be sent then.
    pub(crate) fn sent(&self, scheduled_ns: u64) {
        let mut stretch = self.lock();
        stretch.offered += u64::from(stretch.contains(scheduled_ns));
    }

    /// It arrived.
    pub(crate) fn delivered(&self, scheduled_ns: u64, now_ns: u64) {
        let mut stretch = self.lock();
        if stretch.contains(scheduled_ns) {
            stretch.latency.saturating_record(micros(scheduled_ns, now_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_takes_a_message_by_its_scheduled_time_however_late_it_arrives() {
        let watch = Watch::new();
        let until_ns = watch.begin(1_000_000_000);
        let from_ns = until_ns - 1_000_000_000;
        for at_ns in [from_ns - 1, from_ns, until_ns - 1, until_ns] {
            watch.sent(at_ns);
        }
        watch.delivered(from_ns - 1, until_ns);
        watch.delivered(until_ns - 1, until_ns + 4_000_000_000);
        let seen = watch.look();
        assert_eq!((seen.offered, seen.latency.len()), (2, 1));
        assert!(seen.latency.max() >= 4_000_000);
        watch.begin(1);
        assert_eq!((watch.look().offered, watch.look().latency.len()), (0, 0));
    }
}
