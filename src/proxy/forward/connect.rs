//! How an upstream is reached: names, addresses, TLS.

use std::net::IpAddr;
use std::time::Duration;

use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::net::{Guarded, is_link_local};

/// Connects to an upstream.
pub type Connector = HttpsConnector<HttpConnector<Guarded>>;

/// A connection to one.
pub type Io = MaybeHttpsStream<TokioIo<TcpStream>>;

/// A connector, which offers HTTP/2 to the peer or not.
pub fn connector(timeout: Duration, http2: bool) -> Connector {
    let mut http = HttpConnector::new_with_resolver(Guarded::new(is_not_metadata));
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(timeout));
    let https = hyper_rustls::HttpsConnectorBuilder::new().with_webpki_roots().https_or_http();
    if http2 {
        https.enable_all_versions().wrap_connector(http)
    } else {
        https.enable_http1().wrap_connector(http)
    }
}

/// Whatever a name (mistyped, or rebound) resolves to, metadata services of clouds are never
/// called.
fn is_not_metadata(ip: IpAddr) -> bool {
    !is_link_local(ip)
}
