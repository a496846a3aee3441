//! Keeps a copy of a response while it goes to the client, at the client's pace.

use std::sync::Arc;
use std::time::Instant;

use http::header::{AGE, CONTENT_LENGTH, HeaderMap, HeaderName, TRAILER};
use parking_lot::Mutex;

use super::Place;
use crate::http1::body::Body;
use crate::policy::stale::{Cache, Kept, Selecting, Terms};
use crate::route::Head;

/// A response on its way. Dropped, nothing is kept of it.
pub(crate) struct Keep {
    cache: Arc<Mutex<Cache>>,
    target: Box<[u8]>,
    selecting: Selecting,
    terms: Terms,
    headers: HeaderMap,
    asked: Instant,
    received: Instant,
    max_bytes: usize,
    body: Vec<u8>,
    /// What is set aside for it in the cache.
    reserved: usize,
    /// Takes an HTTP/1 body out of its framing.
    framing: Body,
}

/// Room is asked for in steps of at least so much, and of twice what there was.
const STEP: usize = 4096;

impl Keep {
    pub(super) fn new(
        place: &Place,
        request: &impl Head,
        terms: Terms,
        mut headers: HeaderMap,
        (asked, received): (Instant, Instant),
    ) -> Option<Self> {
        // Set anew, or without a meaning in what is kept: limits were those of another request.
        const LIMITS: [HeaderName; 2] =
            [HeaderName::from_static("ratelimit"), HeaderName::from_static("ratelimit-policy")];
        for name in [AGE, CONTENT_LENGTH, TRAILER].into_iter().chain(LIMITS) {
            headers.remove(name);
        }
        let mut keep = Self {
            cache: place.cache.clone(),
            target: place.target.clone(),
            selecting: Selecting::of(&terms.vary, request),
            terms,
            asked,
            received,
            max_bytes: place.rules.max_bytes,
            body: Vec::new(),
            reserved: 0,
            framing: Body::empty(),
            headers,
        };
        keep.has_room(Kept::head_cost(&keep.headers)).then_some(keep)
    }

    /// The same for a response of HTTP/1 with this body, if that says where it ends.
    pub(crate) fn framed(mut self: Box<Self>, body: &Body) -> Option<Box<Self>> {
        self.framing = body.to_plain()?;
        Some(self)
    }

