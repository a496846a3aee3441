//! The cluster that the control plane runs for: how its API server is reached.
//!
//! What is read from there is the business of [`crate::source`].

pub mod client;
