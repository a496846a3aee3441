//! What a match says about a request besides its path, and how many matches
//! of one path are searched quickly.
//!
//! A [`Bucket`] holds the matches that stand at the same place of the path's
//! precedence, best first; the first that holds wins. Where many of them ask
//! for values of one header (a tenant, a version) they are found by that value.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use heddle_api::pattern::Pattern;
use http::HeaderName;
use http::header::COOKIE;
use memchr::memchr;

use crate::route::hash::ConfiguredMap;
use crate::route::head::Head;
use crate::route::query;
use crate::route::rule::Rule;

/// What a header's or a query parameter's value must be.
#[derive(Debug, Clone)]
pub enum Test {
    /// This value.
    Exact(Box<[u8]>),
    /// A value that the expression matches.
    Regex(Pattern),
    /// One of these. Heddle's own.
    In(Box<[Box<[u8]>]>),
    /// None of these; absence counts as such. Heddle's own.
    NotIn(Box<[Box<[u8]>]>),
}

impl Test {
    /// Whether a value, or its absence, passes.
    pub fn holds(&self, value: Option<&[u8]>) -> bool {
        let among = |values: &[Box<[u8]>]| value.is_some_and(|v| values.iter().any(|other| **other == *v));
        match self {
            Self::Exact(wanted) => value == Some(wanted),
            Self::Regex(pattern) => value.is_some_and(|value| pattern.matches(value)),
            Self::In(values) => among(values),
            Self::NotIn(values) => !among(values),
        }
    }

    /// What its expression takes, in bytes, if it has one.
    pub fn size(&self) -> usize {
        match self {
            Self::Regex(pattern) => pattern.size(),
            Self::Exact(_) | Self::In(_) | Self::NotIn(_) => 0,
        }
    }

    /// The values that pass, where they can be listed.
    fn values(&self) -> Option<&[Box<[u8]>]> {
        match self {
            Self::Exact(value) => Some(std::slice::from_ref(value)),
            Self::In(values) => Some(values),
            Self::Regex(_) | Self::NotIn(_) => None,
        }
    }
}

/// What a condition is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    Header(HeaderName),
    Query(Box<[u8]>),
}

impl Subject {
    fn of<'a, H: Head>(&self, head: &'a H) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Header(name) => {
                let mut values = head.values(name);
                let first = values.next()?;
                let mut value = Cow::Borrowed(first);
                // Several fields are one list (RFC 9110, section 5.3), as the
                // specification recommends; rare, so that it may allocate. Those of cookies, which
                // HTTP/2 may take apart, are put together as HTTP/1 has them (RFC 9113, section 8.2.3).
                for further in values {
                    let list = value.to_mut();
                    list.extend_from_slice(if *name == COOKIE { b"; ".as_slice() } else { b"," });
                    list.extend_from_slice(further);
                }
                Some(value)
            }
            Self::Query(name) => query::first(head.query()?, name),
        }
    }
}

/// Collects the subjects of a table, so that each is looked up once per request.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    list: Vec<Subject>,
    places: HashMap<Subject, usize>,
}

impl Subjects {
    /// The conditions of one match. Of several for one name only the first
    /// counts, as the specification has it; those of Heddle's own kinds
    /// narrow a name further and count all.
    pub(super) fn conditions(
        &mut self,
        headers: Vec<(HeaderName, Test)>,
        query: Vec<(Box<[u8]>, Test)>,
    ) -> Conditions {
        let mut conditions: Vec<Condition> = Vec::with_capacity(headers.len() + query.len());
        self.append(headers.into_iter().map(|(name, test)| (Subject::Header(name), test)), &mut conditions);
        let header_count = conditions.len();
        self.append(query.into_iter().map(|(name, test)| (Subject::Query(name), test)), &mut conditions);
        Conditions { header_count, list: conditions.into() }
    }

