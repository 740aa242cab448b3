//! Forebay's native front end: a gRPC server as a source of events and a sink of actions, see `wire/port.py`.
//!
//! This file is its Python surface. One thread, `forebay-io`, owns the sockets and never takes the GIL; the taker's thread
//! meets it in two queues. It knows bytes and method names, nothing of protobuf or models.

pub mod batched_io;
pub mod call;
pub mod calls;
pub mod clock;
pub mod config;
pub mod connection;
pub mod figures;
pub mod framing;
pub mod gathering;
pub mod guard;
pub mod handover;
pub mod headers;
pub mod listen;
pub mod lookout;
pub mod os;
pub mod outbox;
pub mod peer;
pub mod python;
pub mod queue;
pub mod server;
pub mod status;
pub mod timed_io;
pub mod timers;
pub mod tls;
pub mod watchdog;

/// The Python module.
#[pyo3::pymodule(gil_used = true)]
mod forebay_native {
    #[pymodule_export]
    use crate::python::{Server, StartError};
}
