//! What tests do to a cluster, as its operators do it.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::Cluster;
use crate::binary;

/// How long `kubectl` waits where it waits.
const WAIT: &str = "--timeout=120s";

impl Cluster {
    /// What `kubectl` prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap_or_else(|complaint| panic!("kubectl {}: {complaint}", args.join(" ")))
    }

    /// What `kubectl` prints, or what it complains about.
    ///
    /// # Errors
    /// If it fails.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        self.kubectl_with(args, "")
    }

    /// The same with an input.
    ///
    /// # Errors
    /// If it fails.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String, String> {
        let mut command = self.command(self.program("kubectl"));
        // It keeps what it learns about the API, which is the same in no two clusters.
        command.env("HOME", self.directory());
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("util-linux has nsenter");
        let mut stdin = child.stdin.take().expect("it is piped");
        // It may fail before it has read its input.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("it was started");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Applies manifests.
    ///
    /// # Panics
    /// If the API server refuses one.
    pub fn apply(&self, manifests: &str) -> String {
        self.try_apply(manifests).unwrap_or_else(|complaint| panic!("{complaint}\n{manifests}"))
    }

    /// Applies manifests, or gives what the API server says against them.
    ///
    /// # Errors
    /// If the API server refuses one.
    pub fn try_apply(&self, manifests: &str) -> Result<String, String> {
        self.kubectl_with(&["apply", "--server-side", "-f", "-"], manifests)
    }

    /// Installs the custom resources of the Gateway API, with those of its experimental channel.
    ///
    /// # Panics
    /// If they cannot be installed.
    pub fn install_gateway_api(&self) {
        let file = self.program("gateway-api-experimental.yaml");
        self.kubectl(&["apply", "--server-side", "-f", &file.to_string_lossy()]);
        self.kubectl(&["wait", "crd", "--all", "--for=condition=Established", WAIT]);
    }

    /// Runs `heddle` beside the cluster.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn heddle(&self, args: &[&str]) -> Output {
        self.command(binary("heddle")).args(args).output().expect("util-linux has nsenter")
    }

    /// Installs Heddle with these arguments of `heddle install`, and waits until it is ready. The
    /// cluster needs its images ([`super::of_heddle`]).
    ///
    /// # Panics
    /// If it does not come to that.
    pub fn install_heddle(&self, args: &[&str]) {
        let output = Command::new(binary("heddle")).arg("install").args(args).output().expect("it was built");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.apply(&String::from_utf8_lossy(&output.stdout));
        self.rolled_out("heddle-system", "deploy/heddle-control-plane");
    }

    /// Waits until an object is as `condition` says, in the words of `kubectl wait --for`.
    ///
    /// # Panics
    /// If it is not in time.
    pub fn wait(&self, namespace: &str, object: &str, condition: &str) {
        let condition = format!("--for={condition}");
        if let Err(complaint) = self.try_kubectl(&["wait", "-n", namespace, object, &condition, WAIT]) {
            panic!("{object} in {namespace} is not {condition}: {complaint}\n{}", self.describe(namespace));
        }
    }

    /// Waits until a deployment, stateful set or daemon set runs as it should.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn rolled_out(&self, namespace: &str, object: &str) {
        if let Err(complaint) = self.try_kubectl(&["rollout", "status", "-n", namespace, object, WAIT]) {
            panic!("{object} in {namespace}: {complaint}\n{}", self.describe(namespace));
        }
    }

    /// An object as the API server has it, `None` if there is none.
    ///
    /// # Panics
    /// If `kubectl` prints no JSON.
    pub fn get(&self, namespace: &str, object: &str) -> Option<Value> {
        let text = self.try_kubectl(&["get", "-n", namespace, object, "-o", "json"]).ok()?;
        Some(serde_json::from_str(&text).expect("it is JSON"))
    }

    /// What a command in a container prints, or what it complains about. `pod` may be `deploy/NAME`.
    ///
    /// # Errors
    /// If the command fails, or is not run.
    pub fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: &[&str],
    ) -> Result<String, String> {
        let mut args = vec!["exec", "-n", namespace, pod, "-c", container, "--"];
        args.extend(command);
        self.try_kubectl(&args)
    }

    /// What a container wrote.
    ///
    /// # Panics
    /// If the log cannot be had.
    pub fn logs(&self, namespace: &str, pod: &str, container: &str) -> String {
        self.kubectl(&["logs", "-n", namespace, pod, "-c", container])
    }

    /// Moves all pods off a node, as before its maintenance.
    ///
    /// # Panics
    /// If that does not succeed in time.
    pub fn drain(&self, node: &str) {
        self.kubectl(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", WAIT]);
    }

    /// What the pods of a namespace are up to, for a test that failed.
    fn describe(&self, namespace: &str) -> String {
        let pods = self.try_kubectl(&["get", "pods", "-n", namespace, "-o", "yaml"]);
        let logs = self.try_kubectl(&["get", "pods", "-n", namespace, "-o", "name"]).unwrap_or_default();
        let logs: Vec<String> = logs
            .lines()
            .filter_map(|pod| {
                self.try_kubectl(&["logs", "-n", namespace, pod, "--all-containers", "--prefix", "--tail=30"])
                    .ok()
            })
            .collect();
        format!("{}\n{}", pods.unwrap_or_else(|complaint| complaint), logs.join("\n"))
    }
}
