//! Ends the process when the taker does not come back. Needs no GIL.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::os;
use crate::queue::lock;

/// The exit code.
pub const EXIT: i32 = 70;
/// Time for the stacks to be written, should the handler run in another thread.
const DUMP: Duration = Duration::from_millis(200);

/// The watch over one taker.
#[derive(Debug, Default)]
pub struct Watchdog {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    budget: Option<Duration>,
    /// The taker waits in `take`.
    inside: bool,
    /// Since when it has been away, if it is.
    away_since: Option<Instant>,
    dump_signal: i32,
    running: bool,
    ended: bool,
}

impl State {
    fn overdue_at(&self) -> Option<Instant> {
        self.away_since?.checked_add(self.budget?)
    }
}

impl Watchdog {
    /// The taker comes.
    pub fn enter(&self) {
        let mut state = self.lock();
        state.inside = true;
        state.away_since = None;
    }

    /// The taker is about to go (and to wait for the GIL).
    pub fn leave(&self) {
        let mut state = self.lock();
        state.inside = false;
        state.away_since = Some(Instant::now());
    }

    /// Sets the budget; the time away counts from now at the earliest. `dump_signal` makes Python write its stacks.
    ///
    /// Errors: the thread can't be started.
    pub fn watch(&self, budget: Option<Duration>, dump_signal: i32) -> std::io::Result<()> {
        let mut state = self.lock();
        state.budget = budget;
        state.dump_signal = dump_signal;
        // If the taker is inside, this is another thread, and the clock stays off.
        if !state.inside {
            state.away_since = Some(Instant::now());
        }
        if budget.is_some() && !state.running {
            state.running = true;
            let shared = Arc::clone(&self.shared);
            std::thread::Builder::new()
                .name("forebay-watch".to_owned())
                .spawn(move || shared.run())?;
        }
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut state = lock(&self.state);
        while !state.ended {
            let now = Instant::now();
            let wait = match state.overdue_at() {
                Some(end) if end <= now => {
                    let signal = state.dump_signal;
                    drop(state);
                    end_process(signal);
                }
                Some(end) => end - now,
                // Nobody who comes back later can be overdue before that.
                None => state.budget.unwrap_or(Duration::from_secs(3600)),
            };
            state = self
                .changed
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn end_process(dump_signal: i32) -> ! {
    eprintln!("forebay: the dispatcher has not come back within its budget; exit {EXIT}. All stacks:");
    if dump_signal > 0 {
        os::raise(dump_signal);
        std::thread::sleep(DUMP);
    }
    os::exit(EXIT)
}
