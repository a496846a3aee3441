//! Whether what is installed is whole, of one version, and at work.

use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use heddle_api::version::{Skew, Version};
use heddle_api::x509;
use heddle_sidecar::check::Finding;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::before::established;
use super::{some_of, unknown};
use crate::cluster::{CONTROL_PLANE, Cluster, DEPLOYMENT, NAMESPACE, items, version_of_image};
use crate::install::{self, Chosen};
use crate::upgrade::installed;

pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    let now = Timestamp::now();
    let deployment = match cluster.find(DEPLOYMENT).await {
        Ok(Some(deployment)) => deployment,
        Ok(None) => {
            let remedy = "heddle install | kubectl apply --server-side -f -";
            return vec![Finding::bad(REPLICAS, "there is none in this cluster", remedy)];
        }
        Err(failure) => return vec![unknown(REPLICAS, &failure)],
    };
    let mut findings = vec![version(&deployment), replicas(&deployment)];
    findings.push(definitions(cluster).await);
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{CONTROL_PLANE}");
    findings.push(match cluster.find(&lease).await {
        Ok(lease) => leader(lease.as_ref(), now),
        Err(failure) => unknown(LEADER, &failure),
    });
    for (collection, name) in [
        ("mutatingwebhookconfigurations", "heddle-injector"),
        ("validatingwebhookconfigurations", "heddle-validator"),
    ] {
        let path = format!("/apis/admissionregistration.k8s.io/v1/{collection}/{name}");
        findings.push(match cluster.find(&path).await {
            Ok(configuration) => webhook(name, configuration.as_ref(), now),
            Err(failure) => unknown(WEBHOOKS, &failure),
        });
    }
    let bundle = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/heddle-trust-bundle");
    findings.push(match cluster.find(&bundle).await {
        Ok(bundle) => roots(bundle.as_ref(), now),
        Err(failure) => unknown(ROOTS, &failure),
    });
    let secret = format!("/api/v1/namespaces/{NAMESPACE}/secrets/heddle-ca");
    findings.push(match cluster.find(&secret).await {
        Ok(secret) => authority(secret.as_ref(), now),
        Err(failure) => unknown(AUTHORITY, &failure),
    });
    findings
}

/// The control plane's version and that of this program.
fn version(deployment: &Value) -> Finding {
    const SUBJECT: &str = "version";
    let own = Version::own();
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    match installed(deployment) {
        Ok(version) if version == own && version_of_image(image).is_some_and(|image| image != own) => {
            let detail = format!("its label says {version}, but its image is {image}");
            Finding::degraded(
                SUBJECT,
                detail,
                "heddle upgrade --set image=IMAGE names the one of this version",
            )
        }
        Ok(version) if version == own => Finding::good(SUBJECT, format!("{version}, as this program")),
        Ok(version) => {
            let detail = format!("the control plane is {version}, this program {own}");
            match version.skew(own) {
                Skew::Within if version < own => {
                    Finding::degraded(SUBJECT, detail, "heddle upgrade | kubectl apply --server-side -f -")
                }
                Skew::Within => {
                    Finding::degraded(SUBJECT, detail, "use the program of the control plane's version")
                }
                Skew::TooOld => Finding::bad(SUBJECT, detail, "upgrade one minor version at a time"),
                Skew::TooNew => {
                    Finding::bad(SUBJECT, detail, "use the program of the control plane's version")
                }
            }
        }
        Err(error) => {
            Finding::degraded(SUBJECT, format!("{error:#}"), "heddle upgrade writes the label anew")
        }
    }
}

const REPLICAS: &str = "control plane";

fn replicas(deployment: &Value) -> Finding {
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    let status = |field: &str| deployment["status"][field].as_u64().unwrap_or(0);
    let (ready, updated) = (status("readyReplicas"), status("updatedReplicas"));
    let detail = format!("{ready} of {wanted} replicas are ready");
    let remedy =
        format!("kubectl -n {NAMESPACE} describe pods; kubectl -n {NAMESPACE} logs deploy/{CONTROL_PLANE}");
    if ready == 0 {
        Finding::bad(REPLICAS, detail, remedy)
    } else if ready < wanted {
        Finding::degraded(REPLICAS, detail, remedy)
    } else if updated < wanted {
        Finding::degraded(REPLICAS, format!("{detail}, {updated} of them new"), "wait for the rollout to end")
    } else {
        Finding::good(REPLICAS, detail)
    }
}

