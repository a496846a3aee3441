//! Posts one notice, signed: `heddle-signature: t=SECONDS,v1=HEX`, where HEX is
//! the HMAC-SHA256 (RFC 2104) of `SECONDS.BODY` under the key of the rule.
//!
//! A connection per post, a limit on its time, no redirects followed.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, hmac};
use axum::body::Body;
use heddle_api::crd::RequestDirection;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use serde_json::json;

use super::board::Notice;
use crate::compile::AlertTarget;
use crate::https::{Client, SendError};

/// Limit on a post as a whole.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a notice was not taken. Never names the key.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// It may be later.
    Yet(String),
    /// It never will be.
    Never(String),
    /// Not before there is a key to sign it with.
    Unsigned(String),
}

impl From<SendError> for NotTaken {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Impossible(why) => Self::Never(why),
            other => Self::Yet(other.to_string()),
        }
    }
}

/// Posts `notice`.
pub(super) async fn post(client: &Client, target: &AlertTarget, notice: &Notice) -> Result<(), NotTaken> {
    let Some(key) = &target.key else {
        let (secret, entry) = &target.secret;
        return Err(NotTaken::Unsigned(format!("Secret {secret} has no key {entry:?} to sign with")));
    };
    let body = body(notice);
    let signature = signature(&key.0, SystemTime::now(), body.as_bytes());
    let request = Request::post(&target.url)
        .header(CONTENT_TYPE, "application/json")
        .header("heddle-signature", signature)
        .header("idempotency-key", id(notice))
        .body(Body::from(body))
        .map_err(|error| NotTaken::Never(format!("the request cannot be made: {error}")))?;
    // A body says nothing that anyone reads.
    let status = tokio::time::timeout(TIMEOUT, client.send(request, 0));
    let (status, _) = status.await.map_err(|_| NotTaken::Yet(format!("no answer within {TIMEOUT:?}")))??;
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Err(NotTaken::Yet(format!("it answered {status}")))
        }
        status if status.is_server_error() => Err(NotTaken::Yet(format!("it answered {status}"))),
        status => Err(NotTaken::Never(format!("it answered {status}"))),
    }
}

fn body(notice: &Notice) -> String {
    let rule = &notice.rule;
    json!({
        "version": 1,
        "id": id(notice),
        "status": notice.status.as_str(),
        "alert": rule.name,
        "policy": rule.policy.to_string(),
        "summary": rule.summary,
        "service": notice.key.service.as_str(),
        "direction": direction(rule.direction),
        "value": notice.value,
        "requests": notice.requests,
        "instances": notice.instances,
        "since": timestamp(notice.since),
        "at": timestamp(notice.at),
    })
    .to_string()
}

/// The word in JSON.
pub(crate) fn direction(direction: RequestDirection) -> &'static str {
    match direction {
        RequestDirection::Inbound => "inbound",
        RequestDirection::Outbound => "outbound",
    }
}

/// RFC 3339, in UTC.
pub(crate) fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or_default().to_string()
}

/// The same for every try of a notice, and for no other notice.
fn id(notice: &Notice) -> String {
    let since = notice.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let unique = format!(
        "{}\n{}\n{}\n{}\n{}",
        notice.key.rule,
        notice.key.service,
        since.as_nanos(),
        notice.status.as_str(),
        notice.told
    );
    hex(&digest::digest(&digest::SHA256, unique.as_bytes()).as_ref()[..16])
}

fn signature(key: &[u8], now: SystemTime, body: &[u8]) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let signed = [format!("{seconds}.").as_bytes(), body].concat();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &signed);
    format!("t={seconds},v1={}", hex(tag.as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_what_others_compute() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac hush
        let expected = "763081ea12e3b1f903f958994c023cde07f1224b02a538ad6f959112a2f780ba";
        assert_eq!(signature(b"hush", at, b"{}"), format!("t=1700000000,v1={expected}"));
    }
}
