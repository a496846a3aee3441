//! A Kubernetes cluster for a test: a real etcd, API server, controller manager
//! and scheduler, and nodes that run each pod as processes in namespaces of
//! their own (`tests/kubernetes`).
//!
//! All of it is in one network, process and mount namespace: ports and addresses
//! are the same in each cluster, clusters run side by side, and the machine's own
//! network is never touched. The first process of the namespaces ends when the
//! test does, however that ends, and the kernel then ends all others; files are
//! in memory that goes with them.
//!
//! It needs root, and the programs that `tests/kubernetes/build` builds.

mod assets;
mod bulk;
mod certificates;
mod images;
mod kubectl;
mod namespaces;
mod parts;
mod shop;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::{Value, json};

use self::assets::Assets;
pub use self::bulk::ApiRequest;
pub use self::images::of_heddle;
use self::namespaces::Namespaces;
use self::parts::{API_SERVER, ApiServer, Part, SECOND_API_SERVER};
use crate::mesh::{is_root, missing};

/// The longest that the parts of a cluster may take to be ready. Test machines are slow and shared.
const READY_LIMIT: Duration = Duration::from_secs(180);

/// How often a cluster is asked whether it is ready.
const LOOK: Duration = Duration::from_millis(100);

/// What a cluster is to be like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many nodes there are. They are in three zones, `zone-a` to `zone-c`, in turn.
    pub nodes: usize,
    /// What images stand for besides those of every cluster, by their names
    /// without tag, as `tests/kubernetes/README.md` describes them.
    pub images: BTreeMap<String, Value>,
    /// Whether there is a second API server on the same etcd. `kubectl`, controllers and nodes use
    /// that one, pods know the first only: it can be taken from them while all else goes on.
    pub second_api_server: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { nodes: 1, images: BTreeMap::new(), second_api_server: false }
    }
}

/// A running cluster. It ends when it is dropped.
pub struct Cluster {
    assets: Assets,
    namespaces: Namespaces,
    etcd: Part,
    /// The one that pods know.
    api_server: Option<Part>,
    second_api_server: Option<Part>,
    controller_manager: Part,
    scheduler: Part,
    node: Part,
}

impl Cluster {
    /// Starts a cluster of one node. `None`, after a word about it, if this machine lacks what it needs.
    ///
    /// # Panics
    /// If it does not start, or if CI lacks what it needs.
    pub fn start() -> Option<Self> {
        Self::start_with(&Settings::default())
    }

    /// The same with settings.
    ///
    /// # Panics
    /// If it does not start, or if CI lacks what it needs.
    pub fn start_with(settings: &Settings) -> Option<Self> {
        if !is_root() {
            missing("the right to make network namespaces");
            return None;
        }
        let assets = match Assets::find() {
            Ok(assets) => assets,
            Err(why) => {
                missing(&why);
                return None;
            }
        };
        let namespaces = Namespaces::new();
        let used = if settings.second_api_server { &SECOND_API_SERVER } else { &API_SERVER };
        certificates::write(&namespaces, used, settings.nodes);
        let mut images = images::of_every_cluster(&assets);
        images.extend(settings.images.clone());
        let images = json!(images);
        fs::write(namespaces.path("images.json"), images.to_string()).expect("there is room");
        let nodes = settings.nodes.to_string();
        namespaces.run(assets.program("node"), &["--network", "--nodes", &nodes]);
        let etcd = parts::etcd(&assets, &namespaces);
        let api_server = parts::api_server(&assets, &namespaces, &API_SERVER);
        let second_api_server =
            settings.second_api_server.then(|| parts::api_server(&assets, &namespaces, &SECOND_API_SERVER));
        let controller_manager = parts::controller_manager(&assets, &namespaces);
        let scheduler = parts::scheduler(&assets, &namespaces);
        let node = parts::node(&assets, &namespaces, settings.nodes);
        let cluster = Self {
            assets,
            namespaces,
            etcd,
            api_server: Some(api_server),
            second_api_server,
            controller_manager,
            scheduler,
            node,
        };
        cluster.wait_for(&API_SERVER);
        cluster.wait_until_ready(settings.nodes);
        Some(cluster)
    }

    /// Kills the API server that pods know. What else runs goes on without it.
    pub fn kill_api_server(&mut self) {
        if let Some(mut api_server) = self.api_server.take() {
            api_server.kill(&self.namespaces);
        }
    }

    /// Starts the API server again, and waits until it answers.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn start_api_server(&mut self) {
        assert!(self.api_server.is_none(), "it runs");
        self.api_server = Some(parts::api_server(&self.assets, &self.namespaces, &API_SERVER));
        self.wait_for(&API_SERVER);
    }

    /// The API server that everything but pods uses.
    fn api_server_in_use(&self) -> String {
        if self.second_api_server.is_some() { SECOND_API_SERVER.url() } else { API_SERVER.url() }
    }

    fn wait_for(&self, api_server: &ApiServer) {
        let server = format!("--server={}", api_server.url());
        self.settle("the API server answers", || {
            self.try_kubectl(&[&server, "get", "--raw", "/readyz"]).is_ok()
        });
    }

    /// The folder of the cluster's own files, as its processes see it.
    pub fn directory(&self) -> &Path {
        self.namespaces.directory()
    }

    /// Where this process finds a file that processes of the cluster know by `path`.
    pub fn outside(&self, path: &Path) -> PathBuf {
        self.namespaces.outside(path)
    }

    /// The file by which clients inside the cluster's namespaces reach the API server as its administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.namespaces.inside("admin.kubeconfig")
    }

    /// The process whose namespaces are the cluster's, for `nsenter`.
    pub fn process(&self) -> u32 {
        self.namespaces.process()
    }

    /// One of the programs that clusters are made of.
    pub fn program(&self, name: &str) -> PathBuf {
        self.assets.program(name)
    }

    /// A command on the machine that all nodes share, from where Services and pods can be reached. It
    /// begins in the root directory.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
        let mut command = self.namespaces.command(program);
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    fn wait_until_ready(&self, nodes: usize) {
        self.settle("the API server answers", || self.try_kubectl(&["get", "--raw", "/readyz"]).is_ok());
        self.settle("all nodes are ready", || {
            let Ok(ready) = self.try_kubectl(&[
                "get",
                "nodes",
                "-o",
                "jsonpath={range .items[*]}{.spec.taints}{.status.conditions[?(@.type=='Ready')].status}{end}",
            ]) else {
                return false;
            };
            ready == "True".repeat(nodes)
        });
        self.settle("pods can be made", || {
            self.try_kubectl(&["get", "serviceaccount/default", "configmap/kube-root-ca.crt"]).is_ok()
        });
    }

    /// Waits for a condition of the cluster, and shows what its parts say if it does not come true.
    fn settle(&self, what: &str, condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(
                begun.elapsed() < READY_LIMIT,
                "not within {READY_LIMIT:?}: {what}\n{}",
                self.logs_of_parts()
            );
            thread::sleep(LOOK);
        }
    }

    /// The end of what each part wrote.
    fn logs_of_parts(&self) -> String {
        let running = [&self.etcd, &self.controller_manager, &self.scheduler, &self.node];
        let parts = running.into_iter().chain(&self.api_server).chain(&self.second_api_server);
        parts.map(|part| format!("--- {}:\n{}\n", part.name(), part.log())).collect()
    }
}

impl Drop for Cluster {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs_of_parts());
        }
    }
}
