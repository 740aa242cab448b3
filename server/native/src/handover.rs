//! From the open calls to the queue of events: what one round of the I/O thread makes ready goes up together.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::queue::{Event, Events};

/// Events that are handed over without waiting for the end of the round.
const BATCH: usize = 512;
/// How often the flusher lets others go first. The first round has the connections that are ready, the second the calls
/// that they begin.
const PASSES: u32 = 2;

/// Events of this round. I/O thread only.
#[derive(Debug)]
pub struct Handover {
    pending: RefCell<Vec<Event>>,
    flusher: RefCell<Option<Waker>>,
    events: Arc<Events>,
}

impl Handover {
    /// Onto this queue.
    #[must_use]
    pub fn new(events: Arc<Events>) -> Self {
        Self {
            pending: RefCell::new(Vec::with_capacity(BATCH)),
            flusher: RefCell::new(None),
            events,
        }
    }

    /// Adds an event.
    pub fn push(&self, event: Event) {
        let mut pending = self.pending.borrow_mut();
        pending.push(event);
        if pending.len() >= BATCH {
            self.events.extend(&mut pending);
        } else if let Some(flusher) = self.flusher.borrow_mut().take() {
            flusher.wake();
        }
    }

    /// Hands over, for as long as it is polled.
    ///
    /// The first event wakes it. It then goes to the end of the run queue some times.
    pub async fn flush(&self) {
        let mut passes = 0;
        std::future::poll_fn(|context| {
            let mut pending = self.pending.borrow_mut();
            if !pending.is_empty() && passes < PASSES {
                passes += 1;
                context.waker().wake_by_ref();
                return Poll::<()>::Pending;
            }
            if !pending.is_empty() {
                self.events.extend(&mut pending);
            }
            passes = 0;
            *self.flusher.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
