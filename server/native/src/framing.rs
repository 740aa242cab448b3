//! gRPC's framing: each message after one flag byte and four bytes of length. Pure: bytes in, messages out.

use std::collections::VecDeque;
use std::io::Read;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Length of the prefix of a message.
pub const PREFIX: usize = 5;

/// Chunks below this are copied together. Else a message that trickles in bytewise would cost fifty times its size.
const SMALL: usize = 4096;

/// The bytes of one message, as the chunks in which they came.
#[derive(Debug, Default)]
pub struct Payload {
    first: Bytes,
    rest: Vec<Bytes>,
    length: usize,
}

impl Payload {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the message is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes, if they are in one piece.
    #[must_use]
    pub fn contiguous(&self) -> Option<&[u8]> {
        self.rest.is_empty().then_some(&self.first)
    }

    /// Copies the message into `target`, which has its length.
    pub fn copy_to(&self, target: &mut [u8]) {
        let mut target = target;
        for chunk in std::iter::once(&self.first).chain(&self.rest) {
            target.put_slice(chunk);
        }
    }

    fn append(&mut self, chunk: Bytes) {
        self.length += chunk.len();
        if self.first.is_empty() {
            self.first = chunk;
        } else {
            self.rest.push(chunk);
        }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self {
            length: bytes.len(),
            first: bytes,
            rest: Vec::new(),
        }
    }
}

/// One message and whether its bytes are compressed.
#[derive(Debug)]
pub struct Message {
    /// The flag of the prefix.
    pub compressed: bool,
    /// The bytes.
    pub payload: Payload,
}

/// Why a body is not a sequence of messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The flag is neither 0 nor 1.
    Flag,
    /// The declared length is over the limit.
    TooLarge,
}

/// Cuts a body into messages.
///
/// Takes memory for what has arrived, never for what a prefix declares.
#[derive(Debug)]
pub struct Assembler {
    limit: usize,
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    buffered: usize,
    prefix: Option<(bool, usize)>,
}

impl Assembler {
    /// Messages longer than `limit` are faults.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            buffered: 0,
            prefix: None,
        }
    }

    /// Takes the next bytes of the body.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.buffered += chunk.len();
        if self.chunks.is_empty() && self.tail.is_empty() {
            self.chunks.push_back(chunk);
        } else if chunk.len() < SMALL {
            self.tail.extend_from_slice(&chunk);
        } else {
            self.seal();
            self.chunks.push_back(chunk);
        }
    }

    /// Gives out the next whole message, or None while it is not all there.
    pub fn next_message(&mut self) -> Result<Option<Message>, Fault> {
        let (compressed, length) = match self.prefix {
            Some(prefix) => prefix,
            None if self.buffered < PREFIX => return Ok(None),
            None => {
                let prefix = self.read_prefix()?;
                self.prefix = Some(prefix);
                prefix
            }
        };
        if self.buffered < length {
            return Ok(None);
        }
        self.prefix = None;
        Ok(Some(Message {
            compressed,
            payload: self.cut(length),
        }))
    }

    /// The compressed flag of a message whose prefix has been read and whose end has not come.
    #[must_use]
    pub fn pending_compressed(&self) -> bool {
        matches!(self.prefix, Some((true, _)))
    }

    /// Whether the body may end here: no message has begun.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.buffered == 0 && self.prefix.is_none()
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
    }

    fn read_prefix(&mut self) -> Result<(bool, usize), Fault> {
        let mut prefix = [0_u8; PREFIX];
        match self.chunks.front_mut() {
            Some(front) if front.len() >= PREFIX => {
                front.copy_to_slice(&mut prefix);
                if front.is_empty() {
                    self.chunks.pop_front();
                }
                self.buffered -= PREFIX;
            }
            _ => self.cut(PREFIX).copy_to(&mut prefix),
        }
        let [flag, length @ ..] = prefix;
        if flag > 1 {
            return Err(Fault::Flag);
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.limit {
            return Err(Fault::TooLarge);
        }
        Ok((flag == 1, length))
    }

    fn cut(&mut self, length: usize) -> Payload {
        let mut payload = Payload::default();
        self.buffered -= length;
        let mut missing = length;
        while missing > 0 {
            if self.chunks.is_empty() {
                self.seal();
            }
            let Some(front) = self.chunks.front_mut() else {
                break; // never: `buffered` counts what is there
            };
            if front.len() <= missing {
                missing -= front.len();
                payload.append(std::mem::take(front));
                self.chunks.pop_front();
            } else {
                payload.append(front.split_to(missing));
                missing = 0;
            }
        }
        payload
    }
}

/// The prefix of an uncompressed message.
#[must_use]
pub fn prefix(length: usize) -> [u8; PREFIX] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

/// Why a compressed message could not be unpacked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InflateFault {
    /// It is not gzip.
    Corrupt,
    /// Unpacked it is over the limit.
    TooLarge,
}

/// Unpacks gzip up to `limit` bytes.
pub fn inflate(payload: &Payload, limit: usize) -> Result<Payload, InflateFault> {
    let chunks = std::iter::once(&payload.first).chain(&payload.rest);
    let packed: Vec<u8> = chunks.flat_map(|chunk| chunk.iter().copied()).collect();
    let mut unpacked = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(packed.as_slice()).take(limit as u64 + 1);
    match reader.read_to_end(&mut unpacked) {
        Err(_) => Err(InflateFault::Corrupt),
        Ok(_) if unpacked.len() > limit => Err(InflateFault::TooLarge),
        Ok(_) => Ok(Bytes::from(unpacked).into()),
    }
}
