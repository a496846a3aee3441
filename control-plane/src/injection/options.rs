//! What can be chosen for each pod, by annotations of the pod or as a default
//! for all of them: one table of names for both.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use heddle_api::crd::{GatewayDuration, Violation};
use ipnet::IpNet;
use serde_json::{Map, Value};

use super::quantity;

/// What every annotation and label of Heddle begins with.
pub(super) const PREFIX: &str = "heddle.dev/";

/// Choices about injection; `None` leaves a choice to the next that is asked:
/// the pod's annotations, then the mesh's defaults, then Heddle's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub(super) skip_inbound_ports: Option<Ports>,
    pub(super) skip_outbound_ports: Option<Ports>,
    pub(super) skip_outbound_cidrs: Option<Vec<IpNet>>,
    pub(super) log_level: Option<String>,
    pub(super) image: Option<String>,
    pub(super) image_pull_policy: Option<String>,
    pub(super) cpu_request: Option<String>,
    pub(super) cpu_limit: Option<String>,
    pub(super) memory_request: Option<String>,
    pub(super) memory_limit: Option<String>,
    pub(super) drain_delay: Option<String>,
    pub(super) native_sidecar: Option<bool>,
    pub(super) interception: Option<Interception>,
}

/// Who makes the rules that lead a pod's traffic through its sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interception {
    /// An init container of the pod.
    Init,
    /// The same by the programs of iptables, which the image must have.
    Iptables,
    /// A CNI plugin on the node, so that the pod needs no privilege.
    Cni,
}

/// Ports and ranges of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    pub(super) fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// Every name that [`Options::set`] knows, as errors list them.
pub const OPTION_NAMES: [&str; 13] = [
    "skip-inbound-ports",
    "skip-outbound-ports",
    "skip-outbound-cidrs",
    "log-level",
    "sidecar-image",
    "sidecar-image-pull-policy",
    "sidecar-cpu-request",
    "sidecar-cpu-limit",
    "sidecar-memory-request",
    "sidecar-memory-limit",
    "drain-delay",
    "native-sidecar",
    "interception",
];

/// A choice that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOption {
    /// There is no such name.
    #[error("there is no such option; there are {}", OPTION_NAMES.join(", "))]
    Unknown,
    /// The value is not one that the option can have.
    #[error("{value:?} is not {expected}")]
    Value {
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
}

/// No pod needs more exceptions than this; each is a rule that packets pass.
const MAX_ELEMENTS: usize = 64;

/// Longer than any image's name with registry, tag and digest.
const MAX_TEXT: usize = 512;

