//! The two queues between the I/O thread and Python: events up, actions down. One wake-up for many, each way.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::framing::Payload;
use crate::headers::Metadata;
use crate::lookout::Lookout;
use crate::peer::Peer;
use crate::status::Status;

/// The kinds of events, as in `wire.port`.
pub mod kind {
    #![allow(missing_docs)]
    pub const CALL: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const MESSAGE: u8 = 3;
    pub const HALF_CLOSE: u8 = 4;
    pub const CANCEL: u8 = 5;
    pub const WRITABLE: u8 = 6;
}

/// What a call came with.
#[derive(Debug)]
pub struct Origin {
    /// Of its connection.
    pub peer: Arc<Peer>,
    /// Of its own; empty mostly.
    pub metadata: Metadata,
}

/// Something that has arrived.
#[derive(Debug)]
pub struct Event {
    /// One of `kind`.
    pub kind: u8,
    /// The method's index.
    pub method: u16,
    /// Id.
    pub call: u64,
    /// On CALL and MESSAGE.
    pub body: Option<Payload>,
    /// `time.monotonic()` seconds.
    pub deadline: f64,
    /// On CALL and OPEN.
    pub origin: Option<Origin>,
    /// Held bytes that are given back when it is taken.
    pub held: usize,
}

impl Event {
    /// One that only says what has become of a call.
    #[must_use]
    pub fn bare(kind: u8, method: u16, call: u64) -> Self {
        Self {
            kind,
            method,
            call,
            body: None,
            deadline: f64::INFINITY,
            origin: None,
            held: 0,
        }
    }
}

/// Events on their way to the taker.
#[derive(Debug)]
pub struct Events {
    state: Mutex<EventState>,
    arrived: Condvar,
    lookout: Lookout,
}

#[derive(Debug, Default)]
struct EventState {
    events: VecDeque<Event>,
    woken: bool,
    waiting: bool,
}

impl Events {
    /// None yet. Before it sleeps, their taker looks out for them for at most so long.
    #[must_use]
    pub fn new(busy_poll: Duration) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Condvar::new(),
            lookout: Lookout::new(busy_poll),
        }
    }

    /// Hands over a batch, in order.
    pub fn extend(&self, batch: &mut Vec<Event>) {
        let mut state = lock(&self.state);
        state.events.extend(batch.drain(..));
        self.rouse(state);
    }

    /// Ends the present or next `take` early.
    pub fn wake(&self) {
        let mut state = lock(&self.state);
        state.woken = true;
        self.rouse(state);
    }

    /// Waits at most `timeout` for an event or a wake-up, then gives out up to `most`.
    pub fn take(&self, most: usize, timeout: Duration) -> VecDeque<Event> {
        let mut state = lock(&self.state);
        if state.events.is_empty() && !state.woken && !timeout.is_zero() {
            let begin = Instant::now();
            let end = begin + timeout;
            if self.lookout.pays() {
                drop(state);
                self.lookout.look(end);
                state = lock(&self.state);
            }
            state.waiting = true;
            while state.events.is_empty() && !state.woken {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                state = self
                    .arrived
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            state.waiting = false;
            self.lookout.learn(begin.elapsed(), !state.events.is_empty());
        }
        state.woken = false;
        self.lookout.set(state.events.len() > most);
        if state.events.len() <= most {
            return mem::take(&mut state.events);
        }
        state.events.drain(..most).collect()
    }

    fn rouse(&self, mut state: MutexGuard<'_, EventState>) {
        // Only the first of several wake-ups needs a system call.
        let waiting = mem::take(&mut state.waiting);
        self.lookout.set(true);
        drop(state);
        if waiting {
            self.arrived.notify_one();
        }
    }
}

