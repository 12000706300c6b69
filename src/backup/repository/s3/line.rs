//! Connections to a store: HTTP/1.1, as many side by side as there are requests.
//!
//! In: requests of the client, and whom to believe as the store. Out: answers with their bodies as they come. The client's
//! own connections take HTTP/2 wherever a store offers it, as servers written in Go do with TLS: then all objects share one
//! connection, its 5 MB of window (100 MB/s at 50 ms) and one core's TLS. S3's own servers speak HTTP/1.1 only.

use crate::tls;
use aws_sdk_s3::config::SharedHttpClient;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::connection::{CaptureSmithyConnection, ConnectionMetadata};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use hyper::Request;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{HttpConnector as Tcp, capture_connection};
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Side by side, and kept for the next requests.
#[derive(Debug, Clone)]
struct Lines {
    client: Client<HttpsConnector<Tcp>, SdkBody>,
    patience: Patience,
}

/// How long is waited for a connection, and for the head of an answer. The store's client and whoever asks this machine's
/// surroundings for credentials differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Patience {
    connect: Option<Duration>,
    read: Option<Duration>,
}

/// A client that believes whom the authorities in `ca` (PEM) vouch for, or those of this machine.
///
/// # Errors
/// When `ca` holds what is no certificate, or the machine has no authorities.
pub fn client(ca: Option<&[u8]>) -> Result<SharedHttpClient, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?;
    let config = match ca {
        Some(pem) => config.with_root_certificates(tls::roots(pem)?),
        None => config.dangerous().with_custom_certificate_verifier(tls::of_this_machine(&provider)?),
    };
    let config = config.with_no_client_auth();
    // The client asks for a connector with each request, and those that share patience share connections.
    let known: Mutex<HashMap<Patience, SharedHttpConnector>> = Mutex::default();
    Ok(http_client_fn(move |settings, _| {
        let patience = Patience { connect: settings.connect_timeout(), read: settings.read_timeout() };
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let connector =
            known.entry(patience).or_insert_with(|| SharedHttpConnector::new(Lines::new(&config, patience)));
        connector.clone()
    }))
}

impl Lines {
    fn new(tls: &ClientConfig, patience: Patience) -> Lines {
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(patience.connect);
        let https = HttpsConnectorBuilder::new().with_tls_config(tls.clone());
        let https = https.https_or_http().enable_http1().wrap_connector(tcp);
        Lines { client: Client::builder(TokioExecutor::new()).build(https), patience }
    }
}

/// Lets the client give up the connection on which a try failed, so that the next one takes another: perhaps to another of the
/// store's machines. Of a connection that was never made there is nothing to give up.
fn not_twice(request: &mut Request<SdkBody>) {
    let line = capture_connection(request);
    let Some(asked) = request.extensions().get::<CaptureSmithyConnection>() else { return };
    asked.set_connection_retriever(move || {
        let line = line.clone();
        let give_up = move || {
            if let Some(line) = line.connection_metadata().as_ref() {
                line.poison();
            }
        };
        Some(ConnectionMetadata::builder().proxied(false).poison_fn(give_up).build())
    });
}

impl HttpConnector for Lines {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Lines { client, patience } = self.clone();
        HttpConnectorFuture::new(async move {
            let mut request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            not_twice(&mut request);
            let answer = client.request(request);
            let answer = match patience.read {
                None => answer.await,
                Some(within) => {
                    tokio::time::timeout(within, answer).await.map_err(|late| ConnectorError::timeout(late.into()))?
                }
            };
            let answer = answer.map_err(|error| ConnectorError::io(error.into()))?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}
