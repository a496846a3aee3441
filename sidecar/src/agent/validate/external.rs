//! What reaches outside the mesh: names to resolve, TLS to begin, hosts.

use std::collections::HashMap;
use std::sync::Arc;

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use rustls::pki_types::ServerName;

use super::Invalid;
use crate::config::{DnsEndpoint, Port};
use crate::upstream::{Origination, Terms};

pub(super) fn dns_endpoint(wire: v1::DnsEndpoint, ports: &[Port]) -> Result<DnsEndpoint, Invalid> {
    Ok(DnsEndpoint {
        name: dns_name("name", &wire.name)?.into(),
        bindings: super::bindings(&wire.bindings, ports)?,
        zone: wire.zone,
        weight: wire.weight.max(1),
        priority: wire.priority,
    })
}

/// TLS as it is told; `former` if that is the same, with the sessions that it can resume.
pub(super) fn origination(
    wire: &v1::TlsOrigination,
    former: Option<&Arc<Origination>>,
) -> Result<Arc<Origination>, Invalid> {
    let server_name = |path: &str, text: &str| {
        let name = dns_name(path, text)?.to_owned();
        ServerName::try_from(name).map_err(|error| Invalid::new(path, error.to_string()))
    };
    let mut subject_names = Vec::with_capacity(wire.subject_names.len());
    for (index, text) in wire.subject_names.iter().enumerate() {
        subject_names.push(server_name(&format!("subject_names[{index}]"), text)?);
    }
    let terms = Terms {
        server_name: server_name("server_name", &wire.server_name)?,
        subject_names,
        roots: wire.roots.iter().map(|root| root.clone().into()).collect(),
    };
    if let Some(former) = former.filter(|former| *former.terms() == terms) {
        return Ok(former.clone());
    }
    Origination::new(terms).map(Arc::new).map_err(|reason| Invalid::new("roots", reason))
}

pub(super) fn hosts(wire: &[v1::Host]) -> Result<HashMap<Box<str>, ServiceName>, Invalid> {
    let mut hosts = HashMap::with_capacity(wire.len());
    for (index, host) in wire.iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("hosts[{index}]"));
        let name = dns_name("name", &host.name).map_err(within)?;
        let service = ServiceName::new(&host.namespace, &host.service);
        let service = service.map_err(|e| within(Invalid::new("service", e.to_string())))?;
        if hosts.insert(name.into(), service).is_some() {
            return Err(within(Invalid::new("name", format!("{name:?} is not unique"))));
        }
    }
    Ok(hosts)
}

/// A name in lower case that can be asked for.
fn dns_name<'a>(path: &str, text: &'a str) -> Result<&'a str, Invalid> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(inner);
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text)
    } else {
        Err(Invalid::new(path, format!("{text:?} is no DNS name in lower case")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AppProtocol;

    const PORTS: [Port; 1] = [Port { number: 80, protocol: AppProtocol::Http, policy: None, tls: None }];

    fn root() -> Vec<u8> {
        rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap().cert.der().to_vec()
    }

    fn error<T>(result: Result<T, Invalid>) -> String {
        result.err().unwrap().to_string()
    }

    #[test]
    fn names_to_resolve_are_names_with_ports_of_the_service() {
        let wire = |name: &str, port| v1::DnsEndpoint {
            name: name.into(),
            bindings: vec![v1::PortBinding { service_port: port, target_port: 443 }],
            ..v1::DnsEndpoint::default()
        };
        let valid = dns_endpoint(wire("a.example", 80), &PORTS).unwrap();
        assert_eq!((valid.weight, valid.bindings), (1, vec![(80, 443)]));
        for (name, port, path) in [
            ("", 80, "name: "),
            ("A.example", 80, "name: "),
            ("a..example", 80, "name: "),
            ("a.example", 81, "bindings[0].service_port: "),
        ] {
            let refused = error(dns_endpoint(wire(name, port), &PORTS));
            assert!(refused.starts_with(path), "{refused}");
        }
    }

    #[test]
    fn tls_needs_names_and_readable_roots() {
        let good = v1::TlsOrigination {
            server_name: "a.example".into(),
            subject_names: vec!["b.example".into()],
            roots: vec![root()],
        };
        let made = origination(&good, None).unwrap();
        assert!(Arc::ptr_eq(&origination(&good, Some(&made)).unwrap(), &made));
        let other = v1::TlsOrigination { subject_names: Vec::new(), ..good.clone() };
        assert_ne!(origination(&other, Some(&made)).unwrap(), made);
        let refused = |change: fn(&mut v1::TlsOrigination)| {
            let mut wire = good.clone();
            change(&mut wire);
            error(origination(&wire, None))
        };
        assert!(refused(|tls| tls.server_name.clear()).starts_with("server_name: "));
        assert!(refused(|tls| tls.subject_names.push("B".into())).starts_with("subject_names[1]: "));
        assert!(refused(|tls| tls.roots[0].clear()).starts_with("roots: "));
    }

    #[test]
    fn hosts_are_names_of_services_once_each() {
        let host = |name: &str, service: &str| v1::Host {
            name: name.into(),
            namespace: "shop".into(),
            service: service.into(),
        };
        let known = hosts(&[host("a.example", "pay"), host("b.example", "pay")]).unwrap();
        assert_eq!(known["b.example"], "shop/pay".parse().unwrap());
        for (wire, path) in [
            (vec![host("a_b", "pay")], "hosts[0].name: "),
            (vec![host("a.example", "")], "hosts[0].service: "),
            (vec![host("a.example", "pay"), host("a.example", "x")], "hosts[1].name: "),
        ] {
            let refused = error(hosts(&wire));
            assert!(refused.starts_with(path), "{refused}");
        }
    }
}
