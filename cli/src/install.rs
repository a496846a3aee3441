//! `heddle install`: the objects that make a cluster a mesh, for `kubectl apply`.
//!
//! What is printed is made from the very files of `manifests/`, which are in
//! this program; tests hold it equal to what `kubectl kustomize` makes of
//! them. What was chosen is noted on the Deployment, so that `heddle upgrade`
//! chooses the same again.

mod files;
mod kustomize;
mod settings;

use anyhow::Context;
use clap::{Args, ValueEnum};
use heddle_sidecar::output;
use serde_json::{Value, json};

/// Prints what makes a cluster a mesh, for `kubectl apply --server-side -f -`
#[derive(Args, Debug)]
#[command(after_long_help = settings::describe())]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    chosen: Chosen,
}

/// What can be chosen about an installation.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Chosen {
    /// default: one control plane; ha: three, on different nodes; dev: for a cluster on one's own machine
    #[arg(long, value_enum, default_value_t)]
    pub(crate) overlay: Overlay,
    /// Changes one setting; --help lists the keys (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// The variants of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Overlay {
    #[default]
    Default,
    Ha,
    Dev,
}

impl Overlay {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Ha => "ha",
            Self::Dev => "dev",
        }
    }
}

/// The annotation of the Deployment with what was chosen.
pub(crate) const CHOSEN: &str = "heddle.dev/install";

/// Runs `heddle install`.
///
/// # Errors
/// If a setting is unknown or impossible.
pub(crate) fn run(args: &InstallArgs) -> anyhow::Result<()> {
    print(&objects(&args.chosen)?)
}

/// The objects of an installation, in the order in which they can be applied.
///
/// # Errors
/// If a setting is unknown or impossible.
pub(crate) fn objects(chosen: &Chosen) -> anyhow::Result<Vec<Value>> {
    let mut objects = kustomize::build(&format!("overlays/{}", chosen.overlay.name()))?;
    let key = |assignment: &str| assignment.split('=').next().unwrap_or_default().to_owned();
    for (place, assignment) in chosen.set.iter().enumerate() {
        // Each is judged, and the last of one key holds: what one adds or takes away none could take back.
        let later = chosen.set.iter().skip(place + 1).any(|later| key(later) == key(assignment));
        if later {
            settings::set(&mut objects.clone(), assignment)?;
        } else {
            settings::set(&mut objects, assignment)?;
        }
    }
    if chosen.overlay != Overlay::Default || !chosen.set.is_empty() {
        let noted = json!({ "overlay": chosen.overlay.name(), "set": chosen.set }).to_string();
        for object in objects.iter_mut().filter(|object| object["kind"] == "Deployment") {
            object["metadata"]["annotations"][CHOSEN] = noted.clone().into();
        }
    }
    Ok(objects)
}

/// What was chosen for an installation, from the annotation of its Deployment.
///
/// # Errors
/// If the annotation is not one that [`objects`] wrote.
pub(crate) fn chosen(annotation: Option<&str>) -> anyhow::Result<Chosen> {
    let Some(text) = annotation else { return Ok(Chosen::default()) };
    let noted: Value = serde_json::from_str(text).context("is no JSON")?;
    let overlay = noted["overlay"].as_str().unwrap_or_default();
    let overlay =
        Overlay::from_str(overlay, false).map_err(|_| anyhow::anyhow!("there is no overlay {overlay:?}"))?;
    let set = noted["set"].as_array().into_iter().flatten();
    Ok(Chosen { overlay, set: set.filter_map(|text| text.as_str().map(str::to_owned)).collect() })
}

/// Prints objects as a stream of YAML documents.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn print(objects: &[Value]) -> anyhow::Result<()> {
    let documents: Vec<String> = objects.iter().map(serde_saphyr::to_string).collect::<Result<_, _>>()?;
    output::print(&documents.join("---\n"))
}

#[cfg(test)]
mod tests;
