//! Join tokens: how a workload outside Kubernetes proves who it is before it
//! has a certificate. A token is bound to exactly one identity and one
//! service, ends by itself, and names the roots by which its bearer can tell
//! the real control plane from another.
//!
//! Text: `heddle1.CLAIMS.MAC`, both parts base64url without padding; CLAIMS is
//! JSON, MAC is HMAC-SHA256 over `heddle1.CLAIMS`. Claims are never read before
//! the MAC is verified, save by the bearer, who has no key and trusts the file
//! that the token came from. Reading a clock and keeping the key are left to
//! the callers.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};

use crate::spiffe::SpiffeId;

/// What a join token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The one identity that the bearer may obtain.
    pub identity: SpiffeId,
    /// The one service, in the identity's namespace, that the bearer may register.
    pub service: String,
    /// When the token ends; whole seconds.
    pub expires: SystemTime,
    /// The control plane's roots: it must prove itself by a chain to one of them.
    pub roots: Vec<RootHash>,
}

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// No token of this form.
    #[error("the join token is malformed: {0}")]
    Malformed(&'static str),
    /// Not made with the control plane's key, or changed since.
    #[error("the join token's signature does not verify: it was changed, or made by another control plane")]
    Forged,
    /// Its time has ended.
    #[error("the join token expired {} s ago", .0.as_secs())]
    Expired(Duration),
}

impl JoinToken {
    /// The token as text, signed with `key`.
    pub fn mint(&self, key: &TokenKey) -> String {
        let expires = self.expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = Claims {
            id: self.identity.as_str().into(),
            svc: self.service.clone(),
            exp: expires,
            ca: self.roots.iter().map(ToString::to_string).collect(),
        };
        let claims = serde_json::to_vec(&claims).expect("strings and a number are always JSON");
        let signed = format!("{VERSION}.{}", BASE64.encode(claims));
        let mac = hmac::sign(&key.0, signed.as_bytes());
        format!("{signed}.{}", BASE64.encode(mac.as_ref()))
    }

    /// What `text` says, if `key` signed it and it has not ended at `now`.
    ///
    /// # Errors
    /// If it is malformed, forged or expired.
    pub fn verify(text: &str, key: &TokenKey, now: SystemTime) -> Result<Self, TokenRefused> {
        let parts = Parts::split(text)?;
        hmac::verify(&key.0, parts.signed.as_bytes(), &parts.mac).map_err(|_| TokenRefused::Forged)?;
        let token = parts.claims()?;
        // A token is worthless from the very second in which it ends.
        match now.duration_since(token.expires) {
            Ok(since) => Err(TokenRefused::Expired(since)),
            Err(_) => Ok(token),
        }
    }

    /// What `text` says, for its bearer, who cannot verify it.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn read(text: &str) -> Result<Self, TokenRefused> {
        Parts::split(text)?.claims()
    }
}

/// The secret with which a control plane signs its tokens.
pub struct TokenKey(hmac::Key);

impl TokenKey {
    /// Bytes of a secret: as many as the MAC has, to be neither its weak nor
    /// its useless part (RFC 2104, section 3).
    pub const LENGTH: usize = 32;

    /// A key from its secret bytes.
    pub fn new(secret: &[u8; Self::LENGTH]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey")
    }
}

/// SHA-256 of a root certificate's DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RootHash([u8; 32]);

