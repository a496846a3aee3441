//! Where a sidecar's join token comes from: a file, or, beside a control
//! plane of the same user on the same machine, that one's own key.
//!
//! Reading the other's key is no way around its consent: whoever may read it
//! could run `heddle-control-plane token` as well.

use std::fs;
use std::io;
use std::net::ToSocketAddrs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use heddle_api::join_token::{JoinToken, RootHash, TokenKey, TokenRefused};
use heddle_api::runtime_file::RuntimeFile;
use heddle_api::spiffe::SpiffeId;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::settings::Workload;
use crate::{runtime_dir, sys};

/// A minted token is used at once; the rest is for slow machines and clocks.
const MINTED_LIFETIME: Duration = Duration::from_secs(300);

/// Where to look for a token.
#[derive(Debug, Clone)]
pub(crate) struct TokenSource {
    /// `--join-token`.
    file: Option<PathBuf>,
    /// `HOST:PORT` of the control plane.
    control_plane: String,
    workload: Workload,
}

/// Why there is no usable token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoToken {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{}: {error}", path.display())]
    Malformed { path: PathBuf, error: TokenRefused },
    #[error(
        "the join token is for {token} and service {service:?}, but this workload is {workload} with service account {account:?}"
    )]
    OtherWorkload { token: SpiffeId, service: String, workload: String, account: String },
    #[error(
        "there is no join token: no --join-token FILE was given, and {control_plane} is no control plane of this user on this machine ({reason}); \
         `heddle-control-plane token --service {service} --namespace {namespace}` makes one where the control plane runs"
    )]
    NotLocal { control_plane: String, reason: String, service: String, namespace: String },
    #[error("{}: {reason}", path.display())]
    DataDir { path: PathBuf, reason: String },
}

impl TokenSource {
    pub(crate) fn new(file: Option<PathBuf>, control_plane: &str, workload: &Workload) -> Self {
        Self { file, control_plane: control_plane.to_owned(), workload: workload.clone() }
    }

    /// A token as text, and what it says. Files are read each time: they may
    /// have been replaced.
    pub(crate) fn token(&self) -> Result<(String, JoinToken), NoToken> {
        let (text, token) = match &self.file {
            Some(path) => {
                let text =
                    fs::read_to_string(path).map_err(|error| NoToken::File { path: path.clone(), error })?;
                let token = JoinToken::read(&text)
                    .map_err(|error| NoToken::Malformed { path: path.clone(), error })?;
                (text.trim().to_owned(), token)
            }
            None => self.mint()?,
        };
        let service = &self.workload.service;
        let same = token.identity.namespace() == service.namespace()
            && token.identity.account() == self.workload.account
            && token.service == service.name();
        if !same {
            return Err(NoToken::OtherWorkload {
                token: token.identity,
                service: token.service,
                workload: service.to_string(),
                account: self.workload.account.clone(),
            });
        }
        Ok((text, token))
    }

    fn mint(&self) -> Result<(String, JoinToken), NoToken> {
        let service = &self.workload.service;
        let data_dir = self.data_dir().map_err(|reason| NoToken::NotLocal {
            control_plane: self.control_plane.clone(),
            reason,
            service: service.name().into(),
            namespace: service.namespace().into(),
        })?;
        let key = token_key(&data_dir.join("token.key"))?;
        let path = data_dir.join("ca.pem");
        let bad = |reason: String| NoToken::DataDir { path: path.clone(), reason };
        let pem = fs::read(&path).map_err(|error| bad(error.to_string()))?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| bad(error.to_string()))?;
        let root = chain.last().ok_or_else(|| bad("it holds no certificate".into()))?;
        let domain = heddle_api::x509::trust_domain(root)
            .ok_or_else(|| bad("the root names no trust domain".into()))?;
        let identity = SpiffeId::new(&domain, service.namespace(), &self.workload.account)
            .expect("settings were checked to make an identity");
        let token = JoinToken {
            identity,
            service: service.name().into(),
            expires: SystemTime::now() + MINTED_LIFETIME,
            roots: vec![RootHash::of(root)],
        };
        Ok((token.mint(&key), token))
    }

    /// The data directory of the local control plane, or why there is none.
    fn data_dir(&self) -> Result<PathBuf, String> {
        let mut addresses = self.control_plane.to_socket_addrs().map_err(|error| error.to_string())?;
        let address = addresses.find(|a| a.ip().is_loopback()).ok_or("the address is not loopback")?;
        let path = runtime_dir::path().join(RuntimeFile::name(address.port()));
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!("there is no {}", path.display()));
            }
            other => other.map_err(|error| format!("{}: {error}", path.display()))?,
        };
        if !owned_by_us(&path).unwrap_or(false) {
            return Err(format!("{} belongs to another user", path.display()));
        }
        let file: RuntimeFile =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(file.data_dir.into())
    }
}

fn token_key(path: &Path) -> Result<TokenKey, NoToken> {
    let secret = fs::read(path).map_err(|error| NoToken::File { path: path.into(), error })?;
    let reason = || format!("it is not a key of {} bytes", TokenKey::LENGTH);
    let secret: &[u8; TokenKey::LENGTH] =
        secret.as_slice().try_into().map_err(|_| NoToken::DataDir { path: path.into(), reason: reason() })?;
    Ok(TokenKey::new(secret))
}

/// In `/tmp` anybody could have put a file there before our control plane did.
fn owned_by_us(path: &Path) -> io::Result<bool> {
    let directory = path.parent().unwrap_or(path);
    let (uid, _) = sys::effective_ids();
    Ok(fs::metadata(path)?.uid() == uid && fs::metadata(directory)?.uid() == uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::WorkloadArgs;

    fn workload(service: &str) -> Workload {
        let args = WorkloadArgs {
            service: Some(service.into()),
            namespace: "shop".into(),
            ..WorkloadArgs::default()
        };
        args.resolve().unwrap()
    }

    fn file(service: &str) -> tempfile::NamedTempFile {
        let token = JoinToken {
            identity: format!("spiffe://mesh.local/ns/shop/sa/{service}").parse().unwrap(),
            service: service.into(),
            expires: SystemTime::now() + Duration::from_secs(60),
            roots: Vec::new(),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), token.mint(&TokenKey::new(&[1; 32]))).unwrap();
        file
    }

    #[test]
    fn a_token_file_is_for_one_workload() {
        let file = file("users");
        let source = |service| TokenSource::new(Some(file.path().into()), "127.0.0.1:1", &workload(service));
        assert_eq!(source("users").token().unwrap().1.service, "users");
        assert!(matches!(source("orders").token(), Err(NoToken::OtherWorkload { .. })));
    }

    #[test]
    fn without_any_source_the_error_says_what_to_do() {
        let source = TokenSource::new(None, "192.0.2.1:7200", &workload("users"));
        let error = source.token().unwrap_err().to_string();
        assert!(error.contains("not loopback") && error.contains("heddle-control-plane token"), "{error}");
    }
}
