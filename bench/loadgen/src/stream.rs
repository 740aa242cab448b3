//! `StreamPredict`: items in messages, closed by a window of items in flight or open at a rate.

use std::future::pending;
use std::io;
use std::iter::Peekable;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use slab::Slab;
use tokio::time::{sleep, timeout_at};

use crate::calls::{self, Mismatch};
use crate::connection::{self, Link};
use crate::proto::{self, Outcome};
use crate::schedule::Schedule;
use crate::status::{self, Failure};
use crate::timer::Timer;
use crate::unary::Shared;

/// The path of the RPC.
pub const PATH: &str = "/forebay.v1.InferenceService/StreamPredict";
/// A stream that broke is opened again after this.
const PAUSE: Duration = Duration::from_millis(50);

/// What paces the items of one stream.
pub enum Pace {
    /// So many items in flight.
    Window(usize),
    /// Messages due at these offsets from the start.
    Rate(Peekable<Schedule>),
}

/// One caller with one stream.
pub struct Caller {
    /// What all callers share.
    pub shared: Rc<Shared>,
    /// Its connection.
    pub link: Rc<Link>,
    /// Items in each message.
    pub items: usize,
    /// What paces it.
    pub pace: Pace,
    /// When the schedule began.
    pub start: Instant,
    /// When nothing more is sent.
    pub stop: Instant,
}

struct Open {
    sending: SendStream<Bytes>,
    receiving: Receiving,
    buffer: BytesMut,
    in_flight: Slab<(usize, Instant)>,
    closed: bool,
}

enum Receiving {
    Head(ResponseFuture),
    Body(RecvStream),
}

