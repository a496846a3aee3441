//! HTTP/2 and gRPC.

pub(crate) mod coalesce;
pub(crate) mod turn;

/// Serves a client's HTTP/2 connection.
pub(crate) async fn serve(connection: crate::io::Connection, session: crate::session::Session) {
    let _ = (connection, session);
}
