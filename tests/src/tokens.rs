//! An issuer of tokens, made with another library than the one under test.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

pub use jsonwebtoken::Algorithm;

/// What an Ed25519 key begins with in the first version of PKCS #8 (RFC 8410).
const VERSION_1: &[u8] = &[0x30, 0x2E, 2, 1, 0, 0x30, 5, 6, 3, 0x2B, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// A key of an issuer.
pub struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    /// A new key for one of RS256, ES256 and EdDSA.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(id: &'static str, algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::RS256 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Algorithm::ES256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            _ => KeyPair::generate_for(&PKCS_ED25519),
        };
        let der = key.expect("a key can be made").serialize_der();
        let key = match algorithm {
            // PKCS #1 lies in PKCS #8 behind 26 bytes, for a key of this size.
            Algorithm::RS256 => EncodingKey::from_rsa_der(&der[26..]),
            Algorithm::ES256 => EncodingKey::from_ec_der(&der),
            // The library wants that version, without the public key.
            _ => EncodingKey::from_ed_der(&[VERSION_1, &der[16..48]].concat()),
        };
        Self { id, algorithm, key }
    }

    /// One that shares its key with others.
    pub fn shared(algorithm: Algorithm, secret: &[u8]) -> Self {
        Self { id: "", algorithm, key: EncodingKey::from_secret(secret) }
    }

    /// Its public key, as it publishes it.
    ///
    /// # Panics
    /// If it has none.
    pub fn jwk(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("it has a public key");
        let mut jwk = serde_json::to_value(jwk).expect("it is JSON");
        jwk["kid"] = self.id.into();
        jwk
    }

    /// A token that says this, and else what is right: by `iss`, for `users`, for five minutes.
    ///
    /// # Panics
    /// If it cannot be signed.
    pub fn token(&self, says: Value) -> String {
        let mut claims = json!({"iss": "https://accounts.example", "aud": "users", "exp": now() + 300});
        let (all, says) = (claims.as_object_mut().expect("it is one"), says);
        for (name, value) in says.as_object().expect("claims are an object") {
            match value {
                Value::Null => drop(all.remove(name)),
                value => drop(all.insert(name.clone(), value.clone())),
            }
        }
        let kid = Some(self.id.to_owned()).filter(|id| !id.is_empty());
        encode(&Header { kid, ..Header::new(self.algorithm) }, &claims, &self.key).expect("it can be signed")
    }
}

/// The set that these publish together.
pub fn key_set(signers: &[&Signer]) -> String {
    json!({"keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()}).to_string()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
