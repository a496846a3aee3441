//! What a sidecar tells about itself: metrics, traces and the access log.
//!
//! Workers write into memory of their own (cells, rings, buffers), bounded and
//! without waiting for anyone; the agent's thread reads, encodes and sends. What does
//! not fit is dropped and counted: telemetry never slows or ends a request.
//! When to record what is left to the data path.

pub mod access_log;
mod mailbox;
pub mod metrics;
pub mod otlp;
pub mod span;
pub mod trace;
