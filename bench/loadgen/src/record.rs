//! What happened: counts, latencies and a series of seconds, for the measured window only. Mismatches count always.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::{CreationError, Histogram};
use serde::Serialize;

use crate::calls::Mismatch;
use crate::status::Failure;

/// The longest latency that is told apart: longer ones count as this.
const LONGEST: u64 = 3_600_000_000_000; // nanoseconds
const EXAMPLES: usize = 5;

/// Which instant of a request decides whether it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountBy {
    /// A closed loop: what was answered in the window is the server's rate.
    Completion,
    /// An open loop: every request that was due in the window is accounted for, however late it ends.
    Due,
}

/// Records the outcomes of one run.
pub struct Recorder {
    start: Instant,
    end: Instant,
    count_by: CountBy,
    deadline: Duration,
    succeeded: Histogram<u64>,
    failed: Histogram<u64>,
    lag: Histogram<u64>,
    ok: u64,
    ok_in_time: u64,
    by_status: BTreeMap<&'static str, u64>,
    by_reason: BTreeMap<String, u64>,
    mismatches: u64,
    examples: Vec<String>,
    dropped: u64,
    seconds: Vec<Second>,
}

struct Second {
    errors: u64,
    latencies: Histogram<u64>,
}

/// Quantiles in milliseconds.
#[derive(Debug, Serialize, PartialEq)]
pub struct Quantiles {
    count: u64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

/// One second of the series.
#[derive(Debug, Serialize, PartialEq)]
pub struct SecondReport {
    ok: u64,
    errors: u64,
    p50_ms: f64,
    p99_ms: f64,
}

/// The outcome of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Requests or items counted.
    pub requests: u64,
    /// Those that succeeded, with right values.
    pub ok: u64,
    /// Those that succeeded within their deadline.
    pub ok_in_time: u64,
    /// Answers with wrong values, in the whole run.
    pub mismatches: u64,
    /// The first few of them.
    pub mismatch_examples: Vec<String>,
    /// Requests that were due but not sent, because too many were in flight: the run says nothing.
    pub dropped: u64,
    by_status: BTreeMap<&'static str, u64>,
    /// `STATUS/REASON`; small letters where the generator itself saw the end.
    by_reason: BTreeMap<String, u64>,
    /// Length of the measured window, seconds.
    pub elapsed_s: f64,
    /// Successes a second.
    pub rps: f64,
    /// Successes within the deadline, a second.
    pub goodput_rps: f64,
    latency_ms: Quantiles,
    failure_latency_ms: Quantiles,
    /// How late requests were sent; part of the latency of an open loop.
    send_lag_ms: Quantiles,
    series: Vec<SecondReport>,
}

impl Recorder {
    /// Counts requests between `start` and `end`.
    ///
    /// # Errors
    /// The histogram library refuses its bounds, which are constants.
    pub fn new(start: Instant, end: Instant, count_by: CountBy, deadline: Duration) -> Result<Self, CreationError> {
        let window = end - start;
        let length = window.as_secs() + u64::from(window.subsec_nanos() > 0);
        let seconds =
            (0..length).map(|_| Ok(Second { errors: 0, latencies: histogram(2)? })).collect::<Result<_, _>>()?;
        Ok(Self {
            start,
            end,
            count_by,
            deadline,
            succeeded: histogram(3)?,
            failed: histogram(3)?,
            lag: histogram(3)?,
            ok: 0,
            ok_in_time: 0,
            by_status: BTreeMap::new(),
            by_reason: BTreeMap::new(),
            mismatches: 0,
            examples: Vec::new(),
            dropped: 0,
            seconds,
        })
    }

    fn second(&mut self, due: Instant, done: Instant) -> Option<&mut Second> {
        let instant = match self.count_by {
            CountBy::Completion => done,
            CountBy::Due => due,
        };
        if instant < self.start || instant >= self.end {
            return None;
        }
        self.seconds.get_mut(usize::try_from((instant - self.start).as_secs()).ok()?)
    }

