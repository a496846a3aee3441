//! Copies of requests to another service, as a route's mirror filters ask.
//!
//! A copy is sent in a task of its own when the whole request is known, so that
//! it costs the original nothing but memory; what it is answered is read and
//! dropped. Requests that are too large to be held are not copied.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use crate::http1::response::{self, ResponseHead, Role};
use crate::http1::{HeadScan, Method, Origin, Version};
use crate::io::WriteBuffer;
use crate::policy::concurrency::Urgency;
use crate::reason::Reason;
use crate::route::{Rule, Target};
use crate::upstream::{Bound, Destination, Lease, MeshProtocol};
use crate::worker::Worker;

/// How long a copy may take, unless its own service's policy says less.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What a response body may be in one piece before it is dropped.
const SCRATCH: usize = 64 * 1024;

/// Sends copies of the request in `bytes` to the mirrors of `rule` that take it.
pub(super) fn send(worker: &Rc<Worker>, rule: &Rule, backend: usize, method: Method, bytes: &[u8]) {
    let of_backend = rule.backends.list().get(backend).map(|backend| &backend.filters);
    let mirrors = rule.filters.mirrors().chain(of_backend.into_iter().flat_map(|filters| filters.mirrors()));
    for mirror in mirrors.filter(|mirror| mirror.takes(&worker.rng)) {
        let Target::Service { name, port } = &mirror.target else { continue };
        let (name, port, bytes) = (name.clone(), *port, bytes.to_vec());
        let on = worker.clone();
        worker.serve(async move {
            let sent = async {
                let destination = on.service(&name, Some(port), port).await?;
                copy(&on, &destination, method, bytes).await
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

async fn copy(
    worker: &Rc<Worker>,
    destination: &Rc<Destination>,
    method: Method,
    bytes: Vec<u8>,
) -> Result<(), Reason> {
    // Of all requests a copy is the first to be shed.
    let _admitted = destination.admit(Urgency::LEAST)?;
    let endpoint = destination.pick(Bound::default(), None, &worker.rng, Instant::now())?;
    let _load = destination.begin(&endpoint, Instant::now());
    let lease = destination.acquire(&endpoint, MeshProtocol::Http1, worker).await;
    let mut lease = lease.map_err(|error| error.reason)?;
    let mut out = WriteBuffer::default();
    out.bytes = bytes;
    poll_fn(|cx| out.poll_drain(cx, &mut lease.transport)).await.map_err(|_| Reason::Reset)?;
    let origin = if endpoint.is_mesh() { Origin::Mesh } else { Origin::Outside };
    let expected = response::Exchange { method, client: Version::Http11, upgrade: false, origin };
    if drop_response(&mut lease, &expected).await? {
        lease.give_back(destination.policy().limits.requests_per_connection, Instant::now());
    }
    Ok(())
}

/// Reads a response to its end; whether the connection may be used again.
async fn drop_response(lease: &mut Lease, expected: &response::Exchange) -> Result<bool, Reason> {
    let (mut scan, mut scratch) = (HeadScan::default(), Vec::new());
    let mut body: Option<ResponseHead> = None;
    poll_fn(|cx| {
        loop {
            let input = &mut lease.input;
            if !input.is_empty() && body.is_none() {
                let parsed = ResponseHead::parse(input.data(), &mut scan, expected, &mut scratch);
                if let Some(head) = parsed.map_err(|_| Reason::BadResponse)? {
                    input.consume(head.consumed);
                    scratch.clear();
                    match head.role {
                        Role::Interim => continue,
                        Role::Final => body = Some(head),
                        Role::Tunnel => return Poll::Ready(Ok(false)),
                    }
                }
            }
            if let Some(head) = &mut body {
                while !head.body.is_complete() && !input.is_empty() {
                    let taken = head.body.relay(input.data(), &mut scratch);
                    input.consume(taken.map_err(|_| Reason::BadResponse)?);
                    scratch.clear();
                    scratch.shrink_to(SCRATCH);
                }
                if head.body.is_complete() {
                    return Poll::Ready(Ok(head.keep_alive && input.is_empty()));
                }
            }
            match ready!(lease.poll_fill(cx)) {
                Ok(count) if count > 0 => {}
                // The end of the connection may be that of the body.
                _ => return Poll::Ready(Ok(false)),
            }
        }
    })
    .await
}
