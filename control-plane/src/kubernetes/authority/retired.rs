//! Roots that are trusted though the Secret of the authority does not list
//! them any more, kept in a Secret of their own: a control plane that starts
//! while an authority is being replaced would otherwise trust the new one alone,
//! and refuse everybody whose certificate is of the one before.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

/// The Secret's name, and the key in it. Nothing in it is secret, but whoever writes it decides on
/// whom the mesh trusts, as with that of the authority.
pub(super) const NAME: &str = "heddle-ca-retired";
pub(super) const KEY: &str = "roots.json";

/// More authorities than that are not replaced within one certificate's lifetime.
const MAX_ROOTS: usize = 16;

/// A root, and until when it is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Retired {
    pub(super) root: CertificateDer<'static>,
    pub(super) until: SystemTime,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    /// DER in base64.
    certificate: String,
    until: Timestamp,
}

/// What the Secret says of those roots.
pub(super) fn write(retired: &[Retired]) -> String {
    let written = retired.iter().take(MAX_ROOTS).filter_map(|Retired { root, until }| {
        let until = Timestamp::try_from(*until).ok()?;
        Some(Written { certificate: BASE64.encode(root), until })
    });
    serde_json::to_string(&written.collect::<Vec<_>>()).expect("texts are JSON")
}

/// The roots that the Secret names.
///
/// # Errors
/// If it is not as [`write()`] writes it.
pub(super) fn read(text: &[u8]) -> Result<Vec<Retired>, String> {
    let written: Vec<Written> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let root = |Written { certificate, until }: Written| {
        let der = BASE64.decode(&certificate).map_err(|error| format!("a certificate: {error}"))?;
        Ok(Retired { root: der.into(), until: until.into() })
    };
    written.into_iter().take(MAX_ROOTS).map(root).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let until = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let root = |byte: u8, seconds| Retired { root: vec![byte; 3].into(), until: until(seconds) };
        let retired = [root(1, 1_800_000_000), root(2, 1_900_000_000)];
        assert_eq!(read(write(&retired).as_bytes()).unwrap(), retired);
        assert_eq!(write(&[]), "[]");
        for wrong in ["", "{}", "[{}]", r#"[{"certificate":"!","until":"2026-01-01T00:00:00Z"}]"#] {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
