//! nftables requests (`linux/netfilter/nf_tables.h`): one table, of the `inet`
//! family unless [`in_family`] says another, with base chains, rules and sets
//! of ports, sent as one transaction.
//!
//! [`Rule`] composes the expressions that the namespace's rules need; a rule
//! goes on to its next expression only while the one before matched.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::{Attributes, Netlink, Refused, Request, attribute};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;

const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const SOCKET_WILDCARD: u32 = 2;
const VERDICT_REGISTER: u32 = 0;
const VERDICT_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;

/// nft's name for ports as set keys, so that `nft list` prints them as such.
const TYPE_INET_SERVICE: u32 = 13;

/// Elements of one request: far below an attribute's 64 KiB at 16 bytes each.
const ELEMENTS_PER_REQUEST: usize = 1000;

/// Every request is about this one table.
const TABLE: &str = "heddle";

/// The interface index of loopback, in every network namespace.
const LOOPBACK: u32 = 1;

/// The kind of user data that nft shows as a rule's comment (`NFTNL_UDATA_RULE_COMMENT`).
const COMMENT: u8 = 0;

/// What packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Family {
    /// Both; NAT in it needs Linux 5.2.
    Inet = NFPROTO_INET,
    /// IPv4.
    Ip = NFPROTO_IPV4,
    /// IPv6.
    Ip6 = NFPROTO_IPV6,
}

/// Transport protocols by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Transport {
    /// ICMP
    Icmp = 1,
    /// TCP
    Tcp = 6,
    /// UDP
    Udp = 17,
    /// ICMP for IPv6
    Icmp6 = 58,
}

/// Where a base chain hooks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// `type filter hook prerouting priority mangle`
    Prerouting,
    /// `type nat hook output priority dstnat`
    NatOutput,
    /// `type nat hook prerouting priority dstnat`
    NatPrerouting,
    /// `type filter hook output priority raw`: before connections are tracked
    RawOutput,
    /// `type filter hook prerouting priority raw`
    RawPrerouting,
}

/// The same request about the table of another family.
pub(crate) fn in_family(mut request: Request, family: Family) -> Request {
    if let Some(first) = request.body.0.first_mut() {
        // `struct nfgenmsg` begins with the family.
        *first = family as u8;
    }
    request
}

/// Wraps `requests` into one transaction.
pub(crate) fn transaction(requests: impl IntoIterator<Item = Request>) -> Vec<Request> {
    let edge = |kind, what| {
        // The resource id of the batch is the subsystem, big-endian.
        let body = Attributes::after(&[NFPROTO_UNSPEC, 0, 0, 10]);
        Request { what, kind, flags: 0, acknowledged: false, body }
    };
    let mut all = vec![edge(NFNL_MSG_BATCH_BEGIN, "beginning an nftables transaction")];
    all.extend(requests);
    all.push(edge(NFNL_MSG_BATCH_END, "ending an nftables transaction"));
    all
}

/// Makes the table.
pub(crate) fn add_table() -> Request {
    request("adding the nftables table", NFT_MSG_NEWTABLE, NLM_F_CREATE, body().with_text(1, TABLE))
}

/// Deletes the table with everything in it.
pub(crate) fn delete_table() -> Request {
    request("deleting the nftables table", NFT_MSG_DELTABLE, 0, body().with_text(1, TABLE))
}

