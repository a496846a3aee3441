//! What is kept, by what it answers: bounded in bytes, the least recently used
//! goes first. No clock: the time comes in.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};

use super::{Terms, says_who};
use crate::route::Head;

/// Responses by the target of their requests.
#[derive(Debug, Default)]
pub struct Cache {
    targets: HashMap<Arc<[u8]>, Vec<Variant>>,
    /// The variants' targets by when they were last used.
    order: BTreeMap<u64, Arc<[u8]>>,
    turn: u64,
    /// What the variants cost.
    used: usize,
    /// What responses on their way may cost.
    reserved: usize,
    changes: Changes,
}

/// The targets that were changed lately: what was asked for before must not be kept afterwards.
#[derive(Debug, Default)]
struct Changes {
    /// The hash of each and the time, in their order.
    recent: VecDeque<(u64, Instant)>,
    /// When the last one was forgotten. Whatever was asked for before may have changed.
    forgotten: Option<Instant>,
    hasher: RandomState,
}

/// More than this change while a response is on its way at few services; there what is slowest is not kept.
const RECENT_CHANGES: usize = 256;

impl Changes {
    fn note(&mut self, target: &[u8], now: Instant) {
        if self.recent.len() >= RECENT_CHANGES {
            self.forgotten = self.recent.pop_front().map(|(_, at)| at);
        }
        self.recent.push_back((self.hasher.hash_one(target), now));
    }

    fn since(&self, target: &[u8], then: Instant) -> bool {
        let hash = self.hasher.hash_one(target);
        self.forgotten.is_some_and(|at| at >= then)
            || self.recent.iter().any(|(changed, at)| *changed == hash && *at >= then)
    }
}

/// A response that is kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its headers; those of framing are not among them.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
}

/// A response that answers a request.
#[derive(Debug, Clone)]
pub struct Found {
    /// The response.
    pub kept: Arc<Kept>,
    /// How old it is (RFC 9111, section 4.2.3).
    pub age: Duration,
}

/// The request's fields that selected a response, each with its values (section 4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selecting(Box<[(HeaderName, Values)]>);

/// All values of a field in one; `None`: there is no such field.
type Values = Option<Box<[u8]>>;

#[derive(Debug)]
struct Variant {
    turn: u64,
    selecting: Selecting,
    terms: Terms,
    received: Instant,
    cost: usize,
    kept: Arc<Kept>,
}

/// What a variant costs besides its bytes: its places in the maps, and the head's table.
const VARIANT_COST: usize = 512;

/// What a field costs besides its bytes.
const FIELD_COST: usize = 64;

/// Responses to one target that differ by `Vary`. They are compared one by one.
const MAX_VARIANTS: usize = 16;

impl Selecting {
    /// What `request` has of these fields.
    pub fn of(names: &[HeaderName], request: &impl Head) -> Self {
        let of = |name: &HeaderName| (name.clone(), values(request, name));
        Self(names.iter().map(of).collect())
    }

    fn selects(&self, request: &impl Head) -> bool {
        self.0.iter().all(|(name, wanted)| values(request, name) == *wanted)
    }

    fn cost(&self) -> usize {
        let value = |value: &Values| value.as_ref().map_or(0, |value| value.len());
        self.0.iter().map(|(name, values)| FIELD_COST + name.as_str().len() + value(values)).sum()
    }
}

/// All values of a field in one, as a list of them would be written.
fn values(request: &impl Head, name: &HeaderName) -> Values {
    let mut values = request.values(name);
    let mut all = values.next()?.trim_ascii().to_vec();
    for value in values {
        all.extend_from_slice(b", ");
        all.extend_from_slice(value.trim_ascii());
    }
    Some(all.into())
}

impl Kept {
    /// What the headers cost.
    pub fn head_cost(headers: &HeaderMap) -> usize {
        headers.iter().map(|(name, value)| FIELD_COST + name.as_str().len() + value.len()).sum()
    }
}

impl Cache {
    /// Sets room aside for a response on its way, up to a quarter of `max_bytes` for all of them
    /// together. What is kept gives way. `false`: there is none.
    pub fn reserve(&mut self, bytes: usize, max_bytes: usize) -> bool {
        let reserved = self.reserved.saturating_add(bytes);
        if reserved > max_bytes / 4 {
            return false;
        }
        self.reserved = reserved;
        self.make_room(0, max_bytes);
        true
    }

