//! I/O in few system calls: reads ahead, and sends together what one poll of a connection has written.
//!
//! h2 reads into what is left of a buffer of 8 KiB, and writes each DATA frame by itself. Messages of a few KiB then cost
//! nearly two reads and one write each, and on loopback a write wakes the other end.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a chunk. What is as large is read and written without a copy.
pub const CHUNK: usize = 64 << 10;
/// Chunks that are kept while nobody uses them.
const KEPT: usize = 16;
/// Slices of one write.
const SLICES: usize = 16;

/// Memory for bytes on their way, shared by all connections: one has some only while such bytes are there. I/O thread
/// only.
#[derive(Debug, Default)]
pub struct Chunks {
    free: RefCell<Vec<Box<[u8]>>>,
}

impl Chunks {
    /// How many are kept.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.borrow().len()
    }

    fn lend(&self) -> Chunk {
        let memory = self.free.borrow_mut().pop();
        Chunk {
            memory: memory.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()),
            start: 0,
            end: 0,
        }
    }

    fn give_back(&self, chunk: Chunk) {
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT {
            free.push(chunk.memory);
        }
    }
}

/// A queue of bytes.
#[derive(Debug)]
struct Chunk {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    fn room(&self) -> usize {
        CHUNK - self.end
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.end + bytes.len();
        self.memory[self.end..end].copy_from_slice(bytes);
        self.end = end;
    }

    /// Drops the first of its bytes; whether none is left.
    fn drain(&mut self, count: usize) -> bool {
        self.start += count;
        self.start == self.end
    }
}

/// Batches the I/O of a connection. Both handles are of the same; the one that does not read and write sends.
///
/// It is never flushed by who writes: what is written goes out with `poll_send`, or when it is a chunk.
pub struct BatchedIo<IO>(Rc<RefCell<State<IO>>>);

struct State<IO> {
    io: IO,
    chunks: Rc<Chunks>,
    /// Read, and not yet asked for.
    ahead: Option<Chunk>,
    /// Written, and not yet sent.
    behind: Option<Chunk>,
}

impl<IO> Clone for BatchedIo<IO> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<IO> BatchedIo<IO> {
    /// Over `io`, with memory of `chunks`.
    pub fn new(io: IO, chunks: &Rc<Chunks>) -> Self {
        Self(Rc::new(RefCell::new(State {
            io,
            chunks: Rc::clone(chunks),
            ahead: None,
            behind: None,
        })))
    }
}

impl<IO: AsyncWrite + Unpin> BatchedIo<IO> {
    /// Sends what was written. To be called after each poll of who writes, by the same task.
    pub fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(context)
    }
}

impl<IO: AsyncRead + Unpin> State<IO> {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_none() {
            if buffer.remaining() >= CHUNK {
                return Pin::new(&mut self.io).poll_read(context, buffer);
            }
            let mut chunk = self.chunks.lend();
            let mut all = ReadBuf::new(&mut chunk.memory);
            let polled = Pin::new(&mut self.io).poll_read(context, &mut all);
            chunk.end = all.filled().len();
            if !matches!(polled, Poll::Ready(Ok(()))) || chunk.end == 0 {
                self.chunks.give_back(chunk);
                return polled;
            }
            self.ahead = Some(chunk);
        }
        if let Some(mut chunk) = self.ahead.take() {
            let count = chunk.bytes().len().min(buffer.remaining());
            buffer.put_slice(&chunk.bytes()[..count]);
            if chunk.drain(count) {
                self.chunks.give_back(chunk);
            } else {
                self.ahead = Some(chunk);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> State<IO> {
    /// Takes all of it, if there is room; else sends what is there with it, until some of it has gone.
    fn poll_write(&mut self, context: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = buffers.iter().map(|buffer| buffer.len()).sum();
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        loop {
            let room = self.behind.as_ref().map_or(CHUNK, Chunk::room);
            if length < CHUNK && length <= room {
                let chunk = self.behind.get_or_insert_with(|| self.chunks.lend());
                for buffer in buffers {
                    chunk.put(buffer);
                }
                return Poll::Ready(Ok(length));
            }
            let sent = ready!(self.poll_write_through(context, buffers))?;
            if sent > 0 {
                return Poll::Ready(Ok(sent));
            }
        }
    }

    /// One write of what is there and of these behind it; how much of these has gone.
    fn poll_write_through(&mut self, context: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let there = self.behind.as_ref().map_or(&[][..], Chunk::bytes);
        let all = std::iter::once(IoSlice::new(there)).chain(buffers.iter().copied());
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(all.filter(|bytes| !bytes.is_empty())) {
            *slice = bytes;
            count += 1;
        }
        let held = there.len();
        let sent = ready!(Pin::new(&mut self.io).poll_write_vectored(context, &slices[..count]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.gone(sent.min(held));
        Poll::Ready(Ok(sent.saturating_sub(held)))
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.behind.is_some() {
            ready!(self.poll_write_through(context, &[]))?;
        }
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn gone(&mut self, count: usize) {
        if let Some(mut chunk) = self.behind.take() {
            if chunk.drain(count) {
                self.chunks.give_back(chunk);
            } else {
                self.behind = Some(chunk);
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for BatchedIo<IO> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for BatchedIo<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // h2 asks after each frame; see `poll_send`
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        ready!(state.poll_send(context))?;
        Pin::new(&mut state.io).poll_shutdown(context)
    }
}
