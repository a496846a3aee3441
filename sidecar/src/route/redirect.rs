//! Redirects: where a client is told to go instead (Gateway API,
//! `HTTPRequestRedirectFilter`).

use crate::route::head::Head;
use crate::route::path::PathEdit;

/// Where to, and how. What is not set stays as the request had it; the query
/// always does.
#[derive(Debug, Clone, Default)]
pub struct Redirect {
    /// The scheme.
    pub scheme: Option<Scheme>,
    /// The host, without a port.
    pub host: Option<Box<str>>,
    /// The path.
    pub path: Option<PathEdit>,
    /// The port.
    pub port: Option<u16>,
    /// The status, 302 by default.
    pub status: RedirectStatus,
}

/// How a client speaks to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    const fn text(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The statuses that redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RedirectStatus {
    /// 301.
    MovedPermanently,
    /// 302.
    #[default]
    Found,
    /// 303.
    SeeOther,
    /// 307.
    Temporary,
    /// 308.
    Permanent,
}

impl RedirectStatus {
    /// The one with this number.
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            301 => Self::MovedPermanently,
            302 => Self::Found,
            303 => Self::SeeOther,
            307 => Self::Temporary,
            308 => Self::Permanent,
            _ => return None,
        })
    }

    /// Its number.
    pub const fn code(self) -> u16 {
        match self {
            Self::MovedPermanently => 301,
            Self::Found => 302,
            Self::SeeOther => 303,
            Self::Temporary => 307,
            Self::Permanent => 308,
        }
    }
}

/// What the client used to reach us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Front {
    /// Its scheme.
    pub scheme: Scheme,
    /// The port that it dialled: the Service's, or the listener's.
    pub port: u16,
}

impl Redirect {
    /// The value of `location`. The port is the one set; else, if a scheme is
    /// set, that scheme's; else the one that the client dialled. It is left
    /// out where the scheme says it.
    pub fn location<H: Head>(&self, head: &H, front: Front) -> Vec<u8> {
        let scheme = self.scheme.unwrap_or(front.scheme);
        let port = self.port.unwrap_or_else(|| self.scheme.map_or(front.port, Scheme::port));
        let host = self.host.as_ref().map_or_else(|| host(head.authority()), |host| host.as_bytes());
        let mut location = Vec::with_capacity(128);
        // A client of HTTP/1.0 may name no host; it knows where it is.
        if !host.is_empty() {
            location.extend_from_slice(scheme.text().as_bytes());
            location.extend_from_slice(b"://");
            location.extend_from_slice(host);
            if port != scheme.port() {
                location.push(b':');
                location.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
            }
        }
        let path = head.path();
        match self.path.as_ref().and_then(|edit| edit.apply(path)) {
            Some(path) => location.extend_from_slice(&path),
            None if path.first() == Some(&b'/') => location.extend_from_slice(path),
            None => location.push(b'/'),
        }
        if let Some(query) = head.query() {
            location.push(b'?');
            location.extend_from_slice(query);
        }
        location
    }
}

/// An authority without its port, an address in brackets with them.
fn host(authority: &[u8]) -> &[u8] {
    let end = match authority.first() {
        Some(b'[') => authority.iter().position(|&byte| byte == b']').map(|at| at + 1),
        _ => authority.iter().position(|&byte| byte == b':'),
    };
    &authority[..end.unwrap_or(authority.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::head::Http1Head;

    fn location(redirect: &Redirect, target: &str, host: &str, port: u16) -> String {
        let bytes = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n");
        let front = Front { scheme: Scheme::Http, port };
        String::from_utf8(redirect.location(&Http1Head::new(bytes.as_bytes()), front)).unwrap()
    }

    #[test]
    fn what_is_not_set_stays_as_the_request_had_it() {
        let plain = Redirect::default();
        for (target, host, port, expected) in [
            ("/a?x=1", "users", 80, "http://users/a?x=1"),
            ("/a", "users:8080", 8080, "http://users:8080/a"),
            // The port dialled counts, not the one that the Host claims.
            ("/a", "users:9999", 80, "http://users/a"),
            ("/a", "[::1]:8080", 8080, "http://[::1]:8080/a"),
            ("*", "users", 80, "http://users/"),
            ("/a", "", 80, "/a"),
        ] {
            assert_eq!(location(&plain, target, host, port), expected, "{target} {host} {port}");
        }
    }

    #[test]
    fn the_port_is_the_one_set_the_schemes_or_the_one_dialled() {
        use Scheme::{Http, Https};
        for (scheme, port, dialled, expected) in [
            (None, None, 8080, "http://org:8080/"),
            (None, None, 80, "http://org/"),
            (None, Some(8083), 80, "http://org:8083/"),
            (None, Some(80), 8080, "http://org/"),
            (None, Some(443), 80, "http://org:443/"),
            (Some(Https), None, 8080, "https://org/"),
            (Some(Http), None, 8080, "http://org/"),
            (Some(Https), Some(443), 80, "https://org/"),
            (Some(Https), Some(80), 80, "https://org:80/"),
            (Some(Http), Some(8080), 80, "http://org:8080/"),
        ] {
            let redirect = Redirect { scheme, port, host: Some("org".into()), ..Redirect::default() };
            assert_eq!(location(&redirect, "/", "users", dialled), expected, "{scheme:?} {port:?} {dialled}");
        }
    }

    #[test]
    fn paths_are_replaced_and_queries_kept() {
        let with = |path| Redirect { path: Some(path), ..Redirect::default() };
        let full = with(PathEdit::full("/new").unwrap());
        assert_eq!(location(&full, "/old/x?q=1", "users", 80), "http://users/new?q=1");
        let prefix = with(PathEdit::prefix("/old", "/new").unwrap());
        assert_eq!(location(&prefix, "/old/x?q=1", "users", 80), "http://users/new/x?q=1");
    }

    #[test]
    fn only_redirects_redirect() {
        for code in [301, 302, 303, 307, 308] {
            assert_eq!(RedirectStatus::from_code(code).map(|s| u32::from(s.code())), Some(code));
        }
        assert_eq!(RedirectStatus::from_code(300), None);
    }
}
