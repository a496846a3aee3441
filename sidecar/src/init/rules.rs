//! Which packets of a pod go where. Pure: settings in, rules out.
//!
//! A connection that the application makes, to anywhere but loopback, is
//! redirected to the sidecar's outbound listener; its DNS queries to the
//! sidecar's responder; what comes in from other hosts to the inbound listener.
//! What the sidecar's own user does is left alone, save for the call by which it
//! [sees that there are rules](redirection), and its queries to resolvers
//! are not tracked: an application's socket of the same port, closed a moment
//! ago, would otherwise lend them its redirection, and they would come back.
//!
//! Each rule has a comment that tells all about it, so that comparing comments
//! compares rules, and `nft list ruleset` explains itself.

use std::ops::RangeInclusive;

use super::InitArgs;
use super::spec::Network;
use crate::netlink::Request;
use crate::netlink::nftables::{self, Family, Hook, Transport};
use crate::pod::{self, redirection};

const DNS: u16 = 53;

/// Where a rule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// Which packets out of the pod are tracked.
    TrackOutput,
    /// Which packets into the pod are tracked.
    TrackInput,
    /// What the pod's processes begin.
    Outbound,
    /// What others begin.
    Inbound,
}

impl Chain {
    pub(super) const ALL: [Self; 4] = [Self::TrackOutput, Self::TrackInput, Self::Outbound, Self::Inbound];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TrackOutput => "track-output",
            Self::TrackInput => "track-input",
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }

    const fn hook(self) -> Hook {
        match self {
            Self::TrackOutput => Hook::RawOutput,
            Self::TrackInput => Hook::RawPrerouting,
            Self::Outbound => Hook::NatOutput,
            Self::Inbound => Hook::NatPrerouting,
        }
    }

    /// The table of iptables that it belongs to.
    pub(super) const fn table(self) -> &'static str {
        match self {
            Self::TrackOutput | Self::TrackInput => "raw",
            Self::Outbound | Self::Inbound => "nat",
        }
    }

    /// The chain of iptables that leads to it.
    pub(super) const fn hooked(self) -> &'static str {
        match self {
            Self::TrackOutput | Self::Outbound => "OUTPUT",
            Self::TrackInput | Self::Inbound => "PREROUTING",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Match {
    User(u32),
    ToLoopback,
    FromLoopback,
    Transport(Transport),
    Ports(RangeInclusive<u16>),
    SourcePort(u16),
    Network(Network),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    LeaveAlone,
    Untracked,
    RedirectTo(u16),
}

/// One rule: what it does with packets to which all of it applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    chain: Chain,
    matches: Vec<Match>,
    action: Action,
    comment: String,
}

/// The rules for these settings, in their order.
pub(super) fn of(args: &InitArgs) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut add = |chain, matches: Vec<Match>, action, comment: String| {
        rules.push(Rule { chain, matches, action, comment });
    };
    let user = args.sidecar_uid;
    let (tcp, udp) = (Match::Transport(Transport::Tcp), Match::Transport(Transport::Udp));
    let one = |port: u16| Match::Ports(port..=port);
    let has_dns = !args.skip_outbound_ports.contains(DNS);

    if has_dns {
        add(
            Chain::TrackOutput,
            vec![Match::User(user), udp.clone(), one(DNS)],
            Action::Untracked,
            format!("queries of the sidecar (user {user}) to resolvers"),
        );
        add(Chain::TrackInput, vec![Match::FromLoopback], Action::LeaveAlone, "within the pod".into());
        add(
            Chain::TrackInput,
            vec![udp.clone(), Match::SourcePort(DNS)],
            Action::Untracked,
            "what resolvers answer".into(),
        );
    }

    let outbound = Chain::Outbound;
    add(
        outbound,
        vec![Match::User(user), Match::ToLoopback, tcp.clone(), one(redirection::PORT)],
        Action::RedirectTo(pod::OUTBOUND_PORT),
        format!("by which the sidecar (user {user}) sees that there are rules, to {}", pod::OUTBOUND_PORT),
    );
    add(outbound, vec![Match::User(user)], Action::LeaveAlone, format!("of the sidecar (user {user})"));
    add(outbound, vec![Match::ToLoopback], Action::LeaveAlone, "within the pod".into());
    for ports in &args.skip_outbound_ports.0 {
        let comment = format!("skipped: to ports {}-{}", ports.start(), ports.end());
        add(outbound, vec![tcp.clone(), Match::Ports(ports.clone())], Action::LeaveAlone, comment);
    }
    if has_dns {
        for (transport, name) in [(&udp, "UDP"), (&tcp, "TCP")] {
            let action = Action::RedirectTo(pod::DNS_PORT);
            let comment = format!("DNS by {name}, to {}", pod::DNS_PORT);
            add(outbound, vec![transport.clone(), one(DNS)], action, comment);
        }
    }
    for network in &args.skip_outbound_cidrs.0 {
        let matches = vec![tcp.clone(), Match::Network(*network)];
        add(outbound, matches, Action::LeaveAlone, format!("skipped: to {network}"));
    }
    let comment = format!("what the application calls, to {}", pod::OUTBOUND_PORT);
    add(outbound, vec![tcp.clone()], Action::RedirectTo(pod::OUTBOUND_PORT), comment);

    let inbound = Chain::Inbound;
    add(inbound, vec![Match::FromLoopback], Action::LeaveAlone, "within the pod".into());
    for (port, what) in
        [(pod::ADMIN_PORT, "probes and metrics"), (pod::INBOUND_PORT, "to the sidecar itself")]
    {
        add(inbound, vec![tcp.clone(), one(port)], Action::LeaveAlone, format!("{what}, {port}"));
    }
    for ports in &args.skip_inbound_ports.0 {
        let comment = format!("skipped: ports {}-{}", ports.start(), ports.end());
        add(inbound, vec![tcp.clone(), Match::Ports(ports.clone())], Action::LeaveAlone, comment);
    }
    let comment = format!("what others call, to {}", pod::INBOUND_PORT);
    add(inbound, vec![tcp], Action::RedirectTo(pod::INBOUND_PORT), comment);
    rules
}

