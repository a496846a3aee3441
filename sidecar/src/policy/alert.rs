//! When an alert fires and when it is resolved.
//!
//! A rule looks back on a window of at most [`SLOTS`] slots, the present one
//! included. What is compared with the rule's threshold is the share of
//! requests that count against it, in percent, or their rate per second.
//! A share is known from `min_requests` requests on; fewer say nothing and leave
//! nothing to fire. Too few requests per second are known once a whole
//! window was seen.
//!
//! The alert fires when the condition held for `hold` without a break. It is
//! resolved when the value was on the good side of the threshold by a tenth of
//! it, or unknown, for as long: a value that swings around the threshold fires once.

use std::time::{Duration, Instant};

/// One rule, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertRule {
    /// What is compared.
    pub condition: Condition,
    /// How far back requests count.
    pub window: Duration,
    /// Fewer requests in the window say nothing about shares.
    pub min_requests: u64,
    /// How long the condition has to hold, and then not to.
    pub hold: Duration,
}

/// What fires.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Condition {
    /// This percentage of requests, or more, counts against the rule.
    ShareFrom(f64),
    /// More than this percentage of requests counts against the rule.
    ShareAbove(f64),
    /// More requests per second than this.
    RateAbove(f64),
    /// Fewer requests per second than this.
    RateBelow(f64),
}

impl Condition {
    /// Whether a value fires; `margin` tightens the threshold (1: as it is).
    fn holds(self, value: f64, margin: f64) -> bool {
        match self {
            Self::ShareFrom(percent) => value >= percent * margin,
            Self::ShareAbove(limit) | Self::RateAbove(limit) => value > limit * margin,
            Self::RateBelow(limit) => value < limit / margin,
        }
    }
}

/// Requests that ended.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Counts {
    /// All.
    pub requests: u64,
    /// Those that count against the rule; those within a bucket of latencies in part.
    pub against: f64,
}

/// How it stands with a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AlertState {
    /// Nothing is wrong.
    Quiet,
    /// The condition has held since then, not long enough.
    Pending(Instant),
    /// It fires.
    Firing(Measured),
    /// It fires, and has been well since then, not long enough.
    Recovering(Measured, Instant),
}

/// What was measured when an alert began to fire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Percent or requests per second.
    pub value: f64,
    /// Requests in the window.
    pub requests: u64,
}

/// A window is divided into no more parts: what leaves it leaves by a sixtieth.
pub const SLOTS: u32 = 60;

/// The shortest slot: more often nobody looks.
pub const SHORTEST_SLOT: Duration = Duration::from_secs(1);

/// How far, as a part of the threshold, a value has to be on the good side.
const MARGIN: f64 = 0.9;

/// A rule and what it has seen. Survives changes of other rules.
#[derive(Debug)]
pub struct Alert {
    rule: AlertRule,
    /// The length of a slot.
    slot: Duration,
    started: Instant,
    /// The number, counted from `started`, of the newest slot in `slots`.
    newest: u64,
    /// By number, modulo its length.
    slots: Box<[Counts]>,
    state: AlertState,
}

impl Alert {
    /// Nothing was seen yet.
    pub fn new(rule: AlertRule, now: Instant) -> Self {
        let slot = (rule.window / SLOTS).max(SHORTEST_SLOT);
        let slots = rule.window.as_nanos().div_ceil(slot.as_nanos()).clamp(1, u128::from(SLOTS));
        let slots = vec![Counts::default(); usize::try_from(slots).unwrap_or(1)].into();
        Self { rule, slot, started: now, newest: 0, slots, state: AlertState::Quiet }
    }

    /// How it stands.
    pub fn state(&self) -> AlertState {
        self.state
    }

    /// What was measured when it began to fire, if it fires.
    pub fn firing(&self) -> Option<Measured> {
        match self.state {
            AlertState::Firing(measured) | AlertState::Recovering(measured, _) => Some(measured),
            AlertState::Quiet | AlertState::Pending(_) => None,
        }
    }

    /// Adds what ended since the last time, and judges. Returns whether it began or ceased to fire.
    pub fn observe(&mut self, ended: Counts, now: Instant) -> bool {
        self.turn(now);
        let at = self.place(self.newest);
        self.slots[at].requests += ended.requests;
        self.slots[at].against += ended.against;
        let was_firing = self.firing().is_some();
        let measured = self.measure(now);
        let holds = |margin| measured.filter(|measured| self.rule.condition.holds(measured.value, margin));
        let (bad, not_well) = (holds(1.0), holds(MARGIN).is_some());
        let lasts = |since: Instant| now.saturating_duration_since(since) >= self.rule.hold;
        self.state = match (self.state, bad) {
            (AlertState::Quiet, Some(measured)) if self.rule.hold.is_zero() => AlertState::Firing(measured),
            (AlertState::Quiet, Some(_)) => AlertState::Pending(now),
            (AlertState::Pending(since), Some(measured)) if lasts(since) => AlertState::Firing(measured),
            (AlertState::Quiet | AlertState::Pending(_), None) => AlertState::Quiet,
            (AlertState::Firing(first) | AlertState::Recovering(first, _), _) if not_well => {
                AlertState::Firing(first)
            }
            (AlertState::Firing(_), _) if self.rule.hold.is_zero() => AlertState::Quiet,
            (AlertState::Firing(first), _) => AlertState::Recovering(first, now),
            (AlertState::Recovering(_, since), _) if lasts(since) => AlertState::Quiet,
            (unchanged, _) => unchanged,
        };
        was_firing != self.firing().is_some()
    }

    /// What the window says now; `None`: nothing yet.
    // Counts of requests stay far below 2⁵³.
    #[allow(clippy::cast_precision_loss)]
    fn measure(&self, now: Instant) -> Option<Measured> {
        let requests: u64 = self.slots.iter().map(|slot| slot.requests).sum();
        let value = match self.rule.condition {
            Condition::ShareFrom(_) | Condition::ShareAbove(_) => {
                if requests == 0 || requests < self.rule.min_requests {
                    return None;
                }
                let against: f64 = self.slots.iter().map(|slot| slot.against).sum();
                100.0 * against / requests as f64
            }
            Condition::RateBelow(_) if now.saturating_duration_since(self.started) < self.rule.window => {
                return None;
            }
            Condition::RateAbove(_) | Condition::RateBelow(_) => {
                requests as f64 / self.rule.window.as_secs_f64()
            }
        };
        Some(Measured { value, requests })
    }

    /// Empties the slots that began since the newest one.
    fn turn(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.started).as_nanos() / self.slot.as_nanos();
        let number = u64::try_from(since).unwrap_or(u64::MAX).max(self.newest);
        let fresh = (number - self.newest).min(self.slots.len() as u64);
        for back in 0..fresh {
            let at = self.place(number - back);
            self.slots[at] = Counts::default();
        }
        self.newest = number;
    }

    fn place(&self, number: u64) -> usize {
        usize::try_from(number % self.slots.len() as u64).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
