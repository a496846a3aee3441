//! Certificates for the other proxies: one root, one leaf for both sides.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// The name that proxies verify.
pub(crate) const NAME: &str = "origin.bench";

/// Writes `ca.pem`, `cert.pem`, `key.pem` and `both.pem` (HAProxy wants chain and key in one).
pub(crate) fn write(folder: &Path) -> anyhow::Result<()> {
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::new(vec!["root.bench".into()])?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // With the same name for both, a leaf looks as if it had signed itself.
    root.distinguished_name.push(DnType::CommonName, "root.bench");
    let root_certificate = root.self_signed(&root_key)?;
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec![NAME.into()])?;
    leaf.distinguished_name.push(DnType::CommonName, NAME);
    let leaf = leaf.signed_by(&key, &issuer)?;
    std::fs::write(folder.join("ca.pem"), root_certificate.pem())?;
    std::fs::write(folder.join("cert.pem"), leaf.pem())?;
    std::fs::write(folder.join("key.pem"), key.serialize_pem())?;
    std::fs::write(folder.join("both.pem"), leaf.pem() + &key.serialize_pem())?;
    Ok(())
}
