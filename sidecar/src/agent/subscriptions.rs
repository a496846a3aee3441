//! What this sidecar has asked discovery for: a pure state machine.
//!
//! Always holds: at most [`LIMIT`] names on demand; a name is asked for once;
//! nothing is given up while discovery is away, so that destinations idle
//! meanwhile work as long as the process lives. What the answers say is left
//! to `knowledge`, the wire to `discovery`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use heddle_api::discovery::{MESH, ResourceType, SELF, v1};
use heddle_api::name::ServiceName;
use heddle_api::spiffe::TrustDomain;

/// How many names may be subscribed on demand: more than any workload calls,
/// few enough that an application which scans names cannot fill the memory.
pub(crate) const LIMIT: usize = 4096;

/// A destination that was not used for so long is forgotten.
pub(crate) const IDLE: Duration = Duration::from_secs(600);

/// "There is no such name" is kept this long, then forgotten: whoever still
/// wants it asks again. Short, for such names come from typing errors and scans.
pub(crate) const ABSENT: Duration = Duration::from_secs(30);

/// A kind of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    TrustBundle,
    Mesh,
    Workload,
    Service,
    Address,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::TrustBundle, Self::Mesh, Self::Workload, Self::Service, Self::Address];

    pub(crate) const fn type_url(self) -> &'static str {
        match self {
            Self::TrustBundle => v1::TrustBundle::TYPE_URL,
            Self::Mesh => v1::Mesh::TYPE_URL,
            Self::Workload => v1::Workload::TYPE_URL,
            Self::Service => v1::Service::TYPE_URL,
            Self::Address => v1::Address::TYPE_URL,
        }
    }

    /// The word in logs and metrics: the message's name.
    pub(crate) fn as_str(self) -> &'static str {
        let url = self.type_url();
        url.rsplit('.').next().unwrap_or(url)
    }

    pub(crate) fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// The name of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Name {
    TrustBundle(TrustDomain),
    Mesh,
    Workload,
    Service(ServiceName),
    Address(IpAddr),
}

impl Name {
    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self::TrustBundle(_) => Kind::TrustBundle,
            Self::Mesh => Kind::Mesh,
            Self::Workload => Kind::Workload,
            Self::Service(_) => Kind::Service,
            Self::Address(_) => Kind::Address,
        }
    }

    /// The resource name on the wire.
    pub(crate) fn resource(&self) -> String {
        match self {
            Self::TrustBundle(domain) => domain.as_str().to_owned(),
            Self::Mesh => MESH.to_owned(),
            Self::Workload => SELF.to_owned(),
            Self::Service(name) => name.as_str().to_owned(),
            Self::Address(address) => address.to_string(),
        }
    }

    /// The name that `resource` is on the wire; `None` if it can be none of its kind.
    pub(crate) fn read(kind: Kind, resource: &str) -> Option<Self> {
        match kind {
            Kind::TrustBundle => resource.parse().ok().map(Self::TrustBundle),
            Kind::Mesh => (resource == MESH).then_some(Self::Mesh),
            Kind::Workload => (resource == SELF).then_some(Self::Workload),
            Kind::Service => resource.parse().ok().map(Self::Service),
            Kind::Address => resource.parse().ok().map(Self::Address),
        }
    }

    fn permanent(&self) -> bool {
        !matches!(self, Self::Service(_) | Self::Address(_))
    }
}

/// What became of a want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It is asked for now, or at the next connection.
    New,
    /// It was asked for before.
    Known,
    /// There is no room; nothing was changed.
    Full,
}

/// One message's worth of names to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) subscribe: Vec<String>,
    pub(crate) unsubscribe: Vec<String>,
    /// Only at a stream's begin: what is held already.
    pub(crate) versions: BTreeMap<String, String>,
}

/// The names, and what was answered.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    entries: HashMap<Name, Entry>,
    /// Entries that are not permanent.
    on_demand: usize,
    /// Since when there is a stream.
    connected: Option<Instant>,
    subscribe: BTreeSet<Name>,
    unsubscribe: BTreeSet<Name>,
}

#[derive(Debug)]
struct Entry {
    answer: Answer,
    /// Asked, answered or asked again.
    since: Instant,
}

#[derive(Debug)]
enum Answer {
    Pending,
    Absent,
    Found {
        version: String,
        /// Not, if there is something in it that this version does not know.
        understood: bool,
    },
}

impl Subscriptions {
    /// Subscriptions to what every sidecar needs as long as it lives.
    pub(crate) fn new(domain: TrustDomain, now: Instant) -> Self {
        let permanent = [Name::TrustBundle(domain), Name::Mesh, Name::Workload];
        let entry = |name| (name, Entry { answer: Answer::Pending, since: now });
        Self {
            entries: permanent.into_iter().map(entry).collect(),
            on_demand: 0,
            connected: None,
            subscribe: BTreeSet::new(),
            unsubscribe: BTreeSet::new(),
        }
    }