/// The comments of the table's rules, with the chain that each is in, in their order.
///
/// # Errors
/// If the kernel does not list rules. A table that does not exist has none.
pub(crate) fn comments(netfilter: &mut Netlink, family: Family) -> Result<Vec<(String, String)>, Refused> {
    let all = request("listing nftables rules", NFT_MSG_GETRULE, 0, body().with_text(1, TABLE));
    let rules = match netfilter.list(&in_family(all, family)) {
        Err(refused) if refused.source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed?,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned();
    let read = |rule: &Vec<u8>| {
        let attributes = rule.get(4..)?;
        // Older kernels list every table's rules.
        if rule.first() != Some(&(family as u8)) || text(attribute(attributes, 1)?) != TABLE {
            return None;
        }
        let comment = match attribute(attributes, 7) {
            Some([COMMENT, length, rest @ ..]) => rest.get(..usize::from(*length)).map(text),
            _ => None,
        };
        Some((text(attribute(attributes, 2)?), comment.unwrap_or_default()))
    };
    Ok(rules.iter().filter_map(read).collect())
}

/// Makes a base chain that accepts by default.
pub(crate) fn add_chain(name: &str, hook: Hook) -> Request {
    let (what, number, priority, kind) = match hook {
        Hook::Prerouting => ("adding the nftables prerouting chain", 0, -150_i32, "filter"),
        Hook::NatOutput => ("adding the nftables NAT chain for output", 3, -100, "nat"),
        Hook::NatPrerouting => ("adding the nftables NAT chain for prerouting", 0, -100, "nat"),
        Hook::RawOutput => ("adding the nftables raw chain for output", 3, -300, "filter"),
        Hook::RawPrerouting => ("adding the nftables raw chain for prerouting", 0, -300, "filter"),
    };
    let hook = Attributes::default().with_be32(1, number).with(2, &priority.to_be_bytes());
    let body = body()
        .with_text(1, TABLE)
        .with_text(3, name)
        .with_nested(4, hook)
        .with_be32(5, VERDICT_ACCEPT)
        .with_text(7, kind);
    request(what, NFT_MSG_NEWCHAIN, NLM_F_CREATE, body)
}

/// Makes an empty set of ports. `id` tells the sets of one transaction apart.
pub(crate) fn add_port_set(name: &str, id: u32) -> Request {
    let body = body()
        .with_text(1, TABLE)
        .with_text(2, name)
        .with_be32(4, TYPE_INET_SERVICE)
        .with_be32(5, 2)
        .with_be32(10, id);
    request("adding an nftables set", NFT_MSG_NEWSET, NLM_F_CREATE, body)
}

/// Puts `ports` into the set `name`.
pub(crate) fn add_ports(name: &str, ports: &[u16]) -> Vec<Request> {
    elements("adding to an nftables set", NFT_MSG_NEWSETELEM, NLM_F_CREATE, name, ports)
}

/// Takes `ports` out of the set `name`, where they must be.
pub(crate) fn delete_ports(name: &str, ports: &[u16]) -> Vec<Request> {
    elements("deleting from an nftables set", NFT_MSG_DELSETELEM, 0, name, ports)
}

fn elements(what: &'static str, kind: u16, flags: u16, name: &str, ports: &[u16]) -> Vec<Request> {
    let chunk = |ports: &[u16]| {
        let list = ports.iter().fold(Attributes::default(), |list, port| {
            let key = Attributes::default().with(1, &port.to_be_bytes());
            list.with_nested(1, Attributes::default().with_nested(1, key))
        });
        let body = body().with_text(1, TABLE).with_text(2, name).with_nested(3, list);
        request(what, kind, flags, body)
    };
    ports.chunks(ELEMENTS_PER_REQUEST).map(chunk).collect()
}

/// A rule under construction.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    what: &'static str,
    expressions: Attributes,
    comment: String,
}

