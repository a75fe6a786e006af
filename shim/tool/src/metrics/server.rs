//! Serves Prometheus: on the loopback or a unix socket to everybody, elsewhere only to clients with a certificate.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::gather::Gatherer;
use crate::Failure;
use crate::text::{complain, say};
use node::dial;

/// Connections at a time. Further ones wait. Clients that say nothing are closed soon, and keep others out only if they are
/// this many.
const CONNECTIONS_MAX: usize = 256;
/// Clients that may wait for an answer at a time. Further ones get 503.
const ASKING_MAX: usize = 16;
/// Deadline of a handshake, and then of a request.
const GREETING_LIMIT: Duration = Duration::from_secs(3);
/// Deadline for a client to read the answer.
const TAKING_LIMIT: Duration = Duration::from_secs(10);
/// Time in which one answer serves all clients.
const FRESH: Duration = Duration::from_secs(1);

/// The one answer there is at a time. Who asks while it is made waits for it.
#[derive(Debug)]
struct Answers {
    gatherer: Gatherer,
    asking: Semaphore,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Answers {
    fn new(gatherer: Gatherer) -> Arc<Self> {
        Arc::new(Self {
            gatherer,
            asking: Semaphore::new(ASKING_MAX),
            last: Mutex::default(),
        })
    }

    /// Returns none if too many clients wait already.
    async fn text(&self) -> Option<Bytes> {
        let _place = self.asking.try_acquire().ok()?;
        let mut last = self.last.lock().await;
        if let Some((_, text)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Some(text.clone());
        }
        let gathered = self.gatherer.gather().await;
        for problem in &gathered.problems {
            complain(problem);
        }
        let text = Bytes::from(gathered.text());
        *last = Some((Instant::now(), text.clone()));
        Some(text)
    }

    /// Deadline of a connection after its handshake. It carries one request.
    fn limit(&self) -> Duration {
        // Two answers: it may have come when one was being made for somebody who then left.
        GREETING_LIMIT + 2 * self.gatherer.limit() + TAKING_LIMIT
    }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(format!("{text:?}: the path must be absolute"))
            };
        }
        let address = text.parse().map(Self::Tcp);
        address.map_err(|_| format!("{text:?} is neither unix:PATH nor IP:PORT"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// The clients that may ask over a network.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Tls {
    /// Certificate of this server with its chain, PEM.
    #[arg(long, requires_all = ["tls_key", "tls_client_ca"])]
    tls_cert: Option<PathBuf>,
    /// Private key of this server, PEM.
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authority that signs the certificates of clients, PEM. A client without one is refused.
    #[arg(long, requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

impl Tls {
    /// # Errors
    /// For a file that cannot be read or holds something else, with its path.
    fn acceptor(&self) -> Result<Option<TlsAcceptor>, Failure> {
        let (Some(cert), Some(key), Some(authority)) =
            (&self.tls_cert, &self.tls_key, &self.tls_client_ca)
        else {
            return Ok(None);
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates(authority)? {
            roots.add(authority)?;
        }
        let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
        let own = PrivateKeyDer::from_pem_file(key)
            .map_err(|e| format!("--tls-key {}: {e}", key.display()))?;
        let config = ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(certificates(cert)?, own)?;
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let failed = |problem: String| format!("{}: {problem}", path.display());
    let all = CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))?;
    let all: Vec<_> = all
        .collect::<Result<_, _>>()
        .map_err(|e| failed(e.to_string()))?;
    if all.is_empty() {
        return Err(failed("there is no certificate in it".to_owned()).into());
    }
    Ok(all)
}

/// Serves until it is ended.
///
/// # Errors
/// For an address that may not be served without certificates, or that cannot be listened at.
pub(super) async fn serve(address: &Address, tls: &Tls, gatherer: Gatherer) -> Result<(), Failure> {
    let acceptor = tls.acceptor()?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let answers = Answers::new(gatherer);
    match address {
        Address::Tcp(tcp) => {
            if !tcp.ip().is_loopback() && acceptor.is_none() {
                let rule = "is not of loopback: give --tls-cert, --tls-key and --tls-client-ca, so that only clients with a certificate see what runs on this node";
                return Err(format!("--listen {tcp} {rule}").into());
            }
            let listener = TcpListener::bind(tcp).await;
            let listener = listener.map_err(|e| format!("--listen {tcp}: {e}"))?;
            let scheme = if acceptor.is_some() { "https" } else { "http" };
            ready(&format!("{scheme}://{}/metrics", listener.local_addr()?))?;
            loop {
                let place = Arc::clone(&places).acquire_owned().await?;
                let Some((stream, _)) = accepted(listener.accept().await).await else {
                    continue;
                };
                let (acceptor, answers) = (acceptor.clone(), Arc::clone(&answers));
                tokio::spawn(async move {
                    let _place = place;
                    match acceptor {
                        None => converse(stream, answers).await,
                        Some(acceptor) => {
                            let greeting = timeout(GREETING_LIMIT, acceptor.accept(stream));
                            if let Ok(Ok(stream)) = greeting.await {
                                converse(stream, answers).await;
                            }
                        }
                    }
                });
            }
        }
        Address::Unix(path) => {
            let listener = bind(path).map_err(|e| format!("--listen {address}: {e}"))?;
            ready(&address.to_string())?;
            loop {
                let place = Arc::clone(&places).acquire_owned().await?;
                let Some((stream, _)) = accepted(listener.accept().await).await else {
                    continue;
                };
                let answers = Arc::clone(&answers);
                tokio::spawn(async move {
                    let _place = place;
                    converse(stream, answers).await;
                });
            }
        }
    }
}

/// Listens at a path that only root can connect to. A socket that a former server left is replaced, anything else is not.
fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt as _;
    if let Ok(there) = std::fs::symlink_metadata(path) {
        let is_left = there.file_type().is_socket() && !dial::is_alive(path);
        if !is_left {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Gives up all that listening needed: what is left to do is to connect to root's sockets, as root without any capability.
fn ready(address: &str) -> Result<(), Failure> {
    use rustix::thread::{
        CapabilitySet, CapabilitySets, capability_is_in_bounding_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    };
    set_no_new_privs(true)?;
    for capability in CapabilitySet::all().iter() {
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            // Without CAP_SETPCAP the set stays as it is, and with no_new_privs nothing comes of it.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    say(address);
    Ok(())
}

async fn accepted<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            complain(format_args!("accept: {error}"));
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// One question and its answer. A scraper that comes every few seconds does not miss its connection, and one that keeps
/// it holds a place.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, answers: Arc<Answers>) {
    let limit = answers.limit();
    let service = service_fn(move |request| answer(request, Arc::clone(&answers)));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING_LIMIT)
        .keep_alive(false)
        .max_buf_size(16 * 1024);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    // Who asks wrongly or leaves is no fault of the server's.
    let _ = timeout(limit, connection).await;
}

async fn answer(
    request: Request<Incoming>,
    answers: Arc<Answers>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let told = |status: StatusCode, kind: &'static str, text: Bytes| {
        let mut response = Response::new(Full::new(text));
        *response.status_mut() = status;
        let kind = hyper::header::HeaderValue::from_static(kind);
        response
            .headers_mut()
            .insert(hyper::header::CONTENT_TYPE, kind);
        Ok(response)
    };
    let plain = "text/plain; charset=utf-8";
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match answers.text().await {
            Some(text) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                told(StatusCode::OK, kind, text)
            }
            None => told(
                StatusCode::SERVICE_UNAVAILABLE,
                plain,
                "too many wait for an answer already\n".into(),
            ),
        },
        (&Method::GET, _) => told(
            StatusCode::NOT_FOUND,
            plain,
            "only /metrics is here\n".into(),
        ),
        _ => told(
            StatusCode::METHOD_NOT_ALLOWED,
            plain,
            "only GET is served\n".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_number() {
        let parsed = |text: &str| text.parse::<Address>();
        assert_eq!(parsed("unix:/run/x"), Ok(Address::Unix("/run/x".into())));
        assert!(matches!(parsed("127.0.0.1:9477"), Ok(Address::Tcp(_))));
        assert!(matches!(parsed("[::1]:9477"), Ok(Address::Tcp(_))));
        for text in ["", "unix:x", "localhost:1", "9477", "/run/x"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