    /// A right answer. `due` is when the request was meant to be sent; in a closed loop that is when it was.
    pub fn ok(&mut self, due: Instant, done: Instant) {
        let latency = done - due;
        if let Some(second) = self.second(due, done) {
            second.latencies.saturating_record(nanoseconds(latency));
            self.ok += 1;
            self.ok_in_time += u64::from(latency <= self.deadline);
            self.succeeded.saturating_record(nanoseconds(latency));
        }
    }

    /// A request that failed.
    pub fn failure(&mut self, due: Instant, done: Instant, failure: &Failure) {
        let Some(second) = self.second(due, done) else { return };
        second.errors += 1;
        self.failed.saturating_record(nanoseconds(done - due));
        *self.by_status.entry(failure.status).or_default() += 1;
        let key = format!("{}/{}", failure.status, failure.reason);
        *self.by_reason.entry(key).or_default() += 1;
    }

    /// An answer with status OK and wrong values. It is no success.
    pub fn mismatch(&mut self, due: Instant, done: Instant, mismatch: Mismatch) {
        self.mismatches += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(mismatch.0);
        }
        self.failure(due, done, &Failure::local("OK", "wrong values"));
    }

    /// A request that was sent `lag` after it was due.
    pub fn sent(&mut self, due: Instant, lag: Duration) {
        if due >= self.start && due < self.end {
            self.lag.saturating_record(nanoseconds(lag));
        }
    }

    /// A request that was due and was not sent.
    pub const fn dropped(&mut self) {
        self.dropped += 1;
    }

    /// How many successes took how long: the highest value of each bucket in nanoseconds, and its count, ascending; so
    /// that those of many runs can be added up.
    #[must_use]
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        let recorded = self.succeeded.iter_recorded();
        recorded.map(|bucket| (bucket.value_iterated_to(), bucket.count_since_last_iteration())).collect()
    }

    /// Everything, for people and programs.
    #[must_use]
    pub fn report(&self) -> Report {
        let elapsed = (self.end - self.start).as_secs_f64();
        let errors: u64 = self.by_status.values().sum();
        let mut by_status = self.by_status.clone();
        if self.ok > 0 {
            *by_status.entry("OK").or_default() += self.ok;
        }
        Report {
            requests: self.ok + errors,
            ok: self.ok,
            ok_in_time: self.ok_in_time,
            mismatches: self.mismatches,
            mismatch_examples: self.examples.clone(),
            dropped: self.dropped,
            by_status,
            by_reason: self.by_reason.clone(),
            elapsed_s: elapsed,
            rps: self.ok as f64 / elapsed,
            goodput_rps: self.ok_in_time as f64 / elapsed,
            latency_ms: quantiles(&self.succeeded),
            failure_latency_ms: quantiles(&self.failed),
            send_lag_ms: quantiles(&self.lag),
            series: self
                .seconds
                .iter()
                .map(|second| SecondReport {
                    ok: second.latencies.len(),
                    errors: second.errors,
                    p50_ms: milliseconds(second.latencies.value_at_quantile(0.5)),
                    p99_ms: milliseconds(second.latencies.value_at_quantile(0.99)),
                })
                .collect(),
        }
    }
}