    fn append(&mut self, tests: impl Iterator<Item = (Subject, Test)>, to: &mut Vec<Condition>) {
        let standard = |test: &Test| matches!(test, Test::Exact(_) | Test::Regex(_));
        for (subject, test) in tests {
            let place = *self.places.entry(subject).or_insert_with_key(|subject| {
                self.list.push(subject.clone());
                self.list.len() - 1
            });
            let repeated = |condition: &Condition| condition.subject == place && standard(&condition.test);
            if !standard(&test) || !to.iter().any(repeated) {
                to.push(Condition { subject: place, test });
            }
        }
    }

    /// All of them, by their places.
    pub(super) fn into_list(self) -> Box<[Subject]> {
        self.list.into()
    }
}

/// A request while rules are compared with it: what was looked up is kept.
pub(super) struct Lookup<'a, H> {
    head: &'a H,
    subjects: &'a [Subject],
    kept: [OnceCell<Option<Cow<'a, [u8]>>>; KEPT],
}

/// How many subjects are looked up once; a table with more, which is rare,
/// looks the others up for each condition.
const KEPT: usize = 16;

impl<'a, H: Head> Lookup<'a, H> {
    pub(super) fn new(head: &'a H, subjects: &'a [Subject]) -> Self {
        Self { head, subjects, kept: [const { OnceCell::new() }; KEPT] }
    }

    fn value<R>(&self, subject: usize, read: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let find = || self.subjects[subject].of(self.head);
        match self.kept.get(subject) {
            Some(kept) => read(kept.get_or_init(find).as_deref()),
            None => read(find().as_deref()),
        }
    }
}

/// The conditions of one match on headers and query, all of which must hold.
#[derive(Debug)]
pub(super) struct Conditions {
    /// How many are about headers.
    header_count: usize,
    list: Box<[Condition]>,
}

#[derive(Debug)]
struct Condition {
    subject: usize,
    test: Test,
}

/// One match of one rule.
#[derive(Debug)]
pub(super) struct Candidate {
    /// What is left to compare of the path.
    pub(super) path: PathTest,
    /// The method of HTTP.
    pub(super) method: Option<Box<[u8]>>,
    /// How closely a method, of HTTP or of gRPC, is named; the first in precedence.
    pub(super) method_rank: u8,
    pub(super) conditions: Conditions,
    pub(super) rule: Arc<Rule>,
}

impl Candidate {
    /// Its precedence among those of equal path, apart from its rule's age.
    fn rank(&self) -> impl Ord + use<> {
        let headers = self.conditions.header_count;
        Reverse((self.method_rank, headers, self.conditions.list.len() - headers))
    }

    fn holds<H: Head>(&self, lookup: &Lookup<'_, H>) -> bool {
        let conditions = &self.conditions.list;
        self.method.as_deref().is_none_or(|method| method == lookup.head.method())
            && conditions.iter().all(|c| lookup.value(c.subject, |value| c.test.holds(value)))
            && self.path.holds(lookup.head.path())
    }
}

/// What a path must be besides what it was looked up by.
#[derive(Debug)]
pub(super) enum PathTest {
    /// Nothing.
    Any,
    /// A path that the expression matches.
    Path(Pattern),
    /// That of a gRPC call with these names, each a whole one.
    Call { service: Option<Pattern>, method: Option<NameMatch> },
}

/// What the name of a gRPC service or method must be.
#[derive(Debug, Clone)]
pub enum NameMatch {
    /// This one.
    Exact(Box<[u8]>),
    /// One that the expression matches.
    Regex(Pattern),
}

impl PathTest {
    fn holds(&self, path: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Path(pattern) => pattern.matches(path),
            Self::Call { service, method } => call(path).is_some_and(|(its_service, its_method)| {
                service.as_ref().is_none_or(|pattern| pattern.matches(its_service))
                    && method.as_ref().is_none_or(|method| match method {
                        NameMatch::Exact(name) => **name == *its_method,
                        NameMatch::Regex(pattern) => pattern.matches(its_method),
                    })
            }),
        }
    }
}

