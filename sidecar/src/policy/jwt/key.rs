//! Keys, ready to verify.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaPublicKeyComponents,
    VerificationAlgorithm,
};
use heddle_api::jwk::MIN_SECRET;

/// A key with the algorithms that it is good for.
pub struct Key {
    id: Box<str>,
    verifiers: Box<[(Box<str>, Verifier)]>,
}

enum Verifier {
    Public(ParsedPublicKey),
    /// Boxed because it is large.
    Shared(Box<hmac::Key>),
}

/// What a key is made of.
#[derive(Clone, Copy)]
pub enum Material<'a> {
    /// An RSA key of 2048 bits or more, without leading zeros.
    Rsa {
        /// `n`.
        modulus: &'a [u8],
        /// `e`.
        exponent: &'a [u8],
    },
    /// An uncompressed point of a NIST curve.
    Ec(&'a [u8]),
    /// RFC 8032.
    Ed25519(&'a [u8]),
    /// Shared with the issuer.
    Secret(&'a [u8]),
}

/// A key that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Nothing can be verified with it.
    #[error("it has no algorithm")]
    NoAlgorithm,
    /// An algorithm that keys of its type are not for.
    #[error("it is no key for its algorithm")]
    Algorithm,
    /// It is malformed, or too weak.
    #[error("it is malformed or too short")]
    Material,
}

impl Key {
    /// A key; its id is empty if it has none.
    ///
    /// # Errors
    /// If it cannot verify by each of the algorithms.
    pub fn new<'n>(
        id: &str,
        algorithms: impl IntoIterator<Item = &'n str>,
        material: Material<'_>,
    ) -> Result<Self, BadKey> {
        let verifiers: Box<[_]> = algorithms
            .into_iter()
            .map(|name| Ok((name.into(), verifier(name, material)?)))
            .collect::<Result<_, BadKey>>()?;
        if verifiers.is_empty() {
            return Err(BadKey::NoAlgorithm);
        }
        Ok(Self { id: id.into(), verifiers })
    }

    /// What tokens call it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// By which algorithms it verifies.
    pub fn algorithms(&self) -> impl Iterator<Item = &str> {
        self.verifiers.iter().map(|(name, _)| &**name)
    }

    /// Whether it verifies by this algorithm.
    pub fn knows(&self, algorithm: &str) -> bool {
        self.verifiers.iter().any(|(name, _)| **name == *algorithm)
    }

    /// Whether the signature is its, by this algorithm.
    pub fn verifies(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        self.verifiers.iter().any(|(name, verifier)| {
            **name == *algorithm
                && match verifier {
                    Verifier::Public(key) => key.verify_sig(message, signature).is_ok(),
                    Verifier::Shared(key) => hmac::verify(key, message, signature).is_ok(),
                }
        })
    }
}

fn verifier(algorithm: &str, material: Material<'_>) -> Result<Verifier, BadKey> {
    let public = |known: &'static dyn VerificationAlgorithm, bytes: &[u8]| {
        ParsedPublicKey::new(known, bytes).map(Verifier::Public).map_err(|_| BadKey::Material)
    };
    match (algorithm, material) {
        (name, Material::Rsa { modulus, exponent }) => {
            let known: &'static dyn VerificationAlgorithm = match name {
                "RS256" => &RSA_PKCS1_2048_8192_SHA256,
                "RS384" => &RSA_PKCS1_2048_8192_SHA384,
                "RS512" => &RSA_PKCS1_2048_8192_SHA512,
                "PS256" => &RSA_PSS_2048_8192_SHA256,
                "PS384" => &RSA_PSS_2048_8192_SHA384,
                "PS512" => &RSA_PSS_2048_8192_SHA512,
                _ => return Err(BadKey::Algorithm),
            };
            // 2048 bits: the first byte has its highest bit.
            if modulus.len() < 256 || modulus.len() == 256 && modulus[0] < 0x80 || modulus.len() > 1024 {
                return Err(BadKey::Material);
            }
            let components = RsaPublicKeyComponents { n: modulus, e: exponent };
            let der: PublicKeyX509Der<'_> = components.as_der().map_err(|_| BadKey::Material)?;
            public(known, der.as_ref())
        }
        ("ES256", Material::Ec(point)) => public(&ECDSA_P256_SHA256_FIXED, point),
        ("ES384", Material::Ec(point)) => public(&ECDSA_P384_SHA384_FIXED, point),
        ("ES512", Material::Ec(point)) => public(&ECDSA_P521_SHA512_FIXED, point),
        ("EdDSA" | "Ed25519", Material::Ed25519(bytes)) => public(&ED25519, bytes),
        (name, Material::Secret(secret)) => {
            // As long as the hash at least (RFC 7518, section 3.2).
            let (known, least) = match name {
                "HS256" => (hmac::HMAC_SHA256, MIN_SECRET),
                "HS384" => (hmac::HMAC_SHA384, 48),
                "HS512" => (hmac::HMAC_SHA512, 64),
                _ => return Err(BadKey::Algorithm),
            };
            if secret.len() < least {
                return Err(BadKey::Material);
            }
            Ok(Verifier::Shared(Box::new(hmac::Key::new(known, secret))))
        }
        _ => Err(BadKey::Algorithm),
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithms = self.algorithms().collect::<Vec<_>>();
        f.debug_struct("Key").field("id", &self.id).field("algorithms", &algorithms).finish()
    }
}
