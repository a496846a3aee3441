//! The client of an exchange: how long it waits, and what it is answered in the mesh's own name.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Method, Response, request};

use super::Stop;
use crate::http2::grpc;
use crate::http2::seam::{Limits, Refusal};
use crate::route::Reply;
use crate::sanitize::answer::{Answer, Form};
use crate::wheel::{Deadline, Wheel};

/// The client's side of an exchange.
pub(super) struct Client<'a> {
    pub(super) respond: SendResponse<Bytes>,
    pub(super) form: Form,
    pub(super) wheel: &'a Wheel,
    /// The end of the client's patience, or of ours.
    pub(super) deadline: Deadline,
    pub(super) started: Instant,
    /// The end of the client's patience alone.
    pub(super) asked: Option<Instant>,
    /// What the deadline was set to, if there is a limit.
    pub(super) until: Option<Instant>,
    /// Moved by every byte, by so much.
    pub(super) idle: Option<(Deadline, Duration)>,
    /// Whether it got a 1xx.
    pub(super) informed: bool,
    /// Whether what follows the response's head is a tunnel.
    pub(super) is_tunnel: bool,
}

impl Client<'_> {
    pub(super) fn limit(&mut self, limits: Limits, head: &request::Parts, started: Instant) {
        let asked = if self.form == Form::Grpc { grpc::timeout(&head.headers) } else { None };
        self.asked = asked.and_then(|asked| started.checked_add(asked));
        self.is_tunnel = head.method == Method::CONNECT;
        let limit = [limits.request, asked].into_iter().flatten().min();
        self.until = limit.and_then(|limit| started.checked_add(limit));
        self.deadline.arm_in(started, limit);
        self.idle = limits.idle.map(|idle| {
            let deadline = self.wheel.deadline();
            deadline.arm_in(started, Some(idle));
            (deadline, idle)
        });
    }

    /// A try begins: the silence of the one before is not its own.
    pub(super) fn begin_try(&self, now: Instant) {
        if let Some((deadline, idle)) = &self.idle {
            deadline.arm_in(now, Some(*idle));
        }
    }

    /// A response has begun. The bytes of a tunnel are no exchange: for as long as they flow,
    /// only the client's own limit ends it.
    pub(super) fn begun(&self) {
        match self.asked {
            _ if !self.is_tunnel => {}
            Some(asked) => self.deadline.arm(asked),
            None => self.deadline.disarm(),
        }
    }

    /// Ready when it took too long.
    pub(super) fn poll_late(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<()> {
        if self.deadline.poll_expired(cx).is_ready() {
            return Poll::Ready(());
        }
        match &self.idle {
            Some((deadline, idle)) => {
                if moved {
                    deadline.arm_in(Instant::now(), Some(*idle));
                }
                deadline.poll_expired(cx)
            }
            None => Poll::Pending,
        }
    }

    /// Ready when the client gave up or it took too long, before a response.
    pub(super) fn poll_patience(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<Stop> {
        if self.respond.poll_reset(cx).is_ready() {
            return Poll::Ready(Stop::Gone);
        }
        self.poll_late(cx, moved).map(|()| Stop::Late)
    }

    /// Awaits `future` for as long as the client does.
    pub(super) async fn unless_gone<F: Future>(&mut self, future: F) -> Result<F::Output, Stop> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_patience(cx, false).map(Err),
        })
        .await
    }

    /// Answers as a route says.
    pub(super) fn reply(&mut self, reply: &Reply) {
        let mut head = Response::new(());
        *head.status_mut() = http::StatusCode::from_u16(reply.status).unwrap_or_default();
        head.headers_mut().clone_from(&reply.headers);
        // Fails only if the client is gone.
        let _ = self.respond.send_response(head, true);
    }

    /// Answers in the mesh's own name.
    pub(super) fn refuse(&mut self, refusal: &Refusal, service: &str, trace_id: &str) {
        let answer = Answer {
            reason: refusal.reason,
            codes: refusal.codes,
            message: &refusal.message,
            service,
            policy: &refusal.policy,
            trace_id,
            retry_after: refusal.retry_after,
            fields: &refusal.fields,
        };
        let (head, body) = answer.http2(self.form);
        // Fails only if the client is gone.
        if let Ok(mut down) = self.respond.send_response(head, body.is_empty())
            && !body.is_empty()
        {
            let _ = down.send_data(body, true);
        }
    }
}
