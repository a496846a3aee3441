//! Cross-origin requests (Fetch Standard, section 3.2).

use serde::Deserialize;

use super::at_most;
use super::http_route::is_method;
use super::text::{self, HeaderName};
use crate::crd::Violation;

/// Who may ask across origins, and for what (`HTTPCORSFilter`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// Whose pages: `*`, or origins with a `*` at the beginning of the host.
    #[serde(default)]
    pub allow_origins: Vec<String>,
    /// Whether with cookies and the like.
    #[serde(default)]
    pub allow_credentials: bool,
    /// With which methods, or `*`.
    #[serde(default)]
    pub allow_methods: Vec<String>,
    /// With which headers, or `*`.
    #[serde(default)]
    pub allow_headers: Vec<HeaderName>,
    /// Which headers of the answer they may read, or `*`.
    #[serde(default)]
    pub expose_headers: Vec<HeaderName>,
    /// How long a browser may remember, in seconds.
    #[serde(default = "five")]
    pub max_age: u32,
}

fn five() -> u32 {
    5
}

impl Cors {
    pub(super) fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        fn list(path: String, entries: &[&str], limit: usize, violations: &mut Vec<Violation>) {
            at_most(limit, &path, entries.len(), violations);
            for (index, entry) in entries.iter().enumerate() {
                if entries[..index].contains(entry) {
                    violations.push(Violation::new(format!("{path}[{index}]"), "is there twice"));
                }
            }
            if entries.len() > 1 && entries.contains(&"*") {
                violations.push(Violation::new(path, "has \"*\" beside others, which then mean nothing"));
            }
        }
        let origins: Vec<_> = self.allow_origins.iter().map(String::as_str).collect();
        let methods: Vec<_> = self.allow_methods.iter().map(String::as_str).collect();
        let headers: Vec<_> = self.allow_headers.iter().map(HeaderName::as_str).collect();
        list(format!("{path}.allowOrigins"), &origins, 64, violations);
        list(format!("{path}.allowMethods"), &methods, 9, violations);
        list(format!("{path}.allowHeaders"), &headers, 64, violations);
        at_most(64, &format!("{path}.exposeHeaders"), self.expose_headers.len(), violations);
        for (index, origin) in self.allow_origins.iter().enumerate() {
            if !is_origin(origin) {
                let message =
                    format!("{origin:?} is no origin (such as https://*.example.com:8443, or \"*\")");
                violations.push(Violation::new(format!("{path}.allowOrigins[{index}]"), message));
            }
        }
        for (index, method) in self.allow_methods.iter().enumerate() {
            if method != "*" && !is_method(method) {
                let message = format!("{method:?} is no method that routes know");
                violations.push(Violation::new(format!("{path}.allowMethods[{index}]"), message));
            }
        }
        if self.max_age == 0 {
            violations.push(Violation::new(format!("{path}.maxAge"), "has to be at least 1"));
        }
    }
}

/// `*`, or scheme, host with a wildcard at its beginning, and port.
fn is_origin(origin: &str) -> bool {
    if origin == "*" {
        return true;
    }
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let Some(rest) = rest else { return false };
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let port_fits = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    let labels = host.strip_prefix("*.").unwrap_or(host);
    port_fits && (host == "*" || text::is_section_name(&labels.to_ascii_lowercase()))
}
