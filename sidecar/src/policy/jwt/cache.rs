//! Tokens that were verified before.
//!
//! They are known by their SHA-256, so that nothing of them is kept and no two
//! are ever taken for one. Two generations: what is not asked for while one
//! fills up goes with it. A cache is one worker's, and lives as long as the
//! policies: a change of them begins with an empty one.

use std::collections::HashMap;
use std::rc::Rc;

use aws_lc_rs::digest::{SHA256, digest};

use super::token::Verified;

/// A token under one provider: by the address of the gate, which outlives the cache, and the places of the
/// provider's policy and its own.
pub(super) type Name = ([u8; 32], usize, usize, usize);

/// Tokens that were verified.
#[derive(Debug, Default)]
pub struct Cache {
    recent: HashMap<Name, Known>,
    older: HashMap<Name, Known>,
    /// Bytes of the recent ones' texts.
    weight: usize,
}

/// A token, and the bytes of its text, which its claims are made of.
type Known = (Rc<Verified>, usize);

/// Of one generation. A thousand users are one of them; both together are at most a few megabytes.
const ENTRIES: usize = 1024;
const WEIGHT: usize = 2 << 20;

impl Cache {
    /// What stands for a token.
    pub(super) fn digest(token: &[u8]) -> [u8; 32] {
        let digest = digest(&SHA256, token);
        <[u8; 32]>::try_from(digest.as_ref()).expect("SHA-256 has 32 bytes")
    }

    pub(super) fn get(&mut self, name: &Name) -> Option<Rc<Verified>> {
        if let Some((known, _)) = self.recent.get(name) {
            return Some(known.clone());
        }
        let (known, length) = self.older.remove(name)?;
        // As long as it is asked for it stays, at the cost of others.
        self.insert(*name, known.clone(), length);
        Some(known)
    }

    pub(super) fn insert(&mut self, name: Name, verified: Rc<Verified>, length: usize) {
        if self.recent.len() >= ENTRIES || self.weight + length > WEIGHT {
            self.older = std::mem::take(&mut self.recent);
            self.weight = 0;
        }
        self.weight += length;
        self.recent.insert(name, (verified, length));
    }

    #[cfg(test)]
    pub(super) fn weight(&self) -> usize {
        let both = self.recent.values().chain(self.older.values());
        both.map(|(_, length)| length).sum()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.recent.len() + self.older.len()
    }
}
