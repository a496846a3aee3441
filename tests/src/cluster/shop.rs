//! Two plain apps, `cart` and `prices`, in namespace `shop`: what a mesh is put around, and whom its tests ask.

use std::time::{Duration, Instant};

use super::{Cluster, Settings, of_heddle};
use crate::eventually;

/// A policy by which nobody is served.
const CLOSED: &str = r#"
apiVersion: heddle.dev/v1alpha1
kind: FaultPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: prices}]
  abort: {status: 418, percent: 100}
"#;

/// The apps, each with a Service. `meshed`: sidecars are asked for.
fn apps(meshed: bool) -> String {
    // Without a mesh, an app itself has to stay until nobody asks for it any more.
    let (label, stays) = match meshed {
        true => (", labels: {heddle.dev/inject: enabled}", ""),
        false => ("", "lifecycle: {preStop: {sleep: {seconds: 1}}}"),
    };
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
      terminationGracePeriodSeconds: 10
      containers:
        - name: app
          image: gateway-api/echo-advanced:v1.5.1
          args: [--port=8080, --grpc=7070]
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
          {stays}
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
    let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop{label}}}}}");
    format!("{namespace}\n{}{}", app("cart"), app("prices"))
}

impl Cluster {
    /// Applies the apps' manifests, in a namespace where sidecars are asked for or not.
    ///
    /// # Panics
    /// If they cannot be applied.
    pub fn apply_shop(&self, meshed: bool) {
        self.apply(&apps(meshed));
    }

    /// The same, and waits until they are there.
    ///
    /// # Panics
    /// If they do not come.
    pub fn deploy_shop(&self, meshed: bool) {
        self.apply_shop(meshed);
        self.rolled_out("shop", "deploy/cart");
        self.rolled_out("shop", "deploy/prices");
    }

    /// One of so many nodes with Heddle, installed with these arguments, and the apps.
    pub fn meshed(nodes: usize, install: &[&str]) -> Option<Self> {
        Self::meshed_with(&Settings { nodes, images: of_heddle(), ..Settings::default() }, install)
    }

    /// The same with settings, whose images have Heddle's among them.
    ///
    /// # Panics
    /// If it cannot be installed.
    pub fn meshed_with(settings: &Settings, install: &[&str]) -> Option<Self> {
        let cluster = Self::start_with(settings)?;
        cluster.install_gateway_api();
        cluster.install_heddle(install);
        cluster.deploy_shop(true);
        Some(cluster)
    }

    /// What a request from a pod of `cart` says.
    ///
    /// # Errors
    /// What the client said if it failed.
    pub fn ask(&self, url: &str) -> Result<String, String> {
        self.exec("shop", "deploy/cart", "app", &["client", url])
    }

    /// Applies a policy by which nobody is served by `prices`, and how long it took to be in effect.
    ///
    /// # Panics
    /// If it is not accepted, or does not get into effect.
    pub fn close_prices(&self) -> Duration {
        self.apply(CLOSED);
        let applied = Instant::now();
        eventually("the policy is in effect", || {
            self.ask("http://prices/").ok().filter(|answer| answer.contains("StatusCode=418"))
        });
        applied.elapsed()
    }

    /// Takes that policy away if it is there, and waits until it is not in effect any more.
    ///
    /// # Panics
    /// If it stays.
    pub fn open_prices(&self) {
        self.kubectl(&["delete", "-n", "shop", "faultpolicy/closed", "--ignore-not-found"]);
        eventually("nobody is refused", || {
            self.ask("http://prices/").ok().filter(|answer| answer.contains("StatusCode=200"))
        });
    }

    /// Starts a client of `prices` on a node that never stops, and writes down what it got and what failed.
    pub fn start_shopper(&self, node: &str) {
        self.apply(&format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: shopper, namespace: shop}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: machine
      command: [sh, -c, "while :; do curl --silent --show-error --fail --max-time 10 -o /dev/null http://prices/ 2>>/tmp/failed && echo >>/tmp/served; done"]
"#
        ));
        self.wait("shop", "pod/shopper", "condition=Ready");
    }

    /// How many of its requests were answered.
    ///
    /// # Panics
    /// If it does not run.
    pub fn served(&self) -> usize {
        let command = ["sh", "-c", "touch /tmp/served; wc -l < /tmp/served"];
        let count = self.exec("shop", "shopper", "app", &command).expect("the client runs");
        count.trim().parse().expect("it is a number")
    }

    /// Waits until it was served again, and looks whether anything failed.
    ///
    /// # Panics
    /// If something failed.
    pub fn nothing_failed(&self, until: &str) {
        let before = self.served();
        eventually("requests go on", || (self.served() > before + 20).then_some(()));
        let failed = self.exec("shop", "shopper", "app", &["cat", "/tmp/failed"]);
        assert_eq!(failed.as_deref(), Ok(""), "until {until}");
    }
}
