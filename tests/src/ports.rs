//! Ports at which nobody listens. One that was chosen by the system and given back belongs to
//! whoever is next to ask for one, or to call somebody from it, in any process of the machine.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// An address that nobody else is given while this lives. Connections to it are refused, unless who
/// shares it listens there: a program can, since all set `SO_REUSEADDR` as the standard library does.
#[derive(Debug)]
pub struct Reserved(Socket);

impl Reserved {
    /// Reserves it; port 0 is one of the system's choice.
    ///
    /// # Panics
    /// If somebody listens there.
    pub fn at(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("there is room");
        socket.set_reuse_address(true).expect("it is a socket");
        socket.bind(&address.into()).expect("nobody listens there");
        Self(socket)
    }

    /// Which it is.
    ///
    /// # Panics
    /// If it has none.
    pub fn address(&self) -> SocketAddr {
        let address = self.0.local_addr().ok().and_then(|address| address.as_socket());
        address.expect("it is bound")
    }
}

/// A port of the loopback that refuses connections for as long as the test's process runs.
pub fn refusing() -> u16 {
    let reserved = Reserved::at((Ipv4Addr::LOCALHOST, 0).into());
    let port = reserved.address().port();
    std::mem::forget(reserved);
    port
}
