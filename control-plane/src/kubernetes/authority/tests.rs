use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::rotation::settling;
use super::*;

const LIFETIME: Duration = Duration::from_secs(3600);

/// The two minutes of a mesh whose certificates are not extremely short-lived.
const SETTLE: Duration = Duration::from_secs(120);

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

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
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
    let mut rotation = Rotation::new(&loaded(&old, &[&old]), LIFETIME, Vec::new(), SystemTime::now());
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
    let mut rotation = Rotation::new(&loaded(&old, &[&old]), LIFETIME, Vec::new(), SystemTime::now());
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
    let mut rotation = Rotation::new(&loaded(&old, &[&old]), LIFETIME, Vec::new(), SystemTime::now());
    let now = SystemTime::now();
    rotation.replace(loaded(&new, &[&new]), now);
    rotation.replace(loaded(&old, &[&old]), now + SETTLE / 2);
    assert!(rotation.advance(now + SETTLE * 2).is_none());
    assert_eq!(rotation.roots(), [der(&old.0)]);
}

/// A restart right after the Secret was replaced, as tools do it that watch Secrets: the control plane
/// read the new one alone, trusted its root alone, and had all sidecars refuse each other.
#[test]
fn a_control_plane_that_starts_meanwhile_goes_on_trusting_what_was_signed_before() {
    let (old, new) = (root(), root());
    let start = SystemTime::now();
    let mut rotation = Rotation::new(&loaded(&old, &[&old]), LIFETIME, Vec::new(), start);
    assert!(rotation.unlisted().is_empty());
    rotation.replace(loaded(&new, &[&new]), start);
    let written = retired::write(&rotation.unlisted());

    let restarted = |written: &str, now| {
        let remembered = retired::read(written.as_bytes()).unwrap();
        Rotation::new(&loaded(&new, &[&new]), LIFETIME, remembered, now)
    };
    let roots = restarted(&written, start).roots();
    assert_eq!(roots, [der(&new.0), der(&old.0)]);
    // The same later, when the new one signs, and no longer than anything of the old one is valid.
    rotation.advance(start + SETTLE).unwrap();
    let end = start + SETTLE + LIFETIME;
    for written in [written, retired::write(&rotation.unlisted())] {
        assert_eq!(restarted(&written, end - Duration::from_secs(60)).roots().len(), 2);
        assert_eq!(restarted(&written, end + Duration::from_secs(1)).roots(), [der(&new.0)]);
    }
    // A date that nobody can have meant is not believed.
    let far = retired::write(&[Retired { root: der(&old.0), until: start + LIFETIME * 1000 }]);
    let mut believing = restarted(&far, start);
    assert_eq!(believing.due(), Some(end));
    believing.advance(end);
    assert_eq!(believing.roots(), [der(&new.0)]);
}

#[test]
fn short_lived_certificates_do_not_end_while_a_change_settles() {
    assert_eq!(settling(Duration::from_secs(60)), Duration::from_secs(15));
    assert_eq!(settling(LIFETIME), SETTLE);
}

/// An authority that can be read but not used: each renewal took one more workload out of the mesh.
#[test]
fn an_authority_whose_certificates_nobody_accepts_is_refused() {
    let now = time::OffsetDateTime::now_utc();
    let keys = [(); 3].map(|()| KeyPair::generate().unwrap());
    let [root_key, middle_key, key] = &keys;
    let root = params("root").self_signed(root_key).unwrap().pem();
    let below_root = |below: CertificateParams, key: &KeyPair| {
        let issuer = Issuer::new(params("root"), KeyPair::from_pem(&root_key.serialize_pem()).unwrap());
        below.signed_by(key, &issuer).unwrap().pem()
    };
    let below_middle = || {
        let issuer = Issuer::new(params("middle"), KeyPair::from_pem(&middle_key.serialize_pem()).unwrap());
        params("issuing").signed_by(key, &issuer).unwrap().pem()
    };
    let mut ended = params("middle");
    ended.not_after = now - time::Duration::days(1);
    let mut early = params("issuing");
    early.not_before = now + time::Duration::days(1);
    let good = below_middle() + &below_root(params("middle"), middle_key);
    let load = |chain: &str| {
        let parts = [("tls.crt", chain), ("tls.key", &key.serialize_pem()), ("ca.crt", &root)];
        load(&parts).err().map(|error| error.to_string())
    };
    assert_eq!(load(&good), None);
    for (chain, reason) in [
        (below_middle() + &below_root(ended, middle_key), "has expired"),
        (below_root(early, key), "is not valid yet"),
        // The one in between is missing, and another is in its place.
        (below_middle() + &below_root(params("other"), middle_key), "would be refused"),
    ] {
        let refused = load(&chain).expect("nobody would accept what it signs");
        assert!(refused.contains(reason), "{refused}");
    }
}
