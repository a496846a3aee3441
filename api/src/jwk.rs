//! JSON Web Keys (RFC 7517), as far as they verify the signatures of tokens.
//!
//! A set may hold keys for other ends; those are left out without a word. What is
//! meant for signatures and cannot be used is told, and left out too: it must not keep
//! the others, or whatever else is told to a sidecar with them, from being used. Which algorithm a
//! key is good for follows from the key: what a token says about itself decides nothing.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

/// The longest set, in bytes: a dozen keys with their certificates are a tenth of it.
pub const MAX_SET: usize = 256 * 1024;

/// The most keys of one set that are used. A token without a key's name is tried with each of them.
pub const MAX_KEYS: usize = 32;

/// The shortest secret that tokens may be signed with, in bytes (RFC 7518, section 3.2).
pub const MIN_SECRET: usize = 32;

/// The least and the most bits of an RSA modulus: fewer are within reach of being factored (RFC 7518,
/// section 3.3), more cost too much to verify.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The algorithms of RSA keys (RFC 7518, sections 3.3 and 3.5).
const OF_RSA: [&str; 6] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];

/// A public key of an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwk {
    /// `kid`; empty if it has none.
    pub id: String,
    /// What it can verify.
    pub algorithms: Vec<&'static str>,
    /// The key.
    pub key: PublicKey,
}

/// The key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// Big-endian, without leading zeros.
    Rsa {
        /// `n`.
        modulus: Vec<u8>,
        /// `e`.
        exponent: Vec<u8>,
    },
    /// An uncompressed point (SEC 1, section 2.3.3) of the curve that the algorithm names.
    Ec(Vec<u8>),
    /// RFC 8032.
    Ed25519(Vec<u8>),
}

impl PublicKey {
    /// Whether signatures can be verified with it, as sidecars will.
    fn is_usable(&self) -> bool {
        let parsed = match self {
            Self::Rsa { modulus, exponent } => {
                let der: Result<PublicKeyX509Der<'_>, _> =
                    RsaPublicKeyComponents { n: modulus, e: exponent }.as_der();
                return der.is_ok_and(|der| {
                    ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der.as_ref()).is_ok()
                });
            }
            // By the length of an uncompressed point: one byte, and twice the field's.
            Self::Ec(point) if point.len() == 65 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point),
            Self::Ec(point) if point.len() == 97 => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point),
            Self::Ec(point) => ParsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point),
            Self::Ed25519(bytes) => ParsedPublicKey::new(&ED25519, bytes),
        };
        parsed.is_ok()
    }
}

/// What a set holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySet {
    /// The keys that verify signatures, in their order.
    pub keys: Vec<Jwk>,
    /// What is wrong with keys that should, as `keys[1]: …`.
    pub broken: Vec<String>,
}

/// A text that is no key set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadKeySet(String);

impl KeySet {
    /// Reads a set (RFC 7517, section 5).
    ///
    /// # Errors
    /// If it is none, is too large, or none of its keys can be used. The text is not quoted.
    pub fn parse(text: &[u8]) -> Result<Self, BadKeySet> {
        if text.len() > MAX_SET {
            return Err(BadKeySet(format!("is larger than {} KiB", MAX_SET / 1024)));
        }
        let wire: Wire = serde_json::from_slice(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            BadKeySet(format!("is no JSON Web Key set (line {line}, column {column})"))
        })?;
        let mut set = Self::default();
        for (index, key) in wire.keys.into_iter().enumerate() {
            match serde_json::from_value::<WireKey>(key) {
                Ok(wire) => match wire.read() {
                    Ok(Some(key)) => set.keys.push(key),
                    Ok(None) => {}
                    Err(why) => set.broken.push(format!("keys[{index}]: {why}")),
                },
                Err(_) => set.broken.push(format!("keys[{index}]: is no JSON Web Key")),
            }
        }
        if set.keys.is_empty() {
            let broken = set.broken.first().map(|why| format!(" ({why})")).unwrap_or_default();
            return Err(BadKeySet(format!("has no key that verifies signatures{broken}")));
        }
        if set.keys.len() > MAX_KEYS {
            return Err(BadKeySet(format!("has more than {MAX_KEYS} keys")));
        }
        Ok(set)
    }
}

#[derive(Deserialize)]
struct Wire {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct WireKey {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl WireKey {
    /// The key; `None` if it is for something else.
    fn read(&self) -> Result<Option<Jwk>, &'static str> {
        let other = self.usage.as_deref().is_some_and(|usage| usage != "sig")
            || self.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify"));
        if other {
            return Ok(None);
        }
        let (known, key): (&[&'static str], _) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => (&OF_RSA, self.rsa()?),
            ("EC", Some("P-256")) => (&["ES256"], self.point(32)?),
            ("EC", Some("P-384")) => (&["ES384"], self.point(48)?),
            ("EC", Some("P-521")) => (&["ES512"], self.point(66)?),
            // RFC 9864 gives the one algorithm of the curve a second name.
            ("OKP", Some("Ed25519")) => (&["EdDSA", "Ed25519"], self.ed25519()?),
            ("oct", _) => {
                return Err("is a symmetric key; it belongs into a Secret that hmacSecretRef names");
            }
            _ => return Ok(None),
        };
        let algorithms: Vec<&'static str> = match self.alg.as_deref() {
            Some(alg) => known.iter().copied().filter(|known| *known == alg).collect(),
            None => known.to_vec(),
        };
        if algorithms.is_empty() {
            return Ok(None);
        }
        let id = self.kid.clone().unwrap_or_default();
        if id.len() > 256 {
            return Err("has a kid of more than 256 bytes");
        }
        if !key.is_usable() {
            return Err("has numbers that are no key, such as a point that is not on its curve");
        }
        Ok(Some(Jwk { id, algorithms, key }))
    }

