//! HTTP/2 and gRPC.

pub(crate) mod coalesce;
pub(crate) mod turn;
