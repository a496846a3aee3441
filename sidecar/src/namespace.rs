//! The network namespace of a local application, and the way into it.
//!
//! The application lives in a namespace in which every address is local and
//! every connection leads to sockets that this process made there; the
//! process itself stays in the host's. One thread remains inside for ever: it
//! alone can make sockets there and change the rules. Sockets belong to the
//! namespace they were made in, whichever thread uses them later.
//!
//! Always holds: connections that this sidecar makes to the application carry
//! [`network::MARK`], which the rules leave alone, so nothing goes in circles.
//! Which process enters the namespace, and when, is [`crate::run`]'s business.

pub(crate) mod host_ports;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod resident;
pub(crate) mod sockets;
