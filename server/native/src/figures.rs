//! Counters and gauges, written on the I/O thread (but for `held_bytes`, which the taker lowers), read from any.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// See `wire.port.Figures`.
#[derive(Debug, Default)]
pub struct Figures {
    /// Open connections.
    pub connections: AtomicU64,
    /// Connections ever accepted.
    pub connections_total: AtomicU64,
    /// Open calls.
    pub calls: AtomicU64,
    /// Calls ever begun.
    pub calls_total: AtomicU64,
    /// Bytes of messages in parts, or not taken yet. Taken ones are the taker's to count.
    pub held_bytes: AtomicUsize,
    /// Bytes of request messages, with their prefixes.
    pub received_bytes_total: AtomicU64,
    /// Bytes of response messages, with their prefixes.
    pub sent_bytes_total: AtomicU64,
    /// Calls refused without Python.
    pub refused_total: AtomicU64,
}

impl Figures {
    /// Counts `bytes` as held, unless that would exceed `limit`.
    pub fn hold(&self, bytes: usize, limit: usize) -> bool {
        if self.held_bytes.fetch_add(bytes, Relaxed) + bytes <= limit {
            return true;
        }
        self.release(bytes);
        false
    }

    /// The opposite of `hold`.
    pub fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.held_bytes.fetch_sub(bytes, Relaxed);
        }
    }
}

/// Adds to a counter that only the I/O thread writes: without a locked instruction.
pub fn count(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed) + amount, Relaxed);
}
