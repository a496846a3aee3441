//! The processes that a cluster consists of.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::assets::Assets;
use super::namespaces::Namespaces;

/// An API server, and where it listens.
pub(super) struct ApiServer {
    name: &'static str,
    pub(super) address: &'static str,
    port: u16,
    /// Whether it is one of those behind the Service `kubernetes`.
    reconciler: &'static str,
}

impl ApiServer {
    pub(super) fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }
}

/// The one that pods know (`tests/kubernetes/internal/network`).
pub(super) const API_SERVER: ApiServer =
    ApiServer { name: "kube-apiserver", address: "10.99.0.1", port: 6443, reconciler: "lease" };

/// One that only the machine itself reaches.
pub(super) const SECOND_API_SERVER: ApiServer =
    ApiServer { name: "second-kube-apiserver", address: "127.0.0.1", port: 6444, reconciler: "none" };

/// How much of what a part wrote is shown when a test fails.
const TAIL: usize = 1500;

/// One of the processes.
pub(super) struct Part {
    name: &'static str,
    /// `nsenter`, which ends when the process does.
    child: Child,
    log: PathBuf,
}

impl Part {
    fn start(namespaces: &Namespaces, name: &'static str, program: PathBuf, args: &[String]) -> Self {
        let log = namespaces.path(&format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("there is room");
        // The shell leaves the number by which the process is known inside, and becomes it.
        let mut command = namespaces.command("sh");
        command.args(["-c", r#"echo $$ >"$0"; exec "$@""#]);
        command.arg(namespaces.inside(&format!("{name}.pid"))).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("it is open")).stderr(output);
        let child = command.spawn().expect("util-linux has nsenter");
        Self { name, child, log }
    }

    pub(super) fn name(&self) -> &str {
        self.name
    }

    /// The end of what it wrote.
    pub(super) fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL)..]).into_owned()
    }

    /// Kills the process, and waits until it has ended.
    pub(super) fn kill(&mut self, namespaces: &Namespaces) {
        let number =
            fs::read_to_string(namespaces.path(&format!("{}.pid", self.name))).expect("it was started");
        namespaces.run("kill", &["-9", number.trim()]);
        self.child.wait().expect("it was started");
    }
}

/// Flags with the cluster's folder in place of `DIR`.
fn flags(namespaces: &Namespaces, flags: &[&str]) -> Vec<String> {
    let directory = namespaces.directory().to_string_lossy();
    flags.iter().map(|flag| flag.replace("DIR", &directory)).collect()
}

pub(super) fn etcd(assets: &Assets, namespaces: &Namespaces) -> Part {
    let flags = flags(
        namespaces,
        &[
            "--data-dir=DIR/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--log-level=warn",
            // Nothing of it outlives the test.
            "--unsafe-no-fsync",
        ],
    );
    Part::start(namespaces, "etcd", assets.program("etcd"), &flags)
}

pub(super) fn api_server(assets: &Assets, namespaces: &Namespaces, server: &ApiServer) -> Part {
    let mut flags = flags(
        namespaces,
        &[
            "--etcd-servers=http://127.0.0.1:2379",
            "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--client-ca-file=DIR/ca.crt",
            "--tls-cert-file=DIR/api-server.crt",
            "--tls-private-key-file=DIR/api-server.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--service-account-key-file=DIR/service-accounts.pub",
            "--service-account-signing-key-file=DIR/service-accounts.key",
            "--kubelet-certificate-authority=DIR/ca.crt",
            "--kubelet-client-certificate=DIR/admin.crt",
            "--kubelet-client-key=DIR/admin.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
        ],
    );
    flags.push(format!("--bind-address={}", server.address));
    flags.push(format!("--secure-port={}", server.port));
    flags.push(format!("--advertise-address={}", API_SERVER.address));
    flags.push(format!("--endpoint-reconciler-type={}", server.reconciler));
    Part::start(namespaces, server.name, assets.program("kube-apiserver"), &flags)
}

pub(super) fn controller_manager(assets: &Assets, namespaces: &Namespaces) -> Part {
    let flags = flags(
        namespaces,
        &[
            "--kubeconfig=DIR/kube-controller-manager.kubeconfig",
            "--bind-address=127.0.0.1",
            "--service-account-private-key-file=DIR/service-accounts.key",
            "--root-ca-file=DIR/ca.crt",
            "--cluster-signing-cert-file=DIR/ca.crt",
            "--cluster-signing-key-file=DIR/ca.key",
            "--use-service-account-credentials=true",
            // There is one only, and it goes on when the API server is gone.
            "--leader-elect=false",
            // Others lose their lease with the API server, and give all nodes time when they begin anew.
            "--node-monitor-grace-period=1h",
            "--kube-api-qps=500",
            "--kube-api-burst=500",
            "--profiling=false",
        ],
    );
    Part::start(namespaces, "kube-controller-manager", assets.program("kube-controller-manager"), &flags)
}

pub(super) fn scheduler(assets: &Assets, namespaces: &Namespaces) -> Part {
    let flags = flags(
        namespaces,
        &[
            "--kubeconfig=DIR/kube-scheduler.kubeconfig",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--kube-api-qps=500",
            "--kube-api-burst=500",
            "--profiling=false",
        ],
    );
    Part::start(namespaces, "kube-scheduler", assets.program("kube-scheduler"), &flags)
}

pub(super) fn node(assets: &Assets, namespaces: &Namespaces, nodes: usize) -> Part {
    let mut flags = flags(
        namespaces,
        &[
            "--kubeconfig=DIR/admin.kubeconfig",
            "--images=DIR/images.json",
            "--directory=DIR/pods",
            "--tls-cert=DIR/node.crt",
            "--tls-key=DIR/node.key",
            "--client-ca=DIR/ca.crt",
        ],
    );
    flags.push(format!("--nodes={nodes}"));
    Part::start(namespaces, "node", assets.program("node"), &flags)
}
