//! Heddle's sidecar: the data plane beside one workload.
//!
//! `ARCHITECTURE.md` at the repository's root is the map of these modules and
//! of a request's way through them.

mod admin;
mod agent;
pub mod check;
pub mod cli;
pub mod config;
pub mod detect;
pub mod dns;
pub mod explain;
mod fallback;
mod guard;
mod hop;
pub mod http1;
mod http2;
mod inbound;
mod init;
pub mod io;
mod jwt;
pub mod listener;
pub mod log;
mod memory;
mod mirror;
mod namespace;
mod netlink;
mod outbound;
pub mod output;
pub mod pod;
pub mod policy;
pub mod proxy;
mod rate_limit;
pub mod reason;
pub mod route;
pub mod routing;
pub mod run;
pub mod runtime_dir;
pub mod sanitize;
mod session;
pub mod settings;
mod sys;
mod tcp;
pub mod telemetry;
pub mod upstream;
mod wait;
pub mod wheel;
mod word;
pub mod worker;
