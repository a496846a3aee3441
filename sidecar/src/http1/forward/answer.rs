//! What the client gets in place of an upstream's response: a refusal, or what a route says.

use std::rc::Rc;
use std::time::Instant;

use super::Request;
use crate::http1::Method;
use crate::http1::connection::{Client, Next};
use crate::reason::Reason;
use crate::route::{Http1Head, Reply};
use crate::sanitize::answer::{Answer, Http1};
use crate::telemetry::metrics::{InFlight, Outcome};
use crate::telemetry::trace::SpanContext;
use crate::upstream::{Destination, Endpoint};

/// A request that no upstream answers.
pub(super) struct Unanswered<'a> {
    /// Where it was for, as far as that is known.
    pub(super) destination: Option<&'a Rc<Destination>>,
    /// Where it was tried last.
    pub(super) endpoint: Option<&'a Rc<Endpoint>>,
    /// Counts it.
    pub(super) metrics: InFlight,
    pub(super) reason: Reason,
    /// What happened, for people.
    pub(super) message: &'a str,
}

impl Request {
    /// Reads what a policy's labels say of it, if that was not done: as it is forwarded, so that
    /// what a token or a route says of it is in its head, and what a client made up is not.
    pub(super) fn read_labels(&mut self, client: &Client) {
        if self.labels.is_none()
            && let Some(labeler) = client.session.labeler()
        {
            let head = client.to_upstream.bytes.get(..self.head_end.at()).map(Http1Head::new);
            // Boxed because it is rare: its size would be every request's.
            self.labels = Some(Box::new(labeler.read(head.as_ref())));
        }
    }

    /// It begins to be counted, with no endpoint that could do it.
    pub(super) fn begin_nowhere(
        &mut self,
        client: &Client,
        destination: Option<&Rc<Destination>>,
    ) -> InFlight {
        self.read_labels(client);
        let metrics = match &self.routed {
            Some(routed) => client.session.requests_of(&routed.way),
            None => client.session.requests(destination.map(|d| &**d), None),
        };
        client.session.begin(&metrics, self.labels.as_deref())
    }

    /// Answers in place of an endpoint that was never chosen.
    pub(super) async fn refuse(
        &mut self,
        client: &mut Client,
        destination: Option<&Rc<Destination>>,
        reason: Reason,
        message: &str,
    ) -> Next {
        let metrics = self.begin_nowhere(client, destination);
        self.answer(client, Unanswered { destination, endpoint: None, metrics, reason, message }).await
    }

    /// Answers as a route says.
    pub(super) async fn reply(
        &mut self,
        client: &mut Client,
        front: &Rc<Destination>,
        reply: &Reply,
    ) -> Next {
        let whole = self.sending.body.is_complete();
        let stays = self.head.keep_alive && whole && !client.session.worker.is_draining();
        self.read_labels(client);
        let metrics = client.session.requests(Some(front), None);
        let metrics = client.session.begin(&metrics, self.labels.as_deref());
        reply.write_http1(!stays, &mut client.to_client.bytes);
        let next = match (stays, whole) {
            (true, _) => Next::KeepAlive,
            (false, true) => Next::Close,
            (false, false) => Next::Linger,
        };
        let next = client.send_answer(next).await;
        let outcome = Outcome { code: reply.status, grpc_status: None, error: None };
        self.finish(client, Some(front), None, metrics, outcome, 0);
        next
    }

    /// Answers in place of the upstream: what the fallback says, or else the error.
    pub(super) async fn answer(&mut self, client: &mut Client, request: Unanswered<'_>) -> Next {
        match request.destination {
            Some(destination) if self.falls_back(request.reason) => {
                self.fall_back(client, destination, request).await
            }
            _ => self.answer_error(client, request).await,
        }
    }

    /// Answers an error.
    pub(super) async fn answer_error(&mut self, client: &mut Client, request: Unanswered<'_>) -> Next {
        let Unanswered { destination, endpoint, metrics, reason, message } = request;
        let whole = self.sending.body.is_complete();
        let stays = self.head.keep_alive && whole && !client.session.worker.is_draining();
        let service = destination.map(|d| format!("{}.{}", d.service, d.namespace)).unwrap_or_default();
        let policy = destination.map(|d| self.policy(d));
        let trace_id = self.trace.as_ref().map(SpanContext::trace_id_hex).unwrap_or_default();
        let own = policy.as_ref().map_or("", |policy| &policy.source);
        let (codes, source) = self.injected(reason).unwrap_or((reason.codes(), own));
        let said = self.word.as_ref().filter(|word| word.refused == Some(reason));
        let now = Instant::now();
        let answer = Answer {
            codes,
            message: said.map_or(message, |word| &word.message),
            service: &service,
            policy: said.map_or(source, |word| &word.policy),
            trace_id: &trace_id,
            retry_after: match (said, destination) {
                (Some(word), _) => word.retry_after,
                (None, Some(destination)) => destination.retry_after(reason, now),
                (None, None) => reason.retry_after(),
            },
            fields: self.word.as_ref().map_or(&[], |word| &word.fields),
            ..Answer::new(reason)
        };
        let how = Http1 { head: self.head.method == Method::Head, close: !stays };
        answer.write_http1(self.head.form, how, &mut client.to_client.bytes);
        let next = match (stays, whole) {
            (true, _) => Next::KeepAlive,
            (false, true) => Next::Close,
            (false, false) => Next::Linger,
        };
        let next = client.send_answer(next).await;
        let outcome = Outcome { code: answer.status(self.head.form), grpc_status: None, error: Some(reason) };
        self.finish(client, destination.map(|d| &**d), endpoint.map(|e| &**e), metrics, outcome, 0);
        next
    }
}
