//! The DNS responder that an application in the mesh asks: names of mesh
//! services get stable synthetic addresses, everything else is forwarded to
//! the host's resolvers. In a pod (`Answers`) the cluster's DNS answers for what
//! it knows.
//!
//! `message` and `subject` decide without sockets; `responder` waits for
//! discovery and serves UDP and TCP; `forward` asks the host's resolvers.
//! `resolver` asks them on our own behalf, for the addresses of endpoints outside
//! the mesh: `answer` reads what they say, `names` knows when to ask again.
//! Always holds: a name that nobody but the mesh may know is never denied because
//! discovery was slow (SERVFAIL instead of NXDOMAIN), and a mesh name never has
//! an IPv6 answer but always an empty one, so that clients settle for IPv4.

mod addresses;
pub mod answer;
mod forward;
pub mod message;
mod names;
mod resolver;
mod responder;
mod subject;

pub use addresses::{Addresses, Exhausted};
pub(crate) use forward::Forwarder;
pub(crate) use resolver::{Resolutions, resolver};
pub(crate) use responder::{Answers, Sockets, responder};
