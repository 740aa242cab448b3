//! The open calls: which there are, what each waits for, and who is told when one ends. I/O thread only.
//!
//! A call is *arriving* until it is given to Python, *live* until an action or a fault ends it, *over* while its last
//! bytes are sent. CANCEL goes up exactly when a live call ends without an action of Python's.
//!
//! A ticket is a slot and an id. Ids are never used twice, so a ticket or an action of a call that is gone finds nothing.
//! Nothing here calls out while the table is borrowed, except wakers, which only queue a task.
//!
//! Here is how calls begin and end; `inbound`, `outbound` and `time` have what happens between.

mod call;
mod inbound;
mod outbound;
mod time;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Waker;

use slab::Slab;
use tokio::sync::Notify;

use self::call::{Call, Ending, State};
pub use self::inbound::Permit;
pub use self::outbound::{Piece, Start};
use crate::clock::Clock;
use crate::config::Settings;
use crate::figures::{Figures, count};
use crate::gathering::Gathering;
use crate::handover::Handover;
use crate::outbox::Levels;
use crate::queue::{Event, kind};
use crate::status::Status;
use crate::timers::Wheel;

const SLOT_BITS: u32 = 20;
/// The number of the next call. One for the process, so that ids differ between servers too.
static SEQUENCE: AtomicU64 = AtomicU64::new(1);

/// A call, for as long as it exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ticket {
    slot: u32,
    id: u64,
}

/// The table of calls.
#[derive(Debug)]
pub struct Calls {
    table: RefCell<Slab<Call>>,
    wheel: RefCell<Wheel>,
    /// When the timekeeper will look next, so that it is only woken for an earlier timer.
    looks_at: Cell<f64>,
    earlier: Notify,
    levels: Arc<Levels>,
    figures: Arc<Figures>,
    settings: Arc<Settings>,
    /// The way up.
    pub handover: Handover,
    /// When what is read now has come.
    pub gathering: Arc<Gathering>,
    /// Python's clock.
    pub clock: Clock,
}

impl Calls {
    /// An empty table.
    #[must_use]
    pub fn new(
        handover: Handover,
        levels: Arc<Levels>,
        figures: Arc<Figures>,
        settings: Arc<Settings>,
        gathering: Arc<Gathering>,
        clock: Clock,
    ) -> Self {
        Self {
            table: RefCell::new(Slab::with_capacity(1024)),
            wheel: RefCell::new(Wheel::new(clock.now())),
            looks_at: Cell::new(f64::INFINITY),
            earlier: Notify::new(),
            levels,
            figures,
            settings,
            handover,
            gathering,
            clock,
        }
    }

    // --- Life ----------------------------------------------------------------------------------------------------

    /// A call of a method begins. None if there are too many.
    pub fn open(&self, method: u16, streams: bool, deadline: f64) -> Option<Ticket> {
        let mut table = self.table.borrow_mut();
        let entry = table.vacant_entry();
        let slot = entry.key() as u64;
        if slot >= 1 << SLOT_BITS {
            return None;
        }
        let id = SEQUENCE.fetch_add(1, Relaxed) << SLOT_BITS | slot;
        entry.insert(Call::new(id, method, streams, deadline));
        self.figures.calls.store(table.len() as u64, Relaxed);
        Some(Ticket { slot: slot as u32, id })
    }

    /// Ends a call from this side of the port. What is not sent yet is dropped.
    pub fn refuse(&self, ticket: Ticket, status: Status) {
        self.with(ticket, |call| {
            if call.state != State::Over {
                call.outbox.clear();
            }
        });
        self.fail(ticket, status);
    }

    /// Ends a call from this side of the port, behind what is to be sent.
    fn fail(&self, ticket: Ticket, status: Status) {
        let was = self.with(ticket, |call| {
            let was = (call.state, call.method);
            if call.state != State::Over {
                call.end(Ending::Fail(Box::new(status)));
            }
            was
        });
        match was {
            None | Some((State::Over, _)) => {}
            Some((State::Arriving, _)) => count(&self.figures.refused_total, 1),
            Some((State::Live, method)) => {
                count(&self.figures.refused_total, 1);
                self.handover.push(Event::bare(kind::CANCEL, method, ticket.id));
            }
        }
    }

