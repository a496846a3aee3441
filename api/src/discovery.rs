//! The discovery protocol: incremental xDS transport with Heddle's own
//! resource types, and the services by which sidecars register and obtain
//! certificates. Generated from `proto/`.

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
mod protocol {
    include!(concat!(env!("OUT_DIR"), "/protocol.rs"));
}

mod unknown;

pub use protocol::envoy::config::core::v3::{ControlPlane, Locality, Node};
pub use protocol::envoy::service::discovery::v3 as xds;
pub use protocol::google::rpc::Status;
pub use protocol::heddle::v1;
pub use unknown::{Unknown, VITAL, unknown_fields};

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

/// The `type_url` of [`v1::Shortfall`] in a status' details.
pub const SHORTFALL: &str = "type.googleapis.com/heddle.v1.Shortfall";

/// The program that a control plane says it is, before its version.
pub const CONTROL_PLANE_AGENT: &str = "heddle-control-plane/";

impl std::fmt::Debug for v1::JwtKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtKey").field("id", &self.id).field("algorithms", &self.algorithms).finish()
    }
}

/// The resource name of the one [`v1::Mesh`].
pub const MESH: &str = "mesh";

/// The resource name under which a sidecar subscribes to its own [`v1::Workload`].
pub const SELF: &str = "self";

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Control plane and sidecars may be one minor version apart: what the newer one says in a field
    /// that the older one does not know is left aside, and everything else arrives.
    #[test]
    fn fields_of_a_newer_version_are_left_aside() {
        let service = v1::Service { name: "users".into(), namespace: "shop".into(), ..Default::default() };
        let mut bytes = service.encode_to_vec();
        // Field 10000 as text, and field 10001 as a message with a field of its own.
        for (field, value) in [(10_000_u32, "new"), (10_001, "\u{8}\u{1}")] {
            prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, &mut bytes);
            prost::encoding::encode_varint(value.len() as u64, &mut bytes);
            bytes.extend_from_slice(value.as_bytes());
        }
        assert_eq!(v1::Service::decode(&*bytes).unwrap(), service);
    }

    /// What the newer one leaves out has the value that fields have by themselves.
    #[test]
    fn a_message_without_fields_is_one() {
        assert_eq!(v1::Workload::decode(&[][..]).unwrap(), v1::Workload::default());
        assert_eq!(v1::Mesh::decode(&[][..]).unwrap(), v1::Mesh::default());
    }
}
