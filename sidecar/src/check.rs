//! `heddle check`: whether this machine can run applications in the mesh, and
//! what to do where it cannot.
//!
//! What can be tried is tried, in a process that ends with all it made; only
//! to explain a failure are the kernel's settings read. `probes` tries the
//! kernel, `mesh` looks at the control plane.

mod mesh;
mod probes;

use std::fmt;

use clap::Args;
use serde::Serialize;

use crate::output;
use crate::settings::DEFAULT_CONTROL_PLANE;

/// Settings of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The control plane, as HOST:PORT
    #[arg(long, value_name = "HOST:PORT", env = "HEDDLE_CONTROL_PLANE", default_value = DEFAULT_CONTROL_PLANE)]
    control_plane: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One for each thing that was looked at, in order.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub subject: &'static str,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do about it, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// As it should be.
    Good,
    /// Not as it should be, but nothing fails for it.
    Degraded,
    /// `heddle run` cannot work like this.
    Bad,
}

/// Looks at everything and prints what was found.
///
/// # Errors
/// If something is bad, or the report cannot be written.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let report = check(args);
    report.print(args.json)?;
    anyhow::ensure!(report.passed(), "this machine is not ready; see above");
    Ok(())
}

/// Looks at everything. Must be called before the process has a second thread.
pub fn check(args: &CheckArgs) -> Report {
    let mut findings = probes::kernel();
    findings.extend(mesh::control_plane(&args.control_plane));
    Report { findings }
}

impl Report {
    /// Whether nothing is bad.
    pub fn passed(&self) -> bool {
        self.findings.iter().all(|finding| finding.state != State::Bad)
    }

    /// Prints it, as JSON or for people.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        output::print(&if json { serde_json::to_string_pretty(self)? + "\n" } else { self.to_string() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let sign = match finding.state {
                State::Good => "ok  ",
                State::Degraded => "warn",
                State::Bad => "FAIL",
            };
            writeln!(f, "{sign}  {:<22} {}", finding.subject, finding.detail)?;
            for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
                writeln!(f, "      {:<22} -> {line}", "")?;
            }
        }
        Ok(())
    }
}

impl Finding {
    /// Something is as it should be.
    pub fn good(subject: &'static str, detail: impl Into<String>) -> Self {
        Self { subject, state: State::Good, detail: detail.into(), remedy: None }
    }

    /// Something is not as it should be, but nothing fails for it.
    pub fn degraded(subject: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject, state: State::Degraded, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    /// Something cannot work like this.
    pub fn bad(subject: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject, state: State::Bad, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_well_in_both_forms() {
        let report = Report {
            findings: vec![
                Finding::good("tproxy", "works"),
                Finding::bad("user namespace", "EPERM", "do this\nor that"),
            ],
        };
        assert!(!report.passed());
        let text = report.to_string();
        assert!(
            text.contains("ok    tproxy") && text.contains("-> do this\n") && text.contains("-> or that\n")
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"][1]["state"], "bad");
        assert!(json["findings"][0].get("remedy").is_none());
    }
}
