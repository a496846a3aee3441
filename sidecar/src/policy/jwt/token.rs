//! One token: its parts, and whether a provider accepts it.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{HeaderName, HeaderValue};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::claims::Claims;
use super::{MAX_TOKEN, Provider};

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flaw {
    /// Its issuer is none of the providers'.
    Issuer,
    /// It is no JWT of three parts within the bounds.
    Malformed,
    /// There are several where there may be one.
    Several,
    /// The provider has no key of its name, or none for its algorithm.
    Key,
    /// No key has signed it.
    Signature,
    /// It is over, or does not say when it is.
    Expired,
    /// It does not count as yet.
    Early,
    /// It is for others.
    Audience,
    /// There is none, and one is needed.
    Missing,
    /// The policy that asks for it could not be put into force.
    Refused,
}

impl Flaw {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issuer => "issuer",
            Self::Malformed => "malformed",
            Self::Several => "several",
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::Early => "early",
            Self::Audience => "audience",
            Self::Missing => "missing",
            Self::Refused => "policy_refused",
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Quoted in a header: ASCII without quotes.
        f.write_str(match self {
            Self::Issuer => "the token's issuer is none that is accepted here",
            Self::Malformed => "the token is malformed or too long",
            Self::Several => "the request has more than one token in one place",
            Self::Key => "the token is signed with a key or by an algorithm that its issuer is not known for",
            Self::Signature => "the token's signature is not its issuer's",
            Self::Expired => "the token has expired or does not say when it does",
            Self::Early => "the token is not valid yet",
            Self::Audience => "the token is not for this service",
            Self::Missing => "the request has no token",
            Self::Refused => "the policy was refused and has no earlier version; nothing is admitted",
        })
    }
}

/// A token of which nothing is verified.
pub struct Token<'t> {
    /// What is signed.
    signed: &'t [u8],
    signature: Vec<u8>,
    algorithm: Cow<'t, str>,
    key: Option<String>,
    claims: Claims,
}

/// The part of a token that says how it is signed (RFC 7515, section 4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that have to be understood. We understand none, and there is no list of none (section 4.1.11).
    #[serde(default, deserialize_with = "there")]
    crit: bool,
}

/// Whether there is anything, `null` too.
fn there<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|IgnoredAny| true)
}

impl<'t> Token<'t> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// [`Flaw::Malformed`].
    pub fn parse(text: &'t [u8]) -> Result<Self, Flaw> {
        Self::read(text).ok_or(Flaw::Malformed)
    }

    fn read(text: &'t [u8]) -> Option<Self> {
        if text.len() > MAX_TOKEN {
            return None;
        }
        let end = memchr::memrchr(b'.', text)?;
        let (signed, signature) = (&text[..end], &text[end + 1..]);
        let middle = memchr::memchr(b'.', signed)?;
        let (header, payload) = (&signed[..middle], &signed[middle + 1..]);
        // One with five parts is encrypted. A dot is no base64url either, but this is clearer.
        if memchr::memchr(b'.', payload).is_some() {
            return None;
        }
        let decode = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
        let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
        if header.crit {
            return None;
        }
        let claims = Claims(serde_json::from_slice(&decode(payload)?).ok()?);
        let signature = decode(signature)?;
        Some(Self { signed, signature, algorithm: header.alg.into(), key: header.kid, claims })
    }

    /// Whether a provider accepts it at this time.
    ///
    /// # Errors
    /// Why not.
    pub fn verify(&self, provider: &Provider, now: SystemTime) -> Result<Verified, Flaw> {
        // Another provider's token, in the first place: it costs no signature.
        if self.claims.str("iss") != Some(&provider.issuer) {
            return Err(Flaw::Issuer);
        }
        self.signed_by(provider)?;
        let date = |name| self.claims.date(name).map_err(|()| Flaw::Malformed);
        let from = date("nbf")?.max(date("iat")?).unwrap_or_default();
        let verified = Verified {
            until: date("exp")?.ok_or(Flaw::Expired)?,
            from,
            skew: provider.skew,
            headers: Box::default(),
            claims: self.claims.clone(),
        };
        verified.check(now)?;
        if !provider.audiences.is_empty() && !self.claims.is_for(&provider.audiences) {
            return Err(Flaw::Audience);
        }
        let headers = provider.headers.iter().filter_map(|(claim, name)| {
            // What no header can hold is not told.
            let value = HeaderValue::try_from(&*self.claims.text(claim)?).ok()?;
            Some((name.clone(), value))
        });
        Ok(Verified { headers: headers.collect(), ..verified })
    }

    /// Whether one of a provider's keys has signed it: one that bears the name that the token gives, or
    /// one without a name.
    fn signed_by(&self, provider: &Provider) -> Result<(), Flaw> {
        let named = |id: &str| provider.keys.iter().any(|key| key.id() == id);
        let meant = self.key.as_deref().filter(|id| !id.is_empty());
        let fits = |id: &str| match meant {
            Some(meant) if named(meant) => id == meant,
            Some(_) => id.is_empty(),
            None => true,
        };
        let fitting = provider.keys.iter().filter(|key| fits(key.id()) && key.knows(&self.algorithm));
        let mut flaw = Flaw::Key;
        for key in fitting {
            if key.verifies(&self.algorithm, self.signed, &self.signature) {
                return Ok(());
            }
            flaw = Flaw::Signature;
        }
        Err(flaw)
    }
}

/// A token that a provider accepts, within its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    claims: Claims,
    /// The headers that tell its claims.
    headers: Box<[(HeaderName, HeaderValue)]>,
    /// In seconds since 1970: it counts before that.
    until: u64,
    /// It counts from then on.
    from: u64,
    skew: Duration,
}

impl Verified {
    /// What it says.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The headers that tell its claims.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// Whether it counts at this time (RFC 7519, sections 4.1.4 to 4.1.6).
    ///
    /// # Errors
    /// [`Flaw::Expired`] or [`Flaw::Early`].
    pub fn check(&self, now: SystemTime) -> Result<(), Flaw> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let skew = self.skew.as_secs();
        if now >= self.until.saturating_add(skew) {
            return Err(Flaw::Expired);
        }
        if now.saturating_add(skew) < self.from {
            return Err(Flaw::Early);
        }
        Ok(())
    }
}
