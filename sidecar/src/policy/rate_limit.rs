//! Rate limits: which requests a workload admits.
//!
//! A limit is a token bucket, or one for each value of its key, counted by the
//! generic cell rate algorithm (ITU-T I.371): all that is kept of a bucket is the
//! time at which it will be full. A request that several limits are about needs
//! a token of each; where one has none, the others keep theirs. Time comes in with the question.

mod buckets;
mod probes;

use std::hash::{BuildHasher, Hash, Hasher};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderName;

use crate::policy::jwt::Verified;
use crate::policy::request_match::RequestMatch;
use crate::route::Head;

pub use self::buckets::{Buckets, Levels};
pub use self::probes::Probes;

/// A limit, as far as it concerns one port.
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// `namespace/name` of the policy.
    pub source: Arc<str>,
    /// What responses and metrics call it; unique in the policy.
    pub name: Arc<str>,
    /// The marks of rules whose requests it is about; `None`: it is about all.
    pub marks: Option<Arc<[Box<[u8]>]>>,
    /// The requests that it is about, of those; empty: all.
    pub matches: Arc<[RequestMatch]>,
    /// Requests with the same values share a bucket; empty: all do.
    pub key: Arc<[KeyPart]>,
    /// The numbers.
    pub quota: Quota,
    /// The buckets, for all workers and ports together. They outlive changes of everything else but the key.
    pub buckets: Arc<Buckets>,
}

/// A part of a bucket's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPart {
    /// The client's identity.
    Identity,
    /// The client's IP address.
    SourceAddress,
    /// The values of a header.
    Header(HeaderName),
    /// The mark of the rule that led the request here.
    Route,
    /// A claim of a token that was verified, by its path, and the token's issuer.
    Claim(Box<str>),
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Its SPIFFE ID, or one word for all that have none.
    pub identity: &'a str,
    /// Where it is.
    pub address: Option<IpAddr>,
    /// What its sidecar says about the rule that led the request here.
    pub mark: Option<&'a [u8]>,
    /// The tokens that it showed, verified.
    pub tokens: &'a [Rc<Verified>],
}

/// How many tokens a bucket holds, and how fast it gains them. Times are in
/// nanoseconds; that between two tokens is rounded up, so that a limit errs
/// on the service's side, by a thousandth at a million requests per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    requests: u32,
    per: Duration,
    /// Between two tokens.
    interval: u64,
    /// From empty to full.
    capacity: u64,
}

/// A bucket's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// There was a token; the bucket is full again at this time.
    Taken(u64),
    /// There will be one after this time.
    Empty(u64),
}

impl Quota {
    /// A quota; `None` if there is no such: a number is 0, or the bucket is not full within a century.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Option<Self> {
        const CENTURY: u64 = 100 * 365 * 24 * 3600 * 1_000_000_000;
        let interval = per.as_nanos().div_ceil(u128::from(requests.max(1)));
        let interval = u64::try_from(interval).ok().filter(|interval| *interval > 0)?;
        let capacity = interval.checked_mul(u64::from(burst)).filter(|capacity| *capacity <= CENTURY)?;
        (requests > 0 && burst > 0).then_some(Self { requests, per, interval, capacity })
    }

    /// Asks a bucket that is full at `full_at` for a token.
    fn draw(&self, full_at: u64, now: u64) -> Draw {
        let after = self.owed(full_at, now) + self.interval;
        match after.checked_sub(self.capacity) {
            None | Some(0) => Draw::Taken(now.saturating_add(after)),
            Some(wait) => Draw::Empty(wait),
        }
    }

    /// The tokens of a bucket that is full at `full_at`.
    fn remaining(&self, full_at: u64, now: u64) -> u64 {
        (self.capacity - self.owed(full_at, now)) / self.interval
    }

    /// The time that a bucket needs to be full: never more than an empty one does, though another
    /// worker may still have asked with older numbers.
    fn owed(&self, full_at: u64, now: u64) -> u64 {
        full_at.saturating_sub(now).min(self.capacity)
    }

    /// How many tokens a full bucket has.
    pub fn burst(&self) -> u64 {
        self.capacity / self.interval
    }

    /// How many requests each [`Self::period`] admits.
    pub fn requests(&self) -> u32 {
        self.requests
    }

    /// The time in which an empty bucket gains that many tokens.
    pub fn period(&self) -> Duration {
        self.per
    }
}

