//! Which backend of a rule a request goes to.
//!
//! Shares are weights over their sum. A reference that could not be resolved
//! keeps its share, which is answered with an error, so that a broken canary
//! does not quietly send its users elsewhere.

use std::time::SystemTime;

use http::HeaderName;
use http::header::COOKIE;

use heddle_api::name::ServiceName;

use crate::policy::jwt::{Cache, Gate};
use crate::policy::rng::Rng;
use crate::route::filter::Filters;
use crate::route::hash::stable;
use crate::route::head::Head;

/// Where a share of a rule's requests goes.
#[derive(Debug)]
pub struct Backend {
    /// The service.
    pub target: Target,
    /// Its share of the sum of all weights; 0: none.
    pub weight: u32,
    /// What is done to requests that go here, after the rule's own filters.
    pub filters: Filters,
}

/// What a reference to a backend means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A port of a service.
    Service {
        /// The service.
        name: ServiceName,
        /// The port that a client would dial.
        port: u16,
    },
    /// Nothing that could be sent to, and why.
    Invalid(Box<str>),
}

impl Target {
    /// The same for every sidecar, for session tokens.
    pub(super) fn tag(&self) -> Option<u64> {
        match self {
            Self::Service { name, port } => Some(stable(u64::from(*port), name.as_str().as_bytes())),
            Self::Invalid(_) => None,
        }
    }
}

/// Why a request has no backend. Answered with 500, or gRPC status 14.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoBackend<'a> {
    /// It fell to the share of a reference that could not be resolved, for this reason.
    #[error("the rule's backend cannot be used: {0}")]
    Invalid(&'a str),
    /// There is none with a weight.
    #[error("the rule has no backend with a weight above 0")]
    None,
}

/// The backends of a rule.
#[derive(Debug, Default)]
pub struct Backends {
    list: Box<[Backend]>,
    /// The sum of the weights up to and with each backend.
    ends: Box<[u64]>,
}

impl FromIterator<Backend> for Backends {
    fn from_iter<I: IntoIterator<Item = Backend>>(backends: I) -> Self {
        let list: Box<[Backend]> = backends.into_iter().collect();
        let sum = |end: &mut u64, backend: &Backend| {
            *end = end.saturating_add(u64::from(backend.weight));
            Some(*end)
        };
        Self { ends: list.iter().scan(0, sum).collect(), list }
    }
}

impl Backends {
    /// All of them, also those without a share.
    pub fn list(&self) -> &[Backend] {
        &self.list
    }

    /// A backend by chance.
    ///
    /// # Errors
    /// If the request is to be answered with an error.
    pub fn pick(&self, rng: &Rng) -> Result<&Backend, NoBackend<'_>> {
        self.at(rng.below(self.total()))
    }

    /// The backend that a hash falls to: the range of hashes is divided among
    /// the backends in their order. A share that grows at the cost of its
    /// neighbour moves keys from the neighbour to itself and no other way.
    ///
    /// # Errors
    /// If the request is to be answered with an error.
    pub fn pick_by(&self, hash: u64) -> Result<&Backend, NoBackend<'_>> {
        let product = u128::from(hash) * u128::from(self.total());
        self.at(u64::try_from(product >> 64).unwrap_or_default())
    }

    fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    fn at(&self, point: u64) -> Result<&Backend, NoBackend<'_>> {
        // An end is not part of its share, which leaves out empty ones.
        let at = self.ends.partition_point(|&end| end <= point);
        match self.list.get(at) {
            Some(Backend { target: Target::Invalid(why), .. }) => Err(NoBackend::Invalid(why)),
            Some(backend) => Ok(backend),
            None => Err(NoBackend::None),
        }
    }
}

/// What tells users apart, so that weights are shares of users rather than of
/// requests: the same user always meets the same backend.
#[derive(Debug)]
pub enum UserKey {
    /// A header's first value.
    Header(HeaderName),
    /// A cookie.
    Cookie(Box<[u8]>),
    /// A claim of a token that is verified first.
    Claim(ClaimKey),
}

/// A claim of a token.
#[derive(Debug)]
pub struct ClaimKey {
    /// Its path.
    pub claim: Box<str>,
    /// Who verifies tokens.
    pub gate: Gate,
}

impl UserKey {
    /// The user of a request, handed to `then`; `None` if the request does not say, which is also so of one
    /// with a token that is not accepted. `tokens` remembers those that are.
    pub fn of<H: Head, T>(
        &self,
        head: &H,
        tokens: &mut Cache,
        now: SystemTime,
        then: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        let said = |value: &&[u8]| !value.is_empty();
        match self {
            Self::Header(name) => head.first(name).filter(said).map(then),
            Self::Cookie(name) => cookies(head, name).next().filter(said).map(then),
            Self::Claim(key) => {
                let admission = key.gate.admit(head, None, tokens, now).ok()?;
                let text = admission.tokens.iter().find_map(|token| token.claims().text(&key.claim));
                text.map(|text| then(text.as_bytes()))
            }
        }
    }
}