    /// Takes a part of the body. `false`: there is no room for it.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> bool {
        let room = self.has_room(self.body.len() + bytes.len());
        if room {
            self.body.extend_from_slice(bytes);
        }
        room
    }

    /// Takes a part of the body in its framing, as [`Body::relay`] does. `false`: there is no
    /// room for it, or it is no body.
    pub(crate) fn relay(&mut self, input: &[u8]) -> bool {
        self.has_room(self.body.len() + input.len()) && self.framing.relay(input, &mut self.body).is_ok()
    }

    /// It came to a good end.
    pub(crate) fn store(mut self: Box<Self>) {
        let headers = std::mem::take(&mut self.headers);
        let body = std::mem::take(&mut self.body).into_boxed_slice();
        let kept = Kept { headers, body: body.into() };
        let (selecting, terms) = (self.selecting.clone(), self.terms.clone());
        let mut cache = self.cache.lock();
        cache.release(std::mem::take(&mut self.reserved));
        if cache.has_changed(&self.target, self.asked) {
            return;
        }
        cache.insert(&self.target, selecting, terms, kept, self.received, self.max_bytes);
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        if bytes <= self.reserved {
            return true;
        }
        let wanted = bytes.max(2 * self.reserved).max(STEP.min(self.max_bytes / 4));
        let mut cache = self.cache.lock();
        // The last step may have to be smaller.
        let to = [wanted, bytes].into_iter().find(|to| cache.reserve(to - self.reserved, self.max_bytes));
        self.reserved = to.unwrap_or(self.reserved);
        to.is_some()
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        if self.reserved > 0 {
            self.cache.lock().release(self.reserved);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Method;
    use super::*;
    use crate::http1::body::Coding;
    use crate::policy::fallback::StaleCache;
    use crate::route::Http1Head;

    const MAX_AGE: Duration = Duration::from_secs(60);
    const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nhost: users\r\n";

    fn place(max_bytes: usize) -> Place {
        let rules = StaleCache { max_age: MAX_AGE, max_bytes };
        Place { cache: Arc::default(), rules, target: b"/a".as_slice().into(), method: Method::Get }
    }

    fn keep(place: &Place, body: &Body) -> Option<Box<Keep>> {
        let terms = Terms { age: Duration::ZERO, usable: MAX_AGE, public: false, vary: [].into() };
        let headers = [("ratelimit", "\"a\";r=1"), ("x-a", "1")];
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let now = Instant::now();
        let keep =
            Keep::new(place, &Http1Head::new(REQUEST), terms, HeaderMap::from_iter(headers), (now, now));
        Box::new(keep?).framed(body)
    }

    fn kept(place: &Place) -> Option<Vec<u8>> {
        let mut cache = place.cache.lock();
        let found = cache.find(&place.target, &Http1Head::new(REQUEST), MAX_AGE, Instant::now())?;
        Some(found.kept.body.to_vec())
    }

    #[test]
    fn a_chunked_body_is_kept_without_its_chunks_and_only_whole() {
        let place = place(64 << 10);
        let body = Body::chunked(Coding::Chunked);
        let mut whole = keep(&place, &body).unwrap();
        // A line that is cut is presented again, as the connection does.
        assert!(
            whole.relay(b"5\r\nhello\r\n") && whole.relay(b"5\r\n, y") && whole.relay(b"ou\r\n0\r\n\r\n")
        );
        assert_eq!(kept(&place), None, "not before its end");
        whole.store();
        assert_eq!(kept(&place).as_deref(), Some(b"hello, you".as_slice()));
        let mut broken = keep(&place, &body).unwrap();
        assert!(broken.relay(b"5\r\nhow a"));
        drop(broken);
        assert_eq!(kept(&place).as_deref(), Some(b"hello, you".as_slice()));
        assert!(keep(&place, &Body::until_close(Coding::Chunked)).is_none(), "its end might be an abort");
    }

    #[test]
    fn what_is_on_its_way_takes_a_quarter_and_gives_it_back() {
        let place = place(64 << 10);
        let body = Body::of_length(1 << 30);
        let mut first = keep(&place, &body).unwrap();
        assert!(first.relay(&[0; 12 << 10]) && !first.relay(&[0; 8 << 10]));
        let mut second = keep(&place, &body).unwrap();
        assert!(!second.relay(&[0; 8 << 10]), "both together");
        drop(first);
        assert!(second.relay(&[0; 8 << 10]));
        drop(second);
        assert!(place.cache.lock().reserve(16 << 10, 64 << 10), "all of it is free again");
    }

    /// A response that was on its way while its target was changed was kept as if it were of afterwards.
    #[test]
    fn what_was_changed_meanwhile_is_not_kept() {
        let place = place(64 << 10);
        let body = Body::of_length(2);
        let mut before = keep(&place, &body).unwrap();
        assert!(before.relay(b"hi"));
        place.cache.lock().invalidate(&place.target, Instant::now());
        before.store();
        assert_eq!(kept(&place), None);
        assert!(place.cache.lock().reserve(16 << 10, 64 << 10), "its room is free again");
    }

    #[test]
    fn the_word_of_a_rate_limit_is_not_kept() {
        let place = place(64 << 10);
        let mut whole = keep(&place, &Body::of_length(2)).unwrap();
        assert!(whole.relay(b"hi"));
        whole.store();
        let mut cache = place.cache.lock();
        let found = cache.find(&place.target, &Http1Head::new(REQUEST), MAX_AGE, Instant::now()).unwrap();
        assert!(found.kept.headers.contains_key("x-a") && !found.kept.headers.contains_key("ratelimit"));
    }
}
