//! An issuer of tokens, as a policy describes it.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::crd::rule::Rule;
use crate::crd::{GatewayDuration, HeaderName, SecretKeyRef, Violation, is_label, is_token, is_url};
use crate::jwk::KeySet;

/// An issuer of tokens. Exactly one of `jwks` and `hmacSecretRef` says how it signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::exactly_one(&["jwks", "hmacSecretRef"])]))]
pub struct JwtProvider {
    /// What errors and metrics call it, unique in the policy.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Exactly what its tokens say in `iss`.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// A token is accepted if its `aud` is one of these. Default: `aud` is not looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 512)))]
    pub audiences: Vec<String>,
    /// Its public keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks: Option<Jwks>,
    /// The key that it shares with us, of at least 32 bytes, in a Secret of the policy's namespace. It
    /// reaches the sidecars of the policy's own workloads alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hmac_secret_ref: Option<SecretKeyRef>,
    /// Where its tokens are looked for. Default: the header `authorization` with `Bearer`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub from: Vec<TokenLocation>,
    /// Whether the application sees the token. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<bool>,
    /// Headers by which the application is told claims. They are removed from every request that the policy
    /// is about, whoever sent them, and set from an accepted token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub claims_to_headers: Vec<ClaimHeader>,
    /// How far its clock and ours may be apart. Default: `60s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_skew: Option<GatewayDuration>,
}

/// A JSON Web Key set (RFC 7517). Exactly one of `inline`, `secretRef`, `file` and `url`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::exactly_one(&["inline", "secretRef", "file", "url"])]))]
pub struct Jwks {
    /// The set as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 262_144))]
    pub inline: Option<String>,
    /// A Secret of the policy's namespace that holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// A file that holds it, by its path from the manifest's folder. Not in Kubernetes, where manifests
    /// are no files.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub file: Option<String>,
    /// Where the control plane fetches it: `https://`, or `http://` from its own machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// How often a file or URL is read anew. The last set that was good stays in force. Default: `5m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_duration: Option<GatewayDuration>,
    /// Limit on one fetch from a URL. Default: `5s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GatewayDuration>,
}

/// A place where tokens are looked for; exactly one field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::exactly_one(&["header", "query", "cookie"])]))]
pub struct TokenLocation {
    /// A header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<TokenHeader>,
    /// A query parameter, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub query: Option<String>,
    /// A cookie, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub cookie: Option<String>,
}

/// A header with a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenHeader {
    /// Its name.
    pub name: HeaderName,
    /// What comes before the token, in any case. A value without it is no token. Default: `Bearer ` for
    /// `authorization`, nothing for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub prefix: Option<String>,
}

impl TokenHeader {
    /// What comes before the token.
    pub fn prefix(&self) -> &str {
        let default = if self.name.as_str() == "authorization" { "Bearer " } else { "" };
        self.prefix.as_deref().unwrap_or(default)
    }
}

/// A header that says what a claim does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimHeader {
    /// The claim, such as `sub`, or by its path, such as `realm_access.roles`. A text, a number or a truth
    /// value is written as it is, a list of those with commas; others are not written.
    #[schemars(length(min = 1, max = 256))]
    pub claim: String,
    /// The header.
    pub header: HeaderName,
}

impl JwtProvider {
    /// Where its tokens are looked for.
    pub fn locations(&self) -> Vec<TokenLocation> {
        if !self.from.is_empty() {
            return self.from.clone();
        }
        let name = "authorization".parse().expect("it is a header's name");
        vec![TokenLocation { header: Some(TokenHeader { name, prefix: None }), ..TokenLocation::default() }]
    }