impl Options {
    /// Chooses one option by its name, the annotation's without `heddle.dev/`.
    ///
    /// # Errors
    /// If there is no such option, or the value is impossible.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), InvalidOption> {
        let invalid = |expected| InvalidOption::Value { value: value.to_owned(), expected };
        let choice = |first: &str, second: &str, expected| match value {
            _ if value == first => Ok(true),
            _ if value == second => Ok(false),
            _ => Err(invalid(expected)),
        };
        let text = |fits: &dyn Fn(&str) -> bool, expected| {
            let fits = !value.is_empty() && value.len() <= MAX_TEXT && fits(value);
            if fits { Ok(Some(value.to_owned())) } else { Err(invalid(expected)) }
        };
        let amount = |expected| text(&|value| quantity::nanos(value).is_some(), expected);
        const CPU: &str = "a positive amount of CPU such as 100m or 0.5";
        const MEMORY: &str = "a positive amount of memory such as 64Mi";
        match name {
            "skip-inbound-ports" => self.skip_inbound_ports = Some(ports(value).map_err(invalid)?),
            "skip-outbound-ports" => self.skip_outbound_ports = Some(ports(value).map_err(invalid)?),
            "skip-outbound-cidrs" => self.skip_outbound_cidrs = Some(cidrs(value).map_err(invalid)?),
            "log-level" => {
                self.log_level = text(&is_log_filter, "a level (error, warn, info, debug, trace) or filter")?;
            }
            "sidecar-image" => self.image = text(&is_image, "an image such as heddle/sidecar:0.1.0")?,
            "sidecar-image-pull-policy" => {
                let known = |value: &str| matches!(value, "Always" | "IfNotPresent" | "Never");
                self.image_pull_policy = text(&known, "one of Always, IfNotPresent, Never")?;
            }
            "sidecar-cpu-request" => self.cpu_request = amount(CPU)?,
            "sidecar-cpu-limit" => self.cpu_limit = amount(CPU)?,
            "sidecar-memory-request" => self.memory_request = amount(MEMORY)?,
            "sidecar-memory-limit" => self.memory_limit = amount(MEMORY)?,
            "drain-delay" => {
                let duration = |value: &str| value.parse::<GatewayDuration>().is_ok();
                self.drain_delay = text(&duration, "a duration such as 5s or 1m30s")?;
            }
            "native-sidecar" => {
                self.native_sidecar = Some(choice("enabled", "disabled", "enabled or disabled")?);
            }
            "interception" => {
                self.interception = Some(match value {
                    "init" => Interception::Init,
                    "iptables" => Interception::Iptables,
                    "cni" => Interception::Cni,
                    _ => return Err(invalid("one of init, iptables, cni")),
                });
            }
            _ => return Err(InvalidOption::Unknown),
        }
        Ok(())
    }

    /// Chooses classic sidecars, unless somebody chose, for a cluster whose API server has this version
    /// and no native ones yet (KEP-753: on by default from Kubernetes 1.29). Says whether it did. What is no
    /// version says nothing.
    pub(crate) fn suit(&mut self, major: &str, minor: &str) -> bool {
        // Distributions write `28+`.
        let number = |text: &str| {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text[..end].parse::<u32>().ok()
        };
        let version = number(major).zip(number(minor));
        let classic = self.native_sidecar.is_none() && version.is_some_and(|version| version < (1, 29));
        if classic {
            self.native_sidecar = Some(false);
        }
        classic
    }

    /// These choices, with those of `defaults` where there are none.
    #[must_use]
    pub fn over(self, defaults: &Self) -> Self {
        let defaults = defaults.clone();
        Self {
            skip_inbound_ports: self.skip_inbound_ports.or(defaults.skip_inbound_ports),
            skip_outbound_ports: self.skip_outbound_ports.or(defaults.skip_outbound_ports),
            skip_outbound_cidrs: self.skip_outbound_cidrs.or(defaults.skip_outbound_cidrs),
            log_level: self.log_level.or(defaults.log_level),
            image: self.image.or(defaults.image),
            image_pull_policy: self.image_pull_policy.or(defaults.image_pull_policy),
            cpu_request: self.cpu_request.or(defaults.cpu_request),
            cpu_limit: self.cpu_limit.or(defaults.cpu_limit),
            memory_request: self.memory_request.or(defaults.memory_request),
            memory_limit: self.memory_limit.or(defaults.memory_limit),
            drain_delay: self.drain_delay.or(defaults.drain_delay),
            native_sidecar: self.native_sidecar.or(defaults.native_sidecar),
            interception: self.interception.or(defaults.interception),
        }
    }

    /// What the annotations of a pod choose. Annotations of others are none of
    /// our business; an unknown one of ours is refused, because what it asks
    /// for would not happen.
    pub(super) fn of_annotations(annotations: &Map<String, Value>, violations: &mut Vec<Violation>) -> Self {
        let mut options = Self::default();
        for (key, value) in annotations {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if matches!(name, "inject" | "injected" | "default-container") {
                continue;
            }
            let result = options.set(name, value.as_str().unwrap_or_default());
            if let Err(error) = result {
                let path = format!("metadata.annotations[{key}]");
                violations.push(Violation { path, message: error.to_string() });
            }
        }
        options
    }

    /// What two choices say together, wherever each comes from.
    pub(super) fn relate(&self, violations: &mut Vec<Violation>) {
        for (what, request, limit) in [
            ("cpu", &self.cpu_request, &self.cpu_limit),
            ("memory", &self.memory_request, &self.memory_limit),
        ] {
            let (Some(request), Some(limit)) = (request, limit) else { continue };
            if quantity::nanos(request) > quantity::nanos(limit) {
                violations.push(Violation {
                    path: format!("metadata.annotations[{PREFIX}sidecar-{what}-limit]"),
                    message: format!("{limit:?} is below the request, {request:?}"),
                });
            }
        }
    }
}

