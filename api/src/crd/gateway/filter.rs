//! What is done to requests and responses on their way.

use serde::Deserialize;

use super::text::{self, HeaderName};
use super::{BackendObject, Cors, MAX_ENTRIES};
use crate::crd::{Percent, PortNumber, Violation};

/// What is done to requests (`HTTPRouteFilter`, `GRPCRouteFilter`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Wire")]
pub enum Filter {
    /// Changes the headers of requests.
    RequestHeaderModifier(HeaderModifier),
    /// Changes the headers of responses.
    ResponseHeaderModifier(HeaderModifier),
    /// Sends copies to another backend.
    RequestMirror(Mirror),
    /// Answers with a redirect.
    RequestRedirect(Redirect),
    /// Changes host and path.
    UrlRewrite(UrlRewrite),
    /// Answers questions of browsers about cross-origin requests.
    Cors(Cors),
    /// Asks another service for permission; what it says is not read.
    ExternalAuth,
    /// Something of another API group.
    ExtensionRef(LocalObject),
}

/// The filter's fields stand beside its type, at most one of them given.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    r#type: FilterType,
    request_header_modifier: Option<HeaderModifier>,
    response_header_modifier: Option<HeaderModifier>,
    request_mirror: Option<Mirror>,
    request_redirect: Option<Redirect>,
    url_rewrite: Option<UrlRewrite>,
    cors: Option<Cors>,
    external_auth: Option<serde::de::IgnoredAny>,
    extension_ref: Option<LocalObject>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum FilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestMirror,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    #[serde(rename = "CORS")]
    Cors,
    ExternalAuth,
    ExtensionRef,
}

impl TryFrom<Wire> for Filter {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        let given = [
            wire.request_header_modifier.is_some(),
            wire.response_header_modifier.is_some(),
            wire.request_mirror.is_some(),
            wire.request_redirect.is_some(),
            wire.url_rewrite.is_some(),
            wire.cors.is_some(),
            wire.external_auth.is_some(),
            wire.extension_ref.is_some(),
        ];
        let filter = match wire.r#type {
            FilterType::RequestHeaderModifier => {
                wire.request_header_modifier.map(Self::RequestHeaderModifier)
            }
            FilterType::ResponseHeaderModifier => {
                wire.response_header_modifier.map(Self::ResponseHeaderModifier)
            }
            FilterType::RequestMirror => wire.request_mirror.map(Self::RequestMirror),
            FilterType::RequestRedirect => wire.request_redirect.map(Self::RequestRedirect),
            FilterType::UrlRewrite => wire.url_rewrite.map(Self::UrlRewrite),
            FilterType::Cors => wire.cors.map(Self::Cors),
            FilterType::ExternalAuth => wire.external_auth.map(|_| Self::ExternalAuth),
            FilterType::ExtensionRef => wire.extension_ref.map(Self::ExtensionRef),
        };
        let count = given.iter().filter(|given| **given).count();
        filter
            .filter(|_| count == 1)
            .ok_or_else(|| format!("has to have the field of its type, {:?}, and no other", wire.r#type))
    }
}

/// Changes of headers, at most one for each name (`HTTPHeaderFilter`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderModifier {
    /// Replaces all values.
    #[serde(default)]
    pub set: Vec<Header>,
    /// Appends.
    #[serde(default)]
    pub add: Vec<Header>,
    /// Removes.
    #[serde(default)]
    pub remove: Vec<HeaderName>,
}

/// A header with its value.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The name.
    pub name: HeaderName,
    /// The value.
    pub value: String,
}

/// Copies of requests, the answers to which are ignored (`HTTPRequestMirrorFilter`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirror {
    /// Where they go.
    pub backend_ref: BackendObject,
    /// Of a hundred requests, so many are copied.
    pub percent: Option<Percent>,
    /// The same as a fraction. Absent like `percent`: all.
    pub fraction: Option<Fraction>,
}

