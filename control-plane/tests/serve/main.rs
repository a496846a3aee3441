//! The control plane from outside: the real binary, real sockets, and sidecars
//! that are played by a gRPC client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod discovery;
mod harness;
mod identity;
mod lifecycle;
mod registry;
mod webhook;
