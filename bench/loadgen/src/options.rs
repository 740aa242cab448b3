//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::Serialize;

use crate::schedule::Arrivals;

/// Which RPC is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `Predict`.
    Unary,
    /// `StreamPredict`.
    Stream,
    /// `Submit`; in other respects like `unary`.
    Submit,
}

/// Sends inference requests at a server, checks every answer, and writes what it saw to standard output as JSON.
///
/// Exit status: 0 all answers were right, 1 it could not run, 3 an answer was wrong.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Options {
    /// Where the server listens: `host:port`.
    #[arg(long)]
    pub target: String,
    /// Prepared requests and expected answers, as `bench/models.py` writes them.
    #[arg(long)]
    pub calls: PathBuf,
    /// Which RPC is called.
    #[arg(long, value_enum, default_value = "unary")]
    pub mode: Mode,
    /// Closed loop of `Predict`: requests in flight, all connections together.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// Open loop: requests (or items of streams) a second, whatever the server does. Without it the loop is closed.
    #[arg(long, value_parser = positive)]
    pub rate: Option<f64>,
    /// Open loop: how gaps between requests are spread.
    #[arg(long, value_enum, default_value = "poisson")]
    pub arrivals: Arrivals,
    /// Open loop: requests that may be in flight before further ones are dropped, which spoils the run.
    #[arg(long, default_value_t = 100_000)]
    pub max_in_flight: usize,
    /// HTTP/2 connections.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    /// Streams, for `--mode stream`; spread over the connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub streams: u32,
    /// Items in each stream message.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub items: u32,
    /// Closed loop of streams: items in flight on each stream.
    #[arg(long, default_value_t = 128)]
    pub window: u32,
    /// Deadline of each request or item. An open loop counts it from the due time.
    #[arg(long, default_value = "10000", value_parser = milliseconds)]
    pub deadline_ms: Duration,
    /// Seconds measured.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub duration: Duration,
    /// Seconds before that which are not counted. Their answers are checked all the same.
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub warm_up: Duration,
    /// How far floating numbers may be off, relative to one plus their magnitude.
    #[arg(long, default_value_t = 1e-4)]
    pub tolerance: f64,
    /// Write how many requests took how long, too, so that the latencies of many runs can be added up.
    #[arg(long)]
    pub buckets: bool,
    /// Seed of the arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Options {
    /// What the types of single options cannot say.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn check(&self) -> Result<(), String> {
        if self.mode == Mode::Stream && self.rate.is_none() && self.window < self.items {
            return Err(format!("--window {} is less than the {} items of a message", self.window, self.items));
        }
        Ok(())
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("not a positive number".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number).ok())
        .ok_or_else(|| "not a number of seconds".to_owned())
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let duration = seconds(text).map_err(|_| "not a number of milliseconds".to_owned())? / 1000;
    if duration.is_zero() { Err("not a positive number of milliseconds".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Result<Options, clap::Error> {
        let basics = ["forebay-loadgen", "--target", "127.0.0.1:1", "--calls", "x"];
        Options::try_parse_from(basics.iter().chain(more))
    }

    #[test]
    fn nonsense_is_refused() {
        for nonsense in
            [["--rate", "0"], ["--rate", "nan"], ["--deadline-ms", "0"], ["--in-flight", "0"], ["--duration", "-1"]]
        {
            assert!(parse(&nonsense).is_err(), "{nonsense:?}");
        }
    }

    #[test]
    fn a_window_must_hold_a_message() {
        assert!(parse(&["--mode", "stream", "--items", "32", "--window", "31"]).unwrap().check().is_err());
        assert!(parse(&["--mode", "stream", "--items", "32", "--window", "32"]).unwrap().check().is_ok());
    }

    #[test]
    fn times_are_read_in_their_units() {
        let options = parse(&["--deadline-ms", "1.5", "--duration", "0.25"]).unwrap();
        assert_eq!(options.deadline_ms, Duration::from_micros(1500));
        assert_eq!(options.duration, Duration::from_millis(250));
    }
}