    /// The Secrets that its keys are in.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretKeyRef> {
        let set = self.jwks.as_ref().and_then(|jwks| jwks.secret_ref.as_ref());
        set.into_iter().chain(&self.hmac_secret_ref)
    }

    /// Whether the application sees the token.
    pub fn is_forwarded(&self) -> bool {
        self.forward.unwrap_or(true)
    }

    /// How far clocks may be apart.
    pub fn clock_skew(&self) -> Duration {
        self.clock_skew.map_or(DEFAULT_SKEW, GatewayDuration::get)
    }

    pub(super) fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        let mut add = |field: &str, message: String| {
            violations.push(Violation::new(format!("{path}{field}"), message));
        };
        if !is_label(&self.name) {
            let name = &self.name;
            add(
                ".name",
                format!("{name:?} is no name: lower-case letters, digits and inner hyphens, at most 63"),
            );
        }
        if !is_text(&self.issuer, MAX_TEXT) {
            add(".issuer", format!("has to have between 1 and {MAX_TEXT} visible characters"));
        }
        if self.audiences.len() > MAX_AUDIENCES {
            add(".audiences", format!("has more than {MAX_AUDIENCES} items"));
        }
        for (index, audience) in self.audiences.iter().enumerate() {
            if !is_text(audience, MAX_TEXT) {
                let message = format!("has to have between 1 and {MAX_TEXT} visible characters");
                add(&format!(".audiences[{index}]"), message);
            }
        }
        match (&self.jwks, &self.hmac_secret_ref) {
            (None, None) | (Some(_), Some(_)) => {
                add("", "needs exactly one of jwks and hmacSecretRef".into())
            }
            _ => {}
        }
        if self.clock_skew.is_some_and(|skew| skew.get() > MAX_SKEW) {
            add(".clockSkew", "is longer than 10m".into());
        }
        if self.from.len() > MAX_LOCATIONS {
            add(".from", format!("has more than {MAX_LOCATIONS} items"));
        }
        if self.claims_to_headers.len() > MAX_HEADERS {
            add(".claimsToHeaders", format!("has more than {MAX_HEADERS} items"));
        }
        let locations = self.locations();
        for (index, ClaimHeader { claim, header }) in self.claims_to_headers.iter().enumerate() {
            let item = format!(".claimsToHeaders[{index}]");
            if !is_claim(claim) {
                add(&format!("{item}.claim"), format!("{claim:?} is no claim's path"));
            }
            let carries = locations.iter().flat_map(|from| &from.header).any(|from| from.name == *header);
            let earlier = &self.claims_to_headers[..index];
            if header.is_reserved() {
                add(&format!("{item}.header"), format!("{header} belongs to the proxy"));
            } else if carries {
                add(&format!("{item}.header"), format!("{header} is where the token is looked for"));
            } else if earlier.iter().any(|other| other.header == *header) {
                add(&format!("{item}.header"), format!("{header} is named twice"));
            }
        }
        for (index, from) in self.from.iter().enumerate() {
            from.validate(&format!("{path}.from[{index}]"), violations);
        }
        if let Some(jwks) = &self.jwks {
            jwks.validate(&format!("{path}.jwks"), violations);
        }
        if let Some(secret) = &self.hmac_secret_ref {
            secret.validate(&format!("{path}.hmacSecretRef"), violations);
        }
    }
}

impl TokenLocation {
    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        let mut add = |field: &str, message: String| {
            violations.push(Violation::new(format!("{path}{field}"), message));
        };
        let given = [self.header.is_some(), self.query.is_some(), self.cookie.is_some()];
        if given.into_iter().filter(|given| *given).count() != 1 {
            add("", "needs exactly one of header, query and cookie".into());
        }
        if let Some(header) = &self.header {
            // Cookies and whom a request is for have a form of their own.
            if header.name.is_reserved() || header.name.as_str() == "cookie" {
                add(".header.name", format!("{} carries no token", header.name));
            }
            if header.prefix().len() > 64 || !header.prefix().bytes().all(|b| (b' '..=b'~').contains(&b)) {
                add(".header.prefix", "has to be at most 64 visible characters".into());
            }
        }
        if self.query.as_ref().is_some_and(|name| !is_text(name, 256)) {
            add(".query", "has to have between 1 and 256 visible characters".into());
        }
        if self.cookie.as_ref().is_some_and(|name| name.len() > 256 || !is_token(name)) {
            add(".cookie", "is no cookie's name".into());
        }
    }
}

