//! Heads as HTTP/2 has them, made clear before anything else sees them.
//!
//! h2 has refused what is malformed by its own rules: pseudo-headers that are
//! missing, repeated or out of place, upper-case names, connection-specific
//! fields, `te` other than `trailers`, contradicting lengths (RFC 9113,
//! sections 8.2 and 8.3). Here `:authority` and `Host` must agree, the path
//! takes its normal form, and what only the mesh may say goes if others say it.

use http::header::{HOST, HeaderName};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Uri, request};

use crate::http2::seam::Refusal;
use crate::reason::Reason;
use crate::sanitize::authority::authority;
use crate::sanitize::headers::{Known, is_forbidden_trailer};
use crate::sanitize::path::path;

/// Makes a request's head clear to everyone alike.
///
/// # Errors
/// If it cannot be.
pub(crate) fn sanitize(head: &mut request::Parts, trusted: bool) -> Result<(), Refusal> {
    let bad = |message: &dyn std::fmt::Display| Refusal::new(Reason::BadRequest, message.to_string());
    let whom = agree(&head.uri, &mut head.headers).map_err(|message| bad(&message))?;
    if let Some(whom) = &whom {
        authority(whom.as_str().as_bytes()).map_err(|error| bad(&error))?;
    }
    let tunnel = head.method == Method::CONNECT && head.extensions.get::<h2::ext::Protocol>().is_none();
    if !tunnel {
        let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let normal = normal_path(target, &head.method).map_err(|error| bad(&error))?;
        if normal.is_some() || whom.is_some() || head.uri.scheme().is_none() {
            rebuild(head, whom, normal).map_err(|error| bad(&error))?;
        }
    }
    if !trusted {
        strip(&mut head.headers, |name| matches!(Known::of(name), Some(Known::Mesh | Known::PeerIdentity)));
    }
    Ok(())
}

/// Removes from trailers what has no business there.
pub(crate) fn sanitize_trailers(trailers: &mut HeaderMap) {
    strip(trailers, is_forbidden_trailer);
}

/// Removes the mesh's own headers that an application invented.
pub(crate) fn strip_mesh(headers: &mut HeaderMap) {
    strip(headers, |name| matches!(Known::of(name), Some(Known::Mesh)));
}

/// Makes a target that of a request over TLS (RFC 9113, section 8.3.1); a tunnel has none.
pub(crate) fn secure(uri: &mut Uri) {
    let mut parts = std::mem::take(uri).into_parts();
    parts.scheme = parts.scheme.map(|_| Scheme::HTTPS);
    // Of the same parts as before.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

/// Removes headers by their names.
pub(crate) fn strip(headers: &mut HeaderMap, unwanted: impl Fn(&[u8]) -> bool) {
    // Nearly always there are none, and nothing is allocated.
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| unwanted(name.as_str().as_bytes())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Takes `Host` away, which must not contradict `:authority` (RFC 9113,
/// section 8.3.1). What to set as authority, if there is none yet.
fn agree(uri: &Uri, headers: &mut HeaderMap) -> Result<Option<Authority>, &'static str> {
    if !headers.contains_key(HOST) {
        let known = uri.authority().map(|authority| authority.as_str().as_bytes());
        let Some(known) = known else { return Err("the request names no authority") };
        authority(known).map_err(|_| "the authority is malformed")?;
        return Ok(None);
    }
    if headers.get_all(HOST).iter().count() > 1 {
        return Err("the request has more than one Host");
    }
    let Some(host) = headers.remove(HOST) else { return Ok(None) };
    match uri.authority() {
        Some(known) if known.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            authority(host.as_bytes()).map_err(|_| "the authority is malformed")?;
            Ok(None)
        }
        Some(_) => Err("Host and :authority differ"),
        None => Authority::try_from(host.as_bytes()).map(Some).map_err(|_| "the Host is malformed"),
    }
}

/// The path's normal form, if it has another form now.
fn normal_path(target: &str, method: &Method) -> Result<Option<Vec<u8>>, String> {
    if target == "*" && *method == Method::OPTIONS {
        return Ok(None);
    }
    let mut normal = Vec::with_capacity(target.len());
    path(target.as_bytes(), &mut normal).map_err(|error| error.to_string())?;
    Ok((normal != target.as_bytes()).then_some(normal))
}

fn rebuild(
    head: &mut request::Parts,
    whom: Option<Authority>,
    normal: Option<Vec<u8>>,
) -> Result<(), http::Error> {
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    if whom.is_some() {
        parts.authority = whom;
    }
    if let Some(normal) = normal {
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(bytes::Bytes::from(normal))?);
    }
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    // h2 drops the scheme of a request that has only `Host`.
    parts.scheme.get_or_insert(Scheme::HTTP);
    head.uri = Uri::from_parts(parts)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn clear(request: request::Builder, trusted: bool) -> Result<request::Parts, Reason> {
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        sanitize(&mut head, trusted).map(|()| head).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn the_path_takes_its_normal_form_and_the_query_stays() {
        let head = clear(Request::get("http://users/a/../b//%63?x=/../"), false).unwrap();
        assert_eq!(head.uri, "http://users/b/c?x=/../");
        assert_eq!(clear(Request::get("http://users/a%2fb"), false).unwrap_err(), Reason::BadRequest);
    }

    #[test]
    fn host_must_agree_with_the_authority_and_goes() {
        let head = clear(Request::get("http://users/").header("host", "USERS"), false).unwrap();
        assert!(!head.headers.contains_key("host"));
        assert_eq!(
            clear(Request::get("http://users/").header("host", "orders"), false).unwrap_err(),
            Reason::BadRequest
        );
        assert_eq!(clear(Request::get("/"), false).unwrap_err(), Reason::BadRequest);
        let head = clear(Request::get("/x").header("host", "users:80"), false).unwrap();
        assert_eq!(head.uri, "http://users:80/x");
        let twice = Request::get("/").header("host", "a").header("host", "a");
        assert_eq!(clear(twice, false).unwrap_err(), Reason::BadRequest);
        assert_eq!(clear(Request::get("http://u@users/"), false).unwrap_err(), Reason::BadRequest);
    }

    #[test]
    fn mesh_headers_from_outside_go() {
        let request = || Request::get("http://users/").header("heddle-error", "x").header("x-mine", "1");
        let head = clear(request(), false).unwrap();
        assert!(!head.headers.contains_key("heddle-error") && head.headers.contains_key("x-mine"));
        assert!(clear(request(), true).unwrap().headers.contains_key("heddle-error"));
    }

    #[test]
    fn a_target_becomes_one_over_tls_and_a_tunnel_stays() {
        for (before, after) in
            [("http://a.example/b?c", "https://a.example/b?c"), ("a.example:443", "a.example:443")]
        {
            let mut uri: Uri = before.parse().unwrap();
            secure(&mut uri);
            assert_eq!(uri.to_string(), after);
        }
    }

    #[test]
    fn a_tunnel_keeps_its_authority_only() {
        let request = Request::builder().method("CONNECT").uri("users:80");
        assert_eq!(clear(request, false).unwrap().uri, "users:80");
    }
}
