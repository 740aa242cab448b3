//! What time does to calls: deadlines, senders and readers that stall.

use super::call::State;
use super::{Calls, Ticket};
use crate::figures::count;
use crate::timers::TICK;

impl Calls {
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
            count(&self.figures.refused_total, 1);
            self.abandon(ticket);
        } else if state != State::Over && deadline <= now {
            self.refuse(ticket, self.settings.refusals.deadline_expired.clone());
        } else if state != State::Over && read_stall <= now {
            self.refuse(ticket, self.settings.refusals.slow_sender.clone());
        } else {
            self.schedule(ticket, due);
        }
    }

    /// Sets a call's timer, unless it is set to look before that anyway.
    pub(super) fn schedule(&self, ticket: Ticket, due: f64) {
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
}
