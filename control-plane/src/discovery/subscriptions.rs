//! What one stream has subscribed to and has been sent: a pure state machine
//! (requests and published resources in, responses out).
//!
//! Invariant: for each subscribed name the stream knows the version that the
//! client has or is about to get; a response holds exactly the difference to
//! what is published. A refused (NACKed) version counts as sent: it is not
//! sent again until it changes, and the client keeps its last good one.

use std::collections::{BTreeMap, BTreeSet};

use heddle_api::discovery::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wire};

use super::answers;
use crate::model::Resource;

/// One stream's subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    types: BTreeMap<String, Subscribed>,
    names: usize,
    nonce: u64,
}

#[derive(Debug, Default)]
struct Subscribed {
    sent: BTreeMap<String, Sent>,
    /// Names to compare with what is published before anything else is.
    pending: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Sent {
    Nothing,
    Absent,
    Version(String),
}

/// What a request said about an earlier response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing: it only subscribes.
    None,
    Ack,
    /// It is in force, but for what the client does not know: what that is.
    Partly(String),
    /// The client cannot use it, and why.
    Nack(String),
}

/// A stream that asks for more than it may.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooMuch {
    #[error("more than {MAX_NAMES} names are subscribed on one stream")]
    Names,
    #[error("a resource name or type is longer than {MAX_NAME} bytes")]
    Name,
}

/// Each name costs some hundred bytes here; a workload that talks to
/// this many destinations is a mistake or an attack.
const MAX_NAMES: usize = 20_000;

/// Longer than any DNS name, pair of them, or type URL.
const MAX_NAME: usize = 600;

/// Response size after which the rest waits for the next one. Well below the
/// 4 MiB that gRPC clients accept by default.
const RESPONSE_BYTES: usize = 1024 * 1024;

impl Subscriptions {
    /// Takes in a request.
    pub(crate) fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Answer, TooMuch> {
        let names = request.resource_names_subscribe.iter().chain(&request.resource_names_unsubscribe);
        if request.type_url.len() > MAX_NAME || names.map(String::len).any(|length| length > MAX_NAME) {
            return Err(TooMuch::Name);
        }
        let subscribes = !request.resource_names_subscribe.is_empty();
        if !subscribes && !self.types.contains_key(&request.type_url) {
            return Ok(Answer::None);
        }
        let mut initial = request.initial_resource_versions;
        let subscribed = self.types.entry(request.type_url).or_default();
        for name in request.resource_names_unsubscribe {
            subscribed.pending.remove(&name);
            self.names -= usize::from(subscribed.sent.remove(&name).is_some());
        }
        for name in request.resource_names_subscribe {
            // A second subscription asks for the resource again (xDS, "subscribing to resources").
            let sent = initial.remove(&name).map_or(Sent::Nothing, Sent::Version);
            subscribed.pending.insert(name.clone());
            self.names += usize::from(subscribed.sent.insert(name, sent).is_none());
        }
        if self.names > MAX_NAMES {
            return Err(TooMuch::Names);
        }
        Ok(match request.error_detail {
            Some(status) if answers::refuses(&status) => Answer::Nack(status.message),
            Some(status) => Answer::Partly(status.message),
            None if request.response_nonce.is_empty() => Answer::None,
            None => Answer::Ack,
        })
    }

    /// Something else is published: every name is to be compared.
    pub(crate) fn published(&mut self) {
        for subscribed in self.types.values_mut() {
            let Subscribed { sent, pending } = subscribed;
            pending.extend(sent.keys().cloned());
        }
    }

    /// Whether [`Self::response`] may have something to say.
    pub(crate) fn is_pending(&self) -> bool {
        self.types.values().any(|subscribed| !subscribed.pending.is_empty())
    }

    /// The next response, with the resources that `lookup` finds by type and name.
    pub(crate) fn response<R: AsRef<Resource>>(
        &mut self,
        lookup: impl Fn(&str, &str) -> Option<R>,
    ) -> Option<DeltaDiscoveryResponse> {
        for (type_url, subscribed) in &mut self.types {
            let (mut resources, mut removed, mut size) = (Vec::new(), Vec::new(), 0);
            while size < RESPONSE_BYTES
                && let Some(name) = subscribed.pending.pop_first()
            {
                let sent = subscribed.sent.get_mut(&name).expect("what is pending is subscribed");
                let found = lookup(type_url, &name);
                match found.as_ref().map(R::as_ref) {
                    Some(resource) if !matches!(sent, Sent::Version(v) if *v == resource.version) => {
                        *sent = Sent::Version(resource.version.clone());
                        size += resource.bytes.len() + name.len();
                        resources.push(wire(type_url, name, resource));
                    }
                    None if *sent != Sent::Absent => {
                        *sent = Sent::Absent;
                        size += name.len();
                        removed.push(name);
                    }
                    _ => {}
                }
            }
            if resources.is_empty() && removed.is_empty() {
                continue;
            }
            self.nonce += 1;
            return Some(DeltaDiscoveryResponse {
                resources,
                type_url: type_url.clone(),
                nonce: self.nonce.to_string(),
                removed_resources: removed,
                ..Default::default()
            });
        }
        None
    }

