//! Whom to believe at the other end of a TLS connection. In: certificates as PEM, or nothing. Out: what rustls takes. Callers are
//! those who speak to servers and stores with settings of their own; `reqwest` and `lettre` ask the machine themselves.

use rustls::RootCertStore;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::sync::Arc;

/// The authorities in a text of PEM blocks.
///
/// # Errors
/// When there is no certificate in it, or one that does not read.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("a certificate in it does not read: {error}"))?;
        roots.add(certificate).map_err(|error| format!("a certificate in it does not read: {error}"))?;
    }
    if roots.is_empty() { Err("it holds no certificate in PEM form".into()) } else { Ok(roots) }
}

/// Believes whom this machine believes.
///
/// # Errors
/// When the machine's authorities cannot be read.
pub fn of_this_machine(provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let verifier = rustls_platform_verifier::Verifier::new(provider.clone()).map_err(|error| {
        format!("read this machine's certificates: {error}\nhint: install ca-certificates, or name a file of your own")
    })?;
    Ok(Arc::new(verifier))
}
