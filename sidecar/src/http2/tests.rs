//! HTTP/2 through real sidecars: what arrives on the wire at either end.

mod affinity;
mod failures;
mod harness;
mod hedging;
mod stale;
mod streams;
