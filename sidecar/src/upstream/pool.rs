//! Idle connections of an endpoint, and connections that are in use.
//!
//! A connection has one owner at a time. The one given back last is used
//! first, so that surplus ones fall idle and are swept. Before use, an idle
//! connection is asked whether the peer has closed it; what dies in between is
//! the retry's matter.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Endpoint;
use super::connect::MeshProtocol;
use crate::io::Connection;

/// Idle connections are closed after this time: shorter than what common
/// servers allow (nginx 75 s), long enough to bridge a pause in traffic.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Idle connections kept per endpoint and protocol.
const IDLE_LIMIT: usize = 512;

/// A connection that waits for use.
pub(super) struct Idle {
    connection: Connection,
    since: Instant,
    served: u64,
}

/// A connection in use; closed when dropped, unless given back.
pub struct Lease {
    connection: Option<Connection>,
    endpoint: Rc<Endpoint>,
    protocol: MeshProtocol,
    served: u64,
}

impl Lease {
    /// A new connection, already counted as open.
    pub(super) fn new(connection: Connection, endpoint: Rc<Endpoint>, protocol: MeshProtocol) -> Self {
        Self { connection: Some(connection), endpoint, protocol, served: 0 }
    }

    /// Whether it carried something before.
    pub fn is_reused(&self) -> bool {
        self.served > 0
    }

    /// Where it leads.
    pub fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    /// Keeps it for the next use, if it may serve one more.
    pub fn give_back(mut self, requests_per_connection: Option<u64>, now: Instant) {
        let served = self.served + 1;
        if self.endpoint.is_retired() || requests_per_connection.is_some_and(|limit| served >= limit) {
            return;
        }
        let Some(pool) = self.endpoint.pool(self.protocol) else { return };
        let mut pool = pool.borrow_mut();
        if pool.len() < IDLE_LIMIT
            && let Some(mut connection) = self.connection.take()
        {
            connection.input.release();
            pool.push(Idle { connection, since: now, served });
            self.endpoint.connections.free();
        }
    }

    /// The connection, for an owner who will not give it back. It no longer
    /// counts against the limits.
    pub fn into_inner(mut self) -> Connection {
        self.endpoint.connections.closed(1);
        self.connection.take().expect("present until given back or taken")
    }
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("present until given back or taken")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("present until given back or taken")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.connection.is_some() {
            self.endpoint.connections.closed(1);
        }
    }
}

impl Endpoint {
    /// The idle connection that was used last and is still open.
    pub fn idle(self: &Rc<Self>, protocol: MeshProtocol) -> Option<Lease> {
        let pool = self.pool(protocol)?;
        loop {
            let Idle { connection, served, .. } = pool.borrow_mut().pop()?;
            let mut lease = Lease { connection: Some(connection), endpoint: self.clone(), protocol, served };
            if lease.is_quiet() {
                return Some(lease);
            }
        }
    }

    /// Closes all idle connections of a protocol.
    pub fn close_idle(&self, protocol: MeshProtocol) {
        let Some(pool) = self.pool(protocol) else { return };
        let gone = pool.take();
        self.connections.closed(gone.len());
    }

    /// Closes one idle connection.
    pub(super) fn drop_idle(&self) -> bool {
        let dropped = self.idle.iter().any(|pool| pool.borrow_mut().pop().is_some());
        if dropped {
            self.connections.closed(1);
        }
        dropped
    }

    /// Closes what has been idle for too long or was closed by the peer.
    pub(super) fn sweep(self: &Rc<Self>, now: Instant) {
        for pool in &self.idle {
            let (mut kept, mut gone) = (Vec::new(), Vec::new());
            for mut idle in pool.take() {
                let expired = now.saturating_duration_since(idle.since) >= IDLE_TIMEOUT;
                if expired || !idle.connection.is_quiet() { gone.push(idle) } else { kept.push(idle) }
            }
            self.connections.closed(gone.len());
            // Nothing was given back meanwhile: all of this is one turn.
            pool.replace(kept);
        }
    }

    fn pool(&self, protocol: MeshProtocol) -> Option<&RefCell<Vec<Idle>>> {
        match protocol {
            MeshProtocol::Http1 => Some(&self.idle[0]),
            // A plaintext connection of opaque bytes ends with them.
            MeshProtocol::Tcp => self.is_mesh().then_some(&self.idle[1]),
            MeshProtocol::Http2 => None,
        }
    }
}
