//! The admission webhooks: the API server asks here before it makes a pod or
//! takes a policy.
//!
//! HTTPS with a certificate of the mesh's authority ([`certificate`]), which the
//! API server is told to trust ([`ca_bundle`]). What is answered is decided by
//! pure functions of the request ([`review`]); nothing is read from the cluster
//! for it, so that admission is as available as a replica of the control plane. Everything is bounded,
//! since every pod of the cluster can call: connections, the time of each, bodies, and what all bodies take together.

pub(crate) mod ca_bundle;
mod certificate;
mod mutation;
mod review;
mod validation;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _, to_bytes};
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use self::certificate::Serving;
use self::review::Rules;
use crate::accept::Accepting;
use crate::ca::{SharedAuthority, SignError};
use crate::injection::{Injector, Options};
use crate::metrics::{Admission, Metrics};
use crate::places::{Place, Places};
use crate::settings::{DEFAULT_NAMESPACE, Settings};

/// As for sidecars: long enough for a slow link, short enough that silence is not free.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// For the next request on a connection. Longer than the API server itself leaves a connection
/// idle (90 s in Go), so that it never writes to one that is being closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// For a body and the answer: twice what the API server waits, by the webhooks' configurations.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The API server takes objects of 3 MiB; a review of an update has two of them.
const MAX_BODY: u32 = 8 * 1024 * 1024;

/// Reviews of pods have some ten KiB each. Larger ones share [`MAX_LARGE_BODIES`], so that whoever sends
/// those, and slowly, does not keep pods from being made.
const LARGE_BODY: u32 = 128 * 1024;

/// Large bodies that are held at once, together.
const MAX_LARGE_BODIES: u32 = 4 * MAX_BODY;

/// On the question of the API server's version, at the start.
const VERSION_TIMEOUT: Duration = Duration::from_secs(3);

/// What answers.
pub(crate) struct Webhook {
    rules: Rules,
    certificate: Arc<Serving>,
    metrics: Arc<Metrics>,
    /// A permit is a byte of a large body.
    bodies: Semaphore,
    /// Read JSON is many times as large as its text: one at a time.
    reading: Mutex<()>,
}

/// The choices of `settings` for all pods, with classic sidecars where the cluster of `client` is too old for others.
pub(crate) async fn defaults(settings: &Settings, client: Option<&kube::Client>) -> Options {
    let mut defaults = settings.inject_defaults.clone();
    let Some(client) = client else { return defaults };
    match tokio::time::timeout(VERSION_TIMEOUT, client.apiserver_version()).await {
        Ok(Ok(version)) if defaults.suit(&version.major, &version.minor) => {
            let version = format!("{}.{}", version.major, version.minor);
            info!(version, "this cluster has no native sidecars: they are ordinary containers");
        }
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            warn!(%error, "the API server does not tell its version; native sidecars are assumed")
        }
        Err(_) => warn!("the API server does not tell its version in time; native sidecars are assumed"),
    }
    defaults
}

