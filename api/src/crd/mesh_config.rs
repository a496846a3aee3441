//! `MeshConfig`: settings of the whole mesh, one object named `mesh`.

use schemars::{JsonSchema, Schema, json_schema};
use serde::{Deserialize, Serialize};

use super::{Attachment, Kind, Metadata, Violation};

/// The only name that a `MeshConfig` may have.
pub const MESH_NAME: &str = "mesh";

/// Settings of the whole mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfigSpec {
    /// The trust domain of all identities. It is fixed when the control plane
    /// makes its first root; another value here is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255), regex(pattern = "^[a-z0-9._-]{1,255}$"))]
    pub trust_domain: Option<String>,
    /// What happens to destinations outside the registry. Default: `AllowAny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "AllowAny"))]
    pub egress: Option<EgressMode>,
}

/// What happens to destinations outside the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EgressMode {
    /// They are passed through.
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

impl Kind for MeshConfigSpec {
    const KIND: &'static str = "MeshConfig";
    const PLURAL: &'static str = "meshconfigs";
    const NAMESPACED: bool = false;
    const SHORT_NAMES: &'static [&'static str] = &["mesh"];
    const ATTACHMENT: Option<Attachment> = None;
    const COLUMNS: &'static [(&'static str, &'static str)] =
        &[("Trust Domain", ".spec.trustDomain"), ("Egress", ".spec.egress")];

    fn name_schema() -> Option<Schema> {
        Some(json_schema!({ "enum": [MESH_NAME] }))
    }

    fn validate(&self, metadata: &Metadata) -> Vec<Violation> {
        let mut violations = Vec::new();
        if metadata.name != MESH_NAME {
            violations.push(Violation::new(
                "metadata.name",
                format!("{:?}: the mesh has one MeshConfig, and its name is {MESH_NAME:?}", metadata.name),
            ));
        }
        if let Some(Err(error)) = self.trust_domain.as_deref().map(str::parse::<crate::spiffe::TrustDomain>) {
            violations.push(Violation::new("spec.trustDomain", error.to_string()));
        }
        violations
    }
}
