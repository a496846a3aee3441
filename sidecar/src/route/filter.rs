//! The filters of a rule or of one of its backends, in their order.
//!
//! A request meets them in three steps: [`Filters::answer`] for those that
//! answer in the application's place, [`Filters::edit_request`] before it is
//! sent, [`Filters::edit_response`] before its answer goes back.

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::http1::write_field;
use crate::policy::rng::Rng;
use crate::route::backend::Target;
use crate::route::cors::Cors;
use crate::route::edit::{EditFields, EditHead, TooLong};
use crate::route::head::Head;
use crate::route::path::PathEdit;
use crate::route::redirect::{Front, Redirect};
use crate::sanitize::authority::authority;
use crate::sanitize::headers::Known;

/// One filter.
#[derive(Debug)]
pub enum Filter {
    /// Changes headers of the request.
    RequestHeaders(HeaderEdits),
    /// Changes headers of the response.
    ResponseHeaders(HeaderEdits),
    /// Answers with another place to go to.
    Redirect(Redirect),
    /// Changes host and path of the request.
    Rewrite(Rewrite),
    /// Answers what browsers ask before, and tells them what they may read.
    Cors(Cors),
    /// Sends a copy elsewhere.
    Mirror(Mirror),
    /// What cannot be done, and why: an error, never skipped.
    Unresolved(Box<str>),
}

/// Filters in the order in which they apply.
#[derive(Debug, Default)]
pub struct Filters {
    list: Box<[Filter]>,
    edits_request: bool,
    edits_response: bool,
}

impl FromIterator<Filter> for Filters {
    fn from_iter<I: IntoIterator<Item = Filter>>(filters: I) -> Self {
        let list: Box<[Filter]> = filters.into_iter().collect();
        let any = |wanted: fn(&Filter) -> bool| list.iter().any(wanted);
        Self {
            edits_request: any(|f| matches!(f, Filter::RequestHeaders(_) | Filter::Rewrite(_))),
            edits_response: any(|f| matches!(f, Filter::ResponseHeaders(_) | Filter::Cors(_))),
            list,
        }
    }
}

/// What a filter says in the application's place.
#[derive(Debug)]
pub enum Early<'a> {
    /// This answer, which has no body.
    Reply(Reply),
    /// The rule cannot be carried out, for this reason: 500, or gRPC status 14.
    Refuse(&'a str),
}

/// An answer without a body.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers; those of framing are not among them.
    pub headers: HeaderMap,
}

impl Reply {
    /// Appends it as an HTTP/1 response. `close`: the connection ends after it.
    pub fn write_http1(&self, close: bool, out: &mut Vec<u8>) {
        let status = StatusCode::from_u16(self.status).unwrap_or_default();
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in &self.headers {
            write_field(out, name.as_str().as_bytes(), value.as_bytes());
        }
        if status != StatusCode::NO_CONTENT {
            write_field(out, b"content-length", b"0");
        }
        if close {
            write_field(out, b"connection", b"close");
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// What must be kept of a request to edit its response.
#[derive(Debug, Clone, Default)]
pub struct Noted {
    origin: Option<HeaderValue>,
}

impl Noted {
    /// This, and what it lacks from another.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { origin: self.origin.or(other.origin) }
    }
}

impl Filters {
    /// Whether a request changes on its way.
    pub fn edits_request(&self) -> bool {
        self.edits_request
    }

    /// Whether a response changes on its way.
    pub fn edits_response(&self) -> bool {
        self.edits_response
    }

    /// The answer that the first filter gives which has one, as those for responses change it.
    pub fn answer<H: Head>(&self, head: &H, front: Front) -> Option<Early<'_>> {
        self.list.iter().find_map(|filter| match filter {
            Filter::Redirect(redirect) => {
                let mut early = reply_to(redirect, head, front);
                if let Early::Reply(reply) = &mut early {
                    self.edit_response(&self.note(head), &mut reply.headers);
                }
                Some(early)
            }
            Filter::Cors(cors) => cors.preflight(head).map(|mut headers| {
                // It says what the page may do already.
                self.edit_headers(&mut headers);
                Early::Reply(Reply { status: 204, headers })
            }),
            Filter::Unresolved(why) => Some(Early::Refuse(why)),
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Rewrite(_)
            | Filter::Mirror(_) => None,
        })
    }

    /// Changes a request.
    ///
    /// # Errors
    /// If its target grows too long; to be answered with status 431.
    pub fn edit_request(&self, head: &mut impl EditHead) -> Result<(), TooLong> {
        for filter in self.list.iter().filter(|_| self.edits_request) {
            match filter {
                Filter::RequestHeaders(edits) => edits.apply(head),
                Filter::Rewrite(rewrite) => rewrite.apply(head)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps what [`Self::edit_response`] needs of a request.
    pub fn note<H: Head>(&self, head: &H) -> Noted {
        static ORIGIN: HeaderName = http::header::ORIGIN;
        let cross_origin = self.list.iter().any(|filter| matches!(filter, Filter::Cors(_)));
        let origin = cross_origin.then(|| head.first(&ORIGIN)).flatten();
        Noted { origin: origin.and_then(|origin| HeaderValue::from_bytes(origin).ok()) }
    }

    /// Changes a response.
    pub fn edit_response(&self, noted: &Noted, head: &mut impl EditFields) {
        for filter in self.list.iter().filter(|_| self.edits_response) {
            match filter {
                Filter::ResponseHeaders(edits) => edits.apply(head),
                Filter::Cors(cors) => cors.edit_response(noted.origin.as_ref(), head),
                _ => {}
            }
        }
    }

    /// Changes a response as filters about headers alone say.
    fn edit_headers(&self, head: &mut impl EditFields) {
        for filter in self.list.iter().filter(|_| self.edits_response) {
            if let Filter::ResponseHeaders(edits) = filter {
                edits.apply(head);
            }
        }
    }

    /// Where copies go.
    pub fn mirrors(&self) -> impl Iterator<Item = &Mirror> {
        self.list.iter().filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(mirror),
            _ => None,
        })
    }
}

fn reply_to<H: Head>(redirect: &Redirect, head: &H, front: Front) -> Early<'static> {
    // A sanitised head has only bytes that a field may have.
    match HeaderValue::from_maybe_shared(bytes::Bytes::from(redirect.location(head, front))) {
        Ok(location) => Early::Reply(Reply {
            status: redirect.status.code(),
            headers: [(http::header::LOCATION, location)].into_iter().collect(),
        }),
        Err(_) => Early::Refuse("the location would be no valid header"),
    }
}

/// Changes of headers (Gateway API, `HTTPHeaderFilter`).
#[derive(Debug, Clone, Default)]
pub struct HeaderEdits {
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
    remove: Box<[HeaderName]>,
}

/// Why a header may not be changed by a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadEdit {
    /// It frames the message, belongs to one connection, or says who asks or
    /// whom: all that [`Known`] names. A host is changed by a rewrite.
    #[error("the header is the proxy's own: framing, hop-by-hop, host, identity or heddle-*")]
    Reserved,
    /// It is named twice.
    #[error("the header has more than one action")]
    Repeated,
}

