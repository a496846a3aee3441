//! The election as a pure state machine: what was seen and the time in, what
//! to do out.
//!
//! Always holds, as long as clocks run at about the same speed: at most one
//! candidate leads. Clocks of different machines are never compared: a lease is
//! over when it has not changed for its whole duration *as seen from here*
//! (as client-go does it), and a holder counts from before it sent what
//! was accepted, so that its hold ends before anybody else's wait does.

use std::time::{Duration, Instant};

/// How long others wait for a holder that says nothing. Short enough that
/// statuses follow soon after a crash.
pub(crate) const DURATION: Duration = Duration::from_secs(15);

/// How long a holder may write after its last renewal. The rest of [`DURATION`]
/// is for writes under way and for clocks of different speed.
pub(crate) const HOLD: Duration = Duration::from_secs(10);

/// A third of the duration: two renewals may fail.
const RENEW: Duration = Duration::from_secs(5);

/// Between looks of those who wait, and after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// A lease lasts no longer than this, whatever it says: a wrong number must not stop all writing.
const MAX_DURATION: Duration = Duration::from_secs(120);

/// A lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Differs after each write.
    pub(super) version: String,
    /// Empty if it was given back.
    pub(super) holder: String,
    pub(super) duration: Duration,
}

/// What to write, and under which condition it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// There is none yet; refused if there is.
    Create,
    /// It is ours, and stays so; refused if it changed.
    Renew,
    /// It was another's and is over; refused if it changed.
    TakeOver,
}

/// One candidate's view.
#[derive(Debug)]
pub(super) struct Election {
    holder: String,
    standing: Standing,
    /// Until when this candidate may write.
    until: Option<Instant>,
    /// When it last renewed.
    renewed: Option<Instant>,
}

#[derive(Debug)]
enum Standing {
    Unknown,
    Absent,
    Present { lease: Seen, since: Instant },
}

impl Election {
    pub(super) fn new(holder: String) -> Self {
        Self { holder, standing: Standing::Unknown, until: None, renewed: None }
    }

    pub(super) fn holder(&self) -> &str {
        &self.holder
    }

    /// Takes in what was read at `now`.
    pub(super) fn observe(&mut self, lease: Option<&Seen>, now: Instant) {
        self.standing = match (lease, &self.standing) {
            (None, _) => Standing::Absent,
            (Some(lease), Standing::Present { lease: known, since }) if known.version == lease.version => {
                Standing::Present { lease: lease.clone(), since: *since }
            }
            (Some(lease), _) => Standing::Present { lease: lease.clone(), since: now },
        };
        if lease.is_none_or(|lease| lease.holder != self.holder) {
            self.until = None;
        }
    }

    /// What to write now, if anything.
    pub(super) fn claim(&self, now: Instant) -> Option<Claim> {
        match &self.standing {
            Standing::Unknown => None,
            Standing::Absent => Some(Claim::Create),
            Standing::Present { lease, .. } if lease.holder == self.holder => Some(Claim::Renew),
            Standing::Present { lease, since } => {
                let over = lease.holder.is_empty()
                    || now.saturating_duration_since(*since) >= lease.duration.min(MAX_DURATION);
                over.then_some(Claim::TakeOver)
            }
        }
    }

    /// A claim that was sent at `sent` was accepted; the answer came at `now`.
    pub(super) fn won(&mut self, lease: &Seen, sent: Instant, now: Instant) {
        self.standing = Standing::Present { lease: lease.clone(), since: now };
        self.until = Some(sent + HOLD);
        self.renewed = Some(sent);
    }

    /// A claim was refused: somebody else wrote meanwhile.
    pub(super) fn outrun(&mut self) {
        self.until = None;
    }

    /// Whether this candidate may write at `now`.
    pub(super) fn leads(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// How long it may still write.
    pub(super) fn hold_left(&self, now: Instant) -> Option<Duration> {
        self.until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// How long to wait before the next look or claim.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        let Some(left) = self.hold_left(now) else { return RETRY };
        let due = self.renewed.map_or(Duration::ZERO, |at| (at + RENEW).saturating_duration_since(now));
        // A renewal that failed is tried again soon, and its failure is noticed in time.
        if due.is_zero() { RETRY.min(left) } else { due.min(left) }
    }
}

#[cfg(test)]
mod tests;
