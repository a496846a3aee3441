//! Opening a stream to an endpoint: which ones are tried, how often and how soon.
//!
//! A connection is tried again by the rules of requests and on the same budget,
//! as long as nothing was said on it that is not held any more. What counts is
//! that no stream came about: all of it reached no application.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::leg::Leg;
use crate::policy::retry::{Advice, Decision, Failure, GiveUp, Progress};
use crate::reason::Reason;
use crate::session::Session;
use crate::telemetry::metrics::RetryOutcome;
use crate::upstream::{Bound, Destination, Endpoint, InFlight, Lease, MeshProtocol};

/// A stream to an endpoint, as yet without an answer.
pub(crate) struct Opened {
    pub(super) lease: Lease,
    pub(super) leg: Leg,
    pub(super) endpoint: Rc<Endpoint>,
    pub(super) since: Instant,
    pub(super) in_flight: InFlight,
    pub(super) tries: Tries,
}

impl Opened {
    /// Waits until the server has sent something, or is gone.
    pub(crate) async fn answered(&mut self) {
        poll_fn(|cx| self.leg.poll_answered(cx, &mut self.lease)).await;
    }

    /// Gives the stream up.
    pub(crate) fn abandon(self) {
        self.lease.into_inner().transport.abort();
    }
}

/// Opens a stream to an endpoint of the destination, trying others if
/// connections cannot be made.
///
/// # Errors
/// Why none could be opened.
pub(crate) async fn open(
    session: &Session,
    destination: &Rc<Destination>,
    now: Instant,
) -> Result<Opened, Reason> {
    if let Some(reason) = destination.refuses_bytes() {
        return Err(reason);
    }
    destination.budget.borrow_mut().deposit(now);
    let tries = Tries(Progress {
        started: now,
        deadline: None,
        retries: 0,
        hedged: false,
        replaced: false,
        already_retried: false,
        // Bytes have no method that could forbid it.
        method_permitted: true,
        response_started: false,
        replayable: true,
    });
    tries.open(session, destination, None).await
}

/// The tries of one connection.
#[derive(Clone, Copy)]
pub(super) struct Tries(Progress);

impl Tries {
    /// Opens a stream at another endpoint than the one whose sidecar refused it for `reason`, if
    /// the policy allows that. `held`: whether all that the client has said is still at hand.
    pub(super) async fn elsewhere(
        mut self,
        session: &Session,
        destination: &Rc<Destination>,
        refused: Rc<Endpoint>,
        reason: Reason,
        held: bool,
    ) -> Result<Opened, Reason> {
        self.0.replayable = held;
        self.pause(session, destination, Failure::Mesh(reason)).await?;
        self.open(session, destination, Some(refused)).await
    }

    /// Counts the try that ended, if it was a retry.
    pub(super) fn note(&self, destination: &Destination, outcome: RetryOutcome) {
        if self.0.retries > 0 {
            destination.retries.retried(outcome);
        }
    }

    async fn open(
        mut self,
        session: &Session,
        destination: &Rc<Destination>,
        mut failed: Option<Rc<Endpoint>>,
    ) -> Result<Opened, Reason> {
        let key = destination.policy().balancing.affinity_of_connection(session.client_address());
        let bound = Bound { key, session: None };
        loop {
            let now = Instant::now();
            let endpoint = destination.pick(bound, failed.as_ref(), &session.worker.rng, now)?;
            let in_flight = destination.begin(&endpoint, now);
            let failure = match attempt(session, destination, &endpoint).await {
                Ok((lease, leg)) => {
                    let since = Instant::now();
                    return Ok(Opened { lease, leg, endpoint, since, in_flight, tries: self });
                }
                Err(failure) => failure,
            };
            in_flight.failed(failure, Instant::now());
            drop(in_flight);
            self.pause(session, destination, failure).await?;
            failed = Some(endpoint);
        }
    }

    /// Waits until the next try may begin.
    ///
    /// # Errors
    /// Why the last one failed, if there is no other.
    async fn pause(
        &mut self,
        session: &Session,
        destination: &Destination,
        failure: Failure,
    ) -> Result<(), Reason> {
        let (policy, now) = (destination.policy(), Instant::now());
        let decision = policy.retry.decide(
            &self.0,
            failure,
            Advice::None,
            &mut destination.budget.borrow_mut(),
            &session.worker.rng,
            now,
        );
        match decision {
            Decision::Retry { .. } if failure == Failure::StaleConnection => {
                self.0.replaced = true;
                Ok(())
            }
            Decision::Retry { after } => {
                self.note(destination, RetryOutcome::Failed);
                self.0.begin_retry();
                if !after.is_zero() {
                    let pause = session.worker.wheel.deadline();
                    pause.arm(now + after);
                    pause.expired().await;
                }
                Ok(())
            }
            Decision::GiveUp(why) => {
                self.note(destination, RetryOutcome::Failed);
                if why == GiveUp::BudgetExhausted {
                    destination.retries.budget_exhausted();
                }
                Err(match failure {
                    Failure::Mesh(reason) => reason,
                    _ => Reason::Reset,
                })
            }
        }
    }
}

async fn attempt(
    session: &Session,
    destination: &Rc<Destination>,
    endpoint: &Rc<Endpoint>,
) -> Result<(Lease, Leg), Failure> {
    let acquired = destination.acquire(endpoint, MeshProtocol::Tcp, &session.worker).await;
    let mut lease = acquired.map_err(|error| {
        session.worker.warn(format_args!("{}: {}", destination.key, error.detail));
        Failure::Mesh(error.reason)
    })?;
    let mut leg = if endpoint.is_mesh() { Leg::framed() } else { Leg::raw() };
    leg.open();
    // A first write into an empty socket buffer; what is left of it goes with the first data.
    match poll_fn(|cx| Poll::Ready(leg.poll_flush(cx, &mut lease))).await {
        Poll::Ready(Err(_)) if lease.is_reused() => Err(Failure::StaleConnection),
        Poll::Ready(Err(_)) => Err(Failure::Mesh(Reason::ConnectFailure)),
        Poll::Ready(Ok(())) | Poll::Pending => Ok((lease, leg)),
    }
}
