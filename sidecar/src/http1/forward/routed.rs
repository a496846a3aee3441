//! What the routes of a destination make of a request: where it goes instead,
//! how its head changes, and who gets a copy.

use std::rc::Rc;
use std::sync::Arc;

use super::Request;
use super::hop::HeadEnd;
use crate::config::TrafficPolicy;
use crate::http1::connection::Client;
use crate::http1::limits::{Stop, wait};
use crate::http1::{Method, mirror};
use crate::io::WriteBuffer;
use crate::reason::Reason;
use crate::route::{Filters, Http1Head, Http1Request, Reply, TooLong};
use crate::routing::{Routed, Routing, Selected, Turn, Way};
use crate::telemetry::metrics::RetryMetrics;
use crate::upstream::Destination;

/// Why a request goes to no destination.
pub(super) enum Detour {
    /// Its route answers it.
    Reply(Rc<Destination>, Box<Reply>),
    /// For this reason, at this destination.
    Refused(Rc<Destination>, Reason, String),
    ClientLeft,
}

impl Request {
    /// The destination of a request that dialled `front`: another where a route says so.
    pub(super) async fn route(
        &mut self,
        client: &mut Client,
        front: Rc<Destination>,
    ) -> Result<Rc<Destination>, Detour> {
        match front.routing() {
            Some(routing) => Box::pin(self.follow_route(client, front, &routing)).await,
            None => {
                if front.has_faults() {
                    self.draw(client, None, &front);
                }
                Ok(front)
            }
        }
    }

    async fn follow_route(
        &mut self,
        client: &mut Client,
        front: Rc<Destination>,
        routing: &Routing,
    ) -> Result<Rc<Destination>, Detour> {
        let head = Http1Head::new(&client.to_upstream.bytes[..self.head_end.at()]);
        let selected = routing.select(&head, front.port(), &client.session.worker.rng);
        let Some(Selected { rule, noted, turn }) = selected else {
            return Err(Detour::Refused(front, Reason::NoRoute, String::new()));
        };
        let (place, session) = match turn {
            Turn::Backend(place, session) => (place, session),
            Turn::Reply(reply) => return Err(Detour::Reply(front, Box::new(reply))),
            Turn::Refused(why) => return Err(Detour::Refused(front, Reason::NoBackend, why)),
        };
        let way = match routing.known(&rule, place) {
            Some(way) => way,
            None => {
                let Client { session, connection, deadline, .. } = client;
                let found = Box::pin(session.worker.way(&front, routing, &rule, place));
                self.limits.arm(deadline, self.progress.started);
                match wait(found, connection, deadline, &mut self.sending, &mut self.limits).await {
                    Ok(Ok(way)) => way,
                    Ok(Err(reason)) | Err(Stop::Reason(reason)) => {
                        return Err(Detour::Refused(front, reason, String::new()));
                    }
                    Err(Stop::ClientLeft) => return Err(Detour::ClientLeft),
                }
            }
        };
        if !way.rule.faults.is_empty() || way.destination.has_faults() {
            self.draw(client, Some(&way), &way.destination);
        }
        if self.edit_for(&mut client.to_upstream, &way).is_err() {
            return Err(Detour::Refused(front, Reason::HeaderTooLarge, String::new()));
        }
        let destination = way.destination.clone();
        self.routed = Some(Box::new(Routed { way, noted, session, mirrored: false }));
        Ok(destination)
    }

    /// Changes the head as the rule's filters say and then those of the backend.
    fn edit_for(&mut self, out: &mut WriteBuffer, way: &Way) -> Result<(), TooLong> {
        self.edit(out, &way.rule.filters)?;
        let filters = &way.backend().filters;
        if filters.edits_request() && way.mirrors().next().is_some() {
            self.plain = Some(out.bytes[..self.head_end.at()].into());
        }
        self.edit(out, filters)
    }

    /// Changes the head as these filters say.
    fn edit(&mut self, out: &mut WriteBuffer, filters: &Filters) -> Result<(), TooLong> {
        if !filters.edits_request() {
            return Ok(());
        }
        self.rewrite(out, |head| filters.edit_request(head))
    }

    /// Writes the head anew with these changes.
    pub(super) fn rewrite(
        &mut self,
        out: &mut WriteBuffer,
        change: impl FnOnce(&mut Http1Request<'_>) -> Result<(), TooLong>,
    ) -> Result<(), TooLong> {
        let (head, body) = out.bytes.split_at(self.head_end.at());
        let mut edited = Http1Request::new(head);
        change(&mut edited)?;
        let mut bytes = Vec::with_capacity(out.bytes.len() + 256);
        let places = edited.write(&mut bytes);
        self.head_end = HeadEnd::new(bytes.len());
        bytes.extend_from_slice(body);
        out.bytes = bytes;
        self.head.method_token = places.method;
        (self.head.path, self.head.target, self.head.authority) =
            (places.path, places.target, places.authority);
        Ok(())
    }

    /// Sends the copies that its rule asks for, as soon as all of it is known.
    pub(super) fn mirror(&mut self, client: &Client) {
        if let Some(routed) = &mut self.routed
            && !routed.mirrored
            && self.sending.replayable
            && self.sending.holds
            && self.sending.body.is_complete()
            // A tunnel cannot be copied.
            && !self.head.upgrade
            && self.head.method != Method::Connect
        {
            routed.mirrored = true;
            let sent = &client.to_upstream.bytes;
            let whole = || match &self.plain {
                Some(head) => (self.head.method, [head, &sent[self.head_end.at()..]].concat()),
                None => (self.head.method, self.head_end.untold(sent)),
            };
            crate::mirror::send(&client.session.worker, &routed.way, whole, mirror::carry);
        }
    }

    /// How the request is treated.
    pub(super) fn policy(&self, destination: &Destination) -> Arc<TrafficPolicy> {
        match &self.routed {
            Some(routed) => routed.way.policy(),
            None => destination.policy(),
        }
    }

    /// Where its retries are counted.
    pub(super) fn retries<'a>(&'a self, destination: &'a Destination) -> &'a RetryMetrics {
        match &self.routed {
            Some(routed) => &routed.way.retries,
            None => &destination.retries,
        }
    }
}