/// A share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fraction {
    /// So many …
    pub numerator: u32,
    /// … of so many.
    #[serde(default = "hundred")]
    pub denominator: u32,
}

fn hundred() -> u32 {
    100
}

/// An answer that sends the client elsewhere (`HTTPRequestRedirectFilter`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redirect {
    /// Absent: the request's.
    pub scheme: Option<String>,
    /// Absent: the request's.
    pub hostname: Option<String>,
    /// Absent: the request's.
    pub path: Option<PathModifier>,
    /// Absent: that of the scheme, or else the service's.
    pub port: Option<PortNumber>,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "found")]
    pub status_code: u16,
}

fn found() -> u16 {
    302
}

/// Changes of what is asked for (`HTTPURLRewriteFilter`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UrlRewrite {
    /// The new host.
    pub hostname: Option<String>,
    /// The new path.
    pub path: Option<PathModifier>,
}

/// How a path is replaced (`HTTPPathModifier`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WirePathModifier")]
pub enum PathModifier {
    /// As a whole.
    Full(String),
    /// In the part that the rule's prefix match took.
    Prefix(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WirePathModifier {
    r#type: PathModifierType,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Debug, Deserialize)]
enum PathModifierType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

impl TryFrom<WirePathModifier> for PathModifier {
    type Error = String;

    fn try_from(wire: WirePathModifier) -> Result<Self, String> {
        match (&wire.r#type, wire.replace_full_path, wire.replace_prefix_match) {
            (PathModifierType::ReplaceFullPath, Some(path), None) => Ok(Self::Full(path)),
            (PathModifierType::ReplacePrefixMatch, None, Some(path)) => Ok(Self::Prefix(path)),
            (kind, ..) => Err(format!("has to have the field of its type, {kind:?}, and no other")),
        }
    }
}

/// An object in the route's namespace (`LocalObjectReference`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalObject {
    /// The API group.
    #[serde(default)]
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The object's name.
    pub name: String,
}

/// Judges the filters at `path` of a GRPCRoute.
pub(super) fn validate_grpc(path: &str, filters: &[Filter], violations: &mut Vec<Violation>) {
    for (index, filter) in filters.iter().enumerate() {
        if matches!(
            filter,
            Filter::RequestRedirect(_) | Filter::UrlRewrite(_) | Filter::Cors(_) | Filter::ExternalAuth
        ) {
            let message = "is no filter for gRPC";
            violations.push(Violation::new(format!("{path}[{index}].type"), message));
        }
    }
    validate_http(path, filters, true, violations);
}

/// Judges the filters at `path`, which belong to a rule whose only path match is a prefix or not.
pub(super) fn validate_http(path: &str, filters: &[Filter], prefix: bool, violations: &mut Vec<Violation>) {
    super::at_most(MAX_ENTRIES, path, filters.len(), violations);
    for (index, filter) in filters.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let same = |other: &Filter| std::mem::discriminant(other) == std::mem::discriminant(filter);
        let repeatable = matches!(filter, Filter::RequestMirror(_) | Filter::ExtensionRef(_));
        if !repeatable && filters[..index].iter().any(same) {
            violations.push(Violation::new(&path, "is there twice; at most one filter of this type may be"));
        }
        let redirects = |other: &Filter| matches!(other, Filter::RequestRedirect(_));
        if matches!(filter, Filter::UrlRewrite(_)) && filters.iter().any(redirects) {
            violations.push(Violation::new(&path, "rewrites what another filter redirects"));
        }
        filter.validate(&path, prefix, violations);
    }
}

impl Filter {
    fn validate(&self, path: &str, prefix: bool, violations: &mut Vec<Violation>) {
        match self {
            Self::RequestHeaderModifier(headers) => {
                headers.validate(&format!("{path}.requestHeaderModifier"), violations);
            }
            Self::ResponseHeaderModifier(headers) => {
                headers.validate(&format!("{path}.responseHeaderModifier"), violations);
            }
            Self::RequestMirror(mirror) => mirror.validate(&format!("{path}.requestMirror"), violations),
            Self::RequestRedirect(redirect) => {
                redirect.validate(&format!("{path}.requestRedirect"), prefix, violations);
            }
            Self::UrlRewrite(UrlRewrite { hostname, path: new }) => {
                let path = format!("{path}.urlRewrite");
                target(&path, hostname.as_deref(), new.as_ref(), prefix, violations);
            }
            Self::Cors(cors) => cors.validate(&format!("{path}.cors"), violations),
            Self::ExternalAuth | Self::ExtensionRef(_) => {}
        }
    }
}

impl HeaderModifier {
    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        let mut names: Vec<&HeaderName> = Vec::new();
        let mut once = |path: String, name, violations: &mut Vec<Violation>| {
            if names.contains(&name) {
                violations.push(Violation::new(path, format!("{name} has more than one action")));
            }
            names.push(name);
        };
        for (field, headers) in [("set", &self.set), ("add", &self.add)] {
            let path = format!("{path}.{field}");
            super::at_most(MAX_ENTRIES, &path, headers.len(), violations);
            for (index, header) in headers.iter().enumerate() {
                once(format!("{path}[{index}].name"), &header.name, violations);
                text::header_value(&format!("{path}[{index}].value"), &header.value, violations);
            }
        }
        super::at_most(MAX_ENTRIES, &format!("{path}.remove"), self.remove.len(), violations);
        for (index, name) in self.remove.iter().enumerate() {
            once(format!("{path}.remove[{index}]"), name, violations);
        }
    }
}

