//! What can be set, in three shapes: [`Args`] as a person writes it (flags
//! over `HEDDLE_*` variables over the YAML file of `--config`, whose keys are
//! the flags in camelCase), [`Settings`] as the control plane uses it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use heddle_api::name::ServiceName;
use heddle_api::spiffe::TrustDomain;
use serde::{Deserialize, Deserializer};

use crate::ca::Authority;
use crate::ca::store::{DataDir, GivenAuthority, StoreError};
use crate::injection::Options;
use crate::kubernetes::client::Cluster;
use crate::source::SourceSpec;
use crate::token::default_data_dir;

/// Where discovery and identity listen unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7200);

/// Where the admin listener is tried first.
pub const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7290);

/// Where the webhooks of a cluster listen unless told otherwise.
pub const DEFAULT_WEBHOOK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7210);

/// The trust domain of a mesh that was not given one.
pub const DEFAULT_TRUST_DOMAIN: &str = "heddle.local";

/// All flags of the control plane; each is a key of the file, too.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Args {
    /// Where objects come from: dir:PATH, a folder of manifests; kubernetes, the cluster that this runs
    /// in or that of the kubeconfig; kubernetes:CONTEXT of the kubeconfig (repeatable)
    #[arg(long = "source", value_name = "SOURCE", env = "HEDDLE_SOURCE", value_delimiter = ',')]
    #[serde(rename = "source", deserialize_with = "parsed_list")]
    pub sources: Vec<SourceSpec>,
    /// Where discovery and identity listen [default: 127.0.0.1:7200]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Where the admin listener binds [default: 127.0.0.1:7290, or any free port where that is taken]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_ADMIN")]
    pub admin: Option<SocketAddr>,
    /// How long certificates last, at least 1m [default: 24h]
    #[arg(long, value_name = "DURATION", env = "HEDDLE_CERTIFICATE_LIFETIME", value_parser = parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub certificate_lifetime: Option<Duration>,
    /// How long a workload stays registered after its sidecar's stream was lost [default: 5s]
    #[arg(long, value_name = "DURATION", env = "HEDDLE_REGISTRATION_GRACE", value_parser = parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub registration_grace: Option<Duration>,
    /// Ends when no sidecar has been connected for this long [default: never]
    #[arg(long, value_name = "DURATION", env = "HEDDLE_IDLE_EXIT", value_parser = parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub idle_exit: Option<Duration>,
    /// How long open streams may take to end at shutdown [default: 5s]
    #[arg(long, value_name = "DURATION", env = "HEDDLE_DRAIN_TIMEOUT", value_parser = parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Option<Duration>,
    /// Where the admission webhooks listen [default: 0.0.0.0:7210 with a Kubernetes source, else nowhere]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_WEBHOOK")]
    pub webhook: Option<SocketAddr>,
    /// A choice for injected pods that do not make it by the annotation heddle.dev/NAME (repeatable;
    /// in the variable separated by ;)
    #[arg(
        long = "inject-default",
        value_name = "NAME=VALUE",
        env = "HEDDLE_INJECT_DEFAULT",
        value_delimiter = ';'
    )]
    #[serde(rename = "injectDefault")]
    pub inject_defaults: Vec<String>,
    /// The namespace of the control plane itself, of a Kubernetes source [default: that of the pod, or heddle-system]
    #[arg(long, value_name = "NAME", env = "HEDDLE_NAMESPACE")]
    pub namespace: Option<String>,
    /// What tells this replica from the others, of a Kubernetes source [default: the host's name]
    #[arg(long, value_name = "NAME", env = "HEDDLE_POD_NAME")]
    pub pod_name: Option<String>,
    /// The cluster's domain, the end of qualified service names [default: cluster.local]
    #[arg(long, value_name = "DOMAIN", env = "HEDDLE_CLUSTER_DOMAIN")]
    pub cluster_domain: Option<String>,
    /// What is logged: a level (error, warn, info, debug, trace) or a tracing filter [default: info]
    #[arg(long, value_name = "FILTER", env = "HEDDLE_LOG_LEVEL")]
    pub log_level: Option<String>,
    /// How it is logged: plain or json [default: plain]
    #[arg(long, value_name = "FORMAT", env = "HEDDLE_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Keys and trust.
    #[command(flatten)]
    #[serde(flatten)]
    pub ca: CaArgs,
    /// A YAML file with settings: each flag's name in camelCase
    #[arg(long, value_name = "FILE", env = "HEDDLE_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// Flags about keys and trust.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaArgs {
    /// Where the certificate authority and the token key are kept [default: $XDG_DATA_HOME/heddle]
    #[arg(long, value_name = "DIR", env = "HEDDLE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The trust domain of all identities [default: heddle.local]
    #[arg(long, value_name = "DOMAIN", env = "HEDDLE_TRUST_DOMAIN")]
    pub trust_domain: Option<String>,
    /// A CA certificate to use instead of a self-made root: PEM, the issuing certificate first, its root last
    #[arg(long, value_name = "FILE", env = "HEDDLE_CA_CERT", requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,
    /// The private key of that certificate
    #[arg(long, value_name = "FILE", env = "HEDDLE_CA_KEY", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
}