/// What the limits say about a request: the word of the one that is closest to its end.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'l> {
    /// That limit.
    pub limit: &'l RateLimit,
    /// Its place in the list.
    pub place: usize,
    /// The requests that it still admits at once.
    pub remaining: u64,
    /// The time until it admits a request, if it refuses this one, or else until it admits as
    /// many at once as it ever does.
    pub reset: Duration,
    /// Whether the request is refused.
    pub refused: bool,
}

/// Asks all `limits` that are about a request; `None` if none is. If one refuses, nothing is taken
/// from the others, and the word is that of the one that will refuse longest.
pub fn admit<'l, H: Head>(
    limits: &'l [RateLimit],
    head: &H,
    client: Client<'_>,
    now: Instant,
) -> Option<Standing<'l>> {
    let mut closest: Option<Standing<'l>> = None;
    for (place, limit) in limits.iter().enumerate().filter(|(_, limit)| limit.is_about(head, client)) {
        let hash = limit.hash(head, client);
        let refused = closest.is_some_and(|standing| standing.refused);
        let drawn = match refused {
            false => limit.buckets.draw(&limit.quota, hash, now),
            true => match limit.buckets.wait(&limit.quota, hash, now) {
                Some(wait) => Err(wait),
                None => continue,
            },
        };
        let standing = match drawn {
            Ok((remaining, nanos)) => {
                Standing { limit, place, remaining, reset: Duration::from_nanos(nanos), refused: false }
            }
            Err(nanos) => {
                if !refused {
                    give_back(&limits[..place], head, client);
                }
                Standing { limit, place, remaining: 0, reset: Duration::from_nanos(nanos), refused: true }
            }
        };
        let closer = closest.is_none_or(|other| match (other.refused, standing.refused) {
            (false, true) => true,
            (true, _) => other.reset < standing.reset,
            (false, false) => standing.remaining < other.remaining,
        });
        if closer {
            closest = Some(standing);
        }
    }
    closest
}

/// Gives back what each of `limits` gave for a request.
fn give_back<H: Head>(limits: &[RateLimit], head: &H, client: Client<'_>) {
    for limit in limits.iter().filter(|limit| limit.is_about(head, client)) {
        limit.buckets.give_back(&limit.quota, limit.hash(head, client));
    }
}

impl RateLimit {
    /// How its buckets stand.
    pub fn levels(&self, now: Instant) -> Levels {
        self.buckets.levels(&self.quota, now)
    }

    /// Whether a request needs one of its tokens.
    pub fn is_about<H: Head>(&self, head: &H, client: Client<'_>) -> bool {
        let marked = |marks: &Arc<[Box<[u8]>]>| {
            client.mark.is_some_and(|mark| marks.iter().any(|wanted| **wanted == *mark))
        };
        self.marks.as_ref().is_none_or(marked) && RequestMatch::any(&self.matches, head)
    }

    /// What stands for the values of the key. It is made with the process's own secret, so that nobody
    /// can look for others' buckets.
    fn hash<H: Head>(&self, head: &H, client: Client<'_>) -> u64 {
        let mut hasher = self.buckets.secret().build_hasher();
        for part in &*self.key {
            match part {
                KeyPart::Identity => client.identity.hash(&mut hasher),
                KeyPart::SourceAddress => client.address.map(|a| a.to_canonical()).hash(&mut hasher),
                KeyPart::Header(name) => {
                    // Each value with its length, then their number: their borders count.
                    let count = head.values(name).inspect(|value| value.hash(&mut hasher)).count();
                    count.hash(&mut hasher);
                }
                KeyPart::Route => client.mark.hash(&mut hasher),
                KeyPart::Claim(path) => {
                    // What a claim says is unique for its issuer (RFC 7519, section 4.1.2).
                    let said = client.tokens.iter().find_map(|token| {
                        token.claims().text(path).map(|text| (token.claims().issuer(), text))
                    });
                    said.hash(&mut hasher);
                }
            }
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests;
