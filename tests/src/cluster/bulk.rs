//! Requests to the API server by the thousand, for which `kubectl` takes too long.

use std::fmt::Write;
use std::fs;

use serde_json::Value;

use super::Cluster;

/// A request to the API server, with its administrator's rights.
#[derive(Debug, Clone)]
pub struct ApiRequest {
    /// Such as `POST`.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// What is sent.
    pub body: Value,
}

impl ApiRequest {
    /// Makes an object in a collection.
    pub fn create(collection: &str, object: Value) -> Self {
        Self { method: "POST", path: collection.into(), body: object }
    }

    /// Changes some fields of an object (RFC 7386).
    pub fn merge(object: &str, fields: Value) -> Self {
        Self { method: "PATCH", path: object.into(), body: fields }
    }
}

/// Requests that one `curl` makes.
const BATCH: usize = 500;

impl Cluster {
    /// Makes all requests, many at once and in any order.
    ///
    /// # Panics
    /// If one is refused.
    pub fn request_all(&self, requests: &[ApiRequest]) {
        let directory = self.directory().to_string_lossy();
        let file = self.directory().join("requests");
        for batch in requests.chunks(BATCH) {
            let mut config = String::new();
            for (place, ApiRequest { method, path, body }) in batch.iter().enumerate() {
                if place > 0 {
                    config.push_str("next\n");
                }
                let kind = if *method == "PATCH" { "merge-patch+json" } else { "json" };
                let body = body.to_string().replace('\\', "\\\\").replace('"', "\\\"");
                let _ = write!(
                    config,
                    "url = \"{}{path}\"\nrequest = {method}\nheader = \"content-type: application/{kind}\"\n\
                     data-raw = \"{body}\"\nsilent\nshow-error\noutput = /dev/null\nwrite-out = \"%{{http_code}} {path}\\n\"\n\
                     cacert = {directory}/ca.crt\ncert = {directory}/admin.crt\nkey = {directory}/admin.key\n",
                    self.api_server_in_use(),
                );
            }
            fs::write(self.outside(&file), config).expect("there is room");
            let mut command = self.command("curl");
            let output = command.args(["--parallel", "--parallel-max", "32", "--config"]).arg(&file).output();
            let output = output.expect("util-linux has nsenter");
            let answers = String::from_utf8_lossy(&output.stdout);
            let refused = answers.lines().find(|line| !line.starts_with("20"));
            assert!(
                refused.is_none() && answers.lines().count() == batch.len(),
                "{refused:?} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}