    /// Gives room back.
    pub fn release(&mut self, bytes: usize) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Whether a target may have changed since a request for it was sent.
    pub fn has_changed(&self, target: &[u8], since: Instant) -> bool {
        self.changes.since(target, since)
    }

    /// Keeps a response in place of the one that the same request got before, unless that came later, or
    /// it would take more than a quarter of `max_bytes`.
    pub fn insert(
        &mut self,
        target: &[u8],
        selecting: Selecting,
        terms: Terms,
        kept: Kept,
        received: Instant,
        max_bytes: usize,
    ) {
        let variants = self.targets.get(target).map(Vec::as_slice).unwrap_or_default();
        if variants.iter().any(|variant| variant.selecting == selecting && variant.received > received) {
            return;
        }
        self.remove(target, |variant| variant.selecting == selecting);
        let cost = VARIANT_COST + target.len() + selecting.cost() + Kept::head_cost(&kept.headers);
        let cost = cost + kept.body.len();
        if cost > max_bytes / 4 {
            return;
        }
        self.make_room(cost, max_bytes);
        let least = self.targets.get(target).filter(|variants| variants.len() >= MAX_VARIANTS);
        if let Some(least) = least.and_then(|variants| variants.iter().map(|variant| variant.turn).min()) {
            self.remove(target, |variant| variant.turn == least);
        }
        let turn = self.next_turn();
        let known = self.targets.get_key_value(target).map(|(target, _)| target.clone());
        let target = known.unwrap_or_else(|| target.into());
        self.order.insert(turn, target.clone());
        self.used += cost;
        let variant = Variant { turn, selecting, terms, received, cost, kept: Arc::new(kept) };
        self.targets.entry(target).or_default().push(variant);
    }

    /// The response that answers `request`, the latest of several, if it is no older than
    /// its terms and `max_age` allow.
    pub fn find(
        &mut self,
        target: &[u8],
        request: &impl Head,
        max_age: Duration,
        now: Instant,
    ) -> Option<Found> {
        let personal = says_who(request);
        let variants = self.targets.get_mut(target)?;
        let fits = |variant: &&mut Variant| {
            let since = now.saturating_duration_since(variant.received);
            since < variant.terms.usable.min(max_age)
                && (variant.terms.public || !personal)
                && variant.selecting.selects(request)
        };
        // Of equals it is the last: they stand in the order in which they came.
        let found = variants.iter_mut().filter(fits).max_by_key(|variant| variant.received)?;
        let age = found.terms.age.saturating_add(now.saturating_duration_since(found.received));
        let answer = Found { kept: found.kept.clone(), age };
        self.turn += 1;
        if let Some(target) = self.order.remove(&std::mem::replace(&mut found.turn, self.turn)) {
            self.order.insert(self.turn, target);
        }
        Some(answer)
    }

    /// Forgets all responses for a target, which was changed (section 4.4).
    pub fn invalidate(&mut self, target: &[u8], now: Instant) {
        self.changes.note(target, now);
        self.remove(target, |_| true);
    }

    /// Forgets what may no longer be used.
    pub fn sweep(&mut self, now: Instant) {
        let over =
            |variant: &Variant| now.saturating_duration_since(variant.received) >= variant.terms.usable;
        self.targets.retain(|_, variants| {
            variants.retain(|variant| {
                let over = over(variant);
                if over {
                    self.order.remove(&variant.turn);
                    self.used -= variant.cost;
                }
                !over
            });
            !variants.is_empty()
        });
    }

    /// Makes room for so many bytes; the least recently used goes first.
    fn make_room(&mut self, bytes: usize, max_bytes: usize) {
        while self.used + self.reserved + bytes > max_bytes {
            let Some((turn, target)) = self.order.pop_first() else { return };
            self.remove(&target, |variant| variant.turn == turn);
        }
    }

    fn remove(&mut self, target: &[u8], goes: impl Fn(&Variant) -> bool) {
        let Some(variants) = self.targets.get_mut(target) else { return };
        variants.retain(|variant| {
            let goes = goes(variant);
            if goes {
                self.order.remove(&variant.turn);
                self.used -= variant.cost;
            }
            !goes
        });
        if variants.is_empty() {
            self.targets.remove(target);
        }
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// What everything that is kept or on its way costs.
    #[cfg(test)]
    pub(super) fn cost(&self) -> usize {
        self.used + self.reserved
    }
}

#[cfg(test)]
mod tests;
