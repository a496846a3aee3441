//! `heddle upgrade`: the objects of this version, for `kubectl apply`, after a
//! look at what is installed: from one minor version to the next and never
//! further, with what was chosen at installation. What changes is told on
//! standard error, so that it can be read while the objects go through a pipe.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use clap::Args;
use heddle_api::version::{Skew, Version};
use heddle_sidecar::output;
use serde_json::Value;

use crate::cluster::kinds::{is_same, labelled, path_of};
use crate::cluster::{Cluster, ClusterArgs, DEPLOYMENT, Failure, VERSION_LABEL, annotation, label, named};
use crate::install::{self, CHOSEN, Chosen};

/// Prints what brings an installed mesh to this version, for `kubectl apply --server-side -f -`
#[derive(Args, Debug)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Changes one setting in addition to those of the installation; heddle install --help lists the
    /// keys (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Takes one setting of the installation back, so that it is again what it is by itself (repeatable)
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,
}

/// Runs `heddle upgrade`.
///
/// # Errors
/// If nothing is installed, what is installed is too old or newer than this, or a setting is wrong.
pub(crate) async fn run(args: &UpgradeArgs) -> anyhow::Result<()> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let deployment = cluster.find(DEPLOYMENT).await.context("cannot look at the control plane")?;
    let Some(deployment) = deployment else {
        bail!("there is no control plane in this cluster; `heddle install` makes one");
    };
    let installed = installed(&deployment)?;
    permitted(installed, Version::own())?;
    let chosen = again(&deployment, &args.set, &args.unset)?;
    if installed != Version::own() {
        of_this_version(&chosen, &args.set, installed)?;
    }
    let objects = install::objects(&chosen)?;
    output::complain(&format!("from {installed} to {}", Version::own()));
    for line in changes(&cluster, &objects).await? {
        output::complain(&line);
    }
    install::print(&objects)
}

/// The version of a control plane.
pub(crate) fn installed(deployment: &Value) -> anyhow::Result<Version> {
    let version =
        label(deployment, VERSION_LABEL).with_context(|| format!("it has no label {VERSION_LABEL}"));
    version.and_then(|version| Ok(version.parse()?)).context("cannot tell the control plane's version")
}

/// Whether one version may follow another.
fn permitted(installed: Version, own: Version) -> anyhow::Result<()> {
    if installed.skew(own) == Skew::TooOld {
        bail!("{installed} is installed, and this is {own}: go one minor version at a time");
    }
    if installed > own {
        bail!("{installed} is installed, which is newer than this program, {own}");
    }
    Ok(())
}

/// What was chosen before, and what is chosen now.
fn again(deployment: &Value, set: &[String], unset: &[String]) -> anyhow::Result<Chosen> {
    let noted = install::chosen(annotation(deployment, CHOSEN));
    let mut chosen = noted.with_context(|| format!("annotation {CHOSEN} of the control plane"))?;
    for key in unset {
        let was = chosen.set.len();
        chosen.set.retain(|assignment| key_of(assignment) != key);
        ensure!(chosen.set.len() < was, "--unset {key}: it was not set");
    }
    let replaced: BTreeSet<&str> = set.iter().map(|assignment| key_of(assignment)).collect();
    chosen.set.retain(|assignment| !replaced.contains(key_of(assignment)));
    chosen.set.extend(set.iter().cloned());
    Ok(chosen)
}

fn key_of(assignment: &str) -> &str {
    assignment.split('=').next().unwrap_or_default()
}

/// Settings that name a program of one version.
const IMAGES: [&str; 2] = ["image", "sidecar.sidecar-image"];

/// An image that was chosen for another version is not this one's: with it the objects would be
/// of one version and the program of another.
fn of_this_version(chosen: &Chosen, set: &[String], installed: Version) -> anyhow::Result<()> {
    for assignment in &chosen.set {
        let key = key_of(assignment);
        if IMAGES.contains(&key) && !set.contains(assignment) {
            bail!(
                "{assignment} was chosen for {installed}; say which image is of {}: --set {key}=IMAGE, or \
                 --unset {key} for the one that it is by itself",
                Version::own()
            );
        }
    }
    Ok(())
}

