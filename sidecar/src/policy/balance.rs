//! Which endpoint gets a request.
//!
//! A [`Balancer`] is made when the endpoints or the policy change, and picks
//! without allocating: first a group (level of priority and zone, by the shares
//! of `shares`), then an endpoint in it by the policy's algorithm. It knows
//! the endpoints by their place in a slice that does not change under it, and
//! has to be told when their health did ([`Balancer::survey`]).
//!
//! An endpoint to avoid, because it just failed, is taken only if no other can
//! be used. The slice need not be filtered: whoever admits nothing is passed over.

mod draw;
mod maglev;
mod shares;
mod turns;

use std::cell::Cell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use self::draw::{Weights, real};
use self::maglev::Maglev;
use self::shares::Tally;
use self::turns::Turns;
use crate::policy::ewma::PeakEwma;
use crate::policy::hash_key::{Affinity, HashOn};
use crate::policy::rng::Rng;
use crate::route::Head;

/// The load balancing part of a traffic policy, compiled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Balancing {
    /// How one endpoint is chosen among many.
    pub algorithm: Algorithm,
    /// The time in which the weight of new endpoints grows to what it is.
    pub slow_start: Option<Duration>,
    /// Whether endpoints in our own zone come first.
    pub prefer_zone: bool,
    /// Below this percentage of well endpoints, health is ignored; 0: never.
    /// `None`: only ejections are, and only when nothing else is left.
    pub panic_threshold: Option<u32>,
}

impl Balancing {
    /// What ties a request to an endpoint; nothing is looked at unless the algorithm asks for it.
    #[inline]
    pub fn affinity(&self, head: &impl Head, client: Option<IpAddr>, rng: &Rng) -> Affinity {
        match &self.algorithm {
            Algorithm::ConsistentHash(on) => on.affinity(head, client, rng),
            _ => Affinity::default(),
        }
    }

    /// What ties a connection without requests to an endpoint.
    pub fn affinity_of_connection(&self, client: Option<IpAddr>) -> Option<u64> {
        match &self.algorithm {
            Algorithm::ConsistentHash(on) => on.of_connection(client),
            _ => None,
        }
    }
}

/// How one endpoint is chosen among many. Weights count in all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// The better of two drawn at random, by recent peak latency and queue.
    #[default]
    PeakEwma,
    /// The one with fewer requests in flight of two drawn at random.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The same for equal keys, while its load is bounded.
    ConsistentHash(HashOn),
}

/// What the balancer asks of an endpoint.
pub trait Candidate {
    /// Its load.
    fn load(&self) -> &PeakEwma;
    /// Its health, as far as balancing cares.
    fn health(&self) -> Health;
    /// Whether it may get a request now: healthy, and not ejected or due for a probe.
    fn admits(&self, now: Instant) -> bool;
}

/// How well an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// As far as is known.
    Well,
    /// Left out for a while because it failed.
    Ejected,
    /// Discovery says so.
    Unhealthy,
    /// It is leaving: nothing new may ever go there, and it counts for nothing.
    Draining,
}

/// What does not change about an endpoint while a balancer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// A hash of its id, for consistent hashing.
    pub id: u64,
    /// Its relative share of traffic; 0 counts as 1.
    pub weight: u32,
    /// Its level: lower ones come first.
    pub priority: u32,
    /// Whether it is in our own zone.
    pub local: bool,
    /// Since when it can serve; `None`: since before we looked.
    pub since: Option<Instant>,
}

/// A request's key, and how many requests are in flight to all endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// What the request was hashed to.
    pub hash: u64,
    /// In flight to all members.
    pub in_flight: u32,
}

/// Steps in which a new endpoint's weight grows. Each costs a pass over the
/// endpoints, or a new table (a quarter of a millisecond) where keys are hashed.
const STEPS: u32 = 64;
const HASHED_STEPS: u32 = 16;

/// A whole weight, of which new endpoints get a part.
const WHOLE: u64 = 256;

/// Shares of groups add up to this.
const ALL: u64 = 1 << 32;

/// How much more than its share of the requests in flight an endpoint may have
/// where keys are hashed (Mirrokni et al., "Consistent hashing with bounded
/// loads"), in quarters: 1.25.
const BOUND_QUARTERS: u64 = 5;

/// In flight to one endpoint, from which on the bound holds: the handful of
/// requests that one client makes at once should not be torn apart.
const FEW: u32 = 8;

