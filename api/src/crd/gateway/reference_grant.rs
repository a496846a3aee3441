//! `ReferenceGrant`: who may refer to objects of another namespace.

use serde::Deserialize;

use super::MAX_ENTRIES;
use crate::crd::{Metadata, Violation};

/// Permission for references into its namespace. Routes of Services need none
/// (GEP-1294 leaves it to the mesh); those of gateways do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ReferenceGrant {
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it says.
    pub spec: ReferenceGrantSpec,
}

/// Each of `from` may refer to each of `to`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceGrantSpec {
    /// Who refers.
    pub from: Vec<GrantFrom>,
    /// What is referred to.
    pub to: Vec<GrantTo>,
}

/// Who refers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantFrom {
    /// The API group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The namespace.
    pub namespace: String,
}

/// What is referred to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantTo {
    /// The API group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// Absent: all of the kind.
    pub name: Option<String>,
}

impl ReferenceGrant {
    /// What no single field's type can say.
    pub fn validate(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (path, count) in [("spec.from", self.spec.from.len()), ("spec.to", self.spec.to.len())] {
            if count == 0 {
                violations.push(Violation::new(path, "is empty"));
            }
            super::at_most(MAX_ENTRIES, path, count, &mut violations);
        }
        violations
    }
}
