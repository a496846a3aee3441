//! One authority after another, without a certificate that anybody refuses:
//! first the new root is trusted, then its authority signs, and the old root
//! goes when nothing that it vouches for is valid any more. Pure: time
//! comes in as an argument.
//!
//! An operator who does the steps one by one (a second root in `ca.crt`, then
//! the new `tls.crt`, then the first root out) gets each at once. One who
//! replaces everything in one go, as cert-manager does, gets the steps from here.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::Loaded;
use crate::ca::Authority;

/// From trusting a new root to signing with it: connected sidecars hear of it within a second.
pub(super) const SETTLE: Duration = Duration::from_secs(10);

/// What is in force, what comes, and what goes.
pub(super) struct Rotation {
    lifetime: Duration,
    /// The certificate and the root of the authority in force.
    issuing: CertificateDer<'static>,
    root: CertificateDer<'static>,
    /// What the Secret lists.
    listed: Vec<CertificateDer<'static>>,
    next: Option<(Authority, SystemTime)>,
    /// Roots that the Secret does not list any more, each with its end.
    retired: Vec<(CertificateDer<'static>, SystemTime)>,
}

impl Rotation {
    pub(super) fn new(loaded: &Loaded, lifetime: Duration) -> Self {
        Self {
            lifetime,
            issuing: loaded.authority.issuing().clone(),
            root: loaded.authority.root().clone(),
            listed: loaded.roots.clone(),
            next: None,
            retired: Vec::new(),
        }
    }

    /// The Secret has another content at `now`.
    pub(super) fn replace(&mut self, loaded: Loaded, now: SystemTime) {
        let Loaded { authority, roots } = loaded;
        if *authority.issuing() == self.issuing {
            self.next = None;
        } else {
            let known = self.roots().contains(authority.root());
            let waiting = self.next.as_ref().filter(|(next, _)| next.issuing() == authority.issuing());
            let due = match waiting {
                Some((_, due)) => *due,
                None if known => now,
                None => now + SETTLE,
            };
            self.next = Some((authority, due));
        }
        self.listed = roots;
    }

    /// The authority that signs from `now` on, if that is another one; forgets roots that are over.
    pub(super) fn advance(&mut self, now: SystemTime) -> Option<Authority> {
        self.retired.retain(|(_, end)| *end > now);
        let (authority, _) = self.next.take_if(|(_, due)| *due <= now)?;
        if !self.listed.contains(&self.root) && self.root != *authority.root() {
            self.retired.push((self.root.clone(), now + self.lifetime));
        }
        self.issuing = authority.issuing().clone();
        self.root = authority.root().clone();
        Some(authority)
    }

    /// When [`Self::advance`] has something to do.
    pub(super) fn due(&self) -> Option<SystemTime> {
        let next = self.next.as_ref().map(|(_, due)| *due);
        next.into_iter().chain(self.retired.iter().map(|(_, end)| *end)).min()
    }

    /// What is trusted now.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        let mut roots = vec![self.root.clone()];
        let next = self.next.as_ref().map(|(next, _)| next.root());
        let retired = self.retired.iter().map(|(root, _)| root);
        for root in self.listed.iter().chain(next).chain(retired) {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }
}
