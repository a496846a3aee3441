//! How much room routes have in sidecars.
//!
//! A sidecar refuses a service of which the expressions at one port take more
//! than it grants, and cannot read a service that is larger than any response may
//! be: with either nothing of the service would change any more. What no
//! sidecar would take is left out here, route by route, and its route is told.
//! The owner's routes come before those of other namespaces, and older ones before
//! younger ones, so that nobody's routes go for what somebody else adds later.

use std::collections::{BTreeMap, HashMap};

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use heddle_api::pattern::{LARGEST, LARGEST_SET, Pattern};
use prost::Message;

use super::rules::WireRule;

/// What the routes of one Service may take together as they are sent, for all ports and clients, in
/// bytes: half of the largest response that a sidecar accepts. The rest is left to its endpoints, of
/// which ten thousand take 2 MiB.
const LARGEST_ROUTES: usize = 16 << 20;

/// Sets with no more expressions than that need not be measured.
const SURELY_FIT: usize = LARGEST_SET / LARGEST;

/// What expressions take where that had to be measured, kept from one compilation to the next: to
/// measure one it has to be compiled.
#[derive(Debug, Default, Clone)]
pub(crate) struct Measured(HashMap<String, usize>);

/// The rules of one route that want to be in a set.
pub(super) struct Wish {
    /// The set that it is for, by its place among those of the Service.
    pub(super) set: usize,
    /// The route, by its place among all.
    pub(super) route: usize,
    /// Its place in the order in which there is room.
    pub(super) rank: Rank,
    pub(super) rules: Vec<WireRule>,
    /// Why it is not to be.
    pub(super) refused: Option<String>,
}

/// Whose routes have room first: whether it is for clients of another namespace, and how many are older.
pub(super) type Rank = (bool, usize);

/// Measures routes.
pub(super) struct Room<'a> {
    before: &'a Measured,
    pub(super) measured: Measured,
}

impl<'a> Room<'a> {
    pub(super) fn new(before: &'a Measured) -> Self {
        Self { before, measured: Measured::default() }
    }

    /// Refuses, of the wishes at one Service, those for which there is no room.
    pub(super) fn refuse(&mut self, service: &ServiceName, wishes: &mut [Wish]) {
        let bytes: Vec<usize> =
            wishes.iter().map(|wish| wish.rules.iter().map(WireRule::encoded_len).sum()).collect();
        let mut counts = BTreeMap::<usize, usize>::new();
        for wish in &*wishes {
            *counts.entry(wish.set).or_default() += wish.rules.iter().flat_map(WireRule::expressions).count();
        }
        let (all, most) = (bytes.iter().sum::<usize>(), counts.values().max().copied().unwrap_or_default());
        if all <= LARGEST_ROUTES && most <= SURELY_FIT {
            return;
        }
        let mut order: Vec<usize> = (0..wishes.len()).collect();
        order.sort_by_key(|place| wishes[*place].rank);
        let (mut bytes_left, mut sets_left) = (LARGEST_ROUTES, BTreeMap::<usize, usize>::new());
        for place in order {
            let wish = &mut wishes[place];
            let Some(rest) = bytes_left.checked_sub(bytes[place]) else {
                wish.refused = Some(format!(
                    "it takes {} KiB, and of the {} MiB that all routes of Service {service} may take together \
                     those that come before it leave {} KiB",
                    bytes[place].div_ceil(1024),
                    LARGEST_ROUTES >> 20,
                    bytes_left >> 10
                ));
                continue;
            };
            if counts.get(&wish.set).is_some_and(|count| *count > SURELY_FIT) {
                let left = sets_left.entry(wish.set).or_insert(LARGEST_SET);
                let size: usize =
                    wish.rules.iter().flat_map(WireRule::expressions).map(|e| self.size(e)).sum();
                let Some(rest) = left.checked_sub(size) else {
                    wish.refused = Some(format!(
                        "its expressions take {} KiB when they are compiled, and of the {} MiB that those of \
                         all routes at a port may take together those that come before it leave {} KiB",
                        size >> 10,
                        LARGEST_SET >> 20,
                        *left >> 10
                    ));
                    continue;
                };
                *left = rest;
            }
            bytes_left = rest;
        }
    }

    fn size(&mut self, expression: &str) -> usize {
        let known = self.measured.0.get(expression).or_else(|| self.before.0.get(expression)).copied();
        // One that sidecars cannot compile is not let through by validation; it counts as the largest.
        let size =
            known.unwrap_or_else(|| Pattern::new(expression).map_or(LARGEST, |pattern| pattern.size()));
        self.measured.0.insert(expression.to_owned(), size);
        size
    }
}

