//! Which requests a policy of a Service is about.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gateway::HEADER_VALUE;
use super::gateway::text::path_value;
use super::rule::Rule;
use super::{HeaderName, Violation, header_value};

/// Requests of which all that is said here holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "has(self.method) || has(self.pathPrefix) || (has(self.headers) && self.headers.size() > 0)",
    "says nothing; leave it out to match every request",
)]))]
pub struct RequestMatch {
    /// The method, case-sensitive as in HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"))]
    pub method: Option<String>,
    /// The path, or the path above it: `/v1` stands for `/v1` and `/v1/users`, not for `/v10`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/[!-~]*$"))]
    pub path_prefix: Option<String>,
    /// Headers that the request has, with exactly this as one of their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderEquals>,
}

/// A header with a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderEquals {
    /// Its name.
    pub name: HeaderName,
    /// The value.
    #[schemars(length(min = 1, max = 4096), regex(pattern = HEADER_VALUE))]
    pub value: String,
}

/// How many matches a policy may list: each is compared with each request.
const MAX_MATCHES: usize = 16;

/// What is wrong with the matches at `path`. None at all stand for every request.
pub(super) fn validate(path: &str, matches: &[RequestMatch], violations: &mut Vec<Violation>) {
    if matches.len() > MAX_MATCHES {
        violations.push(Violation::new(path, format!("has more than {MAX_MATCHES} items")));
    }
    for (index, wanted) in matches.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if *wanted == RequestMatch::default() {
            violations.push(Violation::new(&path, "says nothing; leave it out to match every request"));
        }
        if let Some(method) = wanted.method.as_ref().filter(|method| !super::is_token(method)) {
            violations.push(Violation::new(format!("{path}.method"), format!("{method:?} is no method")));
        }
        if let Some(prefix) = &wanted.path_prefix {
            let path = format!("{path}.pathPrefix");
            match prefix.starts_with('/') {
                true => path_value(&path, prefix, violations),
                false => violations.push(Violation::new(path, format!("{prefix:?} does not begin with /"))),
            }
        }
        if wanted.headers.len() > 16 {
            violations.push(Violation::new(format!("{path}.headers"), "has more than 16 items"));
        }
        for (index, header) in wanted.headers.iter().enumerate() {
            header_value(&format!("{path}.headers[{index}].value"), &header.value, violations);
        }
    }
}
