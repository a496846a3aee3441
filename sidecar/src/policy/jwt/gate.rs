//! The decision about a request: what it shows is accepted, or why it is refused.
//!
//! Policies add up. Whatever a request shows as a token has to be accepted by a
//! provider of one of the policies about it; each of those that need a token needs
//! one of its own providers. Headers that tell claims are never a client's own.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::COOKIE;
use http::{HeaderName, HeaderValue};

use super::cache::Cache;
use super::location::{Location, Shown};
use super::token::{Flaw, Token, Verified};
use super::{Policy, Provider};
use crate::route::{EditHead, Head, TooLong};

/// The policies of one port.
#[derive(Debug)]
pub struct Gate {
    policies: Box<[PortPolicy]>,
    /// Each place once, with the providers that look there, by policy and place in it.
    places: Box<[(Location, Box<[ProviderAt]>)]>,
    tells_claims: bool,
}

/// The place of a policy, and of a provider in it.
type ProviderAt = (usize, usize);

/// A policy, as far as it concerns one port.
#[derive(Debug, Clone)]
pub struct PortPolicy {
    /// What it says.
    pub policy: Arc<Policy>,
    /// The marks of rules whose requests it is about; `None`: it is about all.
    pub marks: Option<Arc<[Box<[u8]>]>>,
}

/// A request is refused.
#[derive(Debug, Clone, Copy)]
pub struct Denied<'g> {
    /// By this policy.
    pub policy: &'g Policy,
    /// For this reason.
    pub flaw: Flaw,
}

/// A request is accepted.
#[derive(Debug, Default)]
pub struct Admission {
    /// The tokens that it showed.
    pub tokens: Vec<Rc<Verified>>,
    /// How many of them were not known before.
    pub verified: usize,
    edits: Edits,
}

/// What is changed of a head before the application sees it.
#[derive(Debug, Default)]
struct Edits {
    removed: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    /// The query that is left, if it changes.
    query: Option<Option<Vec<u8>>>,
}

impl Gate {
    /// The gate of these policies.
    pub fn new(policies: impl IntoIterator<Item = PortPolicy>) -> Self {
        let policies: Box<[PortPolicy]> = policies.into_iter().collect();
        let mut places: Vec<(Location, Vec<ProviderAt>)> = Vec::new();
        for (at, policy) in policies.iter().enumerate() {
            for (place, provider) in policy.policy.providers.iter().enumerate() {
                for location in &provider.locations {
                    match places.iter_mut().find(|(known, _)| known == location) {
                        Some((_, providers)) => providers.push((at, place)),
                        None => places.push((location.clone(), vec![(at, place)])),
                    }
                }
            }
        }
        let places = places.into_iter().map(|(location, providers)| (location, providers.into()));
        let mut providers = policies.iter().flat_map(|policy| &policy.policy.providers);
        let tells_claims = providers.any(|provider| !provider.headers.is_empty());
        Self { places: places.collect(), tells_claims, policies }
    }

    /// Whether headers tell claims to the application.
    pub fn tells_claims(&self) -> bool {
        self.tells_claims
    }

    /// The policies.
    pub fn policies(&self) -> &[PortPolicy] {
        &self.policies
    }

    /// The policy that lets no bytes pass of which nobody can say who sends them, if there is one: an opaque
    /// connection shows no token.
    pub fn refuses_bytes(&self) -> Option<&Policy> {
        let needed = |policy: &&PortPolicy| policy.marks.is_none() && policy.policy.required;
        self.policies.iter().find(needed).map(|policy| &*policy.policy)
    }

