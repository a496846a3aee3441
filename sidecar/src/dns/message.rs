//! DNS messages as far as a responder reads and writes them (RFC 1035, section
//! 4): queries with one question in, answers made of addresses out.
//!
//! Reading is strict: what is not exactly one well-formed question is refused.
//! Everything behind the question (EDNS) is neither needed nor looked at; it is
//! forwarded as it is.

use std::net::IpAddr;

/// A header without sections.
const HEADER: usize = 12;

/// The longest name, in wire form (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 255;

pub(crate) const TYPE_A: u16 = 1;
pub(crate) const TYPE_AAAA: u16 = 28;
pub(crate) const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// Response codes (RFC 1035, section 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// It is answered, perhaps by nothing.
    NoError = 0,
    /// The query is malformed.
    FormErr = 1,
    /// Nobody could say.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// This is not done here.
    NotImp = 4,
}

/// A query with its one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    bytes: &'a [u8],
    /// Where the question ends.
    end: usize,
    /// The name in lower case without a final dot; a byte that no host name has
    /// became `\`, so that it matches nothing.
    pub name: String,
    /// What is asked for.
    pub kind: u16,
    /// Whether the class is the Internet's.
    pub internet: bool,
}

impl<'a> Query<'a> {
    /// Reads a query. What is none is answered with the error's bytes, or not
    /// at all (`None`) where an answer could make two responders talk for ever.
    ///
    /// # Errors
    /// The answer to what is no query with one question.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Option<Vec<u8>>> {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Err(None) };
        if header[2] & 0x80 != 0 {
            return Err(None);
        }
        let refused = |code| Err(Some(header_reply(header, code)));
        if header[2] & 0x78 != 0 {
            return refused(Code::NotImp);
        }
        if header[4..6] != [0, 1] {
            return refused(Code::FormErr);
        }
        let Some((name, after)) = read_name(bytes) else { return refused(Code::FormErr) };
        let Some([a, b, c, d]) = bytes.get(after..).and_then(<[u8]>::first_chunk) else {
            return refused(Code::FormErr);
        };
        let class = u16::from_be_bytes([*c, *d]);
        Ok(Self {
            bytes,
            end: after + 4,
            name,
            kind: u16::from_be_bytes([*a, *b]),
            internet: matches!(class, CLASS_IN | CLASS_ANY),
        })
    }

    /// The whole message.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether addresses of the family are asked for.
    pub fn asks_for(&self, ipv6: bool) -> bool {
        self.kind == if ipv6 { TYPE_AAAA } else { TYPE_A } || self.kind == TYPE_ANY
    }

    /// An answer without records.
    pub fn reply(&self, code: Code) -> Vec<u8> {
        self.answer(code, &[], 0)
    }

    /// An answer that tells the client to ask again by TCP.
    pub fn truncated(&self) -> Vec<u8> {
        let mut reply = self.reply(Code::NoError);
        reply[2] |= 0x02;
        reply
    }

    /// The question: name, type and class as they were asked.
    pub fn question(&self) -> &'a [u8] {
        &self.bytes[HEADER..self.end]
    }

    /// An answer with the addresses, for `ttl` seconds.
    pub fn answer(&self, code: Code, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
        let mut reply = self.bytes[..self.end].to_vec();
        reply[2] = 0x84 | self.bytes[2] & 0x01; // response, authoritative, recursion as desired
        reply[3] = 0x80 | code as u8; // recursion available
        let count = u16::try_from(addresses.len()).expect("a handful of addresses");
        reply[6..8].copy_from_slice(&count.to_be_bytes());
        reply[8..HEADER].fill(0);
        for address in addresses {
            let (kind, data) = match address {
                IpAddr::V4(v4) => (TYPE_A, v4.octets().to_vec()),
                IpAddr::V6(v6) => (TYPE_AAAA, v6.octets().to_vec()),
            };
            reply.extend([0xc0, 12]); // the name of the question
            reply.extend(kind.to_be_bytes());
            reply.extend(CLASS_IN.to_be_bytes());
            reply.extend(ttl.to_be_bytes());
            reply.extend(u16::try_from(data.len()).expect("4 or 16").to_be_bytes());
            reply.extend(data);
        }
        reply
    }

    /// Whether `reply` is a response to this query under the identifier `id`:
    /// anything else on the wire is late, misdirected or forged.
    pub fn is_answered_by(&self, reply: &[u8], id: [u8; 2]) -> bool {
        reply.len() >= self.end
            && reply[..2] == id
            && reply[2] & 0x80 != 0
            && reply[4..6] == [0, 1]
            && reply[HEADER..self.end].eq_ignore_ascii_case(&self.bytes[HEADER..self.end])
    }
}

