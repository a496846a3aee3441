//! Questions of our own and what their answers say about addresses (RFC 1035,
//! section 4): names outside the mesh are resolved for whom they are endpoints.
//!
//! An answer is believed as far as it is about the name that was asked for:
//! its addresses, or those of the name that it is an alias of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::message::{Code, TYPE_A, TYPE_AAAA, code_of};

const HEADER: usize = 12;
const TYPE_CNAME: u16 = 5;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;

/// The largest answer by UDP that is asked for: no path is known to break it up (RFC 9715).
const LARGEST_ANSWER: u16 = 1232;

/// Names that an alias may lead over.
const ALIASES: usize = 16;

/// Addresses of one name that are used: more than any balancer needs, in bounded memory.
const ADDRESSES: usize = 64;

/// Pointers that one name may lead over. Each should lead to a label, and a name has at most 127; an
/// answer made of pointers to pointers would keep us for as long as it has records times pointers.
const POINTERS: usize = 127;

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Those of IPv4.
    V4,
    /// Those of IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn kind(self) -> u16 {
        match self {
            Self::V4 => TYPE_A,
            Self::V6 => TYPE_AAAA,
        }
    }
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// There are addresses, in order and without repetition.
    Addresses(Vec<IpAddr>, Duration),
    /// There is no such name, or none of its addresses is of the family.
    Nothing,
    /// Nobody could say.
    Failed,
}

