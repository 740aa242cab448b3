//! The open calls: which there are, what each waits for, and who is told when one ends. I/O thread only.
//!
//! A call is *arriving* until it is given to Python, *live* until an action or a fault ends it, *over* while its last
//! bytes are sent. CANCEL goes up exactly when a live call ends without an action of Python's.
//!
//! A ticket is a slot and an id. Ids are never used twice, so a ticket or an action of a call that is gone finds nothing.
//! Nothing here calls out while the table is borrowed, except wakers, which only queue a task.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use slab::Slab;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::config::Settings;
use crate::figures::{Figures, add, sub};
use crate::framing::Payload;
use crate::outbox::{Level, Levels, Outbox};
use crate::queue::{Act, Action, Event, Events, Origin, kind};
use crate::status::{self, Status};
use crate::timers::{TICK, Wheel};

const SLOT_BITS: u32 = 20;
/// The number of the next call. One for the process, so that ids differ between servers too.
static SEQUENCE: AtomicU64 = AtomicU64::new(1);
/// Events that are handed over without waiting for the end of the round.
const BATCH: usize = 512;

/// A call, for as long as it exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ticket {
    slot: u32,
    id: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Arriving,
    Live,
    Over,
}

#[derive(Debug)]
enum Ending {
    Ok,
    Fail(Box<Status>),
}

#[derive(Debug)]
struct Call {
    id: u64,
    state: State,
    /// Whether several messages may be sent.
    streams: bool,
    /// The task that runs the call, from its first poll.
    task: Option<Waker>,
    /// The task that reads a stream's messages, while it waits.
    reader: Option<Waker>,
    deadline: f64,
    /// When a message in parts, or an outbox that nobody empties, has taken too long; infinity mostly.
    read_stall: f64,
    write_stall: f64,
    /// A piece has been given to hyper, which has not come back for more.
    piece_out: bool,
    /// To be reset.
    cut: bool,
    credit: u64,
    held: usize,
    outbox: Outbox,
    level: Option<Arc<Level>>,
    ending: Option<Ending>,
}

/// What the body of a response gives next.
#[derive(Debug)]
pub enum Piece {
    /// DATA.
    Data(Bytes),
    /// The end.
    Trailers(HeaderMap),
}

/// How a response begins.
#[derive(Debug)]
pub enum Start {
    /// With a message.
    Body,
    /// With its end: trailers only.
    Only(Box<Status>),
}

/// What the reader of a stream may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permit {
    /// Deliver a message.
    Deliver,
    /// Nothing: the call is over.
    Stop,
}

/// The table of calls.
#[derive(Debug)]
pub struct Calls {
    table: RefCell<Slab<Call>>,
    wheel: RefCell<Wheel>,
    /// When the timekeeper will look next, so that it is only woken for an earlier timer.
    looks_at: Cell<f64>,
    earlier: Notify,
    pending: RefCell<Vec<Event>>,
    flusher: RefCell<Option<Waker>>,
    events: Arc<Events>,
    levels: Arc<Levels>,
    figures: Arc<Figures>,
    settings: Arc<Settings>,
    /// Python's clock.
    pub clock: Clock,
}

impl Calls {
    /// An empty table.
    #[must_use]
    pub fn new(
        events: Arc<Events>,
        levels: Arc<Levels>,
        figures: Arc<Figures>,
        settings: Arc<Settings>,
        clock: Clock,
    ) -> Self {
        Self {
            table: RefCell::new(Slab::with_capacity(1024)),
            wheel: RefCell::new(Wheel::new(clock.now())),
            looks_at: Cell::new(f64::INFINITY),
            earlier: Notify::new(),
            pending: RefCell::new(Vec::with_capacity(BATCH)),
            flusher: RefCell::new(None),
            events,
            levels,
            figures,
            settings,
            clock,
        }
    }

    // --- Life ----------------------------------------------------------------------------------------------------

