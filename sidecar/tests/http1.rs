//! HTTP/1 through running workers, over real sockets: what a client and an
//! upstream see on the wire.

#[path = "http1/harness.rs"]
mod harness;

#[path = "http1/exchange.rs"]
mod exchange;
#[path = "http1/failures.rs"]
mod failures;
