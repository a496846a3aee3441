//! Decisions as plain state machines: inputs and a clock in, decisions out.
//! No sockets, no async, no globals, no reading of clocks.
//!
//! What a worker keeps per endpoint ([`ewma::PeakEwma`], [`breaker::Breaker`])
//! changes through `&self`: workers are single-threaded, so `Cell` suffices and
//! several owners may hold an endpoint. Nothing here is shared by threads.

pub mod alert;
pub mod backoff;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod chain;
pub mod concurrency;
pub mod ewma;
pub mod fallback;
pub mod fault;
pub mod hash_key;
pub mod health_check;
pub mod jwt;
pub mod pace;
pub mod rate_limit;
pub mod request_match;
pub mod retry;
pub mod rng;
pub mod score;
pub mod stale;
