//! Reads flags, environment and YAML file as one: the file's values become
//! the defaults of the flags, so that all three have the same names, the same
//! forms and the same checks.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use serde_json::Value;

use crate::output;

/// Why the settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// A flag or variable is wrong, or help was asked for: [`clap::Error::exit`] says it well.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// The file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file is no YAML, or has something that is no setting.
    #[error("{path}: {message}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// The key's path, and what is wrong with it.
        message: String,
    },
}

impl Unreadable {
    /// Tells the person and ends the process, with status 0 where help was asked for and 2 otherwise.
    pub fn exit(self) -> ! {
        match self {
            Self::Flags(error) => error.exit(),
            other => {
                output::complain(&format!("error: {other}"));
                std::process::exit(2)
            }
        }
    }
}

/// The command line `args` (with the program's name first) under the settings
/// of the file that `--config` or `HEDDLE_CONFIG` names.
///
/// # Errors
/// If any layer is wrong.
pub fn parse<C: CommandFactory + FromArgMatches>(
    args: impl IntoIterator<Item = OsString>,
) -> Result<C, Unreadable> {
    let args: Vec<OsString> = args.into_iter().collect();
    let command = without_service_links(C::command());
    let plain = command.clone().try_get_matches_from(&args)?;
    let Some((path, trail)) = config_file(&plain) else {
        return Ok(C::from_arg_matches(&plain)?);
    };
    let text =
        std::fs::read_to_string(&path).map_err(|error| Unreadable::File { path: path.clone(), error })?;
    let content = |message: String| Unreadable::Content { path: path.clone(), message };
    let value: Value = serde_saphyr::from_str(&text).map_err(|error| content(error.to_string()))?;
    let command = with_defaults(command, &trail, &value).map_err(content)?;
    // Without the file all was well, so what is wrong now is wrong in the file.
    let matches = command.try_get_matches_from(&args).map_err(|error| content(first_line(&error)))?;
    Ok(C::from_arg_matches(&matches)?)
}

