//! One request: its head, its tries, its response and both bodies.
//!
//! Everything happens in the downstream connection's task. What either side
//! gives up ends the other side at once: handles that are dropped reset their
//! stream (CANCEL upstream; NO_ERROR downstream after a complete response, RFC
//! 9113, section 8.1). No try begins after a byte of a response, a 1xx
//! included, went to the client.

mod client;
mod fallback;
mod flow;
mod hedge;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, header, request, response};

use self::client::Client;
use self::flow::{Ended, Flow, broken_off};
use crate::http2::body::{Body, Broken};
use crate::http2::seam::{Call, Calls, Detour, End, Limits, Refusal, Stand};
use crate::http2::upstream::Slot;
use crate::http2::{fault, grpc, head};
use crate::policy::fault::Injected;
use crate::policy::retry::{Failure, HELD_FOR};
use crate::reason::Reason;
use crate::sanitize::answer::{Answer, Form};
use crate::wheel::Deadline;

/// Carries a request from its head to the end of its response.
pub(crate) async fn run<C: Calls>(calls: &C, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let started = Instant::now();
    let (mut head, body) = request.into_parts();
    let mut client = Client {
        form: form(&head),
        wheel: calls.wheel(),
        deadline: calls.wheel().deadline(),
        asked: None,
        until: None,
        idle: None,
        started,
        respond,
        informed: false,
        is_tunnel: false,
    };
    if let Err(refusal) = head::sanitize(&mut head, calls.trusts_client()) {
        calls.refused(&head, refusal.reason, started);
        client.refuse(&refusal, "", "");
        return;
    }
    let begun = client.unless_gone(calls.begin(&mut head, started)).await;
    let call = match begun {
        Ok(Ok(call)) => call,
        Ok(Err(Detour::Refused(refusal))) => return client.refuse(&refusal, "", ""),
        Ok(Err(Detour::Reply(reply))) => return client.reply(&reply),
        Err(_) => return,
    };
    let limits = call.limits();
    client.limit(limits, &head, started);
    let mut upload = Body::new(body, limits.replay);
    if limits.ends_trailers {
        upload.end_trailers();
    }
    Exchange { call, client, head: Some(head), upload, limits }.run().await;
}

fn form(head: &request::Parts) -> Form {
    let field = |name| head.headers.get(name).map(header::HeaderValue::as_bytes);
    Form::of(field(header::CONTENT_TYPE), field(header::ACCEPT))
}

/// Why there is no response to pass on.
enum Stop {
    /// The client gave up.
    Gone,
    /// The exchange took too long.
    Late,
    /// A try failed.
    Failed(Failure, Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Failed(Failure::Mesh(refusal.reason), refusal)
    }
}

struct Exchange<'a, C> {
    call: C,
    client: Client<'a>,
    /// Taken by the last try.
    head: Option<request::Parts>,
    upload: Body,
    limits: Limits,
}

/// A response of which the head has just come.
struct Arrival {
    response: Response<RecvStream>,
    up: SendStream<Bytes>,
    /// The end of the try's time.
    limit: Option<Deadline>,
    slot: Slot,
}

/// A response that can be passed on.
struct Answered {
    response: Response<()>,
    download: Body,
    up: SendStream<Bytes>,
    /// The end of the try's time, if that covers the response.
    limit: Option<Deadline>,
    /// When its head came, if its body was waited for.
    head_at: Option<Instant>,
    /// Keeps the stream in the books of its connection.
    _slot: Slot,
}

impl Answered {
    /// Why a sidecar answered, if it was one.
    fn mesh_reason(&self) -> Option<Reason> {
        let word = self.response.headers().get(crate::sanitize::answer::ERROR_HEADER)?;
        Reason::from_wire(word.as_bytes())
    }
}

