//! What gRPC writes into HTTP headers: timeouts, percent encoding, binary values, metadata. Pure.

use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// Writes without padding, reads with or without, as gRPC asks.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// HTTP/2's own overhead of a header in the size of a header list.
const ENTRY_OVERHEAD: usize = 32;

/// A value of the caller's metadata.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Value {
    /// Printable ASCII.
    Text(HeaderValue),
    /// Of a `-bin` key.
    Binary(Vec<u8>),
}

/// The caller's own metadata.
pub type Metadata = Vec<(HeaderName, Value)>;

/// What the headers of a call say.
#[derive(Debug, Default)]
pub struct Head {
    /// `grpc-timeout`.
    pub timeout: Option<Duration>,
    /// `grpc-encoding`.
    pub encoding: Encoding,
    /// Keys beyond those of gRPC; empty mostly.
    pub metadata: Metadata,
}

/// How the caller compresses its messages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Encoding {
    /// Not.
    #[default]
    Identity,
    /// gzip.
    Gzip,
    /// Some way that is not known here.
    Unknown,
}

/// Why headers are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// They are over the limit.
    TooLarge,
    /// `grpc-timeout` can't be read.
    Timeout,
    /// A value that is not printable ASCII.
    NotAscii,
    /// A `-bin` value that is not base64.
    Binary,
}

/// Reads the headers of a call in one pass.
pub fn parse(headers: &HeaderMap, limit: usize) -> Result<Head, Fault> {
    let mut head = Head::default();
    let mut size = 0;
    for (name, value) in headers {
        size += name.as_str().len() + value.len() + ENTRY_OVERHEAD;
        match name.as_str() {
            "content-type" | "te" | "user-agent" | "content-length" | "host" => {}
            "grpc-timeout" => head.timeout = Some(timeout(value.as_bytes()).ok_or(Fault::Timeout)?),
            "grpc-encoding" => head.encoding = encoding(value.as_bytes()),
            key if key.starts_with("grpc-") => {}
            key if key.ends_with("-bin") => {
                for part in value.as_bytes().split(|&byte| byte == b',') {
                    let bytes = decode_binary(part).ok_or(Fault::Binary)?;
                    head.metadata.push((name.clone(), Value::Binary(bytes)));
                }
            }
            _ if value.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte)) => {
                head.metadata.push((name.clone(), Value::Text(value.clone())));
            }
            _ => return Err(Fault::NotAscii),
        }
    }
    if size > limit {
        return Err(Fault::TooLarge);
    }
    Ok(head)
}

/// Whether a content type is gRPC's: `application/grpc`, alone or with a `+` or `;` part.
#[must_use]
pub fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    let rest = content_type.and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    matches!(rest, Some([] | [b'+' | b';', ..]))
}

/// `grpc-timeout`: at most eight digits and a unit.
#[must_use]
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (&unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits
        .iter()
        .fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

fn encoding(value: &[u8]) -> Encoding {
    match value {
        b"identity" => Encoding::Identity,
        b"gzip" => Encoding::Gzip,
        _ => Encoding::Unknown,
    }
}

/// `grpc-message`: printable ASCII but `%` as it is, all else of the UTF-8 as `%XX`.
#[must_use]
pub fn percent_encode(text: &str) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            encoded.push(byte);
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            encoded.extend_from_slice(&[b'%', HEX[high], HEX[low]]);
        }
    }
    // Never fails: all bytes are printable ASCII.
    HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static(""))
}

/// A `-bin` value.
#[must_use]
pub fn encode_binary(bytes: &[u8]) -> HeaderValue {
    HeaderValue::try_from(BASE64.encode(bytes)).unwrap_or(HeaderValue::from_static(""))
}

/// The bytes of a `-bin` value.
#[must_use]
pub fn decode_binary(text: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(text.trim_ascii()).ok()
}
