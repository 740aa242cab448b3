//! When requests of an open loop are due.
//!
//! A schedule is fixed before the first answer comes and never looks at answers: a server that stalls does not slow it
//! down. Latency counts from these instants, not from when the generator got round to sending, so a stall is charged to
//! every request that was due in it (no coordinated omission).

use std::time::Duration;

/// How gaps between requests are spread around their mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// Independent callers: exponential gaps.
    Poisson,
    /// Equal gaps.
    Uniform,
}

/// The due times of requests, as offsets from the start, ascending and without end.
#[derive(Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    /// Seconds.
    gap: f64,
    /// Seconds; summed in double precision, so that no drift builds up in hours.
    next: f64,
    count: u64,
    random: fastrand::Rng,
}

impl Schedule {
    /// A schedule of `rate` requests a second. The same seed gives the same instants.
    #[must_use]
    pub fn new(arrivals: Arrivals, rate: f64, seed: u64) -> Self {
        Self { arrivals, gap: 1.0 / rate, next: 0.0, count: 0, random: fastrand::Rng::with_seed(seed) }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let due = self.next;
        self.count += 1;
        match self.arrivals {
            Arrivals::Poisson => self.next -= (1.0 - self.random.f64()).ln() * self.gap,
            Arrivals::Uniform => self.next = self.count as f64 * self.gap,
        }
        Some(Duration::from_secs_f64(due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_gaps_are_exact_and_do_not_drift() {
        let due: Vec<_> = Schedule::new(Arrivals::Uniform, 1000.0, 1).take(1_000_001).collect();
        assert_eq!(due[0], Duration::ZERO);
        assert_eq!(due[1], Duration::from_millis(1));
        assert_eq!(due[1_000_000], Duration::from_secs(1000));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_independent_callers() {
        let due: Vec<f64> =
            Schedule::new(Arrivals::Poisson, 500.0, 7).take(100_001).map(|due| due.as_secs_f64()).collect();
        let gaps: Vec<f64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / 100_000.0;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 100_000.0;
        assert!((mean * 500.0 - 1.0).abs() < 0.02, "mean gap {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "an exponential gap deviates by its mean");
    }

    #[test]
    fn a_seed_gives_the_same_instants_and_another_seed_others() {
        let instants = |seed| Schedule::new(Arrivals::Poisson, 10.0, seed).take(5).collect::<Vec<_>>();
        assert_eq!(instants(3), instants(3));
        assert_ne!(instants(3), instants(4));
    }
}
