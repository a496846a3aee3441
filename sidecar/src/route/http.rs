//! Which rule of the HTTPRoutes of a port a request falls to.
//!
//! Precedence is that of Gateway API, per match and across all routes: an
//! exact path, the longest prefix, then expressions; among matches of equal
//! path those that name a method, then those with more header conditions, then
//! those with more query conditions, then the order of the rules. Where the
//! specification leaves the order of expressions open, they come last, so that
//! a request that anything else matches costs no search.

use std::sync::Arc;

use heddle_api::pattern::Pattern;
use http::HeaderName;

use crate::route::hash::ConfiguredMap;
use crate::route::head::Head;
use crate::route::matching::{Bucket, Candidate, Lookup, PathTest, Subject, Subjects, Test};
use crate::route::prefix::Prefixes;
use crate::route::rule::Rule;

/// One match of an HTTPRoute's rule: all its parts must hold.
#[derive(Debug, Clone, Default)]
pub struct HttpMatch {
    /// What the path must be.
    pub path: PathMatch,
    /// The method's token, if only one is meant.
    pub method: Option<Box<[u8]>>,
    /// Conditions on headers. Of several standard ones for a name the first counts.
    pub headers: Vec<(HeaderName, Test)>,
    /// Conditions on query parameters, likewise.
    pub query: Vec<(Box<[u8]>, Test)>,
}

/// What a path must be. Paths are in the normal form of [`crate::sanitize::path`].
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// This path, final slash included.
    Exact(Box<[u8]>),
    /// A path of which these are the first elements; a final slash makes no difference.
    Prefix(Box<[u8]>),
    /// A path that the expression matches as a whole.
    Regex(Pattern),
}

impl HttpMatch {
    /// What its expressions take, in bytes.
    pub fn size(&self) -> usize {
        let path = match &self.path {
            PathMatch::Regex(pattern) => pattern.size(),
            PathMatch::Exact(_) | PathMatch::Prefix(_) => 0,
        };
        let headers = self.headers.iter().map(|(_, test)| test.size());
        path + headers.chain(self.query.iter().map(|(_, test)| test.size())).sum::<usize>()
    }
}

impl Default for PathMatch {
    /// Any path.
    fn default() -> Self {
        Self::Prefix(b"/".as_slice().into())
    }
}

/// The rules of all HTTPRoutes that hold for a port, compiled.
#[derive(Debug)]
pub struct HttpTable {
    subjects: Box<[Subject]>,
    exact: ConfiguredMap<Box<[u8]>, Bucket>,
    prefix: Prefixes<Bucket>,
    regex: Bucket,
}

impl HttpTable {
    /// Compiles rules with their matches, in the order that settles ties: by
    /// the route's age, then its namespace and name, then the rule's place. A
    /// rule without a match takes every request.
    pub fn new(rules: impl IntoIterator<Item = (Vec<HttpMatch>, Arc<Rule>)>) -> Self {
        let mut subjects = Subjects::default();
        let mut exact: ConfiguredMap<Box<[u8]>, Vec<Candidate>> = ConfiguredMap::default();
        let mut prefix: Prefixes<Vec<Candidate>> = Prefixes::default();
        let mut regex = Vec::new();
        for (mut matches, rule) in rules {
            if matches.is_empty() {
                matches.push(HttpMatch::default());
            }
            for HttpMatch { path, method, headers, query } in matches {
                let mut candidate = Candidate {
                    path: PathTest::Any,
                    method_rank: method.is_some().into(),
                    method,
                    conditions: subjects.conditions(headers, query),
                    rule: rule.clone(),
                };
                match path {
                    PathMatch::Exact(path) => exact.entry(path).or_default().push(candidate),
                    PathMatch::Prefix(path) => {
                        prefix.entry(&path).get_or_insert_default().push(candidate);
                    }
                    PathMatch::Regex(pattern) => {
                        candidate.path = PathTest::Path(pattern);
                        regex.push(candidate);
                    }
                }
            }
        }
        Self {
            subjects: subjects.into_list(),
            exact: exact.into_iter().map(|(path, candidates)| (path, Bucket::new(candidates))).collect(),
            prefix: prefix.map(Bucket::new),
            regex: Bucket::new(regex),
        }
    }

    /// The rule that a request falls to; `None`: no rule matches, which is
    /// answered with 404.
    pub fn select<H: Head>(&self, head: &H) -> Option<&Arc<Rule>> {
        let lookup = Lookup::new(head, &self.subjects);
        let path = head.path();
        self.exact
            .get(path)
            .and_then(|bucket| bucket.find(&lookup))
            .or_else(|| self.prefix.of(path).find_map(|bucket| bucket.find(&lookup)))
            .or_else(|| self.regex.find(&lookup))
    }
}
