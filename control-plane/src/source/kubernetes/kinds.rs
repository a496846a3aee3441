//! The kinds that are watched, and where an API server serves them.

use heddle_api::crd::{
    ExternalServiceSpec, FaultPolicySpec, GROUP, JwtPolicySpec, Kind, MESHED_LABEL, MeshConfigSpec,
    RateLimitPolicySpec, TelemetryPolicySpec, TrafficPolicySpec, VERSION,
};

use super::super::ObjectName;
use crate::kubernetes::watch::Collection;

/// A kind, or of it the objects that are of use.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Watched {
    /// Its name, such as `HTTPRoute`.
    pub(super) kind: &'static str,
    /// The name of its collection in URLs.
    plural: &'static str,
    /// Empty for Kubernetes' core.
    group: &'static str,
    /// Those that can be read, the best first. A cluster need not serve all of them, or any.
    pub(super) versions: &'static [&'static str],
    /// By label.
    labels: Option<String>,
    /// The only one.
    pub(super) only: Option<ObjectName>,
}

const GATEWAY_GROUP: &str = heddle_api::crd::GATEWAY_GROUP;

impl Watched {
    const fn new(
        group: &'static str,
        versions: &'static [&'static str],
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self { kind, plural, group, versions, labels: None, only: None }
    }

    const fn custom<K: Kind>() -> Self {
        Self::new(GROUP, &[VERSION], K::PLURAL, K::KIND)
    }

    /// All kinds that are watched as a whole, or by label.
    pub(super) fn all() -> Vec<Self> {
        let meshed = Some(format!("{MESHED_LABEL}=true"));
        vec![
            Self::new("", &["v1"], "services", "Service"),
            Self::new("discovery.k8s.io", &["v1"], "endpointslices", "EndpointSlice"),
            Self { labels: meshed, ..Self::new("", &["v1"], "pods", "Pod") },
            Self::new(GATEWAY_GROUP, &["v1", "v1beta1"], "httproutes", "HTTPRoute"),
            Self::new(GATEWAY_GROUP, &["v1", "v1alpha2"], "grpcroutes", "GRPCRoute"),
            Self::new(GATEWAY_GROUP, &["v1", "v1alpha2"], "tcproutes", "TCPRoute"),
            Self::custom::<TrafficPolicySpec>(),
            Self::custom::<FaultPolicySpec>(),
            Self::custom::<RateLimitPolicySpec>(),
            Self::custom::<JwtPolicySpec>(),
            Self::custom::<TelemetryPolicySpec>(),
            Self::custom::<ExternalServiceSpec>(),
            Self::custom::<MeshConfigSpec>(),
        ]
    }

    /// One Secret. Of a cluster's Secrets only those are read that a policy refers to.
    pub(super) fn secret(name: ObjectName) -> Self {
        Self { only: Some(name), ..Self::new("", &["v1"], "secrets", "Secret") }
    }

    /// Whether a cluster may be without it.
    pub(super) fn is_optional(&self) -> bool {
        self.group == GROUP || self.group == GATEWAY_GROUP
    }

    /// The definition that makes an API server serve it.
    pub(super) fn definition(&self) -> Option<String> {
        self.is_optional().then(|| format!("{}.{}", self.plural, self.group))
    }

    /// `GROUP/VERSION` as objects name it.
    pub(super) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// Where the collection is.
    fn path(&self, version: &str) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        let namespace = match &self.only {
            Some(name) => format!("/namespaces/{}", name.namespace),
            None => String::new(),
        };
        format!("/{root}/{}{namespace}/{}", self.api_version(version), self.plural)
    }

    /// What is watched where it is served in the version at that place in `versions`.
    pub(super) fn collection(&self, version: usize) -> Collection {
        let version = self.versions.get(version).copied().unwrap_or_default();
        let all = Collection { path: self.path(version), labels: self.labels.clone(), fields: None };
        match &self.only {
            Some(name) => all.named(&name.name),
            None => all,
        }
    }

    /// The object at this place, or the collection, for people.
    pub(super) fn place(&self, source: &str) -> String {
        match &self.only {
            Some(name) => format!("{source}:{}/{name}", self.kind),
            None => format!("{source}:{}", self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_heddles_own_is_watched() {
        let watched = Watched::all();
        for (file, definition) in heddle_api::crd::manifests() {
            let name = definition["metadata"]["name"].as_str();
            let found = watched.iter().find(|kind| kind.definition().as_deref() == name);
            let kind = found.unwrap_or_else(|| panic!("the kind of {file} is not watched"));
            assert_eq!(definition["spec"]["names"]["kind"], kind.kind);
        }
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let all = Watched::all();
        let path = |kind: &str, version| all.iter().find(|k| k.kind == kind).unwrap().path(version);
        assert_eq!(path("Service", "v1"), "/api/v1/services");
        assert_eq!(path("EndpointSlice", "v1"), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(path("HTTPRoute", "v1beta1"), "/apis/gateway.networking.k8s.io/v1beta1/httproutes");
        let name = ObjectName { namespace: "shop".into(), name: "hook".into() };
        let secret = Watched::secret(name);
        assert_eq!(secret.path("v1"), "/api/v1/namespaces/shop/secrets");
        assert_eq!(secret.collection(0).fields.unwrap(), "metadata.name=hook");
    }
}
