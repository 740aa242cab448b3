//! A gRPC error, ready to be written as trailers.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use crate::headers;

/// `grpc-status` 3.
pub const INVALID_ARGUMENT: u32 = 3;
/// `grpc-status` 8.
pub const RESOURCE_EXHAUSTED: u32 = 8;
/// `grpc-status` 12.
pub const UNIMPLEMENTED: u32 = 12;
/// `grpc-status` 13.
pub const INTERNAL: u32 = 13;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// What a call ends with other than OK.
#[derive(Clone, Debug)]
pub struct Status {
    code: HeaderValue,
    message: HeaderValue,
    details: Option<HeaderValue>,
    extra: Vec<(HeaderName, HeaderValue)>,
}

impl Status {
    /// `message` is plain text; `details` are bytes of a `google.rpc.Status`.
    #[must_use]
    pub fn new(code: u32, message: &str, details: Option<&[u8]>) -> Self {
        Self {
            code: HeaderValue::from(code),
            message: headers::percent_encode(message),
            details: details.map(headers::encode_binary),
            extra: Vec::new(),
        }
    }

    /// Adds a trailer.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.extra.push((name, value));
        self
    }

    /// The trailers.
    #[must_use]
    pub fn trailers(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(4);
        self.write(&mut map);
        map
    }

    /// A response of one HEADERS frame.
    pub fn response<B>(self, body: B) -> Response<B> {
        let mut response = response(body);
        self.write(response.headers_mut());
        response
    }

    fn write(self, map: &mut HeaderMap) {
        map.insert(GRPC_STATUS, self.code);
        map.insert(GRPC_MESSAGE, self.message);
        if let Some(details) = self.details {
            map.insert(GRPC_DETAILS, details);
        }
        for (name, value) in self.extra {
            map.append(name, value);
        }
    }
}

/// The trailers of OK.
#[must_use]
pub fn ok() -> HeaderMap {
    let mut map = HeaderMap::with_capacity(1);
    map.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    map
}

/// A response with gRPC's headers.
pub fn response<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC);
    response
}

/// A response that is not gRPC's.
pub fn plain<B>(code: StatusCode, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
}