/// The elements of a list with commas; an empty text is an empty list.
fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|_| !text.trim().is_empty())
}

fn ports(text: &str) -> Result<Ports, &'static str> {
    let port = |text: &str| text.trim().parse().ok().filter(|port| *port != 0);
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(port(first)?..=port(last)?).filter(|range| !range.is_empty())
    };
    let ports: Option<Vec<_>> = elements(text).take(MAX_ELEMENTS + 1).map(range).collect();
    let ports = ports.ok_or("a list of ports between 1 and 65535, such as 25,8000-8010")?;
    if ports.len() > MAX_ELEMENTS { Err("a list of at most 64 ports") } else { Ok(Ports(ports)) }
}

fn cidrs(text: &str) -> Result<Vec<IpNet>, &'static str> {
    let address = |text: &str| text.parse::<IpAddr>().ok().map(IpNet::from);
    let net = |text: &str| {
        text.parse::<IpNet>().ok().or_else(|| address(text)).filter(|net| net.addr() == net.network())
    };
    let nets: Option<Vec<_>> = elements(text).take(MAX_ELEMENTS + 1).map(net).collect();
    let nets = nets.ok_or("a list of networks such as 10.1.0.0/16,fd00::/8")?;
    if nets.len() > MAX_ELEMENTS { Err("a list of at most 64 networks") } else { Ok(nets) }
}

fn is_image(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@".contains(c))
}

/// Whether it could be a tracing filter; the sidecar knows which filters there are.
fn is_log_filter(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "_=,:[]{}-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_known() {
        for name in OPTION_NAMES {
            assert_ne!(Options::default().set(name, "\u{0}"), Err(InvalidOption::Unknown), "{name}");
        }
        assert_eq!(Options::default().set("sidecar-cpu", "1"), Err(InvalidOption::Unknown));
    }

    #[test]
    fn impossible_values_say_what_would_do() {
        for (name, value, expected) in [
            ("skip-inbound-ports", "80,http", "ports between"),
            ("skip-outbound-ports", "0", "ports between"),
            ("skip-outbound-ports", "80,", "ports between"),
            ("skip-outbound-cidrs", "10.1.2.3/16", "networks"),
            ("skip-outbound-cidrs", "10.0.0", "networks"),
            ("skip-inbound-ports", "90-80", "ports between"),
            ("sidecar-image", "", "image"),
            ("sidecar-image", "heddle sidecar", "image"),
            ("sidecar-cpu-limit", "a lot", "CPU"),
            ("sidecar-memory-request", "-1Mi", "memory"),
            ("drain-delay", "5", "duration"),
            ("native-sidecar", "true", "enabled or disabled"),
            ("interception", "ebpf", "one of init, iptables, cni"),
            ("log-level", "info\n", "level"),
            ("sidecar-image-pull-policy", "always", "IfNotPresent"),
        ] {
            let error = Options::default().set(name, value).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}={value}: {error}");
        }
        let many = vec!["80"; 65].join(",");
        assert!(Options::default().set("skip-inbound-ports", &many).is_err());
    }

    #[test]
    fn sidecars_are_classic_where_the_cluster_knows_no_others() {
        for (major, minor, classic) in
            [("1", "28", true), ("1", "28+", true), ("1", "29", false), ("1", "36", false), ("", "", false)]
        {
            let mut options = Options::default();
            assert_eq!(options.suit(major, minor), classic, "{major}.{minor}");
            assert_eq!(options.native_sidecar, classic.then_some(false), "{major}.{minor}");
        }
        let mut options = Options::default();
        options.set("native-sidecar", "enabled").unwrap();
        assert!(!options.suit("1", "28") && options.native_sidecar == Some(true));
    }

    #[test]
    fn empty_lists_take_defaults_back() {
        let mut defaults = Options::default();
        defaults.set("skip-outbound-ports", "25, 8000-8010").unwrap();
        let mut own = Options::default();
        own.set("skip-outbound-ports", "").unwrap();
        let ports = |options: Options| options.over(&defaults).skip_outbound_ports.unwrap().to_string();
        assert_eq!(ports(own), "");
        assert_eq!(ports(Options::default()), "25,8000-8010");
    }
}
