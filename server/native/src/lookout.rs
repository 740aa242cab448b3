//! A short look-out before a sleep: waking up a core that sleeps takes longer than the next event takes to come.
//!
//! Only while events come that fast: the wait before must have been short. So a busy server looks out between its turns,
//! and an idle one sleeps. Whoever shares the core goes first: each look gives way.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// Of one taker.
#[derive(Debug)]
pub struct Lookout {
    /// How long it may last; zero: there is none.
    most: Duration,
    /// Whether there is something to take.
    seen: AtomicBool,
    /// Whether the last wait was shorter than `most`. Taker only.
    quick: AtomicBool,
}

impl Lookout {
    /// For at most so long.
    #[must_use]
    pub fn new(most: Duration) -> Self {
        Self {
            most,
            seen: AtomicBool::new(false),
            quick: AtomicBool::new(false),
        }
    }

    /// Whether it is worth it now.
    #[must_use]
    pub fn pays(&self) -> bool {
        self.quick.load(Relaxed)
    }

    /// Something has come, or (by the taker) was taken. It is a hint: what it is about has a lock of its own.
    pub fn set(&self, seen: bool) {
        self.seen.store(seen, Relaxed);
    }

    /// Looks until something has come, or for as long as it may, but not beyond `end`.
    pub fn look(&self, end: Instant) {
        let end = end.min(Instant::now() + self.most);
        while !self.seen.load(Relaxed) && Instant::now() < end {
            yield_now();
        }
    }

    /// A wait is over that took so long; `came`: by an event.
    pub fn learn(&self, waited: Duration, came: bool) {
        self.quick.store(came && waited < self.most, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_millis(20);

    #[test]
    fn it_pays_after_a_short_wait_that_an_event_has_ended() {
        let lookout = Lookout::new(MOST);
        assert!(!lookout.pays());
        for (waited, came, pays) in [(1, true, true), (1, false, false), (21, true, false)] {
            lookout.learn(Duration::from_millis(waited), came);
            assert_eq!(lookout.pays(), pays, "{waited} {came}");
        }
    }

    #[test]
    fn without_time_it_never_pays() {
        let lookout = Lookout::new(Duration::ZERO);
        lookout.learn(Duration::ZERO, true);
        assert!(!lookout.pays());
    }

    #[test]
    fn it_lasts_until_something_has_come() {
        let lookout = Lookout::new(Duration::from_secs(60));
        lookout.set(true);
        lookout.look(Instant::now() + Duration::from_secs(60));
        lookout.set(false);
        std::thread::scope(|scope| {
            scope.spawn(|| lookout.set(true));
            lookout.look(Instant::now() + Duration::from_secs(60));
        });
    }

    #[test]
    fn it_lasts_no_longer_than_it_may() {
        let lookout = Lookout::new(MOST);
        let begin = Instant::now();
        lookout.look(begin + Duration::from_secs(60));
        assert!(begin.elapsed() >= MOST);
        let begin = Instant::now();
        lookout.look(begin);
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
