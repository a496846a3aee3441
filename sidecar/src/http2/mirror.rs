//! Copies of requests to another service, as a route's mirror filters ask.
//!
//! A copy is sent in a task of its own once all of the request is known, by the
//! time its response begins; what it is answered is read and dropped. Requests
//! that are too large to be held, and streams that go on, are not copied.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, request};

use crate::http2::calls::{connect, terms};
use crate::policy::concurrency::Urgency;
use crate::reason::Reason;
use crate::route::Target;
use crate::routing::Way;
use crate::upstream::{Bound, Destination};
use crate::worker::Worker;

/// How long a copy may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A request, complete.
#[derive(Clone)]
pub(super) struct Whole {
    pub(super) head: request::Parts,
    pub(super) chunks: Vec<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
}

/// Sends copies of a request to the mirrors of its rule that take it.
pub(super) fn send(worker: &Rc<Worker>, way: &Way, whole: impl Fn() -> Whole) {
    let mirrors = way.rule.filters.mirrors().chain(way.backend().filters.mirrors());
    for mirror in mirrors.filter(|mirror| mirror.takes(&worker.rng)) {
        let Target::Service { name, port } = &mirror.target else { continue };
        let (name, port, whole) = (name.clone(), *port, whole());
        let on = worker.clone();
        worker.serve(async move {
            let sent = async {
                let destination = on.service(&name, Some(port), port).await?;
                copy(&on, &destination, whole).await
            };
            let failed = match tokio::time::timeout(TIMEOUT, sent).await {
                Ok(Ok(())) => return,
                Ok(Err(reason)) => reason,
                Err(_) => Reason::Timeout,
            };
            tracing::debug!(service = %name, reason = %failed, "a mirrored request failed");
        });
    }
}

async fn copy(worker: &Rc<Worker>, destination: &Rc<Destination>, whole: Whole) -> Result<(), Reason> {
    // Of all requests a copy is the first to be shed.
    let _admitted = destination.admit(Urgency::LEAST)?;
    let endpoint = destination.pick(Bound::default(), None, &worker.rng, Instant::now())?;
    let _load = destination.begin(&endpoint, Instant::now());
    let terms = terms(worker, &destination.policy());
    let making = || connect(destination.clone(), endpoint.clone(), worker.clone());
    let mut slot = endpoint.http2.slot(&terms, making).await.map_err(|refusal| refusal.reason)?;
    let Whole { head, chunks, trailers } = whole;
    let empty = chunks.is_empty() && trailers.is_none();
    let sent = slot.send.send_request(Request::from_parts(head, ()), empty);
    let (response, mut up) = sent.map_err(|_| Reason::Reset)?;
    if !empty {
        upload(&mut up, chunks, trailers).map_err(|_| Reason::Reset)?;
    }
    let response = response.await.map_err(|_| Reason::Reset)?;
    drain(response.into_body()).await.map_err(|_| Reason::Reset)
}

/// Hands on a body that is held anyway: h2 sends it as the windows allow.
fn upload(
    up: &mut SendStream<Bytes>,
    chunks: Vec<Bytes>,
    trailers: Option<HeaderMap>,
) -> Result<(), h2::Error> {
    let last = chunks.len();
    for (index, chunk) in chunks.into_iter().enumerate() {
        up.send_data(chunk, index + 1 == last && trailers.is_none())?;
    }
    trailers.map_or(Ok(()), |trailers| up.send_trailers(trailers))
}

async fn drain(mut body: RecvStream) -> Result<(), h2::Error> {
    while let Some(chunk) = body.data().await {
        let count = chunk?.len();
        body.flow_control().release_capacity(count)?;
    }
    body.trailers().await.map(|_| ())
}