/// A line for each object that is new or changes, and for each that is not needed any more.
async fn changes(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for object in objects {
        let path = path_of(object)?;
        let kind = object["kind"].as_str().unwrap_or_default();
        match cluster.find(&path).await {
            Ok(None) => lines.push(format!("  new      {kind} {}", named(object))),
            Ok(Some(live)) if !holds(&live, object) => {
                lines.push(format!("  changes  {kind} {}", named(object)))
            }
            Ok(Some(_)) => {}
            Err(Failure::Forbidden(_)) => {
                lines.push(format!("  unknown  {kind} {}: may not be read", named(object)))
            }
            Err(failure) => bail!("{path}: {failure}"),
        }
    }
    match labelled(cluster).await {
        Ok(live) => {
            let left = live.iter().filter(|live| objects.iter().all(|object| !is_same(live, object)));
            lines.extend(left.map(|object| {
                let kind = object["kind"].as_str().unwrap_or_default();
                format!("  not needed any more, and not removed by applying: {kind} {}", named(object))
            }));
        }
        Err(Failure::Forbidden(_)) => lines.push("  unknown  what is not needed any more".into()),
        Err(failure) => bail!("cannot list what is installed: {failure}"),
    }
    if lines.is_empty() {
        lines.push("  nothing changes".into());
    }
    Ok(lines)
}

/// Whether an object has everything that another says. What the API server fills in is more; an empty
/// text, list or false that it leaves away is the same.
fn holds(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| live.get(key).map_or_else(|| is_empty(value), |live| holds(live, value))),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| holds(live, wanted))
        }
        (live, wanted) => live == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn minor_versions_are_not_skipped_and_not_taken_back() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(permitted(version("0.1.0"), version("0.1.3")).is_ok());
        assert!(permitted(version("0.1.0"), version("0.2.0")).is_ok());
        for (installed, own) in
            [("0.1.0", "0.3.0"), ("0.2.0", "0.1.0"), ("1.0.0", "0.9.0"), ("0.9.0", "1.0.0")]
        {
            assert!(permitted(version(installed), version(own)).is_err(), "{installed} to {own}");
        }
    }

    #[test]
    fn what_was_chosen_stays_chosen() {
        let deployment = json!({"metadata": {"annotations": {
            CHOSEN: r#"{"overlay":"ha","set":["replicas=5","logLevel=info"]}"#,
        }}});
        let chosen = again(&deployment, &["logLevel=debug".into()], &[]).unwrap();
        assert_eq!(chosen.overlay, install::Overlay::Ha);
        assert_eq!(chosen.set, ["replicas=5", "logLevel=debug"]);
        assert_eq!(again(&deployment, &[], &["replicas".into()]).unwrap().set, ["logLevel=info"]);
        assert!(again(&deployment, &[], &["image".into()]).is_err());
    }

    /// Whoever has images in a registry of their own names them at installation, with a tag.
    #[test]
    fn an_image_that_was_chosen_for_another_version_is_asked_for_again() {
        let kept = "image=registry.example/heddle/control-plane:0.0.1".to_owned();
        let chosen = Chosen { set: vec![kept.clone(), "replicas=2".into()], ..Chosen::default() };
        let installed = "0.0.1".parse().unwrap();
        let refused = of_this_version(&chosen, &[], installed).unwrap_err().to_string();
        assert!(refused.contains(&kept) && refused.contains("--set image=IMAGE"), "{refused}");
        assert!(of_this_version(&chosen, &[kept], installed).is_ok(), "whoever says so means it");
    }

    #[test]
    fn what_the_api_server_fills_in_is_no_change() {
        let wanted = json!({"spec": {"ports": [{"port": 1}], "list": [], "global": false}});
        let live = json!({"metadata": {"uid": "1"}, "spec": {"ports": [{"port": 1, "protocol": "TCP"}]}});
        assert!(holds(&live, &wanted));
        assert!(!holds(&live, &json!({"spec": {"ports": [{"port": 2}]}})));
        assert!(!holds(&live, &json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}})));
        assert!(!holds(&live, &json!({"spec": {"more": 1}})));
    }
}
