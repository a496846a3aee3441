//! From the text of one file, or one object of a cluster, to objects.
//!
//! A file is read as a whole or not at all: with one error nothing of it
//! counts. Kinds that Heddle has no use for are noted; kinds of Heddle's own
//! group that this version does not know are errors, because what they ask
//! for would not be enforced.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use heddle_api::crd::{self, Kind, RouteSpec, Violation};
use heddle_api::name::ServiceName;

use super::object::{Object, ObjectName, Origin, Sourced};
use super::tree::{self, Misfit, Node};
use super::{Location, SourceError};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct FileContent {
    pub(super) objects: Vec<Object>,
    /// What was left out, as "KIND namespace/name" with the reason.
    pub(super) skipped: Vec<(String, &'static str)>,
}

/// Reads the documents of `text`.
///
/// # Errors
/// Everything that is wrong in the file, in the order of its lines.
pub(super) fn read(file: &Arc<Path>, text: &str) -> Result<FileContent, Vec<SourceError>> {
    let mut reader = Reader { file, content: FileContent::default(), errors: Vec::new() };
    match tree::parse(text) {
        Ok(documents) => documents.iter().for_each(|document| reader.document(document)),
        Err(misfit) => reader.misfit(misfit),
    }
    if reader.errors.is_empty() { Ok(reader.content) } else { Err(reader.errors) }
}

/// Reads one object that was found at `place`.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn read_object(place: &Arc<Path>, node: &Node) -> Result<Option<Object>, Vec<SourceError>> {
    let mut reader = Reader { file: place, content: FileContent::default(), errors: Vec::new() };
    reader.document(node);
    if reader.errors.is_empty() { Ok(reader.content.objects.pop()) } else { Err(reader.errors) }
}

struct Reader<'a> {
    file: &'a Arc<Path>,
    content: FileContent,
    errors: Vec<SourceError>,
}

const CUSTOM: &str = "heddle.dev/v1alpha1";
const GATEWAY_V1: &str = "gateway.networking.k8s.io/v1";