/// The response code of a message.
pub(crate) fn code_of(reply: &[u8]) -> Option<u8> {
    reply.get(3).map(|byte| byte & 0x0f)
}

fn header_reply(header: &[u8; HEADER], code: Code) -> Vec<u8> {
    let mut reply = vec![0; HEADER];
    reply[..2].copy_from_slice(&header[..2]);
    reply[2] = 0x80 | header[2] & 0x79;
    reply[3] = 0x80 | code as u8;
    reply
}

/// The question's name as text, and where it ends. A question has nothing
/// before it to point to, so a compressed name is malformed.
fn read_name(bytes: &[u8]) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if length > 63 || at + length + 1 - HEADER > LONGEST_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in bytes.get(at..at + length)? {
            let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            name.push(if plain { byte.to_ascii_lowercase().into() } else { '\\' });
        }
        at += length;
    }
    Some((name, at))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    /// A query as a stub resolver would send it.
    pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        bytes
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let mut bytes = query("Users.Shop", TYPE_A);
        bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]); // an EDNS record
        bytes[11] = 1;
        let read = Query::read(&bytes).unwrap();
        assert_eq!((read.name.as_str(), read.kind, read.internet), ("users.shop", TYPE_A, true));
        let reply = read.answer(Code::NoError, &[Ipv4Addr::new(240, 240, 1, 2).into()], 30);
        assert_eq!(&reply[..12], [0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(&reply[reply.len() - 10..], [0, 0, 0, 30, 0, 4, 240, 240, 1, 2]);
        assert_eq!(&reply[12..28], &bytes[12..28], "the question is repeated as it was asked");
    }

    #[test]
    fn what_is_no_query_is_refused() {
        let good = query("a", TYPE_A);
        assert_eq!(Query::read(&good[..11]), Err(None));
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(Query::read(&response), Err(None));
        let refused = |bytes: &[u8]| Query::read(bytes).unwrap_err().and_then(|reply| code_of(&reply));
        let mut update = good.clone();
        update[2] |= 0x28;
        assert_eq!(refused(&update), Some(Code::NotImp as u8));
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(refused(&two), Some(Code::FormErr as u8));
        assert_eq!(refused(&good[..good.len() - 1]), Some(Code::FormErr as u8));
        let mut pointer = good.clone();
        pointer[12] = 0xc0;
        assert_eq!(refused(&pointer), Some(Code::FormErr as u8));
        assert_eq!(refused(&query(&["x"; 128].join("."), TYPE_A)), Some(Code::FormErr as u8));
        assert!(Query::read(&query(&["x"; 127].join("."), TYPE_A)).is_ok());
    }

    #[test]
    fn a_dot_inside_a_label_is_no_separator() {
        let mut bytes = query("a-b", TYPE_A);
        bytes[14] = b'.';
        assert_eq!(Query::read(&bytes).unwrap().name, "a\\b");
    }

    #[test]
    fn only_the_answer_to_the_very_question_is_taken() {
        let bytes = query("example.com", TYPE_A);
        let asked = Query::read(&bytes).unwrap();
        let mut reply = asked.reply(Code::NoError);
        reply[..2].copy_from_slice(&[1, 2]);
        assert!(asked.is_answered_by(&reply, [1, 2]));
        assert!(!asked.is_answered_by(&reply, [1, 3]));
        assert!(!asked.is_answered_by(&reply[..reply.len() - 1], [1, 2]));
        let other = query("example.org", TYPE_A);
        let other = Query::read(&other).unwrap();
        assert!(!other.is_answered_by(&reply, [1, 2]));
        let mut query_again = reply.clone();
        query_again[2] &= 0x7f;
        assert!(!asked.is_answered_by(&query_again, [1, 2]));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(query) = Query::read(&bytes) {
                prop_assert!(query.reply(Code::NxDomain).len() <= bytes.len());
                prop_assert!(!query.name.bytes().any(|b| b.is_ascii_uppercase()));
            }
        }
    }
}
