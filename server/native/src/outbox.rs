//! What a call has still to send, and the level of a stream's outbox as Python sees it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::AcqRel};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use crate::queue::{Framed, lock};

/// Longest piece that is handed to hyper at once: progress of a slow reader is seen in these steps.
const PIECE: usize = 64 << 10;
/// Small messages are joined up to this, so that each does not cost a frame.
const JOIN: usize = 8 << 10;

/// Queued messages of one call. I/O thread only.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: VecDeque<Bytes>,
}

impl Outbox {
    /// Queues a message.
    pub fn push(&mut self, message: Framed) {
        self.pieces.push_back(message.head);
        self.pieces.extend(message.rest);
    }

    /// Takes what goes into the next DATA frames.
    pub fn pop(&mut self) -> Option<Bytes> {
        let mut first = self.pieces.pop_front()?;
        if first.len() > PIECE {
            let piece = first.split_to(PIECE);
            self.pieces.push_front(first);
            return Some(piece);
        }
        let fits = |length: usize, next: &Bytes| length + next.len() <= JOIN;
        match self.pieces.front() {
            Some(next) if fits(first.len(), next) => {}
            _ => return Some(first),
        }
        let mut joined = BytesMut::with_capacity(JOIN);
        joined.extend_from_slice(&first);
        while let Some(next) = self.pieces.front() {
            if !fits(joined.len(), next) {
                break;
            }
            joined.extend_from_slice(next);
            self.pieces.pop_front();
        }
        Some(joined.freeze())
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Drops what is queued.
    pub fn clear(&mut self) {
        self.pieces = VecDeque::new();
    }
}

/// Bytes that a stream has been given to send and has not handed on. Both threads.
#[derive(Debug, Default)]
pub struct Level {
    bytes: AtomicUsize,
    full: AtomicBool,
}

impl Level {
    /// Before a message is handed to the I/O thread. Returns whether the outbox is full.
    pub fn rise(&self, bytes: usize, high: usize) -> bool {
        let full = self.bytes.fetch_add(bytes, AcqRel) + bytes > high;
        if full {
            self.full.store(true, std::sync::atomic::Ordering::Release);
        }
        full
    }

    /// After a message was handed on. Returns whether WRITABLE is due.
    ///
    /// The last message that made it full is handed on after `rise` said so, hence no wake-up is lost.
    pub fn fall(&self, bytes: usize, high: usize) -> bool {
        let left = self.bytes.fetch_sub(bytes, AcqRel) - bytes;
        left < high / 2 && self.full.load(std::sync::atomic::Ordering::Acquire) && self.full.swap(false, AcqRel)
    }
}

/// The levels of open streams, for `answer`.
#[derive(Debug, Default)]
pub struct Levels {
    streams: Mutex<HashMap<u64, Arc<Level>>>,
}

impl Levels {
    /// A stream opens.
    pub fn open(&self, call: u64) -> Arc<Level> {
        let level = Arc::new(Level::default());
        lock(&self.streams).insert(call, Arc::clone(&level));
        level
    }

    /// A stream is gone.
    pub fn close(&self, call: u64) {
        lock(&self.streams).remove(&call);
    }

    /// The level of a stream that is still open.
    #[must_use]
    pub fn get(&self, call: u64) -> Option<Arc<Level>> {
        lock(&self.streams).get(&call).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(length: usize) -> Framed {
        Framed {
            head: Bytes::from(vec![1; length]),
            rest: None,
        }
    }

    #[test]
    fn small_messages_are_joined_and_large_ones_cut() {
        let mut outbox = Outbox::default();
        for length in [10, 20, JOIN, PIECE + 1, 5] {
            outbox.push(framed(length));
        }
        let lengths: Vec<usize> = std::iter::from_fn(|| outbox.pop()).map(|piece| piece.len()).collect();
        assert_eq!(lengths, [30, JOIN, PIECE, 6]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_full_outbox_reports_once_that_it_has_drained_below_half() {
        let level = Level::default();
        assert!(!level.rise(60, 100));
        assert!(level.rise(60, 100));
        assert!(level.rise(1, 100));
        assert!(!level.fall(60, 100));
        assert!(level.fall(60, 100));
        assert!(!level.fall(1, 100));
    }
}
