//! `Submit`: the prepared requests as jobs, each under an idempotency key of its own.

use std::cell::Cell;
use std::time::SystemTime;

use bytes::Bytes;

use crate::calls::{Call, Mismatch, frame};
use crate::proto::{Fields, Malformed, Value, put_varint};

/// The path of the RPC.
pub const PATH: &str = "/forebay.v1.JobService/Submit";
const REQUEST: u8 = 0x0a; // field 1, a message
const REQUEST_ID: u8 = 0x12; // field 2, a string
const PENDING: u64 = 1;
const RUNNING: u64 = 2;
const ID_LENGTH: usize = 32;

/// Keys that no other run uses.
pub struct Keys {
    run: u128,
    next: Cell<u64>,
}

impl Default for Keys {
    fn default() -> Self {
        let run = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
        Self { run, next: Cell::new(0) }
    }
}

impl Keys {
    /// The `SubmitRequest` for a call, with its gRPC prefix, under the next key.
    #[must_use]
    pub fn submission(&self, call: &Call) -> Bytes {
        let number = self.next.get();
        self.next.set(number + 1);
        let key = format!("{:x}-{number:x}", self.run);
        let request = call.request();
        let mut message = Vec::with_capacity(request.len() + key.len() + 12);
        message.push(REQUEST);
        put_varint(&mut message, request.len() as u64);
        message.extend_from_slice(request);
        message.push(REQUEST_ID);
        put_varint(&mut message, key.len() as u64);
        message.extend_from_slice(key.as_bytes());
        frame(&message)
    }
}

/// Whether an answer is a `SubmitResponse` with a job that has an id and has not ended.
///
/// # Errors
/// It is something else.
pub fn check(response: &[u8]) -> Result<(), Mismatch> {
    let (id, state) = job(response).map_err(|_| Mismatch("the answer is no SubmitResponse".to_owned()))?;
    if id.len() != ID_LENGTH || !id.iter().all(u8::is_ascii_hexdigit) {
        return Err(Mismatch("the job has no id".to_owned()));
    }
    if state == PENDING || state == RUNNING { Ok(()) } else { Err(Mismatch(format!("the job is in state {state}"))) }
}

fn job(response: &[u8]) -> Result<(&[u8], u64), Malformed> {
    let (mut id, mut state) = (&[][..], 0);
    for field in Fields::new(response) {
        let (1, Value::Bytes(job)) = field? else { continue };
        for field in Fields::new(job) {
            match field? {
                (1, Value::Bytes(text)) => id = text,
                (2, Value::Varint(number)) => state = number,
                _ => {}
            }
        }
    }
    Ok((id, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(id: &[u8], state: u8) -> Vec<u8> {
        let mut job = vec![0x0a, id.len() as u8];
        job.extend_from_slice(id);
        job.extend_from_slice(&[0x10, state]);
        let mut message = vec![0x0a, job.len() as u8];
        message.extend_from_slice(&job);
        message
    }

    #[test]
    fn a_job_that_waits_or_runs_passes() {
        let id = [b'a'; 32];
        assert_eq!(check(&response(&id, 1)), Ok(()));
        assert_eq!(check(&response(&id, 2)), Ok(()));
    }

    #[test]
    fn anything_else_is_wrong() {
        assert!(check(&response(&[b'a'; 31], 1)).is_err());
        assert!(check(&response(&[b'x'; 32], 1)).is_err());
        assert!(check(&response(&[b'a'; 32], 4)).is_err());
        assert!(check(&[]).is_err());
        assert!(check(&[0x0a, 200]).is_err());
    }

    #[test]
    fn each_submission_has_the_request_and_another_key() {
        let call = Call::new(b"request", &[0x1a, 5, 0x0a, 1, b'y', 0x10, 12])
            .expect("one output of 12 bytes is an answer to compare with");
        let keys = Keys { run: 0xab, next: Cell::new(0) };
        assert_eq!(&keys.submission(&call)[5..], b"\x0a\x07request\x12\x04ab-0");
        assert_eq!(&keys.submission(&call)[5..], b"\x0a\x07request\x12\x04ab-1");
    }
}
