//! Cross-origin requests (Fetch Standard, section 3.2; Gateway API,
//! `HTTPCORSFilter`): what a browser asks before is answered here, and answers
//! say which pages may read them.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::route::edit::EditFields;
use crate::route::head::Head;

/// Who may ask across origins, and for what.
#[derive(Debug, Clone)]
pub struct Cors {
    /// Whose pages.
    pub origins: Box<[OriginPattern]>,
    /// Whether with cookies and the like.
    pub credentials: bool,
    /// With which methods.
    pub methods: Allowed,
    /// With which headers.
    pub headers: Allowed,
    /// Which headers of the answer they may read.
    pub expose: Allowed,
    /// How long a browser may remember.
    pub max_age: Duration,
}

/// What Gateway API says if nothing is said.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(5);

/// A list of methods or headers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Allowed {
    /// None besides those that are always allowed.
    #[default]
    None,
    /// All.
    Any,
    /// These, ready to be sent.
    List(HeaderValue),
}

impl Allowed {
    /// From a list of names; `*` among them is all.
    ///
    /// # Errors
    /// If a name is no token.
    pub fn new<S: AsRef<str>>(names: &[S]) -> Result<Self, BadName> {
        if names.iter().any(|name| name.as_ref() == "*") {
            return Ok(Self::Any);
        }
        list(names)
    }

    /// What to answer, given what was asked for. With credentials browsers take
    /// a `*` for a name, so they are told what they asked for.
    fn answer(&self, credentials: bool, asked: Option<&[u8]>) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::Any if credentials => HeaderValue::from_bytes(asked?).ok(),
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::List(list) => Some(list.clone()),
        }
    }
}

/// A name of a method or header that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name")]
pub struct BadName(String);

/// A list of names as a header has it.
fn list<S: AsRef<str>>(names: &[S]) -> Result<Allowed, BadName> {
    let mut joined = String::new();
    for name in names.iter().map(AsRef::as_ref) {
        if !crate::sanitize::headers::is_valid_name(name.as_bytes()) {
            return Err(BadName(name.to_owned()));
        }
        if !joined.is_empty() {
            joined.push_str(", ");
        }
        joined.push_str(name);
    }
    let list = HeaderValue::try_from(joined).ok().filter(|list| !list.is_empty());
    Ok(list.map_or(Allowed::None, Allowed::List))
}

/// Which pages are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// All.
    Any,
    /// Those of a scheme, host and port.
    Host {
        /// The scheme, in lower case.
        scheme: Box<str>,
        /// The host, in lower case; after a wildcard the rest with its dot, perhaps nothing.
        host: Box<str>,
        /// Whether any labels may stand before the host.
        wildcard: bool,
        /// The port; that of the scheme if it goes without saying.
        port: Option<u16>,
    },
}