impl Reader<'_> {
    fn document(&mut self, node: &Node) {
        if matches!(node.value, tree::Value::Null) {
            return;
        }
        let (api, kind) =
            match (node.field("apiVersion").and_then(Node::text), node.field("kind").and_then(Node::text)) {
                (Some(api), Some(kind)) => (api, kind),
                (None, _) => {
                    return self.error(node, "apiVersion", "is needed: this is no Kubernetes object");
                }
                (_, None) => return self.error(node, "kind", "is needed: this is no Kubernetes object"),
            };
        match (api, kind) {
            ("v1", "List") => {
                node.field("items")
                    .and_then(Node::list)
                    .unwrap_or_default()
                    .iter()
                    .for_each(|item| self.document(item));
            }
            ("v1", "Service") => self.service(node),
            ("discovery.k8s.io/v1", "EndpointSlice") => self.endpoint_slice(node),
            ("v1", "Pod") => self.pod(node),
            ("v1", "Secret") => self.secret(node),
            (GATEWAY_V1 | "gateway.networking.k8s.io/v1beta1", "HTTPRoute") => {
                self.route(node, Object::HttpRoute);
            }
            (GATEWAY_V1 | "gateway.networking.k8s.io/v1alpha2", "GRPCRoute") => {
                self.route(node, Object::GrpcRoute)
            }
            (GATEWAY_V1 | "gateway.networking.k8s.io/v1alpha2", "TCPRoute") => {
                self.route(node, Object::TcpRoute);
            }
            (GATEWAY_V1 | "gateway.networking.k8s.io/v1beta1", "ReferenceGrant") => {
                self.reference_grant(node);
            }
            (CUSTOM, "TrafficPolicy") => self.custom(node, Object::TrafficPolicy),
            (CUSTOM, "FaultPolicy") => self.custom(node, Object::FaultPolicy),
            (CUSTOM, "RateLimitPolicy") => self.custom(node, Object::RateLimitPolicy),
            (CUSTOM, "JwtPolicy") => self.custom(node, Object::JwtPolicy),
            (CUSTOM, "TelemetryPolicy") => self.custom(node, Object::TelemetryPolicy),
            (CUSTOM, "ExternalService") => self.custom(node, Object::ExternalService),
            (CUSTOM, "MeshConfig") => self.custom(node, Object::MeshConfig),
            _ if api.split('/').next() == Some(crd::GROUP) => {
                let message =
                    format!("{kind} of {api} is not supported by this version, so it cannot be enforced");
                self.error(node, "kind", &message);
            }
            _ => self.skip(node, kind, "Heddle has no use for this kind"),
        }
    }

    fn service(&mut self, node: &Node) {
        let Some(service) = self.typed::<crd::Service>(node) else { return };
        let name = namespaced(&service.metadata);
        let mut violations = service.validate();
        if let Err(error) = ServiceName::new(&name.namespace, &name.name) {
            violations.push(Violation { path: "metadata.name".into(), message: error.to_string() });
        }
        self.add(node, name, service, violations, Object::Service);
    }

    fn endpoint_slice(&mut self, node: &Node) {
        let Some(slice) = self.typed::<crd::EndpointSlice>(node) else { return };
        if slice.address_type == crd::AddressType::Fqdn {
            return self.skip(node, "EndpointSlice", "addressType FQDN is not supported by this version");
        }
        let (name, violations) = (namespaced(&slice.metadata), slice.validate());
        self.add(node, name, slice, violations, Object::EndpointSlice);
    }

    fn pod(&mut self, node: &Node) {
        let Some(pod) = self.typed::<crd::Pod>(node) else { return };
        if !pod.is_meshed() {
            return self.skip(node, "Pod", "it has no sidecar: its label heddle.dev/meshed is not \"true\"");
        }
        let (name, violations) = (namespaced(&pod.metadata), pod.validate());
        self.add(node, name, pod, violations, Object::Pod);
    }

    fn secret(&mut self, node: &Node) {
        // Not `typed`: its error would quote what it read.
        let Ok(secret) = node.read::<crd::Secret>() else {
            return self.error(node, "data", "is no Secret with texts by key");
        };
        let (name, violations) = (namespaced(&secret.metadata), secret.validate());
        self.add(node, name, secret, violations, Object::Secret);
    }

    fn route<S: RouteSpec>(&mut self, node: &Node, wrap: fn(Arc<Sourced<crd::Route<S>>>) -> Object) {
        let Some(route) = self.typed::<crd::Route<S>>(node) else { return };
        if !route.spec.hostnames().is_empty()
            && route.spec.parent_refs().iter().any(crd::ParentRef::is_service)
        {
            let what = format!("spec.hostnames of {}", S::KIND);
            self.skip(node, &what, "a route of a Service is for all names of the Service");
        }
        let (name, violations) = (namespaced(&route.metadata), route.spec.validate());
        self.add(node, name, route, violations, wrap);
    }

    fn reference_grant(&mut self, node: &Node) {
        let Some(grant) = self.typed::<crd::ReferenceGrant>(node) else { return };
        let violations = grant.validate();
        if violations.is_empty() {
            self.skip(node, "ReferenceGrant", "routes of Services need no permission");
        }
        self.refuse(&self.origin(node), violations);
    }

    fn custom<K: Kind>(&mut self, node: &Node, wrap: fn(Arc<Sourced<crd::Object<K>>>) -> Object) {
        let Some(object) = self.typed::<crd::Object<K>>(node) else { return };
        let mut name = namespaced(&object.metadata);
        if !K::NAMESPACED {
            name.namespace.clear();
        }
        let violations = object.spec.validate(&object.metadata);
        self.add(node, name, object, violations, wrap);
    }

    fn typed<'n, T: serde::Deserialize<'n>>(&mut self, node: &'n Node) -> Option<T> {
        node.read().map_err(|misfit| self.misfit(misfit)).ok()
    }

    fn add<T>(
        &mut self,
        node: &Node,
        name: ObjectName,
        value: T,
        violations: Vec<Violation>,
        wrap: fn(Arc<Sourced<T>>) -> Object,
    ) {
        let mut violations = violations;
        for impossible in impossible_names(&name) {
            if violations.iter().all(|known| known.path != impossible.path) {
                violations.push(impossible);
            }
        }
        let origin = self.origin(node);
        if violations.is_empty() {
            self.content.objects.push(wrap(Arc::new(Sourced { name, value, origin })));
        } else {
            self.refuse(&origin, violations);
        }
    }

    fn origin(&self, node: &Node) -> Origin {
        Origin::new(self.file.clone(), node.positions())
    }

    fn refuse(&mut self, origin: &Origin, violations: Vec<Violation>) {
        self.errors.extend(violations.into_iter().map(|violation| {
            SourceError::new(origin.locate(&violation.path), violation.path, violation.message)
        }));
    }

    fn skip(&mut self, node: &Node, kind: &str, reason: &'static str) {
        let name = |field| node.field("metadata")?.field(field)?.text();
        let object = match (name("namespace"), name("name").unwrap_or("without a name")) {
            (Some(namespace), name) => format!("{kind} {namespace}/{name}"),
            (None, name) => format!("{kind} {name}"),
        };
        self.content.skipped.push((object, reason));
    }

    fn misfit(&mut self, misfit: Misfit) {
        let position = misfit.position.unwrap_or_default();
        let location = Location { file: self.file.clone(), line: position.line, column: position.column };
        self.errors.push(SourceError::new(location, misfit.field(), misfit.message));
    }

    fn error(&mut self, node: &Node, field: &str, message: &str) {
        let mut positions = BTreeMap::from([(String::new(), node.position)]);
        if let Some(inner) = node.field(field) {
            positions.insert(field.into(), inner.position);
        }
        let location = Origin::new(self.file.clone(), positions).locate(field);
        self.errors.push(SourceError::new(location, field.into(), message.into()));
    }
}