impl Webhook {
    /// The webhook of these settings, with these choices for all pods and a certificate of that authority.
    ///
    /// # Errors
    /// If the authority cannot sign.
    pub(crate) fn new(
        settings: &Settings,
        defaults: Options,
        authority: &SharedAuthority,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SignError> {
        let namespace = settings.cluster.as_ref().map_or(DEFAULT_NAMESPACE, |cluster| &cluster.namespace);
        let names = certificate::names(namespace, &settings.cluster_domain);
        let injector = Injector {
            control_plane: format!("heddle-control-plane.{namespace}.svc:7200"),
            defaults,
            ..Injector::default()
        };
        Ok(Self {
            rules: Rules { injector, namespace: namespace.to_owned() },
            certificate: Serving::new(authority, names)?,
            metrics,
            bodies: Semaphore::new(MAX_LARGE_BODIES as usize),
            reading: Mutex::new(()),
        })
    }

    /// The certificate in use, which somebody has to keep fresh.
    pub(crate) fn certificate(&self) -> Arc<Serving> {
        self.certificate.clone()
    }
}

/// Serves on `listener` until `shutdown` is set, then until the open requests are answered.
pub(crate) async fn serve(listener: TcpListener, webhook: Webhook, mut shutdown: watch::Receiver<bool>) {
    let tls = TlsAcceptor::from(Arc::new(webhook.certificate.server_config()));
    let webhook = Arc::new(webhook);
    let places = Arc::new(Places::default());
    let mut connections = JoinSet::new();
    let mut accepting = Accepting::new(&listener, "webhook");
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accepting.next() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = shutdown.wait_for(|over| *over) => break,
        };
        let Some(place) = places.take(peer.ip()) else {
            webhook.metrics.connection_refused();
            continue;
        };
        let (tls, webhook, shutdown) = (tls.clone(), webhook.clone(), shutdown.clone());
        connections.spawn(connection(stream, tls, webhook, place, shutdown));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    webhook: Arc<Webhook>,
    _place: Place,
    mut shutdown: watch::Receiver<bool>,
) {
    let established = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await;
    let stream = match established {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            webhook.metrics.handshake_failed();
            return debug!(%error, "no TLS connection to the webhook");
        }
        Err(_) => return webhook.metrics.handshake_failed(),
    };
    let service = service_fn(move |request| answer(request, webhook.clone()));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let over = async { drop(shutdown.wait_for(|over| *over).await) };
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = over => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the webhook broke");
    }
}

async fn answer(request: Request<Incoming>, webhook: Arc<Webhook>) -> Result<Response<Body>, Infallible> {
    let kind = match (request.method(), request.uri().path()) {
        (&Method::POST, "/inject") => review::Kind::Inject,
        (&Method::POST, "/validate") => review::Kind::Validate,
        (_, "/inject" | "/validate") => return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n")),
        _ => return Ok(text(StatusCode::NOT_FOUND, "there are /inject and /validate\n")),
    };
    let (admission, response) = match timely(webhook.review(kind, Body::new(request.into_body()))).await {
        Some(Ok(Ok((admission, body)))) => {
            let mut response = Response::new(Body::from(body));
            response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            (admission, response)
        }
        Some(Ok(Err(unreadable))) => {
            warn!(error = %unreadable, "the API server asked something that is no AdmissionReview");
            (Admission::Unreadable, text(StatusCode::BAD_REQUEST, &format!("{unreadable}\n")))
        }
        Some(Err(NoBody)) => {
            let why = format!("no body of at most {MAX_BODY} bytes\n");
            (Admission::Unreadable, text(StatusCode::PAYLOAD_TOO_LARGE, &why))
        }
        None => (Admission::Unreadable, text(StatusCode::REQUEST_TIMEOUT, "the body took too long\n")),
    };
    webhook.metrics.admitted(kind.name(), admission);
    Ok(response)
}

/// A body that is too long, or broke off.
struct NoBody;

impl Webhook {
    /// The answer to the review that `body` is.
    async fn review(&self, kind: review::Kind, body: Body) -> Result<review::Answered, NoBody> {
        let length = body.size_hint().upper().map_or(Ok(MAX_BODY), u32::try_from);
        let length = length.ok().filter(|length| *length <= MAX_BODY).ok_or(NoBody)?;
        let _bytes = match length {
            ..=LARGE_BODY => None,
            _ => Some(self.bodies.acquire_many(length).await.map_err(|_| NoBody)?),
        };
        let body = to_bytes(body, length as usize).await.map_err(|error| {
            debug!(%error, "the body of a review did not arrive");
            NoBody
        })?;
        let _turn = self.reading.lock().await;
        Ok(review::answer(kind, &body, &self.rules))
    }
}

async fn timely<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(REQUEST_TIMEOUT, work).await.ok()
}

fn text(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(message.to_owned()));
    *response.status_mut() = status;
    response
}
