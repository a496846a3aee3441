//! Who may have connections to the webhooks or to the admin listener, and how many.
//!
//! API servers, kubelets and scrapers have no address that a policy could name, so that every pod of the
//! cluster can call. No single one of them can have all the places.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// An API server asks about as many pods at once as it lets be made at once, several hundred, each on a
/// connection of its own; there are a handful of API servers.
const ALL: usize = 1024;

/// Those of one address.
const OF_ONE: usize = ALL / 2;

/// The connections that there are, by the address of the peer.
#[derive(Debug, Default)]
pub(crate) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// A place, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    peer: IpAddr,
}

impl Places {
    /// A place for a connection of `peer`, if there is one left for it.
    pub(crate) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let peer = peer.to_canonical();
        let mut taken = self.taken.lock();
        if taken.all >= ALL || taken.by_peer.get(&peer).is_some_and(|count| *count >= OF_ONE) {
            return None;
        }
        taken.all += 1;
        *taken.by_peer.entry(peer).or_default() += 1;
        Some(Place { places: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_never_has_all_places_and_gives_back_what_it_had() {
        let places = Arc::new(Places::default());
        let peer = |last: u8| IpAddr::from([10, 0, 0, last]);
        let greedy: Vec<_> = std::iter::from_fn(|| places.take(peer(1))).collect();
        assert_eq!(greedy.len(), OF_ONE);
        // The same host by its other name.
        assert!(places.take("::ffff:10.0.0.1".parse().unwrap()).is_none());
        let second: Vec<_> = std::iter::from_fn(|| places.take(peer(2))).collect();
        assert_eq!(second.len(), ALL - OF_ONE);
        assert!(places.take(peer(3)).is_none());
        drop(greedy);
        assert!(places.take(peer(3)).is_some());
        drop(second);
        let taken = places.taken.lock();
        assert_eq!((taken.all, taken.by_peer.len()), (0, 0));
    }
}
