//! Asks a peer whether its application refuses connections.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use super::leg::{Broken, Leg};
use crate::io::Connection;

/// How long to wait for a peer to say that its application refuses, which takes a round trip.
/// One that took the connection says nothing at all while it keeps it half-closed, so
/// silence cannot count against it, and one that hangs passes.
const PATIENCE: Duration = Duration::from_millis(250);

/// Opens a stream of no bytes on a mesh connection to a peer. Decides well within `timeout`.
///
/// # Errors
/// If the peer says that its application cannot be reached, or breaks off.
pub(crate) async fn accepted(connection: &mut Connection, timeout: Duration) -> io::Result<()> {
    let mut leg = Leg::framed();
    leg.open();
    poll_fn(|cx| leg.poll_finish(cx, connection)).await?;
    // The other half is for what came before: the connection and its handshake.
    let patience = PATIENCE.min(timeout / 2);
    match tokio::time::timeout(patience, poll_fn(|cx| leg.poll_data(cx, connection))).await {
        Ok(Err(Broken::Refused(reason))) => {
            Err(io::Error::other(format!("its sidecar does not reach the application: {}", reason.as_str())))
        }
        Ok(Err(Broken::Connection)) => Err(io::Error::other("its sidecar broke off")),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::io::Transport;

    /// Silence was waited for longer than a check may take, so that each of them failed.
    #[tokio::test(start_paused = true)]
    async fn silence_is_no_refusal_within_the_time_of_a_short_check() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let _silent = listener.accept().await.unwrap();
        let (begun, timeout) = (tokio::time::Instant::now(), Duration::from_millis(100));
        accepted(&mut Connection::new(Transport::Tcp(stream)), timeout).await.unwrap();
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }
}