/// The question for a name in lower case, which is a DNS name.
pub fn question(name: &str, family: Family) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]; // recursion desired, one additional record
    for label in name.split('.') {
        // At most 63 bytes long, or it would be no name.
        bytes.push(u8::try_from(label.len()).unwrap_or_default());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(family.kind().to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    // The record of EDNS (RFC 6891): the root, its type, our size, nothing else.
    bytes.push(0);
    bytes.extend(TYPE_OPT.to_be_bytes());
    bytes.extend(LARGEST_ANSWER.to_be_bytes());
    bytes.extend([0; 6]);
    bytes
}

/// Whether the answer did not fit and has to be asked for by TCP.
pub(crate) fn is_truncated(reply: &[u8]) -> bool {
    reply.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// What `reply`, which repeats the question, says about the name.
pub fn read(reply: &[u8], family: Family) -> Answer {
    match code_of(reply) {
        Some(code) if code == Code::NoError as u8 => addresses(reply, family).unwrap_or(Answer::Failed),
        Some(code) if code == Code::NxDomain as u8 => Answer::Nothing,
        _ => Answer::Failed,
    }
}

/// `None` if the message is malformed.
fn addresses(reply: &[u8], family: Family) -> Option<Answer> {
    let (mut target, mut at) = name(reply, HEADER)?;
    at += 4;
    let count = number(reply, 6)?;
    let mut records = Vec::new();
    for _ in 0..count {
        let (owner, after) = name(reply, at)?;
        let (kind, class) = (number(reply, after)?, number(reply, after + 2)?);
        let ttl = u32::from(number(reply, after + 4)?) << 16 | u32::from(number(reply, after + 6)?);
        let data = after + 10;
        at = data + usize::from(number(reply, after + 8)?);
        let bytes = reply.get(data..at)?;
        if class == CLASS_IN && (kind == family.kind() || kind == TYPE_CNAME) {
            records.push(Record { owner, kind, ttl, data, bytes });
        }
    }
    let mut least = u32::MAX;
    for _ in 0..ALIASES {
        let own = records.iter().filter(|record| record.owner == target);
        let mut found: Vec<IpAddr> = Vec::new();
        let mut alias = None;
        for record in own {
            if record.kind == TYPE_CNAME {
                alias = Some((name(reply, record.data)?.0, record.ttl));
            } else {
                least = least.min(record.ttl);
                found.extend(record.address());
            }
        }
        if !found.is_empty() {
            found.sort_unstable();
            found.dedup();
            found.truncate(ADDRESSES);
            // A first bit of 1 means none (RFC 2181, section 8).
            let ttl = if least > i32::MAX.unsigned_abs() { 0 } else { least };
            return Some(Answer::Addresses(found, Duration::from_secs(ttl.into())));
        }
        let Some((next, ttl)) = alias else { break };
        least = least.min(ttl);
        target = next;
    }
    Some(Answer::Nothing)
}

struct Record<'a> {
    owner: Vec<u8>,
    kind: u16,
    ttl: u32,
    data: usize,
    bytes: &'a [u8],
}

impl Record<'_> {
    /// The address of one host that it holds.
    fn address(&self) -> Option<IpAddr> {
        let address: IpAddr = match self.kind {
            TYPE_A => Ipv4Addr::from(<[u8; 4]>::try_from(self.bytes).ok()?).into(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(self.bytes).ok()?).into(),
        };
        // One of IPv4 in the form of IPv6 is for the other question to tell, or it would be told twice.
        let is_mapped = address.to_canonical() != address;
        (!is_mapped && !address.is_unspecified() && !address.is_multicast()).then_some(address)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

/// The name at `at` in lower case, each label behind its length, and where it
/// ends. What is compressed points back, so that it comes to an end.
fn name(bytes: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
    let (mut name, mut at, mut end, mut lowest, mut pointers) = (Vec::new(), at, None, at, 0);
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                name.extend(bytes.get(at..=at + length)?.iter().map(u8::to_ascii_lowercase));
                at += 1 + length;
            }
            0xc0..=0xff => {
                end.get_or_insert(at + 2);
                at = usize::from(number(bytes, at)? & 0x3fff);
                pointers += 1;
                if at >= lowest || pointers > POINTERS {
                    return None;
                }
                lowest = at;
            }
            _ => return None,
        }
        if name.len() > 255 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns::message::Query;

    /// A reply to the question with records of (owner, type, ttl, data); names that are empty are the question's.
    fn reply(asked: &str, family: Family, records: &[(&str, u16, u32, Vec<u8>)]) -> Vec<u8> {
        let mut reply = question(asked, family);
        reply.truncate(reply.len() - 11);
        (reply[2], reply[3]) = (0x81, 0x80);
        reply[7] = u8::try_from(records.len()).unwrap();
        reply[11] = 0;
        for (owner, kind, ttl, data) in records {
            if owner.is_empty() {
                reply.extend([0xc0, 12])
            } else {
                reply.extend(wire(owner))
            }
            reply.extend(kind.to_be_bytes());
            reply.extend(CLASS_IN.to_be_bytes());
            reply.extend(ttl.to_be_bytes());
            reply.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            reply.extend(data);
        }
        reply
    }

    fn wire(name: &str) -> Vec<u8> {
        let labels =
            name.split('.').map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat());
        labels.chain([vec![0]]).collect::<Vec<_>>().concat()
    }

    fn found(addresses: &[&str], seconds: u64) -> Answer {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Answer::Addresses(addresses, Duration::from_secs(seconds))
    }

    fn v4(last: u8) -> Vec<u8> {
        vec![192, 0, 2, last]
    }

    #[test]
    fn a_question_is_one_that_a_responder_understands() {
        let bytes = question("api.payments.example", Family::V6);
        let read = Query::read(&bytes).unwrap();
        assert_eq!((read.name.as_str(), read.kind), ("api.payments.example", TYPE_AAAA));
    }

    #[test]
    fn addresses_are_sorted_and_live_as_long_as_the_shortest() {
        let records = [("", TYPE_A, 60, v4(2)), ("", TYPE_A, 30, v4(1)), ("", TYPE_A, 90, v4(2))];
        assert_eq!(
            read(&reply("a.example", Family::V4, &records), Family::V4),
            found(&["192.0.2.1", "192.0.2.2"], 30)
        );
        let six = [("A.EXAMPLE", TYPE_AAAA, 5, "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets().to_vec())];
        assert_eq!(read(&reply("a.example", Family::V6, &six), Family::V6), found(&["2001:db8::1"], 5));
    }

    #[test]
    fn aliases_are_followed_and_strangers_are_not_believed() {
        let aliases = [
            ("c.example", TYPE_A, 300, v4(1)),
            ("b.example", TYPE_CNAME, 20, wire("c.example")),
            ("", TYPE_CNAME, 50, wire("b.example")),
            ("evil.example", TYPE_A, 1, v4(66)),
        ];
        assert_eq!(read(&reply("a.example", Family::V4, &aliases), Family::V4), found(&["192.0.2.1"], 20));
        let circle = [("", TYPE_CNAME, 50, wire("a.example"))];
        assert_eq!(read(&reply("a.example", Family::V4, &circle), Family::V4), Answer::Nothing);
        let stranger = [("b.example", TYPE_A, 50, v4(1))];
        assert_eq!(read(&reply("a.example", Family::V4, &stranger), Family::V4), Answer::Nothing);
    }

    #[test]
    fn denials_and_failures_are_told_apart() {
        let with_code = |code: Code| {
            let mut bytes = reply("a.example", Family::V4, &[]);
            bytes[3] |= code as u8;
            read(&bytes, Family::V4)
        };
        assert_eq!(with_code(Code::NxDomain), Answer::Nothing);
        assert_eq!(with_code(Code::NoError), Answer::Nothing);
        assert_eq!(with_code(Code::ServFail), Answer::Failed);
        let blocked = reply("a.example", Family::V4, &[("", TYPE_A, 9, vec![0; 4])]);
        assert_eq!(read(&blocked, Family::V4), Answer::Nothing);
        for data in [v4(1), Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets().to_vec()] {
            let misplaced = reply("a.example", Family::V6, &[("", TYPE_AAAA, 9, data)]);
            assert_eq!(read(&misplaced, Family::V6), Answer::Nothing);
        }
        let whole = reply("a.example", Family::V4, &[("", TYPE_A, 9, v4(1))]);
        assert_eq!(read(&whole[..whole.len() - 1], Family::V4), Answer::Failed);
        assert!(!is_truncated(&whole) && is_truncated(&[0, 0, 0x83]));
    }

    #[test]
    fn a_pointer_that_does_not_lead_back_is_malformed() {
        let mut bytes = reply("a.example", Family::V4, &[("", TYPE_A, 9, v4(1))]);
        let pointer = bytes.len() - 16;
        bytes[pointer + 1] = u8::try_from(pointer).unwrap();
        assert_eq!(read(&bytes, Family::V4), Answer::Failed);
    }

    /// Thousands of records whose owners led over thousands of pointers each kept the agent's thread
    /// for a tenth of a second, as often as the resolver liked.
    #[test]
    fn a_name_of_pointers_to_pointers_is_malformed() {
        let with = |pointers: usize| {
            // They are the data of a record that nobody looks at; the first leads to the question's name.
            let records = [("", 16, 9, vec![0; 2 * pointers]), ("", TYPE_A, 9, v4(1))];
            let mut bytes = reply("a.example", Family::V4, &records);
            let owner = bytes.len() - 16;
            let mut to = HEADER;
            for at in (owner - 2 * pointers..=owner).step_by(2) {
                let pointer = 0xc000 | u16::try_from(to).unwrap();
                bytes[at..at + 2].copy_from_slice(&pointer.to_be_bytes());
                to = at;
            }
            read(&bytes, Family::V4)
        };
        assert_eq!(with(POINTERS - 1), found(&["192.0.2.1"], 9));
        assert_eq!(with(POINTERS), Answer::Failed);
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..300) {
            let _ = read(&bytes, Family::V4);
            let mut broken = reply("a.example", Family::V4, &[("", TYPE_A, 9, v4(1)), ("b", TYPE_CNAME, 1, wire("c"))]);
            let at = at % broken.len();
            broken[at] = bytes.first().copied().unwrap_or_default();
            let _ = read(&broken, Family::V4);
        }
    }
}
