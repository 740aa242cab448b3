//! How a request ended, in gRPC's terms.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::HeaderMap;

use crate::proto;

const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The canonical name of a status code; unknown codes count as UNKNOWN, as gRPC wants it.
#[must_use]
pub fn name(code: u64) -> &'static str {
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("UNKNOWN")
}

/// A request that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The status code's name.
    pub status: &'static str,
    /// The `ErrorInfo` reason of the server, or in small letters what the generator itself saw; may be empty.
    pub reason: String,
}

impl Failure {
    /// A failure that the generator saw itself.
    #[must_use]
    pub fn local(status: &'static str, reason: &str) -> Self {
        Self { status, reason: reason.to_owned() }
    }

    /// The failure that a `google.rpc.Status` says.
    #[must_use]
    pub fn of_status(message: &[u8]) -> Self {
        match proto::status(message) {
            Ok((code, reason)) => Self { status: name(code), reason: reason.to_owned() },
            Err(_) => Self::local("UNKNOWN", "malformed status"),
        }
    }
}

/// What trailers (or headers, of a trailers-only response) say about the end of a call.
///
/// # Errors
/// The call failed.
pub fn of_trailers(trailers: &HeaderMap) -> Result<(), Failure> {
    let Some(value) = trailers.get("grpc-status") else {
        return Err(Failure::local("UNKNOWN", "no grpc-status"));
    };
    if value.as_bytes() == b"0" {
        return Ok(());
    }
    let code = value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let reason = trailers
        .get("grpc-status-details-bin")
        .and_then(|details| STANDARD_NO_PAD.decode(without_padding(details.as_bytes())).ok())
        .and_then(|details| proto::status(&details).ok().map(|(_, reason)| reason.to_owned()))
        .unwrap_or_default();
    Err(Failure { status: name(code), reason })
}

fn without_padding(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(key, value)| (key.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn zero_is_success_and_silence_is_not() {
        assert_eq!(of_trailers(&headers(&[("grpc-status", "0")])), Ok(()));
        assert_eq!(of_trailers(&headers(&[])), Err(Failure::local("UNKNOWN", "no grpc-status")));
    }

    #[test]
    fn the_reason_is_read_with_and_without_padding() {
        // Status{code: 8, details: [Any{ErrorInfo{reason: "QUEUE_FULL"}}]}
        let any = b"\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12\x0c\x0a\x0aQUEUE_FULL";
        let mut message = b"\x08\x08\x1a".to_vec();
        message.push(any.len() as u8);
        message.extend_from_slice(any);
        for text in [STANDARD_NO_PAD.encode(&message), base64::engine::general_purpose::STANDARD.encode(&message)] {
            let mut trailers = headers(&[("grpc-status", "8")]);
            trailers.insert("grpc-status-details-bin", text.parse().unwrap());
            let failure = of_trailers(&trailers).unwrap_err();
            assert_eq!((failure.status, failure.reason.as_str()), ("RESOURCE_EXHAUSTED", "QUEUE_FULL"));
        }
    }

    #[test]
    fn unknown_codes_count_as_unknown() {
        assert_eq!(of_trailers(&headers(&[("grpc-status", "99")])).unwrap_err().status, "UNKNOWN");
        assert_eq!(of_trailers(&headers(&[("grpc-status", "x")])).unwrap_err().status, "UNKNOWN");
    }
}
