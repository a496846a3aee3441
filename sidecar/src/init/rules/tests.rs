use std::net::IpAddr;

use clap::Parser;
use proptest::prelude::*;

use super::*;

#[derive(Parser)]
struct Tool {
    #[command(flatten)]
    args: InitArgs,
}

fn rules(flags: &[&str]) -> Vec<Rule> {
    of(&Tool::parse_from(["init"].iter().chain(flags)).args)
}

/// A packet that begins something.
#[derive(Debug, Clone)]
struct Packet {
    user: u32,
    loopback: bool,
    transport: Transport,
    source_port: u16,
    to: (IpAddr, u16),
}

/// What the first rule of `chain` that applies does with the packet.
fn fate(rules: &[Rule], chain: Chain, packet: &Packet) -> Action {
    let applies = |matching: &Match| match matching {
        Match::User(id) => packet.user == *id,
        Match::ToLoopback | Match::FromLoopback => packet.loopback,
        Match::Transport(transport) => packet.transport == *transport,
        Match::Ports(ports) => ports.contains(&packet.to.1),
        Match::SourcePort(port) => packet.source_port == *port,
        Match::Network(network) => match (network.address, packet.to.0) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(network.prefix)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(network.prefix)
            }
            _ => false,
        },
    };
    let mut rules = rules.iter().filter(|rule| rule.chain == chain);
    let first = rules.find(|rule| rule.matches.iter().all(applies));
    first.map_or(Action::LeaveAlone, |rule| rule.action)
}

fn tcp(user: u32, to: &str, port: u16) -> Packet {
    let to = (to.parse().unwrap(), port);
    Packet { user, loopback: false, transport: Transport::Tcp, source_port: 40_000, to }
}

#[test]
fn what_the_application_calls_goes_to_the_sidecar_and_what_the_sidecar_calls_does_not() {
    let rules = rules(&[]);
    let fate = |packet: &Packet| fate(&rules, Chain::Outbound, packet);
    assert_eq!(fate(&tcp(1000, "10.0.0.1", 80)), Action::RedirectTo(7101));
    assert_eq!(fate(&tcp(0, "fd00::1", 443)), Action::RedirectTo(7101));
    assert_eq!(fate(&tcp(7100, "10.0.0.1", 80)), Action::LeaveAlone);
    assert_eq!(fate(&Packet { loopback: true, ..tcp(1000, "10.1.0.9", 80) }), Action::LeaveAlone);
    let udp = |port| Packet { transport: Transport::Udp, ..tcp(1000, "10.96.0.10", port) };
    assert_eq!(fate(&udp(53)), Action::RedirectTo(7153));
    assert_eq!(fate(&udp(443)), Action::LeaveAlone);
    assert_eq!(fate(&tcp(1000, "10.96.0.10", 53)), Action::RedirectTo(7153));
    assert_eq!(fate(&Packet { user: 7100, ..udp(53) }), Action::LeaveAlone);
}

#[test]
fn the_sidecar_is_called_by_itself_at_one_port_of_loopback_and_by_nobody_else() {
    let rules = rules(&["--skip-outbound-ports", "7199"]);
    let fate = |packet: &Packet| fate(&rules, Chain::Outbound, packet);
    for ip in ["127.0.0.1", "::1"] {
        let own = Packet { loopback: true, ..tcp(7100, ip, 7199) };
        assert_eq!(fate(&own), Action::RedirectTo(7101));
        for other in [
            Packet { user: 1000, ..own.clone() },
            Packet { to: (own.to.0, 7198), ..own.clone() },
            Packet { loopback: false, ..own.clone() },
            Packet { transport: Transport::Udp, ..own },
        ] {
            assert_eq!(fate(&other), Action::LeaveAlone, "{other:?}");
        }
    }
}

#[test]
fn what_others_call_goes_to_the_sidecar_save_its_probes() {
    let rules = rules(&["--skip-inbound-ports", "9000-9001"]);
    let fate = |port| fate(&rules, Chain::Inbound, &tcp(0, "10.1.0.9", port));
    assert_eq!([80, 7101, 7153].map(fate), [Action::RedirectTo(7102); 3]);
    assert_eq!([7190, 7102, 9000, 9001].map(fate), [Action::LeaveAlone; 4]);
    assert_eq!(fate(9002), Action::RedirectTo(7102));
}

