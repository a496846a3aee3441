//! What a request gets in place of an error.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Request;
use super::answer::Unanswered;
use crate::fallback::{Failed, Keep, Substitute, Turn};
use crate::http1::Method;
use crate::http1::connection::{Client, Next};
use crate::http1::limits::{Stop, wait};
use crate::http1::response::{ResponseHead, Role};
use crate::policy::hash_key::Affinity;
use crate::policy::retry::Progress;
use crate::reason::Reason;
use crate::route::{Http1Head, Http1Response, fields};
use crate::telemetry::metrics::Outcome;
use crate::upstream::Destination;

/// Bytes of a body that are given to the client at once.
const PIECE: usize = 64 * 1024;

impl Request {
    /// Whether this error is replaced by something else.
    pub(super) fn falls_back(&self, reason: Reason) -> bool {
        let fallback = self.fallback.as_ref();
        fallback.is_some_and(|fallback| fallback.covers(reason)) && !self.progress.response_started
    }

    /// Answers in place of an error that is replaced. Boxed because it is rare, and because the
    /// request begins anew in it.
    pub(super) fn fall_back<'a>(
        &'a mut self,
        client: &'a mut Client,
        destination: &Rc<Destination>,
        Unanswered { endpoint, metrics: counted, reason, .. }: Unanswered<'_>,
    ) -> Pin<Box<dyn Future<Output = Next> + 'a>> {
        let failed = Failed {
            destination: destination.clone(),
            endpoint: endpoint.cloned(),
            counted,
            started: self.progress.started,
            hedged: self.progress.hedged,
            reason,
            form: self.head.form,
        };
        Box::pin(self.take_steps(client, failed))
    }

    async fn take_steps(&mut self, client: &mut Client, failed: Failed) -> Next {
        let now = Instant::now();
        client.to_client.clear();
        if let Some(fallback) = &mut self.fallback {
            self.routed = fallback.returns().or(self.routed.take());
            fallback.begin(failed, now);
        }
        loop {
            match self.next_turn(client, now) {
                Turn::Answer(substitute) => return self.substitute(client, *substitute).await,
                Turn::Nothing => return self.give_up(client).await,
                Turn::Service(name, port) => {
                    // The time of the request may be over already: this one has its own.
                    (self.limits.request, self.limits.attempt) = (None, None);
                    let Client { session, connection, deadline, .. } = &mut *client;
                    self.limits.arm(deadline, now);
                    let found = Box::pin(session.worker.service(&name, None, port));
                    let found = wait(found, connection, deadline, &mut self.sending, &mut self.limits).await;
                    let destination = match found {
                        Ok(Ok(destination)) => destination,
                        Err(Stop::ClientLeft) => return Next::Abort,
                        Ok(Err(_)) | Err(Stop::Reason(_)) => continue,
                    };
                    let Ok(_admitted) = destination.admit(self.head.urgency) else { continue };
                    self.go_elsewhere(client);
                    return self.serve(client, &destination).await;
                }
            }
        }
    }

    /// The next step of the fallback.
    fn next_turn(&mut self, client: &Client, now: Instant) -> Turn {
        let destination = self.fallback.as_ref().and_then(|fallback| fallback.destination());
        let permitted = destination.is_some_and(|destination| {
            let policy = self.policy(destination);
            let methods = &policy.retry.methods;
            self.sending.replayable && methods.permit(self.head.method_token.of(&client.to_upstream.bytes))
        });
        let Some(fallback) = &mut self.fallback else { return Turn::Nothing };
        let repeatable = self.sending.replayable && fallback.may_repeat(permitted);
        let head =
            self.sending.replayable.then(|| Http1Head::new(&client.to_upstream.bytes[..self.head_end.at()]));
        fallback.turn(head.as_ref(), self.head.form, repeatable, now)
    }

    /// Makes the request ready for another service.
    fn go_elsewhere(&mut self, client: &mut Client) {
        client.to_upstream.rewind();
        // It was met where the request was meant to go.
        self.fault = None;
        self.affinity = Affinity::default();
        self.progress =
            Progress { started: Instant::now(), retries: 0, hedged: false, replaced: false, ..self.progress };
        if let Some(fallback) = &mut self.fallback {
            fallback.leaves(self.routed.take());
        }
    }

    /// Answers the error after all.
    async fn give_up(&mut self, client: &mut Client) -> Next {
        let failed = self.fallback.as_mut().and_then(|fallback| fallback.failed());
        let Some(Failed { destination, endpoint, counted, started, reason, .. }) = failed else {
            return Next::Abort;
        };
        self.progress.started = started;
        let (destination, endpoint) = (Some(&destination), endpoint.as_ref());
        let unanswered = Unanswered { destination, endpoint, metrics: counted, reason, message: "" };
        self.answer_error(client, unanswered).await
    }

    /// Answers what a step has given.
    async fn substitute(&mut self, client: &mut Client, mut substitute: Substitute) -> Next {
        let failed = self.fallback.as_mut().and_then(|fallback| fallback.failed());
        let Some(Failed { destination, endpoint, counted, started, reason, form, .. }) = failed else {
            return Next::Abort;
        };
        let whole = self.sending.body.is_complete();
        let stays = self.head.keep_alive && whole && !client.session.worker.is_draining();
        substitute.finish(self.routed.as_deref(), form, self.head.method == Method::Head);
        substitute.write_http1(!stays, &mut client.to_client.bytes);
        let after = match (stays, whole) {
            (true, _) => Next::KeepAlive,
            (false, true) => Next::Close,
            (false, false) => Next::Linger,
        };
        let mut pieces = substitute.body.chunks(PIECE);
        let next = loop {
            client.to_client.bytes.extend_from_slice(pieces.next().unwrap_or_default());
            let next = client.send_answer(after).await;
            if next != after || pieces.len() == 0 {
                break next;
            }
        };
        self.progress.started = started;
        let outcome = Outcome {
            code: substitute.status,
            grpc_status: substitute.grpc_status(form),
            error: Some(reason),
        };
        let sent = substitute.body.len() as u64;
        self.finish(client, Some(&*destination), endpoint.as_deref(), counted, outcome, sent);
        next
    }

    /// A response is passed on, whose head lies in `to_client`: what keeps it for bad times.
    pub(super) fn passes(&mut self, client: &mut Client, response: &ResponseHead) -> Option<Box<Keep>> {
        let now = Instant::now();
        let fallback = self.fallback.as_mut()?;
        fallback.answered(response.status, response.mesh_error, now);
        let out = &mut client.to_client.bytes;
        if fallback.is_elsewhere() {
            let mut head = Http1Response::new(out);
            fallback.mark(&mut head);
            let mut marked = Vec::with_capacity(out.len() + 64);
            head.write(&mut marked);
            *out = marked;
            return None;
        }
        if !self.sending.replayable || response.role != Role::Final {
            return None;
        }
        let head = Http1Head::new(&client.to_upstream.bytes[..self.head_end.at()]);
        let delay = now.saturating_duration_since(self.progress.started);
        let keep = fallback.keep(&head, response.status, || headers(out), delay, now)?;
        keep.framed(&response.body)
    }
}

/// The fields of a head without those of its framing.
fn headers(head: &[u8]) -> HeaderMap {
    let field = |(name, value): (&[u8], &[u8])| {
        let name =
            HeaderName::from_bytes(name).ok().filter(|name| *name != http::header::TRANSFER_ENCODING)?;
        Some((name, HeaderValue::from_bytes(value).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in fields(head).filter_map(field) {
        headers.append(name, value);
    }
    headers
}
