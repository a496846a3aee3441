//! What a request gets in place of an error.

use std::time::Instant;

use super::{Answered, Client, Exchange, Stop};
use crate::fallback::Substitute;
use crate::http2::seam::{Call, Instead, Limits, Refusal};
use crate::reason::Reason;

impl<C: Call> Exchange<'_, C> {
    /// The error that is replaced by something else, if it is one.
    pub(super) fn replaced(&self, tried: &Result<Answered, Stop>) -> Option<Reason> {
        if !self.call.has_fallback() || self.client.informed {
            return None;
        }
        let reason = match tried {
            Ok(answered) => answered.mesh_reason()?,
            Err(Stop::Failed(_, refusal)) => refusal.reason,
            Err(Stop::Late) => Reason::Timeout,
            Err(Stop::Gone) => return None,
        };
        self.call.falls_back(reason).then_some(reason)
    }

    /// Answers in place of an error that is replaced.
    pub(super) async fn fall_back(&mut self, tried: Result<Answered, Stop>, reason: Reason) {
        let (mut reason, first) = (reason, refusal(tried, reason));
        loop {
            // The time of the request may be over already: what comes now has its own.
            self.client.begin_again(Limits { request: None, ..self.limits });
            let head = self.head.as_ref().filter(|_| self.upload.is_replayable());
            let instead = self.call.instead(reason, head, self.client.form);
            match self.client.unless_gone(instead).await {
                Ok(Instead::Answer(substitute)) => return self.substitute(*substitute, first.reason),
                Ok(Instead::Elsewhere) => {}
                Err(Stop::Gone) => return self.finish(None, None, None, true, 0),
                Ok(Instead::Nothing) | Err(_) => return self.refuse(&first),
            }
            self.limits = self.call.limits();
            self.client.begin_again(self.limits);
            self.upload.rewind();
            let tried = self.tries().await;
            match self.replaced(&tried) {
                Some(next) => reason = next,
                None => return self.end(tried).await,
            }
        }
    }

    /// Answers what a step has given.
    fn substitute(&mut self, substitute: Substitute, reason: Reason) {
        let (status, grpc_status) = (substitute.status, substitute.grpc_status(self.client.form));
        let (head, body) = substitute.http2();
        let received = body.len() as u64;
        // Fails only if the client is gone.
        if let Ok(mut down) = self.client.respond.send_response(head, body.is_empty())
            && !body.is_empty()
        {
            let _ = down.send_data(body, true);
        }
        self.finish(Some(status), grpc_status, Some(reason), false, received);
    }
}

/// The error as it would be answered. What came of the try ends with it.
fn refusal(tried: Result<Answered, Stop>, reason: Reason) -> Refusal {
    match tried {
        Err(Stop::Failed(_, refusal)) => refusal,
        _ => reason.into(),
    }
}

impl Client<'_> {
    /// Time begins anew, save for what the client said itself.
    fn begin_again(&mut self, limits: Limits) {
        let now = Instant::now();
        let limit = limits.request.and_then(|limit| now.checked_add(limit));
        self.until = [limit, self.asked].into_iter().flatten().min();
        match self.until {
            Some(until) => self.deadline.arm(until),
            None => self.deadline.disarm(),
        }
        self.idle = limits.idle.map(|idle| {
            let deadline = self.wheel.deadline();
            deadline.arm_in(now, Some(idle));
            (deadline, idle)
        });
    }
}
