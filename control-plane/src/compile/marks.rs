//! The marks by which a workload's sidecar tells the requests of one rule from
//! others: clients' sidecars write them, where a policy asks for it.

use std::collections::BTreeMap;

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::routes::told::{self, ToldRule};
use super::traffic::RuleRef;
use crate::source::ObjectName;

/// `KIND/NAMESPACE/ROUTE/RULE`. A rule without a name is known by its place after a `#`, which no name has.
pub(super) fn mark(rule: RuleRef<'_>, place: usize) -> String {
    let name = rule.rule.map_or_else(|| format!("#{place}"), str::to_owned);
    format!("{}/{}/{name}", rule.kind, rule.route)
}

/// A rule, as its mark names it.
pub(super) struct Marked<'a> {
    kind: &'a str,
    route: ObjectName,
    rule: Option<&'a str>,
}

impl Marked<'_> {
    pub(super) fn borrow(&self) -> RuleRef<'_> {
        RuleRef { kind: self.kind, route: &self.route, rule: self.rule }
    }

    /// The rule that [`mark`] made it of.
    fn read(mark: &str) -> Option<Marked<'_>> {
        let mut parts = mark.splitn(4, '/');
        let kind = parts.next()?;
        let route = ObjectName { namespace: parts.next()?.into(), name: parts.next()?.into() };
        let rule = parts.next().filter(|rule| !rule.starts_with('#'));
        Some(Marked { kind, route, rule })
    }
}

/// A port of a service that a rule leads to.
pub(super) struct Led {
    pub(super) service: ServiceName,
    pub(super) port: u32,
}

/// Each mark with its rule and each of the rule's backends.
pub(super) fn each(
    sets: &BTreeMap<ServiceName, Vec<v1::RouteSet>>,
) -> impl Iterator<Item = (&str, Marked<'_>, Led)> {
    let marked = sets.values().flatten().flat_map(told::rules).filter(|rule| !rule.mark.is_empty());
    marked.flat_map(|ToldRule { mark, backends, .. }| {
        backends.iter().filter_map(move |backend| {
            // One that is invalid is no service.
            let service = ServiceName::new(&backend.namespace, &backend.name).ok()?;
            Some((mark, Marked::read(mark)?, Led { service, port: backend.port }))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_one_rule() {
        let marked = Marked::read("HTTPRoute/shop/users/b").unwrap();
        assert_eq!(
            (marked.kind, marked.route.to_string().as_str(), marked.rule),
            ("HTTPRoute", "shop/users", Some("b"))
        );
        assert_eq!(Marked::read("GRPCRoute/shop/users/#3").unwrap().rule, None);
        assert_eq!(mark(marked.borrow(), 1), "HTTPRoute/shop/users/b");
    }
}
