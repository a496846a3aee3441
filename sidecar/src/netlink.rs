//! Netlink, as far as the application's namespace needs it: requests with
//! acknowledgements, sent over a socket of the namespace in which it was made.
//!
//! [`route`] and [`nftables`] encode what is asked for; nothing is read back
//! but acknowledgements. No external program is needed.

pub(crate) mod nftables;
pub(crate) mod route;

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLMSG_ERROR: u16 = 2;
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

/// The sequence number and code of every acknowledgement in `datagram`.
fn acknowledgements(mut datagram: &[u8]) -> Vec<(u32, i32)> {
    let word = |bytes: &[u8], at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
    let mut found = Vec::new();
    while let (Some(length), Some(kind), Some(sequence)) =
        (word(datagram, 0), datagram.get(4..6), word(datagram, 8))
    {
        let length = u32::from_ne_bytes(length) as usize;
        if kind == NLMSG_ERROR.to_ne_bytes()
            && let Some(code) = word(datagram, NLMSG_HEADER)
        {
            found.push((u32::from_ne_bytes(sequence), i32::from_ne_bytes(code)));
        }
        datagram = datagram.get(length.max(NLMSG_HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    found
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