/// The service and the method that the path of a gRPC call names:
/// `/package.Service/Method`.
pub(super) fn call(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let names = path.strip_prefix(b"/")?;
    let slash = memchr(b'/', names)?;
    let (service, method) = (&names[..slash], &names[slash + 1..]);
    (!method.contains(&b'/')).then_some((service, method))
}

/// Matches of equal path, best first.
#[derive(Debug)]
pub(super) struct Bucket {
    candidates: Box<[Candidate]>,
    index: Option<Index>,
}

/// Finds candidates by the value that they ask one subject for.
#[derive(Debug)]
struct Index {
    subject: usize,
    /// Places in `candidates`, ascending.
    by_value: ConfiguredMap<Box<[u8]>, Vec<usize>>,
    /// Candidates that do not ask the subject for listed values, ascending.
    rest: Vec<usize>,
}

/// From how many candidates on an index is faster than looking at all of them.
const INDEXED: usize = 8;

impl Bucket {
    /// Sorts what was collected in the order of the rules' age.
    pub(super) fn new(mut candidates: Vec<Candidate>) -> Self {
        // Stable: equal ones stay in the order of their rules.
        candidates.sort_by_key(Candidate::rank);
        Self { index: Index::of(&candidates), candidates: candidates.into() }
    }

    /// The rule of the first candidate that holds.
    pub(super) fn find<H: Head>(&self, lookup: &Lookup<'_, H>) -> Option<&Arc<Rule>> {
        let Some(index) = &self.index else {
            return self.candidates.iter().find(|c| c.holds(lookup)).map(|c| &c.rule);
        };
        let listed =
            lookup.value(index.subject, |value| index.by_value.get(value?)).map_or(&[][..], Vec::as_slice);
        let holding = |places: &[usize]| places.iter().copied().find(|&at| self.candidates[at].holds(lookup));
        let best = match holding(listed) {
            None => holding(&index.rest)?,
            // Only what comes before can still win.
            Some(found) => {
                let before = index.rest.partition_point(|&at| at < found);
                holding(&index.rest[..before]).unwrap_or(found)
            }
        };
        Some(&self.candidates[best].rule)
    }
}

impl Index {
    fn of(candidates: &[Candidate]) -> Option<Self> {
        let mut users: HashMap<usize, usize> = HashMap::new();
        for candidate in candidates {
            for condition in candidate.conditions.list.iter().filter(|c| c.test.values().is_some()) {
                *users.entry(condition.subject).or_default() += 1;
            }
        }
        // Ties by place, so that equal configuration gives equal tables.
        let (subject, _) = users
            .into_iter()
            .filter(|(_, count)| *count >= INDEXED)
            .max_by_key(|(s, n)| (*n, Reverse(*s)))?;
        let mut index = Self { subject, by_value: ConfiguredMap::default(), rest: Vec::new() };
        for (at, candidate) in candidates.iter().enumerate() {
            let mut about = candidate.conditions.list.iter().filter(|c| c.subject == subject);
            let Some(values) = about.find_map(|condition| condition.test.values()) else {
                index.rest.push(at);
                continue;
            };
            for value in values {
                let places = index.by_value.entry(value.clone()).or_default();
                if places.last() != Some(&at) {
                    places.push(at);
                }
            }
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_is_in_no_list() {
        let list = || vec![Box::from(b"a".as_slice()), Box::from(b"b".as_slice())].into_boxed_slice();
        assert!(Test::In(list()).holds(Some(b"b")) && !Test::In(list()).holds(Some(b"c")));
        assert!(!Test::In(list()).holds(None) && Test::NotIn(list()).holds(None));
        assert!(Test::NotIn(list()).holds(Some(b"c")) && !Test::NotIn(list()).holds(Some(b"a")));
    }
}
