//! The test cluster itself, without a mesh: what Kubernetes promises is true of it.

use heddle_tests::cluster::Cluster;
use heddle_tests::eventually;

/// Two apps of which each has a Service.
fn apps() -> String {
    let app = |name: &str| {
        format!(
            r#"
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: app
          image: registry.k8s.io/gateway-api/echo-advanced:v1.5.1
          args: [--port=8080, --grpc=7070]
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
          lifecycle: {{preStop: {{sleep: {{seconds: 1}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: grpc, port: 7070}}]
"#
        )
    };
    format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop}}}}\n{}{}", app("cart"), app("prices"))
}

#[test]
fn a_service_is_reached_by_its_name() {
    let Some(cluster) = Cluster::start() else { return };
    cluster.apply(&apps());
    cluster.rolled_out("shop", "deploy/cart");
    cluster.rolled_out("shop", "deploy/prices");
    for url in [
        "http://prices/",
        "http://prices.shop/",
        "http://prices.shop.svc.cluster.local/",
        "grpc://prices:7070",
    ] {
        let answer = cluster.exec("shop", "deploy/cart", "app", &["client", url]).expect("it is reached");
        assert!(answer.contains("StatusCode=200") && answer.contains("Hostname=prices-"), "{url}: {answer}");
    }
    let nobody = cluster.exec("shop", "deploy/cart", "app", &["client", "http://nobody/"]);
    assert!(nobody.is_err_and(|complaint| complaint.contains("no such host")));

    // Without endpoints a connection is refused at once.
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=0"]);
    let refused = || {
        let answer = cluster.exec("shop", "deploy/cart", "app", &["client", "http://prices/"]);
        answer.is_err_and(|complaint| complaint.contains("connection refused")).then_some(())
    };
    eventually("nobody is there", refused);
}
