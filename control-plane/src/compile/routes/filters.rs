//! Filters, as sidecars read them.

use heddle_api::crd::{
    Cors, Filter, Fraction, HeaderModifier, HeaderName, Mirror, PathModifier, Redirect, UrlRewrite, Violation,
};
use heddle_api::discovery::v1;
use v1::http_filter::Filter as Wire;

use super::references::References;

/// What filters at `path` ask for and this version would not do.
pub(in crate::compile) fn unsupported(path: &str, filters: &[Filter]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, filter) in filters.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match filter {
            Filter::ExternalAuth => found.push(Violation {
                path: format!("{path}.type"),
                message: "external authorization is not supported by this version".into(),
            }),
            Filter::RequestHeaderModifier(headers) => {
                reserved(&format!("{path}.requestHeaderModifier"), headers, &mut found);
            }
            Filter::ResponseHeaderModifier(headers) => {
                reserved(&format!("{path}.responseHeaderModifier"), headers, &mut found);
            }
            _ => {}
        }
    }
    found
}

fn reserved(path: &str, headers: &HeaderModifier, found: &mut Vec<Violation>) {
    let set = headers.set.iter().enumerate().map(|(i, header)| (format!("set[{i}].name"), &header.name));
    let add = headers.add.iter().enumerate().map(|(i, header)| (format!("add[{i}].name"), &header.name));
    let remove = headers.remove.iter().enumerate().map(|(i, name)| (format!("remove[{i}]"), name));
    for (field, name) in set.chain(add).chain(remove).filter(|(_, name)| name.is_reserved()) {
        let message = format!(
            "{name} belongs to the proxy: it frames the message, ends at the next hop or names a party"
        );
        found.push(Violation { path: format!("{path}.{field}"), message });
    }
}

/// All filters of a rule or a backend, in their order.
pub(super) fn compile(filters: &[Filter], references: &mut References<'_>) -> Vec<v1::HttpFilter> {
    filters.iter().map(|filter| v1::HttpFilter { filter: Some(one(filter, references)) }).collect()
}

fn one(filter: &Filter, references: &mut References<'_>) -> Wire {
    match filter {
        Filter::RequestHeaderModifier(headers) => Wire::RequestHeaders(modifier(headers)),
        Filter::ResponseHeaderModifier(headers) => Wire::ResponseHeaders(modifier(headers)),
        Filter::RequestMirror(Mirror { backend_ref, percent, fraction }) => {
            let (numerator, denominator) = match (percent, fraction) {
                (Some(percent), _) => (percent.get().into(), 100),
                (None, Some(Fraction { numerator, denominator })) => (*numerator, *denominator),
                (None, None) => (1, 1),
            };
            let backend = Some(references.backend(backend_ref, 1));
            Wire::Mirror(v1::Mirror { backend, numerator, denominator })
        }
        Filter::RequestRedirect(Redirect { scheme, hostname, path, port, status_code }) => {
            Wire::Redirect(v1::Redirect {
                scheme: scheme.clone().unwrap_or_default(),
                hostname: hostname.clone().unwrap_or_default(),
                path: path.as_ref().map(path_modifier),
                port: port.map_or(0, |port| port.get().into()),
                status: (*status_code).into(),
            })
        }
        Filter::UrlRewrite(UrlRewrite { hostname, path }) => Wire::Rewrite(v1::UrlRewrite {
            hostname: hostname.clone().unwrap_or_default(),
            path: path.as_ref().map(path_modifier),
        }),
        Filter::Cors(cors) => Wire::Cors(self::cors(cors)),
        Filter::ExtensionRef(object) => Wire::Unresolvable(references.extension(object)),
        // Refused before; never skipped.
        Filter::ExternalAuth => Wire::Unresolvable("external authorization is not supported".into()),
    }
}

fn modifier(headers: &HeaderModifier) -> v1::HeaderModifier {
    let list = |headers: &[heddle_api::crd::Header]| {
        let headers = headers.iter();
        headers.map(|h| v1::Header { name: h.name.to_string(), value: h.value.clone() }).collect()
    };
    v1::HeaderModifier { set: list(&headers.set), add: list(&headers.add), remove: names(&headers.remove) }
}

fn names(names: &[HeaderName]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn path_modifier(modifier: &PathModifier) -> v1::PathModifier {
    use v1::path_modifier::Path;
    let path = match modifier {
        PathModifier::Full(path) => Path::ReplaceFull(path.clone()),
        PathModifier::Prefix(path) => Path::ReplacePrefix(path.clone()),
    };
    v1::PathModifier { path: Some(path) }
}

fn cors(cors: &Cors) -> v1::Cors {
    v1::Cors {
        allow_origins: cors.allow_origins.clone(),
        allow_credentials: cors.allow_credentials,
        allow_methods: cors.allow_methods.clone(),
        allow_headers: names(&cors.allow_headers),
        expose_headers: names(&cors.expose_headers),
        max_age: Some(prost_types::Duration { seconds: cors.max_age.into(), nanos: 0 }),
    }
}
