//! From Python to the caller: actions, and what they make of a response.

use std::task::Poll;

use bytes::Bytes;
use http::HeaderMap;

use super::call::{Ending, State};
use super::{Calls, SLOT_BITS, Ticket, bare};
use crate::figures::count;
use crate::queue::{Act, Action, kind};
use crate::status::{self, Status};

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

impl Calls {
    /// Carries out actions of Python's.
    pub fn apply(&self, actions: Vec<Action>) {
        for Action { call: id, act } in actions {
            let slot = (id & ((1 << SLOT_BITS) - 1)) as u32;
            let cancel = self.with(Ticket { slot, id }, |call| {
                if call.state != State::Live {
                    return None;
                }
                match act {
                    Act::Send(message) => {
                        call.outbox.push(message);
                        call.rouse_task();
                    }
                    Act::Respond(message) => {
                        call.outbox.push(message);
                        call.end(Ending::Ok);
                    }
                    Act::Finish => call.end(Ending::Ok),
                    Act::Fail(status) => call.end(Ending::Fail(Box::new(status))),
                    Act::TooLarge { last } => {
                        let status = self.settings.refusals.response_too_large.clone();
                        call.end(Ending::Fail(Box::new(status)));
                        return (!last).then(|| bare(kind::CANCEL, call));
                    }
                    Act::Credit(more) => {
                        call.credit = call.credit.saturating_add(more);
                        if let Some(reader) = call.reader.take() {
                            reader.wake();
                        }
                    }
                }
                None
            });
            if let Some(cancel) = cancel.flatten() {
                self.handover.push(cancel);
            }
        }
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
        let mut writable = None;
        let piece = self.with(ticket, |call| {
            call.write_stall = f64::INFINITY;
            call.piece_out = false;
            if let Some(data) = call.outbox.pop() {
                call.piece_out = true;
                count(&self.figures.sent_bytes_total, data.len() as u64);
                if let Some(level) = &call.level
                    && level.fall(data.len(), self.settings.limits.outbox_bytes)
                    && call.state == State::Live
                {
                    writable = Some(bare(kind::WRITABLE, call));
                }
                return Poll::Ready(Some(Piece::Data(data)));
            }
            match call.ending.take() {
                None => Poll::Pending,
                Some(Ending::Ok) => Poll::Ready(Some(Piece::Trailers(status::ok()))),
                Some(Ending::Fail(status)) => Poll::Ready(Some(Piece::Trailers(status.trailers()))),
            }
        });
        if let Some(writable) = writable {
            self.handover.push(writable);
        }
        piece.unwrap_or(Poll::Ready(None))
    }
}
