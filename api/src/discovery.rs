//! The discovery protocol: incremental xDS transport with Heddle's own
//! resource types, and the services by which sidecars register and obtain
//! certificates. Generated from `proto/`.

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
mod protocol {
    include!(concat!(env!("OUT_DIR"), "/protocol.rs"));
}

pub use protocol::envoy::config::core::v3::{Locality, Node};
pub use protocol::envoy::service::discovery::v3 as xds;
pub use protocol::google::rpc::Status;
pub use protocol::heddle::v1;

/// A message that travels as an xDS resource.
pub trait ResourceType: prost::Message + Default {
    /// The `type_url` under which it is subscribed and sent.
    const TYPE_URL: &'static str;
}

macro_rules! resource_types {
    ($($message:ident),* $(,)?) => {$(
        impl ResourceType for v1::$message {
            const TYPE_URL: &'static str = concat!("type.googleapis.com/heddle.v1.", stringify!($message));
        }
    )*};
}

resource_types!(Address, Mesh, Service, TrustBundle, Workload);

/// The resource name of the one [`v1::Mesh`].
pub const MESH: &str = "mesh";

/// The resource name under which a sidecar subscribes to its own [`v1::Workload`].
pub const SELF: &str = "self";