/// A cluster that the control plane does not only read: its authority is kept there, its pods prove
/// themselves by their tokens, and what became of policies is written to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Which one.
    pub cluster: Cluster,
    /// The control plane's own namespace.
    pub namespace: String,
    /// What tells this replica from the others.
    pub pod_name: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// One JSON object per line.
    Json,
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where objects come from, merged.
    pub sources: Vec<SourceSpec>,
    /// Where discovery and identity listen.
    pub listen: SocketAddr,
    /// Where the admin listener binds; `None`: the default, or any free port where that is taken.
    pub admin: Option<SocketAddr>,
    /// Where the admission webhooks listen.
    pub webhook: Option<SocketAddr>,
    /// What injected pods have unless they choose otherwise.
    pub inject_defaults: Options,
    /// Keys and trust.
    pub authority: AuthoritySettings,
    /// The cluster among the sources, if there is one.
    pub cluster: Option<ClusterSettings>,
    /// How long a workload stays after its stream was lost.
    pub registration_grace: Duration,
    /// Ends when no sidecar has been connected for this long.
    pub idle_exit: Option<Duration>,
    /// How long open streams may take to end at shutdown.
    pub drain_timeout: Duration,
    /// The end of qualified service names.
    pub cluster_domain: String,
    /// What is logged, as a tracing filter.
    pub log_level: String,
    /// How it is logged.
    pub log_format: LogFormat,
}

/// Where keys are, and what they sign.
#[derive(Debug, Clone)]
pub struct AuthoritySettings {
    /// Keeps the authority and the token key, save in a cluster; `None`: there is no home directory.
    pub data_dir: Option<PathBuf>,
    /// The trust domain of all identities.
    pub trust_domain: TrustDomain,
    /// How long certificates last.
    pub certificate_lifetime: Duration,
    pub(crate) given: Option<GivenAuthority>,
}

/// Settings that contradict each other or say nothing sensible.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// The file cannot be read.
    #[error("--config: {}: {error}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file is no YAML, or has something that is no setting.
    #[error("--config: {}: {message}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where, and what is wrong.
        message: String,
    },
    /// A trust domain that no identity can carry.
    #[error("--trust-domain: {0}")]
    TrustDomain(#[from] heddle_api::spiffe::InvalidSpiffeId),
    /// A lifetime that sidecars cannot keep up with.
    #[error("--certificate-lifetime: {0:?} is shorter than a minute")]
    Lifetime(Duration),
    /// One without the other, in the file.
    #[error("--ca-cert and --ca-key are given together or not at all")]
    HalfAuthority,
    /// A second place for what is kept in a Secret.
    #[error(
        "--ca-cert: with a Kubernetes source the certificate authority is that of Secret heddle-ca; put it there"
    )]
    AuthorityInCluster,
    /// There is one place for statuses and keys.
    #[error("--source: there can be one Kubernetes cluster at most")]
    SeveralClusters,
    /// No choice about injection.
    #[error("--inject-default: {setting:?}: {why}")]
    InjectDefault {
        /// What was written.
        setting: String,
        /// What is wrong with it.
        why: String,
    },
    /// No name of a namespace.
    #[error("--namespace: {0:?} is no name of a namespace")]
    Namespace(String),
    /// No end of names.
    #[error("--cluster-domain: {0:?} is no domain such as cluster.local")]
    ClusterDomain(String),
    /// A directory that is not a folder.
    #[error("--source: {} is no folder", .0.display())]
    Source(PathBuf),
}

/// Below that, renewal at half of it meets the time that a handshake and a retry take.
const MIN_LIFETIME: Duration = Duration::from_secs(60);
const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Outlives a sidecar's reconnect after a broken connection; shorter than
/// anyone waits for a workload that is really gone to disappear.
const DEFAULT_GRACE: Duration = Duration::from_secs(5);
const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

