//! A copy of a request for a mirror, carried by HTTP/1.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Instant;

use crate::http1::body::Body;
use crate::http1::response::{self, ResponseHead, Role};
use crate::http1::{HeadScan, Method, Origin, Version};
use crate::io::{ReadBuffer, WriteBuffer};
use crate::reason::Reason;
use crate::upstream::{Destination, Endpoint, Lease, MeshProtocol};
use crate::worker::Worker;

/// What a response body may be in one piece before it is dropped.
const SCRATCH: usize = 64 * 1024;

/// Sends a copy, method and bytes, and reads the response to its end.
pub(super) async fn carry(
    worker: Rc<Worker>,
    destination: Rc<Destination>,
    endpoint: Rc<Endpoint>,
    (method, bytes): (Method, Vec<u8>),
) -> Result<(), Reason> {
    let lease = destination.acquire(&endpoint, MeshProtocol::Http1, &worker).await;
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
                skip(&mut head.body, input, &mut scratch)?;
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

/// Takes what there is of a body and drops it.
fn skip(body: &mut Body, input: &mut ReadBuffer, scratch: &mut Vec<u8>) -> Result<(), Reason> {
    while !body.is_complete() && !input.is_empty() {
        let taken = body.relay(input.data(), scratch).map_err(|_| Reason::BadResponse)?;
        input.consume(taken);
        scratch.clear();
        scratch.shrink_to(SCRATCH);
        if taken == 0 {
            // A line of the framing that is not whole yet.
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::body::Coding;

    #[test]
    fn a_body_cut_anywhere_is_dropped_as_far_as_it_came() {
        let whole = b"5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n";
        for cut in 0..=whole.len() {
            let (mut body, mut scratch) = (Body::chunked(Coding::Chunked), Vec::new());
            let mut input = ReadBuffer::with(whole[..cut].to_vec());
            skip(&mut body, &mut input, &mut scratch).unwrap();
            assert_eq!(body.is_complete(), cut == whole.len(), "{cut}");
            let rest = [input.data(), &whole[cut..]].concat();
            skip(&mut body, &mut ReadBuffer::with(rest), &mut scratch).unwrap();
            assert!(body.is_complete(), "{cut}");
        }
    }
}
