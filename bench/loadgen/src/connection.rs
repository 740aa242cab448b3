//! HTTP/2 connections that are opened again when they break, and one gRPC call on them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{self, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::status::{self, Failure};

const WINDOW: u32 = 8 << 20; // bytes, of a stream
const CONNECTION_WINDOW: u32 = 256 << 20; // bytes
/// Calls that were given up are remembered this long, so that their late answers do no harm.
const RESET_MEMORY: Duration = Duration::from_secs(10);
const RECONNECT: Duration = Duration::from_millis(50);

/// The right to send requests on a connection.
pub type Sender = SendRequest<Bytes>;

/// One connection, replaced when it breaks.
pub struct Link {
    target: String,
    sender: RefCell<Option<Sender>>,
}

impl Link {
    /// Connects, and stays connected in a task of its own.
    ///
    /// # Errors
    /// The server cannot be reached or speaks no HTTP/2: a sentence for people.
    pub async fn open(target: &str) -> Result<Rc<Self>, String> {
        let connection = connect(target).await.map_err(|error| format!("cannot connect to {target}: {error}"))?;
        let link = Rc::new(Self { target: target.to_owned(), sender: RefCell::new(Some(connection.0)) });
        tokio::task::spawn_local(Rc::clone(&link).keep(connection.1));
        Ok(link)
    }

    async fn keep(self: Rc<Self>, mut connection: client::Connection<TcpStream, Bytes>) {
        loop {
            // Calls on it see their own errors.
            let _ = (&mut connection).await;
            *self.sender.borrow_mut() = None;
            connection = loop {
                sleep(RECONNECT).await;
                if let Ok((sender, connection)) = connect(&self.target).await {
                    *self.sender.borrow_mut() = Some(sender);
                    break connection;
                }
            };
        }
    }

    /// Somebody's own right to send; None while the connection is being opened again.
    #[must_use]
    pub fn sender(&self) -> Option<Sender> {
        self.sender.borrow().clone()
    }
}

async fn connect(target: &str) -> Result<(Sender, client::Connection<TcpStream, Bytes>), Box<dyn std::error::Error>> {
    let socket = TcpStream::connect(target).await?;
    socket.set_nodelay(true)?;
    let connection = client::Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_reset_streams(100_000)
        .reset_stream_duration(RESET_MEMORY)
        .max_send_buffer_size(64 << 20)
        .handshake(socket)
        .await?;
    Ok(connection)
}

/// The headers of a call, built once.
#[derive(Clone)]
pub struct Head {
    request: Request<()>,
    deadline: Duration,
}

impl Head {
    /// Headers for `path` with `deadline` as the gRPC deadline.
    ///
    /// # Errors
    /// The target or path makes no URI.
    pub fn new(target: &str, path: &str, deadline: Duration) -> Result<Self, String> {
        let mut request = Request::new(());
        *request.uri_mut() =
            format!("http://{target}{path}").parse().map_err(|_| format!("`{target}` is no host:port"))?;
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("user-agent", HeaderValue::from_static("forebay-loadgen"));
        headers.insert("grpc-timeout", grpc_timeout(deadline));
        Ok(Self { request, deadline })
    }

    /// A request with the whole deadline ahead of it.
    #[must_use]
    pub fn whole(&self) -> Request<()> {
        self.request.clone()
    }

    /// A request whose deadline is `remaining` away. A difference below a millisecond is not told to the server, so
    /// that the header stays in HPACK's table, as it does with callers who use one deadline.
    fn request(&self, remaining: Duration) -> Request<()> {
        let mut request = self.request.clone();
        if self.deadline.saturating_sub(remaining) > Duration::from_millis(1) {
            request.headers_mut().insert("grpc-timeout", grpc_timeout(remaining));
        }
        request
    }
}

fn grpc_timeout(duration: Duration) -> HeaderValue {
    let (microseconds, milliseconds) = (duration.as_micros(), duration.as_millis());
    // At most eight digits.
    let text = if microseconds < 100_000_000 {
        format!("{microseconds}u")
    } else {
        format!("{}m", milliseconds.min(99_999_999))
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("99999999m"))
}

/// One unary call: its answer's message.
///
/// # Errors
/// Whatever status it ended with, or what was seen here: a deadline that passed, a reset, a broken connection.
pub async fn unary(sender: &mut Sender, head: &Head, message: Bytes, deadline: Instant) -> Result<Bytes, Failure> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    if remaining.is_zero() {
        return Err(Failure::local("DEADLINE_EXCEEDED", "not sent in time"));
    }
    timeout_at(deadline, exchange(sender, head.request(remaining), message))
        .await
        .unwrap_or_else(|_| Err(Failure::local("DEADLINE_EXCEEDED", "given up by the caller")))
}