impl<C: Call> Exchange<'_, C> {
    async fn run(&mut self) {
        let tried = self.tries().await;
        match self.replaced(&tried) {
            // Boxed because it is rare.
            Some(reason) => Box::pin(self.fall_back(tried, reason)).await,
            None => self.end(tried).await,
        }
    }

    async fn end(&mut self, tried: Result<Answered, Stop>) {
        match tried {
            Ok(answered) => self.respond(answered).await,
            Err(Stop::Gone) => self.finish(None, None, None, true, 0),
            Err(Stop::Late) => {
                self.call.ran_out(self.head.as_ref());
                self.refuse(&Reason::Timeout.into());
            }
            Err(Stop::Failed(_, refusal)) => self.refuse(&refusal),
        }
    }

    /// Tries until there is a response to pass on.
    async fn tries(&mut self) -> Result<Answered, Stop> {
        if let Some(fault) = self.call.fault() {
            Box::pin(self.meet(*fault)).await?;
        }
        loop {
            // Two tunnels are no race: what flows in them is not the mesh's to repeat.
            let tried = match self.limits.hedge.filter(|_| !self.client.is_tunnel) {
                None => self.attempt().await,
                // Boxed because it is rare: its size would be every stream's.
                Some(after) => Box::pin(self.hedged(after)).await,
            };
            if let Some(head) = &self.head {
                self.call.mirror(head, &self.upload);
            }
            let now = Instant::now();
            let stand = self.stand(now);
            let (result, again) = match tried {
                Ok(answered) => {
                    let (mut head, ()) = answered.response.into_parts();
                    let grpc_status = grpc::status(&head.headers);
                    let stand = Stand { now: answered.head_at.unwrap_or(now), ..stand };
                    let again = self.call.answered(&mut head, grpc_status, self.head.as_ref(), stand);
                    (Ok(Answered { response: Response::from_parts(head, ()), ..answered }), again)
                }
                Err(Stop::Failed(failure, refusal)) => {
                    let again = self.call.failed(failure, self.head.as_ref(), stand);
                    (Err(Stop::Failed(failure, refusal)), again)
                }
                stopped => return stopped,
            };
            let Some(delay) = again else { return result };
            drop(result);
            if !delay.is_zero() {
                let pause = self.client.wheel.deadline();
                pause.arm(now + delay);
                self.client.unless_gone(pause.expired()).await?;
            }
            self.upload.rewind();
        }
    }

    /// How the exchange stands.
    fn stand(&self, now: Instant) -> Stand {
        Stand {
            replayable: self.upload.is_replayable() && self.head.is_some(),
            response_started: self.client.informed,
            deadline: self.client.until,
            now,
        }
    }

    /// Waits, and fails, as a fault asks.
    async fn meet(&mut self, fault: Injected) -> Result<(), Stop> {
        if let Some(delay) = fault.delay {
            let pause = self.client.wheel.deadline();
            pause.arm_in(self.client.started, Some(delay));
            self.client.unless_gone(pause.expired()).await?;
        }
        let Some(codes) = fault.abort else { return Ok(()) };
        let refusal = Refusal::from(Reason::FaultInjected);
        Err(Refusal { codes, policy: fault.source.as_ref().into(), ..refusal }.into())
    }

    /// One try, until its response head.
    async fn attempt(&mut self) -> Result<Answered, Stop> {
        let now = Instant::now();
        self.client.begin_try(now);
        let (links, terms) = self.call.pick(now)?;
        let limit = self.limits.per_try.map(|limit| {
            let deadline = self.client.wheel.deadline();
            deadline.arm(now + limit);
            deadline
        });
        let call = &self.call;
        let found = {
            let slot = links.slot(&terms, || call.connect());
            let within = within(limit.as_ref(), slot);
            self.client.unless_gone(within).await?
        };
        let mut slot = found.ok_or_else(|| Refusal::from(self.call.late()))??;
        // Making a connection is no part of the latency.
        let request = self.request(Instant::now()).ok_or_else(|| Refusal::from(Reason::Reset))?;
        let sent = slot.send.send_request(request, self.upload.is_empty());
        let (response, up) = sent.map_err(|error| failed(&error, &slot))?;
        let mut started = Started { response, up, sink: true };
        let head = poll_fn(|cx| self.poll_head(cx, &mut started, limit.as_ref())).await;
        match head {
            Ok(response) => self.arrived(Arrival { response, up: started.up, limit, slot }).await,
            Err(Early::Stop(stop)) => Err(stop),
            Err(Early::Upstream(error)) => Err(failed(&error, &slot)),
        }
    }

    /// A response has come: holds it back, if that is due to it.
    async fn arrived(&mut self, arrival: Arrival) -> Result<Answered, Stop> {
        let Arrival { response, up, limit, slot } = arrival;
        let limit = limit.filter(|_| self.limits.per_try_whole);
        let (head, body) = response.into_parts();
        let mut download = Body::new(body, None);
        let mut head_at = None;
        if let Some(length) = self.held_back(&head) {
            head_at = Some(Instant::now());
            // Boxed because it is rare: its size would be every stream's.
            Box::pin(self.hold(&mut download, length, limit.as_ref())).await?;
        }
        let response = Response::from_parts(head, ());
        Ok(Answered { response, download, up, limit, head_at, _slot: slot })
    }

    /// The request for one try; a copy while there may be another.
    fn request(&mut self, now: Instant) -> Option<Request<()>> {
        let mut head = if self.upload.is_replayable() { self.head.clone()? } else { self.head.take()? };
        self.call.outgoing(&mut head, now);
        Some(Request::from_parts(head, ()))
    }

    /// Sends the body while the response head is awaited.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        started: &mut Started,
        limit: Option<&Deadline>,
    ) -> Poll<Result<Response<RecvStream>, Early>> {
        let before = self.upload.sent();
        if let Poll::Ready(result) = self.poll_answer(cx, started, true) {
            return Poll::Ready(result);
        }
        if limit.is_some_and(|limit| limit.poll_expired(cx).is_ready()) {
            return Poll::Ready(Err(late_try().into()));
        }
        self.client.poll_patience(cx, before != self.upload.sent()).map(|stop| Err(stop.into()))
    }

    /// The same, however long it takes. `inform`: whether interim responses are passed on.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        started: &mut Started,
        inform: bool,
    ) -> Poll<Result<Response<RecvStream>, Early>> {
        if started.sink && !self.upload.is_done() {
            match self.upload.poll(cx, &mut started.up, |_, _| ()) {
                Poll::Ready(Err(Broken::Source(_))) => return Poll::Ready(Err(Stop::Gone.into())),
                // The response says what there is to say.
                Poll::Ready(Err(Broken::Sink)) => started.sink = false,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        while let Poll::Ready(Some(Ok(mut interim))) = started.response.poll_informational(cx) {
            if !inform {
                continue;
            }
            self.client.informed = true;
            head::strip_mesh(interim.headers_mut());
            // Fails only if the client is gone, which shows below.
            let _ = self.client.respond.send_informational(interim);
        }
        pin!(&mut started.response).poll(cx).map(|result| result.map_err(Early::Upstream))
    }

    /// The length of a response's body if it is to be passed on only when it is whole: short, and
    /// worth another try should it break off.
    fn held_back(&self, head: &response::Parts) -> Option<usize> {
        let most = self.limits.held.filter(|_| self.upload.is_done() || self.upload.is_empty())?;
        let is_free = self.head.is_some() && self.upload.is_replayable() && !self.client.informed;
        let length: usize = head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
        // What the head says already is not changed by the body.
        let is_good = || self.call.judge(head.status, &head.headers, grpc::status(&head.headers)).is_none();
        (is_free && (1..=most).contains(&length) && is_good()).then_some(length)
    }

    /// Waits for a response's body, but for no longer than is due to it.
    async fn hold(
        &mut self,
        download: &mut Body,
        length: usize,
        limit: Option<&Deadline>,
    ) -> Result<(), Stop> {
        let patience = self.client.wheel.deadline();
        patience.arm_in(Instant::now(), Some(HELD_FOR));
        poll_fn(|cx| {
            if let Poll::Ready(arrived) = download.poll_arrived(cx, length) {
                return Poll::Ready(arrived.map_err(|error| {
                    let reason = broken_off(&error);
                    Stop::from(Refusal::new(reason, error.to_string()))
                }));
            }
            if limit.is_some_and(|limit| limit.poll_expired(cx).is_ready()) {
                return Poll::Ready(Err(late_try()));
            }
            if patience.poll_expired(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            self.client.poll_patience(cx, true).map(Err)
        })
        .await
    }

    /// Passes a response on, with what is left of both bodies.
    async fn respond(&mut self, answered: Answered) {
        // Only a request without a body is asked for again in the same words.
        let bodiless = self.upload.sent() == 0 && self.upload.is_empty();
        self.upload.forget();
        let mesh_reason = answered.mesh_reason();
        let Answered { response, mut download, mut up, limit, head_at: _, _slot } = answered;
        let (mut head, ()) = response.into_parts();
        let status = head.status.as_u16();
        let grpc_status = grpc::status(&head.headers);
        let keep = self.call.passes(self.head.as_ref().filter(|_| bodiless), &head);
        self.call.incoming(&mut head.headers);
        download.keep(keep);
        let complete = download.is_empty();
        let mut response = Response::from_parts(head, ());
        response.extensions_mut().clear();
        let Ok(mut down) = self.client.respond.send_response(response, complete) else {
            return self.finish(None, None, None, true, 0);
        };
        self.client.begun();
        let mut flow = Flow { upload: &mut self.upload, download: &mut download, complete };
        let (call, request) = (&self.call, self.head.as_ref());
        let tell = |trailers: &mut HeaderMap, retried| call.trailed(trailers, retried, request);
        let ended = poll_fn(|cx| {
            let ended = flow.poll(cx, &mut self.client, &mut up, &mut down, tell);
            match &limit {
                Some(limit) if ended.is_pending() => {
                    limit.poll_expired(cx).map(|()| Ended::Broken(Reason::PerTryTimeout, None))
                }
                _ => ended,
            }
        })
        .await;
        let received = download.sent();
        let grpc_status = download.grpc_status().or(grpc_status);
        let (reason, cancelled) = match ended {
            Ended::Complete => {
                download.store();
                (mesh_reason, false)
            }
            Ended::Gone => (None, true),
            Ended::Broken(reason, code) if self.client.form == Form::Grpc && code.is_none() => {
                // A call is ended by a status, so that the caller knows whether to try again.
                let mut trailers = grpc::trailers(reason);
                self.call.trailed(&mut trailers, false, self.head.as_ref());
                let _ = down.send_trailers(trailers);
                return self.finish(Some(status), Some(reason.grpc_status()), Some(reason), false, received);
            }
            Ended::Broken(reason, code) => {
                down.send_reset(code.unwrap_or(h2::Reason::INTERNAL_ERROR));
                (Some(reason), false)
            }
        };
        self.finish(Some(status), grpc_status, reason, cancelled, received);
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.client.refuse(refusal, &self.call.service(), &self.call.trace_id());
        let grpc = self.client.form == Form::Grpc;
        let grpc_status = grpc.then_some(refusal.codes.grpc);
        let answer = Answer { codes: refusal.codes, ..Answer::new(refusal.reason) };
        let status = answer.status(self.client.form);
        self.finish(Some(status), grpc_status, Some(refusal.reason), false, 0);
    }

    fn finish(
        &mut self,
        status: Option<u16>,
        grpc_status: Option<u8>,
        reason: Option<Reason>,
        cancelled: bool,
        received: u64,
    ) {
        let sent = self.upload.sent();
        self.call.ended(End { status, grpc_status, reason, cancelled, sent, received }, Instant::now());
    }
}

/// A request that was sent.
struct Started {
    response: ResponseFuture,
    up: SendStream<Bytes>,
    /// Whether upstream still takes the body.
    sink: bool,
}

/// Why there is no response head.
enum Early {
    Stop(Stop),
    Upstream(h2::Error),
}

impl From<Stop> for Early {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

fn late_try() -> Stop {
    Refusal::from(Reason::PerTryTimeout).into()
}

fn failed(error: &h2::Error, slot: &Slot) -> Stop {
    let reason = fault::reason(error);
    let stale = reason == Reason::Reset && error.is_io() && slot.is_stale();
    let failure = if stale { Failure::StaleConnection } else { Failure::Mesh(reason) };
    Stop::Failed(failure, Refusal::new(reason, error.to_string()))
}

/// `None` if the limit comes first.
async fn within<F: Future>(limit: Option<&Deadline>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if limit.is_some_and(|limit| limit.poll_expired(cx).is_ready()) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}