impl OriginPattern {
    /// Reads `*`, `scheme://host`, `scheme://host:port`; the host may be `*` or
    /// begin with `*.`, which takes any number of labels. `None`: it is none of these.
    pub fn new(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let text = text.to_ascii_lowercase();
        let (scheme, host, port) = split(text.as_bytes())?;
        let host = std::str::from_utf8(host).ok()?;
        let (wildcard, host) = match host.strip_prefix('*') {
            Some(rest) if rest.is_empty() || rest.starts_with('.') => (true, rest),
            Some(_) => return None,
            None => (false, host),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
        if !host.bytes().all(plain) || host.is_empty() && !wildcard {
            return None;
        }
        let scheme = std::str::from_utf8(scheme).ok()?.into();
        Some(Self::Host { scheme, host: host.into(), wildcard, port })
    }

    /// Whether a page of this origin is meant.
    pub fn covers(&self, origin: &[u8]) -> bool {
        let Self::Host { scheme, host, wildcard, port } = self else { return true };
        let Some((its_scheme, its_host, its_port)) = split(origin) else { return false };
        let end = match its_host.len().checked_sub(host.len()) {
            Some(0) if *wildcard && !host.is_empty() => return false,
            Some(start) if start == 0 || *wildcard => &its_host[start..],
            _ => return false,
        };
        its_port == *port
            && its_scheme.eq_ignore_ascii_case(scheme.as_bytes())
            && end.eq_ignore_ascii_case(host.as_bytes())
    }
}

/// Scheme, host and port of an origin.
fn split(origin: &[u8]) -> Option<(&[u8], &[u8], Option<u16>)> {
    let colon = origin.windows(3).position(|window| window == b"://")?;
    let (scheme, rest) = (&origin[..colon], &origin[colon + 3..]);
    if scheme.is_empty() || rest.is_empty() || rest.contains(&b'/') {
        return None;
    }
    // An IPv6 address has colons too, but only before its bracket.
    let after = rest.iter().rposition(|&byte| byte == b']').unwrap_or(0);
    let (host, port) = match rest[after..].iter().position(|&byte| byte == b':') {
        Some(at) => {
            let digits = std::str::from_utf8(&rest[after + at + 1..]).ok()?;
            let port = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
            (&rest[..after + at], Some(port))
        }
        None if scheme.eq_ignore_ascii_case(b"http") => (rest, Some(80)),
        None if scheme.eq_ignore_ascii_case(b"https") => (rest, Some(443)),
        None => (rest, None),
    };
    (!host.is_empty()).then_some((scheme, host, port))
}

static ORIGIN: HeaderName = http::header::ORIGIN;
static ASKED_METHOD: HeaderName = http::header::ACCESS_CONTROL_REQUEST_METHOD;
static ASKED_HEADERS: HeaderName = http::header::ACCESS_CONTROL_REQUEST_HEADERS;

impl Cors {
    /// The headers of the answer to a preflight request, which never reaches
    /// the application; `None` if the request is none. An origin that is not
    /// allowed learns nothing.
    pub(super) fn preflight<H: Head>(&self, head: &H) -> Option<HeaderMap> {
        let method = (head.method() == b"OPTIONS").then(|| head.first(&ASKED_METHOD)).flatten()?;
        let origin = HeaderValue::from_bytes(head.first(&ORIGIN)?).ok()?;
        let mut headers = HeaderMap::with_capacity(8);
        let exposed = self.expose.answer(self.credentials, None);
        self.allow(&origin, exposed, &mut headers);
        if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            let methods = self.methods.answer(self.credentials, Some(method));
            let names = self.headers.answer(self.credentials, head.first(&ASKED_HEADERS));
            let age = HeaderValue::from(self.max_age.as_secs());
            for (name, value) in [
                (ACCESS_CONTROL_ALLOW_METHODS, methods),
                (ACCESS_CONTROL_ALLOW_HEADERS, names),
                (ACCESS_CONTROL_MAX_AGE, Some(age)),
            ] {
                value.map(|value| headers.insert(name, value));
            }
        }
        Some(headers)
    }

    /// Tells the page that asked what it may read. What the application says
    /// about that is replaced: the rule decides.
    pub(super) fn edit_response(&self, origin: Option<&HeaderValue>, response: &mut impl EditFields) {
        let Some(origin) = origin else {
            // Caches must not give this answer to a page.
            return self.vary(response);
        };
        let exposed = match &self.expose {
            Allowed::Any if self.credentials => every_name(response),
            expose => expose.answer(self.credentials, None),
        };
        for name in
            [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS]
        {
            response.remove(&name);
        }
        self.allow(origin, exposed, response);
    }

    fn allow(&self, origin: &HeaderValue, exposed: Option<HeaderValue>, to: &mut impl EditFields) {
        self.vary(to);
        if !self.origins.iter().any(|pattern| pattern.covers(origin.as_bytes())) {
            return;
        }
        if self.answers_all_alike() {
            to.set(&ACCESS_CONTROL_ALLOW_ORIGIN, &HeaderValue::from_static("*"));
        } else {
            to.set(&ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        if self.credentials {
            to.set(&ACCESS_CONTROL_ALLOW_CREDENTIALS, &HeaderValue::from_static("true"));
        }
        if let Some(names) = exposed {
            to.set(&ACCESS_CONTROL_EXPOSE_HEADERS, &names);
        }
    }

    /// Answers that differ by origin say so to caches.
    fn vary(&self, to: &mut impl EditFields) {
        if !self.answers_all_alike() {
            to.add(&VARY, &HeaderValue::from_static("origin"));
        }
    }

    fn answers_all_alike(&self) -> bool {
        !self.credentials && self.origins.contains(&OriginPattern::Any)
    }
}

/// No more of a response's names are listed than fit into so many bytes.
const MAX_NAMES: usize = 4096;

/// The names of a response's headers, for browsers that take a `*` for a name. Cookies are never
/// shown to pages.
fn every_name(response: &impl EditFields) -> Option<HeaderValue> {
    let mut names: Vec<u8> = Vec::new();
    response.each_name(&mut |name| {
        let name = name.to_ascii_lowercase();
        let known = || names.split(|&byte| byte == b',').any(|other| other.trim_ascii_start() == name);
        let own = name.starts_with(b"access-control-") || name == b"set-cookie" || name == b"vary";
        if own || names.len() + name.len() > MAX_NAMES || known() {
            return;
        }
        if !names.is_empty() {
            names.extend_from_slice(b", ");
        }
        names.extend_from_slice(&name);
    });
    HeaderValue::from_bytes(&names).ok().filter(|names| !names.is_empty())
}

#[cfg(test)]
mod tests;
