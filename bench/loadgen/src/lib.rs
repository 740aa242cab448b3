//! A load generator for gRPC inference that is not the bottleneck of what it measures.
//!
//! One thread, HTTP/2 by `h2` directly, requests prepared in a file, and protobuf walked by hand. `schedule`, `proto`,
//! `calls` and `record` are pure; `connection`, `unary`, `submit` and `stream` do the work; `main` joins them. The binary
//! `fixed-server` answers from the same file without a model: it shows the generator's own limit.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "short literals"))]

pub mod calls;
pub mod connection;
pub mod options;
pub mod proto;
pub mod record;
pub mod schedule;
pub mod status;
pub mod stream;
pub mod submit;
pub mod timer;
pub mod unary;