/// The values of a cookie (RFC 6265, section 5.4; HTTP/2 may send several
/// `cookie` fields), without quotes.
pub(crate) fn cookies<'a, H: Head>(head: &'a H, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    static FIELD: HeaderName = COOKIE;
    head.values(&FIELD).flat_map(|field| field.split(|&byte| byte == b';')).filter_map(move |pair| {
        let value = pair.trim_ascii_start().strip_prefix(name)?.strip_prefix(b"=")?.trim_ascii_end();
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::rng::Rng;
    use crate::route::head::Http1Head;

    fn backends(weights: &[u32]) -> Backends {
        let port = |at: usize| u16::try_from(at + 1).unwrap();
        let backend = |(at, &weight): (usize, &u32)| Backend {
            target: Target::Service { name: "shop/users".parse().unwrap(), port: port(at) },
            weight,
            filters: Filters::default(),
        };
        weights.iter().enumerate().map(backend).collect()
    }

    fn place(picked: Result<&Backend, NoBackend<'_>>) -> usize {
        match picked.unwrap().target {
            Target::Service { port, .. } => usize::from(port) - 1,
            Target::Invalid(_) => unreachable!("never picked"),
        }
    }

    #[test]
    fn shares_are_those_of_the_weights_by_chance_and_by_key() {
        const PICKS: u32 = 100_000;
        for weights in [&[1_u32, 1][..], &[90, 10], &[1, 0, 3], &[0, 7], &[1_000_000, 1, 999_999], &[5]] {
            let backends = backends(weights);
            let rng = Rng::new(7);
            let (mut by_chance, mut by_key) = (vec![0_u32; weights.len()], vec![0_u32; weights.len()]);
            for n in 0..PICKS {
                by_chance[place(backends.pick(&rng))] += 1;
                by_key[place(backends.pick_by(stable(3, format!("user-{n}").as_bytes())))] += 1;
            }
            let sum: u32 = weights.iter().sum();
            for (at, &weight) in weights.iter().enumerate() {
                let ideal = f64::from(weight) / f64::from(sum);
                for count in [by_chance[at], by_key[at]] {
                    let share = f64::from(count) / f64::from(PICKS);
                    assert!((share - ideal).abs() <= 0.02 * ideal.max(0.25), "{weights:?}[{at}]: {share}");
                    assert!(weight > 0 || count == 0, "{weights:?}[{at}] has no share");
                }
            }
        }
    }

    #[test]
    fn no_weight_is_no_backend_and_an_invalid_one_keeps_its_share() {
        let rng = Rng::new(1);
        for none in [backends(&[]), backends(&[0, 0])] {
            assert_eq!(none.pick(&rng).unwrap_err(), NoBackend::None);
            assert_eq!(none.pick_by(u64::MAX).unwrap_err(), NoBackend::None);
        }
        let mut half = backends(&[1, 1]);
        half.list[1].target = Target::Invalid("gone".into());
        let invalid = (0..100_000).filter(|_| half.pick(&rng).is_err()).count();
        assert!(invalid.abs_diff(50_000) < 1000, "{invalid}");
        assert_eq!(half.pick_by(u64::MAX).unwrap_err(), NoBackend::Invalid("gone"));
        half.list[1].weight = 0;
        let only: Backends = half.list.into_iter().collect();
        assert!((0..1000).all(|_| only.pick(&rng).is_ok()));
    }

    #[test]
    fn users_are_told_apart_by_header_or_cookie() {
        let head = Http1Head::new(
            b"GET / HTTP/1.1\r\nhost: a\r\nx-user: 7\r\ncookie: xid=9; id=\"4\"\r\ncookie: id=5\r\n",
        );
        let header = |name| UserKey::Header(HeaderName::from_static(name));
        let cookie = |name: &[u8]| UserKey::Cookie(name.into());
        let user =
            |key: UserKey| key.of(&head, &mut Cache::default(), SystemTime::UNIX_EPOCH, <[u8]>::to_vec);
        assert_eq!((user(header("x-user")), user(header("x-other"))), (Some(b"7".to_vec()), None));
        assert_eq!((user(cookie(b"id")), user(cookie(b"d"))), (Some(b"4".to_vec()), None));
    }

    proptest! {
        /// A canary that grows only gains users, and never loses one.
        #[test]
        fn a_growing_share_only_gains_keys(
            before in 0_u32..=100, more in 0_u32..=100, key in any::<u64>(), canary_first in any::<bool>()
        ) {
            let after = (before + more).min(100);
            let split = |share: u32| {
                let weights = if canary_first { [share, 100 - share] } else { [100 - share, share] };
                place(backends(&weights).pick_by(key)) == usize::from(!canary_first)
            };
            prop_assert!(!split(before) || split(after));
        }
    }
}