    /// A call begins. None if there are too many.
    pub fn open(&self, streams: bool, deadline: f64) -> Option<Ticket> {
        let mut table = self.table.borrow_mut();
        let entry = table.vacant_entry();
        let slot = entry.key() as u64;
        if slot >= 1 << SLOT_BITS {
            return None;
        }
        let id = SEQUENCE.fetch_add(1, Relaxed) << SLOT_BITS | slot;
        entry.insert(Call {
            id,
            state: State::Arriving,
            streams,
            task: None,
            reader: None,
            deadline,
            read_stall: f64::INFINITY,
            write_stall: f64::INFINITY,
            piece_out: false,
            cut: false,
            credit: 0,
            held: 0,
            outbox: Outbox::default(),
            level: None,
            ending: None,
        });
        add(&self.figures.calls, 1);
        Some(Ticket { slot: slot as u32, id })
    }

    /// A whole unary call, or an opened stream, goes up.
    pub fn deliver(&self, ticket: Ticket, kind: u8, method: u16, body: Option<Payload>, origin: Origin) {
        let deadline = self.with(ticket, |call| {
            call.state = State::Live;
            call.read_stall = f64::INFINITY;
            if call.streams {
                call.level = Some(self.levels.open(ticket.id));
            }
            call.deadline
        });
        if let Some(deadline) = deadline {
            self.push(Event {
                kind,
                method,
                call: ticket.id,
                body,
                deadline,
                origin: Some(origin),
                held: 0,
            });
        }
    }

    /// A message of a stream goes up; uses a credit. `held` bytes pass from the call to the event.
    pub fn deliver_message(&self, ticket: Ticket, method: u16, payload: Payload, held: usize) {
        let live = self.with(ticket, |call| {
            call.read_stall = f64::INFINITY;
            if call.state != State::Live {
                return false;
            }
            call.credit = call.credit.saturating_sub(1);
            call.held -= held.min(call.held);
            true
        });
        if live == Some(true) {
            self.push(Event {
                body: Some(payload),
                held,
                ..bare(kind::MESSAGE, method, ticket.id)
            });
        }
    }

    /// The caller has sent its last message.
    pub fn deliver_half_close(&self, ticket: Ticket, method: u16) {
        if self.with(ticket, |call| call.state == State::Live) == Some(true) {
            self.push(bare(kind::HALF_CLOSE, method, ticket.id));
        }
    }

    /// Ends a call from this side of the port.
    pub fn refuse(&self, ticket: Ticket, status: Status) {
        let was = self.with(ticket, |call| {
            let was = call.state;
            if was != State::Over {
                call.end(Ending::Fail(Box::new(status)));
                call.outbox.clear();
            }
            was
        });
        match was {
            None | Some(State::Over) => {}
            Some(State::Arriving) => add(&self.figures.refused_total, 1),
            Some(State::Live) => {
                add(&self.figures.refused_total, 1);
                self.push(bare(kind::CANCEL, 0, ticket.id));
            }
        }
    }

    /// The caller is gone: nothing can be sent any more.
    pub fn abandon(&self, ticket: Ticket) {
        let was = self.with(ticket, |call| {
            call.cut = true;
            call.rouse();
            std::mem::replace(&mut call.state, State::Over)
        });
        if was == Some(State::Live) {
            self.push(bare(kind::CANCEL, 0, ticket.id));
        }
    }

    /// The task of a call has ended, one way or another.
    pub fn remove(&self, ticket: Ticket) {
        if !self.exists(ticket) {
            return;
        }
        let call = self.table.borrow_mut().remove(ticket.slot as usize);
        self.wheel.borrow_mut().clear(ticket.slot);
        self.figures.release(call.held);
        sub(&self.figures.calls, 1);
        if call.level.is_some() {
            self.levels.close(ticket.id);
        }
        if call.state == State::Live {
            self.push(bare(kind::CANCEL, 0, ticket.id));
        }
        if let Some(reader) = call.reader {
            reader.wake();
        }
    }