impl WireRule {
    /// What it takes in its set, in bytes.
    fn encoded_len(&self) -> usize {
        /// Its key and its length in the set.
        const FRAME: usize = 8;
        FRAME
            + match self {
                Self::Http(rule) => rule.encoded_len(),
                Self::Grpc(rule) => rule.encoded_len(),
                Self::Tcp(rule) => rule.encoded_len(),
            }
    }

    /// The regular expressions of its matches.
    fn expressions(&self) -> Vec<&str> {
        use v1::{header_match, path_match, query_match, text_match};
        fn header(header: &v1::HeaderMatch) -> Option<&str> {
            match &header.value {
                Some(header_match::Value::Regex(expression)) => Some(expression),
                _ => None,
            }
        }
        match self {
            Self::Http(rule) => rule
                .matches
                .iter()
                .flat_map(|wanted| {
                    let path = wanted.path.iter().filter_map(|path| match &path.path {
                        Some(path_match::Path::Regex(expression)) => Some(expression.as_str()),
                        _ => None,
                    });
                    let query = wanted.query.iter().filter_map(|query| match &query.value {
                        Some(query_match::Value::Regex(expression)) => Some(expression.as_str()),
                        _ => None,
                    });
                    path.chain(query).chain(wanted.headers.iter().filter_map(header))
                })
                .collect(),
            Self::Grpc(rule) => rule
                .matches
                .iter()
                .flat_map(|wanted| {
                    let texts = wanted.service.iter().chain(&wanted.method);
                    let texts = texts.filter_map(|text| match &text.text {
                        Some(text_match::Text::Regex(expression)) => Some(expression.as_str()),
                        _ => None,
                    });
                    texts.chain(wanted.headers.iter().filter_map(header))
                })
                .collect(),
            Self::Tcp(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> ServiceName {
        ServiceName::new("shop", "users").unwrap()
    }

    fn wish(set: usize, rank: Rank, rules: Vec<WireRule>) -> Wish {
        Wish { set, route: 0, rank, rules, refused: None }
    }

    /// A rule that takes so much.
    fn large(bytes: usize) -> Vec<WireRule> {
        vec![WireRule::Tcp(v1::TcpRule { route: "x".repeat(bytes), ..v1::TcpRule::default() })]
    }

    /// A rule with so many of the largest expressions.
    fn matching(expressions: usize) -> Vec<WireRule> {
        let value = Some(v1::header_match::Value::Regex("large".into()));
        let header = v1::HeaderMatch { name: "a".into(), value };
        let wanted = v1::HttpMatch { headers: vec![header; expressions], ..v1::HttpMatch::default() };
        vec![WireRule::Http(v1::HttpRule { matches: vec![wanted], ..v1::HttpRule::default() })]
    }

    fn refused(wishes: &[Wish]) -> Vec<bool> {
        wishes.iter().map(|wish| wish.refused.is_some()).collect()
    }

    #[test]
    fn routes_of_others_and_the_youngest_go_first() {
        const PART: usize = 6 << 20;
        let (nothing, mut wishes) = (Measured::default(), Vec::new());
        for rank in [(true, 0), (false, 3), (false, 1)] {
            wishes.push(wish(wishes.len(), rank, large(PART)));
        }
        // A small one still fits in.
        wishes.push(wish(0, (true, 9), large(1000)));
        Room::new(&nothing).refuse(&service(), &mut wishes);
        assert_eq!(refused(&wishes), [true, false, false, false]);
        assert_eq!(
            wishes[0].refused.as_deref(),
            Some(
                "it takes 6145 KiB, and of the 16 MiB that all routes of Service shop/users may take together \
                 those that come before it leave 4095 KiB"
            )
        );
    }

    #[test]
    fn the_expressions_of_each_set_have_a_bound() {
        let before = Measured(HashMap::from([("large".to_owned(), LARGEST)]));
        let mut room = Room::new(&before);
        let mut wishes =
            [(0, 0), (0, 1), (1, 2)].map(|(set, age)| wish(set, (false, age), matching(SURELY_FIT)));
        room.refuse(&service(), &mut wishes);
        assert_eq!(refused(&wishes), [false, true, false]);
        assert_eq!(
            wishes[1].refused.as_deref(),
            Some(
                "its expressions take 32768 KiB when they are compiled, and of the 32 MiB that those of all routes \
                 at a port may take together those that come before it leave 0 KiB"
            )
        );
        // What was measured is known the next time, what nobody has any more is not.
        assert_eq!(room.measured.0.len(), 1);
        let before = room.measured;
        let mut room = Room::new(&before);
        room.refuse(&service(), &mut [wish(0, (false, 0), matching(SURELY_FIT))]);
        assert!(room.measured.0.is_empty(), "there is no need to measure what surely fits");
    }
}
