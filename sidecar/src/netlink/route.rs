//! rtnetlink requests (`rtnetlink(7)`): the loopback interface, its address,
//! and the routes that make every address local.

use std::net::IpAddr;

use super::{Attributes, Request};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;

/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;
const IFF_UP: u32 = 1;
const IFA_F_NODAD: u8 = 0x02;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_HOST: u8 = 254;
const RTN_LOCAL: u8 = 2;

/// `ip link set lo up`
pub(crate) fn loopback_up() -> Request {
    let words = [0, LOOPBACK, IFF_UP, IFF_UP];
    let structure: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    request("bringing the loopback interface up", RTM_NEWLINK, 0, Attributes::after(&structure))
}

/// `ip addr add ADDRESS/32 dev lo` (or `/128`)
pub(crate) fn add_address(address: IpAddr) -> Request {
    let bytes = octets(address);
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let mut structure = vec![family(address), bits, IFA_F_NODAD, 0];
    structure.extend(LOOPBACK.to_ne_bytes());
    let body = Attributes::after(&structure).with(IFA_LOCAL, &bytes).with(IFA_ADDRESS, &bytes);
    request("adding the namespace's address", RTM_NEWADDR, NLM_F_CREATE_EXCL, body)
}

/// `ip route add local default dev lo src SOURCE`: every address is here.
pub(crate) fn every_address_local(source: IpAddr) -> Request {
    let scope = if source.is_ipv4() { RT_SCOPE_HOST } else { 0 };
    let structure = [family(source), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_LOCAL, 0, 0, 0, 0];
    let body = Attributes::after(&structure)
        .with(RTA_OIF, &LOOPBACK.to_ne_bytes())
        .with(RTA_PREFSRC, &octets(source));
    request("adding the route that makes every address local", RTM_NEWROUTE, NLM_F_CREATE_EXCL, body)
}

fn request(what: &'static str, kind: u16, flags: u16, body: Attributes) -> Request {
    Request { what, kind, flags, acknowledged: true, body }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).expect("address families are small numbers")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
