//! Responses that are kept for bad times: which may be, for whom and for how long.
//!
//! The rules are those of a shared cache (RFC 9111) that uses what it has only in place of an
//! error (RFC 5861, `stale-if-error`): it never answers what the service can answer itself.
//! Where the RFCs leave a choice, the careful one is taken. [`Cache`] keeps what may be kept,
//! within a bound on its bytes.

mod cache;

use std::time::Duration;

use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, COOKIE, IF_MATCH, IF_UNMODIFIED_SINCE, RANGE, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderName};

pub use cache::{Cache, Found, Kept, Selecting};

use crate::route::Head;

/// On what terms a response may be used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// How old it was when it came.
    pub age: Duration,
    /// For how long from then on it may be used.
    pub usable: Duration,
    /// Whether also for those who say who they are.
    pub public: bool,
    /// The fields of the request that select it, by `Vary`.
    pub vary: Box<[HeaderName]>,
}

/// More fields in `Vary` select nothing that would come again.
const MAX_VARY: usize = 8;

/// On what terms the complete response to a GET without content may be used in place of errors,
/// for at most `max_age`; `None`: on none. `delay` is how long it was waited for.
///
/// Only responses with status 200 are kept. Those to requests that say who asks (`Authorization`,
/// or `Cookie`, of which the RFC says nothing) are only where they are marked for it (RFC 9111,
/// section 3.5). `Expires` makes nothing fresh: without a clock that both agree on, it says little.
pub fn terms(
    request: &impl Head,
    status: u16,
    response: &HeaderMap,
    delay: Duration,
    max_age: Duration,
) -> Option<Terms> {
    let asked = Directives::read(request.values(&CACHE_CONTROL));
    let said = Directives::read(response.get_all(CACHE_CONTROL).iter().map(|value| value.as_bytes()));
    let forbidden = asked.no_store || said.no_store || said.no_cache || said.private;
    if status != 200 || forbidden || request.first(&RANGE).is_some() || response.contains_key(SET_COOKIE) {
        return None;
    }
    let public = said.public || said.must_revalidate || said.s_maxage.is_some();
    if says_who(request) && !public {
        return None;
    }
    let vary = vary(response)?;
    let age = response.get(AGE).and_then(|age| seconds(age.as_bytes())).unwrap_or_default();
    let age = age.saturating_add(delay);
    let fresh = said.s_maxage.or(said.max_age).unwrap_or_default().saturating_sub(age);
    let mut usable = max_age;
    if said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some() {
        // It may never be served stale (RFC 9111, section 4.2.4).
        usable = usable.min(fresh);
    }
    if let Some(stale) = said.stale_if_error {
        usable = usable.min(fresh.saturating_add(stale));
    }
    (!usable.is_zero()).then_some(Terms { age, usable, public, vary })
}

/// Whether a request may be answered with what is kept. Of its `Cache-Control` only `no-cache`
/// and `no-store` count: the others are advice (RFC 9111, section 5.2.1), and an older answer is
/// better than an error.
pub fn may_be_answered(request: &impl Head) -> bool {
    let asked = Directives::read(request.values(&CACHE_CONTROL));
    // These only the service itself may judge (section 4.3.2).
    let conditional = [&IF_MATCH, &IF_UNMODIFIED_SINCE].into_iter().any(|name| request.first(name).is_some());
    !asked.no_cache && !asked.no_store && !conditional
}

/// Whether a request says who asks.
fn says_who(request: &impl Head) -> bool {
    request.first(&AUTHORIZATION).is_some() || request.first(&COOKIE).is_some()
}

/// The fields that `Vary` names; `None` if nothing can be selected by them.
fn vary(response: &HeaderMap) -> Option<Box<[HeaderName]>> {
    let mut names = Vec::new();
    for value in response.get_all(VARY) {
        for element in crate::sanitize::headers::elements(value.as_bytes()) {
            // `*` is a token as well.
            let name = HeaderName::from_bytes(element).ok().filter(|name| name.as_str() != "*")?;
            if !names.contains(&name) {
                // At once: each of thousands would be compared with all before it.
                if names.len() == MAX_VARY {
                    return None;
                }
                names.push(name);
            }
        }
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    Some(names.into())
}

/// What `Cache-Control` says, as far as it matters here (RFC 9111, section 5.2; RFC 5861).
#[derive(Debug, Default, PartialEq, Eq)]
struct Directives {
    no_store: bool,
    /// With a list of fields, too.
    no_cache: bool,
    /// With a list of fields, too.
    private: bool,
    public: bool,
    must_revalidate: bool,
    proxy_revalidate: bool,
    max_age: Option<Duration>,
    s_maxage: Option<Duration>,
    stale_if_error: Option<Duration>,
}

impl Directives {
    fn read<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut read = Self::default();
        for directive in values.flat_map(directives) {
            let mut parts = directive.splitn(2, |&byte| byte == b'=');
            let name = parts.next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
            let argument = parts.next().map(|argument| argument.trim_ascii());
            // Of several the shortest counts, and what cannot be read is over.
            let time = |before: Option<Duration>| {
                let argument = argument.map(|text| text.strip_prefix(b"\"").unwrap_or(text));
                let argument = argument.map(|text| text.strip_suffix(b"\"").unwrap_or(text));
                let time = argument.and_then(seconds).unwrap_or_default();
                Some(before.map_or(time, |before| before.min(time)))
            };
            match name.as_slice() {
                b"no-store" => read.no_store = true,
                b"no-cache" => read.no_cache = true,
                b"private" => read.private = true,
                b"public" => read.public = true,
                b"must-revalidate" => read.must_revalidate = true,
                b"proxy-revalidate" => read.proxy_revalidate = true,
                b"max-age" => read.max_age = time(read.max_age),
                b"s-maxage" => read.s_maxage = time(read.s_maxage),
                b"stale-if-error" => read.stale_if_error = time(read.stale_if_error),
                _ => {}
            }
        }
        read
    }
}

/// The elements of a list whose elements may have quoted commas.
fn directives(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    let elements = value.split(move |&byte| {
        let separates = byte == b',' && !quoted;
        if escaped {
            escaped = false;
        } else if quoted && byte == b'\\' {
            escaped = true;
        } else if byte == b'"' {
            quoted = !quoted;
        }
        separates
    });
    elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// `delta-seconds` (section 1.2.2): what is too large is 2^31.
fn seconds(text: &[u8]) -> Option<Duration> {
    const LARGEST: u64 = 1 << 31;
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = text.iter().fold(0, |sum: u64, digit| {
        sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')).min(LARGEST)
    });
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
