//! An answer in place of a service's: the same for all versions of HTTP.

use bytes::Bytes;
use http::header::{AGE, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::HEADER;
use crate::http1::write_field;
use crate::policy::fallback::FixedResponse;
use crate::policy::stale::Found;
use crate::routing::Routed;
use crate::sanitize::answer::Form;
use crate::telemetry::metrics::FallbackStep;

/// An answer that a fallback gives.
#[derive(Debug)]
pub(crate) struct Substitute {
    /// The status.
    pub(crate) status: u16,
    headers: HeaderMap,
    /// The body.
    pub(crate) body: Bytes,
    step: FallbackStep,
}

impl Substitute {
    pub(super) fn stale(found: &Found) -> Self {
        let mut headers = found.kept.headers.clone();
        headers.insert(AGE, found.age.as_secs().into());
        Self { status: 200, headers, body: found.kept.body.clone(), step: FallbackStep::StaleCache }
    }

    pub(super) fn fixed(response: &FixedResponse, form: Form) -> Self {
        let step = FallbackStep::Response;
        match form {
            Form::Grpc => Self { status: 200, headers: response.grpc.clone(), body: Bytes::new(), step },
            Form::Plain | Form::Json => {
                let FixedResponse { status, headers, body, grpc: _ } = response;
                Self { status: *status, headers: headers.clone(), body: body.clone(), step }
            }
        }
    }

    /// Changes the head as the route of the request says, adds what the mesh says, and removes
    /// the body if the request was HEAD.
    pub(crate) fn finish(&mut self, routed: Option<&Routed>, form: Form, is_head: bool) {
        if let Some(routed) = routed {
            routed.edit_substitute(&mut self.headers);
        }
        self.headers.insert(&HEADER, HeaderValue::from_static(self.step.as_str()));
        if form != Form::Grpc && !matches!(self.status, 204 | 304) {
            self.headers.insert(CONTENT_LENGTH, self.body.len().into());
        }
        if is_head {
            self.body = Bytes::new();
        }
    }

    /// The status of the gRPC call that it ends.
    pub(crate) fn grpc_status(&self, form: Form) -> Option<u8> {
        let status = self.headers.get("grpc-status").filter(|_| form == Form::Grpc)?;
        status.to_str().ok()?.parse().ok()
    }

    /// Appends the head as HTTP/1.1. `close`: the connection ends after this.
    pub(crate) fn write_http1(&self, close: bool, out: &mut Vec<u8>) {
        let status = StatusCode::from_u16(self.status).unwrap_or_default();
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in &self.headers {
            write_field(out, name.as_str().as_bytes(), value.as_bytes());
        }
        if !self.headers.contains_key(CONTENT_LENGTH) && self.status != 204 && self.status != 304 {
            write_field(out, b"content-length", b"0");
        }
        if close {
            write_field(out, b"connection", b"close");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// The head for HTTP/2, and the body.
    pub(crate) fn http2(self) -> (Response<()>, Bytes) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or_default();
        *response.headers_mut() = self.headers;
        (response, self.body)
    }
}
