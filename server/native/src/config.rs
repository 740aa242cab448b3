//! `wire.port.WireConfig`, read from its Python objects.

use std::collections::{HashMap, HashSet};

use http::header::{HeaderName, HeaderValue};
use pyo3::FromPyObject;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::status::Status;

/// What a method takes and gives; the numbers of `wire.port.MethodKind`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// One message, one response.
    Unary,
    /// One message, many responses.
    ServerStream,
    /// Many of both.
    BidiStream,
}

#[derive(FromPyObject)]
struct PyMethod {
    path: String,
    kind: u8,
}

/// Files of TLS.
#[derive(Clone, Debug, FromPyObject)]
pub struct Tls {
    /// Chain, PEM.
    pub certificate: String,
    /// Key, PEM.
    pub key: String,
    /// CAs of client certificates, PEM.
    pub client_ca: Option<String>,
}

#[derive(FromPyObject)]
struct PyExposure {
    name: String,
    address: String,
    methods: HashSet<String>,
    tls: Option<Tls>,
    reuse_port: bool,
    outlives_drain: bool,
}

#[derive(FromPyObject)]
struct PyRefusals<'py> {
    message_too_large: Bound<'py, PyAny>,
    response_too_large: Bound<'py, PyAny>,
    bytes_held: Bound<'py, PyAny>,
    deadline_expired: Bound<'py, PyAny>,
    slow_sender: Bound<'py, PyAny>,
    draining: Bound<'py, PyAny>,
    compressed: Bound<'py, PyAny>,
}

/// See `wire.port.Limits`.
#[allow(missing_docs)]
#[derive(Clone, Debug, FromPyObject)]
pub struct Limits {
    pub max_receive_bytes: usize,
    pub max_send_bytes: usize,
    pub max_held_bytes: usize,
    pub max_streams: u32,
    pub max_connections: usize,
    pub max_metadata_bytes: usize,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub outbox_bytes: usize,
    pub write_stall: f64,
    pub read_stall: f64,
    pub handshake_timeout: f64,
    pub keepalive_time: f64,
    pub keepalive_timeout: f64,
    pub max_connection_age: f64,
    pub max_connection_age_grace: f64,
    pub accept_gzip: bool,
}

#[derive(FromPyObject)]
struct PyConfig<'py> {
    methods: Vec<PyMethod>,
    exposures: Vec<PyExposure>,
    refusals: PyRefusals<'py>,
    limits: Limits,
    busy_poll: f64,
}

/// A place to listen.
#[derive(Debug)]
pub struct Exposure {
    /// For messages to the operator.
    pub name: String,
    /// `host:port` or `unix:path`.
    pub address: String,
    /// What is offered: by path, the method's index and kind.
    pub methods: HashMap<String, (u16, Kind)>,
    /// Encryption.
    pub tls: Option<Tls>,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
    /// Goes on listening in a drain.
    pub outlives_drain: bool,
}

/// Errors that are sent without Python.
#[allow(missing_docs)]
#[derive(Debug)]
pub struct Refusals {
    pub message_too_large: Status,
    pub response_too_large: Status,
    pub bytes_held: Status,
    pub deadline_expired: Status,
    pub slow_sender: Status,
    pub draining: Status,
    pub compressed: Status,
}

/// All of it.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen.
    pub exposures: Vec<Exposure>,
    /// What to say.
    pub refusals: Refusals,
    /// What to keep.
    pub limits: Limits,
    /// Seconds for which the taker may look out for events before it sleeps.
    pub busy_poll: f64,
}

impl Settings {
    /// Reads a `WireConfig`.
    pub fn read(config: &Bound<'_, PyAny>) -> PyResult<Self> {
        let config: PyConfig<'_> = config.extract()?;
        let mut kinds = HashMap::new();
        for (index, method) in config.methods.iter().enumerate() {
            let index = u16::try_from(index).map_err(|_| PyValueError::new_err("too many methods"))?;
            let kind = match method.kind {
                1 => Kind::Unary,
                2 => Kind::ServerStream,
                3 => Kind::BidiStream,
                other => return Err(PyValueError::new_err(format!("no such method kind: {other}"))),
            };
            kinds.insert(method.path.as_str(), (index, kind));
        }
        let exposure = |exposure: PyExposure| {
            let offered = |path: String| match kinds.get(path.as_str()) {
                Some(&method) => Ok((path, method)),
                None => Err(PyValueError::new_err(format!("no such method: {path}"))),
            };
            Ok(Exposure {
                methods: exposure.methods.into_iter().map(offered).collect::<PyResult<_>>()?,
                name: exposure.name,
                address: exposure.address,
                tls: exposure.tls,
                reuse_port: exposure.reuse_port,
                outlives_drain: exposure.outlives_drain,
            })
        };
        let refusals = config.refusals;
        let encodings = if config.limits.accept_gzip {
            "gzip,identity"
        } else {
            "identity"
        };
        Ok(Self {
            exposures: config.exposures.into_iter().map(exposure).collect::<PyResult<_>>()?,
            refusals: Refusals {
                message_too_large: status(&refusals.message_too_large)?,
                response_too_large: status(&refusals.response_too_large)?,
                bytes_held: status(&refusals.bytes_held)?,
                deadline_expired: status(&refusals.deadline_expired)?,
                slow_sender: status(&refusals.slow_sender)?,
                draining: status(&refusals.draining)?,
                compressed: status(&refusals.compressed)?.with(
                    HeaderName::from_static("grpc-accept-encoding"),
                    HeaderValue::from_static(encodings),
                ),
            },
            limits: config.limits,
            busy_poll: config.busy_poll,
        })
    }
}

type PyFailure<'py> = (u32, String, Option<Bound<'py, PyAny>>, Vec<(String, String)>);

/// Reads a `wire.port.Failure`.
pub fn status(failure: &Bound<'_, PyAny>) -> PyResult<Status> {
    let (code, message, details, extra): PyFailure<'_> = failure.extract()?;
    let details: Option<&[u8]> = match &details {
        Some(details) => Some(details.extract()?),
        None => None,
    };
    let mut status = Status::new(code, &message, details);
    for (name, value) in extra {
        let name = HeaderName::try_from(name).map_err(|_| PyValueError::new_err("a trailer's key is not valid"))?;
        let value =
            HeaderValue::try_from(value).map_err(|_| PyValueError::new_err("a trailer's value is not ASCII"))?;
        status = status.with(name, value);
    }
    Ok(status)
}

/// The last `wire.port.Failure` that was read: under overload most calls of a batch fail with the same one.
#[derive(Default)]
pub struct Failures<'py>(Option<(Bound<'py, PyAny>, Status)>);

impl<'py> Failures<'py> {
    /// Reads one.
    pub fn status(&mut self, failure: &Bound<'py, PyAny>) -> PyResult<Status> {
        if let Some((last, status)) = &self.0
            && last.is(failure)
        {
            return Ok(status.clone());
        }
        let status = status(failure)?;
        self.0 = Some((failure.clone(), status.clone()));
        Ok(status)
    }
}
