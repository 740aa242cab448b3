//! Python's `time.monotonic()` on the Rust side.

use std::time::{Duration, Instant};

/// Turns instants into seconds of `time.monotonic()`. Both read `CLOCK_MONOTONIC`, so one reading of each suffices.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    seconds: f64,
}

impl Clock {
    /// `seconds` is what `time.monotonic()` has just returned.
    #[must_use]
    pub fn new(seconds: f64) -> Self {
        Self {
            origin: Instant::now(),
            seconds,
        }
    }

    /// Seconds of `time.monotonic()`, now.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.seconds + self.origin.elapsed().as_secs_f64()
    }

    /// The instant of a time in seconds; for sleeping until then.
    #[must_use]
    pub fn instant(&self, seconds: f64) -> Instant {
        self.origin + duration(seconds - self.seconds)
    }
}

/// Seconds as a duration: negative ones and NaN are zero, endless ones a year.
#[must_use]
pub fn duration(seconds: f64) -> Duration {
    const YEAR: f64 = 365.0 * 86_400.0;
    if seconds > 0.0 {
        Duration::from_secs_f64(seconds.min(YEAR))
    } else {
        Duration::ZERO
    }
}
