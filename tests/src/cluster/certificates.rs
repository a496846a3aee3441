//! Who is who in a cluster: certificates, keys and the files by which clients use them.

use std::fs;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::namespaces::Namespaces;
use super::parts::{API_SERVER, ApiServer};

/// Writes all of them into the cluster's folder, for clients that use that API server.
///
/// # Panics
/// If there is no room.
pub(super) fn write(namespaces: &Namespaces, used: &ApiServer, nodes: usize) {
    let save = |name: &str, text: String| fs::write(namespaces.path(name), text).expect("there is room");
    let mut params = CertificateParams::new(Vec::new()).expect("there are no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "the test cluster");
    let authority = CertifiedIssuer::self_signed(params, key()).expect("it signs");
    save("ca.crt", authority.pem());
    save("ca.key", authority.key().serialize_pem());

    let issue = |file: &str, common_name: &str, organization: &str, names: Vec<String>| {
        let server = !names.is_empty();
        let mut params = CertificateParams::new(names).expect("names are DNS names or addresses");
        params.distinguished_name.push(DnType::CommonName, common_name);
        if !organization.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match server {
            true => ExtendedKeyUsagePurpose::ServerAuth,
            false => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let key = key();
        let certificate = params.signed_by(&key, &authority).expect("it signs");
        save(&format!("{file}.crt"), certificate.pem());
        save(&format!("{file}.key"), key.serialize_pem());
    };
    let names = [API_SERVER.address, "127.0.0.1", "10.96.0.1", "fd00:10:96::1", "localhost", "kubernetes"]
        .map(String::from);
    let services =
        ["default", "default.svc", "default.svc.cluster.local"].map(|name| format!("kubernetes.{name}"));
    issue("api-server", "kube-apiserver", "", names.into_iter().chain(services).collect());
    issue("node", "node", "", (0..nodes).map(|number| format!("10.99.0.{}", 11 + number)).collect());
    // Kubernetes knows these by their names, but for the first, which may do everything.
    issue("admin", "administrator", "system:masters", Vec::new());
    for name in ["kube-controller-manager", "kube-scheduler"] {
        issue(name, &format!("system:{name}"), "", Vec::new());
    }
    for name in ["admin", "kube-controller-manager", "kube-scheduler"] {
        save(&format!("{name}.kubeconfig"), kubeconfig(namespaces, used, name));
    }
    let accounts = key();
    save("service-accounts.key", accounts.serialize_pem());
    save("service-accounts.pub", accounts.public_key_pem());
}

fn key() -> KeyPair {
    KeyPair::generate().expect("there is randomness")
}

fn kubeconfig(namespaces: &Namespaces, used: &ApiServer, user: &str) -> String {
    let file = |name: String| namespaces.inside(&name);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": used.url(),
            "certificate-authority": file("ca.crt".into()),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": file(format!("{user}.crt")),
            "client-key": file(format!("{user}.key")),
        }}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
    })
    .to_string()
}