/// Whether each definition is there, in use, and the one that this program has.
async fn definitions(cluster: &Cluster) -> Finding {
    const SUBJECT: &str = "definitions";
    let objects = install::objects(&Chosen::default()).unwrap_or_default();
    let (mut missing, mut different) = (Vec::new(), Vec::new());
    for wanted in objects.iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
        let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        match cluster.find(&path).await {
            Ok(Some(live)) if !established(&live) => missing.push(name.to_owned()),
            Ok(Some(live)) if !same_schema(&live, wanted) => different.push(name.to_owned()),
            Ok(Some(_)) => {}
            Ok(None) => missing.push(name.to_owned()),
            Err(failure) => return unknown(SUBJECT, &failure),
        }
    }
    let newer = match cluster.list_metadata("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").await {
        Ok(all) => beyond(&all, &objects),
        Err(failure) => return unknown(SUBJECT, &failure),
    };
    let remedy = "heddle upgrade | kubectl apply --server-side -f -";
    if !missing.is_empty() {
        Finding::bad(SUBJECT, format!("not there, or refused: {}", some_of(&missing)), remedy)
    } else if !newer.is_empty() {
        let remedy =
            "use the program and the control plane of the version that has them; until then they do nothing";
        Finding::degraded(SUBJECT, format!("of no kind of this version: {}", some_of(&newer)), remedy)
    } else if !different.is_empty() {
        Finding::degraded(SUBJECT, format!("of another version: {}", some_of(&different)), remedy)
    } else {
        Finding::good(SUBJECT, "as this program has them")
    }
}

/// The definitions of Heddle's group that are not among those of this version.
fn beyond(all: &[Value], known: &[Value]) -> Vec<String> {
    let name = |definition: &Value| definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let known: Vec<String> = known.iter().map(name).collect();
    all.iter().map(name).filter(|name| name.ends_with(".heddle.dev") && !known.contains(name)).collect()
}

fn same_schema(live: &Value, wanted: &Value) -> bool {
    let schema = |definition: &Value| {
        let versions = items(&definition["spec"]["versions"]).iter();
        let served: Vec<Value> = versions.map(|version| version["schema"].clone()).collect();
        served
    };
    schema(live) == schema(wanted)
}

const LEADER: &str = "leader";

/// Somebody has to hold the lease, or no status, bundle and webhook is kept right.
fn leader(lease: Option<&Value>, now: Timestamp) -> Finding {
    let remedy = format!("kubectl -n {NAMESPACE} logs deploy/{CONTROL_PLANE}");
    let Some(lease) = lease else {
        return Finding::bad(LEADER, "there is no lease: no control plane writes statuses", remedy);
    };
    let spec = &lease["spec"];
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    let renewed: Option<Timestamp> = spec["renewTime"].as_str().and_then(|time| time.parse().ok());
    let lasts = SignedDuration::from_secs(spec["leaseDurationSeconds"].as_i64().unwrap_or(15));
    match renewed {
        Some(renewed) if !holder.is_empty() && now.duration_since(renewed) <= lasts => {
            Finding::good(LEADER, holder)
        }
        Some(renewed) if !holder.is_empty() => {
            Finding::bad(LEADER, format!("{holder} held the lease until {renewed}, and nobody since"), remedy)
        }
        _ => Finding::bad(LEADER, "nobody holds the lease", remedy),
    }
}

const WEBHOOKS: &str = "webhooks";

/// A webhook that the API server does not trust is one that is never there.
fn webhook(name: &str, configuration: Option<&Value>, now: Timestamp) -> Finding {
    let remedy = "heddle upgrade | kubectl apply --server-side -f -";
    let Some(configuration) = configuration else {
        return Finding::bad(WEBHOOKS, format!("{name} is not there"), remedy);
    };
    for webhook in items(&configuration["webhooks"]) {
        let bundle = webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default();
        let called = webhook["name"].as_str().unwrap_or_default();
        if bundle.is_empty() {
            return Finding::bad(
                WEBHOOKS,
                format!("{called} has no caBundle, so that the API server cannot call it"),
                "wait for the control plane's leader, which writes it; see its log if it does not",
            );
        }
        let pem = BASE64_STANDARD.decode(bundle).map_err(|error| error.to_string());
        if let Err(reason) = pem.and_then(|pem| last_day(&pem, now)) {
            return Finding::bad(WEBHOOKS, format!("{called}: its caBundle {reason}"), remedy);
        }
    }
    Finding::good(WEBHOOKS, format!("the API server trusts {name}"))
}

const ROOTS: &str = "roots";