    /// Decides about a request that carries this mark.
    ///
    /// # Errors
    /// If it is refused.
    pub fn admit<H: Head>(
        &self,
        head: &H,
        mark: Option<&[u8]>,
        cache: &mut Cache,
        now: SystemTime,
    ) -> Result<Admission, Denied<'_>> {
        let applies = |policy: &PortPolicy| policy.is_about(mark);
        let mut admission = Admission::default();
        let (mut accepted, mut stripped) = (Vec::new(), Vec::new());
        for (location, providers) in &self.places {
            let asked = providers.iter().filter(|(policy, _)| applies(&self.policies[*policy]));
            let asked: Vec<ProviderAt> = asked.copied().collect();
            let Some((first, _)) = asked.first() else { continue };
            let denied = |policy: usize, flaw| Denied { policy: &self.policies[policy].policy, flaw };
            let token = match location.look(head) {
                Shown::Nothing => continue,
                Shown::Several => return Err(denied(*first, Flaw::Several)),
                Shown::Token(token) => token,
            };
            if token.len() > super::MAX_TOKEN {
                return Err(denied(*first, Flaw::Malformed));
            }
            let digest = Cache::digest(&token);
            let mut parsed = None;
            let mut worst = (*first, Flaw::Issuer);
            let mut any = false;
            for (policy, place) in asked {
                let provider = &self.policies[policy].policy.providers[place];
                let name = (digest, std::ptr::from_ref(self).addr(), policy, place);
                let verified = match cache.get(&name) {
                    Some(known) => known.check(now).map(|()| known),
                    None => {
                        let parsed = parsed.get_or_insert_with(|| Token::parse(&token));
                        let parsed = parsed.as_ref().map_err(|flaw| denied(policy, *flaw))?;
                        let verified = parsed.verify(provider, now).map(Rc::new);
                        if let Ok(verified) = &verified {
                            admission.verified += 1;
                            cache.insert(name, verified.clone(), token.len());
                        }
                        verified
                    }
                };
                match verified {
                    Ok(verified) => {
                        any = true;
                        accepted.push(policy);
                        admission.tokens.push(verified);
                        if provider.stripped {
                            stripped.push(location);
                        }
                    }
                    // What the provider says whose token it is counts more than that it is no other's.
                    Err(flaw) => worst = if flaw > worst.1 { (policy, flaw) } else { worst },
                }
            }
            if !any {
                return Err(denied(worst.0, worst.1));
            }
        }
        for (at, policy) in self.policies.iter().enumerate().filter(|(_, policy)| applies(policy)) {
            if policy.policy.required && !accepted.contains(&at) {
                let flaw = if policy.policy.providers.is_empty() { Flaw::Refused } else { Flaw::Missing };
                return Err(Denied { policy: &policy.policy, flaw });
            }
        }
        let about = self.policies.iter().filter(|policy| applies(policy));
        let providers = about.flat_map(|policy| policy.policy.providers.iter());
        admission.edits = Edits::new(head, providers, &admission.tokens, &stripped);
        Ok(admission)
    }
}

impl PortPolicy {
    /// Whether it is about requests with this mark.
    pub fn is_about(&self, mark: Option<&[u8]>) -> bool {
        let marked =
            |marks: &Arc<[Box<[u8]>]>| mark.is_some_and(|mark| marks.iter().any(|wanted| **wanted == *mark));
        self.marks.as_ref().is_none_or(marked)
    }
}

impl Admission {
    /// Whether the head has to change.
    pub fn edits(&self) -> bool {
        let Edits { removed, set, query } = &self.edits;
        !removed.is_empty() || !set.is_empty() || query.is_some()
    }

    /// Changes the head to what the application is to see.
    ///
    /// # Errors
    /// If its target would be too long; it only ever becomes shorter.
    pub fn edit(&self, head: &mut impl EditHead) -> Result<(), TooLong> {
        let Edits { removed, set, query } = &self.edits;
        removed.iter().for_each(|name| head.remove(name));
        set.iter().for_each(|(name, value)| head.set(name, value));
        match query {
            Some(query) => head.set_query(query.as_deref()),
            None => Ok(()),
        }
    }
}

impl Edits {
    fn new<'p, H: Head>(
        head: &H,
        providers: impl Iterator<Item = &'p Provider>,
        tokens: &[Rc<Verified>],
        stripped: &[&Location],
    ) -> Self {
        let mut edits = Self::default();
        // The first token that tells a header tells it.
        for (name, value) in tokens.iter().flat_map(|token| token.headers()) {
            if !edits.set.iter().any(|(known, _)| known == name) {
                edits.set.push((name.clone(), value.clone()));
            }
        }
        for provider in providers {
            let names = provider.headers.iter().map(|(_, name)| name);
            for name in names.chain(&provider.lookalikes) {
                let told = edits.set.iter().any(|(known, _)| known == name);
                if !told && !edits.removed.contains(name) && head.first(name).is_some() {
                    edits.removed.push(name.clone());
                }
            }
        }
        let (mut cookies, mut parameters): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for location in stripped {
            match location {
                Location::Header { name, .. } => edits.removed.push(name.clone()),
                Location::Cookie(name) => cookies.push(name),
                Location::Query(name) => parameters.push(name),
            }
        }
        if !cookies.is_empty() {
            match cookies_without(head, &cookies) {
                Some(rest) => edits.set.push((COOKIE, rest)),
                None => edits.removed.push(COOKIE),
            }
        }
        if !parameters.is_empty() {
            let rest = crate::route::query_without(head.query().unwrap_or_default(), &parameters);
            edits.query = Some((!rest.is_empty()).then_some(rest));
        }
        edits
    }
}

/// The cookies but these, in one field; `None`: there are no others.
fn cookies_without<H: Head>(head: &H, names: &[&str]) -> Option<HeaderValue> {
    static FIELD: HeaderName = COOKIE;
    let pairs = head.values(&FIELD).flat_map(|field| field.split(|byte| *byte == b';'));
    let pairs = pairs.map(<[u8]>::trim_ascii).filter(|pair| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        !pair.is_empty() && !names.iter().any(|gone| gone.as_bytes() == name)
    });
    let rest = pairs.collect::<Vec<_>>().join(b"; ".as_slice());
    // What came as fields can be one.
    if rest.is_empty() { None } else { HeaderValue::from_bytes(&rest).ok() }
}