impl RootHash {
    /// The hash of a certificate.
    pub fn of(der: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, der);
        Self(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    fn from_hex(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

const VERSION: &str = "heddle1";

/// Longer texts are refused before anything is decoded. The longest honest
/// token, a 2 KiB identity with two roots, is under 4 KiB.
const MAX_LENGTH: usize = 8192;

#[derive(Serialize, Deserialize)]
struct Claims {
    id: String,
    svc: String,
    exp: u64,
    ca: Vec<String>,
}

struct Parts<'a> {
    signed: &'a str,
    claims: &'a str,
    mac: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Result<Self, TokenRefused> {
        let text = text.trim();
        if text.len() > MAX_LENGTH {
            return Err(TokenRefused::Malformed("it is longer than 8 KiB"));
        }
        let (signed, mac) =
            text.rsplit_once('.').ok_or(TokenRefused::Malformed("it is not VERSION.CLAIMS.MAC"))?;
        let claims = signed
            .strip_prefix(VERSION)
            .and_then(|rest| rest.strip_prefix('.'))
            .ok_or(TokenRefused::Malformed("it does not begin with \"heddle1.\""))?;
        let mac = BASE64.decode(mac).map_err(|_| TokenRefused::Malformed("its MAC is not base64url"))?;
        Ok(Self { signed, claims, mac })
    }

    fn claims(&self) -> Result<JoinToken, TokenRefused> {
        let json = BASE64
            .decode(self.claims)
            .map_err(|_| TokenRefused::Malformed("its claims are not base64url"))?;
        let claims: Claims =
            serde_json::from_slice(&json).map_err(|_| TokenRefused::Malformed("its claims are not JSON"))?;
        Ok(JoinToken {
            identity: claims
                .id
                .parse()
                .map_err(|_| TokenRefused::Malformed("its claim \"id\" is no SPIFFE ID"))?,
            service: claims.svc,
            expires: UNIX_EPOCH
                .checked_add(Duration::from_secs(claims.exp))
                .ok_or(TokenRefused::Malformed("its claim \"exp\" is beyond all time"))?,
            roots: claims
                .ca
                .iter()
                .map(|hex| RootHash::from_hex(hex))
                .collect::<Option<_>>()
                .ok_or(TokenRefused::Malformed("its claim \"ca\" has something else than SHA-256 hashes"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            identity: "spiffe://mesh.local/ns/shop/sa/users".parse().unwrap(),
            service: "users".into(),
            expires: UNIX_EPOCH + Duration::from_secs(1000),
            roots: vec![RootHash::of(b"root"), RootHash::of(b"next root")],
        }
    }

    fn key() -> TokenKey {
        TokenKey::new(&[7; 32])
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_minted_token_says_what_was_put_in() {
        let text = token().mint(&key());
        assert_eq!(JoinToken::verify(&format!("{text}\n"), &key(), at(999)), Ok(token()));
        assert_eq!(JoinToken::read(&text), Ok(token()));
    }

    #[test]
    fn a_token_ends_in_its_second() {
        let text = token().mint(&key());
        let verify = |seconds| JoinToken::verify(&text, &key(), at(seconds));
        assert_eq!(verify(1000), Err(TokenRefused::Expired(Duration::ZERO)));
        assert_eq!(verify(1060), Err(TokenRefused::Expired(Duration::from_secs(60))));
    }

    #[test]
    fn another_key_is_a_forgery() {
        let text = token().mint(&TokenKey::new(&[8; 32]));
        assert_eq!(JoinToken::verify(&text, &key(), at(0)), Err(TokenRefused::Forged));
    }

    #[test]
    fn claims_under_a_foreign_mac_are_a_forgery() {
        let mut other = token();
        other.identity = "spiffe://mesh.local/ns/shop/sa/admin".parse().unwrap();
        let (stolen, mine) = (other.mint(&TokenKey::new(&[8; 32])), token().mint(&key()));
        let mixed = format!("{}.{}", stolen.rsplit_once('.').unwrap().0, mine.rsplit_once('.').unwrap().1);
        assert_eq!(JoinToken::verify(&mixed, &key(), at(0)), Err(TokenRefused::Forged));
    }

    #[test]
    fn other_texts_are_malformed() {
        for text in ["", "heddle1", "heddle1.e30", "heddle2.e30.e30", "heddle1.e30.?", &"a".repeat(9000)] {
            assert!(
                matches!(JoinToken::verify(text, &key(), at(0)), Err(TokenRefused::Malformed(_))),
                "{text}"
            );
        }
        for json in [r#"{}"#, r#"{"id":"x","svc":"a","exp":1,"ca":[]}"#] {
            assert!(matches!(
                JoinToken::read(&format!("heddle1.{}.e30", BASE64.encode(json))),
                Err(TokenRefused::Malformed(_))
            ));
        }
    }

    proptest! {
        #[test]
        fn no_changed_byte_goes_unnoticed(position in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut text = token().mint(&key()).into_bytes();
            let position = position.index(text.len());
            prop_assume!(text[position] != byte && byte.is_ascii_graphic());
            text[position] = byte;
            let text = String::from_utf8(text).unwrap();
            prop_assert!(JoinToken::verify(&text, &key(), at(0)).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text in "(heddle1\\.)?.{0,200}") {
            let _ = JoinToken::verify(&text, &key(), at(0));
            let _ = JoinToken::read(&text);
        }
    }
}
