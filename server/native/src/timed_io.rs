//! I/O with two time limits that hyper does not have: for the preface, and for a peer that takes no bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::clock::duration;
use crate::config::Limits;

/// Bytes of the preface with the header of the SETTINGS frame that has to follow it.
const PREFACE: usize = 24 + 9;

/// Fails when a limit has passed.
pub struct TimedIo<IO> {
    io: IO,
    /// Bytes of the preface that have not come.
    missing: usize,
    handshake: Option<Pin<Box<Sleep>>>,
    write_stall: Duration,
    /// Runs while the peer takes nothing. Without it a connection whose keepalive has failed would wait for ever to say so.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<IO> TimedIo<IO> {
    /// `end` is that of the handshake.
    pub fn new(io: IO, end: Instant, limits: &Limits) -> Self {
        Self {
            io,
            missing: PREFACE,
            handshake: Some(Box::pin(sleep_until(end))),
            write_stall: duration(limits.write_stall),
            stalled: None,
        }
    }

    fn time_write<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let limit = self.write_stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        stalled
            .as_mut()
            .poll(context)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for TimedIo<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        let Some(handshake) = &mut self.handshake else {
            return polled;
        };
        if handshake.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let read = buffer.filled().len() - before;
        self.missing = self.missing.saturating_sub(read);
        if self.missing == 0 {
            self.handshake = None;
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for TimedIo<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        self.time_write(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(context);
        if polled.is_ready() {
            return polled; // says nothing of what the peer took: a socket has no buffer to flush
        }
        self.time_write(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(context);
        self.time_write(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, buffers);
        self.time_write(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
