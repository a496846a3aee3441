//! The filters of a rule or of one of its backends.

use heddle_api::discovery::v1;
use http::{HeaderName, HeaderValue};

use super::super::{Invalid, policy, port};
use super::{each, header_name, target, unknown_kind};
use crate::route::{
    Allowed, Cors, DEFAULT_MAX_AGE, Filter, HeaderEdits, Mirror, OriginPattern, PathEdit, Redirect,
    RedirectStatus, Rewrite, RewrittenHost, Scheme, may_edit,
};

/// What kind of rule a filter is of, which decides what it may do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind<'a> {
    /// A rule without any filter that replaces its matches' prefix.
    Http,
    /// A rule that matches by this prefix, which a filter may replace.
    HttpPrefix(&'a str),
    /// A rule about calls, which have no path to go to.
    Grpc,
    /// A rule that has no filters.
    None,
}

/// Whether a filter changes the part of the path that a rule's match took.
pub(super) fn replaces_prefix(wire: &v1::HttpFilter) -> bool {
    let path = match &wire.filter {
        Some(v1::http_filter::Filter::Redirect(redirect)) => redirect.path.as_ref(),
        Some(v1::http_filter::Filter::Rewrite(rewrite)) => rewrite.path.as_ref(),
        _ => None,
    };
    matches!(path.and_then(|path| path.path.as_ref()), Some(v1::path_modifier::Path::ReplacePrefix(_)))
}

pub(super) fn filter(wire: v1::HttpFilter, kind: Kind<'_>) -> Result<Filter, Invalid> {
    use v1::http_filter::Filter as Wire;
    let wire = wire.filter.ok_or_else(|| unknown_kind("filter"))?;
    let refuse = |field: &str| Err(Invalid::new(field, "a rule of this kind has no such filter"));
    match (&wire, kind) {
        (_, Kind::None) => return refuse("filter"),
        (Wire::Redirect(_), Kind::Grpc) => return refuse("redirect"),
        (Wire::Rewrite(_), Kind::Grpc) => return refuse("rewrite"),
        (Wire::Cors(_), Kind::Grpc) => return refuse("cors"),
        _ => {}
    }
    Ok(match wire {
        Wire::RequestHeaders(wire) => {
            Filter::RequestHeaders(headers(wire).map_err(|e| e.within("request_headers"))?)
        }
        Wire::ResponseHeaders(wire) => {
            Filter::ResponseHeaders(headers(wire).map_err(|e| e.within("response_headers"))?)
        }
        Wire::Redirect(wire) => Filter::Redirect(redirect(wire, kind).map_err(|e| e.within("redirect"))?),
        Wire::Rewrite(wire) => Filter::Rewrite(rewrite(wire, kind).map_err(|e| e.within("rewrite"))?),
        Wire::Mirror(wire) => Filter::Mirror(mirror(wire).map_err(|e| e.within("mirror"))?),
        Wire::Cors(wire) => Filter::Cors(cors(wire).map_err(|e| e.within("cors"))?),
        Wire::Unresolvable(why) => Filter::Unresolved(why.into()),
    })
}

fn headers(wire: v1::HeaderModifier) -> Result<HeaderEdits, Invalid> {
    let name = |path: &str, text: &str| -> Result<HeaderName, Invalid> {
        let name = header_name(path, text)?;
        may_edit(&name).map_err(|e| Invalid::new(path, format!("{text}: {e}")))?;
        Ok(name)
    };
    let header = |wire: v1::Header| {
        let value = HeaderValue::from_bytes(wire.value.as_bytes())
            .map_err(|_| Invalid::new("value", "it has bytes that no header may have"))?;
        Ok((name("name", &wire.name)?, value))
    };
    let set = each("set", wire.set, header)?;
    let add = each("add", wire.add, header)?;
    let remove = wire.remove.iter().enumerate().map(|(at, text)| name(&format!("remove[{at}]"), text));
    HeaderEdits::new(set, add, remove.collect::<Result<_, _>>()?)
        .map_err(|(name, bad)| Invalid::new("add", format!("{name}: {bad}")))
}