/// A zone is hot when one of its endpoints costs this many times as much as one
/// elsewhere, by average and queue: both four times as much, which is what
/// [`crate::policy::ewma`] takes to be more than chance.
const HOT: f64 = 16.0;

/// In flight to an endpoint, below which its zone is not asked whether it is hot.
const HOT_QUEUE: u32 = 4;

/// The endpoints of a destination, prepared for picks.
#[derive(Debug, Default)]
pub struct Balancer {
    policy: Balancing,
    members: Box<[Member]>,
    groups: Box<[Group]>,
    panic: Cell<bool>,
    /// When weights have to be looked at again.
    next_step: Option<Instant>,
}

/// Members of one level, in our zone or not; all of the level where zones do not count.
#[derive(Debug)]
struct Group {
    level: u32,
    local: bool,
    /// Places are those in this list.
    members: Box<[u32]>,
    weights: Weights,
    picker: Picker,
    /// Up to which of [`ALL`] the draw among groups is this one's.
    share: Cell<u64>,
    /// The weight of its well members.
    well: Cell<u64>,
}

#[derive(Debug)]
enum Picker {
    Latency,
    Queue,
    Chance,
    Turns(Turns),
    Hash(Maglev),
}

impl Balancer {
    /// Prepares the members. Until the first [`Self::survey`] all count as well.
    pub fn new(policy: &Balancing, members: Box<[Member]>, rng: &Rng, now: Instant) -> Self {
        let mut order: Vec<u32> = (0..u32::try_from(members.len()).unwrap_or(u32::MAX)).collect();
        let group_of = |index: &u32| {
            let member = &members[*index as usize];
            (member.priority, !(policy.prefer_zone && member.local))
        };
        // Stable: within a group the order is that of the slice.
        order.sort_by_key(group_of);
        let groups = order.chunk_by(|a, b| group_of(a) == group_of(b)).map(|group| {
            let (level, elsewhere) = group_of(&group[0]);
            let weights = weights(group, &members, policy, now);
            Group {
                level,
                local: !elsewhere,
                picker: match &policy.algorithm {
                    Algorithm::PeakEwma => Picker::Latency,
                    Algorithm::LeastRequest => Picker::Queue,
                    Algorithm::Random => Picker::Chance,
                    Algorithm::RoundRobin => Picker::Turns(Turns::new(&weights, rng)),
                    Algorithm::ConsistentHash(_) => Picker::Hash(table(group, &members, &weights)),
                },
                weights: Weights::new(&weights),
                members: group.into(),
                share: Cell::new(ALL),
                well: Cell::new(weights.iter().sum()),
            }
        });
        let groups = groups.collect();
        let next_step = next_step(policy, &members, now);
        Self { policy: policy.clone(), groups, members, panic: Cell::new(false), next_step }
    }

    /// Whether it is what [`Self::new`] would make of these.
    pub fn is_of(&self, policy: &Balancing, members: &[Member]) -> bool {
        self.policy == *policy && *self.members == *members
    }

    /// Goes on with other weights of the same members; `false` if more than those differ.
    pub fn reweigh(&mut self, policy: &Balancing, members: &[Member], rng: &Rng, now: Instant) -> bool {
        let same = |(old, new): (&Member, &Member)| *new == Member { weight: new.weight, ..*old };
        let only_weights = self.policy == *policy
            && self.members.len() == members.len()
            && self.members.iter().zip(members).all(same);
        if only_weights {
            self.members = members.into();
            self.step(rng, now);
        }
        only_weights
    }

    /// When [`Self::step`] has something to do.
    pub fn next_step(&self) -> Option<Instant> {
        self.next_step
    }

    /// Brings the weights up to date: those of new members grow.
    pub fn step(&mut self, rng: &Rng, now: Instant) {
        for group in &mut self.groups {
            let weights = weights(&group.members, &self.members, &self.policy, now);
            let unchanged = |(place, weight): (usize, &u64)| group.weights.weight(place) == *weight;
            if weights.iter().enumerate().all(unchanged) {
                continue;
            }
            match &mut group.picker {
                Picker::Latency | Picker::Queue | Picker::Chance => {}
                Picker::Turns(turns) => turns.reweigh(&weights, rng),
                Picker::Hash(old) => *old = table(&group.members, &self.members, &weights),
            }
            group.weights = Weights::new(&weights);
        }
        self.next_step = next_step(&self.policy, &self.members, now);
    }

