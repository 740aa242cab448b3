//! The prepared calls: requests, and the answers that they must get.
//!
//! The file holds messages with a 32-bit little-endian length before each, in pairs: the `PredictRequest`, then a
//! `PredictResponse` with the expected outputs. `bench/models.py` writes it.

use std::fmt;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};

use crate::proto::{self, MAX_RANK, Tensor};

const FP32: u64 = 12;
const FP64: u64 = 13;

/// An output that an answer must have.
#[derive(Debug)]
struct Expected {
    name: Vec<u8>,
    data_type: u64,
    shape: [i64; MAX_RANK],
    rank: usize,
    data: Vec<u8>,
}

/// A request, and what its answer must hold.
#[derive(Debug)]
pub struct Call {
    /// The message with its gRPC prefix, ready to send.
    pub framed: Bytes,
    /// The expected `PredictResponse`, as it stands in the file.
    pub answer: Bytes,
    expected: Vec<Expected>,
}

/// How an answer differs from what it must be.
#[derive(Debug, PartialEq)]
pub struct Mismatch(pub String);

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Call {
    /// Prepares a call.
    ///
    /// # Errors
    /// The answer is no `PredictResponse`, or has no outputs, so that nothing could be checked.
    pub fn new(request: &[u8], answer: &[u8]) -> Result<Self, String> {
        let mut expected = Vec::new();
        for tensor in proto::outputs(answer) {
            let tensor = tensor.map_err(|_| "an expected answer is no PredictResponse".to_owned())?;
            expected.push(Expected {
                name: tensor.name.to_vec(),
                data_type: tensor.data_type,
                shape: tensor.shape,
                rank: tensor.rank,
                data: tensor.data.to_vec(),
            });
        }
        if expected.is_empty() {
            return Err("an expected answer has no outputs".to_owned());
        }
        Ok(Self { framed: frame(request), answer: Bytes::copy_from_slice(answer), expected })
    }

    /// The request without its prefix.
    #[must_use]
    pub fn request(&self) -> &[u8] {
        self.framed.get(5..).unwrap_or_default()
    }

    /// Compares an answer with the expected one: number, names, types, shapes and values of its outputs. Floating
    /// numbers may differ by `tolerance`, relative to one plus the expected magnitude: batches of different sizes round
    /// differently.
    ///
    /// # Errors
    /// It differs.
    pub fn check(&self, response: &[u8], tolerance: f64) -> Result<(), Mismatch> {
        let mut count = 0;
        for tensor in proto::outputs(response) {
            let tensor = tensor.map_err(|_| Mismatch("the answer is no PredictResponse".to_owned()))?;
            let Some(expected) = self.expected.get(count) else {
                return Err(Mismatch(format!("more than {} outputs", self.expected.len())));
            };
            expected.check(&tensor, tolerance)?;
            count += 1;
        }
        if count < self.expected.len() {
            return Err(Mismatch(format!("{count} outputs instead of {}", self.expected.len())));
        }
        Ok(())
    }
}

impl Expected {
    fn check(&self, got: &Tensor<'_>, tolerance: f64) -> Result<(), Mismatch> {
        let name = String::from_utf8_lossy(&self.name);
        if got.name != self.name || got.data_type != self.data_type {
            let got_name = String::from_utf8_lossy(got.name);
            return Err(Mismatch(format!(
                "output `{got_name}` of type {} instead of `{name}` of type {}",
                got.data_type, self.data_type
            )));
        }
        if got.rank != self.rank || got.shape != self.shape {
            return Err(Mismatch(format!("output `{name}` has another shape")));
        }
        if got.data == self.data {
            return Ok(());
        }
        let same = got.data.len() == self.data.len()
            && match self.data_type {
                FP32 => close::<4>(got.data, &self.data, tolerance, |bytes| f64::from(f32::from_le_bytes(bytes))),
                FP64 => close::<8>(got.data, &self.data, tolerance, f64::from_le_bytes),
                _ => false,
            };
        if same { Ok(()) } else { Err(Mismatch(format!("output `{name}` has wrong values"))) }
    }
}

fn close<const N: usize>(got: &[u8], expected: &[u8], tolerance: f64, number: fn([u8; N]) -> f64) -> bool {
    let (got, got_rest) = got.as_chunks::<N>();
    let (expected, expected_rest) = expected.as_chunks::<N>();
    got_rest == expected_rest
        && got.iter().zip(expected).all(|(got, expected)| {
            let (value, wanted) = (number(*got), number(*expected));
            got == expected || (value - wanted).abs() <= tolerance * (1.0 + wanted.abs())
        })
}