impl HeaderEdits {
    /// Replaces, adds and removes, each header at most once.
    ///
    /// # Errors
    /// The name that is not acceptable.
    pub fn new(
        set: Vec<(HeaderName, HeaderValue)>,
        add: Vec<(HeaderName, HeaderValue)>,
        remove: Vec<HeaderName>,
    ) -> Result<Self, (HeaderName, BadEdit)> {
        let mut names = std::collections::HashSet::new();
        for name in set.iter().chain(&add).map(|(name, _)| name).chain(&remove) {
            may_edit(name).map_err(|bad| (name.clone(), bad))?;
            if !names.insert(name) {
                return Err((name.clone(), BadEdit::Repeated));
            }
        }
        Ok(Self { set: set.into(), add: add.into(), remove: remove.into() })
    }

    fn apply(&self, fields: &mut impl EditFields) {
        self.set.iter().for_each(|(name, value)| fields.set(name, value));
        self.add.iter().for_each(|(name, value)| fields.add(name, value));
        self.remove.iter().for_each(|name| fields.remove(name));
    }
}

/// Whether a filter may touch a header.
///
/// # Errors
/// If not.
pub fn may_edit(name: &HeaderName) -> Result<(), BadEdit> {
    match Known::of(name.as_str().as_bytes()) {
        None => Ok(()),
        Some(_) => Err(BadEdit::Reserved),
    }
}

/// Changes of a request's target (Gateway API, `HTTPURLRewriteFilter`).
#[derive(Debug, Clone, Default)]
pub struct Rewrite {
    /// The new authority.
    pub host: Option<RewrittenHost>,
    /// The new path.
    pub path: Option<PathEdit>,
}

/// A host without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewrittenHost(Authority);

impl RewrittenHost {
    /// A host; `None` if it is none, or has a port.
    pub fn new(host: &str) -> Option<Self> {
        let plain = authority(host.as_bytes()).ok().filter(|authority| authority.port.is_none())?;
        (plain.host.len() == host.len()).then(|| host.parse().ok().map(Self))?
    }
}

impl Rewrite {
    fn apply(&self, head: &mut impl EditHead) -> Result<(), TooLong> {
        // A tunnel's authority is where it ends, which is not the rule's to say.
        if head.current_path().is_empty() {
            return Ok(());
        }
        if let Some(RewrittenHost(authority)) = &self.host {
            head.set_authority(authority);
        }
        match self.path.as_ref().and_then(|edit| edit.apply(head.current_path())) {
            Some(path) => head.set_path(&path),
            None => Ok(()),
        }
    }
}

/// Copies of requests (Gateway API, `HTTPRequestMirrorFilter`), each to one
/// endpoint; what it answers is ignored.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Where to; nothing is sent to an invalid one.
    pub target: Target,
    /// Of so many requests …
    pub denominator: u32,
    /// … this many are copied.
    pub numerator: u32,
}

impl Mirror {
    /// Whether this request is copied.
    pub fn takes(&self, rng: &Rng) -> bool {
        !matches!(self.target, Target::Invalid(_))
            && rng.below(self.denominator.into()) < self.numerator.into()
    }
}

#[cfg(test)]
mod tests;