async fn exchange(sender: &mut Sender, request: Request<()>, message: Bytes) -> Result<Bytes, Failure> {
    poll_fn(|context| sender.poll_ready(context)).await.map_err(|error| of_error(&error))?;
    let (response, mut stream) = sender.send_request(request, false).map_err(|error| of_error(&error))?;
    stream.send_data(message, true).map_err(|error| of_error(&error))?;
    let (head, mut body) = response.await.map_err(|error| of_error(&error))?.into_parts();
    accepted(head.status, &head.headers)?;
    let mut whole = None;
    while let Some(chunk) = receive(&mut body).await? {
        whole = Some(match whole {
            None => chunk,
            Some(before) => join(&before, &chunk),
        });
    }
    let trailers = body.trailers().await.map_err(|error| of_error(&error))?;
    status::of_trailers(trailers.as_ref().unwrap_or(&head.headers))?;
    single(whole.unwrap_or_default())
}

/// Whether the head of a response is that of a gRPC response which goes on.
///
/// # Errors
/// It is the status of a call that ended without a message, or no gRPC.
pub fn accepted(http: http::StatusCode, headers: &HeaderMap) -> Result<(), Failure> {
    if headers.contains_key("grpc-status") {
        // Trailers-only: with status 0 the missing message is found later.
        return status::of_trailers(headers);
    }
    if http == http::StatusCode::OK {
        Ok(())
    } else {
        Err(Failure::local("UNKNOWN", &format!("http {}", http.as_u16())))
    }
}

/// The next bytes of a response, with their flow-control credit given back; None at the end.
///
/// # Errors
/// The stream or connection broke.
pub async fn receive(body: &mut RecvStream) -> Result<Option<Bytes>, Failure> {
    match body.data().await {
        None => Ok(None),
        Some(Ok(chunk)) => {
            // It fails only for a stream that is gone, which the next read says.
            let _ = body.flow_control().release_capacity(chunk.len());
            Ok(Some(chunk))
        }
        Some(Err(error)) => Err(of_error(&error)),
    }
}

fn join(before: &Bytes, chunk: &Bytes) -> Bytes {
    let mut whole = BytesMut::with_capacity(before.len() + chunk.len());
    whole.extend_from_slice(before);
    whole.extend_from_slice(chunk);
    whole.freeze()
}

fn single(mut body: Bytes) -> Result<Bytes, Failure> {
    let wrong = || Failure::local("INTERNAL", "not one whole message");
    let (prefix, _) = body.split_first_chunk::<5>().ok_or_else(wrong)?;
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 || u32::from_be_bytes(length) as usize != body.len() - 5 {
        return Err(wrong());
    }
    body.advance(5);
    Ok(body)
}

/// What gRPC makes of an HTTP/2 error.
#[must_use]
pub fn of_error(error: &h2::Error) -> Failure {
    match error.reason() {
        Some(Reason::CANCEL) => Failure::local("CANCELLED", "reset"),
        Some(Reason::REFUSED_STREAM) => Failure::local("UNAVAILABLE", "refused stream"),
        Some(Reason::ENHANCE_YOUR_CALM) => Failure::local("RESOURCE_EXHAUSTED", "enhance your calm"),
        Some(reason) if error.is_reset() => Failure::local("INTERNAL", &format!("reset: {reason:?}").to_lowercase()),
        _ => Failure::local("UNAVAILABLE", "connection broke"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_at_most_eight_digits() {
        assert_eq!(grpc_timeout(Duration::from_millis(100)), "100000u");
        assert_eq!(grpc_timeout(Duration::from_micros(99_999_999)), "99999999u");
        assert_eq!(grpc_timeout(Duration::from_secs(100)), "100000m");
        assert_eq!(grpc_timeout(Duration::from_secs(1_000_000)), "99999999m");
    }

    #[test]
    fn a_late_request_tells_the_server_the_time_that_is_left() {
        let head = Head::new("h:1", "/s/m", Duration::from_millis(100)).unwrap();
        let told = |remaining| head.request(remaining).headers().get("grpc-timeout").cloned().unwrap();
        assert_eq!(told(Duration::from_millis(100)), "100000u");
        assert_eq!(told(Duration::from_micros(99_500)), "100000u");
        assert_eq!(told(Duration::from_millis(40)), "40000u");
    }

    #[test]
    fn a_body_is_exactly_one_uncompressed_message() {
        assert_eq!(single(Bytes::from_static(&[0, 0, 0, 0, 2, 7, 8])), Ok(Bytes::from_static(&[7, 8])));
        assert_eq!(single(Bytes::from_static(&[0, 0, 0, 0, 0])), Ok(Bytes::new()));
        for wrong in [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 0, 0]] {
            assert!(single(Bytes::copy_from_slice(wrong)).is_err(), "{wrong:?}");
        }
    }
}