/// A root that ends within this needs somebody's attention.
const WARNING: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How long the roots of the mesh hold.
fn roots(bundle: Option<&Value>, now: Timestamp) -> Finding {
    let pem = bundle.and_then(|bundle| bundle["data"]["roots.pem"].as_str());
    let Some(pem) = pem else {
        let remedy = "wait for the control plane's leader, which writes it; see its log if it does not";
        return Finding::bad(ROOTS, format!("there is no trust bundle in {NAMESPACE}"), remedy);
    };
    match last_day(pem.as_bytes(), now) {
        Ok(end) if end.duration_since(now) < WARNING => Finding::degraded(
            ROOTS,
            format!("the last of them ends {end}"),
            "put a new certificate and key into Secret heddle-ca; the old root stays trusted meanwhile",
        ),
        Ok(end) => Finding::good(ROOTS, format!("hold until {end}")),
        Err(reason) => {
            Finding::bad(ROOTS, format!("the trust bundle {reason}"), "put a valid CA into Secret heddle-ca")
        }
    }
}

const AUTHORITY: &str = "authority";

/// How long the authority signs: until the first of its certificates ends that peers verify. Roots
/// are trusted for what they are, and end with nothing but themselves.
fn authority(secret: Option<&Value>, now: Timestamp) -> Finding {
    let remedy = "put a new certificate and key into Secret heddle-ca, or see why what made it renews it not; \
                  the old root stays trusted meanwhile";
    let entry = |key: &str| {
        let text = secret.and_then(|secret| secret["data"][key].as_str()).unwrap_or_default();
        BASE64_STANDARD.decode(text).unwrap_or_default()
    };
    let read = |pem: &[u8]| -> Result<Vec<_>, String> {
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())
    };
    let judged = || -> Result<(Timestamp, bool), String> {
        let (chain, roots) = (read(&entry("tls.crt"))?, read(&entry("ca.crt")).unwrap_or_default());
        let verified = chain.iter().enumerate().filter(|(place, one)| *place == 0 || !roots.contains(one));
        let mut first: Option<x509::Validity> = None;
        for (_, certificate) in verified {
            let validity = x509::validity(certificate).map_err(|error| error.to_string())?;
            if first.is_none_or(|first| validity.not_after < first.not_after) {
                first = Some(validity);
            }
        }
        let validity = first.ok_or("it has no certificate")?;
        let life = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
        let tenth = SignedDuration::try_from(life / 10).unwrap_or(WARNING);
        let end = Timestamp::try_from(validity.not_after).map_err(|error| error.to_string())?;
        // One that is renewed every few weeks is not to be warned of all the time.
        Ok((end, end.duration_since(now) < WARNING.min(tenth)))
    };
    if secret.is_none() {
        let remedy = "wait for the control plane, which makes it; see its log if it does not";
        return Finding::bad(AUTHORITY, "there is no Secret heddle-ca", remedy);
    }
    match judged() {
        Ok((end, _)) if end < now => {
            Finding::bad(AUTHORITY, format!("ended {end}, and signs nothing"), remedy)
        }
        Ok((end, true)) => Finding::degraded(AUTHORITY, format!("signs until {end} only"), remedy),
        Ok((end, false)) => Finding::good(AUTHORITY, format!("signs until {end}")),
        Err(reason) => Finding::bad(AUTHORITY, format!("Secret heddle-ca: {reason}"), remedy),
    }
}

/// When the last of some certificates ends; or why none of them can be used.
fn last_day(pem: &[u8], now: Timestamp) -> Result<Timestamp, String> {
    let mut last: Option<SystemTime> = None;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("is no PEM: {error}"))?;
        let validity = x509::validity(&certificate).map_err(|error| error.to_string())?;
        last = last.max(Some(validity.not_after));
    }
    let last = last.ok_or("has no certificate in it")?;
    let last = Timestamp::try_from(last).map_err(|error| error.to_string())?;
    if last < now { Err(format!("ended {last}")) } else { Ok(last) }
}

