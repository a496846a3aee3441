//! HTTP/2 through real sidecars: what arrives on the wire at either end.

mod failures;
mod harness;
mod streams;
