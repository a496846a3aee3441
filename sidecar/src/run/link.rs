//! What the sidecar's process tells the one that will become the application,
//! over a pair of sockets that both inherit and that exec closes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::sys;

/// A message is an event line, an error or a few variables.
const LONGEST: usize = 64 * 1024;

/// What is told.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// A line for the user's standard error.
    Announce(String),
    /// The sidecar serves. The namespace to enter comes along, if there is one.
    Ready {
        /// Variables for the application.
        environment: BTreeMap<String, String>,
    },
    /// The sidecar cannot start.
    Failed(String),
}

/// One end of the connection.
#[derive(Debug)]
pub(crate) struct Link(Socket);

impl Link {
    /// Both ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        Ok((Self(one), Self(other)))
    }

    /// Tells the other end. That it is gone is no error: its end is seen otherwise.
    pub(crate) fn tell(&self, message: &Message, fd: Option<BorrowedFd<'_>>) {
        let text = serde_json::to_vec(message).expect("the message has only text");
        let _ = sys::send_with_fd(self.0.as_fd(), &text[..text.len().min(LONGEST)], fd);
    }

    /// Waits for the next message; `None` when the other end is closed.
    pub(crate) fn hear(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        let mut buffer = vec![0; LONGEST];
        let (length, fd) = sys::receive_with_fd(self.0.as_fd(), &mut buffer)?;
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&buffer[..length])?, fd)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_order_and_then_the_end() {
        let (one, other) = Link::pair().unwrap();
        let ready = || Message::Ready { environment: BTreeMap::from([("A".into(), "b".into())]) };
        one.tell(&Message::Announce("hello".into()), None);
        one.tell(&ready(), Some(io::stderr().as_fd()));
        drop(one);
        assert!(matches!(other.hear().unwrap(), Some((Message::Announce(text), None)) if text == "hello"));
        let (message, fd) = other.hear().unwrap().unwrap();
        assert!(message == ready() && fd.is_some());
        assert!(other.hear().unwrap().is_none());
        other.tell(&Message::Failed("nobody listens".into()), None);
    }
}
