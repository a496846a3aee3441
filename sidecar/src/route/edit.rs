//! Changing a head: the same operations on the bytes of HTTP/1 and on the
//! structures of HTTP/2.
//!
//! An HTTP/1 head is taken apart into its lines and written once, after all
//! changes. Neither framing nor anything else that ends at a hop can be named
//! here: [`crate::route::filter`] refuses such names.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use memchr::memchr;

use crate::http1::{MAX_FIELDS, Span};
use crate::route::head::{Head, Http1Head, field_value, lines, split_line};

/// Fields that can be changed, of a request or a response.
pub trait EditFields {
    /// Replaces all values of a field by this one.
    fn set(&mut self, name: &HeaderName, value: &HeaderValue);

    /// Adds a value behind those that are there.
    fn add(&mut self, name: &HeaderName, value: &HeaderValue);

    /// Removes all values.
    fn remove(&mut self, name: &HeaderName);

    /// Shows the name of each field, in any case; one that is repeated perhaps more than once.
    fn each_name(&self, see: &mut dyn FnMut(&[u8]));
}

/// A request's head that can be changed.
pub trait EditHead: EditFields {
    /// The path without its query, changes included.
    fn current_path(&self) -> &[u8];

    /// Replaces the path and keeps the query.
    ///
    /// # Errors
    /// If the target would be longer than a head may be.
    fn set_path(&mut self, path: &[u8]) -> Result<(), TooLong>;

    /// Replaces the query; `None`: there is none.
    ///
    /// # Errors
    /// If the target would be longer than a head may be.
    fn set_query(&mut self, query: Option<&[u8]>) -> Result<(), TooLong>;

    /// Replaces the authority.
    fn set_authority(&mut self, authority: &Authority);
}

/// A rewritten target that no head may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten target is too long")]
pub struct TooLong;

/// The longest target, in bytes: what the `http` crate takes, a little less
/// than [`crate::http1::MAX_HEAD`].
const MAX_TARGET: usize = u16::MAX as usize - 1;

impl EditFields for HeaderMap {
    fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.insert(name, value.clone());
    }

    fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.append(name, value.clone());
    }

    fn remove(&mut self, name: &HeaderName) {
        Self::remove(self, name);
    }

    fn each_name(&self, see: &mut dyn FnMut(&[u8])) {
        self.keys().for_each(|name| see(name.as_str().as_bytes()));
    }
}

impl EditFields for Parts {
    fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        EditFields::set(&mut self.headers, name, value);
    }

    fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        EditFields::add(&mut self.headers, name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        EditFields::remove(&mut self.headers, name);
    }

    fn each_name(&self, see: &mut dyn FnMut(&[u8])) {
        self.headers.each_name(see);
    }
}

impl EditHead for Parts {
    fn current_path(&self) -> &[u8] {
        Head::path(self)
    }

    fn set_path(&mut self, path: &[u8]) -> Result<(), TooLong> {
        let target = with_query(path, Head::query(self))?;
        set_target(self, target)
    }

    fn set_query(&mut self, query: Option<&[u8]>) -> Result<(), TooLong> {
        let target = with_query(Head::path(self), query)?;
        set_target(self, target)
    }

    fn set_authority(&mut self, authority: &Authority) {
        let mut parts = std::mem::take(&mut self.uri).into_parts();
        parts.authority = Some(authority.clone());
        // Sanitised requests have a scheme wherever they have a path.
        self.uri = Uri::from_parts(parts).unwrap_or_default();
    }
}

fn set_target(head: &mut Parts, target: Vec<u8>) -> Result<(), TooLong> {
    let target = PathAndQuery::from_maybe_shared(Bytes::from(target)).map_err(|_| TooLong)?;
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(target);
    // A scheme and an authority were there before, or neither.
    head.uri = Uri::from_parts(parts).map_err(|_| TooLong)?;
    Ok(())
}

/// The head of an HTTP/1 message, taken apart.
#[derive(Debug, Clone)]
struct Lines<'a> {
    fields: Vec<Line<'a>>,
    /// Whether the empty line at the end was there.
    ended: bool,
}

#[derive(Debug, Clone)]
enum Line<'a> {
    Original(&'a [u8]),
    New(HeaderName, HeaderValue),
}

impl Line<'_> {
    fn is(&self, name: &HeaderName) -> bool {
        match self {
            Self::Original(line) => field_value(line, name.as_str().as_bytes()).is_some(),
            Self::New(other, _) => other == name,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Original(line) => out.extend_from_slice(line),
            Self::New(name, value) => {
                out.extend_from_slice(name.as_str().as_bytes());
                out.extend_from_slice(b": ");
                out.extend_from_slice(value.as_bytes());
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

impl<'a> Lines<'a> {
    fn new(section: &'a [u8]) -> Self {
        let mut fields = Vec::with_capacity(MAX_FIELDS / 4);
        fields.extend(lines(section).map(Line::Original));
        let ended = section.ends_with(b"\r\n\r\n") || section == b"\r\n";
        Self { fields, ended }
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.fields.iter().for_each(|line| line.write(out));
        if self.ended {
            out.extend_from_slice(b"\r\n");
        }
    }
}

impl EditFields for Lines<'_> {
    fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        let mut new = Some(Line::New(name.clone(), value.clone()));
        self.fields.retain_mut(|line| {
            if !line.is(name) {
                return true;
            }
            // The new value takes the place of the first old one.
            new.take().map(|new| *line = new).is_some()
        });
        self.fields.extend(new);
    }

    fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.fields.push(Line::New(name.clone(), value.clone()));
    }

    fn remove(&mut self, name: &HeaderName) {
        self.fields.retain(|line| !line.is(name));
    }

    fn each_name(&self, see: &mut dyn FnMut(&[u8])) {
        for line in &self.fields {
            match line {
                Line::Original(line) => see(&line[..memchr(b':', line).unwrap_or(line.len())]),
                Line::New(name, _) => see(name.as_str().as_bytes()),
            }
        }
    }
}

