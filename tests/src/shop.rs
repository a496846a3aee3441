//! A client and services with routes between them, for tests of what routes do.

use std::net::SocketAddr;

use crate::{App, ControlPlane, Process, eventually, exchange, response};

/// A workload: an application and its sidecar.
struct Workload {
    _app: App,
    _sidecar: Process,
}

/// A client and three services, of which `users` is the one with routes.
pub struct Shop {
    /// The control plane of the mesh.
    pub control_plane: ControlPlane,
    /// The client's sidecar.
    pub client: Process,
    _workloads: Vec<Workload>,
}

impl Shop {
    /// The services answer with their names and the requests that they got.
    ///
    /// # Panics
    /// If a part of it does not start.
    pub fn start() -> Self {
        Self::with(|name, request| response(&format!("{name}\n{request}")))
    }

    /// `answer` makes a response from a service's name and a request's head.
    ///
    /// # Panics
    /// If a part of it does not start.
    pub fn with(answer: impl Fn(&str, &str) -> String + Clone + Send + Sync + 'static) -> Self {
        let control_plane = ControlPlane::start();
        let workloads = ["users", "users-v2", "other"].map(|name| {
            let answer = answer.clone();
            let app = App::answering(move |request| answer(name, request));
            let sidecar = workload(&control_plane, name, &app);
            Workload { _app: app, _sidecar: sidecar }
        });
        let client = control_plane.sidecar("client", [] as [&str; 0]);
        client.said("the sidecar is ready");
        for name in ["users", "users-v2", "other"] {
            control_plane.workloads(name, 1);
        }
        let shop = Self { control_plane, client, _workloads: workloads.into() };
        for name in ["users", "users-v2", "other"] {
            eventually("the service answers", || {
                exchange(
                    shop.at(),
                    &format!("GET / HTTP/1.1\r\nhost: {name}:8080\r\nconnection: close\r\n\r\n"),
                )
                .filter(|answer| answer.starts_with("HTTP/1.1 200"))
            });
        }
        shop
    }

    /// Where the client's sidecar takes its requests.
    pub fn at(&self) -> SocketAddr {
        self.client.listening("outbound")
    }

    /// Attaches rules to `users` and waits until they are in force.
    pub fn route(&self, rules: &str) {
        let sentinel = "  - matches: [{path: {type: Exact, value: /.sentinel}}]\n    filters: [{type: RequestRedirect, requestRedirect: {hostname: there, statusCode: 302}}]\n";
        let rules = rules.trim_start_matches('\n');
        self.control_plane.apply(
            "route.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: users, namespace: default}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: users, port: 8080}}]\n  rules:\n{rules}\n{sentinel}"
            ),
        );
        eventually("the route is in force", || {
            self.get("/.sentinel").starts_with("HTTP/1.1 302").then_some(())
        });
    }

    /// Attaches policies, one per target: a target's reference and what the policy says.
    pub fn policies(&self, policies: &[(&str, &str)]) {
        let text = policies.iter().enumerate().map(|(index, (target, spec))| {
            format!(
                "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p{index}, namespace: default}}\nspec:\n  targetRefs: [{{{target}}}]\n  {spec}\n---\n"
            )
        });
        self.control_plane.apply("policies.yaml", &text.collect::<String>());
    }

    /// The answer of `users` to a request.
    ///
    /// # Panics
    /// If there is none.
    pub fn ask(&self, method: &str, target: &str, fields: &[&str]) -> String {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let request =
            format!("{method} {target} HTTP/1.1\r\nhost: users:8080\r\nconnection: close\r\n{fields}\r\n");
        exchange(self.at(), &request).expect("there is an answer")
    }

    /// The same for a GET without anything else.
    pub fn get(&self, target: &str) -> String {
        self.ask("GET", target, &[])
    }
}

fn workload(control_plane: &ControlPlane, name: &str, app: &App) -> Process {
    let address = format!("127.0.0.1:{}", app.port());
    let sidecar = control_plane.sidecar(name, ["--port", "http:8080:http", "--app", &address]);
    sidecar.said("the sidecar is ready");
    sidecar
}

/// Who answered, in the first line of the body.
pub fn by(answer: &str) -> &str {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if answer.starts_with("HTTP/1.1 200") { body.lines().next().unwrap_or_default() } else { "" }
}

/// The status of an answer.
pub fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or_default()
}