    /// Asks for `name`. Where there is no room, a name that does not exist makes way.
    pub(crate) fn want(&mut self, name: Name, now: Instant) -> Wanted {
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.since = now;
            return Wanted::Known;
        }
        if self.on_demand >= LIMIT && !self.forget_an_absent_one() {
            return Wanted::Full;
        }
        if self.connected.is_some() {
            self.subscribe.insert(name.clone());
        }
        self.on_demand += 1;
        self.entries.insert(name, Entry { answer: Answer::Pending, since: now });
        Wanted::New
    }

    /// A stream has begun: everything to say first on it, kind by kind.
    pub(crate) fn connected(&mut self, now: Instant) -> Vec<Change> {
        self.connected = Some(now);
        self.subscribe.clear();
        self.unsubscribe.clear();
        let mut changes = BTreeMap::new();
        for (name, entry) in &self.entries {
            let change = changes.entry(name.kind()).or_insert_with(|| Change::new(name.kind()));
            change.subscribe.push(name.resource());
            if let Answer::Found { version, understood: true } = &entry.answer {
                change.versions.insert(name.resource(), version.clone());
            }
        }
        changes.into_values().collect()
    }

    /// The stream has ended.
    pub(crate) fn disconnected(&mut self) {
        self.connected = None;
    }

    /// What changed since the last call, to be sent in this order.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        let mut leaving = BTreeMap::new();
        for name in std::mem::take(&mut self.unsubscribe) {
            let change: &mut Change = leaving.entry(name.kind()).or_insert_with(|| Change::new(name.kind()));
            change.unsubscribe.push(name.resource());
        }
        let mut joining = BTreeMap::new();
        for name in std::mem::take(&mut self.subscribe) {
            let change: &mut Change = joining.entry(name.kind()).or_insert_with(|| Change::new(name.kind()));
            change.subscribe.push(name.resource());
        }
        // A name may be in both. Leaving first, in a message of its own, makes
        // the server answer the new subscription.
        leaving.into_values().chain(joining.into_values()).collect()
    }

    /// `name` exists, and all of it is understood or not. `false` if nobody asked (any more).
    pub(crate) fn found(&mut self, name: &Name, version: &str, understood: bool, now: Instant) -> bool {
        self.answered(name, Answer::Found { version: version.to_owned(), understood }, now)
    }

    /// `name` does not exist (any more). `false` if nobody asked (any more).
    pub(crate) fn absent(&mut self, name: &Name, now: Instant) -> bool {
        self.answered(name, Answer::Absent, now)
    }

    /// Whether `name` is subscribed.
    pub(crate) fn contains(&self, name: &Name) -> bool {
        self.entries.contains_key(name)
    }

    /// The version of `name` that is held and understood. What is not understood is told each
    /// time that it is sent, and is asked for again at each stream's begin: whoever serves the
    /// next one has to know as well.
    pub(crate) fn version(&self, name: &Name) -> Option<&str> {
        match &self.entries.get(name)?.answer {
            Answer::Found { version, understood: true } => Some(version),
            _ => None,
        }
    }

    /// Gives up what was not used for long. `last_used` tells when workers last
    /// used a name, where they do. Returns the names given up.
    pub(crate) fn expire(&mut self, now: Instant, last_used: impl Fn(&Name) -> Option<Instant>) -> Vec<Name> {
        let Some(connected) = self.connected else { return Vec::new() };
        let old = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        let expired = self.entries.iter().filter(|(name, entry)| {
            !name.permanent()
                && match entry.answer {
                    Answer::Absent => old(entry.since.max(connected), ABSENT),
                    // While the stream was away nobody could tell what is still needed.
                    Answer::Pending | Answer::Found { .. } => {
                        let used = last_used(name).map_or(entry.since, |used| used.max(entry.since));
                        old(used.max(connected), IDLE)
                    }
                }
        });
        let expired: Vec<Name> = expired.map(|(name, _)| name.clone()).collect();
        for name in &expired {
            self.forget(name);
        }
        expired
    }

    fn answered(&mut self, name: &Name, answer: Answer, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        // A push says nothing about use: only a change of the answer begins a new period.
        if std::mem::discriminant(&entry.answer) != std::mem::discriminant(&answer) {
            entry.since = now;
        }
        entry.answer = answer;
        true
    }

    fn forget_an_absent_one(&mut self) -> bool {
        let absent = self
            .entries
            .iter()
            .filter(|(name, entry)| !name.permanent() && matches!(entry.answer, Answer::Absent));
        let Some(oldest) = absent.min_by_key(|(_, entry)| entry.since).map(|(name, _)| name.clone()) else {
            return false;
        };
        self.forget(&oldest);
        true
    }

    fn forget(&mut self, name: &Name) {
        self.entries.remove(name);
        self.on_demand -= 1;
        if !self.subscribe.remove(name) && self.connected.is_some() {
            self.unsubscribe.insert(name.clone());
        }
    }
}

