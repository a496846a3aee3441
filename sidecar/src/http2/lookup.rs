//! Looks into a request's head after it was sanitised.

use std::net::{IpAddr, SocketAddr};

use http::request::Parts;

use crate::policy::hash_key::Source;

/// A head and where it came from.
pub(super) struct Lookup<'a> {
    pub(super) head: &'a Parts,
    pub(super) client: Option<SocketAddr>,
}

impl Source for Lookup<'_> {
    fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.head.headers.get_all(name).into_iter().map(|value| value.as_bytes())
    }

    fn query(&self) -> &[u8] {
        self.head.uri.query().unwrap_or_default().as_bytes()
    }

    fn client(&self) -> Option<IpAddr> {
        self.client.map(|client| client.ip())
    }
}
