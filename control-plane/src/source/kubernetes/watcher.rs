//! Watches one collection of an API server, for ever.
//!
//! First everything is listed (as a stream where the API server can, KEP-3157,
//! else page by page), then changes arrive as they happen. A watch that ends
//! goes on where it stopped; where the API server has forgotten that place
//! (410 Gone) everything is listed again. A kind that is not served is waited
//! for. Failures are reported and tried again, with growing pauses and jitter,
//! or as soon as another watch of the cluster works again.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{Request, Status};
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::kinds::Watched;
use super::raw::{Page, Raw, Read};
use super::store::{Change, Failure};

/// What the watches of one cluster share.
pub(super) struct Shared {
    pub(super) client: Client,
    /// How errors call the cluster.
    pub(super) source: Arc<Path>,
    pub(super) changes: mpsc::Sender<(Arc<Watched>, Change)>,
    /// Whether lists can be streamed, once the API server was asked.
    streams_lists: OnceCell<bool>,
    /// Counts watches that have come back: where one gets through, the others do, too.
    recovered: watch::Sender<u64>,
    /// Counts changes of CustomResourceDefinitions.
    defined: watch::Sender<u64>,
}

/// The watch of one collection.
pub(super) struct Watcher {
    shared: Arc<Shared>,
    watched: Arc<Watched>,
    /// The place in `versions` of the one that is served.
    version: usize,
    /// Where to go on; `None`: with a list.
    resume: Option<String>,
    state: Told,
    defined: watch::Receiver<u64>,
    /// Looks for a kind that is not served before it takes a change of definitions to look again.
    looks: u32,
}

/// What was said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Live,
    Lost,
    Absent,
}

/// Why a watch ended.
enum End {
    /// The API server ended it, as it does every few minutes.
    Closed,
    /// What follows the place where it stopped is not known any more.
    Gone,
    /// There is no such collection.
    NotServed,
    /// This API server cannot stream lists.
    NoStreamedLists,
    Failed(Failure),
    /// Nobody listens any more.
    Over,
}

/// Objects per page of a list: those that are parsed at once.
const PAGE: u32 = 500;

/// A server that does not begin to answer by then is no better than one that is away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a watch lasts at most, in seconds; API servers end them after some five minutes anyway.
const WATCH_SECONDS: u32 = 280;

/// API servers send a bookmark every minute; a watch without is one whose server is gone.
const SILENCE: Duration = Duration::from_secs(90);

/// Pauses after failures. Changes are to arrive within seconds after an API server is back.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Between two looks for a kind that is not served, if nothing says that definitions have changed.
const DEFINITION_PAUSE: Duration = Duration::from_secs(30);

/// After a change of definitions it takes the API server some moments to serve them.
const DEFINITION_RETRIES: u32 = 10;
const DEFINITION_RETRY: Duration = Duration::from_millis(300);

/// The first minor version of Kubernetes 1 in which API servers stream lists without being told to
/// (KEP-3157, beta and on; off in 1.33, which then refuses and is asked for pages).
const STREAMED_LISTS_SINCE: u32 = 32;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// The annotation of the bookmark behind the last object of a streamed list.
const LIST_END: &str = "k8s.io/initial-events-end";

impl Shared {
    pub(super) fn new(
        client: Client,
        source: Arc<Path>,
        changes: mpsc::Sender<(Arc<Watched>, Change)>,
    ) -> Arc<Self> {
        let (recovered, defined) = (watch::Sender::new(0), watch::Sender::new(0));
        Arc::new(Self { client, source, changes, streams_lists: OnceCell::new(), recovered, defined })
    }

    async fn streams_lists(&self) -> Result<bool, kube::Error> {
        let asked = self.streams_lists.get_or_try_init(|| async {
            let version = self.client.apiserver_version().await?;
            let minor: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
            Ok::<_, kube::Error>(minor.parse().is_ok_and(|minor: u32| minor >= STREAMED_LISTS_SINCE))
        });
        asked.await.copied()
    }
}

