//! Bytes in both directions between two sides, until both have ended.
//!
//! Nothing is buffered beyond one read and one frame per direction: a slow
//! reader stops the reading on the other side.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::leg::{Broken, Leg};
use crate::io::Connection;
use crate::telemetry::metrics::OpenConnection;
use crate::wheel::Deadline;

/// How a relay came to its end.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Ended {
    /// Both sides had no more bytes.
    Cleanly,
    /// The peer's sidecar could not reach its application.
    Refused(crate::reason::Reason),
    /// The server's side broke off.
    ServerBroke,
    /// The client's side broke off.
    ClientBroke,
    /// Nothing moved for too long.
    Idle,
}

/// What was sent before the server's first answer is kept up to this size.
const HELD: usize = 16 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Moving,
    Finishing,
    Done,
}

pub(super) struct Relay<'a> {
    client: Leg,
    server: Leg,
    up: Flow,
    down: Flow,
    held: Option<Vec<u8>>,
    deadline: Deadline,
    idle: Option<Duration>,
    metrics: &'a OpenConnection,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        client: Leg,
        server: Leg,
        deadline: Deadline,
        idle: Option<Duration>,
        metrics: &'a OpenConnection,
    ) -> Self {
        deadline.arm_in(Instant::now(), idle);
        // Only a sidecar can refuse after it took bytes.
        let held = server.is_framed().then(Vec::new);
        Self { client, server, up: Flow::Moving, down: Flow::Moving, held, deadline, idle, metrics }
    }

    /// What the client has sent, if the server never answered and it was not too much.
    pub(super) fn take_held(&mut self) -> Option<Vec<u8>> {
        self.held.take()
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Connection,
        server: &mut Connection,
    ) -> Poll<Ended> {
        let before = (self.up, self.down);
        let (up, moved_up) = self.move_up(cx, client, server);
        if let Poll::Ready(Err(ended)) = up {
            return Poll::Ready(ended);
        }
        let (down, moved_down) = self.move_down(cx, client, server);
        if let Poll::Ready(Err(ended)) = down {
            return Poll::Ready(ended);
        }
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ended::Cleanly);
        }
        if moved_up || moved_down || before != (self.up, self.down) {
            self.deadline.arm_in(Instant::now(), self.idle);
        }
        self.deadline.poll_expired(cx).map(|()| Ended::Idle)
    }

    /// From the client to the server.
    fn move_up(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Connection,
        server: &mut Connection,
    ) -> (Poll<Result<(), Ended>>, bool) {
        let mut moved = false;
        loop {
            match self.up {
                Flow::Moving => match self.client.poll_data(cx, client) {
                    Poll::Ready(Ok(0)) => self.up = Flow::Finishing,
                    Poll::Ready(Ok(count)) => {
                        match self.server.poll_send(cx, server, &client.input.data()[..count]) {
                            Poll::Ready(Ok(sent)) if sent > 0 => {
                                moved = true;
                                self.metrics.sent(sent as u64);
                                hold(&mut self.held, &client.input.data()[..sent]);
                                self.client.consume(client, sent);
                            }
                            // What the server said last tells more than that it is gone.
                            Poll::Ready(_) => return (Poll::Ready(Err(self.last_word(cx, server))), moved),
                            Poll::Pending => return (Poll::Pending, moved),
                        }
                    }
                    Poll::Ready(Err(_)) => return (Poll::Ready(Err(Ended::ClientBroke)), moved),
                    Poll::Pending => {
                        if let Poll::Ready(Err(_)) = self.server.poll_flush(cx, server) {
                            return (Poll::Ready(Err(self.last_word(cx, server))), moved);
                        }
                        return (Poll::Pending, moved);
                    }
                },
                Flow::Finishing => match self.server.poll_finish(cx, server) {
                    Poll::Ready(Ok(())) => self.up = Flow::Done,
                    Poll::Ready(Err(_)) if self.down == Flow::Done => self.up = Flow::Done,
                    Poll::Ready(Err(_)) => return (Poll::Ready(Err(self.last_word(cx, server))), moved),
                    Poll::Pending => return (Poll::Pending, moved),
                },
                Flow::Done => return (Poll::Ready(Ok(())), moved),
            }
        }
    }

    fn last_word(&mut self, cx: &mut Context<'_>, server: &mut Connection) -> Ended {
        match self.server.poll_data(cx, server) {
            Poll::Ready(Err(broken)) => broken.into(),
            _ => Ended::ServerBroke,
        }
    }

    /// From the server to the client.
    fn move_down(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Connection,
        server: &mut Connection,
    ) -> (Poll<Result<(), Ended>>, bool) {
        let mut moved = false;
        loop {
            match self.down {
                Flow::Moving => match self.server.poll_data(cx, server) {
                    Poll::Ready(Ok(0)) => {
                        self.held = None;
                        self.down = Flow::Finishing;
                    }
                    Poll::Ready(Ok(count)) => {
                        self.held = None;
                        match self.client.poll_send(cx, client, &server.input.data()[..count]) {
                            Poll::Ready(Ok(sent)) if sent > 0 => {
                                moved = true;
                                self.metrics.received(sent as u64);
                                self.server.consume(server, sent);
                            }
                            Poll::Ready(_) => return (Poll::Ready(Err(Ended::ClientBroke)), moved),
                            Poll::Pending => return (Poll::Pending, moved),
                        }
                    }
                    Poll::Ready(Err(broken)) => {
                        if broken == Broken::Connection {
                            self.held = None;
                        }
                        return (Poll::Ready(Err(broken.into())), moved);
                    }
                    Poll::Pending => {
                        if let Poll::Ready(Err(_)) = self.client.poll_flush(cx, client) {
                            return (Poll::Ready(Err(Ended::ClientBroke)), moved);
                        }
                        return (Poll::Pending, moved);
                    }
                },
                Flow::Finishing => match self.client.poll_finish(cx, client) {
                    Poll::Ready(Ok(())) => self.down = Flow::Done,
                    Poll::Ready(Err(_)) if self.up == Flow::Done => self.down = Flow::Done,
                    Poll::Ready(Err(_)) => return (Poll::Ready(Err(Ended::ClientBroke)), moved),
                    Poll::Pending => return (Poll::Pending, moved),
                },
                Flow::Done => return (Poll::Ready(Ok(())), moved),
            }
        }
    }
}

/// Keeps a copy, unless it has become too much.
fn hold(held: &mut Option<Vec<u8>>, data: &[u8]) {
    if let Some(bytes) = held {
        if bytes.len() + data.len() > HELD {
            *held = None;
        } else {
            bytes.extend_from_slice(data);
        }
    }
}