    /// Shares out the traffic anew, after the health of a member changed.
    pub fn survey<C: Candidate>(&self, candidates: &[C], now: Instant) {
        let tallies: Vec<Tally> =
            self.groups.iter().map(|group| Self::tally(group, candidates, now)).collect();
        let (shares, panic) = shares::shares(&tallies, self.policy.panic_threshold);
        self.panic.set(panic);
        let mut sum = 0.0;
        for (group, share) in self.groups.iter().zip(&shares) {
            sum += share;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss,
                reason = "a share of 2^32"
            )]
            let upper = (sum * ALL as f64).round() as u64;
            group.share.set(upper);
        }
        // Rounding must not leave a part of the draw to nobody.
        if let Some(last) = shares.iter().rposition(|share| *share > 0.0) {
            self.groups[last..].iter().for_each(|group| group.share.set(ALL));
        }
    }

    fn tally<C: Candidate>(group: &Group, candidates: &[C], now: Instant) -> Tally {
        let mut well_weight = 0;
        let mut tally = Tally { level: group.level, local: group.local, count: [0; 2], weight: [0.0; 2] };
        for (place, &index) in group.members.iter().enumerate() {
            let Some(candidate) = candidates.get(index as usize) else { continue };
            let well = match candidate.health() {
                Health::Draining => continue,
                Health::Well => true,
                // Who is due for a probe has to get one.
                Health::Ejected => candidate.admits(now),
                Health::Unhealthy => false,
            };
            let weight = group.weights.weight(place);
            well_weight += if well { weight } else { 0 };
            for kind in 0..=usize::from(well) {
                tally.count[kind] += 1;
                tally.weight[kind] += real(weight);
            }
        }
        group.well.set(well_weight);
        tally
    }

    /// The index of the candidate that gets the next request; `None` if none can be used.
    /// `avoid` is the one that just failed. The candidates are those that the
    /// members were made from.
    #[inline]
    pub fn pick<C: Candidate>(
        &self,
        candidates: &[C],
        key: Option<Key>,
        avoid: Option<usize>,
        rng: &Rng,
        now: Instant,
    ) -> Option<usize> {
        let admits = |index: usize| {
            candidates.get(index).is_some_and(|candidate| match self.panic.get() {
                false => candidate.admits(now),
                true => candidate.health() != Health::Draining,
            })
        };
        let usable = |index: usize| Some(index) != avoid && admits(index);
        let request = Request { candidates, key, rng, now };
        let picked = match &*self.groups {
            [] => return None,
            [only] => only.pick_index(&request, &usable),
            groups => among(groups, &request, &usable),
        };
        picked.or_else(|| avoid.filter(|&index| admits(index))).or_else(|| self.last_resort(&request))
    }

    /// A bad endpoint is better than none, save where a policy says otherwise.
    #[cold]
    fn last_resort<C: Candidate>(&self, request: &Request<'_, C>) -> Option<usize> {
        let ejected =
            |index: usize| request.candidates.get(index).is_some_and(|c| c.health() == Health::Ejected);
        match self.policy.panic_threshold {
            None => self.groups.iter().find_map(|group| group.pick_index(request, &ejected)),
            Some(_) => None,
        }
    }
}

/// One pick.
struct Request<'a, C> {
    candidates: &'a [C],
    key: Option<Key>,
    rng: &'a Rng,
    now: Instant,
}

/// A pick by the shares of the groups, and from the next one if the one drawn has nobody.
#[inline]
fn among<C: Candidate>(
    groups: &[Group],
    request: &Request<'_, C>,
    usable: &impl Fn(usize) -> bool,
) -> Option<usize> {
    let drawn = if groups[0].share.get() == ALL {
        0
    } else {
        // A key draws the same group again, by other bits than those that choose in it.
        let point = request.key.map_or_else(|| request.rng.bits(), |key| key.hash.wrapping_mul(MIX)) >> 32;
        groups.iter().position(|group| point < group.share.get()).unwrap_or(0)
    };
    let group = &groups[drawn];
    let Some(place) = group.pick(request, usable) else {
        return groups.iter().find_map(|group| group.pick_index(request, usable));
    };
    match groups.get(drawn + 1) {
        Some(elsewhere) if group.local && elsewhere.level == group.level => {
            let other = group.gives_way(place, elsewhere, request, usable);
            Some(other.unwrap_or(group.index(place)))
        }
        _ => Some(group.index(place)),
    }
}

