//! Who gets a certificate, and what it says.

use std::os::unix::fs::PermissionsExt;

use heddle_api::tls::spiffe_id;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tonic::Code;

use crate::harness::{Home, Sidecar, connect_by_token, csr, sign};

#[tokio::test]
async fn a_token_gets_a_certificate_for_its_identity_and_nothing_else() {
    let home = Home::new();
    let plane = home.start(&["--trust-domain", "mesh.example"]);
    let token =
        home.token(&["--service", "users", "--namespace", "shop", "--trust-domain", "mesh.example"]).unwrap();

    let key = KeyPair::generate().unwrap();
    let mut wishes = CertificateParams::new(vec!["evil.example".into()]).unwrap();
    let admin = "spiffe://mesh.example/ns/shop/sa/admin";
    wishes.subject_alt_names.push(SanType::URI(admin.try_into().unwrap()));
    wishes.distinguished_name.push(DnType::CommonName, "admin");
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let wishes = wishes.serialize_request(&key).unwrap().der().to_vec();

    let channel = connect_by_token(&plane, &token).await.unwrap();
    let signed = sign(channel, wishes, Some(&token)).await.unwrap();
    let identity = spiffe_id(&signed.chain[0].clone().into()).unwrap();
    assert_eq!(identity.as_str(), "spiffe://mesh.example/ns/shop/sa/users");
    assert_eq!(signed.bundle.unwrap().roots.len(), 1);
    assert!((plane.metric("heddle_certificates_issued_total{proof=\"join_token\"}") - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_certificate_renews_without_a_token() {
    let home = Home::new();
    let plane = home.start(&[]);
    let sidecar = Sidecar::join(&home, &plane, "users").await;
    let signed = sign(sidecar.channel.clone(), csr(&KeyPair::generate().unwrap()), None).await.unwrap();
    let identity = spiffe_id(&signed.chain[0].clone().into()).unwrap();
    assert_eq!(identity.as_str(), "spiffe://heddle.local/ns/shop/sa/users");
}

#[tokio::test]
async fn who_proves_nothing_gets_nothing() {
    let home = Home::new();
    let plane = home.start(&[]);
    let token = home.token(&["--service", "users", "--namespace", "shop"]).unwrap();
    let expired = home.token(&["--service", "users", "--ttl", "0s"]).unwrap();
    let foreign = Home::new().token(&["--service", "users", "--namespace", "shop"]).unwrap();
    let claims = home.token(&["--service", "admin"]).unwrap();
    let claims = claims.rsplit_once('.').unwrap().0;
    let forged = format!("{claims}.{}", token.rsplit_once('.').unwrap().1);

    let channel = connect_by_token(&plane, &token).await.unwrap();
    let request = csr(&KeyPair::generate().unwrap());
    for (proof, reason) in [
        (None, "no proof of identity"),
        (Some("nonsense"), "malformed"),
        (Some(forged.as_str()), "signature does not verify"),
        (Some(foreign.as_str()), "signature does not verify"),
        (Some(expired.as_str()), "expired"),
    ] {
        let status = sign(channel.clone(), request.clone(), proof).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{proof:?}: {status}");
        assert!(status.message().contains(reason), "{proof:?}: {status}");
    }
    let status = sign(channel.clone(), b"no csr".to_vec(), Some(&token)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!((plane.metric("heddle_certificates_refused_total") - 6.0).abs() < 0.1);
    // A token that another control plane minted does not even lead to this one.
    assert!(connect_by_token(&plane, &foreign).await.is_err());
}

#[test]
fn the_control_planes_own_identity_is_not_given_away() {
    let complaint = Home::new()
        .token(&["--service", "heddle-control-plane", "--namespace", "heddle-system"])
        .unwrap_err();
    assert!(complaint.contains("not given away"), "{complaint}");
}

#[tokio::test]
async fn without_a_certificate_there_is_neither_discovery_nor_registration() {
    use heddle_api::discovery::v1::registry_client::RegistryClient;
    use heddle_api::discovery::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
    let home = Home::new();
    let plane = home.start(&[]);
    let token = home.token(&["--service", "users"]).unwrap();
    let channel = connect_by_token(&plane, &token).await.unwrap();
    let discovered = AggregatedDiscoveryServiceClient::new(channel.clone())
        .delta_aggregated_resources(tokio_stream::pending())
        .await;
    assert_eq!(discovered.unwrap_err().code(), Code::Unauthenticated);
    let registered = RegistryClient::new(channel).register(tokio_stream::pending()).await;
    assert_eq!(registered.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_given_intermediate_signs_under_its_root() {
    let home = Home::new();
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = authority("root").self_signed(&root_key).unwrap();
    let issuer = Issuer::new(authority("root"), root_key);
    let intermediate = authority("intermediate").signed_by(&key, &issuer).unwrap();
    let (certificate, key_file) = (home.path("given.pem"), home.path("given-key.pem"));
    std::fs::write(&certificate, intermediate.pem() + &root.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let given = ["--ca-cert", certificate.to_str().unwrap(), "--ca-key", key_file.to_str().unwrap()];
    let ask = [&given[..], &["--service", "users", "--namespace", "shop"]].concat();
    assert!(home.token(&ask).unwrap_err().contains("chmod 600"), "anyone could read the key");
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();

    let plane = home.start(&given);
    let token = home.token(&ask).unwrap();
    let channel = connect_by_token(&plane, &token).await.unwrap();
    let signed = sign(channel, csr(&KeyPair::generate().unwrap()), Some(&token)).await.unwrap();
    assert_eq!(signed.chain[1..], [intermediate.der().to_vec()]);
    assert_eq!(signed.bundle.unwrap().roots, [root.der().to_vec()]);
    // The whole chain holds in both directions.
    let users = Sidecar::join_with(&plane, "users", &token).await;
    users.register(users.registration("users-1")).await.answer().await.unwrap();
    assert!(!home.path("data").join("ca.pem").exists(), "no root of its own is made");
}
