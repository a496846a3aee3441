//! What a call gets in place of an error: decided here, answered in
//! [`exchange`](crate::http2::exchange).

use std::rc::Rc;
use std::time::Instant;

use http::{HeaderValue, Method, request, response};

use super::Forward;
use crate::fallback::{Failed, Keep, Turn};
use crate::http2::seam::{Call, Instead};
use crate::policy::concurrency::Urgency;
use crate::policy::retry::{Failure, Progress};
use crate::reason::Reason;
use crate::sanitize::answer::{ERROR_HEADER, Form};
use crate::upstream::{Admitted, Destination};

impl Forward<'_> {
    /// What is done in place of an error that is replaced.
    pub(super) async fn take_steps(
        &mut self,
        reason: Reason,
        head: Option<&request::Parts>,
        form: Form,
    ) -> Instead {
        let now = Instant::now();
        if self.beside.is_some() {
            // Neither has answered: what ended the one ended both.
            self.leave(Some(Failure::Mesh(reason)), now);
        }
        self.book(Failure::Mesh(reason), now);
        let failed = Failed {
            destination: self.destination.clone(),
            endpoint: self.endpoint.take(),
            counted: self.counted(),
            started: self.progress.started,
            hedged: self.progress.hedged,
            reason,
            form,
        };
        let Some(fallback) = &mut self.fallback else { return Instead::Nothing };
        if let Some(routed) = fallback.returns() {
            self.routed = Some(*routed);
        }
        fallback.begin(failed, now);
        loop {
            let permitted = self.permits(head);
            let Some(fallback) = &mut self.fallback else { return Instead::Nothing };
            let repeatable = head.is_some() && fallback.may_repeat(permitted);
            match fallback.turn(head, form, repeatable, now) {
                Turn::Nothing => {
                    self.come_home();
                    return Instead::Nothing;
                }
                Turn::Answer(mut substitute) => {
                    self.come_home();
                    let is_head = head.is_some_and(|head| head.method == Method::HEAD);
                    substitute.finish(self.routed.as_ref(), form, is_head);
                    return Instead::Answer(substitute);
                }
                Turn::Service(name, port) => {
                    let found = self.side.session.worker.service(&name, None, port).await;
                    let (Ok(destination), Some(head)) = (found, head) else { continue };
                    let urgency = head.headers.get("priority").map(HeaderValue::as_bytes);
                    let urgency = urgency.map(Urgency::of_field).unwrap_or_default();
                    let Ok(admitted) = destination.admit(urgency) else { continue };
                    self.go_elsewhere(destination, admitted, head);
                    return Instead::Elsewhere;
                }
            }
        }
    }

    /// Whether the method of a request that failed at its own service may be repeated.
    fn permits(&self, head: Option<&request::Parts>) -> bool {
        let destination = self.fallback.as_ref().and_then(|fallback| fallback.destination());
        let policy = destination.map(|destination| match &self.routed {
            Some(routed) => routed.way.policy(),
            None => destination.policy(),
        });
        let permits = |head: &request::Parts| {
            policy.is_some_and(|policy| policy.retry.methods.permit(head.method.as_str().as_bytes()))
        };
        head.is_some_and(permits)
    }

    /// It goes to another service, under the policy of that.
    fn go_elsewhere(&mut self, destination: Rc<Destination>, admitted: Admitted, head: &request::Parts) {
        let now = Instant::now();
        if let Some(fallback) = &mut self.fallback {
            fallback.leaves(self.routed.take().map(Box::new));
        }
        let session = &self.side.session;
        self.affinity = destination.affinity(head, session.client_address(), &session.worker.rng);
        self.policy = destination.policy();
        self.progress = Progress {
            started: now,
            retries: 0,
            hedged: false,
            replaced: false,
            method_permitted: self.policy.retry.methods.permit(head.method.as_str().as_bytes()),
            ..self.progress
        };
        (self.destination, self.plain, self._admitted) = (destination, None, admitted);
    }

    /// It is answered in the place of its own service.
    fn come_home(&mut self) {
        let Some(failed) = self.fallback.as_mut().and_then(|fallback| fallback.failed()) else { return };
        let Failed { destination, endpoint, counted, started, .. } = failed;
        self.policy = match &self.routed {
            Some(routed) => routed.way.policy(),
            None => destination.policy(),
        };
        (self.destination, self.endpoint, self.counted) = (destination, endpoint, Some(counted));
        self.progress.started = started;
    }

    /// A response is passed on: what keeps it for bad times.
    pub(super) fn pass(
        &mut self,
        head: Option<&request::Parts>,
        response: &response::Parts,
    ) -> Option<Box<Keep>> {
        let now = Instant::now();
        let error = response.headers.get(ERROR_HEADER);
        let error = error.and_then(|word| Reason::from_wire(word.as_bytes()));
        let fallback = self.fallback.as_mut()?;
        fallback.answered(response.status.as_u16(), error, now);
        let delay = now.saturating_duration_since(self.progress.started);
        fallback.keep(head?, response.status.as_u16(), || response.headers.clone(), delay, now)
    }
}