/// Names that no API server would give an object (RFC 1123, as Kubernetes reads it): what a folder holds,
/// a cluster can hold.
fn impossible_names(name: &ObjectName) -> Vec<Violation> {
    const LONGEST: usize = 253;
    let is_label = |text: &str| ServiceName::new("any", text).is_ok();
    let mut violations = Vec::new();
    if name.name.len() > LONGEST || !name.name.split('.').all(is_label) {
        let message =
            format!("{:?} is no name of an object (DNS labels in lower case, joined by dots)", name.name);
        violations.push(Violation { path: "metadata.name".into(), message });
    }
    // Objects of the whole cluster are in none.
    if !name.namespace.is_empty() && !is_label(&name.namespace) {
        let message = format!("{:?} is no namespace (a DNS label in lower case)", name.namespace);
        violations.push(Violation { path: "metadata.namespace".into(), message });
    }
    violations
}

fn namespaced(metadata: &crd::Metadata) -> ObjectName {
    ObjectName { namespace: metadata.namespace().into(), name: metadata.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<FileContent, Vec<SourceError>> {
        super::read(&Arc::from(Path::new("mesh.yaml")), text)
    }

    fn only_error(text: &str) -> (String, u32, String) {
        let errors = read(text).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        (errors[0].field.clone(), errors[0].location.line, errors[0].message.clone())
    }

    const POLICY: &str = "apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: users, namespace: shop}
spec:
  targetRefs: [{group: \"\", kind: Service, name: users}]
  retry:
    backoff:
      base: 25ms
";

    #[test]
    fn documents_of_many_kinds_are_told_apart() {
        let text = format!(
            "{POLICY}---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: users, namespace: shop}}\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {{name: users}}\n  \
             spec: {{ports: [{{port: 80, targetPort: http}}], selector: {{app: users}}}}\n"
        );
        let content = read(&text).unwrap();
        assert_eq!(content.objects.len(), 2);
        assert_eq!(
            content.skipped,
            [("Deployment shop/users".to_owned(), "Heddle has no use for this kind")]
        );
    }

    #[test]
    fn an_impossible_value_is_reported_with_field_and_line() {
        let (field, line, message) = only_error(&format!("{POLICY}      jitter: 2\n"));
        assert_eq!((field.as_str(), line), ("spec.retry.backoff.jitter", 9));
        assert_eq!(message, "2 is not between 0 and 1");
        let (field, line, _) = only_error(&format!("{POLICY}      max: 1ms\n"));
        assert_eq!((field.as_str(), line), ("spec.retry.backoff.max", 9));
        let (field, line, message) = only_error(&format!("{POLICY}      jiter: 1\n"));
        assert_eq!((field.as_str(), line), ("spec.retry.backoff.jiter", 9));
        assert!(message.contains("unknown field"), "{message}");
    }

    #[test]
    fn names_that_no_cluster_would_take_are_errors() {
        let (field, line, message) =
            only_error(&POLICY.replace("name: users, namespace", "name: A_b/c, namespace"));
        assert_eq!((field.as_str(), line), ("metadata.name", 3));
        assert!(message.starts_with("\"A_b/c\" is no name of an object"), "{message}");
        let (field, line, _) = only_error(&POLICY.replace("namespace: shop", "namespace: shop.example"));
        assert_eq!((field.as_str(), line), ("metadata.namespace", 3));
        assert!(read(&POLICY.replace("name: users, namespace", "name: users.v2, namespace")).is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_without_the_words_of_programmers() {
        let (_, _, message) = only_error(&format!("{POLICY}    attempts: two\n"));
        assert_eq!(message, "invalid type: string \"two\", expected a whole number from 0 to 4294967295");
        let (_, _, message) = only_error(&format!("{POLICY}      base: 50ms\n"));
        assert_eq!(message, "duplicate mapping key: base");
    }

    #[test]
    fn aliases_do_not_make_a_small_file_a_large_one() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..8 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        let (_, _, message) = only_error(&bomb);
        assert!(message.starts_with("holds more than 250000 values"), "{message}");
        // Many small documents are no bomb.
        let many: String = (0..2000)
            .map(|n| {
                format!(
                    "---\n{}",
                    POLICY.replace("name: users, namespace", &format!("name: u{n}, namespace"))
                )
            })
            .collect();
        assert_eq!(read(&many).unwrap().objects.len(), 2000);
    }

    #[test]
    fn kinds_of_heddle_that_cannot_be_enforced_are_errors() {
        let (field, line, message) =
            only_error("apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n");
        assert_eq!((field.as_str(), line), ("kind", 2));
        assert!(message.contains("not supported by this version"), "{message}");
    }

    /// A Service with a canary, as people write it: several kinds in one file.
    const ROUTES: &str = "
# Ten per cent of the users meet the new version.
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: users
  namespace: shop
  labels: {app: users}
  annotations: {example.com/owner: shop}
spec:
  hostnames: [users.example.com]
  parentRefs:
  - group: ''
    kind: Service
    name: users
    port: 80
  rules:
  - name: split
    matches:
    - path: {type: PathPrefix, value: /users}
    backendRefs:
    - {name: users-v1, port: 80, weight: 90}
    - {name: users-v2, port: 80, weight: 10}
status: {parents: []}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: users, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: users}]
  rules: [{matches: [{method: {service: shop.Users}}], backendRefs: [{name: users, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: ledger, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: ledger}]
  rules: [{backendRefs: [{name: ledger, port: 5432}]}]
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: all, namespace: shop}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: bank}]
  to: [{group: '', kind: Service}]
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: users-canary, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: split}]
  canary: {by: {header: x-user-id}}
  when: [{header: x-plan, in: [gold, silver]}]