fn histogram(digits: u8) -> Result<Histogram<u64>, CreationError> {
    Histogram::new_with_bounds(1000, LONGEST, digits)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(LONGEST)
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn quantiles(histogram: &Histogram<u64>) -> Quantiles {
    let at = |quantile| milliseconds(histogram.value_at_quantile(quantile));
    Quantiles {
        count: histogram.len(),
        mean: histogram.mean() / 1e6,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p99_9: at(0.999),
        max: milliseconds(histogram.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn recorder(count_by: CountBy) -> (Recorder, Instant) {
        let start = Instant::now();
        (Recorder::new(start, start + 2000 * MS, count_by, 100 * MS).unwrap(), start)
    }

    #[test]
    fn a_stall_is_charged_to_every_request_that_was_due_in_it() {
        // Due every 10 ms; the server answers nothing for the first second, then all at once.
        let (mut recorder, start) = recorder(CountBy::Due);
        for index in 0..100 {
            recorder.ok(start + 10 * index * MS, start + 1000 * MS);
        }
        let report = recorder.report();
        assert_eq!(report.ok, 100);
        // Latencies are 1000, 990, ... 10 ms. Timed from the late sending, nearly all would be about zero.
        assert!((report.latency_ms.p50 - 500.0).abs() < 11.0, "{}", report.latency_ms.p50);
        assert!((report.latency_ms.max - 1000.0).abs() < 2.0, "{}", report.latency_ms.max);
        assert_eq!(report.ok_in_time, 10);
    }

    #[test]
    fn an_open_loop_counts_what_was_due_in_the_window_however_late_it_ends() {
        let (mut recorder, start) = recorder(CountBy::Due);
        recorder.ok(start.checked_sub(MS).unwrap(), start + MS);
        recorder.ok(start + 1999 * MS, start + 9000 * MS);
        recorder.ok(start + 2000 * MS, start + 2001 * MS);
        assert_eq!(recorder.report().ok, 1);
    }

    #[test]
    fn buckets_hold_every_success_once_to_three_digits() {
        let (mut recorder, start) = recorder(CountBy::Due);
        for latency in [MS, MS, 20 * MS] {
            recorder.ok(start, start + latency);
        }
        let buckets = recorder.buckets();
        assert_eq!(buckets.iter().map(|bucket| bucket.1).collect::<Vec<_>>(), [2, 1]);
        for (bucket, expected) in buckets.iter().zip([1e6, 20e6]) {
            assert!((bucket.0 as f64 / expected - 1.0).abs() < 0.001, "{}", bucket.0);
        }
    }

    #[test]
    fn a_closed_loop_counts_what_was_answered_in_the_window() {
        let (mut recorder, start) = recorder(CountBy::Completion);
        recorder.ok(start.checked_sub(MS).unwrap(), start + MS);
        recorder.ok(start + 1999 * MS, start + 9000 * MS);
        recorder.ok(start + 1500 * MS, start + 1501 * MS);
        let report = recorder.report();
        assert_eq!((report.ok, report.rps), (2, 1.0));
        assert_eq!(report.series.iter().map(|second| second.ok).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn wrong_values_count_in_the_warm_up_too_and_are_no_success() {
        let (mut recorder, start) = recorder(CountBy::Completion);
        let before = start.checked_sub(5 * MS).unwrap();
        recorder.mismatch(before, before + MS, Mismatch("a".to_owned()));
        recorder.mismatch(start, start + MS, Mismatch("b".to_owned()));
        let report = recorder.report();
        assert_eq!((report.mismatches, report.ok, report.requests), (2, 0, 1));
        assert_eq!(report.mismatch_examples, ["a", "b"]);
        assert_eq!(report.by_reason, BTreeMap::from([("OK/wrong values".to_owned(), 1)]));
    }

    #[test]
    fn failures_are_counted_by_status_and_reason_and_kept_out_of_latency() {
        let (mut recorder, start) = recorder(CountBy::Completion);
        let full = Failure { status: "RESOURCE_EXHAUSTED", reason: "QUEUE_FULL".to_owned() };
        recorder.failure(start, start + MS, &full);
        recorder.failure(start, start + MS, &full);
        recorder.ok(start, start + 3 * MS);
        let report = recorder.report();
        assert_eq!(report.by_status, BTreeMap::from([("OK", 1), ("RESOURCE_EXHAUSTED", 2)]));
        assert_eq!(report.by_reason, BTreeMap::from([("RESOURCE_EXHAUSTED/QUEUE_FULL".to_owned(), 2)]));
        assert_eq!((report.latency_ms.count, report.failure_latency_ms.count, report.requests), (1, 2, 3));
    }
}
