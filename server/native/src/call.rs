//! One call: headers to admission, body to messages, answer to response.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::calls::{Calls, Permit, Piece, Start, Ticket};
use crate::config::{Kind, Settings};
use crate::figures::{Figures, count};
use crate::framing::{self, Assembler, InflateFault, Payload};
use crate::headers::{self, Encoding, Head};
use crate::peer::Peer;
use crate::queue::{Origin, kind};
use crate::status::{self, INTERNAL, RESOURCE_EXHAUSTED, Status, UNIMPLEMENTED};

/// Compressed messages above this are unpacked on another thread.
const INFLATE_HERE: usize = 32 << 10;

/// What the calls of a connection share.
pub struct Shared {
    /// The open calls.
    pub calls: Rc<Calls>,
    /// Limits and refusals.
    pub settings: Arc<Settings>,
    /// Counters.
    pub figures: Arc<Figures>,
    /// The other end.
    pub peer: Arc<Peer>,
}

/// The body of a response.
pub enum Reply {
    /// None: one HEADERS frame.
    Empty,
    /// From the call's outbox.
    Outbox(Rc<Calls>, Ticket),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self::Outbox(calls, ticket) = &*self else {
            return Poll::Ready(None);
        };
        // The task is woken through the table of calls.
        calls.poll_piece(*ticket).map(|piece| {
            piece.map(|piece| {
                Ok(match piece {
                    Piece::Data(data) => Frame::data(data),
                    Piece::Trailers(trailers) => Frame::trailers(trailers),
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        // Never exact: hyper would add a content-length.
        SizeHint::default()
    }
}

/// Why a message can't be read.
enum Broken {
    /// By the caller's fault, to be told.
    Refused(Status),
    /// The call is over, or the caller is gone.
    Over,
    /// The stream was reset or the connection lost.
    Lost,
}

/// A call that passed its headers. In a box, since futures that hold it are moved some times before they run.
struct Admitted {
    kind: Kind,
    origin: Origin,
    reader: Reader,
}

/// Begins a call. Returns its ticket, if it needs one, and what runs it.
///
/// Errors of the second are none: all that goes wrong is an answer.
pub fn serve(
    shared: &Rc<Shared>,
    exposure: &crate::config::Exposure,
    request: Request<Incoming>,
) -> (
    Option<Ticket>,
    impl Future<Output = Result<Response<Reply>, Infallible>> + use<>,
) {
    count(&shared.figures.calls_total, 1);
    let admitted = admit(shared, exposure, request);
    let ticket = admitted.as_ref().ok().map(|admitted| admitted.reader.ticket);
    if ticket.is_none() {
        count(&shared.figures.refused_total, 1);
    }
    let calls = Rc::clone(&shared.calls);
    let run = async move {
        Ok(match admitted {
            Ok(admitted) => run(calls, admitted).await,
            Err(response) => *response,
        })
    };
    (ticket, run)
}

fn admit(
    shared: &Rc<Shared>,
    exposure: &crate::config::Exposure,
    request: Request<Incoming>,
) -> Result<Box<Admitted>, Box<Response<Reply>>> {
    let (parts, body) = request.into_parts();
    let refuse = |status: Status| Box::new(status.response(Reply::Empty));
    let refusals = &shared.settings.refusals;
    if parts.method != Method::POST {
        return Err(Box::new(status::plain(StatusCode::METHOD_NOT_ALLOWED, Reply::Empty)));
    }
    if !headers::is_grpc(parts.headers.get(http::header::CONTENT_TYPE)) {
        return Err(Box::new(status::plain(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Reply::Empty,
        )));
    }
    let Some(&(method, kind)) = exposure.methods.get(parts.uri.path()) else {
        return Err(refuse(Status::new(UNIMPLEMENTED, "no such method here", None)));
    };
    let head = headers::parse(&parts.headers, shared.settings.limits.max_metadata_bytes)
        .map_err(|fault| refuse(metadata_status(fault)))?;
    let gzip = accept_encoding(&head, shared.settings.limits.accept_gzip)
        .ok_or_else(|| refuse(refusals.compressed.clone()))?;
    let deadline = match head.timeout {
        Some(timeout) if timeout.is_zero() => return Err(refuse(refusals.deadline_expired.clone())),
        Some(timeout) => shared.calls.gathering.arrival() + timeout.as_secs_f64(),
        None => f64::INFINITY,
    };
    let streams = kind != Kind::Unary;
    let Some(ticket) = shared.calls.open(method, streams, deadline) else {
        return Err(refuse(Status::new(RESOURCE_EXHAUSTED, "too many open calls", None)));
    };
    Ok(Box::new(Admitted {
        kind,
        origin: Origin {
            peer: Arc::clone(&shared.peer),
            metadata: head.metadata,
        },
        reader: Reader::new(shared, ticket, gzip, body),
    }))
}

fn accept_encoding(head: &Head, accept_gzip: bool) -> Option<bool> {
    match head.encoding {
        Encoding::Identity => Some(false),
        Encoding::Gzip if accept_gzip => Some(true),
        Encoding::Gzip | Encoding::Unknown => None,
    }
}

fn metadata_status(fault: headers::Fault) -> Status {
    match fault {
        headers::Fault::TooLarge => Status::new(RESOURCE_EXHAUSTED, "metadata over the limit", None),
        headers::Fault::Timeout => Status::new(INTERNAL, "malformed grpc-timeout", None),
        headers::Fault::NotAscii => Status::new(INTERNAL, "metadata value is not printable ASCII", None),
        headers::Fault::Binary => Status::new(INTERNAL, "malformed binary metadata", None),
    }
}

async fn run(calls: Rc<Calls>, mut admitted: Box<Admitted>) -> Response<Reply> {
    let ticket = admitted.reader.ticket;
    if admitted.kind == Kind::BidiStream {
        let Admitted { origin, reader, .. } = *admitted;
        calls.deliver(ticket, kind::OPEN, None, origin);
        tokio::task::spawn_local(reader.read_stream());
    } else {
        let read = admitted.reader.read_only().await;
        let Admitted { origin, reader, .. } = *admitted;
        // The answer may come long after: what the caller still sends is not read meanwhile.
        drop(reader);
        match read {
            Ok(payload) => calls.deliver(ticket, kind::CALL, Some(payload), origin),
            Err(Broken::Refused(status)) => calls.refuse(ticket, status),
            Err(Broken::Lost) => calls.abandon(ticket),
            Err(Broken::Over) => {}
        }
    }
    match poll_fn(|_| calls.poll_start(ticket)).await {
        Start::Body => status::response(Reply::Outbox(calls, ticket)),
        Start::Only(status) => status.response(Reply::Empty),
    }
}

/// Reads the messages of a call.
struct Reader {
    shared: Rc<Shared>,
    ticket: Ticket,
    gzip: bool,
    body: Incoming,
    assembler: Assembler,
}

impl Reader {
    fn new(shared: &Rc<Shared>, ticket: Ticket, gzip: bool, body: Incoming) -> Self {
        Self {
            shared: Rc::clone(shared),
            ticket,
            gzip,
            body,
            assembler: Assembler::new(shared.settings.limits.max_receive_bytes),
        }
    }

    /// The one message of a call that has one.
    async fn read_only(&mut self) -> Result<Payload, Broken> {
        let mut message = None;
        loop {
            let more = self.fill(false).await?;
            while let Some((payload, _)) = self.next().await? {
                if message.replace(payload).is_some() {
                    return Err(not_one("more than one message in a unary request"));
                }
            }
            if !more {
                break;
            }
        }
        if !self.assembler.at_boundary() {
            return Err(internal(if message.is_some() {
                "bytes after the message of a unary request"
            } else {
                "the request ended within a message"
            }));
        }
        message.ok_or_else(|| not_one("a unary request without a message"))
    }

    /// All messages of a stream, each as soon as there is credit for it.
    async fn read_stream(mut self) {
        let ended = self.deliver_stream().await;
        let (calls, ticket) = (&self.shared.calls, self.ticket);
        match ended {
            Ok(()) => calls.deliver_half_close(ticket),
            Err(Broken::Refused(status)) => calls.refuse(ticket, status),
            Err(Broken::Lost) => calls.abandon(ticket),
            Err(Broken::Over) => {}
        }
    }

    async fn deliver_stream(&mut self) -> Result<(), Broken> {
        let calls = Rc::clone(&self.shared.calls);
        let ticket = self.ticket;
        loop {
            // Without credit at most one frame is read ahead, to see the end of the stream.
            if calls.has_credit(ticket) || !self.assembler.at_boundary() {
                match poll_fn(|context| calls.poll_permit(ticket, context)).await {
                    Permit::Stop => return Err(Broken::Over),
                    Permit::Deliver => {}
                }
                if let Some((payload, held)) = self.next().await? {
                    calls.deliver_message(ticket, payload, held);
                    continue;
                }
                if !self.assembler.at_boundary() {
                    calls.begin_message(ticket);
                }
            }
            if !self.fill(true).await? {
                return if self.assembler.at_boundary() {
                    Ok(())
                } else {
                    self.end_in_parts().await
                };
            }
        }
    }

    /// The body has ended: what is left are whole messages that wait for credit, or a part of one.
    async fn end_in_parts(&mut self) -> Result<(), Broken> {
        let calls = Rc::clone(&self.shared.calls);
        while !self.assembler.at_boundary() {
            if poll_fn(|context| calls.poll_permit(self.ticket, context)).await == Permit::Stop {
                return Err(Broken::Over);
            }
            match self.next().await? {
                Some((payload, held)) => calls.deliver_message(self.ticket, payload, held),
                None => return Err(internal("the request ended within a message")),
            }
        }
        Ok(())
    }

    /// Reads a frame. False at the end of the body.
    async fn fill(&mut self, own_task: bool) -> Result<bool, Broken> {
        let (calls, ticket, body) = (&self.shared.calls, self.ticket, &mut self.body);
        let frame = poll_fn(|context| {
            let stops = if own_task {
                calls.reader_stops(ticket, context)
            } else {
                calls.is_over(ticket)
            };
            if stops {
                return Poll::Ready(Err(Broken::Over));
            }
            Pin::new(&mut *body).poll_frame(context).map(Ok)
        })
        .await?;
        match frame {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    if !calls.receive(ticket, data.len()) {
                        return Err(Broken::Refused(self.shared.settings.refusals.bytes_held.clone()));
                    }
                    self.assembler.push(data);
                }
                // Spares a poll for the end, which mostly is there already.
                Ok(!self.body.is_end_stream())
            }
            // A reset is not an end.
            None if !self.body.is_end_stream() => Err(Broken::Lost),
            None => Ok(false),
            Some(Err(_)) => Err(Broken::Lost),
        }
    }

    /// The next whole message, unpacked, with the bytes that are held for it.
    async fn next(&mut self) -> Result<Option<(Payload, usize)>, Broken> {
        let refusals = &self.shared.settings.refusals;
        let message = self.assembler.next_message().map_err(|fault| match fault {
            framing::Fault::TooLarge => Broken::Refused(refusals.message_too_large.clone()),
            framing::Fault::Flag => internal("a message with an unknown flag"),
        })?;
        let compressed = match &message {
            Some(message) => message.compressed,
            None => self.assembler.pending_compressed(),
        };
        if compressed && !self.gzip {
            return Err(Broken::Refused(refusals.compressed.clone()));
        }
        let Some(message) = message else {
            return Ok(None);
        };
        let held = message.payload.len() + framing::PREFIX;
        if !compressed {
            return Ok(Some((message.payload, held)));
        }
        // Rare, and large: it would make every call's future larger.
        let payload = Box::pin(self.inflate(message.payload)).await?;
        let more = payload.len().saturating_sub(held - framing::PREFIX);
        if !self.shared.calls.hold(self.ticket, more) {
            return Err(Broken::Refused(self.shared.settings.refusals.bytes_held.clone()));
        }
        Ok(Some((payload, held + more)))
    }

    async fn inflate(&self, packed: Payload) -> Result<Payload, Broken> {
        let limit = self.shared.settings.limits.max_receive_bytes;
        let unpacked = if packed.len() <= INFLATE_HERE {
            framing::inflate(&packed, limit)
        } else {
            let task = tokio::task::spawn_blocking(move || framing::inflate(&packed, limit));
            task.await.map_err(|_| internal("a message could not be unpacked"))?
        };
        unpacked.map_err(|fault| match fault {
            InflateFault::Corrupt => internal("a message that is not gzip"),
            InflateFault::TooLarge => Broken::Refused(self.shared.settings.refusals.message_too_large.clone()),
        })
    }
}

/// What gRPC's page of status codes says of a unary request with another number of messages than one.
fn not_one(text: &str) -> Broken {
    Broken::Refused(Status::new(UNIMPLEMENTED, text, None))
}

fn internal(text: &str) -> Broken {
    Broken::Refused(Status::new(INTERNAL, text, None))
}
