//! TLS of an exposure: files to a rustls configuration, and its renewal.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

use crate::config::Tls;
use crate::queue::lock;

/// HTTP/2 in ALPN.
pub const H2: &[u8] = b"h2";

/// The present certificates of an exposure. New handshakes use what `renew` has read last.
#[derive(Debug)]
pub struct Certificates {
    files: Tls,
    present: Mutex<Arc<ServerConfig>>,
}

impl Certificates {
    /// Reads the files; the error is one sentence.
    pub fn read(files: &Tls) -> Result<Self, String> {
        Ok(Self {
            files: files.clone(),
            present: Mutex::new(load(files)?),
        })
    }

    /// For a handshake.
    #[must_use]
    pub fn present(&self) -> Arc<ServerConfig> {
        Arc::clone(&lock(&self.present))
    }

    /// Reads the files again, without using them yet.
    pub fn reread(&self) -> Result<Arc<ServerConfig>, String> {
        load(&self.files)
    }

    /// Uses what `reread` returned.
    pub fn replace(&self, next: Arc<ServerConfig>) {
        *lock(&self.present) = next;
    }
}

fn load(files: &Tls) -> Result<Arc<ServerConfig>, String> {
    let chain = certificates(&files.certificate)?;
    let key = key(&files.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| format!("TLS can't be set up: {error}"))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| format!("{path}: not a CA certificate: {error}"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| format!("{path}: {error}"))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    // Refuses a key that does not belong to the certificate.
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        format!(
            "{} and {} can't be used together: {error}",
            files.certificate, files.key
        )
    })?;
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(Path::new(path)).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(format!("{path}: no certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{path}: can't be read: {error}")),
    }
}

fn key(path: &str) -> Result<PrivateKeyDer<'static>, String> {
    let text = std::fs::read(path).map_err(|error| format!("{path}: can't be read: {error}"))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let has = |mark: &[u8]| text.windows(mark.len()).any(|window| window == mark);
        if has(b"ENCRYPTED") {
            format!("{path}: encrypted keys are not supported, decrypt it first")
        } else {
            format!("{path}: no private key in it: {error}")
        }
    })
}
