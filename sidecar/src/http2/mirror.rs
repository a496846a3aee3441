//! A copy of a request for a mirror, carried by HTTP/2.

use std::rc::Rc;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, request};

use crate::http2::calls::{connect, terms};
use crate::http2::head::secure;
use crate::reason::Reason;
use crate::telemetry::metrics::Tls;
use crate::upstream::{Destination, Endpoint};
use crate::worker::Worker;

/// A request, complete.
#[derive(Clone)]
pub(super) struct Whole {
    pub(super) head: request::Parts,
    pub(super) chunks: Vec<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
}

/// Sends a copy and reads the response to its end.
pub(super) async fn carry(
    worker: Rc<Worker>,
    destination: Rc<Destination>,
    endpoint: Rc<Endpoint>,
    whole: Whole,
) -> Result<(), Reason> {
    let terms = terms(&worker, &destination.policy());
    let making = || connect(destination.clone(), endpoint.clone(), worker.clone());
    let mut slot = endpoint.http2.slot(&terms, making).await.map_err(|refusal| refusal.reason)?;
    let Whole { mut head, chunks, trailers } = whole;
    if endpoint.tls() == Tls::Originated {
        secure(&mut head.uri);
    }
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
pub(super) fn upload(
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