impl Rule {
    /// A rule without conditions yet; `what` names it in errors.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, expressions: Attributes::default(), comment: String::new() }
    }

    /// The same with a comment, as `nft list` shows it. It is cut off at 127 bytes.
    pub(crate) fn comment(mut self, comment: &str) -> Self {
        self.comment = comment.chars().filter(char::is_ascii).take(127).collect();
        self
    }

    /// The request that appends it to `chain`.
    pub(crate) fn append_to(self, chain: &str) -> Request {
        let mut body = body().with_text(1, TABLE).with_text(2, chain).with_nested(4, self.expressions);
        if !self.comment.is_empty() {
            let length = u8::try_from(self.comment.len() + 1).expect("comments are short");
            body = body.with(7, &[&[COMMENT, length], self.comment.as_bytes(), &[0]].concat());
        }
        request(self.what, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body)
    }

    /// Packets with the mark (`meta mark`).
    pub(crate) fn mark(self, mark: u32) -> Self {
        self.meta(META_MARK).compare(EQUAL, &mark.to_ne_bytes())
    }

    /// Packets that did not come over the loopback interface.
    pub(crate) fn not_loopback(self) -> Self {
        self.meta(META_IIF).compare(NOT_EQUAL, &LOOPBACK.to_ne_bytes())
    }

    /// Packets that came over the loopback interface.
    pub(crate) fn came_by_loopback(self) -> Self {
        self.meta(META_IIF).compare(EQUAL, &LOOPBACK.to_ne_bytes())
    }

    /// Packets that leave by the loopback interface.
    pub(crate) fn leaves_by_loopback(self) -> Self {
        self.meta(META_OIF).compare(EQUAL, &LOOPBACK.to_ne_bytes())
    }

    /// Packets of a socket of this user.
    pub(crate) fn user(self, id: u32) -> Self {
        self.meta(META_SKUID).compare(EQUAL, &id.to_ne_bytes())
    }

    /// Packets of the transport protocol, in either family.
    pub(crate) fn transport(self, transport: Transport) -> Self {
        self.meta(META_L4PROTO).compare(EQUAL, &[transport as u8])
    }

    /// To an address with this prefix of so many bits, and of its family.
    pub(crate) fn destined_for(self, address: IpAddr, prefix: u8) -> Self {
        let octets = octets(address);
        let mask: Vec<u8> = (0..octets.len())
            .map(|index| {
                let bits = usize::from(prefix).saturating_sub(index * 8).min(8);
                u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(u8::MAX)
            })
            .collect();
        let network: Vec<u8> = octets.iter().zip(&mask).map(|(octet, mask)| octet & mask).collect();
        self.meta(META_NFPROTO)
            .compare(EQUAL, &[protocol(address)])
            .destination(address)
            .masked(&mask)
            .compare(EQUAL, &network)
    }

    /// Packets of the family of `address` and the transport protocol.
    pub(crate) fn packets(self, like: IpAddr, transport: Transport) -> Self {
        self.meta(META_NFPROTO)
            .compare(EQUAL, &[protocol(like)])
            .meta(META_L4PROTO)
            .compare(EQUAL, &[transport as u8])
    }

    /// To another address than this (the family must have been matched).
    pub(crate) fn not_to(self, address: IpAddr) -> Self {
        self.destination(address).compare(NOT_EQUAL, &octets(address))
    }

    /// To a loopback address of the family of `like`: 127.0.0.0/8 or ::1.
    pub(crate) fn on_loopback(self, like: IpAddr) -> Self {
        self.loopback(like, EQUAL)
    }

    /// To an address that is none of loopback.
    pub(crate) fn not_to_loopback(self, like: IpAddr) -> Self {
        self.loopback(like, NOT_EQUAL)
    }

    fn loopback(self, like: IpAddr, comparison: u32) -> Self {
        match like {
            IpAddr::V4(_) => {
                self.destination(like).masked(&[255, 0, 0, 0]).compare(comparison, &[127, 0, 0, 0])
            }
            IpAddr::V6(_) => {
                self.destination(like).compare(comparison, &std::net::Ipv6Addr::LOCALHOST.octets())
            }
        }
    }

    /// To this port.
    pub(crate) fn port(self, port: u16) -> Self {
        self.payload(TRANSPORT_HEADER, 2, 2).compare(EQUAL, &port.to_be_bytes())
    }

    /// To one of these ports.
    pub(crate) fn ports(self, ports: &RangeInclusive<u16>) -> Self {
        if ports.start() == ports.end() {
            return self.port(*ports.start());
        }
        self.payload(TRANSPORT_HEADER, 2, 2)
            .compare(AT_LEAST, &ports.start().to_be_bytes())
            .compare(AT_MOST, &ports.end().to_be_bytes())
    }

    /// From this port.
    pub(crate) fn source_port(self, port: u16) -> Self {
        self.payload(TRANSPORT_HEADER, 0, 2).compare(EQUAL, &port.to_be_bytes())
    }

    /// To a port in the set.
    pub(crate) fn port_in(self, set: &str, id: u32) -> Self {
        self.payload(TRANSPORT_HEADER, 2, 2)
            .expression("lookup", |data| data.with_text(1, set).with_be32(2, 1).with_be32(4, id))
    }

    /// ICMP messages of this type.
    pub(crate) fn icmp_type(self, kind: u8) -> Self {
        self.payload(TRANSPORT_HEADER, 0, 1).compare(EQUAL, &[kind])
    }

    /// For which a socket exists here, listening on a wildcard address or not.
    pub(crate) fn has_socket(self) -> Self {
        self.expression("socket", |data| data.with_be32(1, SOCKET_WILDCARD).with_be32(2, 1))
    }

    /// Hands the packet to the transparent socket at `address`:`port` and accepts it.
    pub(crate) fn tproxy(self, address: IpAddr, port: u16) -> Self {
        // A register has 16 bytes, enough for either family's address.
        self.load(1, &octets(address))
            .load(2, &port.to_be_bytes())
            .expression("tproxy", |data| {
                data.with_be32(1, protocol(address).into()).with_be32(2, 1).with_be32(3, 2)
            })
            .accept()
    }

    /// Rewrites the destination to this port of loopback.
    pub(crate) fn redirect(self, port: u16) -> Self {
        self.load(1, &port.to_be_bytes()).expression("redir", |data| data.with_be32(1, 1))
    }

    /// Keeps the packet from being tracked as a part of a connection.
    pub(crate) fn notrack(self) -> Self {
        self.expression("notrack", |data| data)
    }

    /// Lets the packet pass.
    pub(crate) fn accept(self) -> Self {
        self.verdict(VERDICT_ACCEPT)
    }

    /// Drops the packet.
    pub(crate) fn drop(self) -> Self {
        self.verdict(VERDICT_DROP)
    }

    fn verdict(self, verdict: u32) -> Self {
        let code = Attributes::default().with_be32(1, verdict);
        self.expression("immediate", |data| {
            data.with_be32(1, VERDICT_REGISTER).with_nested(2, Attributes::default().with_nested(2, code))
        })
    }

    fn load(self, register: u32, value: &[u8]) -> Self {
        self.expression("immediate", |data| {
            data.with_be32(1, register).with_nested(2, Attributes::default().with(1, value))
        })
    }

    fn destination(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => self.payload(NETWORK_HEADER, 16, 4),
            IpAddr::V6(_) => self.payload(NETWORK_HEADER, 24, 16),
        }
    }

    fn masked(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).expect("an address is short");
        self.expression("bitwise", |data| {
            data.with_be32(1, 1)
                .with_be32(2, 1)
                .with_be32(3, length)
                .with_nested(4, Attributes::default().with(1, mask))
                .with_nested(5, Attributes::default().with(1, &vec![0; mask.len()]))
        })
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", |data| data.with_be32(2, key).with_be32(1, 1))
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        self.expression("payload", |data| {
            data.with_be32(1, 1).with_be32(2, base).with_be32(3, offset).with_be32(4, length)
        })
    }

    fn compare(self, comparison: u32, value: &[u8]) -> Self {
        self.expression("cmp", |data| {
            data.with_be32(1, 1).with_be32(2, comparison).with_nested(3, Attributes::default().with(1, value))
        })
    }

    fn expression(mut self, name: &str, data: impl FnOnce(Attributes) -> Attributes) -> Self {
        let expression = Attributes::default().with_text(1, name).with_nested(2, data(Attributes::default()));
        self.expressions = self.expressions.with_nested(1, expression);
        self
    }
}

fn body() -> Attributes {
    Attributes::after(&[NFPROTO_INET, 0, 0, 0])
}

fn request(what: &'static str, message: u16, flags: u16, body: Attributes) -> Request {
    let kind = NFNL_SUBSYS_NFTABLES << 8 | message;
    Request { what, kind, flags, acknowledged: true, body }
}

fn protocol(address: IpAddr) -> u8 {
    if address.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