    /// Ends all that Python has not ended.
    pub fn refuse_all(&self, status: &Status) {
        for ticket in self.tickets() {
            self.refuse(ticket, status.clone());
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

    /// Counts bytes that have arrived. False if there is no room for them.
    pub fn hold(&self, ticket: Ticket, bytes: usize) -> bool {
        add(&self.figures.received_bytes_total, bytes as u64);
        if !self.figures.hold(bytes, self.settings.limits.max_held_bytes) {
            return false;
        }
        if self.with(ticket, |call| call.held += bytes).is_none() {
            self.figures.release(bytes);
        }
        true
    }

    /// How the response begins, once that is known.
    pub fn poll_start(&self, ticket: Ticket) -> Poll<Start> {
        self.with(ticket, |call| match (call.outbox.is_empty(), &call.ending) {
            (true, None) => Poll::Pending,
            (true, Some(Ending::Fail(_))) => match call.ending.take() {
                Some(Ending::Fail(status)) => Poll::Ready(Start::Only(status)),
                _ => Poll::Pending,
            },
            _ => Poll::Ready(Start::Body),
        })
        // Never: the task that asks keeps the call.
        .unwrap_or(Poll::Pending)
    }

    /// The next piece of a response's body.
    pub fn poll_piece(&self, ticket: Ticket) -> Poll<Option<Piece>> {
        let mut writable = false;
        let piece = self.with(ticket, |call| {
            call.write_stall = f64::INFINITY;
            call.piece_out = false;
            if let Some(data) = call.outbox.pop() {
                call.piece_out = true;
                add(&self.figures.sent_bytes_total, data.len() as u64);
                if let Some(level) = &call.level {
                    writable = level.fall(data.len(), self.settings.limits.outbox_bytes) && call.state == State::Live;
                }
                return Poll::Ready(Some(Piece::Data(data)));
            }
            match call.ending.take() {
                None => Poll::Pending,
                Some(Ending::Ok) => Poll::Ready(Some(Piece::Trailers(status::ok()))),
                Some(Ending::Fail(status)) => Poll::Ready(Some(Piece::Trailers(status.trailers()))),
            }
        });
        if writable {
            self.push(bare(kind::WRITABLE, 0, ticket.id));
        }
        piece.unwrap_or(Poll::Ready(None))
    }

    // --- The reader of a stream ----------------------------------------------------------------------------------

    /// Waits until a message may be delivered.
    pub fn poll_permit(&self, ticket: Ticket, context: &Context<'_>) -> Poll<Permit> {
        self.with(ticket, |call| {
            if call.state == State::Over {
                Poll::Ready(Permit::Stop)
            } else if call.credit > 0 {
                Poll::Ready(Permit::Deliver)
            } else {
                call.reader = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .unwrap_or(Poll::Ready(Permit::Stop))
    }

    /// Whether there is credit for a message.
    pub fn has_credit(&self, ticket: Ticket) -> bool {
        self.with(ticket, |call| call.credit > 0).unwrap_or(false)
    }

    /// Whether the reader has to stop; if not, it will be woken when it has to.
    pub fn reader_stops(&self, ticket: Ticket, context: &Context<'_>) -> bool {
        self.with(ticket, |call| {
            if !call
                .reader
                .as_ref()
                .is_some_and(|reader| reader.will_wake(context.waker()))
            {
                call.reader = Some(context.waker().clone());
            }
            call.state == State::Over
        })
        .unwrap_or(true)
    }

    /// A message in parts has begun: it has a limited time.
    pub fn begin_message(&self, ticket: Ticket) {
        let due = self.with(ticket, |call| {
            if call.read_stall.is_infinite() {
                call.read_stall = self.clock.now() + self.settings.limits.read_stall;
            }
            call.due()
        });
        self.schedule(ticket, due.unwrap_or(f64::INFINITY));
    }

    // --- Actions -------------------------------------------------------------------------------------------------

    /// Carries out actions of Python's.
    pub fn apply(&self, actions: Vec<Action>) {
        for Action { call: id, act } in actions {
            let slot = (id & ((1 << SLOT_BITS) - 1)) as u32;
            let ticket = Ticket { slot, id };
            let too_large = matches!(act, Act::TooLarge { last: false });
            let mut released = 0;
            let done = self.with(ticket, |call| {
                if call.state != State::Live {
                    return false;
                }
                match act {
                    Act::Send(message) => call.outbox.push(message),
                    Act::Respond(message) => {
                        call.outbox.push(message);
                        call.end(Ending::Ok);
                    }
                    Act::Finish => call.end(Ending::Ok),
                    Act::Fail(status) => call.end(Ending::Fail(Box::new(status))),
                    Act::TooLarge { .. } => {
                        let status = self.settings.refusals.response_too_large.clone();
                        call.end(Ending::Fail(Box::new(status)));
                    }
                    Act::Credit(more) => {
                        call.credit = call.credit.saturating_add(more);
                        if let Some(reader) = call.reader.take() {
                            reader.wake();
                        }
                        return true;
                    }
                }
                call.rouse_task();
                if call.state == State::Over {
                    released = std::mem::take(&mut call.held);
                }
                true
            });
            self.figures.release(released);
            if too_large && done == Some(true) {
                self.push(bare(kind::CANCEL, 0, id));
            }
        }
    }

    // --- Time ----------------------------------------------------------------------------------------------------

    /// Ends calls at their deadlines and cuts off those that stall, for as long as it is polled.
    pub async fn keep_time(&self) {
        let mut due = Vec::new();
        loop {
            let next = self.wheel.borrow().next();
            self.looks_at.set(next.unwrap_or(f64::INFINITY));
            match next {
                None => self.earlier.notified().await,
                Some(next) => {
                    let sleep = tokio::time::sleep_until(self.clock.instant(next).into());
                    tokio::select! {
                        () = sleep => {}
                        () = self.earlier.notified() => continue,
                    }
                }
            }
            let now = self.clock.now();
            self.wheel.borrow_mut().expire(now, &mut due);
            for slot in due.drain(..) {
                self.expire(slot, now);
            }
        }
    }

    fn expire(&self, slot: u32, now: f64) {
        let Some((ticket, state, deadline, read_stall, write_stall, due)) =
            self.table.borrow().get(slot as usize).map(|call| {
                let ticket = Ticket { slot, id: call.id };
                (
                    ticket,
                    call.state,
                    call.deadline,
                    call.read_stall,
                    call.write_stall,
                    call.due(),
                )
            })
        else {
            return;
        };
        if write_stall <= now {
            add(&self.figures.refused_total, 1);
            self.abandon(ticket);
        } else if state != State::Over && deadline <= now {
            self.refuse(ticket, self.settings.refusals.deadline_expired.clone());
        } else if state != State::Over && read_stall <= now {
            self.refuse(ticket, self.settings.refusals.slow_sender.clone());
        } else {
            self.schedule(ticket, due);
        }
    }

    fn schedule(&self, ticket: Ticket, due: f64) {
        let mut wheel = self.wheel.borrow_mut();
        if due.is_infinite() || wheel.due(ticket.slot) <= due + TICK {
            return; // an early timer looks again
        }
        wheel.set(ticket.slot, due);
        if due < self.looks_at.get() {
            self.looks_at.set(due);
            self.earlier.notify_one();
        }
    }

    // --- Events --------------------------------------------------------------------------------------------------

    fn push(&self, event: Event) {
        let mut pending = self.pending.borrow_mut();
        pending.push(event);
        if pending.len() >= BATCH {
            self.events.extend(&mut pending);
        } else if let Some(flusher) = self.flusher.borrow_mut().take() {
            flusher.wake();
        }
    }

    /// Hands over what one round has made ready, for as long as it is polled.
    ///
    /// The first event wakes it. It then goes to the end of the run queue some times, behind the connections that are
    /// ready and the calls that they begin.
    pub async fn flush(&self) {
        const PASSES: u32 = 2;
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

    // --- Helpers -------------------------------------------------------------------------------------------------

    fn with<T>(&self, ticket: Ticket, act: impl FnOnce(&mut Call) -> T) -> Option<T> {
        let mut table = self.table.borrow_mut();
        let call = table.get_mut(ticket.slot as usize)?;
        (call.id == ticket.id).then(|| act(call))
    }

    fn exists(&self, ticket: Ticket) -> bool {
        self.with(ticket, |_| ()).is_some()
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

impl Call {
    fn end(&mut self, ending: Ending) {
        self.state = State::Over;
        self.ending = Some(ending);
        self.rouse();
    }

    fn rouse(&mut self) {
        self.rouse_task();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn rouse_task(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    fn due(&self) -> f64 {
        let due = self.write_stall;
        if self.state == State::Over {
            return due;
        }
        due.min(self.deadline).min(self.read_stall)
    }
}

fn bare(kind: u8, method: u16, call: u64) -> Event {
    Event {
        kind,
        method,
        call,
        body: None,
        deadline: f64::INFINITY,
        origin: None,
        held: 0,
    }
}
