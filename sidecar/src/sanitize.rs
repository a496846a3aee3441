//! The one step between parsing and everything else, shared by HTTP/1 and
//! HTTP/2: what is not clear to every parser alike is refused, not repaired.
//!
//! [`path`] gives the one form of a path that is matched and forwarded,
//! [`authority`] reads `Host` and `:authority`, [`headers`] says what a header
//! means to a proxy, and [`answer`] words the mesh's own answers. Message
//! framing is left to the codecs, which alone see the bytes.

pub mod answer;
pub mod authority;
pub mod chain;
pub mod headers;
pub mod path;
