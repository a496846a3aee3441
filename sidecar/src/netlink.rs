//! Netlink, as far as the application's network needs it: requests with
//! acknowledgements, sent over a socket of the namespace in which it was made,
//! and lists read back.
//!
//! [`route`] and [`nftables`] encode what is asked for. No external program is needed.

pub(crate) mod nftables;
pub(crate) mod route;

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
const NLA_F_NESTED: u16 = 0x8000;

/// The kernel answers within the call; only a kernel that answers something
/// unforeseen makes us wait.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub(crate) struct Refused {
    /// What was asked for.
    pub(crate) what: &'static str,
    /// The kernel's answer.
    pub(crate) source: io::Error,
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// What it does, for errors.
    pub(crate) what: &'static str,
    kind: u16,
    flags: u16,
    acknowledged: bool,
    body: Attributes,
}

/// A netlink socket of the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// A socket for [`route`].
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(libc::NETLINK_ROUTE)
    }

    /// A socket for [`nftables`].
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(libc::NETLINK_NETFILTER)
    }

    fn open(protocol: i32) -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(ACKNOWLEDGE_TIMEOUT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends `requests` in one message and waits until each was acknowledged.
    ///
    /// # Errors
    /// The first refusal. In an nftables batch nothing was changed then.
    pub(crate) fn transact(&mut self, requests: &[Request]) -> Result<(), Refused> {
        let first = self.sequence;
        let mut message = Vec::new();
        for request in requests {
            message.extend(request.encode(self.sequence));
            self.sequence = self.sequence.wrapping_add(1);
        }
        let what = requests.first().map_or("nothing", |request| request.what);
        self.socket.send(&message).map_err(|source| Refused { what, source })?;
        let mut missing = requests.iter().filter(|request| request.acknowledged).count();
        // An acknowledgement repeats the refused request at most once.
        let mut buffer = vec![0; 64 * 1024];
        while missing > 0 {
            let length = (&self.socket).read(&mut buffer).map_err(|source| Refused { what, source })?;
            for (sequence, code) in acknowledgements(&buffer[..length]) {
                let index = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                let Some(request) = requests.get(index) else { continue };
                if code != 0 {
                    let source = io::Error::from_raw_os_error(code.saturating_neg());
                    return Err(Refused { what: request.what, source });
                }
                missing = missing.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Sends a request that lists something, and collects the bodies of the answers.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn list(&mut self, request: &Request) -> Result<Vec<Vec<u8>>, Refused> {
        let refused = |source| Refused { what: request.what, source };
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let listing = Request { flags: request.flags | NLM_F_DUMP, acknowledged: false, ..request.clone() };
        self.socket.send(&listing.encode(sequence)).map_err(refused)?;
        let mut bodies = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = (&self.socket).read(&mut buffer).map_err(refused)?;
            for message in messages(&buffer[..length]).filter(|message| message.sequence == sequence) {
                match message.kind {
                    NLMSG_DONE => return Ok(bodies),
                    NLMSG_ERROR => {
                        let code = message.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return Err(refused(io::Error::from_raw_os_error(code.saturating_neg())));
                    }
                    _ => bodies.push(message.body.to_vec()),
                }
            }
        }
    }
}

impl Request {
    fn encode(&self, sequence: u32) -> Vec<u8> {
        let flags = self.flags | NLM_F_REQUEST | if self.acknowledged { NLM_F_ACK } else { 0 };
        let length = NLMSG_HEADER + self.body.0.len();
        let mut message = Vec::with_capacity(length);
        message.extend(u32::try_from(length).expect("requests are short").to_ne_bytes());
        message.extend(self.kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(&self.body.0);
        message
    }
}

/// A message of a datagram.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of a datagram, up to what is none.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<NLMSG_HEADER>()?;
        let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let length = u32::from_ne_bytes(word(0)) as usize;
        let body = datagram.get(NLMSG_HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        Some(Message { kind, sequence: u32::from_ne_bytes(word(8)), body })
    })
}

/// The sequence number and code of every acknowledgement in `datagram`.
fn acknowledgements(datagram: &[u8]) -> Vec<(u32, i32)> {
    let errors = messages(datagram).filter(|message| message.kind == NLMSG_ERROR);
    errors
        .filter_map(|error| Some((error.sequence, i32::from_ne_bytes(*error.body.first_chunk()?))))
        .collect()
}

/// The first attribute of this kind among those in `bytes`.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let data = bytes.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & !NLA_F_NESTED == wanted {
            return Some(data);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// A netlink message's body: bytes and attributes, always padded to four bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// Begins with a fixed structure.
    fn after(structure: &[u8]) -> Self {
        debug_assert!(structure.len().is_multiple_of(4), "netlink structures are padded");
        Self(structure.to_vec())
    }

    fn with(mut self, kind: u16, data: &[u8]) -> Self {
        let length = u16::try_from(data.len() + 4).expect("attributes are short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn with_nested(self, kind: u16, inner: Self) -> Self {
        self.with(kind | NLA_F_NESTED, &inner.0)
    }

    /// nftables' numbers are big-endian.
    fn with_be32(self, kind: u16, number: u32) -> Self {
        self.with(kind, &number.to_be_bytes())
    }

    fn with_text(self, kind: u16, text: &str) -> Self {
        self.with(kind, &[text.as_bytes(), &[0]].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let inner = Attributes::default().with(1, &[7]);
        let bytes = Attributes::default().with_nested(2, inner).0;
        let expected: Vec<u8> = [
            &12_u16.to_ne_bytes()[..],
            &0x8002_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            &[7, 0, 0, 0],
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn attributes_are_found_again() {
        let list =
            Attributes::default().with(1, &[7]).with_nested(2, Attributes::default().with_text(3, "abc"));
        assert_eq!(attribute(&list.0, 1), Some(&[7][..]));
        let inner = attribute(&list.0, 2).unwrap();
        assert_eq!(attribute(inner, 3), Some(&b"abc\0"[..]));
        assert_eq!(attribute(&list.0, 4), None);
        assert_eq!(attribute(&[0; 8], 4), None);
        assert_eq!(attribute(&[0xff; 7], 4), None);
    }

    #[test]
    fn acknowledgements_are_read_and_nonsense_ends_it() {
        let mut datagram = Vec::new();
        for (sequence, code) in [(5_u32, 0_i32), (6, -1)] {
            datagram.extend(20_u32.to_ne_bytes());
            datagram.extend(NLMSG_ERROR.to_ne_bytes());
            datagram.extend([0; 2]);
            datagram.extend(sequence.to_ne_bytes());
            datagram.extend([0; 4]);
            datagram.extend(code.to_ne_bytes());
        }
        datagram.extend([0; 7]);
        assert_eq!(acknowledgements(&datagram), [(5, 0), (6, -1)]);
        assert!(acknowledgements(&[0; 64]).is_empty());
        assert!(acknowledgements(&[0xff; 15]).is_empty());
    }
}
