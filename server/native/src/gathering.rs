//! A rest of the I/O thread while nothing that arrives could run anyway: one wake-up then serves what would take many.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::sleep;

use crate::clock::{Clock, duration};

/// The longest rest, in seconds.
const REST: f64 = 0.005;

/// When the I/O thread rests before it waits for sockets. The taker says until when, the I/O thread does it.
#[derive(Debug)]
pub struct Gathering {
    clock: Clock,
    /// The taker's word: `time.monotonic()` seconds, as bits.
    until: AtomicU64,
    /// When the rest began behind which is read what is read now; infinity without one. As bits. I/O thread only.
    since: AtomicU64,
}

impl Gathering {
    /// None, until `set`.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            until: AtomicU64::new(0),
            since: AtomicU64::new(f64::INFINITY.to_bits()),
        }
    }

    /// Allows rests until then, in `time.monotonic()` seconds.
    pub fn set(&self, until: f64) {
        self.until.store(until.to_bits(), Relaxed);
    }

    /// Called by the I/O thread when it has nothing more to do.
    pub fn rest(&self) {
        let now = self.clock.now();
        let left = f64::from_bits(self.until.load(Relaxed)) - now;
        let rests = left > 0.0;
        self.since
            .store(if rests { now } else { f64::INFINITY }.to_bits(), Relaxed);
        if rests {
            sleep(duration(left.min(REST)));
        }
    }

    /// The earliest instant at which what is read now may have come, in `time.monotonic()` seconds.
    ///
    /// A caller's time runs while the thread rests.
    #[must_use]
    pub fn arrival(&self) -> f64 {
        let now = self.clock.now();
        f64::from_bits(self.since.load(Relaxed)).clamp(now - REST, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn rests_while_it_may_and_knows_when_it_began() {
        let clock = Clock::new(100.0);
        let gathering = Gathering::new(clock);
        gathering.set(clock.now() + 60.0);
        let (before, begin) = (clock.now(), Instant::now());
        gathering.rest();
        assert!(begin.elapsed() >= duration(REST));
        assert!(begin.elapsed() < duration(30.0));
        let arrival = gathering.arrival();
        assert!(arrival >= before);
        assert!(arrival <= clock.now());
    }

    #[test]
    fn a_rest_ends_at_the_instant_that_was_set() {
        let clock = Clock::new(100.0);
        let gathering = Gathering::new(clock);
        gathering.set(clock.now() - 1.0);
        gathering.rest();
        let before = clock.now();
        assert!(gathering.arrival() >= before, "nothing can have come before it is read");
    }

    #[test]
    fn what_comes_long_after_a_rest_loses_no_more_than_one() {
        let clock = Clock::new(100.0);
        let gathering = Gathering::new(clock);
        gathering.set(clock.now() + 60.0);
        gathering.rest();
        sleep(duration(20.0 * REST));
        assert!(gathering.arrival() >= clock.now() - 2.0 * REST);
    }
}