/// What to do with a call.
#[derive(Debug)]
pub enum Act {
    /// Send a message.
    Send(Framed),
    /// Send a message and end with OK.
    Respond(Framed),
    /// End with OK.
    Finish,
    /// End with an error.
    Fail(Status),
    /// A message over the limit was to be sent; `last` if nothing was to follow.
    TooLarge {
        /// Whether it was a RESPOND.
        last: bool,
    },
    /// Let so many more messages in.
    Credit(u64),
}

/// A message with its prefix: in one piece, or a large one behind its prefix, uncopied.
#[derive(Debug)]
pub struct Framed {
    /// Prefix, and message if there is no `rest`.
    pub head: Bytes,
    /// The message.
    pub rest: Option<Bytes>,
}

impl Framed {
    /// Length with prefix.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.rest.as_ref().map_or(0, Bytes::len)
    }

    /// Never: there is a prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// An action on a call.
#[derive(Debug)]
pub struct Action {
    /// Id.
    pub call: u64,
    /// What to do.
    pub act: Act,
}

/// Actions on their way to the I/O thread.
#[derive(Debug, Default)]
pub struct Actions {
    state: Mutex<Vec<Action>>,
    arrived: Notify,
}

impl Actions {
    /// Hands over a batch, in order.
    pub fn extend(&self, batch: Vec<Action>) {
        if batch.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        let first = state.is_empty();
        if first {
            *state = batch;
        } else {
            state.extend(batch);
        }
        drop(state);
        if first {
            self.arrived.notify_one();
        }
    }

    /// Gives out all that are there.
    pub fn take_now(&self) -> Vec<Action> {
        mem::take(&mut *lock(&self.state))
    }

    /// Waits for actions, and gives out all that are there.
    pub async fn take(&self) -> Vec<Action> {
        loop {
            let actions = self.take_now();
            if !actions.is_empty() {
                return actions;
            }
            self.arrived.notified().await;
        }
    }
}

/// A lock whose holders never leave a half-made state behind.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(call: u64) -> Event {
        Event::bare(kind::CANCEL, 0, call)
    }

    fn calls(events: &VecDeque<Event>) -> Vec<u64> {
        events.iter().map(|event| event.call).collect()
    }

    #[test]
    fn take_gives_out_at_most_so_many_in_order() {
        let events = Events::new(Duration::ZERO);
        events.extend(&mut vec![event(1), event(2), event(3)]);
        assert_eq!(calls(&events.take(2, Duration::ZERO)), [1, 2]);
        assert_eq!(calls(&events.take(2, Duration::ZERO)), [3]);
        assert!(events.take(2, Duration::ZERO).is_empty());
    }

    #[test]
    fn a_wake_up_before_take_ends_it_once() {
        let events = Events::new(Duration::ZERO);
        events.wake();
        events.wake();
        let begin = Instant::now();
        assert!(events.take(1, Duration::from_secs(5)).is_empty());
        assert!(begin.elapsed() < Duration::from_secs(4));
        assert!(events.take(1, Duration::from_millis(1)).is_empty());
    }

    #[test]
    fn a_waiting_take_sees_what_another_thread_hands_over() {
        let events = Arc::new(Events::new(Duration::ZERO));
        let giver = {
            let events = Arc::clone(&events);
            std::thread::spawn(move || events.extend(&mut vec![event(7)]))
        };
        assert_eq!(calls(&events.take(8, Duration::from_secs(10))), [7]);
        assert!(giver.join().is_ok());
    }

    #[test]
    fn a_taker_that_looks_out_sees_all_in_order() {
        const MANY: u64 = 10_000;
        let events = Events::new(Duration::from_micros(200));
        std::thread::scope(|scope| {
            scope.spawn(|| (0..MANY).for_each(|call| events.extend(&mut vec![event(call)])));
            let mut seen = Vec::new();
            while seen.len() < MANY as usize {
                seen.extend(calls(&events.take(3, Duration::from_secs(10))));
            }
            assert!(seen.into_iter().eq(0..MANY));
        });
    }
}
