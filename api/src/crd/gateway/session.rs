//! Sessions that stay with an endpoint (GEP-1619).

use serde::Deserialize;

use super::text::{self, HeaderName};
use crate::crd::{GatewayDuration, Violation};

/// Binds a client to an endpoint (`SessionPersistence`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Wire")]
pub struct SessionPersistence {
    /// What carries the session's token.
    pub carrier: SessionCarrier,
    /// A session ends so long after it began.
    pub absolute_timeout: Option<GatewayDuration>,
    /// A session ends so long after it was last used.
    pub idle_timeout: Option<GatewayDuration>,
    /// Settings for cookies were given with another type.
    stray_cookie_config: bool,
}

/// What carries a session's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionCarrier {
    /// A cookie.
    Cookie {
        /// Absent: one is made up.
        name: Option<String>,
        /// Whether it outlives the browser's own session.
        permanent: bool,
    },
    /// A header.
    Header {
        /// Its name; needed.
        name: Option<String>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    session_name: Option<String>,
    absolute_timeout: Option<GatewayDuration>,
    idle_timeout: Option<GatewayDuration>,
    #[serde(default)]
    r#type: CarrierType,
    cookie_config: Option<CookieConfig>,
}

#[derive(Default, PartialEq, Deserialize)]
enum CarrierType {
    #[default]
    Cookie,
    Header,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CookieConfig {
    #[serde(default)]
    lifetime_type: Lifetime,
}

#[derive(Default, PartialEq, Deserialize)]
enum Lifetime {
    Permanent,
    #[default]
    Session,
}

impl From<Wire> for SessionPersistence {
    fn from(wire: Wire) -> Self {
        let stray_cookie_config = wire.cookie_config.is_some() && wire.r#type == CarrierType::Header;
        let permanent = wire.cookie_config.is_some_and(|config| config.lifetime_type == Lifetime::Permanent);
        let carrier = match wire.r#type {
            CarrierType::Cookie => SessionCarrier::Cookie { name: wire.session_name, permanent },
            CarrierType::Header => SessionCarrier::Header { name: wire.session_name },
        };
        let (absolute_timeout, idle_timeout) = (wire.absolute_timeout, wire.idle_timeout);
        Self { carrier, absolute_timeout, idle_timeout, stray_cookie_config }
    }
}

impl SessionPersistence {
    pub(super) fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        let mut add = |field: &str, message: &str| {
            violations.push(Violation::new(format!("{path}.{field}"), message));
        };
        match &self.carrier {
            SessionCarrier::Cookie { name, permanent } => {
                if name.as_ref().is_some_and(|name| name.len() > 128 || !text::is_token(name)) {
                    add("sessionName", "is no cookie's name");
                }
                if *permanent && self.absolute_timeout.is_none() {
                    add("absoluteTimeout", "is needed by a permanent cookie");
                }
            }
            SessionCarrier::Header { name: None } => add("sessionName", "is needed by type Header"),
            SessionCarrier::Header { name: Some(name) } => {
                let parsed = name.parse::<HeaderName>();
                if parsed.is_ok_and(|name| name.is_reserved()) {
                    add("sessionName", "is a header that belongs to the proxy");
                } else if name.len() > 128 || !text::is_token(name) {
                    add("sessionName", "is no header's name");
                }
            }
        }
        if self.stray_cookie_config {
            add("cookieConfig", "has a meaning only with type Cookie");
        }
        for (field, timeout) in
            [("absoluteTimeout", self.absolute_timeout), ("idleTimeout", self.idle_timeout)]
        {
            if timeout.is_some_and(GatewayDuration::is_zero) {
                add(field, "has to be longer than 0s");
            }
        }
    }
}
