//! A cluster's API server, asked by path: what commands read there is a few
//! fields of many kinds, in versions that they do not choose.

mod forward;
pub(crate) mod kinds;
mod websocket;

use std::time::Duration;

use anyhow::Context;
use heddle_api::causes;
use heddle_api::version::Version;
use heddle_control_plane::kubernetes::client;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request};
use kube::Client;
use serde_json::Value;

pub(crate) use self::forward::{Forwards, Pod};

/// Where the mesh's own objects are.
pub(crate) const NAMESPACE: &str = "heddle-system";

/// What they are called.
pub(crate) const CONTROL_PLANE: &str = "heddle-control-plane";

/// The path of the control plane's Deployment.
pub(crate) const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/heddle-system/deployments/heddle-control-plane";

/// Where objects carry the version of Heddle that they are of.
pub(crate) const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// Which cluster is meant.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct ClusterArgs {
    /// The context of the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ClusterArgs {
    /// Whether a context was named.
    pub(crate) fn is_named(&self) -> bool {
        self.context.is_some()
    }
}

/// A client of one cluster.
pub(crate) struct Cluster {
    client: Client,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// There is no such object, or no such kind.
    #[error("there is none")]
    NotFound,
    /// Whoever asks may not know.
    #[error("{0}")]
    Forbidden(String),
    /// Somebody else has written meanwhile.
    #[error("somebody else has changed it meanwhile")]
    Conflict,
    /// No answer, or none that can be read.
    #[error("{0}")]
    Other(String),
}

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many objects come at once.
const PAGE: usize = 500;

/// Only names, labels and annotations, where that is enough: a cluster may have thousands of pods.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

impl Cluster {
    /// A client; nothing is asked yet.
    pub(crate) async fn connect(args: &ClusterArgs) -> anyhow::Result<Self> {
        let cluster = args.context.clone().map_or(client::Cluster::Inferred, client::Cluster::Context);
        let client = client::connect(&cluster).await.context("no cluster to ask")?;
        Ok(Self { client })
    }

    /// What is at a path.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, "application/json", Vec::new()).await
    }

    /// What is at a path; `None`: nothing.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.get(path).await {
            Ok(object) => Ok(Some(object)),
            Err(Failure::NotFound) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Posts an object; gives what comes back.
    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Value, Failure> {
        self.ask(Method::POST, path, "application/json", object.to_string().into_bytes()).await
    }

    /// Changes what is at a path by a JSON merge patch (RFC 7386); gives what comes back.
    pub(crate) async fn patch(&self, path: &str, patch: &Value) -> Result<Value, Failure> {
        self.ask(Method::PATCH, path, "application/json", patch.to_string().into_bytes()).await
    }

    /// All objects of a collection, whose path may have a query.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        self.pages(path, "application/json").await
    }

    /// The metadata of all objects of a collection.
    pub(crate) async fn list_metadata(&self, path: &str) -> Result<Vec<Value>, Failure> {
        self.pages(path, METADATA).await
    }

    async fn pages(&self, path: &str, accept: &str) -> Result<Vec<Value>, Failure> {
        let mut objects = Vec::new();
        let mut more = String::new();
        loop {
            let and = if path.contains('?') { '&' } else { '?' };
            let page = format!("{path}{and}limit={PAGE}{more}");
            let mut page = self.ask(Method::GET, &page, accept, Vec::new()).await?;
            if let Value::Array(items) = page["items"].take() {
                objects.extend(items);
            }
            match page["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => more = format!("&continue={token}"),
                None => return Ok(objects),
            }
        }
    }

    async fn ask(&self, method: Method, path: &str, accept: &str, body: Vec<u8>) -> Result<Value, Failure> {
        let sent = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path);
        let request = request.header(ACCEPT, accept).header(CONTENT_TYPE, sent).body(body);
        let request = request.map_err(|error| Failure::Other(format!("{path}: {error}")))?;
        let answer = tokio::time::timeout(PATIENCE, self.client.request::<Value>(request)).await;
        let answer = answer.map_err(|_| Failure::Other(format!("{path}: no answer within {PATIENCE:?}")))?;
        answer.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 404 => Failure::NotFound,
            kube::Error::Api(status) if status.code == 403 => Failure::Forbidden(status.message.clone()),
            kube::Error::Api(status) if status.code == 409 => Failure::Conflict,
            kube::Error::Api(status) => Failure::Other(status.message.clone()),
            _ => Failure::Other(causes::line(&error)),
        })
    }
}

/// `NAMESPACE/NAME` of an object, or its name alone.
pub(crate) fn named(object: &Value) -> String {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.into(),
    }
}

/// How many there are, in words: `1 pod`, `2 pods`.
pub(crate) fn counted(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// A label of an object.
pub(crate) fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["metadata"]["labels"].get(name)?.as_str()
}

/// An annotation of an object.
pub(crate) fn annotation<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["metadata"]["annotations"].get(name)?.as_str()
}

/// The version that an image's tag says, if it says one.
pub(crate) fn version_of_image(image: &str) -> Option<Version> {
    let name = image.split('@').next()?;
    // What comes before the last slash may be a registry with a port.
    name.rsplit('/').next()?.split_once(':')?.1.parse().ok()
}

/// A list within an object; none where there is none.
pub(crate) fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}
