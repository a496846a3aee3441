use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::*;

fn spec(yaml: &str) -> Result<ExternalServiceSpec, String> {
    serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
}

fn violations(yaml: &str) -> Vec<String> {
    let spec = spec(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let metadata = Metadata { name: "payments".into(), ..Metadata::default() };
    spec.validate(&metadata).into_iter().map(|violation| violation.path).collect()
}

fn certificate() -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

#[test]
fn what_is_needed_least_is_a_host_and_a_port() {
    let least = "{hosts: [api.payments.example], ports: [{name: http, port: 80}]}";
    assert!(violations(least).is_empty());
    let read = spec(least).unwrap();
    let names: Vec<&str> = read.dns().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["api.payments.example"]);
}

#[test]
fn everything_that_can_be_said_is_accepted() {
    let pem = certificate().replace('\n', "\n            ");
    let all = format!(
        "
hosts: [api.payments.example, pay.example]
ports:
  - name: http
    port: 80
    targetPort: 443
    protocol: HTTP
    tls:
        serverName: api.payments.example
        subjectAltNames: [payments.example]
        caCertificates: |
            {pem}
endpoints:
  - {{address: 192.0.2.10, port: 8443, priority: 0, weight: 3, zone: a}}
  - {{address: '2001:db8::1', priority: 1}}
  - {{dns: lb.payments.example, priority: 1}}
  - {{service: {{name: payments, namespace: shop}}, priority: 127}}
"
    );
    assert_eq!(violations(&all), Vec::<String>::new());
    let read = spec(&all).unwrap();
    assert_eq!(read.dns().count(), 1);
    assert_eq!(read.ports[0].tls.as_ref().unwrap().roots().unwrap().len(), 1);
    let text = serde_json::to_string(&read).unwrap();
    assert_eq!(serde_json::from_str::<ExternalServiceSpec>(&text).unwrap(), read);
}

#[test]
fn what_contradicts_itself_is_refused_with_its_path() {
    const PORTS: &str = "ports: [{name: http, port: 80}]";
    const HOST: &str = "hosts: [a.example]";
    const LEADS: &str = "endpoints: [{address: 192.0.2.1}]";
    let with = |rest: &str| format!("{{{HOST}, {PORTS}, {rest}}}");
    let port = |port: &str| format!("{{{HOST}, ports: [{port}]}}");
    for (yaml, path) in [
        (format!("{{hosts: [a.example, a.example], {PORTS}, {LEADS}}}"), "spec.hosts[1]"),
        (format!("{{hosts: [payments], {PORTS}}}"), "spec.hosts[0]"),
        (format!("{{hosts: [users.shop.svc], {PORTS}}}"), "spec.hosts[0]"),
        (format!("{{hosts: [a.localhost], {PORTS}}}"), "spec.hosts[0]"),
        (format!("{{hosts: [a.example, b.example], {PORTS}}}"), "spec.endpoints"),
        (format!("{{{PORTS}}}"), "spec.endpoints"),
        (format!("{{{HOST}, ports: []}}"), "spec.ports"),
        (port("{name: Http, port: 80}"), "spec.ports[0].name"),
        (port("{name: a.b, port: 80}"), "spec.ports[0].name"),
        (port("{name: a, port: 80}, {name: a, port: 81}"), "spec.ports[1].name"),
        (port("{name: a, port: 80}, {name: b, port: 80}"), "spec.ports[1].port"),
        (port("{name: a, port: 80, protocol: TLS, tls: {}}"), "spec.ports[0].tls"),
        (port("{name: a, port: 80, tls: {caCertificates: hello}}"), "spec.ports[0].tls.caCertificates"),
        (
            port(
                "{name: a, port: 80, tls: {caCertificates: \"-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\"}}",
            ),
            "spec.ports[0].tls.caCertificates",
        ),
        (
            format!("{{hosts: [a.example, b.example], ports: [{{name: a, port: 80, tls: {{}}}}], {LEADS}}}"),
            "spec.ports[0].tls.serverName",
        ),
        (with("endpoints: [{}]"), "spec.endpoints[0]"),
        (with("endpoints: [{address: 192.0.2.1, dns: a.example}]"), "spec.endpoints[0]"),
        (with("endpoints: [{address: a.example}]"), "spec.endpoints[0].address"),
        (with("endpoints: [{address: 0.0.0.0}]"), "spec.endpoints[0].address"),
        (with("endpoints: [{address: '224.0.0.1'}]"), "spec.endpoints[0].address"),
        (with("endpoints: [{address: 192.0.2.1}, {address: 192.0.2.1}]"), "spec.endpoints[1]"),
        (with("endpoints: [{address: 192.0.2.1}, {address: '::ffff:192.0.2.1'}]"), "spec.endpoints[1]"),
        (
            with("endpoints: [{service: {name: a}}, {service: {name: a, namespace: default}}]"),
            "spec.endpoints[1]",
        ),
        (with("endpoints: [{dns: b.example, port: 1}, {dns: b.example}]"), "spec.endpoints[1]"),
        (with("endpoints: [{address: 192.0.2.1, zone: ''}]"), "spec.endpoints[0].zone"),
        (with("endpoints: [{service: {name: a_b}}]"), "spec.endpoints[0].service"),
        (with("endpoints: [{service: {name: a}, port: 1}]"), "spec.endpoints[0].port"),
        (with("endpoints: [{service: {name: a}, weight: 1}]"), "spec.endpoints[0].weight"),
        (with("endpoints: [{service: {name: a}, zone: a}]"), "spec.endpoints[0].zone"),
        (
            format!(
                "{{{HOST}, ports: [{{name: a, port: 80}}, {{name: b, port: 81}}], endpoints: [{{address: 192.0.2.1, port: 1}}]}}"
            ),
            "spec.endpoints[0].port",
        ),
    ] {
        assert_eq!(violations(&yaml), [path], "{yaml}");
    }
    let named = Metadata { name: "a.b".into(), ..Metadata::default() };
    let spec = spec(&format!("{{{HOST}, {PORTS}}}")).unwrap();
    assert_eq!(spec.validate(&named)[0].path, "metadata.name");
}

#[test]
fn what_is_no_value_of_its_type_is_refused() {
    for yaml in [
        "{hosts: [API.example], ports: [{name: a, port: 80}]}",
        "{hosts: ['*.example'], ports: [{name: a, port: 80}]}",
        "{hosts: [192.0.2.1], ports: [{name: a, port: 80}]}",
        "{hosts: [a.example], ports: [{name: a, port: 0}]}",
        "{hosts: [a.example], ports: [{name: a, port: 80, protocol: UDP}]}",
        "{hosts: [a.example], ports: [{name: a, port: 80, tls: {insecure: true}}]}",
        "{hosts: [a.example], ports: [{name: a, port: 80}], endpoints: [{address: 192.0.2.1, priority: 128}]}",
        "{hosts: [a.example], ports: [{name: a, port: 80}], endpoints: [{address: 192.0.2.1, weight: 0}]}",
    ] {
        assert!(spec(yaml).is_err(), "{yaml}");
    }
}
