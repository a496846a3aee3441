//! Request targets and authorities (RFC 9112, 3.2).

use crate::http1::{BadHead, Method};
use crate::sanitize::authority::authority;

/// A request target, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target<'a> {
    /// A path with its query; from an absolute target, also the authority.
    Origin { authority: Option<&'a [u8]>, path: &'a [u8] },
    /// The authority that a `CONNECT` asks for.
    Authority(&'a [u8]),
    /// `*`: the server as a whole; from an absolute target, also the authority.
    Asterisk { authority: Option<&'a [u8]> },
}

impl<'a> Target<'a> {
    /// Takes a target apart. Each method has its own forms.
    pub(crate) fn parse(method: Method, target: &'a [u8]) -> Result<Self, BadHead> {
        if method == Method::Connect {
            // The port is not optional here: it is all that says what is asked for.
            return match authority(target) {
                Ok(authority) if authority.port.is_some() => Ok(Self::Authority(target)),
                _ => Err(BadHead::Target),
            };
        }
        match target {
            [b'/', ..] => Ok(Self::Origin { authority: None, path: target }),
            b"*" if method == Method::Options => Ok(Self::Asterisk { authority: None }),
            _ => Self::parse_absolute(method, target),
        }
    }

    fn parse_absolute(method: Method, target: &'a [u8]) -> Result<Self, BadHead> {
        let rest = strip_scheme(target, b"http://")
            .or_else(|| strip_scheme(target, b"https://"))
            .ok_or(BadHead::Target)?;
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.is_empty() {
            return Err(BadHead::Target);
        }
        let authority = Some(authority);
        Ok(match path {
            [] if method == Method::Options => Self::Asterisk { authority },
            [] => Self::Origin { authority, path: b"/" },
            [b'/', ..] => Self::Origin { authority, path },
            // `http://host?query` has no path to normalise; nobody sends it in earnest.
            _ => return Err(BadHead::Target),
        })
    }
}

/// Whether these bytes may stand for who is asked. None at all may, in `Host`:
/// then the original destination decides.
pub(crate) fn is_authority(bytes: &[u8]) -> bool {
    bytes.is_empty() || authority(bytes).is_ok()
}

fn strip_scheme<'a>(target: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = target.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_target_belongs_to_its_methods() {
        let origin = |authority, path| Ok(Target::Origin { authority, path });
        let cases: &[(Method, &str, Result<Target<'_>, BadHead>)] = &[
            (Method::Get, "/a?b", origin(None, b"/a?b")),
            (Method::Get, "http://h", origin(Some(b"h"), b"/")),
            (Method::Get, "HTTP://h:1/x?y", origin(Some(b"h:1"), b"/x?y")),
            (Method::Get, "http://h?x", Err(BadHead::Target)),
            (Method::Get, "http:///x", Err(BadHead::Target)),
            (Method::Get, "ftp://h/", Err(BadHead::Target)),
            (Method::Get, "x", Err(BadHead::Target)),
            (Method::Get, "*", Err(BadHead::Target)),
            (Method::Options, "*", Ok(Target::Asterisk { authority: None })),
            (Method::Options, "http://h", Ok(Target::Asterisk { authority: Some(b"h") })),
            (Method::Connect, "h:80", Ok(Target::Authority(b"h:80"))),
            (Method::Connect, "[::1]:80", Ok(Target::Authority(b"[::1]:80"))),
            (Method::Connect, "h", Err(BadHead::Target)),
            (Method::Connect, "[::1]", Err(BadHead::Target)),
            (Method::Connect, "h:", Err(BadHead::Target)),
            (Method::Connect, "/", Err(BadHead::Target)),
        ];
        for (method, target, expected) in cases {
            assert_eq!(Target::parse(*method, target.as_bytes()), *expected, "{method:?} {target}");
        }
    }
}