impl Args {
    /// The settings of these flags, filled in from the file that they name.
    ///
    /// # Errors
    /// If the file cannot be read, or a value is impossible.
    pub fn resolve(self) -> Result<Settings, InvalidSettings> {
        let file = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let set = self.over(file);
        let mut authority = set.ca.resolve()?;
        authority.certificate_lifetime = set.certificate_lifetime.unwrap_or(DEFAULT_LIFETIME);
        if authority.certificate_lifetime < MIN_LIFETIME {
            return Err(InvalidSettings::Lifetime(authority.certificate_lifetime));
        }
        for source in &set.sources {
            match source {
                SourceSpec::Folder(path) if !path.is_dir() => {
                    return Err(InvalidSettings::Source(path.clone()));
                }
                SourceSpec::Folder(_) | SourceSpec::Kubernetes(_) => {}
            }
        }
        let cluster = cluster(&set.sources, set.namespace, set.pod_name)?;
        if cluster.is_some() && authority.given.is_some() {
            return Err(InvalidSettings::AuthorityInCluster);
        }
        let webhook = set.webhook.or(cluster.is_some().then_some(DEFAULT_WEBHOOK));
        let cluster_domain =
            set.cluster_domain.unwrap_or_else(|| heddle_api::name::DEFAULT_CLUSTER_DOMAIN.into());
        // Of labels, as services' names are.
        if !cluster_domain.split('.').all(|label| ServiceName::new("default", label).is_ok()) {
            return Err(InvalidSettings::ClusterDomain(cluster_domain));
        }
        Ok(Settings {
            webhook,
            inject_defaults: inject_defaults(&set.inject_defaults)?,
            cluster,
            sources: set.sources,
            listen: set.listen.unwrap_or(DEFAULT_LISTEN),
            admin: set.admin,
            authority,
            registration_grace: set.registration_grace.unwrap_or(DEFAULT_GRACE),
            idle_exit: set.idle_exit,
            drain_timeout: set.drain_timeout.unwrap_or(DEFAULT_DRAIN),
            cluster_domain,
            log_level: set.log_level.unwrap_or_else(|| "info".into()),
            log_format: set.log_format.unwrap_or_default(),
        })
    }

    fn over(self, file: Self) -> Self {
        Self {
            sources: if self.sources.is_empty() { file.sources } else { self.sources },
            listen: self.listen.or(file.listen),
            admin: self.admin.or(file.admin),
            certificate_lifetime: self.certificate_lifetime.or(file.certificate_lifetime),
            registration_grace: self.registration_grace.or(file.registration_grace),
            idle_exit: self.idle_exit.or(file.idle_exit),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            webhook: self.webhook.or(file.webhook),
            inject_defaults: if self.inject_defaults.is_empty() {
                file.inject_defaults
            } else {
                self.inject_defaults
            },
            namespace: self.namespace.or(file.namespace),
            pod_name: self.pod_name.or(file.pod_name),
            cluster_domain: self.cluster_domain.or(file.cluster_domain),
            log_level: self.log_level.or(file.log_level),
            log_format: self.log_format.or(file.log_format),
            ca: CaArgs {
                data_dir: self.ca.data_dir.or(file.ca.data_dir),
                trust_domain: self.ca.trust_domain.or(file.ca.trust_domain),
                ca_cert: self.ca.ca_cert.or(file.ca.ca_cert),
                ca_key: self.ca.ca_key.or(file.ca.ca_key),
            },
            config: self.config,
        }
    }
}

impl CaArgs {
    /// Where keys are, with the default lifetime.
    pub(crate) fn resolve(self) -> Result<AuthoritySettings, InvalidSettings> {
        let given = match (self.ca_cert, self.ca_key) {
            (Some(certificate), Some(key)) => Some(GivenAuthority { certificate, key }),
            (None, None) => None,
            _ => return Err(InvalidSettings::HalfAuthority),
        };
        Ok(AuthoritySettings {
            data_dir: self.data_dir.or_else(default_data_dir),
            trust_domain: self.trust_domain.as_deref().unwrap_or(DEFAULT_TRUST_DOMAIN).parse()?,
            certificate_lifetime: DEFAULT_LIFETIME,
            given,
        })
    }
}

impl AuthoritySettings {
    /// The self-made authority of the directory at `data_dir`.
    pub fn in_directory(data_dir: PathBuf, trust_domain: TrustDomain) -> Self {
        Self { data_dir: Some(data_dir), trust_domain, certificate_lifetime: DEFAULT_LIFETIME, given: None }
    }

    /// The directory that keeps keys.
    pub(crate) fn open(&self) -> Result<DataDir, StoreError> {
        DataDir::open(self.data_dir.as_deref().ok_or(StoreError::Nowhere)?)
    }

    pub(crate) fn load(&self, data: &DataDir, now: SystemTime) -> Result<Authority, StoreError> {
        match &self.given {
            Some(given) => given.load(&self.trust_domain, self.certificate_lifetime, now),
            None => data.authority(&self.trust_domain, self.certificate_lifetime, now),
        }
    }
}

