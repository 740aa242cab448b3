//! Where calls come from.

use std::fmt;
use std::net::SocketAddr;

use pyo3::Py;
use pyo3::PyAny;
use pyo3::sync::PyOnceLock;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The other end of a connection. Becomes one `wire.port.Peer`, made when its first call is taken.
pub struct Peer {
    /// Index of the exposure.
    pub exposure: usize,
    /// As text.
    pub address: String,
    /// From its certificate.
    pub identity: Option<String>,
    /// The Python object.
    pub object: PyOnceLock<Py<PyAny>>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Peer({}, {})", self.exposure, self.address)
    }
}

impl Peer {
    /// A connection on an exposure.
    #[must_use]
    pub fn new(exposure: usize, address: String, identity: Option<String>) -> Self {
        Self {
            exposure,
            address,
            identity,
            object: PyOnceLock::new(),
        }
    }
}

/// An IP address with its port; IPv4 in IPv6 is IPv4.
#[must_use]
pub fn address(address: SocketAddr) -> String {
    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}

/// The identity in a certificate (DER): its first URI SAN, else its first DNS SAN.
#[must_use]
pub fn identity(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = &certificate.subject_alternative_name().ok()??.value.general_names;
    let first = |pick: fn(&GeneralName<'_>) -> Option<String>| names.iter().find_map(pick);
    first(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
    .or_else(|| {
        first(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
    })
}
