//! What a sidecar said about the resources that it was sent: taken over,
//! refused, or nothing yet. Pure: what goes over the stream in, states out.
//!
//! Kept only of the types that carry policies, for their statuses.

use std::collections::BTreeMap;

use heddle_api::discovery::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use heddle_api::discovery::{ResourceType, SHORTFALL, Status, v1};
use prost::Message;

/// The types of resources that carry policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Carried {
    Mesh,
    Service,
    Workload,
}

/// How a sidecar stands to a version of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    Acknowledged,
    /// It is in force, but for something that the sidecar does not know.
    Partly,
    /// It was sent, or will be.
    Pending,
    Refused,
}

/// gRPC's code of an answer by which all is in force but for what the sidecar does not know.
const UNIMPLEMENTED: i32 = 12;

/// What one answer says about the resources of a response.
enum Verdict {
    /// The same about each.
    All(Answer),
    /// This about these, and that the others are in force.
    Some(BTreeMap<String, Answer>),
}

impl Verdict {
    fn of(status: Option<&Status>) -> Self {
        let Some(status) = status else { return Self::All(Answer::Acknowledged) };
        let details = status.details.iter().filter(|detail| detail.type_url == SHORTFALL);
        let told: BTreeMap<String, Answer> = details
            .filter_map(|detail| v1::Shortfall::decode(&*detail.value).ok())
            .map(|told| (told.resource, if told.refused { Answer::Refused } else { Answer::Partly }))
            .collect();
        match status.code {
            _ if !told.is_empty() => Self::Some(told),
            UNIMPLEMENTED => Self::All(Answer::Partly),
            _ => Self::All(Answer::Refused),
        }
    }

    fn about(&self, name: &str) -> Answer {
        match self {
            Self::All(answer) => *answer,
            Self::Some(told) => told.get(name).copied().unwrap_or(Answer::Acknowledged),
        }
    }
}

/// Whether an answer with this status leaves something of the response out of force for being refused.
pub(crate) fn refuses(status: &Status) -> bool {
    status.code != UNIMPLEMENTED
}

/// One stream's answers.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    held: BTreeMap<(Carried, String), (String, Answer)>,
    /// What each response that was not answered yet held.
    open: BTreeMap<u64, Vec<(Carried, String, String)>>,
}

/// Responses without an answer that are remembered; a client that answers none of so many answers
/// none at all.
const MAX_OPEN: usize = 64;

impl Carried {
    fn of(type_url: &str) -> Option<Self> {
        match type_url {
            v1::Mesh::TYPE_URL => Some(Self::Mesh),
            v1::Service::TYPE_URL => Some(Self::Service),
            v1::Workload::TYPE_URL => Some(Self::Workload),
            _ => None,
        }
    }
}

impl Answers {
    /// The client asks, answers or both; returns whether a state changed.
    pub(crate) fn request(&mut self, request: &DeltaDiscoveryRequest) -> bool {
        let Some(carried) = Carried::of(&request.type_url) else { return false };
        let mut changed = false;
        for name in &request.resource_names_unsubscribe {
            changed |= self.held.remove(&(carried, name.clone())).is_some();
        }
        for name in &request.resource_names_subscribe {
            // What it brings along it has taken over at some time.
            let state = match request.initial_resource_versions.get(name) {
                Some(version) => (version.clone(), Answer::Acknowledged),
                None => (String::new(), Answer::Pending),
            };
            self.held.insert((carried, name.clone()), state);
            changed = true;
        }
        let answered = request.response_nonce.parse().ok().and_then(|nonce: u64| self.open.remove(&nonce));
        let verdict = Verdict::of(request.error_detail.as_ref());
        for (carried, name, version) in answered.into_iter().flatten() {
            let answer = verdict.about(&name);
            if let Some((held, state)) = self.held.get_mut(&(carried, name))
                && *held == version
            {
                *state = answer;
                changed = true;
            }
        }
        changed
    }

    /// The client is sent something.
    pub(crate) fn response(&mut self, response: &DeltaDiscoveryResponse) {
        let Some(carried) = Carried::of(&response.type_url) else { return };
        let mut sent = Vec::with_capacity(response.resources.len());
        for resource in &response.resources {
            let (name, version) = (resource.name.clone(), resource.version.clone());
            self.held.insert((carried, name.clone()), (version.clone(), Answer::Pending));
            sent.push((carried, name, version));
        }
        for name in &response.removed_resources {
            // It stays subscribed, and there is nothing to take over.
            self.held.insert((carried, name.clone()), (String::new(), Answer::Pending));
        }
        if let Ok(nonce) = response.nonce.parse() {
            self.open.insert(nonce, sent);
        }
        if self.open.len() > MAX_OPEN {
            self.open.pop_first();
        }
    }

    /// How the client stands to what is published: for each name the version that is current, by
    /// `version`. A name of which there is none is left out.
    pub(crate) fn standing<V: AsRef<str>>(
        &self,
        version: impl Fn(Carried, &str) -> Option<V>,
    ) -> impl Iterator<Item = (Carried, &str, Answer)> {
        self.held.iter().filter_map(move |((carried, name), (held, state))| {
            let current = version(*carried, name)?;
            let answer = if current.as_ref() == held.as_str() { *state } else { Answer::Pending };
            Some((*carried, name.as_str(), answer))
        })
    }
}