/// `command` as if there were no variables of Services in the environment.
///
/// For every Service of its namespace a pod has variables by which programs found each other before there
/// was DNS (`pkg/kubelet/envvars` of Kubernetes). One that is called `heddle` gives `HEDDLE_PORT` the value
/// `tcp://10.96.0.7:80`, which nobody meant as a setting.
#[must_use]
pub fn without_service_links(command: Command) -> Command {
    let deaf = |arg: Arg| {
        let link = |name: &OsStr| std::env::var_os(name).is_some_and(|value| is_service_link(name, &value));
        if arg.get_env().is_some_and(link) { arg.env(None::<&'static str>) } else { arg }
    };
    command.mut_args(deaf).mut_subcommands(without_service_links)
}

/// Whether a variable is what a container link of Docker's was, as Kubernetes still makes it.
fn is_service_link(name: &OsStr, value: &OsStr) -> bool {
    let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
    name.ends_with("_PORT") && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// The file that the innermost subcommand was told to read, and the way to that subcommand.
fn config_file(matches: &ArgMatches) -> Option<(PathBuf, Vec<String>)> {
    let mut trail = Vec::new();
    let mut matches = matches;
    while let Some((name, inner)) = matches.subcommand() {
        trail.push(name.to_owned());
        matches = inner;
    }
    let path = matches.try_get_one::<PathBuf>("config").ok()??;
    Some((path.clone(), trail))
}

/// `command` with the file's values as defaults of the subcommand at `trail`.
fn with_defaults(command: Command, trail: &[String], file: &Value) -> Result<Command, String> {
    if let Some((first, rest)) = trail.split_first() {
        let mut failure = None;
        let command = command.mut_subcommand(first, |inner| {
            with_defaults(inner.clone(), rest, file).unwrap_or_else(|error| {
                failure = Some(error);
                inner
            })
        });
        return failure.map_or(Ok(command), Err);
    }
    let keys = match file {
        Value::Object(keys) => keys,
        Value::Null => return Ok(command),
        _ => return Err("the settings are not a mapping of names to values".into()),
    };
    let mut command = command;
    for (key, value) in keys {
        let setting = command.get_arguments().find(|arg| key_of(arg).as_deref() == Some(key));
        let Some(setting) = setting.filter(|arg| arg.get_long() != Some("config")) else {
            let mut known: Vec<String> = command.get_arguments().filter_map(key_of).collect();
            known.retain(|known| !matches!(known.as_str(), "config" | "help" | "version"));
            known.sort_unstable();
            return Err(format!("{key}: there is no such setting; there are {}", known.join(", ")));
        };
        let many = matches!(setting.get_action(), ArgAction::Append);
        let defaults = values(key, value, many)?;
        let id = setting.get_id().clone();
        command = command.mut_arg(id, |arg| arg.default_values(defaults));
    }
    Ok(command)
}

/// A setting's key in the file: its flag in camelCase.
fn key_of(arg: &Arg) -> Option<String> {
    let mut key = String::new();
    for (index, word) in arg.get_long()?.split('-').enumerate() {
        match word.chars().next() {
            Some(first) if index > 0 => {
                key.push(first.to_ascii_uppercase());
                key.push_str(&word[1..]);
            }
            _ => key.push_str(word),
        }
    }
    Some(key)
}

/// A value of the file in the form that the flag takes.
fn values(path: &str, value: &Value, many: bool) -> Result<Vec<String>, String> {
    match value {
        Value::Array(items) if many => {
            items.iter().enumerate().map(|(index, item)| scalar(&format!("{path}[{index}]"), item)).collect()
        }
        Value::Object(pairs) if many => pairs
            .iter()
            .map(|(key, value)| Ok(format!("{key}={}", scalar(&format!("{path}.{key}"), value)?)))
            .collect(),
        other => Ok(vec![scalar(path, other)?]),
    }
}

fn scalar(path: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Null => Err(format!("{path}: has no value")),
        Value::Array(_) | Value::Object(_) => Err(format!("{path}: takes one plain value")),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::Parser;

    use super::*;
    use crate::settings::{SidecarArgs, WorkloadArgs};

    #[derive(Parser, Debug)]
    struct Tool {
        #[command(subcommand)]
        command: Sub,
    }

    #[derive(clap::Subcommand, Debug)]
    enum Sub {
        Proxy {
            #[command(flatten)]
            workload: WorkloadArgs,
            #[command(flatten)]
            sidecar: SidecarArgs,
        },
    }

    fn read(yaml: &str, flags: &[&str]) -> Result<(WorkloadArgs, SidecarArgs), Unreadable> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(yaml.as_bytes()).unwrap();
        let mut args: Vec<OsString> = vec!["tool".into(), "proxy".into(), "--config".into()];
        args.push(file.path().into());
        args.extend(flags.iter().map(OsString::from));
        let Tool { command: Sub::Proxy { workload, sidecar } } = parse(args)?;
        Ok((workload, sidecar))
    }

    #[test]
    fn variables_of_services_are_told_from_settings() {
        let is = |name: &str, value: &str| is_service_link(OsStr::new(name), OsStr::new(value));
        assert!(is("HEDDLE_PORT", "tcp://10.96.0.7:80") && is("HEDDLE_PORT", "udp://[fd00::7]:53"));
        assert!(!is("HEDDLE_PORT", "web:80:http") && !is("HEDDLE_PORT", "tcp:80"));
        assert!(!is("HEDDLE_CONTROL_PLANE", "tcp://10.96.0.7:80"));
    }

    #[test]
    fn the_file_fills_in_what_flags_leave_open() {
        let yaml = "service: users\nserviceAccount: clerk\nport: [web:80:http, 9000]\nlabel: {tier: front}\ndrainTimeout: 5s\n";
        let (workload, sidecar) = read(yaml, &["--service", "orders"]).unwrap();
        assert_eq!(workload.service.as_deref(), Some("orders"));
        assert_eq!(workload.service_account.as_deref(), Some("clerk"));
        assert_eq!(workload.port.len(), 2);
        assert_eq!(workload.label[0].key, "tier");
        assert_eq!(sidecar.drain_timeout, Some(std::time::Duration::from_secs(5)));
        let (workload, _) = read(yaml, &["--port", "7000"]).unwrap();
        assert_eq!(workload.port.len(), 1, "a list is replaced, not extended");
    }

    #[test]
    fn what_is_no_setting_is_refused_with_its_path() {
        let refused = |yaml: &str| read(yaml, &[]).unwrap_err().to_string();
        assert!(refused("servcie: users\n").contains("servcie: there is no such setting"));
        assert!(refused("port: [{a: 1}]\n").contains("port[0]: takes one plain value"));
        assert!(refused("workers: 0\n").contains("--workers"));
        assert!(refused("config: other.yaml\n").contains("config: there is no such setting"));
        assert!(refused("- a\n").contains("not a mapping"));
    }
}