/// A message with its gRPC prefix.
#[must_use]
pub fn frame(message: &[u8]) -> Bytes {
    let mut buffer = BytesMut::with_capacity(5 + message.len());
    buffer.put_u8(0);
    // Files over 4 GiB are refused when they are read.
    buffer.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    buffer.put_slice(message);
    buffer.freeze()
}

/// Reads a file of prepared calls.
///
/// # Errors
/// It cannot be read, is cut, or holds nothing to check: a sentence for people.
pub fn read(path: &Path) -> Result<Vec<Call>, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

fn parse(mut rest: &[u8]) -> Result<Vec<Call>, String> {
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let request = message(&mut rest)?;
        let answer = message(&mut rest)?;
        calls.push(Call::new(request, answer)?);
    }
    if calls.is_empty() { Err("it holds no calls".to_owned()) } else { Ok(calls) }
}

fn message<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let cut = || "it ends within a message".to_owned();
    let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| cut())?;
    let (message, tail) = tail.split_at_checked(length).ok_or_else(cut)?;
    *rest = tail;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(name: &str, data_type: u8, shape: &[u8], data: &[u8]) -> Vec<u8> {
        let mut tensor = vec![0x0a, name.len() as u8];
        tensor.extend_from_slice(name.as_bytes());
        tensor.extend_from_slice(&[0x10, data_type, 0x1a, shape.len() as u8]);
        tensor.extend_from_slice(shape);
        tensor.extend_from_slice(&[0x22, data.len() as u8]);
        tensor.extend_from_slice(data);
        let mut message = vec![0x0a, 1, b'm', 0x1a, tensor.len() as u8];
        message.extend_from_slice(&tensor);
        message
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn call() -> Call {
        Call::new(b"request", &response("y", 12, &[1, 2], &floats(&[0.25, 100.0]))).unwrap()
    }

    #[test]
    fn the_expected_answer_passes_whatever_else_it_says() {
        let mut answer = response("y", 12, &[1, 2], &floats(&[0.25, 100.0]));
        answer.extend_from_slice(&[0x10, 3]); // version = 2
        assert_eq!(call().check(&answer, 0.0), Ok(()));
    }

    #[test]
    fn rounding_within_the_tolerance_passes_and_beyond_it_fails() {
        let near = response("y", 12, &[1, 2], &floats(&[0.250_001, 100.0001]));
        assert_eq!(call().check(&near, 1e-5), Ok(()));
        assert!(call().check(&near, 1e-7).is_err());
    }

    #[test]
    fn not_a_number_is_wrong() {
        assert!(call().check(&response("y", 12, &[1, 2], &floats(&[f32::NAN, 100.0])), 1e-5).is_err());
    }

    #[test]
    fn another_name_type_shape_length_or_number_of_outputs_is_wrong() {
        let data = floats(&[0.25, 100.0]);
        for wrong in [
            response("z", 12, &[1, 2], &data),
            response("y", 11, &[1, 2], &data),
            response("y", 12, &[2, 1], &data),
            response("y", 12, &[1, 2], &data[..4]),
            [response("y", 12, &[1, 2], &data), response("y", 12, &[1, 2], &data)].concat(),
            vec![],
            vec![0x1a, 200],
        ] {
            assert!(call().check(&wrong, 1e-5).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn integers_are_compared_exactly() {
        let call = Call::new(b"", &response("y", 8, &[1], &[1, 0, 0, 0])).unwrap();
        assert!(call.check(&response("y", 8, &[1], &[2, 0, 0, 0]), 10.0).is_err());
    }

    #[test]
    fn a_file_is_pairs_of_messages() {
        let answer = response("y", 8, &[1], &[1, 0, 0, 0]);
        let mut file = vec![3, 0, 0, 0];
        file.extend_from_slice(b"abc");
        file.extend_from_slice(&(answer.len() as u32).to_le_bytes());
        file.extend_from_slice(&answer);
        let calls = parse(&file).unwrap();
        assert_eq!((calls.len(), calls[0].request()), (1, &b"abc"[..]));
        assert_eq!(&calls[0].framed[..5], [0, 0, 0, 0, 3]);
        assert!(parse(&file[..file.len() - 1]).is_err());
        assert!(parse(&file[..7]).is_err());
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn an_answer_that_checks_nothing_is_refused() {
        assert!(Call::new(b"request", b"").is_err());
    }
}
