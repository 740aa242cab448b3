//! `Predict` or `Submit` in a closed loop (so many in flight, always) and in an open one (so many a second, whatever
//! happens).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, yield_now};
use tokio::time::sleep;

use crate::calls::{Call, Mismatch};
use crate::connection::{self, Head, Link, Sender};
use crate::record::Recorder;
use crate::schedule::Schedule;
use crate::status::Failure;
use crate::submit::{self, Keys};
use crate::timer::Timer;

/// The path of the RPC.
pub const PATH: &str = "/forebay.v1.InferenceService/Predict";
/// A caller whose connection is gone waits this long before it tries again.
const PAUSE: Duration = Duration::from_millis(10);
/// An open loop that is behind sends at most so many before it looks at answers.
const BURST: u32 = 64;

/// What all callers of a run share.
pub struct Shared {
    /// The prepared calls, never empty.
    pub calls: Vec<Call>,
    /// Headers of each call.
    pub head: Head,
    /// The connections, never empty.
    pub links: Vec<Rc<Link>>,
    /// What happened.
    pub recorder: RefCell<Recorder>,
    /// Deadline of each call.
    pub deadline: Duration,
    /// How far floating numbers may be off.
    pub tolerance: f64,
    /// Set, requests are submitted as jobs under these keys.
    pub jobs: Option<Keys>,
    next: Cell<usize>,
}

impl Shared {
    /// See the fields.
    #[must_use]
    pub const fn new(
        calls: Vec<Call>,
        head: Head,
        links: Vec<Rc<Link>>,
        recorder: Recorder,
        deadline: Duration,
        tolerance: f64,
        jobs: Option<Keys>,
    ) -> Self {
        Self { calls, head, links, recorder: RefCell::new(recorder), deadline, tolerance, jobs, next: Cell::new(0) }
    }

    /// The next of the prepared calls, round and round, with its index.
    #[must_use]
    pub fn next_call(&self) -> Option<(usize, &Call)> {
        let index = self.next.get();
        self.next.set(if index + 1 < self.calls.len() { index + 1 } else { 0 });
        self.calls.get(index).map(|call| (index, call))
    }

    fn message(&self, call: &Call) -> bytes::Bytes {
        self.jobs.as_ref().map_or_else(|| call.framed.clone(), |keys| keys.submission(call))
    }

    fn check(&self, call: &Call, message: &[u8]) -> Result<(), Mismatch> {
        if self.jobs.is_some() { submit::check(message) } else { call.check(message, self.tolerance) }
    }

    /// Checks and records one answer.
    pub fn answered(&self, call: &Call, due: Instant, answer: Result<&[u8], &Failure>) {
        let checked = answer.map(|message| self.check(call, message));
        let done = Instant::now();
        let mut recorder = self.recorder.borrow_mut();
        match checked {
            Ok(Ok(())) => recorder.ok(due, done),
            Ok(Err(mismatch)) => recorder.mismatch(due, done, mismatch),
            Err(failure) => recorder.failure(due, done, failure),
        }
    }
}

/// Keeps `in_flight` calls in flight until `stop`, then waits for the last ones.
pub async fn closed(shared: Rc<Shared>, in_flight: u32, stop: Instant) {
    let mut callers = JoinSet::new();
    for link in shared.links.iter().cycle().take(in_flight as usize) {
        callers.spawn_local(caller(Rc::clone(&shared), Rc::clone(link), stop));
    }
    callers.join_all().await;
}

async fn caller(shared: Rc<Shared>, link: Rc<Link>, stop: Instant) {
    let mut sender = link.sender();
    while let Some((_, call)) = shared.next_call() {
        let due = Instant::now();
        if due >= stop {
            return;
        }
        let answer = one(&shared, &mut sender, call, due).await;
        shared.answered(call, due, answer.as_deref());
        if answer.is_err_and(|failure| failure.status == "UNAVAILABLE") {
            sleep(PAUSE).await;
            sender = link.sender();
        }
    }
}

async fn one(shared: &Shared, sender: &mut Option<Sender>, call: &Call, due: Instant) -> Result<bytes::Bytes, Failure> {
    let Some(sender) = sender else { return Err(Failure::local("UNAVAILABLE", "no connection")) };
    connection::unary(sender, &shared.head, shared.message(call), (due + shared.deadline).into()).await
}

/// Sends each call when it is due, until `stop`, then waits for the last ones. What the server does changes nothing.
///
/// # Errors
/// The timer fails.
pub async fn open(
    shared: Rc<Shared>,
    schedule: Schedule,
    start: Instant,
    stop: Instant,
    max_in_flight: usize,
) -> std::io::Result<()> {
    let timer = Timer::new()?;
    let mut in_flight = JoinSet::new();
    let mut links = shared.links.iter().cycle();
    let mut burst = 0;
    for offset in schedule {
        let due = start + offset;
        if due >= stop {
            break;
        }
        if due > Instant::now() {
            timer.until(due).await?;
            burst = 0;
        } else {
            burst += 1;
            if burst % BURST == 0 {
                yield_now().await;
            }
        }
        while in_flight.try_join_next().is_some() {}
        if in_flight.len() >= max_in_flight {
            shared.recorder.borrow_mut().dropped();
        } else if let Some(link) = links.next() {
            in_flight.spawn_local(visitor(Rc::clone(&shared), link.sender(), due));
        }
    }
    in_flight.join_all().await;
    Ok(())
}

async fn visitor(shared: Rc<Shared>, mut sender: Option<Sender>, due: Instant) {
    let Some((_, call)) = shared.next_call() else { return };
    shared.recorder.borrow_mut().sent(due, Instant::now().saturating_duration_since(due));
    let answer = one(&shared, &mut sender, call, due).await;
    shared.answered(call, due, answer.as_deref());
}
