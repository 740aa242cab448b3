//! From the caller to Python: bytes that are held, messages that go up, and the credit that lets them.

use std::task::{Context, Poll};

use super::call::State;
use super::{Calls, Ticket, bare};
use crate::figures::count;
use crate::framing::Payload;
use crate::queue::{Event, Origin, kind};

/// What the reader of a stream may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permit {
    /// Deliver a message.
    Deliver,
    /// Nothing: the call is over.
    Stop,
}

impl Calls {
    /// A whole unary call, or an opened stream, goes up, and with it all that is held for it.
    pub fn deliver(&self, ticket: Ticket, kind: u8, body: Option<Payload>, origin: Origin) {
        let event = self.with(ticket, |call| {
            call.state = State::Live;
            call.read_stall = f64::INFINITY;
            if call.streams {
                call.level = Some(self.levels.open(ticket.id));
            }
            Event {
                kind,
                method: call.method,
                call: ticket.id,
                body,
                deadline: call.deadline,
                origin: Some(origin),
                held: std::mem::take(&mut call.held),
            }
        });
        if let Some(event) = event {
            self.handover.push(event);
        }
    }

    /// A message of a stream goes up; uses a credit. `held` bytes pass from the call to the event.
    pub fn deliver_message(&self, ticket: Ticket, payload: Payload, held: usize) {
        let event = self.with(ticket, |call| {
            call.read_stall = f64::INFINITY;
            if call.state != State::Live {
                return None;
            }
            call.credit = call.credit.saturating_sub(1);
            call.held -= held.min(call.held);
            Some(Event {
                body: Some(payload),
                held,
                ..bare(kind::MESSAGE, call)
            })
        });
        if let Some(event) = event.flatten() {
            self.handover.push(event);
        }
    }

    /// The caller has sent its last message.
    pub fn deliver_half_close(&self, ticket: Ticket) {
        self.push_if(ticket, kind::HALF_CLOSE, |call| call.state == State::Live);
    }

    /// Counts bytes that have arrived, and holds them. False if there is no room for them.
    pub fn receive(&self, ticket: Ticket, bytes: usize) -> bool {
        count(&self.figures.received_bytes_total, bytes as u64);
        self.hold(ticket, bytes)
    }

    /// Holds bytes. False if there is no room for them.
    pub fn hold(&self, ticket: Ticket, bytes: usize) -> bool {
        if !self.figures.hold(bytes, self.settings.limits.max_held_bytes) {
            return false;
        }
        if self.with(ticket, |call| call.held += bytes).is_none() {
            self.figures.release(bytes);
        }
        true
    }

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
            let known = |reader: &std::task::Waker| reader.will_wake(context.waker());
            if !call.reader.as_ref().is_some_and(known) {
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
}