impl Caller {
    /// Sends until `stop`, waits for the last answers, and opens a new stream where one broke.
    ///
    /// # Errors
    /// The timer fails.
    pub async fn run(mut self) -> io::Result<()> {
        let timer = Timer::new()?;
        let timeout = proto::duration(self.shared.deadline);
        while Instant::now() < self.stop {
            let Some(mut open) = self.open().await else {
                sleep(PAUSE).await;
                continue;
            };
            let last = (self.stop + self.shared.deadline).into();
            let end = timeout_at(last, self.converse(&mut open, &timer, &timeout))
                .await
                .unwrap_or_else(|_| Err(Failure::local("DEADLINE_EXCEEDED", "given up by the caller")));
            let failure = match end {
                Ok(()) => Failure::local("INTERNAL", "stream ended without an answer"),
                Err(failure) => failure,
            };
            for (index, due) in open.in_flight.drain() {
                if let Some(call) = self.shared.calls.get(index) {
                    self.shared.answered(call, due, Err(&failure));
                }
            }
            if Instant::now() < self.stop {
                sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    async fn open(&self) -> Option<Open> {
        let mut sender = self.link.sender()?.ready().await.ok()?;
        let (response, sending) = sender.send_request(self.shared.head.whole(), false).ok()?;
        Some(Open {
            sending,
            receiving: Receiving::Head(response),
            buffer: BytesMut::new(),
            in_flight: Slab::new(),
            closed: false,
        })
    }

    async fn converse(&mut self, open: &mut Open, timer: &Timer, timeout: &[u8]) -> Result<(), Failure> {
        loop {
            let wait = self.send_what_is_due(open, timeout)?;
            tokio::select! {
                chunk = receive(&mut open.receiving) => match chunk? {
                    Some(chunk) => self.read(open, &chunk)?,
                    None => return finish(&mut open.receiving).await,
                },
                () = sleep_until(timer, wait) => {}
            }
        }
    }

    /// Sends what may be sent now; returns when there will be more, None if only an answer can change that.
    fn send_what_is_due(&mut self, open: &mut Open, timeout: &[u8]) -> Result<Option<Instant>, Failure> {
        loop {
            let now = Instant::now();
            if now >= self.stop {
                if !open.closed {
                    open.closed = true;
                    send(&mut open.sending, Bytes::new(), true)?;
                }
                return Ok(None);
            }
            let due = match &mut self.pace {
                Pace::Window(window) if open.in_flight.len() + self.items > *window => return Ok(Some(self.stop)),
                Pace::Window(_) => now,
                Pace::Rate(schedule) => match schedule.peek().map(|offset| self.start + *offset) {
                    Some(due) if due > now => return Ok(Some(due.min(self.stop))),
                    Some(due) => {
                        schedule.next();
                        self.shared.recorder.borrow_mut().sent(due, now - due);
                        due
                    }
                    None => return Ok(Some(self.stop)),
                },
            };
            let message = self.message(&mut open.in_flight, due, timeout);
            send(&mut open.sending, calls::frame(&message), false)?;
        }
    }

    fn message(&self, in_flight: &mut Slab<(usize, Instant)>, due: Instant, timeout: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        for _ in 0..self.items {
            if let Some((index, call)) = self.shared.next_call() {
                let id = in_flight.insert((index, due));
                proto::put_item(&mut message, id as u64, call.request(), timeout);
            }
        }
        message
    }

    fn read(&self, open: &mut Open, chunk: &Bytes) -> Result<(), Failure> {
        open.buffer.extend_from_slice(chunk);
        while let Some((prefix, rest)) = open.buffer.split_first_chunk::<5>() {
            let [compressed, length @ ..] = *prefix;
            let length = u32::from_be_bytes(length) as usize;
            if compressed != 0 {
                return Err(Failure::local("INTERNAL", "compressed message"));
            }
            let Some(message) = rest.get(..length) else { break };
            self.results(&mut open.in_flight, message)?;
            open.buffer.advance(5 + length);
        }
        Ok(())
    }

    fn results(&self, in_flight: &mut Slab<(usize, Instant)>, message: &[u8]) -> Result<(), Failure> {
        for result in proto::results(message) {
            let (id, outcome) = result.map_err(|_| Failure::local("INTERNAL", "malformed message"))?;
            let item = usize::try_from(id).ok().and_then(|id| in_flight.try_remove(id));
            let Some((index, due)) = item else {
                let now = Instant::now();
                let mismatch = Mismatch(format!("an answer to item {id}, which is not in flight"));
                self.shared.recorder.borrow_mut().mismatch(now, now, mismatch);
                continue;
            };
            let Some(call) = self.shared.calls.get(index) else { continue };
            match outcome {
                Outcome::Response(response) => self.shared.answered(call, due, Ok(response)),
                Outcome::Error(error) => self.shared.answered(call, due, Err(&Failure::of_status(error))),
            }
        }
        Ok(())
    }
}

fn send(sending: &mut SendStream<Bytes>, data: Bytes, end: bool) -> Result<(), Failure> {
    sending.send_data(data, end).map_err(|error| connection::of_error(&error))
}

async fn sleep_until(timer: &Timer, instant: Option<Instant>) {
    match instant {
        // A timer that fails would have failed when it was made; then only answers move the stream.
        Some(instant) if timer.until(instant).await.is_ok() => {}
        _ => pending().await,
    }
}

/// The next bytes of the response. May be dropped and called again.
async fn receive(receiving: &mut Receiving) -> Result<Option<Bytes>, Failure> {
    if let Receiving::Head(response) = receiving {
        let (head, body) = response.await.map_err(|error| connection::of_error(&error))?.into_parts();
        connection::accepted(head.status, &head.headers)?;
        *receiving = Receiving::Body(body);
    }
    match receiving {
        Receiving::Body(body) => connection::receive(body).await,
        Receiving::Head(_) => Ok(None),
    }
}

async fn finish(receiving: &mut Receiving) -> Result<(), Failure> {
    let Receiving::Body(body) = receiving else { return Ok(()) };
    let trailers = body.trailers().await.map_err(|error| connection::of_error(&error))?;
    status::of_trailers(&trailers.unwrap_or_default())
}
