//! Services of type ExternalName: aliases of other names, as CNAME records are.
//!
//! An alias has no endpoints, routes and policies of its own; whoever asks for it
//! gets what its target is, with the target's policies and TLS. A cluster's DNS
//! follows them to Services by itself. Sidecars are told where that is not
//! enough: of targets that are hosts of ExternalServices, and, where they are
//! the DNS themselves, of targets that are Services. Any other target is
//! outside the mesh, for DNS alone.

use std::collections::BTreeMap;

use heddle_api::name::ServiceName;

use super::external::Hosts;
use super::services::Services;
use crate::source::Objects;

/// The longest chain of aliases that is followed; resolvers give up as soon.
const MAX_CHAIN: usize = 8;

/// Where an alias leads.
enum Target {
    /// To a Service.
    Registered(ServiceName),
    /// To an ExternalService.
    External(ServiceName),
}

/// Adds the names of aliases to `hosts`.
pub(super) fn add(objects: &Objects, services: &Services, cluster_domain: &str, hosts: &mut Hosts) {
    let aliases: BTreeMap<ServiceName, &str> = objects
        .services
        .iter()
        .filter_map(|(name, service)| {
            let target = service.value.external_name()?;
            Some((ServiceName::new(&name.namespace, &name.name).ok()?, target))
        })
        // An ExternalService or workloads of the same name are more than an alias.
        .filter(|(name, _)| !services.resources.contains_key(name))
        .collect();
    for name in aliases.keys() {
        let Some(target) = follow(name, &aliases, services, cluster_domain, hosts) else { continue };
        let (own, namespace) = (name.name(), name.namespace());
        let spellings = [
            own.to_owned(),
            format!("{own}.{namespace}"),
            format!("{own}.{namespace}.svc"),
            format!("{own}.{namespace}.svc.{cluster_domain}"),
        ];
        for spelling in spellings {
            match &target {
                Target::Registered(service) => hosts.add_alias(namespace, spelling, service.clone()),
                Target::External(service) => hosts.add(namespace, spelling, service.clone()),
            }
        }
    }
}

/// Where an alias leads at last; `None`: outside the mesh, nowhere, or in a circle.
fn follow(
    alias: &ServiceName,
    aliases: &BTreeMap<ServiceName, &str>,
    services: &Services,
    cluster_domain: &str,
    hosts: &Hosts,
) -> Option<Target> {
    let mut name = alias.clone();
    for _ in 0..MAX_CHAIN {
        let target = aliases.get(&name)?.trim_end_matches('.').to_ascii_lowercase();
        let inside = target.strip_suffix(cluster_domain).is_some_and(|rest| rest.ends_with(".svc."));
        if !inside {
            return hosts.lookup(alias.namespace(), &target).map(Target::External);
        }
        let next = ServiceName::from_host(&target, "", cluster_domain)?;
        if services.resources.contains_key(&next) {
            return Some(Target::Registered(next));
        }
        name = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use heddle_api::discovery::v1;

    use super::super::tests::{model, workload};

    const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: prices, namespace: other}
spec: {ports: [{port: 80}]}
---
apiVersion: heddle.dev/v1alpha1
kind: ExternalService
metadata: {name: payments, namespace: shop}
spec:
  hosts: [api.payments.example]
  ports: [{name: http, port: 80, targetPort: 443, tls: {}}]
---
";

    fn alias(name: &str, target: &str) -> String {
        format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{type: ExternalName, externalName: {target}}}
---
"
        )
    }

    fn pod(namespace: &str) -> String {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: a, namespace: {namespace}, labels: {{heddle.dev/meshed: 'true'}}}}
status: {{phase: Running}}
---
"
        )
    }

    fn hosts(workload: v1::Workload) -> Vec<String> {
        let host = |host: v1::Host| format!("{} {}/{}", host.name, host.namespace, host.service);
        workload.hosts.into_iter().map(host).collect()
    }

    /// What a workload outside a cluster and a pod of a cluster are told.
    fn told(text: &str) -> (Vec<String>, Vec<String>) {
        let text = [SERVICES, &pod("shop"), text].concat();
        let users = workload("shop/users", "a", &[("http", 8080)]);
        let model = model(&text, std::slice::from_ref(&users));
        let identity = "spiffe://heddle.local/ns/shop/sa/default".parse().unwrap();
        let in_pod = model.workload_of_pod(&identity, "a").unwrap();
        (hosts(model.workload_for(&users)), hosts(in_pod))
    }

    const PAYMENTS: &str = "api.payments.example shop/payments";

    #[test]
    fn an_alias_of_a_service_is_told_where_no_cluster_answers_for_it() {
        let (outside, pod) = told(&alias("costs", "prices.other.svc.cluster.local"));
        let names = ["costs", "costs.shop", "costs.shop.svc", "costs.shop.svc.cluster.local"];
        let mut expected: Vec<_> = names.iter().map(|name| format!("{name} other/prices")).collect();
        expected.insert(0, PAYMENTS.into());
        assert_eq!(outside, expected);
        assert_eq!(pod, [PAYMENTS], "the cluster's DNS answers with the Service's address");
        // Aliases of aliases lead to where those lead.
        let chain =
            [alias("a", "costs.shop.svc.cluster.local."), alias("costs", "PRICES.other.svc.cluster.local")];
        assert!(told(&chain.concat()).0.contains(&"a.shop other/prices".to_owned()));
    }

    #[test]
    fn an_alias_of_an_external_service_is_told_to_everybody_in_the_namespace() {
        let text = alias("pay", "api.payments.example");
        let (outside, in_pod) = told(&text);
        assert!(outside.contains(&"pay.shop.svc.cluster.local shop/payments".to_owned()), "{outside:?}");
        assert_eq!(outside, in_pod);
        // Its host means nothing to others.
        let model = model(&[SERVICES, &pod("other"), &text].concat(), &[]);
        let other = model.workload_of_pod(&"spiffe://heddle.local/ns/other/sa/default".parse().unwrap(), "a");
        assert!(hosts(other.unwrap()).is_empty());
    }

    #[test]
    fn an_alias_that_leads_nowhere_is_left_to_dns() {
        for text in [
            alias("a", "www.example.com"),
            alias("a", "nobody.shop.svc.cluster.local"),
            alias("a", "prices.other"),
            alias("a", "a.shop.svc.cluster.local"),
            [alias("a", "b.shop.svc.cluster.local"), alias("b", "a.shop.svc.cluster.local")].concat(),
        ] {
            assert_eq!(told(&text), (vec![PAYMENTS.into()], vec![PAYMENTS.into()]), "{text}");
        }
    }

    #[test]
    fn what_is_more_than_an_alias_is_not_hidden_by_one() {
        let (outside, _) = told(&alias("payments", "prices.other.svc.cluster.local"));
        assert_eq!(outside, [PAYMENTS]);
        let (outside, _) = told(&alias("users", "prices.other.svc.cluster.local"));
        assert_eq!(outside, [PAYMENTS]);
    }

    #[test]
    fn an_alias_is_no_service() {
        let model = model(&[SERVICES, &alias("costs", "prices.other.svc.cluster.local")].concat(), &[]);
        assert!(model.resource::<v1::Service>("shop/costs").is_none());
    }
}
