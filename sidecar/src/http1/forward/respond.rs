//! A response on its way to the client, and the books of a request that has ended.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

use super::Request;
use crate::config::TrafficPolicy;
use crate::http1::Version;
use crate::http1::connection::{Client, Next};
use crate::http1::exchange::{Broken, Exchange, Sides};
use crate::http1::fields::write_field;
use crate::http1::response::{ResponseHead, Role};
use crate::policy::retry::Failure;
use crate::reason::Reason;
use crate::session;
use crate::tcp::tunnel;
use crate::telemetry::metrics::{InFlight, Outcome};
use crate::upstream::{self, Destination, Endpoint, Lease};

impl Request {
    /// Passes a response on.
    #[expect(clippy::too_many_arguments, reason = "the parts of one exchange, taken apart here")]
    pub(super) async fn respond(
        &mut self,
        client: &mut Client,
        destination: &Destination,
        policy: &TrafficPolicy,
        mut response: ResponseHead,
        mut lease: Lease,
        mut exchange: Exchange,
        metrics: InFlight,
        load: &upstream::InFlight,
    ) -> Next {
        let stays = self.head.keep_alive && !client.session.worker.is_draining();
        if self.fallback.is_some() {
            exchange.keep = self.passes(client, &response);
        }
        if let Some(cookie) = &self.affinity.set_cookie {
            write_field(&mut client.to_client.bytes, b"set-cookie", cookie.as_bytes());
        }
        for (name, value) in self.word.iter().flat_map(|word| &word.fields) {
            write_field(&mut client.to_client.bytes, name.as_bytes(), value.as_bytes());
        }
        if let Some(routed) = &self.routed {
            routed.edit_http1_response(lease.endpoint(), &mut client.to_client.bytes);
        }
        response.finish(stays, &mut client.to_client.bytes);
        self.sending.let_go(&mut client.to_upstream);
        if !policy.per_try_whole {
            self.limits.attempt = None;
        }
        let Client { connection, to_client, to_upstream, deadline, .. } = client;
        let ended = poll_fn(|cx| {
            let mut sides = Sides { client: connection, to_client, upstream: &mut lease, to_upstream };
            match exchange.poll_body(cx, &mut sides, &mut self.sending, &mut response.body) {
                Poll::Ready(ended) => Poll::Ready(Ok(ended)),
                Poll::Pending => self.limits.poll(cx, deadline, &mut exchange.moved, &self.sending).map(Err),
            }
        })
        .await;
        // Whatever was sent of it, the client must not take it for complete.
        let (next, error) = match ended {
            Ok(Ok(())) => (None, None),
            Ok(Err(Broken::Client)) => (Some(Next::Abort), None),
            Ok(Err(Broken::Request(_))) => (Some(Next::Abort), Some(Reason::BadRequest)),
            Ok(Err(Broken::Response)) => (Some(Next::Abort), Some(Reason::BadResponse)),
            Ok(Err(Broken::Upstream(_))) => (Some(Next::Abort), Some(Reason::Reset)),
            Err(reason) => (Some(Next::Abort), Some(reason)),
        };
        let endpoint = lease.endpoint().clone();
        match (error, &next) {
            (Some(reason), _) => load.failed(Failure::Mesh(reason), Instant::now()),
            (None, None) => {
                load.succeeded(Instant::now());
                if let Some(keep) = exchange.keep.take() {
                    keep.store();
                }
            }
            (None, Some(_)) => {}
        }
        let outcome =
            Outcome { code: response.status, grpc_status: None, error: error.or(response.mesh_error) };
        let mut received = response.body.received();
        let next = match next {
            Some(next) => next,
            None if response.role == Role::Tunnel => {
                let bytes = client.session.tcp(Some(destination), Some(&endpoint)).open();
                let deadline = client.session.worker.wheel.deadline();
                let (client, upstream) = (&mut client.connection, &mut *lease);
                let clean = Box::pin(tunnel(client, upstream, deadline, policy.idle_timeout, &bytes)).await;
                received = 0;
                if clean { Next::Close } else { Next::Abort }
            }
            None => {
                let whole = exchange.request_sent(&self.sending, to_upstream);
                if response.keep_alive && whole && lease.input.is_empty() {
                    lease.give_back(policy.limits.requests_per_connection, Instant::now());
                }
                match (stays && !response.close_delimited, self.sending.body.is_complete()) {
                    (_, false) => Next::Linger,
                    (true, true) => Next::KeepAlive,
                    (false, true) => Next::Close,
                }
            }
        };
        self.finish(client, Some(destination), Some(&endpoint), metrics, outcome, received);
        next
    }

    /// Counts and records the request as ended so.
    pub(super) fn finish(
        &mut self,
        client: &mut Client,
        destination: Option<&Destination>,
        endpoint: Option<&Endpoint>,
        metrics: InFlight,
        outcome: Outcome,
        bytes_out: u64,
    ) {
        client.now = Instant::now();
        if let Some(failed) = self.fallback.as_mut().and_then(|fallback| fallback.failed()) {
            failed.count(client.now);
        }
        let duration = client.now.saturating_duration_since(self.progress.started);
        metrics.finish(outcome, duration);
        if let Some(told) = &self.told {
            client.session.record(&session::Exchange {
                method: told.method.of(&told.bytes),
                authority: told.authority.of(&told.bytes),
                path: told.path.of(&told.bytes),
                version: match self.head.version {
                    Version::Http10 => http::Version::HTTP_10,
                    Version::Http11 => http::Version::HTTP_11,
                },
                outcome,
                duration,
                bytes_in: self.sending.body.received(),
                bytes_out,
                attempts: self.attempts,
                destination,
                endpoint,
                trace: self.trace.as_ref(),
            });
        }
    }
}