fn inject_defaults(settings: &[String]) -> Result<Options, InvalidSettings> {
    let mut options = Options::default();
    for setting in settings {
        let invalid = |why: String| InvalidSettings::InjectDefault { setting: setting.clone(), why };
        let (name, value) = setting.split_once('=').ok_or_else(|| invalid("is written NAME=VALUE".into()))?;
        options.set(name.trim(), value).map_err(|error| invalid(error.to_string()))?;
    }
    Ok(options)
}

/// Where the kubelet tells a pod its namespace.
const POD_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// The namespace of a control plane that is in none.
pub(crate) const DEFAULT_NAMESPACE: &str = "heddle-system";

/// The cluster among `sources`.
fn cluster(
    sources: &[SourceSpec],
    namespace: Option<String>,
    pod_name: Option<String>,
) -> Result<Option<ClusterSettings>, InvalidSettings> {
    let mut clusters = sources.iter().filter_map(|source| match source {
        SourceSpec::Kubernetes(cluster) => Some(cluster),
        SourceSpec::Folder(_) => None,
    });
    let Some(cluster) = clusters.next() else { return Ok(None) };
    if clusters.next().is_some() {
        return Err(InvalidSettings::SeveralClusters);
    }
    let of_pod = || std::fs::read_to_string(POD_NAMESPACE).ok().map(|name| name.trim().to_owned());
    let namespace = namespace.or_else(of_pod).unwrap_or_else(|| DEFAULT_NAMESPACE.into());
    if ServiceName::new(&namespace, "any").is_err() {
        return Err(InvalidSettings::Namespace(namespace));
    }
    let host = || std::env::var("HOSTNAME").ok();
    let pod_name = pod_name.or_else(host).filter(|name| !name.is_empty());
    let pod_name = pod_name.unwrap_or_else(|| "control-plane".into());
    Ok(Some(ClusterSettings { cluster: cluster.clone(), namespace, pod_name }))
}

/// A duration as manifests write it: `10s`, `250ms`, `1h30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is no duration such as 10s, 250ms or 1h30m"))?;
    Duration::try_from(span).map_err(|_| format!("{text:?} is negative"))
}

fn read(path: &Path) -> Result<Args, InvalidSettings> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| InvalidSettings::Unreadable { path: path.into(), error })?;
    if text.trim().is_empty() {
        return Ok(Args::default());
    }
    serde_saphyr::from_str(&text)
        .map_err(|error| InvalidSettings::Content { path: path.into(), message: error.to_string() })
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

fn parsed_list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SourceSpec>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let texts = match OneOrMany::deserialize(from)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Tool {
        #[command(flatten)]
        args: Args,
    }

    fn settings(yaml: &str, flags: &[&str]) -> Result<Settings, InvalidSettings> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(yaml.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let words = ["tool", "--config", &path].into_iter().chain(flags.iter().copied());
        Tool::try_parse_from(words).unwrap().args.resolve()
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let yaml = "listen: 127.0.0.1:1\ndataDir: /data\ncertificateLifetime: 10m\nsource: dir:/tmp\n\
                    trustDomain: mesh.example\nlogFormat: json\n";
        let settings = settings(yaml, &["--listen", "127.0.0.1:2"]).unwrap();
        assert_eq!(settings.listen.port(), 2);
        assert_eq!(settings.authority.data_dir.as_deref(), Some(Path::new("/data")));
        assert_eq!(settings.authority.certificate_lifetime, Duration::from_secs(600));
        assert_eq!(settings.authority.trust_domain.as_str(), "mesh.example");
        assert_eq!(settings.sources, [SourceSpec::Folder("/tmp".into())]);
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!(settings.registration_grace, DEFAULT_GRACE);
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for (yaml, part) in [
            ("lisen: 127.0.0.1:1\n", "lisen"),
            ("certificateLifetime: 5s\n", "shorter than a minute"),
            ("certificateLifetime: soon\n", "soon"),
            ("source: cluster\n", "cluster"),
            ("source: dir:/nowhere/at/all\n", "/nowhere/at/all"),
            ("caCert: a.pem\n", "together"),
            ("trustDomain: Not A Domain\n", "--trust-domain"),
            ("source: [kubernetes, kubernetes]\n", "one Kubernetes cluster"),
            ("source: kubernetes\nnamespace: Not.A.Name\n", "--namespace"),
            ("injectDefault: [sidecar-cpu=1]\n", "no such option"),
            ("injectDefault: [log-level]\n", "NAME=VALUE"),
            ("source: kubernetes\ncaCert: a.pem\ncaKey: b.pem\n", "Secret heddle-ca"),
        ] {
            let error = settings(yaml, &[]).unwrap_err().to_string();
            assert!(error.contains(part), "{yaml}: {error}");
        }
    }
}
