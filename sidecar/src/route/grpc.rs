//! Which rule of the GRPCRoutes of a port a call falls to.
//!
//! A call's path is `/package.Service/Method`. Precedence is that of Gateway
//! API, per match and across all routes: the characters of the matching
//! service, those of the matching method, the number of header conditions, the
//! order of the rules. All exact names that match one call are equally long, so
//! naming comes before not naming; an expression counts as more than nothing
//! and less than any exact name.

use std::sync::Arc;

use http::HeaderName;

use crate::route::hash::ConfiguredMap;
use crate::route::head::Head;
use crate::route::matching::{Bucket, Candidate, Lookup, NameMatch, PathTest, Subject, Subjects, Test, call};
use crate::route::rule::Rule;

/// One match of a GRPCRoute's rule: all its parts must hold.
#[derive(Debug, Clone, Default)]
pub struct GrpcMatch {
    /// The service with its package; `None`: any.
    pub service: Option<NameMatch>,
    /// The method; `None`: any.
    pub method: Option<NameMatch>,
    /// Conditions on headers (metadata). Of several standard ones for a name the first counts.
    pub headers: Vec<(HeaderName, Test)>,
}

impl GrpcMatch {
    /// What its expressions take, in bytes.
    pub fn size(&self) -> usize {
        let names = [&self.service, &self.method].into_iter().map(|name| match name {
            Some(NameMatch::Regex(pattern)) => pattern.size(),
            Some(NameMatch::Exact(_)) | None => 0,
        });
        names.chain(self.headers.iter().map(|(_, test)| test.size())).sum()
    }
}

/// The rules of all GRPCRoutes that hold for a port, compiled.
#[derive(Debug)]
pub struct GrpcTable {
    subjects: Box<[Subject]>,
    services: ConfiguredMap<Box<[u8]>, Methods<Bucket>>,
    /// Matches with an expression for the service.
    patterns: Bucket,
    /// Matches that name no service.
    any: Methods<Bucket>,
}

/// Matches that say the same about the service.
#[derive(Debug, Default)]
struct Methods<T> {
    exact: ConfiguredMap<Box<[u8]>, T>,
    /// Those with an expression for the method, then those that name none.
    rest: T,
}

impl GrpcTable {
    /// Compiles rules with their matches, in the order that settles ties: by
    /// the route's age, then its namespace and name, then the rule's place. A
    /// rule without a match takes every call.
    pub fn new(rules: impl IntoIterator<Item = (Vec<GrpcMatch>, Arc<Rule>)>) -> Self {
        let mut subjects = Subjects::default();
        let mut services: ConfiguredMap<Box<[u8]>, Methods<Vec<Candidate>>> = ConfiguredMap::default();
        let mut any = Methods::<Vec<Candidate>>::default();
        let mut patterns = Vec::new();
        for (mut matches, rule) in rules {
            if matches.is_empty() {
                matches.push(GrpcMatch::default());
            }
            for GrpcMatch { service, method, headers } in matches {
                let candidate = |path| Candidate {
                    path,
                    method: None,
                    method_rank: match method {
                        None => 0,
                        Some(NameMatch::Regex(_)) => 1,
                        Some(NameMatch::Exact(_)) => 2,
                    },
                    conditions: subjects.conditions(headers, Vec::new()),
                    rule: rule.clone(),
                };
                let methods = match service {
                    Some(NameMatch::Regex(pattern)) => {
                        let path = PathTest::Call { service: Some(pattern), method: method.clone() };
                        patterns.push(candidate(path));
                        continue;
                    }
                    Some(NameMatch::Exact(name)) => services.entry(name).or_default(),
                    None => &mut any,
                };
                match &method {
                    Some(NameMatch::Exact(name)) => {
                        methods.exact.entry(name.clone()).or_default().push(candidate(PathTest::Any));
                    }
                    Some(NameMatch::Regex(_)) => {
                        let path = PathTest::Call { service: None, method: method.clone() };
                        methods.rest.push(candidate(path));
                    }
                    None => methods.rest.push(candidate(PathTest::Any)),
                }
            }
        }
        Self {
            subjects: subjects.into_list(),
            services: services.into_iter().map(|(name, methods)| (name, methods.compile())).collect(),
            patterns: Bucket::new(patterns),
            any: any.compile(),
        }
    }

    /// The rule that a call falls to; `None`: no rule matches, which is
    /// answered with status 12, UNIMPLEMENTED. A path that names no method falls
    /// to rules that name none.
    pub fn select<H: Head>(&self, head: &H) -> Option<&Arc<Rule>> {
        let lookup = Lookup::new(head, &self.subjects);
        let Some((service, method)) = call(head.path()) else {
            return self.any.rest.find(&lookup);
        };
        self.services
            .get(service)
            .and_then(|methods| methods.find(method, &lookup))
            .or_else(|| self.patterns.find(&lookup))
            .or_else(|| self.any.find(method, &lookup))
    }
}

impl Methods<Vec<Candidate>> {
    fn compile(self) -> Methods<Bucket> {
        let exact = self.exact.into_iter().map(|(name, candidates)| (name, Bucket::new(candidates)));
        Methods { exact: exact.collect(), rest: Bucket::new(self.rest) }
    }
}

impl Methods<Bucket> {
    fn find<H: Head>(&self, method: &[u8], lookup: &Lookup<'_, H>) -> Option<&Arc<Rule>> {
        let exact = self.exact.get(method).and_then(|bucket| bucket.find(lookup));
        exact.or_else(|| self.rest.find(lookup))
    }
}