impl Mirror {
    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        self.backend_ref.validate(&format!("{path}.backendRef"), violations);
        if self.percent.is_some() && self.fraction.is_some() {
            let message = "stands beside percent; only one of them may be given";
            violations.push(Violation::new(format!("{path}.fraction"), message));
        }
        if let Some(Fraction { numerator, denominator }) = self.fraction {
            let mut add = |field: &str, message: String| {
                violations.push(Violation::new(format!("{path}.fraction.{field}"), message));
            };
            if denominator == 0 {
                add("denominator", "has to be at least 1".into());
            } else if numerator > denominator {
                add("numerator", format!("{numerator} is more than denominator, {denominator}"));
            }
        }
    }
}

impl Redirect {
    fn validate(&self, path: &str, prefix: bool, violations: &mut Vec<Violation>) {
        if let Some(scheme) = self.scheme.as_deref().filter(|scheme| !matches!(*scheme, "http" | "https")) {
            let message = format!("{scheme:?} is neither http nor https");
            violations.push(Violation::new(format!("{path}.scheme"), message));
        }
        if !matches!(self.status_code, 301 | 302 | 303 | 307 | 308) {
            let message = format!("{} is none of 301, 302, 303, 307 and 308", self.status_code);
            violations.push(Violation::new(format!("{path}.statusCode"), message));
        }
        target(path, self.hostname.as_deref(), self.path.as_ref(), prefix, violations);
    }
}

/// Judges a new host and a new path.
fn target(
    path: &str,
    hostname: Option<&str>,
    new: Option<&PathModifier>,
    prefix: bool,
    violations: &mut Vec<Violation>,
) {
    if let Some(host) = hostname.filter(|host| !text::is_section_name(host)) {
        let message = format!("{host:?} is no host name (RFC 1123, lower case, no wildcard, no port)");
        violations.push(Violation::new(format!("{path}.hostname"), message));
    }
    match new {
        Some(PathModifier::Full(value)) => {
            text::path_value(&format!("{path}.path.replaceFullPath"), value, violations);
        }
        Some(PathModifier::Prefix(value)) => {
            let path = format!("{path}.path.replacePrefixMatch");
            text::path_value(&path, value, violations);
            if !prefix {
                let message = "needs a rule with exactly one match, on a PathPrefix";
                violations.push(Violation::new(path, message));
            }
        }
        None => {}
    }
}