/// 2^64 divided by the golden ratio: spreads neighbours far apart.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

impl Group {
    #[inline]
    fn index(&self, place: usize) -> usize {
        self.members[place] as usize
    }

    #[inline]
    fn pick_index<C: Candidate>(
        &self,
        request: &Request<'_, C>,
        usable: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        self.pick(request, usable).map(|place| self.index(place))
    }

    /// The place that gets the request.
    #[inline]
    fn pick<C: Candidate>(&self, request: &Request<'_, C>, usable: &impl Fn(usize) -> bool) -> Option<usize> {
        let load = |place: usize| request.candidates[self.index(place)].load();
        let usable = |place: usize| usable(self.index(place));
        let weights = &self.weights;
        match &self.picker {
            Picker::Latency => weights.pick_better(request.rng, usable, |a, b| {
                let (weight, rival_weight) = weights.pair(a, b);
                load(a).beats(load(b), weight, rival_weight, request.now)
            }),
            Picker::Queue => weights.pick_better(request.rng, usable, |a, b| {
                let (weight, rival_weight) = weights.pair(a, b);
                load(a).is_idler(load(b), weight, rival_weight)
            }),
            Picker::Chance => weights.pick(request.rng, usable),
            Picker::Turns(turns) => turns.pick(usable),
            Picker::Hash(table) => match request.key {
                Some(key) => {
                    let fits = |place| self.is_within_bound(place, load(place).in_flight(), key.in_flight);
                    table.pick(key.hash, usable, fits)
                }
                None => weights.pick(request.rng, usable),
            },
        }
    }

    /// Whether one with so many in flight, of so many in all, may have another.
    #[inline]
    fn is_within_bound(&self, place: usize, in_flight: u32, all: u32) -> bool {
        in_flight < FEW || {
            let allowed =
                (u128::from(all) + 1) * u128::from(BOUND_QUARTERS) * u128::from(self.weights.weight(place));
            u128::from(in_flight) * 4 * u128::from(self.well.get()) < allowed
        }
    }

    /// Who gets the request of `place`, which is ours, because our zone is hot.
    #[inline]
    fn gives_way<C: Candidate>(
        &self,
        place: usize,
        elsewhere: &Self,
        request: &Request<'_, C>,
        usable: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let load = request.candidates[self.index(place)].load();
        if load.in_flight() < HOT_QUEUE {
            return None;
        }
        let other = elsewhere.pick(request, usable)?;
        let rival = request.candidates[elsewhere.index(other)].load();
        let (weight, rival_weight) =
            (real(self.weights.weight(place)), real(elsewhere.weights.weight(other)));
        load.costs_more_than(HOT, rival, weight, rival_weight).then(|| elsewhere.index(other))
    }
}

/// The weights of a group's members at this moment, as fractions of [`WHOLE`].
fn weights(group: &[u32], members: &[Member], policy: &Balancing, now: Instant) -> Vec<u64> {
    let weight = |index: &u32| {
        let member = &members[*index as usize];
        let whole = u64::from(member.weight.max(1)) * WHOLE;
        let Some((since, window)) = member.since.zip(policy.slow_start) else { return whole };
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= window {
            return whole;
        }
        let part = u128::from(whole) * elapsed.as_nanos() / window.as_nanos();
        u64::try_from(part).unwrap_or(whole).max(1)
    };
    group.iter().map(weight).collect()
}

/// When weights will have grown by another step; `None`: no member is new.
fn next_step(policy: &Balancing, members: &[Member], now: Instant) -> Option<Instant> {
    let window = policy.slow_start?;
    let is_new = |since: Instant| now.saturating_duration_since(since) < window;
    members.iter().filter_map(|member| member.since).any(is_new).then(|| {
        let steps =
            if matches!(policy.algorithm, Algorithm::ConsistentHash(_)) { HASHED_STEPS } else { STEPS };
        now + window / steps
    })
}

fn table(group: &[u32], members: &[Member], weights: &[u64]) -> Maglev {
    let ids = group.iter().map(|index| members[*index as usize].id);
    Maglev::new(&ids.zip(weights.iter().copied()).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