impl Change {
    fn new(kind: Kind) -> Self {
        Self { kind, subscribe: Vec::new(), unsubscribe: Vec::new(), versions: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Name {
        Name::Service(format!("shop/{name}").parse().unwrap())
    }

    fn fresh(now: Instant) -> Subscriptions {
        Subscriptions::new("mesh.local".parse().unwrap(), now)
    }

    fn never(_: &Name) -> Option<Instant> {
        None
    }

    #[test]
    fn a_stream_begins_with_everything_and_the_versions_held() {
        let now = Instant::now();
        let mut subscriptions = fresh(now);
        subscriptions.want(service("users"), now);
        assert!(subscriptions.changes().is_empty(), "nothing is sent without a stream");
        let first = subscriptions.connected(now);
        let kinds: Vec<Kind> = first.iter().map(|change| change.kind).collect();
        assert_eq!(kinds, [Kind::TrustBundle, Kind::Mesh, Kind::Workload, Kind::Service]);
        assert!(first.iter().all(|change| change.versions.is_empty()));
        assert!(subscriptions.found(&service("users"), "7", true, now));
        subscriptions.disconnected();
        let again = subscriptions.connected(now);
        assert_eq!(again[3].subscribe, ["shop/users"]);
        assert_eq!(again[3].versions["shop/users"], "7");
    }

    #[test]
    fn a_name_is_asked_for_once() {
        let now = Instant::now();
        let mut subscriptions = fresh(now);
        subscriptions.connected(now);
        assert_eq!(subscriptions.want(service("users"), now), Wanted::New);
        assert_eq!(subscriptions.want(service("users"), now), Wanted::Known);
        let changes = subscriptions.changes();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].subscribe, ["shop/users"]);
        assert!(subscriptions.changes().is_empty());
    }

    #[test]
    fn idle_names_go_and_used_ones_stay() {
        let start = Instant::now();
        let mut subscriptions = fresh(start);
        subscriptions.connected(start);
        for name in ["used", "idle"] {
            subscriptions.want(service(name), start);
            subscriptions.found(&service(name), "1", true, start);
        }
        subscriptions.changes();
        let used = |name: &Name| (*name == service("used")).then_some(start + IDLE / 2);
        assert!(subscriptions.expire(start + IDLE - Duration::from_secs(1), used).is_empty());
        assert_eq!(subscriptions.expire(start + IDLE, used), [service("idle")]);
        assert_eq!(subscriptions.changes()[0].unsubscribe, ["shop/idle"]);
        assert!(!subscriptions.found(&service("idle"), "2", true, start), "late answers are ignored");
        assert_eq!(subscriptions.expire(start + IDLE * 3 / 2, used), [service("used")]);
        assert!(subscriptions.expire(start + IDLE * 100, never).is_empty(), "the permanent ones stay");
    }

    #[test]
    fn absent_names_go_sooner() {
        let start = Instant::now();
        let mut subscriptions = fresh(start);
        subscriptions.connected(start);
        subscriptions.want(service("nobody"), start);
        subscriptions.absent(&service("nobody"), start);
        assert_eq!(subscriptions.expire(start + ABSENT, never), [service("nobody")]);
    }

    #[test]
    fn nothing_expires_while_discovery_is_away_nor_right_after() {
        let start = Instant::now();
        let mut subscriptions = fresh(start);
        subscriptions.connected(start);
        subscriptions.want(service("users"), start);
        subscriptions.found(&service("users"), "1", true, start);
        subscriptions.disconnected();
        let later = start + IDLE * 50;
        assert!(subscriptions.expire(later, never).is_empty());
        assert_eq!(subscriptions.want(service("orders"), later), Wanted::New);
        subscriptions.connected(later);
        assert!(subscriptions.expire(later, never).is_empty());
        assert_eq!(subscriptions.expire(later + IDLE, never).len(), 2);
    }

    #[test]
    fn the_number_of_names_is_bounded_and_absent_ones_make_way() {
        let now = Instant::now();
        let mut subscriptions = fresh(now);
        subscriptions.connected(now);
        for i in 0..LIMIT {
            assert_eq!(subscriptions.want(service(&format!("s{i}")), now), Wanted::New);
        }
        assert_eq!(subscriptions.want(service("more"), now), Wanted::Full);
        subscriptions.changes();
        subscriptions.absent(&service("s9"), now);
        assert_eq!(subscriptions.want(service("more"), now), Wanted::New);
        assert!(!subscriptions.contains(&service("s9")));
        assert_eq!(subscriptions.want(service("s9"), now), Wanted::Full);
    }

    #[test]
    fn leaving_and_joining_at_once_are_two_messages() {
        let start = Instant::now();
        let mut subscriptions = fresh(start);
        subscriptions.connected(start);
        subscriptions.want(service("users"), start);
        subscriptions.changes();
        subscriptions.expire(start + IDLE, never);
        subscriptions.want(service("users"), start + IDLE);
        let changes = subscriptions.changes();
        assert_eq!((changes[0].unsubscribe.len(), changes[0].subscribe.len()), (1, 0));
        assert_eq!((changes[1].unsubscribe.len(), changes[1].subscribe.len()), (0, 1));
    }
}
