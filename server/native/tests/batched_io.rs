//! Batched I/O: whatever is asked for and whatever the socket gives and takes, the bytes are the same.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use forebay_native::batched_io::{BatchedIo, CHUNK, Chunks};
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A socket that gives and takes what it is told to, and takes notes.
#[derive(Clone, Default)]
struct Socket(Rc<RefCell<Notes>>);

#[derive(Default)]
struct Notes {
    /// What there is to read.
    incoming: VecDeque<u8>,
    /// The most bytes that each of the next reads and writes moves; 0: it is not ready. Behind them there is no limit.
    limits: VecDeque<usize>,
    reads: usize,
    written: Vec<u8>,
    /// The bytes of each write.
    writes: Vec<usize>,
    shut: bool,
    broken: bool,
}

impl Notes {
    fn limit(&mut self) -> Poll<usize> {
        match self.limits.pop_front() {
            Some(0) => Poll::Pending,
            Some(most) => Poll::Ready(most),
            None => Poll::Ready(usize::MAX),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut notes = self.0.borrow_mut();
        notes.reads += 1;
        let Poll::Ready(most) = notes.limit() else {
            return Poll::Pending;
        };
        let count = most.min(buffer.remaining()).min(notes.incoming.len());
        let bytes: Vec<u8> = notes.incoming.drain(..count).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut notes = self.0.borrow_mut();
        if notes.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let Poll::Ready(most) = notes.limit() else {
            return Poll::Pending;
        };
        let before = notes.written.len();
        notes
            .written
            .extend(buffers.iter().flat_map(|bytes| bytes.iter()).take(most));
        let count = notes.written.len() - before;
        notes.writes.push(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().shut = true;
        Poll::Ready(Ok(()))
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn batched(socket: &Socket) -> BatchedIo<Socket> {
    BatchedIo::new(socket.clone(), &Rc::default())
}

fn read(io: &mut BatchedIo<Socket>, most: usize) -> Poll<Vec<u8>> {
    let mut memory = vec![0; most];
    let mut buffer = ReadBuf::new(&mut memory);
    Pin::new(io)
        .poll_read(&mut context(), &mut buffer)
        .map(|result| result.map(|()| buffer.filled().to_vec()).unwrap())
}

fn write(io: &mut BatchedIo<Socket>, bytes: &[u8]) -> Poll<usize> {
    let (head, rest) = bytes.split_at(bytes.len().min(9));
    let slices = [IoSlice::new(head), IoSlice::new(rest)];
    Pin::new(io)
        .poll_write_vectored(&mut context(), &slices)
        .map(Result::unwrap)
}

fn numbered(count: usize) -> Vec<u8> {
    (0..count).map(|number| (number % 251) as u8).collect()
}

#[test]
fn many_small_reads_are_one() {
    let socket = Socket::default();
    let mut io = batched(&socket);
    socket.0.borrow_mut().incoming.extend(numbered(40_000));
    let got: Vec<u8> = (0..5)
        .flat_map(|_| match read(&mut io, 8192) {
            Poll::Ready(bytes) => bytes,
            Poll::Pending => panic!("there is more"),
        })
        .collect();
    assert_eq!(got, numbered(40_000));
    assert_eq!(socket.0.borrow().reads, 1);
}

#[test]
fn a_large_read_goes_past_the_chunk() {
    let socket = Socket::default();
    let mut io = batched(&socket);
    socket.0.borrow_mut().incoming.extend(numbered(3 * CHUNK));
    assert_eq!(read(&mut io, 3 * CHUNK), Poll::Ready(numbered(3 * CHUNK)));
    assert_eq!(socket.0.borrow().reads, 1);
}

#[test]
fn the_end_is_told_after_all_that_came_before_it() {
    let socket = Socket::default();
    let mut io = batched(&socket);
    socket.0.borrow_mut().incoming.extend(b"last");
    assert_eq!(read(&mut io, 3), Poll::Ready(b"las".to_vec()));
    assert_eq!(read(&mut io, 3), Poll::Ready(b"t".to_vec()));
    assert_eq!(read(&mut io, 3), Poll::Ready(Vec::new()));
}

#[test]
fn what_is_written_goes_out_together_and_only_when_it_is_sent() {
    let socket = Socket::default();
    let mut io = batched(&socket);
    for _ in 0..4 {
        assert_eq!(write(&mut io, &numbered(2000)), Poll::Ready(2000));
        assert!(Pin::new(&mut io).poll_flush(&mut context()).is_ready());
    }
    assert!(socket.0.borrow().writes.is_empty());
    assert!(io.poll_send(&mut context()).is_ready());
    assert_eq!(socket.0.borrow().writes, [8000]);
    assert_eq!(socket.0.borrow().written, numbered(2000).repeat(4));
}

#[test]
fn what_has_no_room_goes_out_with_what_is_there() {
    let socket = Socket::default();
    let mut io = batched(&socket);
    let bytes = numbered(CHUNK);
    assert_eq!(write(&mut io, &bytes[..CHUNK - 1]), Poll::Ready(CHUNK - 1));
    assert_eq!(write(&mut io, &bytes[..CHUNK - 1]), Poll::Ready(CHUNK - 1));
    assert_eq!(socket.0.borrow().writes, [2 * (CHUNK - 1)]);
    // A chunk, or more, is never copied.
    assert_eq!(write(&mut io, &bytes), Poll::Ready(CHUNK));
    assert_eq!(socket.0.borrow().writes, [2 * (CHUNK - 1), CHUNK]);
}

#[test]
fn a_writer_waits_for_a_socket_that_takes_nothing() {
    let socket = Socket::default();
    let mut io = batched(&socket);
    assert_eq!(write(&mut io, &numbered(CHUNK - 1)), Poll::Ready(CHUNK - 1));
    socket.0.borrow_mut().limits.extend([0, 0, 100, 0]);
    assert!(io.poll_send(&mut context()).is_pending());
    assert_eq!(write(&mut io, b"more"), Poll::Pending);
    // Something of what is there has gone, nothing of what is new.
    assert_eq!(write(&mut io, b"more"), Poll::Pending);
    assert_eq!(socket.0.borrow().writes, [100]);
    assert_eq!(write(&mut io, b"more"), Poll::Ready(4));
    assert_eq!(
        socket.0.borrow().written,
        [numbered(CHUNK - 1), b"more".to_vec()].concat()
    );
}

#[test]
fn a_shutdown_sends_first() {
    let socket = Socket::default();
    let mut io = batched(&socket);
    assert_eq!(write(&mut io, b"good-bye"), Poll::Ready(8));
    socket.0.borrow_mut().limits.extend([3, 0]);
    assert!(Pin::new(&mut io).poll_shutdown(&mut context()).is_pending());
    assert!(!socket.0.borrow().shut);
    assert!(Pin::new(&mut io).poll_shutdown(&mut context()).is_ready());
    assert_eq!(socket.0.borrow().written, b"good-bye");
    assert!(socket.0.borrow().shut);
}

#[test]
fn a_broken_socket_is_told_by_the_sending() {
    let socket = Socket::default();
    let mut io = batched(&socket);
    assert_eq!(write(&mut io, b"lost"), Poll::Ready(4));
    socket.0.borrow_mut().broken = true;
    let sent = io.poll_send(&mut context());
    assert!(matches!(sent, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe));
}

#[test]
fn memory_is_given_back_when_nothing_is_on_its_way() {
    let chunks = Rc::new(Chunks::default());
    let socket = Socket::default();
    for _ in 0..3 {
        let mut io = BatchedIo::new(socket.clone(), &chunks);
        socket.0.borrow_mut().incoming.extend(b"ab");
        assert_eq!(read(&mut io, 2), Poll::Ready(b"ab".to_vec()));
        assert_eq!(write(&mut io, b"ab"), Poll::Ready(2));
        assert_eq!(chunks.free(), 0);
        assert!(io.poll_send(&mut context()).is_ready());
        assert_eq!(chunks.free(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_of_any_size_give_the_same_bytes(
        length in 0..4 * CHUNK,
        limits in prop::collection::vec(prop_oneof![Just(0), 1..20_usize, 1..2 * CHUNK], 0..12),
        sizes in prop::collection::vec(prop_oneof![300..9000_usize, 1..2 * CHUNK], 1..6),
    ) {
        let socket = Socket::default();
        let mut io = batched(&socket);
        socket.0.borrow_mut().incoming.extend(numbered(length));
        socket.0.borrow_mut().limits.extend(limits);
        let mut got = Vec::new();
        for &size in sizes.iter().cycle() {
            match read(&mut io, size) {
                Poll::Pending => {}
                Poll::Ready(bytes) if bytes.is_empty() => break,
                Poll::Ready(bytes) => got.extend(bytes),
            }
        }
        prop_assert_eq!(got, numbered(length));
    }

    #[test]
    fn writes_of_any_size_give_the_same_bytes(
        limits in prop::collection::vec(prop_oneof![Just(0), 1..20_usize, 1..2 * CHUNK], 0..40),
        sizes in prop::collection::vec((prop_oneof![1..20_usize, 1..2 * CHUNK], any::<bool>()), 1..12),
    ) {
        let socket = Socket::default();
        let mut io = batched(&socket);
        socket.0.borrow_mut().limits.extend(limits);
        let mut expected = Vec::new();
        for (size, send) in sizes {
            let bytes = numbered(size);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                if let Poll::Ready(count) = write(&mut io, rest) {
                    rest = &rest[count..];
                }
            }
            expected.extend(bytes);
            if send {
                while io.poll_send(&mut context()).is_pending() {}
                prop_assert_eq!(&socket.0.borrow().written, &expected);
            }
        }
        while io.poll_send(&mut context()).is_pending() {}
        prop_assert_eq!(&socket.0.borrow().written, &expected);
    }
}