    /// How many names are subscribed.
    pub(crate) fn names(&self) -> usize {
        self.names
    }
}

fn wire(type_url: &str, name: String, resource: &Resource) -> Wire {
    let any = prost_types::Any { type_url: type_url.into(), value: resource.bytes.to_vec() };
    Wire { version: resource.version.clone(), resource: Some(any), name, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use heddle_api::discovery::Status;
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "type.googleapis.com/heddle.v1.Service";

    #[derive(Default)]
    struct World(BTreeMap<String, Arc<Resource>>);

    impl World {
        fn of(content: &[(&str, &str)]) -> Self {
            let resource = |text: &str| {
                Arc::new(Resource { version: format!("v-{text}"), bytes: text.as_bytes().to_vec().into() })
            };
            Self(content.iter().map(|(name, text)| ((*name).into(), resource(text))).collect())
        }

        fn respond(&self, subscriptions: &mut Subscriptions) -> Option<(Vec<String>, Vec<String>)> {
            let response = subscriptions.response(|_, name| self.0.get(name))?;
            Some((response.resources.into_iter().map(|r| r.name).collect(), response.removed_resources))
        }
    }

    fn request(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: TYPE.into(),
            resource_names_subscribe: subscribe.iter().map(|s| (*s).into()).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(|s| (*s).into()).collect(),
            ..Default::default()
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).into()).collect()
    }

    #[test]
    fn a_subscription_is_answered_even_if_the_name_does_not_exist() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.request(request(&["a", "b"], &[])).unwrap();
        let mut world = World::of(&[("a", "1")]);
        assert_eq!(world.respond(&mut subscriptions), Some((names(&["a"]), names(&["b"]))));
        assert_eq!(world.respond(&mut subscriptions), None);
        world = World::of(&[("a", "1"), ("b", "1")]);
        subscriptions.published();
        assert_eq!(world.respond(&mut subscriptions), Some((names(&["b"]), vec![])));
    }

    /// A sidecar one minor version ahead may ask for a kind of resource that this control plane does
    /// not know: it is told that there is none, and gets everything else.
    #[test]
    fn a_type_of_a_newer_version_is_answered_as_absent() {
        const NEWER: &str = "type.googleapis.com/heddle.v1.Newer";
        let mut subscriptions = Subscriptions::default();
        subscriptions
            .request(DeltaDiscoveryRequest { type_url: NEWER.into(), ..request(&["a"], &[]) })
            .unwrap();
        subscriptions.request(request(&["a"], &[])).unwrap();
        let world = World::of(&[("a", "1")]);
        let lookup = |type_url: &str, name: &str| world.0.get(name).filter(|_| type_url == TYPE);
        let mut answers = BTreeMap::new();
        while let Some(answer) = subscriptions.response(lookup) {
            answers.insert(answer.type_url.clone(), answer);
        }
        assert_eq!(answers[NEWER].removed_resources, names(&["a"]));
        assert_eq!(answers[TYPE].resources.len(), 1);
    }

    #[test]
    fn only_what_changed_is_sent() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.request(request(&["a", "b", "c"], &[])).unwrap();
        World::of(&[("a", "1"), ("b", "1"), ("c", "1")]).respond(&mut subscriptions).unwrap();
        subscriptions.published();
        let world = World::of(&[("a", "1"), ("b", "2"), ("d", "1")]);
        assert_eq!(world.respond(&mut subscriptions), Some((names(&["b"]), names(&["c"]))));
        assert!(!subscriptions.is_pending());
    }

    #[test]
    fn what_the_client_still_holds_is_not_sent_again() {
        let mut subscriptions = Subscriptions::default();
        let mut first = request(&["a", "b", "c"], &[]);
        for name in ["a", "b", "c"] {
            first.initial_resource_versions.insert(name.into(), "v-1".into());
        }
        subscriptions.request(first).unwrap();
        let world = World::of(&[("a", "1"), ("b", "2")]);
        assert_eq!(world.respond(&mut subscriptions), Some((names(&["b"]), names(&["c"]))));
    }

    #[test]
    fn an_unsubscribed_name_is_forgotten() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.request(request(&["a"], &[])).unwrap();
        subscriptions.request(request(&[], &["a", "never"])).unwrap();
        assert_eq!(World::of(&[("a", "1")]).respond(&mut subscriptions), None);
        assert_eq!(subscriptions.names(), 0);
    }

    #[test]
    fn a_refused_version_is_not_sent_again_until_it_changes() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.request(request(&["a"], &[])).unwrap();
        World::of(&[("a", "1")]).respond(&mut subscriptions).unwrap();
        let mut nack = request(&[], &[]);
        nack.response_nonce = "1".into();
        nack.error_detail = Some(Status { message: "no such field".into(), ..Default::default() });
        assert_eq!(subscriptions.request(nack), Ok(Answer::Nack("no such field".into())));
        subscriptions.published();
        assert_eq!(World::of(&[("a", "1")]).respond(&mut subscriptions), None);
        subscriptions.published();
        assert!(World::of(&[("a", "2")]).respond(&mut subscriptions).is_some());
    }

    #[test]
    fn a_large_answer_comes_in_parts() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.request(request(&["a", "b", "c"], &[])).unwrap();
        let big = "x".repeat(RESPONSE_BYTES);
        let world = World::of(&[("a", &big), ("b", &big), ("c", "1")]);
        assert_eq!(world.respond(&mut subscriptions), Some((names(&["a"]), vec![])));
        assert_eq!(world.respond(&mut subscriptions), Some((names(&["b"]), vec![])));
        assert_eq!(world.respond(&mut subscriptions), Some((names(&["c"]), vec![])));
        assert!(!subscriptions.is_pending());
    }

    #[test]
    fn a_stream_cannot_ask_for_everything() {
        let mut subscriptions = Subscriptions::default();
        let many: Vec<String> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(subscriptions.request(request(&many, &[])), Err(TooMuch::Names));
        assert_eq!(subscriptions.request(request(&[&"a".repeat(1000)], &[])), Err(TooMuch::Name));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Subscribe(u8),
        Unsubscribe(u8),
        Publish(BTreeMap<u8, u8>),
        Respond,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u8).prop_map(Step::Subscribe),
            (0..4u8).prop_map(Step::Unsubscribe),
            prop::collection::btree_map(0..4u8, 0..3u8, 0..4).prop_map(Step::Publish),
            Just(Step::Respond),
        ]
    }

    proptest! {
        /// Whatever happens, a client that applies each response ends with
        /// exactly what is published of what it is subscribed to.
        #[test]
        fn a_client_always_converges(steps in prop::collection::vec(step(), 0..60)) {
            let (mut subscriptions, mut world) = (Subscriptions::default(), World::default());
            let mut client: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let mut wanted: BTreeSet<String> = BTreeSet::new();
            let apply = |subscriptions: &mut Subscriptions, world: &World, client: &mut BTreeMap<String, Vec<u8>>| {
                match subscriptions.response(|_, name| world.0.get(name)) {
                    None => false,
                    Some(response) => {
                        for resource in response.resources {
                            client.insert(resource.name, resource.resource.unwrap().value);
                        }
                        for name in response.removed_resources {
                            client.remove(&name);
                        }
                        true
                    }
                }
            };
            for step in steps {
                match step {
                    Step::Subscribe(name) => {
                        wanted.insert(name.to_string());
                        subscriptions.request(request(&[&name.to_string()], &[])).unwrap();
                    }
                    Step::Unsubscribe(name) => {
                        wanted.remove(&name.to_string());
                        client.remove(&name.to_string());
                        subscriptions.request(request(&[], &[&name.to_string()])).unwrap();
                    }
                    Step::Publish(content) => {
                        let content: Vec<_> =
                            content.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
                        let content: Vec<_> = content.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                        world = World::of(&content);
                        subscriptions.published();
                    }
                    Step::Respond => { apply(&mut subscriptions, &world, &mut client); }
                }
            }
            while apply(&mut subscriptions, &world, &mut client) {}
            prop_assert!(!subscriptions.is_pending());
            let expected: BTreeMap<String, Vec<u8>> = world.0.iter()
                .filter(|(name, _)| wanted.contains(*name))
                .map(|(name, resource)| (name.clone(), resource.bytes.to_vec()))
                .collect();
            prop_assert_eq!(client, expected);
        }
    }
}