#[cfg(test)]
mod tests {
    use heddle_sidecar::check::State;
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2026-06-01T00:00:00Z".parse().unwrap()
    }

    /// A certificate that holds until the beginning of a year.
    fn until(year: i32) -> String {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn replicas_are_counted() {
        let deployment = |wanted: u64, ready: u64, updated: u64| {
            json!({"spec": {"replicas": wanted},
                "status": {"readyReplicas": ready, "updatedReplicas": updated}})
        };
        assert_eq!(replicas(&deployment(3, 3, 3)).state, State::Good);
        assert_eq!(replicas(&deployment(3, 2, 3)).state, State::Degraded);
        assert_eq!(replicas(&deployment(3, 3, 1)).state, State::Degraded);
        assert_eq!(replicas(&deployment(1, 0, 1)).state, State::Bad);
    }

    #[test]
    fn versions_are_compared() {
        let of = |version: &str| {
            let label = json!({"app.kubernetes.io/version": version});
            self::version(&json!({"metadata": {"labels": label}})).state
        };
        assert_eq!(of(env!("CARGO_PKG_VERSION")), State::Good);
        assert_eq!(of("99.0.0"), State::Bad);
        assert_eq!(of("latest"), State::Degraded);
        let of_image = |image: &str| {
            let label = json!({"app.kubernetes.io/version": env!("CARGO_PKG_VERSION")});
            let containers = json!([{ "image": image }]);
            let template = json!({"spec": {"containers": containers}});
            version(&json!({"metadata": {"labels": label}, "spec": {"template": template}})).state
        };
        assert_eq!(of_image("heddle/control-plane:98.0.0"), State::Degraded);
        assert_eq!(of_image("registry:5000/heddle/control-plane"), State::Good);
    }

    #[test]
    fn definitions_of_another_version_are_named() {
        let named = |name: &str| json!({"metadata": {"name": name}});
        let all = [named("a.heddle.dev"), named("new.heddle.dev"), named("widgets.example.com")];
        assert_eq!(beyond(&all, &[named("a.heddle.dev")]), ["new.heddle.dev"]);
    }

    #[test]
    fn a_lease_that_nobody_renews_is_told() {
        let lease = |holder: &str, renewed: &str| json!({"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}});
        assert_eq!(leader(Some(&lease("a", "2026-05-31T23:59:50.000000Z")), now()).state, State::Good);
        assert_eq!(leader(Some(&lease("a", "2026-05-31T23:59:00.000000Z")), now()).state, State::Bad);
        assert_eq!(leader(Some(&lease("", "2026-05-31T23:59:59.000000Z")), now()).state, State::Bad);
        assert_eq!(leader(None, now()).state, State::Bad);
    }

    #[test]
    fn webhooks_that_are_not_trusted_are_told() {
        let of = |pem: &str| {
            let bundle = BASE64_STANDARD.encode(pem);
            let webhook = json!({"name": "a", "clientConfig": {"caBundle": bundle}});
            super::webhook("heddle-injector", Some(&json!({"webhooks": [webhook]})), now()).state
        };
        assert_eq!(of(&until(2090)), State::Good);
        assert_eq!(of(&(until(2021) + &until(2090))), State::Good);
        assert_eq!(of(&until(2021)), State::Bad);
        assert_eq!(of("nothing"), State::Bad);
        assert_eq!(of(""), State::Bad);
        assert_eq!(webhook("heddle-injector", None, now()).state, State::Bad);
    }

    #[test]
    fn an_authority_that_ends_is_told_in_time() {
        let of = |chain: &str, roots: &str, now: &str| {
            let data =
                json!({"tls.crt": BASE64_STANDARD.encode(chain), "ca.crt": BASE64_STANDARD.encode(roots)});
            authority(Some(&json!({ "data": data })), now.parse().unwrap()).state
        };
        let (long, short) = (until(2090), until(2030));
        assert_eq!(of(&long, &long, "2026-06-01T00:00:00Z"), State::Good);
        assert_eq!(of(&long, &long, "2089-12-20T00:00:00Z"), State::Degraded);
        assert_eq!(of(&short, &long, "2030-01-02T00:00:00Z"), State::Bad, "whatever its root says");
        let chain = format!("{long}{short}");
        assert_eq!(of(&chain, &long, "2029-12-20T00:00:00Z"), State::Degraded, "an intermediate counts");
        assert_eq!(of(&chain, &short, "2029-12-20T00:00:00Z"), State::Good, "a root does not");
        // One of three months is renewed when a month is left.
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 3, 1);
        params.not_after = rcgen::date_time_ymd(2026, 6, 1);
        let months = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        assert_eq!(of(&months, &long, "2026-05-10T00:00:00Z"), State::Good);
        assert_eq!(of(&months, &long, "2026-05-28T00:00:00Z"), State::Degraded);
        assert_eq!(of("", &long, "2026-05-28T00:00:00Z"), State::Bad);
        assert_eq!(authority(None, now()).state, State::Bad);
    }

    #[test]
    fn roots_that_end_are_told_in_time() {
        let bundle = |pem: &str| json!({"data": {"roots.pem": pem}});
        assert_eq!(roots(Some(&bundle(&until(2090))), now()).state, State::Good);
        let late = "2089-12-20T00:00:00Z".parse().unwrap();
        assert_eq!(roots(Some(&bundle(&until(2090))), late).state, State::Degraded);
        assert_eq!(roots(Some(&bundle(&until(2021))), now()).state, State::Bad);
        assert_eq!(roots(None, now()).state, State::Bad);
    }
}