";

    #[test]
    fn routes_are_read_beside_what_they_attach_to() {
        let content = read(ROUTES).unwrap();
        assert_eq!(content.objects.len(), 5);
        let skipped: Vec<_> = content.skipped.iter().map(|(object, _)| object.as_str()).collect();
        assert_eq!(skipped, ["spec.hostnames of HTTPRoute shop/users", "ReferenceGrant shop/all"]);
    }

    #[test]
    fn an_impossible_route_is_reported_with_field_and_line() {
        for (from, to, field) in [
            ("value: /users", "value: users", "spec.rules[0].matches[0].path.value"),
            (
                "PathPrefix, value: /users",
                "RegularExpression, value: '/('",
                "spec.rules[0].matches[0].path.value",
            ),
            ("weight: 10}", "weight: 1000001}", "spec.rules[0].backendRefs[1].weight"),
            ("- path:", "- paht:", "spec.rules[0].matches[0].paht"),
            ("    port: 80", "    prot: 80", "spec.parentRefs[0].prot"),
            ("service: shop.Users", "service: shop/Users", "spec.rules[0].matches[0].method.service"),
            ("to: [{group: '', kind: Service}]", "to: []", "spec.to"),
            ("in: [gold, silver]", "in: []", "spec.when[0].in"),
        ] {
            let text = ROUTES.replacen(from, to, 1);
            let line = text.lines().position(|line| line.contains(to)).unwrap() + 1;
            let (found, at, message) = only_error(&text);
            assert_eq!((found.as_str(), at as usize), (field, line), "{message}");
        }
    }

    #[test]
    fn an_address_of_the_wrong_family_is_an_error() {
        let (field, line, _) = only_error(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\n\
             endpoints:\n- addresses: [10.0.0.1]\n- addresses:\n  - \"::1\"\n",
        );
        assert_eq!((field.as_str(), line), ("endpoints[1].addresses[0]", 8));
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert_eq!(only_error("hello: world\n").0, "apiVersion");
        assert_eq!(only_error("apiVersion: v1\n").0, "kind");
        assert!(read("# only a comment\n").unwrap().objects.is_empty());
    }
}
