//! Decisions as plain state machines: inputs and a clock in, decisions out.
//! No sockets, no async, no globals, no reading of clocks.

pub mod ejection;
pub mod retry;