#[test]
fn what_is_skipped_is_left_alone_but_dns_of_a_skipped_network_is_not() {
    let skipping = rules(&["--skip-outbound-ports", "5432", "--skip-outbound-cidrs", "10.0.0.0/8,fd00::/8"]);
    let of = |packet: &Packet| fate(&skipping, Chain::Outbound, packet);
    assert_eq!(of(&tcp(1, "192.0.2.1", 5432)), Action::LeaveAlone);
    assert_eq!(of(&tcp(1, "10.255.0.1", 80)), Action::LeaveAlone);
    assert_eq!(of(&tcp(1, "11.0.0.1", 80)), Action::RedirectTo(7101));
    assert_eq!(of(&tcp(1, "fdff::1", 80)), Action::LeaveAlone);
    assert_eq!(of(&tcp(1, "10.0.0.10", 53)), Action::RedirectTo(7153));
    let without_dns = rules(&["--skip-outbound-ports", "53"]);
    let udp = Packet { transport: Transport::Udp, ..tcp(1, "10.0.0.10", 53) };
    assert_eq!(fate(&without_dns, Chain::Outbound, &udp), Action::LeaveAlone);
    assert_eq!(chains(&without_dns).count(), 2);
}

#[test]
fn queries_of_the_sidecar_and_their_answers_are_not_tracked() {
    let rules = rules(&["--sidecar-uid", "42"]);
    let query = Packet { transport: Transport::Udp, ..tcp(42, "10.96.0.10", 53) };
    assert_eq!(fate(&rules, Chain::TrackOutput, &query), Action::Untracked);
    assert_eq!(fate(&rules, Chain::TrackOutput, &Packet { user: 1, ..query.clone() }), Action::LeaveAlone);
    let answer = Packet { source_port: 53, ..query };
    assert_eq!(fate(&rules, Chain::TrackInput, &answer), Action::Untracked);
    assert_eq!(fate(&rules, Chain::TrackInput, &Packet { loopback: true, ..answer }), Action::LeaveAlone);
}

#[test]
fn rules_are_told_from_those_of_other_settings_by_their_comments() {
    let listed = |rules: &[Rule]| -> Vec<(String, String)> {
        rules.iter().map(|rule| (rule.chain.name().to_owned(), rule.comment.clone())).collect()
    };
    let plain = rules(&[]);
    assert!(are(&plain, &listed(&plain), Family::Inet));
    for other in [
        rules(&["--sidecar-uid", "1"]),
        rules(&["--skip-inbound-ports", "1"]),
        rules(&["--skip-outbound-ports", "1"]),
        rules(&["--skip-outbound-cidrs", "10.0.0.0/8"]),
    ] {
        assert!(!are(&plain, &listed(&other), Family::Inet));
        assert!(!are(&other, &listed(&plain), Family::Inet));
    }
    let mut more = listed(&plain);
    more.push(("foreign".into(), String::new()));
    assert!(!are(&plain, &more, Family::Inet));
    assert!(!are(&plain, &[], Family::Inet));
    let mixed = rules(&["--skip-outbound-cidrs", "10.0.0.0/8,fd00::/8"]);
    let of_ip: Vec<Rule> = mixed.iter().filter(|rule| rule.is_for(Family::Ip)).cloned().collect();
    assert_eq!(of_ip.len(), mixed.len() - 1);
    assert!(are(&mixed, &listed(&of_ip), Family::Ip) && !are(&mixed, &listed(&of_ip), Family::Ip6));
}

proptest! {
    /// Whatever is skipped, nothing of the application goes out by TCP unless a setting says so.
    #[test]
    fn nothing_goes_around_the_sidecar_unless_it_is_skipped(
        user in any::<u32>(),
        to in any::<u32>(),
        port in 1_u16..,
        skipped in proptest::collection::vec(1_u16.., 0..4),
        network in (any::<u32>(), 0_u8..=32),
    ) {
        let ports = skipped.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let cidr = format!("{}/{}", std::net::Ipv4Addr::from(network.0), network.1);
        let rules = rules(&["--skip-outbound-ports", &ports, "--skip-outbound-cidrs", &cidr]);
        let packet = tcp(user, &std::net::Ipv4Addr::from(to).to_string(), port);
        let in_network = network.1 == 0 || (network.0 ^ to) >> (32 - network.1) == 0;
        let expected = if user == 7100 || skipped.contains(&port) {
            Action::LeaveAlone
        } else if port == DNS {
            Action::RedirectTo(7153)
        } else if in_network {
            Action::LeaveAlone
        } else {
            Action::RedirectTo(7101)
        };
        prop_assert_eq!(fate(&rules, Chain::Outbound, &packet), expected);
    }
}