    /// The caller is gone: nothing can be sent any more.
    pub fn abandon(&self, ticket: Ticket) {
        self.push_if(ticket, kind::CANCEL, |call| {
            call.cut = true;
            call.rouse();
            std::mem::replace(&mut call.state, State::Over) == State::Live
        });
    }

    /// The task of a call has ended, one way or another.
    pub fn remove(&self, ticket: Ticket) {
        let mut table = self.table.borrow_mut();
        if table.get(ticket.slot as usize).is_none_or(|call| call.id != ticket.id) {
            return;
        }
        let call = table.remove(ticket.slot as usize);
        self.figures.calls.store(table.len() as u64, Relaxed);
        drop(table);
        self.wheel.borrow_mut().clear(ticket.slot);
        self.figures.release(call.held);
        if call.level.is_some() {
            self.levels.close(ticket.id);
        }
        if call.state == State::Live {
            self.handover.push(bare(kind::CANCEL, &call));
        }
        if let Some(reader) = call.reader {
            reader.wake();
        }
    }

    /// Ends all that Python has not ended, behind what it has sent.
    pub fn refuse_all(&self, status: &Status) {
        for ticket in self.tickets() {
            self.fail(ticket, status.clone());
        }
    }

    /// Whether no call is open.
    pub fn is_empty(&self) -> bool {
        self.table.borrow().is_empty()
    }

    // --- The task of a call --------------------------------------------------------------------------------------

    /// Before each poll of the task. Returns whether it has to stop.
    pub fn enter(&self, ticket: Ticket, waker: &Waker) -> bool {
        self.with(ticket, |call| {
            if !call.task.as_ref().is_some_and(|task| task.will_wake(waker)) {
                call.task = Some(waker.clone());
            }
            call.cut
        })
        .unwrap_or(true)
    }

    /// After a poll that did not end the task: sets its timer, if it needs one that is not set.
    pub fn leave(&self, ticket: Ticket) {
        let limits = &self.settings.limits;
        let due = self.with(ticket, |call| {
            if call.state == State::Arriving && call.read_stall.is_infinite() {
                call.read_stall = self.clock.now() + limits.read_stall;
            }
            if call.piece_out && call.write_stall.is_infinite() {
                call.write_stall = self.clock.now() + limits.write_stall;
            }
            call.due()
        });
        self.schedule(ticket, due.unwrap_or(f64::INFINITY));
    }

    /// Whether the call can take no more messages.
    pub fn is_over(&self, ticket: Ticket) -> bool {
        self.with(ticket, |call| call.state == State::Over).unwrap_or(true)
    }

    // --- Helpers -------------------------------------------------------------------------------------------------

    fn with<T>(&self, ticket: Ticket, act: impl FnOnce(&mut Call) -> T) -> Option<T> {
        let mut table = self.table.borrow_mut();
        let call = table.get_mut(ticket.slot as usize)?;
        (call.id == ticket.id).then(|| act(call))
    }

    /// An event of this kind goes up if `act` says so.
    fn push_if(&self, ticket: Ticket, kind: u8, act: impl FnOnce(&mut Call) -> bool) {
        let event = self.with(ticket, |call| act(call).then(|| bare(kind, call)));
        if let Some(event) = event.flatten() {
            self.handover.push(event);
        }
    }

    fn tickets(&self) -> Vec<Ticket> {
        let table = self.table.borrow();
        let ticket = |(slot, call): (usize, &Call)| Ticket {
            slot: slot as u32,
            id: call.id,
        };
        table.iter().map(ticket).collect()
    }
}

fn bare(kind: u8, call: &Call) -> Event {
    Event::bare(kind, call.method, call.id)
}