/// The requests that make the chains which `rules` stand in.
pub(super) fn chains(rules: &[Rule]) -> impl Iterator<Item = Request> {
    let used = |chain: &Chain| rules.iter().any(|rule| rule.chain == *chain);
    Chain::ALL.into_iter().filter(used).map(|chain| nftables::add_chain(chain.name(), chain.hook()))
}

/// Whether `found`, comments with their chains, are those of `rules` in a table of this family.
pub(super) fn are(rules: &[Rule], found: &[(String, String)], family: Family) -> bool {
    let expected = rules.iter().filter(|rule| rule.is_for(family));
    // The kernel lists chain by chain, in whatever order.
    Chain::ALL.into_iter().all(|chain| {
        let found = found.iter().filter(|(name, _)| name == chain.name()).map(|(_, comment)| comment);
        found.eq(expected.clone().filter(|rule| rule.chain == chain).map(|rule| &rule.comment))
    }) && found.len() == expected.clone().count()
}

impl Rule {
    /// Whether it has a meaning in a table of this family.
    pub(super) fn is_for(&self, family: Family) -> bool {
        self.matches.iter().all(|matching| match (matching, family) {
            (Match::Network(network), Family::Ip) => network.address.is_ipv4(),
            (Match::Network(network), Family::Ip6) => network.address.is_ipv6(),
            _ => true,
        })
    }

    /// Whether it stands in this chain.
    pub(super) fn is_in(&self, chain: Chain) -> bool {
        self.chain == chain
    }

    /// What follows the chain's name in `iptables -A`.
    pub(super) fn in_words_of_iptables(&self) -> String {
        let mut words = String::new();
        for matching in &self.matches {
            words += &match matching {
                Match::User(id) => format!("-m owner --uid-owner {id} "),
                Match::ToLoopback => "-o lo ".into(),
                Match::FromLoopback => "-i lo ".into(),
                Match::Transport(Transport::Tcp) => "-p tcp ".into(),
                Match::Transport(Transport::Udp) => "-p udp ".into(),
                Match::Transport(other) => format!("-p {} ", *other as u8),
                Match::Ports(ports) if ports.start() == ports.end() => format!("--dport {} ", ports.start()),
                Match::Ports(ports) => format!("--dport {}:{} ", ports.start(), ports.end()),
                Match::SourcePort(port) => format!("--sport {port} "),
                Match::Network(network) => format!("-d {network} "),
            };
        }
        let action = match self.action {
            Action::LeaveAlone => "RETURN".into(),
            Action::Untracked => "CT --notrack".into(),
            Action::RedirectTo(port) => format!("REDIRECT --to-ports {port}"),
        };
        format!("{words}-m comment --comment \"{}\" -j {action}", self.comment)
    }

    /// The request that appends it to its chain.
    pub(super) fn request(&self) -> Request {
        let what = match self.chain {
            Chain::TrackOutput | Chain::TrackInput => "adding a rule about the tracking of DNS (nft_ct)",
            Chain::Outbound => "adding a rule for outbound connections (nft_redir)",
            Chain::Inbound => "adding a rule for inbound connections (nft_redir)",
        };
        let rule = nftables::Rule::new(what).comment(&self.comment);
        let rule = self.matches.iter().fold(rule, |rule, matching| match matching {
            Match::User(id) => rule.user(*id),
            Match::ToLoopback => rule.leaves_by_loopback(),
            Match::FromLoopback => rule.came_by_loopback(),
            Match::Transport(transport) => rule.transport(*transport),
            Match::Ports(ports) => rule.ports(ports),
            Match::SourcePort(port) => rule.source_port(*port),
            Match::Network(network) => rule.destined_for(network.address, network.prefix),
        });
        let rule = match self.action {
            Action::LeaveAlone => rule.accept(),
            Action::Untracked => rule.notrack(),
            Action::RedirectTo(port) => rule.redirect(port),
        };
        rule.append_to(self.chain.name())
    }
}

#[cfg(test)]
mod tests;