/// The head of an HTTP/1 request as [`crate::http1::request`] wrote it, to be changed.
#[derive(Debug, Clone)]
pub struct Http1Request<'a> {
    method: &'a [u8],
    target: Cow<'a, [u8]>,
    lines: Lines<'a>,
}

/// Where the parts of a request lie in the buffer that it was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// The method's token.
    pub method: Span,
    /// The path without its query; empty for `CONNECT`.
    pub path: Span,
    /// The path with its query.
    pub target: Span,
    /// The authority.
    pub authority: Span,
}

impl<'a> Http1Request<'a> {
    /// Takes a head apart; `head` is nothing but it.
    pub fn new(head: &'a [u8]) -> Self {
        let (line, section) = split_line(head);
        let mut words = line.splitn(3, |&byte| byte == b' ');
        let method = words.next().unwrap_or_default();
        let target = Cow::Borrowed(words.next().unwrap_or_default());
        Self { method, target, lines: Lines::new(section) }
    }

    /// Appends it to `out` with all changes; still open if it was. `host` comes
    /// first, as before.
    pub fn write(&self, out: &mut Vec<u8>) -> Places {
        let head = out.len();
        out.extend_from_slice(self.method);
        let method = Span::new(head, out.len());
        out.push(b' ');
        let start = out.len();
        out.extend_from_slice(&self.target);
        let target = Span::new(start, out.len());
        let path = Span::new(start, start + self.current_path().len());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        self.lines.write(out);
        let authority = match Http1Head::new(&out[head..]).authority() {
            [] => Span::default(),
            authority => Span::within(out, authority),
        };
        Places { method, path, target, authority }
    }
}

impl EditFields for Http1Request<'_> {
    fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.lines.set(name, value);
    }

    fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.lines.add(name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.lines.remove(name);
    }

    fn each_name(&self, see: &mut dyn FnMut(&[u8])) {
        self.lines.each_name(see);
    }
}

impl EditHead for Http1Request<'_> {
    fn current_path(&self) -> &[u8] {
        match &*self.target {
            target @ ([b'/', ..] | b"*") => &target[..memchr(b'?', target).unwrap_or(target.len())],
            _ => b"",
        }
    }

    fn set_path(&mut self, path: &[u8]) -> Result<(), TooLong> {
        let query = memchr(b'?', &self.target).map(|mark| &self.target[mark + 1..]);
        self.target = Cow::Owned(with_query(path, query)?);
        Ok(())
    }

    fn set_query(&mut self, query: Option<&[u8]>) -> Result<(), TooLong> {
        self.target = Cow::Owned(with_query(self.current_path(), query)?);
        Ok(())
    }

    fn set_authority(&mut self, authority: &Authority) {
        // An authority has only bytes that a field may have.
        if let Ok(value) = HeaderValue::from_str(authority.as_str()) {
            self.lines.set(&HOST, &value);
        }
    }
}

/// The head of an HTTP/1 response as [`crate::http1::response`] wrote it, to be changed.
#[derive(Debug, Clone)]
pub struct Http1Response<'a> {
    status: &'a [u8],
    lines: Lines<'a>,
}

impl<'a> Http1Response<'a> {
    /// Takes a head apart; `head` is nothing but it.
    pub fn new(head: &'a [u8]) -> Self {
        let (status, section) = split_line(head);
        Self { status, lines: Lines::new(section) }
    }

    /// Appends it to `out` with all changes; still open if it was.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.status);
        out.extend_from_slice(b"\r\n");
        self.lines.write(out);
    }
}

impl EditFields for Http1Response<'_> {
    fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.lines.set(name, value);
    }

    fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.lines.add(name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.lines.remove(name);
    }

    fn each_name(&self, see: &mut dyn FnMut(&[u8])) {
        self.lines.each_name(see);
    }
}

fn with_query(path: &[u8], query: Option<&[u8]>) -> Result<Vec<u8>, TooLong> {
    let length = path.len() + query.map_or(0, |query| query.len() + 1);
    if length > MAX_TARGET {
        return Err(TooLong);
    }
    let mut target = Vec::with_capacity(length);
    target.extend_from_slice(path);
    if let Some(query) = query {
        target.push(b'?');
        target.extend_from_slice(query);
    }
    Ok(target)
}