    fn rsa(&self) -> Result<PublicKey, &'static str> {
        let (Some(modulus), Some(exponent)) = (number(self.n.as_ref()), number(self.e.as_ref())) else {
            return Err("has no n and e in base64url");
        };
        let bits = modulus.len() * 8 - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            return Err("is not between 2048 and 8192 bits long");
        }
        // 3 to 2^32: what any library makes. An even one is none.
        let odd = exponent.last().is_some_and(|last| last % 2 == 1);
        if !odd || exponent == [1] || exponent.len() > 4 {
            return Err("has an exponent that is none");
        }
        Ok(PublicKey::Rsa { modulus, exponent })
    }

    fn point(&self, length: usize) -> Result<PublicKey, &'static str> {
        match (decoded(self.x.as_ref()), decoded(self.y.as_ref())) {
            (Some(x), Some(y)) if x.len() == length && y.len() == length => {
                Ok(PublicKey::Ec([[4].as_slice(), &x, &y].concat()))
            }
            _ => Err("has no x and y of its curve's length in base64url"),
        }
    }

    fn ed25519(&self) -> Result<PublicKey, &'static str> {
        match decoded(self.x.as_ref()) {
            Some(x) if x.len() == 32 => Ok(PublicKey::Ed25519(x)),
            _ => Err("has no x of 32 bytes in base64url"),
        }
    }
}

fn decoded(text: Option<&String>) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text?).ok()
}

/// A number (RFC 7518, section 2, "Base64urlUInt"); leading zeros, which some write, go.
fn number(text: Option<&String>) -> Option<Vec<u8>> {
    let mut bytes = decoded(text)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn encode(bytes: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    fn rsa(bits: usize) -> Value {
        json!({"kty": "RSA", "kid": "r", "n": encode(&vec![0xFF; bits / 8]), "e": "AQAB"})
    }

    /// The base point of P-256 (SP 800-186, section 3.2.1.3), as a key.
    fn generator() -> Value {
        json!({
            "kty": "EC", "crv": "P-256",
            "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
            "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU",
        })
    }

    fn set(keys: &[Value]) -> Result<KeySet, BadKeySet> {
        KeySet::parse(json!({"keys": keys}).to_string().as_bytes())
    }

    #[test]
    fn a_key_verifies_what_it_is_made_for() {
        let ec = generator();
        let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&[3; 32]), "use": "sig"});
        let mut named = rsa(2048);
        named["alg"] = "RS256".into();
        let set = set(&[rsa(2048), ec, ed, named]).unwrap();
        assert_eq!(set.broken, [] as [&str; 0]);
        let algorithms: Vec<_> = set.keys.iter().map(|key| key.algorithms.clone()).collect();
        assert_eq!(algorithms, [OF_RSA.to_vec(), vec!["ES256"], vec!["EdDSA", "Ed25519"], vec!["RS256"]]);
        assert_eq!((set.keys[0].id.as_str(), set.keys[1].id.as_str()), ("r", ""));
    }

    #[test]
    fn keys_for_other_ends_are_left_out_and_broken_ones_are_told() {
        let mut encryption = rsa(2048);
        encryption["use"] = "enc".into();
        let mut wraps = rsa(2048);
        wraps["key_ops"] = json!(["wrapKey"]);
        let mut other = rsa(2048);
        other["alg"] = "RSA-OAEP".into();
        let unknown = json!({"kty": "AKP", "alg": "ML-DSA-44"});
        let symmetric = json!({"kty": "oct", "k": encode(&[7; 32])});
        let found = set(&[encryption, wraps, other, unknown, symmetric, rsa(1024), rsa(2048)]).unwrap();
        assert_eq!(found.keys.len(), 1);
        assert!(found.broken[0].starts_with("keys[4]: is a symmetric key"), "{:?}", found.broken);
        assert_eq!(found.broken[1], "keys[5]: is not between 2048 and 8192 bits long");
    }

    /// An issuer published a point that is not on its curve. It looked like a key here, and each sidecar
    /// that was told it refused all that it was told with it, whosever policy that was.
    #[test]
    fn numbers_that_are_no_key_are_left_out() {
        let mut beside = generator();
        beside["y"] = beside["x"].clone();
        let found = set(&[beside.clone(), generator()]).unwrap();
        assert_eq!(found.keys.len(), 1);
        assert!(found.broken[0].starts_with("keys[0]: has numbers that are no key"), "{:?}", found.broken);
        assert!(set(&[beside]).is_err());
    }

    #[test]
    fn what_is_no_set_is_refused_without_being_quoted() {
        for (text, why) in [
            ("hush", "is no JSON Web Key set (line 1, column 1)"),
            ("{\"keys\": []}", "has no key that verifies signatures"),
            ("{\"keys\": [1]}", "has no key that verifies signatures (keys[0]: is no JSON Web Key)"),
        ] {
            assert_eq!(KeySet::parse(text.as_bytes()).unwrap_err().to_string(), why);
        }
        assert!(KeySet::parse(&vec![b' '; MAX_SET + 1]).is_err());
        assert!(set(&vec![rsa(2048); MAX_KEYS + 1]).is_err());
        let mut even = rsa(2048);
        even["e"] = encode(&[2]).into();
        assert!(set(&[even]).is_err());
    }
}