#[cfg(test)]
mod tests {
    use heddle_api::discovery::xds::Resource;

    use super::*;

    fn request(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        DeltaDiscoveryRequest {
            type_url: v1::Service::TYPE_URL.into(),
            resource_names_subscribe: names(subscribe),
            resource_names_unsubscribe: names(unsubscribe),
            ..Default::default()
        }
    }

    fn answer(nonce: u64, refused: bool) -> DeltaDiscoveryRequest {
        let error_detail = refused.then(|| Status { message: "no".into(), ..Default::default() });
        DeltaDiscoveryRequest { response_nonce: nonce.to_string(), error_detail, ..request(&[], &[]) }
    }

    fn response(nonce: u64, resources: &[(&str, &str)]) -> DeltaDiscoveryResponse {
        let resource = |(name, version): &(&str, &str)| Resource {
            name: (*name).into(),
            version: (*version).into(),
            ..Default::default()
        };
        DeltaDiscoveryResponse {
            type_url: v1::Service::TYPE_URL.into(),
            nonce: nonce.to_string(),
            resources: resources.iter().map(resource).collect(),
            ..Default::default()
        }
    }

    fn standing(answers: &Answers, current: &'static str) -> Vec<(String, Answer)> {
        let all = answers.standing(|_, _| Some(current));
        all.map(|(_, name, answer)| (name.to_owned(), answer)).collect()
    }

    #[test]
    fn a_version_counts_once_it_is_acknowledged() {
        let mut answers = Answers::default();
        answers.request(&request(&["a", "b"], &[]));
        assert_eq!(standing(&answers, "1"), [("a".into(), Answer::Pending), ("b".into(), Answer::Pending)]);
        answers.response(&response(1, &[("a", "1")]));
        answers.response(&response(2, &[("b", "1")]));
        assert!(answers.request(&answer(1, false)));
        assert!(answers.request(&answer(2, true)));
        assert_eq!(
            standing(&answers, "1"),
            [("a".into(), Answer::Acknowledged), ("b".into(), Answer::Refused)]
        );
        assert_eq!(standing(&answers, "2"), [("a".into(), Answer::Pending), ("b".into(), Answer::Pending)]);
        answers.request(&request(&[], &["a", "b"]));
        assert!(standing(&answers, "1").is_empty());
    }

    /// One resource that a sidecar cannot use says nothing against the others of the same response.
    #[test]
    fn a_refusal_is_about_the_resources_that_it_names() {
        let mut answers = Answers::default();
        answers.request(&request(&["a", "b", "c"], &[]));
        answers.response(&response(1, &[("a", "1"), ("b", "1"), ("c", "1")]));
        let detail = |resource: &str, refused| {
            let told = v1::Shortfall { resource: resource.into(), refused, ..Default::default() };
            prost_types::Any { type_url: SHORTFALL.into(), value: told.encode_to_vec() }
        };
        let mut said = answer(1, true);
        said.error_detail.as_mut().unwrap().details = vec![detail("a", true), detail("b", false)];
        answers.request(&said);
        let expected = [Answer::Refused, Answer::Partly, Answer::Acknowledged];
        assert!(standing(&answers, "1").iter().map(|(_, answer)| *answer).eq(expected));
    }

    #[test]
    fn without_names_it_is_about_all_of_them() {
        let mut answers = Answers::default();
        answers.request(&request(&["a", "b"], &[]));
        answers.response(&response(1, &[("a", "1"), ("b", "1")]));
        let mut said = answer(1, true);
        said.error_detail.as_mut().unwrap().code = UNIMPLEMENTED;
        answers.request(&said);
        assert!(standing(&answers, "1").iter().all(|(_, answer)| *answer == Answer::Partly));
    }

    #[test]
    fn an_answer_is_about_what_was_sent_under_its_nonce() {
        let mut answers = Answers::default();
        answers.request(&request(&["a"], &[]));
        answers.response(&response(1, &[("a", "1")]));
        answers.response(&response(2, &[("a", "2")]));
        answers.request(&answer(1, false));
        assert_eq!(standing(&answers, "2"), [("a".into(), Answer::Pending)]);
        answers.request(&answer(2, false));
        assert_eq!(standing(&answers, "2"), [("a".into(), Answer::Acknowledged)]);
    }

    #[test]
    fn what_a_client_brings_along_it_has_taken_over() {
        let mut answers = Answers::default();
        let mut first = request(&["a"], &[]);
        first.initial_resource_versions.insert("a".into(), "1".into());
        answers.request(&first);
        assert_eq!(standing(&answers, "1"), [("a".into(), Answer::Acknowledged)]);
    }

    #[test]
    fn a_client_that_never_answers_costs_a_bounded_amount() {
        let mut answers = Answers::default();
        for nonce in 1..1000 {
            answers.response(&response(nonce, &[("a", "1")]));
        }
        assert_eq!(answers.open.len(), MAX_OPEN);
    }
}
