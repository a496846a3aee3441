//! Asks a peer whether its application takes connections.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use super::leg::{Broken, Leg};
use crate::io::Connection;

/// How long a peer that can reach its application may be silent about it: an application
/// that keeps a half-closed connection says nothing, while a refusal takes a round trip.
const PATIENCE: Duration = Duration::from_millis(250);

/// Opens a stream of no bytes on a mesh connection to a peer.
///
/// # Errors
/// If the peer says that its application cannot be reached, or breaks off.
pub(crate) async fn accepted(connection: &mut Connection) -> io::Result<()> {
    let mut leg = Leg::framed();
    leg.open();
    poll_fn(|cx| leg.poll_finish(cx, connection)).await?;
    match tokio::time::timeout(PATIENCE, poll_fn(|cx| leg.poll_data(cx, connection))).await {
        Ok(Err(Broken::Refused(reason))) => {
            Err(io::Error::other(format!("its sidecar does not reach the application: {}", reason.as_str())))
        }
        Ok(Err(Broken::Connection)) => Err(io::Error::other("its sidecar broke off")),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}
