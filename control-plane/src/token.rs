//! `heddle-control-plane token`: mints a join token with the key in the data
//! directory. Whoever can read that key can be anyone in the mesh, which is
//! why it is its owner's alone.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use heddle_api::join_token::{JoinToken, RootHash};
use heddle_api::name::{InvalidServiceName, ServiceName};
use heddle_api::spiffe::{InvalidSpiffeId, SpiffeId, TrustDomain};

use crate::ca::store::StoreError;
use crate::settings::{AuthoritySettings, CaArgs, InvalidSettings, parse_duration};

/// Flags of `token`.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// The service that the bearer may register
    #[arg(long, value_name = "NAME", env = "HEDDLE_SERVICE")]
    pub service: String,
    /// Its namespace
    #[arg(long, value_name = "NAME", env = "HEDDLE_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// The service account that the identity names [default: the service's name]
    #[arg(long, value_name = "NAME", env = "HEDDLE_SERVICE_ACCOUNT")]
    pub service_account: Option<String>,
    /// How long the token can be used; certificates obtained with it renew by themselves
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    pub ttl: Duration,
    /// Where the control plane keeps its keys
    #[command(flatten)]
    pub ca: CaArgs,
}

/// A token that is asked for.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// The service that the bearer may register.
    pub service: ServiceName,
    /// The account of its identity.
    pub account: String,
    /// How long the token lasts.
    pub ttl: Duration,
}

/// Why no token was minted; the operator's to mend.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MintError(#[from] Reason);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("--service, --namespace: {0}")]
    Service(#[from] InvalidServiceName),
    #[error("--service-account: {0}")]
    Account(#[from] InvalidSpiffeId),
    #[error("the control plane's own identity is not given away")]
    ControlPlane,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
}

impl TokenArgs {
    /// The token that the flags ask for.
    ///
    /// # Errors
    /// If they do not name an identity, or the keys cannot be read.
    pub fn mint(self) -> Result<String, MintError> {
        let service = ServiceName::new(&self.namespace, &self.service).map_err(Reason::from)?;
        let account = self.service_account.unwrap_or_else(|| service.name().to_owned());
        let authority = self.ca.resolve().map_err(Reason::from)?;
        mint(&TokenRequest { service, account, ttl: self.ttl }, &authority, SystemTime::now())
    }
}

/// A token signed with the key in the data directory of `settings`. The directory is made if need
/// be, so that a token can be minted before the control plane's first start.
///
/// # Errors
/// If the account cannot be named in an identity, or the keys cannot be read.
pub fn mint(
    request: &TokenRequest,
    settings: &AuthoritySettings,
    now: SystemTime,
) -> Result<String, MintError> {
    let domain: &TrustDomain = &settings.trust_domain;
    let identity =
        SpiffeId::new(domain, request.service.namespace(), &request.account).map_err(Reason::from)?;
    if identity == SpiffeId::control_plane(domain) {
        return Err(Reason::ControlPlane.into());
    }
    let data = settings.open().map_err(Reason::from)?;
    let authority = settings.load(&data, now).map_err(Reason::from)?;
    let token = JoinToken {
        identity,
        service: request.service.name().to_owned(),
        expires: now + request.ttl,
        roots: vec![RootHash::of(authority.root())],
    };
    Ok(token.mint(&data.token_key().map_err(Reason::from)?))
}

/// The default place of a data directory: `$XDG_DATA_HOME/heddle` or `~/.local/share/heddle`.
pub(crate) fn default_data_dir() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    // The XDG specification tells to ignore relative paths.
    let base = from("XDG_DATA_HOME").filter(|path| path.is_absolute());
    base.or_else(|| from("HOME").map(|home| home.join(".local/share"))).map(|base| base.join("heddle"))
}
