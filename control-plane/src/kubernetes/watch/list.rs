//! Lists, page by page.

use kube::api::ListParams;
use kube::core::Request;
use serde::Deserialize;
use tokio::time::timeout;

use super::end::End;
use super::{ANSWER_TIMEOUT, Failure, Listener, Watch};

/// A page of a list.
#[derive(Debug, Deserialize)]
struct Page<T> {
    metadata: PageMetadata,
    items: Option<Vec<T>>,
}

/// Where the page stands.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    /// Where the next page begins; empty after the last.
    #[serde(default)]
    r#continue: String,
}

/// Objects per page of a list: those that are parsed at once.
const PAGE: u32 = 500;

impl<L: Listener> Watch<L> {
    /// All pages, and where they stand.
    pub(super) async fn list(&self) -> Result<(Vec<L::Kept>, String), End> {
        let (mut kept, mut token) = (Vec::new(), None);
        loop {
            let page = self.page(PAGE, token.take()).await?;
            kept.extend(page.items.unwrap_or_default().into_iter().map(|sent| self.listener.keep(sent)));
            if page.metadata.r#continue.is_empty() {
                return Ok((kept, page.metadata.resource_version));
            }
            token = Some(page.metadata.r#continue);
        }
    }

    async fn page(&self, limit: u32, continue_token: Option<String>) -> Result<Page<L::Sent>, End> {
        let parameters = ListParams {
            label_selector: self.collection.labels.clone(),
            field_selector: self.collection.fields.clone(),
            limit: Some(limit),
            continue_token,
            ..ListParams::default()
        };
        let path = self.collection.path.as_str();
        let request = Request::new(path).list(&parameters).map_err(End::impossible)?;
        let page = timeout(ANSWER_TIMEOUT, self.server.client.request(request)).await;
        page.map_err(|_| End::slow())?.map_err(End::of)
    }

    /// Why a watch was answered with something else than events. The client looks at the text of the
    /// answer alone, and what is said of a path that nobody serves is none of an API: lists tell.
    pub(super) async fn ask_why(&self, error: &serde_json::Error) -> End {
        match self.page(1, None).await {
            Err(end) => end,
            Ok(_) => End::Failed(Failure::Refused(format!("what it answers is no object: {error}"))),
        }
    }
}
