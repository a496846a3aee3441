use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::rotation::SETTLE;
use super::*;

const LIFETIME: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    "mesh.local".parse().unwrap()
}

fn secret(parts: &[(&str, &str)]) -> Secret {
    let data = parts.iter().map(|(key, text)| ((*key).to_owned(), ByteString((*text).into())));
    Secret { data: Some(data.collect()), ..Secret::default() }
}

fn load(parts: &[(&str, &str)]) -> Result<Loaded, BadSecret> {
    read(&secret(parts), &domain(), LIFETIME, SystemTime::now())
}

/// Certificate and key of a new root.
fn root() -> (String, String) {
    Authority::create_root(&domain(), SystemTime::now()).unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    read_pem(pem.as_bytes()).unwrap().0.remove(0)
}

#[test]
fn what_a_control_plane_made_another_reads() {
    let made = new_secret(&domain(), SystemTime::now()).unwrap();
    let loaded = read(&made, &domain(), LIFETIME, SystemTime::now()).unwrap();
    assert_eq!(loaded.roots, [loaded.authority.root().clone()]);
    assert!(is_ours(&made));
    assert_eq!(made.type_.as_deref(), Some("kubernetes.io/tls"));
}

#[test]
fn a_given_intermediate_signs_under_its_root() {
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let anchor = params("root").self_signed(&root_key).unwrap();
    let intermediate = params("mesh").signed_by(&key, &Issuer::new(params("root"), root_key)).unwrap();
    let (other, _) = root();
    let (own, key) = (intermediate.pem(), key.serialize_pem());
    let roots = other.clone() + &anchor.pem();
    let loaded = load(&[("tls.crt", &own), ("tls.key", &key), ("ca.crt", &roots)]).unwrap();
    assert_eq!(loaded.authority.root(), anchor.der());
    assert_eq!(loaded.roots, [der(&other), anchor.der().clone()]);
    // Some issuers put the root into the chain and leave ca.crt out.
    let whole = own.clone() + &anchor.pem();
    assert_eq!(load(&[("tls.crt", &whole), ("tls.key", &key)]).unwrap().roots, [anchor.der().clone()]);
    let refused = load(&[("tls.crt", &own), ("tls.key", &key), ("ca.crt", &other)]).err().unwrap();
    assert!(matches!(refused, BadSecret::NoRoot), "{refused}");
}

#[test]
fn secrets_without_an_authority_are_refused_by_the_part_that_is_wrong() {
    let ((certificate, key), (_, foreign)) = (root(), root());
    for (parts, expected) in [
        (vec![], "there is no tls.crt"),
        (vec![("tls.crt", certificate.as_str())], "there is no tls.key"),
        (vec![("tls.crt", ""), ("tls.key", key.as_str())], "there is no tls.crt"),
        (vec![("tls.crt", &certificate), ("tls.key", "no key")], "there is no tls.key"),
        (vec![("tls.crt", &certificate), ("tls.key", &foreign)], "not that of the first certificate"),
        (
            vec![
                ("tls.crt", &certificate),
                ("tls.key", &key),
                ("ca.crt", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"),
            ],
            "ca.crt",
        ),
    ] {
        let refused = load(&parts).err().unwrap().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
}

fn loaded((certificate, key): &(String, String), roots: &[&(String, String)]) -> Loaded {
    let roots: String = roots.iter().map(|(certificate, _)| certificate.as_str()).collect();
    load(&[("tls.crt", certificate), ("tls.key", key), ("ca.crt", &roots)]).unwrap()
}

#[test]
fn an_authority_that_is_replaced_in_one_go_is_trusted_before_it_signs_and_the_old_one_after() {
    let (old, new) = (root(), root());
    let mut rotation = Rotation::new(&loaded(&old, &[&old]), LIFETIME);
    let start = SystemTime::now();
    rotation.replace(loaded(&new, &[&new]), start);
    assert!(rotation.advance(start).is_none());
    let both = |roots: Vec<CertificateDer<'static>>| {
        roots.len() == 2 && roots.contains(&der(&old.0)) && roots.contains(&der(&new.0))
    };
    assert!(both(rotation.roots()));
    assert_eq!(rotation.due(), Some(start + SETTLE));
    // The watch says it once more; nothing begins anew.
    rotation.replace(loaded(&new, &[&new]), start + SETTLE / 2);
    let signing = rotation.advance(start + SETTLE).unwrap();
    assert_eq!(signing.root(), &der(&new.0));
    assert!(both(rotation.roots()), "certificates of the old one are still valid");
    let end = rotation.due().unwrap();
    assert_eq!(end, start + SETTLE + LIFETIME);
    assert!(rotation.advance(end).is_none());
    assert_eq!(rotation.roots(), [der(&new.0)]);
    assert_eq!(rotation.due(), None);
}

#[test]
fn an_operator_who_rotates_step_by_step_gets_each_step_at_once() {
    let (old, new) = (root(), root());
    let mut rotation = Rotation::new(&loaded(&old, &[&old]), LIFETIME);
    let now = SystemTime::now();
    rotation.replace(loaded(&old, &[&old, &new]), now);
    assert!(rotation.advance(now).is_none());
    assert_eq!(rotation.roots().len(), 2);
    rotation.replace(loaded(&new, &[&old, &new]), now);
    assert_eq!(rotation.advance(now).unwrap().root(), &der(&new.0));
    assert_eq!(rotation.roots().len(), 2);
    rotation.replace(loaded(&new, &[&new]), now);
    assert!(rotation.advance(now).is_none());
    assert_eq!(rotation.roots(), [der(&new.0)]);
}

#[test]
fn a_change_that_is_taken_back_before_it_settled_was_none() {
    let (old, new) = (root(), root());
    let mut rotation = Rotation::new(&loaded(&old, &[&old]), LIFETIME);
    let now = SystemTime::now();
    rotation.replace(loaded(&new, &[&new]), now);
    rotation.replace(loaded(&old, &[&old]), now + SETTLE / 2);
    assert!(rotation.advance(now + SETTLE * 2).is_none());
    assert_eq!(rotation.roots(), [der(&old.0)]);
}