fn redirect(wire: v1::Redirect, kind: Kind<'_>) -> Result<Redirect, Invalid> {
    Ok(Redirect {
        scheme: match wire.scheme.as_str() {
            "" => None,
            "http" => Some(Scheme::Http),
            "https" => Some(Scheme::Https),
            other => return Err(Invalid::new("scheme", format!("{other:?} is neither http nor https"))),
        },
        host: host(&wire.hostname)?.map(|_| wire.hostname.as_str().into()),
        path: path(wire.path, kind)?,
        port: if wire.port == 0 { None } else { Some(port("port", wire.port)?) },
        status: RedirectStatus::from_code(wire.status)
            .ok_or_else(|| Invalid::new("status", format!("{} does not redirect", wire.status)))?,
    })
}

fn rewrite(wire: v1::UrlRewrite, kind: Kind<'_>) -> Result<Rewrite, Invalid> {
    Ok(Rewrite { host: host(&wire.hostname)?, path: path(wire.path, kind)? })
}

fn host(text: &str) -> Result<Option<RewrittenHost>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let host = RewrittenHost::new(text);
    host.map(Some).ok_or_else(|| Invalid::new("hostname", format!("{text:?} is no host")))
}

fn path(wire: Option<v1::PathModifier>, kind: Kind<'_>) -> Result<Option<PathEdit>, Invalid> {
    use v1::path_modifier::Path;
    let Some(wire) = wire else { return Ok(None) };
    let (field, edit) = match (wire.path, kind) {
        (Some(Path::ReplaceFull(path)), _) => ("path.replace_full", PathEdit::full(&path)),
        (Some(Path::ReplacePrefix(path)), Kind::HttpPrefix(prefix)) => {
            ("path.replace_prefix", PathEdit::prefix(prefix, &path))
        }
        (Some(Path::ReplacePrefix(_)), _) => {
            return Err(Invalid::new("path.replace_prefix", "the rule does not match by a prefix"));
        }
        (None, _) => return Err(unknown_kind("path")),
    };
    edit.map(Some).map_err(|e| Invalid::new(field, e.to_string()))
}

fn mirror(wire: v1::Mirror) -> Result<Mirror, Invalid> {
    let backend = wire.backend.ok_or_else(|| Invalid::new("backend", "there is none"))?;
    if wire.denominator == 0 {
        return Err(Invalid::new("denominator", "it is 0"));
    }
    if wire.numerator > wire.denominator {
        let reason = format!("{} is more than the denominator, {}", wire.numerator, wire.denominator);
        return Err(Invalid::new("numerator", reason));
    }
    let target = target(backend).map_err(|e| e.within("backend"))?;
    Ok(Mirror { target, numerator: wire.numerator, denominator: wire.denominator })
}

fn cors(wire: v1::Cors) -> Result<Cors, Invalid> {
    let origin = |(at, text): (usize, &String)| {
        OriginPattern::new(text).ok_or_else(|| {
            Invalid::new(format!("allow_origins[{at}]"), format!("{text:?} is neither an origin nor *"))
        })
    };
    let names =
        |field: &str, names: &[String]| Allowed::new(names).map_err(|e| Invalid::new(field, e.to_string()));
    Ok(Cors {
        origins: wire.allow_origins.iter().enumerate().map(origin).collect::<Result<_, _>>()?,
        credentials: wire.allow_credentials,
        methods: names("allow_methods", &wire.allow_methods)?,
        headers: names("allow_headers", &wire.allow_headers)?,
        expose: names("expose_headers", &wire.expose_headers)?,
        max_age: match wire.max_age {
            None => DEFAULT_MAX_AGE,
            Some(age) => policy::duration("max_age", age)?,
        },
    })
}
