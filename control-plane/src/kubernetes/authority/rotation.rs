//! One authority after another, without a certificate that anybody refuses:
//! first the new root is trusted, then its authority signs, and the old root
//! goes when nothing that it vouches for is valid any more. Pure: time
//! comes in as an argument.
//!
//! An operator who does the steps one by one (a second root in `ca.crt`, then
//! the new `tls.crt`, then the first root out) gets each at once. One who
//! replaces everything in one go, as cert-manager does, gets the steps from here.
//! What a control plane could not know that starts in between is
//! [`Rotation::unlisted`].

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::Loaded;
use super::retired::Retired;
use crate::ca::Authority;

/// From trusting a new root to signing with it. Connected sidecars hear of it within a second, but a
/// replica whose watch has silently died only after a minute and a half, and a pod that is just
/// starting has what the kubelet mounted, which it renews after a minute.
const SETTLE: Duration = Duration::from_secs(120);

/// That time, where certificates last for `lifetime`: they must not end before a new one is signed.
pub(super) fn settling(lifetime: Duration) -> Duration {
    SETTLE.min(lifetime / 4)
}

/// What is in force, what comes, and what goes.
pub(super) struct Rotation {
    lifetime: Duration,
    /// The certificate and the root of the authority in force.
    issuing: CertificateDer<'static>,
    root: CertificateDer<'static>,
    /// What the Secret lists.
    listed: Vec<CertificateDer<'static>>,
    next: Option<(Authority, SystemTime)>,
    /// Roots that the Secret does not list any more.
    retired: Vec<Retired>,
}

impl Rotation {
    /// What is in force at the start. `retired` is what is remembered of a time before it.
    pub(super) fn new(loaded: &Loaded, lifetime: Duration, retired: Vec<Retired>, now: SystemTime) -> Self {
        // Nothing that was signed can be valid for longer, whatever is written there.
        let latest = now + settling(lifetime) + lifetime;
        let fresh = retired.into_iter().filter(|retired| retired.until > now);
        Self {
            lifetime,
            issuing: loaded.authority.issuing().clone(),
            root: loaded.authority.root().clone(),
            listed: loaded.roots.clone(),
            next: None,
            retired: fresh.map(|retired| Retired { until: retired.until.min(latest), ..retired }).collect(),
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
                None => now + settling(self.lifetime),
            };
            self.next = Some((authority, due));
        }
        self.listed = roots;
    }

    /// The authority that signs from `now` on, if that is another one; forgets roots that are over.
    pub(super) fn advance(&mut self, now: SystemTime) -> Option<Authority> {
        self.retired.retain(|retired| retired.until > now);
        let (authority, _) = self.next.take_if(|(_, due)| *due <= now)?;
        if !self.listed.contains(&self.root) && self.root != *authority.root() {
            self.retired.push(Retired { root: self.root.clone(), until: now + self.lifetime });
        }
        self.issuing = authority.issuing().clone();
        self.root = authority.root().clone();
        Some(authority)
    }

    /// When [`Self::advance`] has something to do.
    pub(super) fn due(&self) -> Option<SystemTime> {
        let next = self.next.as_ref().map(|(_, due)| *due);
        next.into_iter().chain(self.retired.iter().map(|retired| retired.until)).min()
    }

    /// What is trusted now.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        let mut roots = vec![self.root.clone()];
        let next = self.next.as_ref().map(|(next, _)| next.root());
        let retired = self.retired.iter().map(|retired| &retired.root);
        for root in self.listed.iter().chain(next).chain(retired) {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }

    /// The roots that are trusted though the Secret does not list them.
    pub(super) fn unlisted(&self) -> Vec<Retired> {
        let mut unlisted: Vec<Retired> =
            self.retired.iter().filter(|retired| !self.listed.contains(&retired.root)).cloned().collect();
        if let Some((_, due)) = &self.next
            && !self.listed.contains(&self.root)
        {
            unlisted.push(Retired { root: self.root.clone(), until: *due + self.lifetime });
        }
        unlisted
    }
}
