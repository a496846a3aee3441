//! Session persistence (GEP-1619): a client stays with the endpoint that first
//! answered it, by a token in a cookie or a header.
//!
//! The token names the rule, the backend and the endpoint by hashes, and says
//! when the session began and was last used, so that no sidecar has to remember
//! anything and all agree. It is not authenticated: who makes one up chooses
//! among the endpoints of the rule's backends, no more. A session belongs to
//! one rule; it overrides weights, never matching.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::SET_COOKIE;
use http::{HeaderName, HeaderValue};

use crate::route::backend::{Backend, cookies};
use crate::route::hash::stable;
use crate::route::head::Head;

/// How a rule keeps clients at their endpoints.
#[derive(Debug, Clone)]
pub struct Session {
    /// What carries the token.
    carrier: Carrier,
    /// The rule that the sessions belong to.
    rule: u32,
    /// A session ends so long after it began.
    absolute: Option<Duration>,
    /// A session ends so long after it was last used.
    idle: Option<Duration>,
}

/// What carries a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrier {
    /// A header, of responses and of later requests.
    Header(HeaderName),
    /// A cookie.
    Cookie {
        /// Its name.
        name: Box<str>,
        /// Whether browsers keep it when they end; needs an absolute time limit.
        permanent: bool,
    },
}

/// Why sessions cannot be kept as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSession {
    /// The cookie's name is no token.
    #[error("the name is no cookie's name")]
    Name,
    /// A permanent cookie would be kept for ever.
    #[error("a permanent cookie needs an absolute timeout")]
    Unlimited,
    /// A header that filters may not touch either.
    #[error(transparent)]
    Header(#[from] crate::route::filter::BadEdit),
}

/// A session that a client brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Its backend.
    backend: u64,
    /// Its endpoint.
    endpoint: EndpointTag,
    /// When it began, in seconds since 1970.
    begun: u32,
    /// When it was last used, likewise.
    used: u32,
}

/// What a token calls an endpoint: 64 bits of a hash of its identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointTag(u64);

impl EndpointTag {
    /// That of the endpoint with this identifier; worth keeping with the endpoint.
    pub fn of(id: &str) -> Self {
        Self(stable(ENDPOINT, id.as_bytes()))
    }
}

/// Seeds that keep the hashes of different things apart.
const ENDPOINT: u64 = 1;
const RULE: u64 = 2;

/// The first byte of a token, to tell later forms apart.
const FORM: u8 = 1;

/// Bytes of a token: form, rule, backend, endpoint, begin, last use.
const TOKEN: usize = 1 + 4 + 8 + 8 + 4 + 4;

impl Session {
    /// Sessions of the rule `rule`, a name that stays when others come or go.
    ///
    /// # Errors
    /// If such sessions cannot be kept.
    pub fn new(
        carrier: Carrier,
        rule: &str,
        absolute: Option<Duration>,
        idle: Option<Duration>,
    ) -> Result<Self, BadSession> {
        match &carrier {
            Carrier::Header(name) => crate::route::filter::may_edit(name)?,
            Carrier::Cookie { name, .. } if !crate::sanitize::headers::is_valid_name(name.as_bytes()) => {
                return Err(BadSession::Name);
            }
            Carrier::Cookie { permanent: true, .. } if absolute.is_none() => {
                return Err(BadSession::Unlimited);
            }
            Carrier::Cookie { .. } => {}
        }
        #[expect(clippy::cast_possible_truncation, reason = "32 bits tell the rules of a client apart")]
        let rule = stable(RULE, rule.as_bytes()) as u32;
        Ok(Self { carrier, rule, absolute, idle })
    }

    /// The name of the cookie of a rule that names none.
    pub fn default_cookie(rule: &str) -> Box<str> {
        format!("heddle-session-{:016x}", stable(RULE, rule.as_bytes())).into()
    }

    /// The session that a request brings, if it is one of the rule's and not over.
    pub fn read<H: Head>(&self, head: &H, now: SystemTime) -> Option<Token> {
        let now = seconds(now);
        let valid = |text: &[u8]| self.decode(text).filter(|token| self.lives(token, now));
        match &self.carrier {
            Carrier::Header(name) => head.values(name).find_map(valid),
            Carrier::Cookie { name, .. } => cookies(head, name.as_bytes()).find_map(valid),
        }
    }

    /// What to add to the response of an endpoint, given the session that the
    /// request brought: nothing while it goes on and no idle time has to be noted.
    /// `secure`: the client came over TLS.
    pub fn field(
        &self,
        brought: Option<&Token>,
        backend: &Backend,
        endpoint: EndpointTag,
        secure: bool,
        now: SystemTime,
    ) -> Option<(HeaderName, HeaderValue)> {
        let now = seconds(now);
        let backend = backend.target.tag()?;
        let same = brought.filter(|token| (token.backend, token.endpoint) == (backend, endpoint));
        if same.is_some_and(|token| self.idle.is_none() || token.used == now) {
            return None;
        }
        let token = Token { backend, endpoint, begun: same.map_or(now, |token| token.begun), used: now };
        let text = self.encode(&token);
        match &self.carrier {
            Carrier::Header(name) => Some((name.clone(), HeaderValue::try_from(text).ok()?)),
            Carrier::Cookie { name, permanent } => {
                let age = match self.absolute.filter(|_| *permanent) {
                    Some(absolute) => {
                        let left =
                            absolute.as_secs().saturating_sub(u64::from(now.saturating_sub(token.begun)));
                        format!("; Max-Age={left}")
                    }
                    None => String::new(),
                };
                // A client that came without TLS would not send a secure cookie back.
                let secure = if secure { "; Secure" } else { "" };
                let cookie = format!("{name}={text}; Path=/; HttpOnly; SameSite=Lax{secure}{age}");
                Some((SET_COOKIE, HeaderValue::try_from(cookie).ok()?))
            }
        }
    }

    fn lives(&self, token: &Token, now: u32) -> bool {
        let within = |since: u32, limit: Option<Duration>| {
            limit.is_none_or(|limit| u64::from(now.saturating_sub(since)) < limit.as_secs().max(1))
        };
        within(token.begun, self.absolute) && within(token.used, self.idle)
    }

    fn encode(&self, token: &Token) -> String {
        let Token { backend, endpoint, begun, used } = token;
        format!("{FORM:02x}{:08x}{backend:016x}{:016x}{begun:08x}{used:08x}", self.rule, endpoint.0)
    }

    fn decode(&self, text: &[u8]) -> Option<Token> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 2 * TOKEN)?;
        let number = |from: usize, bytes: usize| {
            let digits = text.get(2 * from..2 * (from + bytes))?;
            // A sign would be accepted too.
            let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(digits, 16).ok())?
        };
        if number(0, 1)? != u64::from(FORM) || number(1, 4)? != u64::from(self.rule) {
            return None;
        }
        let time = |from| number(from, 4).and_then(|seconds| u32::try_from(seconds).ok());
        Some(Token {
            backend: number(5, 8)?,
            endpoint: EndpointTag(number(13, 8)?),
            begun: time(21)?,
            used: time(25)?,
        })
    }
}

impl Token {
    /// The backend that the session is with, also one without a share; `None`
    /// if it is no longer one of the rule's.
    pub fn backend<'a>(&self, backends: &'a [Backend]) -> Option<&'a Backend> {
        backends.iter().find(|backend| backend.target.tag() == Some(self.backend))
    }

    /// The endpoint that the session is with.
    pub fn endpoint(&self) -> EndpointTag {
        self.endpoint
    }
}

/// Seconds since 1970, until 2106.
fn seconds(time: SystemTime) -> u32 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
