//! JSON Web Tokens (RFC 7519, in the compact form of RFC 7515): which requests
//! a workload accepts by what they show, and what is known of them then.
//!
//! A token is verified with the keys of a provider, by an algorithm that the key
//! is good for; what the token says of itself selects among those and nothing
//! else (RFC 8725, sections 3.1 and 3.2). A verified token is remembered, so that
//! it costs a hash when it comes again. Time comes in with the question.

mod cache;
mod claims;
mod gate;
mod key;
mod location;
mod token;

use std::time::Duration;

use http::HeaderName;

pub use self::cache::Cache;
pub use self::claims::Claims;
pub use self::gate::{Admission, Denied, Gate, PortPolicy};
pub use self::key::{BadKey, Key, Material};
pub use self::location::Location;
pub use self::token::{Flaw, Token, Verified};

/// The longest token, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Whose tokens are accepted.
#[derive(Debug)]
pub struct Policy {
    /// `namespace/name`, as errors and metrics name it.
    pub source: Box<str>,
    /// Whether a request needs a token of one of its providers.
    pub required: bool,
    /// The issuers. With none and `required` nothing is admitted.
    pub providers: Box<[Provider]>,
}

/// An issuer of tokens.
#[derive(Debug)]
pub struct Provider {
    /// Unique in the policy.
    pub name: Box<str>,
    /// Exactly what `iss` says.
    pub issuer: Box<str>,
    /// `aud` says one of these; empty: it is not looked at.
    pub audiences: Box<[Box<str>]>,
    /// With none its tokens are refused.
    pub keys: std::sync::Arc<[Key]>,
    /// Where they come from, for people; what waits for keys keeps those that it had from there.
    pub keys_from: Box<str>,
    /// Where its tokens are looked for.
    pub locations: Box<[Location]>,
    /// Whether the application does not see them.
    pub stripped: bool,
    /// Claims, by their paths, and the headers that tell them.
    pub headers: Box<[(Box<str>, HeaderName)]>,
    /// What applications may take for one of those headers: see [`lookalikes`].
    pub lookalikes: Box<[HeaderName]>,
    /// How far clocks may be apart.
    pub skew: Duration,
}

/// The names that differ from a header's in hyphens that are underscores, or the other way round: an
/// application behind CGI or WSGI cannot tell them apart, so that nobody may send them in place of ours.
pub fn lookalikes(name: &HeaderName) -> impl Iterator<Item = HeaderName> {
    /// Of names with more of them only the last are looked at: a header for a claim has one or two.
    const PLACES: usize = 4;
    let places = name.as_str().match_indices(['-', '_']).map(|(at, _)| at);
    let mut places: Vec<usize> = places.collect();
    places.drain(..places.len().saturating_sub(PLACES));
    (1..1_usize << places.len()).filter_map(move |which| {
        let mut bytes = name.as_str().as_bytes().to_vec();
        let chosen = places.iter().enumerate().filter(|(bit, _)| which >> bit & 1 == 1);
        chosen.for_each(|(_, at)| bytes[*at] = if bytes[*at] == b'-' { b'_' } else { b'-' });
        HeaderName::from_bytes(&bytes).ok()
    })
}

#[cfg(test)]
mod tests;
