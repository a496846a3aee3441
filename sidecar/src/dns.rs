//! The DNS responder that an application in the mesh asks: names of mesh
//! services get stable synthetic addresses, everything else is forwarded to
//! the host's resolvers.

mod addresses;

pub use addresses::{Addresses, Exhausted};
