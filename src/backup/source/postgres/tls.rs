//! TLS as libpq's `sslmode` means it, on rustls; and what binds a sign-in to it.

use super::address::{Roots, Tls};
use super::error::PostgresError;
use crate::{small_file, tls};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

fn failed(what: impl std::fmt::Display) -> PostgresError {
    PostgresError::Tls(what.to_string())
}

/// Checks what the mode asks for; the signature of the handshake always.
#[derive(Debug)]
struct Checked {
    /// `None`: anybody will do.
    chain: Option<Arc<dyn ServerCertVerifier>>,
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Checked {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at after the chain was found good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn roots_of(file: &Path) -> Result<RootCertStore, PostgresError> {
    let wrong = |why: String| {
        let hint = "hint: sslrootcert is a PEM file with the certificates of the CA that signed the server's";
        failed(format!("read {}: {why}\n{hint}", file.display()))
    };
    let pem = small_file::read(file, small_file::TEXT_MAX_BYTES).map_err(|error| wrong(error.to_string()))?;
    tls::roots(&pem).map_err(wrong)
}

const PROVES_NOTHING: &str = "anybody can have a certificate that the system trusts, so without a check of the name it proves nothing\nhint: use \
                             sslmode=verify-full, or give your own CA with sslrootcert=FILE";

/// Reads files: not for a thread that must not wait.
pub(super) fn config(mode: Tls, roots: &Roots) -> Result<Arc<ClientConfig>, PostgresError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain: Option<Arc<dyn ServerCertVerifier>> = match (mode, roots) {
        (Tls::Disable | Tls::Allow | Tls::Prefer, _) | (Tls::Require, Roots::System) => None,
        (Tls::VerifyCa, Roots::System) => return Err(failed(PROVES_NOTHING)),
        (_, Roots::System) => {
            let named = "hint: `sslrootcert` names a file";
            Some(tls::of_this_machine(&provider).map_err(|why| failed(format!("{why}\n{named}")))?)
        }
        // `require` with a file checks the chain, as libpq does for old times' sake, and as everybody means who names a CA.
        (_, Roots::File(file)) => {
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots_of(file)?), provider.clone());
            Some(builder.build().map_err(failed)?)
        }
    };
    let verifier = Checked { chain, name: mode == Tls::VerifyFull, provider: provider.clone() };
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(failed)?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    // Connections here last for days; tickets would only carry state from one to the next.
    config.resumption = Resumption::disabled();
    // Servers from 17 on know this name, and refuse others; older ones ask for none.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Arc::new(config))
}

/// Makes a TLS connection of one whose server said yes to it.
pub(super) async fn secure(
    config: Arc<ClientConfig>,
    tcp: TcpStream,
    host: &str,
) -> Result<TlsStream<TcpStream>, PostgresError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| failed(format!("`{}` is no name of a host", host.escape_debug())))?;
    TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
        let text = error.to_string();
        let hint = if text.contains("NotValidForName") || text.contains("not valid for name") {
            "\nhint: the certificate is for another name: use the name that stands in it, or sslmode=verify-ca"
        } else if text.contains("UnknownIssuer") || text.contains("BadSignature") {
            "\nhint: give the CA that signed the server's certificate with sslrootcert=FILE"
        } else if text.contains("CaUsedAsEndEntity") {
            "\nhint: the server uses the CA's own certificate: sign one for the server with it"
        } else if text.contains("xpired") {
            "\nhint: renew the server's certificate; is this machine's clock right?"
        } else {
            ""
        };
        failed(format!("{text}{hint}"))
    })
}

/// What binds SCRAM to this TLS connection (`tls-server-end-point`, RFC 5929 section 4.1): the digest of the server's
/// certificate with the hash of its signature, SHA-256 in place of MD5 and SHA-1. `None` for a signature without such a
/// hash, and for a certificate that cannot be read.
pub(super) fn end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    end_point_of(certificate)
}

fn end_point_of(certificate: &[u8]) -> Option<Vec<u8>> {
    use sha2::{Digest as _, Sha256, Sha384, Sha512};
    // RSA with MD5, SHA-1, SHA-256, SHA-384, SHA-512 (RFC 8017), ECDSA with SHA-1, SHA-256, SHA-384, SHA-512 (RFC 5758).
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    let (whole, _) = der(certificate, 0x30)?;
    let (_, rest) = der(whole, 0x30)?;
    let (algorithm, _) = der(rest, 0x30)?;
    let (oid, _) = der(algorithm, 0x06)?;
    let hash = match (oid.strip_prefix(RSA), oid.strip_prefix(ECDSA)) {
        (Some([4 | 5 | 11]), _) | (_, Some([1] | [3, 2])) => 256,
        (Some([12]), _) | (_, Some([3, 3])) => 384,
        (Some([13]), _) | (_, Some([3, 4])) => 512,
        _ => return None,
    };
    Some(match hash {
        256 => Sha256::digest(certificate).to_vec(),
        384 => Sha384::digest(certificate).to_vec(),
        _ => Sha512::digest(certificate).to_vec(),
    })
}

/// A DER value of that kind: its content, and what follows it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, short], rest) = bytes.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match short {
        0..=0x7f => (usize::from(short), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_certificates_have_no_end_point() {
        for bytes in [&b""[..], b"\x30", b"\x30\x81", b"\x30\x82\x01", b"\x30\x03\x30\x00\x30", b"\x30\x84\0\0\0\0"] {
            assert_eq!(end_point_of(bytes), None, "{bytes:?}");
        }
        // A certificate's frame with RSA and SHA-384.
        let frame = b"\x30\x11\x30\x00\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00";
        assert_eq!(end_point_of(frame).unwrap().len(), 48);
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = config(Tls::VerifyCa, &Roots::File(file.path().into())).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()) && error.contains("hint:"), "{error}");
        assert!(config(Tls::VerifyCa, &Roots::File("/nonexistent/ca.pem".into())).is_err());
    }
}