impl Jwks {
    /// How often a file or URL is read anew.
    pub fn cache_duration(&self) -> Duration {
        self.cache_duration.map_or(DEFAULT_CACHE, GatewayDuration::get)
    }

    /// Limit on one fetch.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(DEFAULT_FETCH, GatewayDuration::get)
    }

    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        let mut add = |field: &str, message: String| {
            violations.push(Violation::new(format!("{path}{field}"), message));
        };
        let Self { inline, secret_ref, file, url, cache_duration, timeout } = self;
        let given = [inline.is_some(), secret_ref.is_some(), file.is_some(), url.is_some()];
        if given.into_iter().filter(|given| *given).count() != 1 {
            add("", "needs exactly one of inline, secretRef, file and url".into());
        }
        if let Some(inline) = inline {
            match KeySet::parse(inline.as_bytes()) {
                Ok(set) => set.broken.iter().for_each(|why| add(".inline", why.clone())),
                Err(error) => add(".inline", error.to_string()),
            }
        }
        if file.as_ref().is_some_and(|file| !is_inner_path(file)) {
            let message = "is no path from the manifest's folder: relative, without `..`, at most 1024 bytes";
            add(".file", message.into());
        }
        if url.as_ref().is_some_and(|url| !is_fetched(url)) {
            let message =
                "is no https:// URL without user and fragment, nor one of http:// with a loopback address";
            add(".url", message.into());
        }
        if cache_duration.is_some_and(|time| !(CACHE.0..=CACHE.1).contains(&time.get())) {
            add(".cacheDuration", "has to be between 1s and 24h".into());
        } else if cache_duration.is_some() && file.is_none() && url.is_none() {
            add(".cacheDuration", "has a meaning only with file and url".into());
        }
        if timeout.is_some_and(|time| !(FETCH.0..=FETCH.1).contains(&time.get())) {
            add(".timeout", "has to be between 100ms and 1m".into());
        } else if timeout.is_some() && url.is_none() {
            add(".timeout", "has a meaning only with url".into());
        }
        if let Some(secret) = secret_ref {
            secret.validate(&format!("{path}.secretRef"), violations);
        }
    }
}

impl SecretKeyRef {
    pub(crate) fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        for (field, text) in [("name", &self.name), ("key", &self.key)] {
            if text.is_empty() {
                violations.push(Violation::new(format!("{path}.{field}"), "is empty"));
            }
        }
    }
}

const DEFAULT_SKEW: Duration = Duration::from_secs(60);
const MAX_SKEW: Duration = Duration::from_secs(600);
const DEFAULT_CACHE: Duration = Duration::from_secs(300);
const CACHE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
const DEFAULT_FETCH: Duration = Duration::from_secs(5);
const FETCH: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Of an issuer or an audience, which are URLs or short names.
const MAX_TEXT: usize = 512;

const MAX_AUDIENCES: usize = 16;

/// Each is looked up for each request.
const MAX_LOCATIONS: usize = 4;

/// Each is removed from each request.
const MAX_HEADERS: usize = 16;

fn is_text(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

/// Whether it is the path of a claim: no part of it is empty.
pub(crate) fn is_claim(path: &str) -> bool {
    is_text(path, 256) && path.split('.').all(|part| !part.is_empty())
}

fn is_inner_path(path: &str) -> bool {
    use std::path::{Component, Path};
    let inner = |component| matches!(component, Component::Normal(_) | Component::CurDir);
    (1..=1024).contains(&path.len()) && Path::new(path).components().all(inner)
}

/// Whether keys can be fetched there without anybody on the way changing them.
fn is_fetched(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let own = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    url.len() <= 2048 && is_url(url) && (own || uri.scheme_str() == Some("https"))
}
