//! One connection: handshake, HTTP/2, the tasks of its calls, age, and going away.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::batched_io::{BatchedIo, Chunks};
use crate::call::{self, Shared};
use crate::calls::{Calls, Ticket};
use crate::clock::duration;
use crate::config::{Limits, Settings};
use crate::figures::Figures;
use crate::peer::{Peer, identity};
use crate::server::Phases;
use crate::timed_io::TimedIo;
use crate::tls::{Certificates, H2};

/// Frames up to this are accepted. A large message then comes in few reads: at 600 KB a message, frames of 64 KiB cost a
/// third more of the server's time. A frame in parts is not in `held_bytes`; its stream's window bounds it all the same.
const MAX_FRAME: u32 = 1 << 20;
/// Resets of one connection that are taken for rudeness, not for an attack. h2's own 20 cuts clients that cancel in bursts.
const MAX_RESETS: usize = 256;
/// Bytes of a response that h2 may hold for a stream.
const SEND_BUFFER: usize = 256 << 10;

/// What all connections share.
#[derive(Clone)]
pub struct Common {
    /// The open calls.
    pub calls: Rc<Calls>,
    /// Limits and refusals.
    pub settings: Arc<Settings>,
    /// Counters.
    pub figures: Arc<Figures>,
    /// Memory for what is read and written.
    pub chunks: Rc<Chunks>,
}

/// Where a connection came in.
pub struct Arrival {
    /// Index of the exposure.
    pub exposure: usize,
    /// The caller's address as text.
    pub address: String,
    /// TLS, if the exposure has it.
    pub certificates: Option<Arc<Certificates>>,
}

/// Serves a connection until its end.
pub async fn serve<IO>(common: &Common, arrival: Arrival, io: IO, phases: Phases)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = &common.settings.limits;
    let handshake = Instant::now() + duration(limits.handshake_timeout);
    let Arrival {
        exposure,
        address,
        certificates,
    } = arrival;
    let Some(certificates) = certificates else {
        let peer = Peer::new(exposure, address, None);
        return speak(common, peer, TimedIo::new(io, handshake, limits), phases).await;
    };
    let acceptor = TlsAcceptor::from(certificates.present());
    let Ok(Ok(stream)) = timeout_at(handshake, acceptor.accept(io)).await else {
        return;
    };
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(H2) {
        return;
    }
    let identity = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| identity(certificate));
    let peer = Peer::new(exposure, address, identity);
    speak(common, peer, TimedIo::new(stream, handshake, limits), phases).await;
}

async fn speak<IO>(common: &Common, peer: Peer, io: IO, mut phases: Phases)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = &common.settings.limits;
    let exposure = peer.exposure;
    let shared = Rc::new(Shared {
        calls: Rc::clone(&common.calls),
        settings: Arc::clone(&common.settings),
        figures: Arc::clone(&common.figures),
        peer: Arc::new(peer),
    });
    let spawner = Spawner {
        calls: Rc::clone(&common.calls),
        next: Rc::new(Cell::new(None)),
    };
    let next = Rc::clone(&spawner.next);
    let service = service_fn(move |request: Request<Incoming>| {
        let (ticket, run) = call::serve(&shared, &shared.settings.exposures[exposure], request);
        next.set(ticket);
        run
    });
    let io = BatchedIo::new(io, &common.chunks);
    let mut connection = pin!(builder(limits, spawner).serve_connection(TokioIo::new(io.clone()), service));
    let mut age = pin!(sleep(age(limits.max_connection_age)));
    let mut aged = false;
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            () = poll_fn(|context| {
                let polled = connection.as_mut().poll(context);
                match io.poll_send(context) {
                    Poll::Ready(Err(_)) => Poll::Ready(()),
                    _ => polled.map(drop),
                }
            }) => return,
            () = phases.leave(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            () = age.as_mut() => {
                if aged {
                    return;
                }
                aged = true;
                age.as_mut().reset(Instant::now() + duration(limits.max_connection_age_grace));
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn builder(limits: &Limits, spawner: Spawner) -> http2::Builder<Spawner> {
    let mut builder = http2::Builder::new(spawner);
    // Above our own limit, whose refusal is a gRPC status; h2's is HTTP 431.
    let headers = u32::try_from(limits.max_metadata_bytes).unwrap_or(u32::MAX);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_concurrent_streams(limits.max_streams)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(headers.saturating_mul(2).max(64 << 10))
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .keep_alive_timeout(duration(limits.keepalive_timeout));
    if limits.keepalive_time > 0.0 {
        builder.keep_alive_interval(duration(limits.keepalive_time));
    }
    builder
}

/// The age at which a connection goes, with its jitter of 10 % either way; endless for 0.
fn age(seconds: f64) -> std::time::Duration {
    if seconds <= 0.0 {
        return duration(f64::INFINITY);
    }
    // The standard library's random hash keys are chance enough.
    let chance = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
    duration(seconds * (0.9 + 0.2 * chance))
}

/// Spawns the tasks of calls.
///
/// hyper hands over the task of a request right after it has called the service with it: so the service leaves the
/// ticket of the call here.
#[derive(Clone)]
struct Spawner {
    calls: Rc<Calls>,
    next: Rc<Cell<Option<Ticket>>>,
}

impl<F> Executor<F> for Spawner
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, run: F) {
        match self.next.take() {
            None => drop(tokio::task::spawn_local(run)),
            Some(ticket) => drop(tokio::task::spawn_local(Running {
                run,
                entry: Entry {
                    calls: Rc::clone(&self.calls),
                    ticket,
                },
            })),
        }
    }
}

pin_project_lite::pin_project! {
    /// The task of a call: known to the table of calls, which can stop it; gone from there when it ends.
    struct Running<F> {
        #[pin]
        run: F,
        entry: Entry,
    }
}

struct Entry {
    calls: Rc<Calls>,
    ticket: Ticket,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.calls.remove(self.ticket);
    }
}

impl<F: Future<Output = ()>> Future for Running<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let Entry { calls, ticket } = this.entry;
        if calls.enter(*ticket, context.waker()) {
            // Dropping the stream resets it.
            return Poll::Ready(());
        }
        let polled = this.run.poll(context);
        if polled.is_pending() {
            calls.leave(*ticket);
        }
        polled
    }
}
