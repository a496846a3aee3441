//! `heddle check`: whether this machine, or a cluster, is right, and what to do
//! where it is not.
//!
//! The machine is looked at by the sidecar's own code. A cluster is looked at
//! before it is a mesh (`--pre`) or as one (`--cluster`). Each look asks the API
//! server for what it needs and judges it in functions without I/O.

mod before;
mod installed;
mod workloads;

use clap::Args;
use heddle_api::version::Version;
use heddle_sidecar::check::{CheckArgs as MachineArgs, Finding, Report, State};
use serde_json::Value;

use crate::cluster::{Cluster, ClusterArgs, Failure};

/// Whether this machine, or a cluster, is right, and what to do if not
#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Look at the mesh in a cluster in place of this machine; --context says so, too
    #[arg(long)]
    cluster: bool,
    /// Look at whether a cluster can become a mesh, before `heddle install`
    #[arg(long, conflicts_with = "cluster")]
    pre: bool,
    #[command(flatten)]
    which: ClusterArgs,
}

impl CheckArgs {
    /// Whether it is this machine that is looked at.
    pub(crate) fn is_about_this_machine(&self) -> bool {
        !self.cluster && !self.pre && !self.which.is_named()
    }
}

/// Looks at this machine. Must be called before the process has a second thread.
///
/// # Errors
/// If something is bad.
pub(crate) fn machine(args: &CheckArgs) -> anyhow::Result<()> {
    heddle_sidecar::check::run(&args.machine)
}

/// Looks at a cluster.
///
/// # Errors
/// If something is bad, or there is no cluster to ask.
pub(crate) async fn cluster(args: &CheckArgs) -> anyhow::Result<()> {
    let cluster = Cluster::connect(&args.which).await?;
    let mut findings = Vec::new();
    match cluster.get("/version").await {
        Ok(version) => findings.push(api_server(&version)),
        Err(failure) => findings.push(Finding::bad(
            "API server",
            failure.to_string(),
            "see that `kubectl version` works; --context names another cluster of the kubeconfig",
        )),
    }
    // Without an API server, everything else would only say the same.
    if findings.iter().all(|finding| finding.state != State::Bad) {
        if args.pre {
            findings.extend(before::look(&cluster).await);
        } else {
            findings.extend(installed::look(&cluster).await);
            findings.extend(workloads::look(&cluster).await);
        }
    }
    let report = Report { findings };
    report.print(args.machine.json)?;
    anyhow::ensure!(report.passed(), "this cluster is not ready; see above");
    Ok(())
}

/// Rules in our definitions name the fields at fault, which older servers do not know.
const OLDEST: Version = Version::of(1, 28);

/// From here on containers that start before the application's and end after it are on by default.
const NATIVE_SIDECARS: Version = Version::of(1, 29);

/// The version of the API server, from `/version`.
fn api_server(answer: &Value) -> Finding {
    const SUBJECT: &str = "API server";
    let text = answer["gitVersion"].as_str().unwrap_or_default();
    // Builds of one's own may call themselves 0.0.0.
    let Some(version) = text.parse::<Version>().ok().filter(|v| *v >= Version::of(1, 0)) else {
        let remedy = format!("see that it is Kubernetes {OLDEST} or newer");
        return Finding::degraded(
            SUBJECT,
            format!("answers, but its version, {text:?}, cannot be read"),
            remedy,
        );
    };
    if version < OLDEST {
        let remedy = format!("update the cluster to Kubernetes {OLDEST} or newer");
        return Finding::bad(SUBJECT, format!("is Kubernetes {version}"), remedy);
    }
    if version < NATIVE_SIDECARS {
        let remedy = "annotate workloads with heddle.dev/native-sidecar: disabled, or update the cluster";
        return Finding::degraded(
            SUBJECT,
            format!("is Kubernetes {version}, without native sidecars"),
            remedy,
        );
    }
    Finding::good(SUBJECT, format!("Kubernetes {version}"))
}

/// That something could not be looked at.
fn unknown(subject: &'static str, failure: &Failure) -> Finding {
    let remedy = match failure {
        Failure::Forbidden(_) => "ask somebody who may read it",
        Failure::NotFound | Failure::Conflict | Failure::Other(_) => {
            "try again; see the API server's log if it stays"
        }
    };
    Finding::degraded(subject, format!("cannot be looked at: {failure}"), remedy)
}

/// A few of many names, for a line.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn old_api_servers_are_told() {
        for (version, state) in [
            ("v1.36.3", State::Good),
            ("v1.29.0-eks", State::Good),
            ("v1.28.9", State::Degraded),
            ("v1.27.1", State::Bad),
            ("v0.0.0-master+$Format:%H$", State::Degraded),
            ("devel", State::Degraded),
        ] {
            assert_eq!(api_server(&json!({"gitVersion": version})).state, state, "{version}");
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(some_of(&names), "0, 1, 2, 3, 4 and 2 more");
        assert_eq!(some_of(&names[..1]), "0");
    }
}