/// Follows changes of CustomResourceDefinitions, of which nothing but that there are some is of
/// interest. Where that is not permitted, kinds that appear are found a little later.
pub(super) async fn watch_definitions(shared: Arc<Shared>) {
    let mut pauses = Pauses::default();
    loop {
        let parameters = WatchParams { timeout: Some(WATCH_SECONDS), ..WatchParams::default() };
        let Ok(request) = Request::new(DEFINITIONS).watch_metadata(&parameters, "") else { return };
        let mut pause = pauses.next();
        match timeout(ANSWER_TIMEOUT, shared.client.request_events::<Raw>(request)).await {
            Ok(Ok(events)) => {
                let mut events = Box::pin(events);
                while let Ok(Some(Ok(event))) = timeout(SILENCE, events.next()).await {
                    pauses.reset();
                    if !matches!(event, WatchEvent::Bookmark(_)) {
                        shared.defined.send_modify(|count| *count += 1);
                    }
                }
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => pause = jittered(DEFINITION_PAUSE),
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(pause).await;
    }
}

impl Watcher {
    pub(super) fn new(shared: Arc<Shared>, watched: Watched) -> Self {
        let defined = shared.defined.subscribe();
        let (watched, state) = (Arc::new(watched), Told::Nothing);
        Self { shared, watched, version: 0, resume: None, state, defined, looks: DEFINITION_RETRIES }
    }

    /// Watches until nobody listens.
    pub(super) async fn run(mut self) {
        let mut pauses = Pauses::default();
        let mut streamed = true;
        loop {
            let begun = Instant::now();
            match self.follow(streamed).await {
                End::Over => return,
                // One that ends at once would end at once again.
                End::Closed if begun.elapsed() < Duration::from_secs(1) => sleep(pauses.next()).await,
                End::Closed => pauses.reset(),
                End::Gone => {
                    debug!(
                        kind = self.watched.kind,
                        "the place to go on is gone; everything is listed again"
                    );
                    self.resume = None;
                    if begun.elapsed() < Duration::from_secs(1) {
                        sleep(pauses.next()).await;
                    }
                }
                End::NoStreamedLists => streamed = false,
                End::NotServed => {
                    self.resume = None;
                    self.version += 1;
                    if self.version == self.watched.versions.len() {
                        self.version = 0;
                        if !self.is_really_gone().await {
                            sleep(pauses.next()).await;
                            continue;
                        }
                        if self.state != Told::Absent {
                            info!(
                                kind = self.watched.kind,
                                "the cluster does not serve this kind; it is used as soon as it does"
                            );
                        }
                        if !self.tell(Told::Absent, Change::Absent).await {
                            return;
                        }
                        self.wait_for_definition().await;
                    }
                }
                End::Failed(failure) => {
                    if begun.elapsed() > LONGEST_PAUSE {
                        pauses.reset();
                    }
                    let mut recovered = self.shared.recovered.subscribe();
                    if !self.tell(Told::Lost, Change::Lost(failure)).await {
                        return;
                    }
                    tokio::select! {
                        () = sleep(pauses.next()) => {}
                        _ = recovered.changed() => {}
                        () = self.shared.changes.closed() => return,
                    }
                }
            }
        }
    }

    /// One list, if needed, and one watch.
    async fn follow(&mut self, streamed: bool) -> End {
        match self.try_follow(streamed).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_follow(&mut self, streamed: bool) -> Result<End, End> {
        let streams = timeout(ANSWER_TIMEOUT, self.shared.streams_lists()).await;
        let streamed = streams.map_err(|_| End::slow())?.map_err(End::of)? && streamed;
        let mut listed: Option<Vec<Read>> = None;
        match (&self.resume, streamed) {
            (Some(_), _) => {}
            (None, true) => listed = Some(Vec::new()),
            (None, false) => {
                let (reads, version) = self.list().await?;
                self.resume = Some(version);
                self.send(Change::Listed(reads)).await?;
            }
        }
        let parameters = WatchParams {
            label_selector: self.watched.labels.clone(),
            field_selector: self.watched.fields(),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            send_initial_events: listed.is_some(),
        };
        let request =
            Request::new(self.path()).watch(&parameters, self.resume.as_deref().unwrap_or_default());
        let events = self.shared.client.request_events::<Raw>(request.map_err(End::impossible)?);
        let events = timeout(ANSWER_TIMEOUT, events).await.map_err(|_| End::slow())?;
        let mut events = Box::pin(events.map_err(|error| End::of_watch(error, listed.is_some()))?);
        if listed.is_none() {
            self.live().await?;
        }
        loop {
            let event = match timeout(SILENCE, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(kube::Error::SerdeError(error)))) => return Err(self.ask_why(&error).await),
                Ok(Some(Err(error))) => return Err(End::of_watch(error, listed.is_some())),
                Ok(None) if listed.is_none() => return Ok(End::Closed),
                Ok(None) => return Err(End::cut()),
                Err(_) => return Ok(End::Closed),
            };
            match event {
                WatchEvent::Added(raw) | WatchEvent::Modified(raw) => {
                    let version = raw.resource_version().to_owned();
                    let read = self.read(raw);
                    match &mut listed {
                        Some(listed) => listed.push(read),
                        None => {
                            self.send(Change::Applied(read)).await?;
                            self.resume = Some(version);
                        }
                    }
                }
                WatchEvent::Deleted(raw) => match &mut listed {
                    Some(listed) => {
                        let gone = raw.name();
                        listed.retain(|read| read.name != gone);
                    }
                    None => {
                        self.send(Change::Deleted(raw.name())).await?;
                        self.resume = Some(raw.resource_version().to_owned());
                    }
                },
                WatchEvent::Bookmark(bookmark) => {
                    let ends = bookmark.metadata.annotations.get(LIST_END).is_some_and(|ends| ends == "true");
                    if let Some(all) = listed.take_if(|_| ends) {
                        self.send(Change::Listed(all)).await?;
                        self.live().await?;
                    }
                    if listed.is_none() {
                        self.resume = Some(bookmark.metadata.resource_version);
                    }
                }
                WatchEvent::Error(status) => return Err(End::of_status(&status)),
            }
        }
    }

    /// All pages, and where they stand.
    async fn list(&self) -> Result<(Vec<Read>, String), End> {
        let (mut reads, mut token) = (Vec::new(), None);
        loop {
            let parameters = ListParams {
                label_selector: self.watched.labels.clone(),
                field_selector: self.watched.fields(),
                limit: Some(PAGE),
                continue_token: token.take(),
                ..ListParams::default()
            };
            let request = Request::new(self.path()).list(&parameters).map_err(End::impossible)?;
            let page = timeout(ANSWER_TIMEOUT, self.shared.client.request::<Page>(request)).await;
            let page = page.map_err(|_| End::slow())?.map_err(End::of)?;
            reads.extend(page.items.unwrap_or_default().into_iter().map(|raw| self.read(raw)));
            if page.metadata.r#continue.is_empty() {
                return Ok((reads, page.metadata.resource_version));
            }
            token = Some(page.metadata.r#continue);
        }
    }

    /// Why a watch was answered with something else than events. The client looks at the text of the
    /// answer alone, and what is said of a path that nobody serves is none of an API: lists tell.
    async fn ask_why(&self, error: &serde_json::Error) -> End {
        let parameters = ListParams {
            label_selector: self.watched.labels.clone(),
            field_selector: self.watched.fields(),
            limit: Some(1),
            ..ListParams::default()
        };
        let request = match Request::new(self.path()).list(&parameters) {
            Ok(request) => request,
            Err(error) => return End::impossible(error),
        };
        match timeout(ANSWER_TIMEOUT, self.shared.client.request::<Page>(request)).await {
            Ok(Err(error)) => End::of(error),
            Ok(Ok(_)) => End::Failed(Failure::Refused(format!("what it answers is no object: {error}"))),
            Err(_) => End::slow(),
        }
    }

    fn read(&self, raw: Raw) -> Read {
        raw.read(&self.watched, self.watched.versions[self.version], &self.shared.source)
    }

    fn path(&self) -> String {
        self.watched.path(self.watched.versions[self.version])
    }

    async fn live(&mut self) -> Result<(), End> {
        if self.state == Told::Lost {
            self.shared.recovered.send_modify(|count| *count += 1);
        }
        if self.state == Told::Absent {
            info!(kind = self.watched.kind, "the cluster serves this kind now");
        }
        if self.tell(Told::Live, Change::Live).await { Ok(()) } else { Err(End::Over) }
    }

    /// Says how it stands. `false` if nobody listens.
    async fn tell(&mut self, state: Told, change: Change) -> bool {
        // A failure may have another reason than the last one.
        if self.state == state && state != Told::Lost {
            return true;
        }
        self.state = state;
        self.send(change).await.is_ok()
    }

    async fn send(&self, change: Change) -> Result<(), End> {
        self.shared.changes.send((self.watched.clone(), change)).await.map_err(|_| End::Over)
    }

    /// Whether a kind of which the API server knows nothing is one that has no definition. An API
    /// server that is just starting may not know yet what it serves, and policies must not go for that.
    async fn is_really_gone(&self) -> bool {
        let Some(definition) = self.watched.definition() else { return false };
        if matches!(self.state, Told::Nothing | Told::Absent) {
            return true;
        }
        let Ok(request) = Request::new(DEFINITIONS).get(&definition, &kube::api::GetParams::default()) else {
            return true;
        };
        match timeout(ANSWER_TIMEOUT, self.shared.client.request::<Raw>(request)).await {
            Ok(Err(kube::Error::Api(status))) => matches!(status.code, 403 | 404),
            _ => false,
        }
    }

    /// Waits until it is worth another look.
    async fn wait_for_definition(&mut self) {
        let pause = match self.looks.checked_sub(1) {
            Some(left) => {
                self.looks = left;
                DEFINITION_RETRY
            }
            None => jittered(DEFINITION_PAUSE),
        };
        tokio::select! {
            _ = self.defined.changed() => self.looks = DEFINITION_RETRIES,
            () = sleep(pause) => {}
            () = self.shared.changes.closed() => {}
        }
    }
}

impl End {
    fn of(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(&status),
            other => Self::Failed(Failure::Unreachable(chain(&other))),
        }
    }

    /// `streamed`: a list was asked for as a stream.
    fn of_watch(error: kube::Error, streamed: bool) -> Self {
        match error {
            // Invalid, by API servers of which that feature was switched off.
            kube::Error::Api(status) if streamed && matches!(status.code, 400 | 422) => Self::NoStreamedLists,
            other => Self::of(other),
        }
    }

    fn of_status(status: &Status) -> Self {
        match status.code {
            404 => Self::NotServed,
            410 => Self::Gone,
            429 | 500..=599 => {
                Self::Failed(Failure::Unreachable(format!("{} {}", status.code, status.message)))
            }
            code => Self::Failed(Failure::Refused(format!("{code} {}", status.message))),
        }
    }

    fn slow() -> Self {
        Self::Failed(Failure::Unreachable(format!("no answer within {ANSWER_TIMEOUT:?}")))
    }

    fn cut() -> Self {
        Self::Failed(Failure::Unreachable("a list ended before its end".into()))
    }

    fn impossible(error: kube::core::request::Error) -> Self {
        Self::Failed(Failure::Refused(error.to_string()))
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Growing pauses.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        jittered(pause)
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Between half of it and all: what was interrupted together does not come back together.
fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let chance = u32::try_from(RandomState::new().hash_one(0_u8) >> 48).unwrap_or_default();
    pause / 2 + pause.saturating_mul(chance) / (2 * u32::from(u16::MAX))
}
