//! `heddle inject` and `heddle uninject`: manifests with sidecars, by the very
//! code of the webhook.
//!
//! What is written is for kubectl and complete or not at all: with anything
//! that is refused nothing is written, so that a pipe never applies a half.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use heddle_control_plane::injection::manifest::{self, Action};
use heddle_control_plane::injection::{Injector, Options};
use heddle_sidecar::output;

/// Adds sidecars to the pods of manifests
///
/// Writes all documents to standard output, or nothing if anything is refused. Lines in which nothing
/// changes stay as they are, with their comments. Written anew, without comments, are keys and elements
/// in flow style ({…}, […]) in which something changes, and documents as a whole that are JSON, have tabs or
/// lines that end in CR LF, or anchors where something changes.
#[derive(Args, Debug)]
pub(crate) struct InjectArgs {
    #[command(flatten)]
    files: Files,
    /// The sidecar's image [default: heddle/sidecar of this version]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Makes the sidecar an ordinary container, for clusters before Kubernetes 1.29
    #[arg(long)]
    no_native_sidecar: bool,
    /// A default for pods that do not choose it by the annotation heddle.dev/NAME (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Where sidecars find the control plane
    #[arg(long, value_name = "HOST:PORT")]
    control_plane: Option<String>,
}

/// Takes the sidecars from the pods of manifests that were injected
#[derive(Args, Debug)]
pub(crate) struct UninjectArgs {
    #[command(flatten)]
    files: Files,
}

#[derive(Args, Debug)]
struct Files {
    /// Files of YAML or JSON, folders of them, or - for standard input [default: -]
    #[arg(value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Descends into the folders of folders
    #[arg(long, short = 'R')]
    recursive: bool,
}

/// Runs `heddle inject`.
pub(crate) fn inject(args: &InjectArgs) -> anyhow::Result<ExitCode> {
    let mut defaults = Options::default();
    for setting in &args.set {
        let (name, value) =
            setting.split_once('=').with_context(|| format!("--set {setting}: is written NAME=VALUE"))?;
        defaults.set(name, value).with_context(|| format!("--set {setting}"))?;
    }
    if let Some(image) = &args.image {
        defaults.set("sidecar-image", image).context("--image")?;
    }
    if args.no_native_sidecar {
        defaults.set("native-sidecar", "disabled").context("--no-native-sidecar")?;
    }
    let mut injector = Injector { defaults, ..Injector::default() };
    if let Some(control_plane) = &args.control_plane {
        // Every pod would fail for it, one by one.
        let port =
            control_plane.rsplit_once(':').filter(|(host, _)| is_host(host)).map(|(_, port)| port.parse());
        if !matches!(port, Some(Ok(1..=u16::MAX))) {
            bail!("--control-plane {control_plane}: is written HOST:PORT");
        }
        injector.control_plane.clone_from(control_plane);
    }
    run(&args.files, Action::Inject(&injector))
}

/// Whether it could be a name or an address.
fn is_host(host: &str) -> bool {
    !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c))
}

/// Runs `heddle uninject`.
pub(crate) fn uninject(args: &UninjectArgs) -> anyhow::Result<ExitCode> {
    run(&args.files, Action::Remove)
}

fn run(files: &Files, action: Action<'_>) -> anyhow::Result<ExitCode> {
    let (mut output, mut refused) = (String::new(), false);
    for (name, text) in files.read()? {
        match manifest::act(&text, action) {
            Ok(stream) => {
                stream.lines.iter().for_each(|line| output::complain(&line.to_string()));
                manifest::join(&mut output, &stream.text);
            }
            Err(faults) => {
                refused = true;
                faults.iter().for_each(|fault| output::complain(&format!("{name}: {fault}")));
            }
        }
    }
    if refused {
        output::complain("heddle: nothing was written, because of the errors above");
        return Ok(ExitCode::FAILURE);
    }
    output::print(&output)?;
    Ok(ExitCode::SUCCESS)
}

impl Files {
    /// The texts to work on, each with its name, in order.
    fn read(&self) -> anyhow::Result<Vec<(String, String)>> {
        if self.files.is_empty() {
            return Ok(vec![standard_input()?]);
        }
        let mut texts = Vec::new();
        for path in &self.files {
            if path.as_os_str() == "-" {
                texts.push(standard_input()?);
            } else if path.is_dir() {
                let before = texts.len();
                self.folder(path, &mut texts)?;
                if texts.len() == before {
                    bail!("{}: holds no .yaml, .yml or .json file", path.display());
                }
            } else {
                texts.push(file(path)?);
            }
        }
        Ok(texts)
    }

    /// The manifests of a folder by name, as kubectl takes them.
    fn folder(&self, folder: &Path, texts: &mut Vec<(String, String)>) -> anyhow::Result<()> {
        let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            let is_manifest = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if path.is_dir() {
                // What a link leads to may be what it is in.
                if self.recursive && !path.is_symlink() {
                    self.folder(&path, texts)?;
                }
            } else if is_manifest {
                texts.push(file(&path)?);
            }
        }
        Ok(())
    }
}

fn file(path: &Path) -> anyhow::Result<(String, String)> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).with_context(|| name.clone())?;
    Ok((name, text))
}

fn standard_input() -> anyhow::Result<(String, String)> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("standard input")?;
    Ok(("standard input".into(), text))
}
