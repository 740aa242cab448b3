//! `forebay-loadgen`: see `--help`.

use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use forebay_loadgen::connection::{Head, Link};
use forebay_loadgen::options::{Mode, Options};
use forebay_loadgen::record::{CountBy, Recorder};
use forebay_loadgen::schedule::Schedule;
use forebay_loadgen::stream::{self, Caller, Pace};
use forebay_loadgen::submit::{self, Keys};
use forebay_loadgen::unary::{self, Shared};
use forebay_loadgen::{calls, record};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep_until;

#[derive(Serialize)]
struct Output {
    #[serde(flatten)]
    report: record::Report,
    /// Seconds of CPU that the generator itself used in the window.
    cpu_s: f64,
    /// The same as a share of one core.
    cpu_share: f64,
    /// `[nanoseconds, count]`, see `Recorder::buckets`; only if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_buckets: Option<Vec<(u64, u64)>>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(output) => finish(&output),
        Err(error) => {
            eprintln!("forebay-loadgen: {error}");
            ExitCode::from(1)
        }
    }
}

fn finish(output: &Output) -> ExitCode {
    match serde_json::to_string(output) {
        Ok(text) => println!("{text}"),
        Err(error) => {
            eprintln!("forebay-loadgen: cannot write the report: {error}");
            return ExitCode::from(1);
        }
    }
    if output.report.mismatches == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("forebay-loadgen: {} wrong answers:", output.report.mismatches);
    for example in &output.report.mismatch_examples {
        eprintln!("  {example}");
    }
    ExitCode::from(3)
}

fn run(options: &Options) -> Result<Output, String> {
    options.check()?;
    let calls = calls::read(&options.calls)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    LocalSet::new().block_on(&runtime, measure(options, calls))
}

async fn measure(options: &Options, calls: Vec<calls::Call>) -> Result<Output, String> {
    let path = match options.mode {
        Mode::Unary => unary::PATH,
        Mode::Stream => stream::PATH,
        Mode::Submit => submit::PATH,
    };
    let whole = options.warm_up + options.duration;
    // A stream lives for the whole run, its items have the deadline.
    let head = match options.mode {
        Mode::Unary | Mode::Submit => Head::new(&options.target, path, options.deadline_ms)?,
        Mode::Stream => Head::new(&options.target, path, whole + 2 * options.deadline_ms)?,
    };
    let mut links = Vec::new();
    for _ in 0..options.connections {
        links.push(Link::open(&options.target).await?);
    }
    let begin = Instant::now();
    let (start, stop) = (begin + options.warm_up, begin + whole);
    let count_by = if options.rate.is_some() { CountBy::Due } else { CountBy::Completion };
    let recorder = Recorder::new(start, stop, count_by, options.deadline_ms).map_err(|error| error.to_string())?;
    let jobs = (options.mode == Mode::Submit).then(Keys::default);
    let shared = Rc::new(Shared::new(calls, head, links, recorder, options.deadline_ms, options.tolerance, jobs));

    let usage = tokio::task::spawn_local(async move {
        sleep_until(start.into()).await;
        let before = cpu_time();
        sleep_until(stop.into()).await;
        cpu_time().saturating_sub(before)
    });
    match options.mode {
        Mode::Unary | Mode::Submit => unary_load(options, &shared, begin, stop).await?,
        Mode::Stream => stream_load(options, &shared, begin, stop).await?,
    }
    let cpu = usage.await.map_err(|error| error.to_string())?;
    let recorder = shared.recorder.borrow();
    let report = recorder.report();
    Ok(Output {
        cpu_s: cpu.as_secs_f64(),
        cpu_share: cpu.as_secs_f64() / report.elapsed_s,
        latency_buckets: options.buckets.then(|| recorder.buckets()),
        report,
    })
}

async fn unary_load(options: &Options, shared: &Rc<Shared>, begin: Instant, stop: Instant) -> Result<(), String> {
    let Some(rate) = options.rate else {
        unary::closed(Rc::clone(shared), options.in_flight, stop).await;
        return Ok(());
    };
    let schedule = Schedule::new(options.arrivals, rate, options.seed);
    unary::open(Rc::clone(shared), schedule, begin, stop, options.max_in_flight)
        .await
        .map_err(|error| format!("the timer fails: {error}"))
}

async fn stream_load(options: &Options, shared: &Rc<Shared>, begin: Instant, stop: Instant) -> Result<(), String> {
    let mut callers = JoinSet::new();
    for (index, link) in shared.links.iter().cycle().take(options.streams as usize).enumerate() {
        let pace = match options.rate {
            None => Pace::Window(options.window as usize),
            Some(rate) => {
                let messages = rate / f64::from(options.streams) / f64::from(options.items);
                let seed = options.seed.wrapping_add(index as u64);
                Pace::Rate(Schedule::new(options.arrivals, messages, seed).peekable())
            }
        };
        let caller = Caller {
            shared: Rc::clone(shared),
            link: Rc::clone(link),
            items: options.items as usize,
            pace,
            start: begin,
            stop,
        };
        callers.spawn_local(caller.run());
    }
    for outcome in callers.join_all().await {
        outcome.map_err(|error| format!("the timer fails: {error}"))?;
    }
    Ok(())
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
