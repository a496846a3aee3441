//! The sets of rules of one Service after the other: which routes are in each, and
//! what those are told that are not.

use std::collections::BTreeMap;

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::room::{Measured, Room, Wish};
use super::rules::{AtPort, Rules, WireRule};
use super::{Claim, Member, Policies, Protocol, Verdict};
use crate::compile::services::Services;
use crate::compile::traffic::RuleRef;

/// The routes that claim a port, per audience: the port, and the clients' namespace or nothing.
pub(super) type Audiences<'a> = BTreeMap<(u32, &'a str), Vec<Claim>>;

/// What binding routes to one Service after the other needs.
pub(super) struct Binder<'r, 'a> {
    routes: &'r [Member<'a>],
    /// The place of each route among all, from the oldest on.
    seniority: Vec<usize>,
    services: &'r Services,
    policies: &'r Policies<'r>,
    room: Room<'r>,
    verdicts: BTreeMap<Claim, Verdict>,
}

impl<'r, 'a> Binder<'r, 'a> {
    pub(super) fn new(
        routes: &'r [Member<'a>],
        services: &'r Services,
        policies: &'r Policies<'r>,
        measured: &'r Measured,
    ) -> Self {
        let (seniority, room) = (seniority(routes), Room::new(measured));
        Self { routes, seniority, services, policies, room, verdicts: BTreeMap::new() }
    }

    /// What came of each claim, and what was measured for it.
    pub(super) fn into_verdicts(self) -> (BTreeMap<Claim, Verdict>, Measured) {
        (self.verdicts, self.room.measured)
    }

    /// The sets of a Service.
    pub(super) fn bind(&mut self, service: &ServiceName, audiences: Audiences<'_>) -> Vec<v1::RouteSet> {
        let ports = self.services.resources.get(service).map(|service| service.ports.as_slice());
        let name = |number: u32| {
            let port = ports.unwrap_or_default().iter().find(|port| port.port == number);
            port.map_or("", |port| port.name.as_str())
        };
        let mut wishes = Vec::new();
        for (set, ((port, client), claims)) in audiences.iter().enumerate() {
            for index in self.members(claims, *port) {
                wishes.push(Wish {
                    set,
                    route: index,
                    rank: (!client.is_empty(), self.seniority[index]),
                    rules: at_port(&self.routes[index], service, name(*port), self.policies),
                    refused: None,
                });
            }
        }
        self.room.refuse(service, &mut wishes);
        let (mut sets, mut wishes) = (Vec::new(), wishes.into_iter().peekable());
        for (set, ((port, client), claims)) in audiences.into_iter().enumerate() {
            let (mut protocol, mut rules, mut outcomes) = (None, Vec::new(), BTreeMap::new());
            while let Some(wish) = wishes.next_if(|wish| wish.set == set) {
                if wish.refused.is_none() {
                    protocol = Some(self.routes[wish.route].protocol);
                    rules.extend(wish.rules);
                }
                outcomes.insert(wish.route, wish.refused);
            }
            for claim in claims {
                let Some(outcome) = outcomes.get(&claim.0) else { continue };
                let verdict = self.verdicts.entry(claim).or_default();
                match outcome {
                    None => verdict.won = true,
                    Some(reason) => {
                        verdict.no_room.push(format!("there is no room for it at port {port}: {reason}"))
                    }
                }
            }
            if let Some(protocol) = protocol {
                let rules = Some(protocol.rules(rules));
                sets.push(v1::RouteSet { port, client_namespace: client.into(), rules });
            }
        }
        sets
    }

    /// The routes that a port's audience is about, of those that claim it, from the oldest on; the others are
    /// told that they lost it.
    fn members(&mut self, claims: &[Claim], port: u32) -> Vec<usize> {
        let Some(winner) = claims.iter().map(|(route, _)| &self.routes[*route]).min_by_key(|r| r.precedence)
        else {
            return Vec::new();
        };
        let mut members: Vec<usize> = Vec::new();
        for claim in claims {
            // Two references of one route may mean the same port in different words.
            if members.last() == Some(&claim.0) {
                continue;
            }
            let alone = winner.protocol == Protocol::Tcp && !members.is_empty();
            if self.routes[claim.0].kind != winner.kind || alone {
                let verdict = self.verdicts.entry(*claim).or_default();
                verdict.lost.push(format!("port {port} belongs to {} {}", winner.kind, winner.name));
            } else {
                members.push(claim.0);
            }
        }
        members
    }
}

/// The place of each route among all, from the oldest on, as ties are decided.
fn seniority(routes: &[Member<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..routes.len()).collect();
    order.sort_by_key(|index| {
        let route = &routes[*index];
        (route.created, route.name, route.precedence)
    });
    let mut places = vec![0; routes.len()];
    for (place, index) in order.into_iter().enumerate() {
        places[index] = place;
    }
    places
}

/// The rules of a route, each with its policies at that port.
fn at_port(route: &Member<'_>, service: &ServiceName, port: &str, policies: &Policies<'_>) -> Vec<WireRule> {
    let rules = match &route.rules {
        Rules::Requests(rules) => rules,
        Rules::Tcp(rule) => return vec![WireRule::Tcp(rule.clone())],
    };
    let rules = rules.iter().enumerate().map(|(index, rule)| {
        let name = route.rule_names.get(index).copied().flatten();
        let place = RuleRef { kind: route.kind, route: route.name, rule: name };
        rule.clone().at(AtPort {
            policy: policies.traffic.rule(service, port, place),
            faults: policies.faults.rule(place),
            mark: policies.mark(place, index, &rule.backends),
            canary: policies.canary(rule.canary.as_ref(), service, port, place),
        })
    });
    rules.collect()
}

impl Protocol {
    /// The rules of a set, which are all of this kind.
    fn rules(self, rules: Vec<WireRule>) -> v1::route_set::Rules {
        let (mut http, mut grpc, mut tcp) = (Vec::new(), Vec::new(), None);
        for rule in rules {
            match rule {
                WireRule::Http(rule) => http.push(rule),
                WireRule::Grpc(rule) => grpc.push(rule),
                WireRule::Tcp(rule) => tcp = Some(rule),
            }
        }
        match self {
            Self::Http => v1::route_set::Rules::Http(v1::HttpRoutes { rules: http }),
            Self::Grpc => v1::route_set::Rules::Grpc(v1::GrpcRoutes { rules: grpc }),
            Self::Tcp => v1::route_set::Rules::Tcp(v1::TcpRoutes { rule: tcp }),
        }
    }
}
