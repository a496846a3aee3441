//! Connections as they come, for each of the control plane's listeners.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

/// After running out of file descriptors: long enough that some are closed meanwhile, short enough that
/// nobody gives up.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A listener that goes on whatever becomes of single connections.
pub(crate) struct Accepting<'a> {
    listener: &'a TcpListener,
    /// Which it is, for people.
    name: &'static str,
    /// Whether the last try failed, which is told of once.
    failing: bool,
}

impl<'a> Accepting<'a> {
    pub(crate) fn new(listener: &'a TcpListener, name: &'static str) -> Self {
        Self { listener, name, failing: false }
    }

    /// The next connection. Loses none where it is dropped.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => {
                    self.failing = false;
                    return accepted;
                }
                // That client is gone again; the next may be fine.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        warn!(%error, listener = self.name, "cannot accept connections; trying again");
                    }
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }
}
