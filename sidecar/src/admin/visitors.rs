//! Who is connected to the admin listener, and who gives way when too many are.
//!
//! In a pod any host of the network may connect, and a kubelet that is not
//! answered kills the application. A newcomer is therefore never kept waiting: where there
//! is no room, the oldest connection of the address with the most of them ends. Pure.

use std::net::IpAddr;

/// Connections at once: a scraper or two, the kubelet's probes and a few people.
pub(super) const MOST: usize = 64;

/// Those that are connected, in the order of their arrival. `T` is what ends one.
#[derive(Debug)]
pub(super) struct Visitors<T>(Vec<(IpAddr, T)>);

impl<T> Visitors<T> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whoever has to leave before another can enter.
    pub(super) fn make_room(&mut self) -> Option<T> {
        if self.0.len() < MOST {
            return None;
        }
        let of = |address: IpAddr| self.0.iter().filter(|(from, _)| *from == address).count();
        let most = self.0.iter().map(|(from, _)| of(*from)).max()?;
        let oldest = self.0.iter().position(|(from, _)| of(*from) == most)?;
        Some(self.0.remove(oldest).1)
    }

    /// Somebody has come from this address.
    pub(super) fn enter(&mut self, from: IpAddr, visitor: T) {
        self.0.push((from, visitor));
    }

    /// Those have left to whom this applies.
    pub(super) fn leave(&mut self, is: impl Fn(&T) -> bool) {
        self.0.retain(|(_, visitor)| !is(visitor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn the_oldest_of_whoever_has_most_gives_way() {
        let mut visitors = Visitors::new();
        visitors.enter(from(1), 1);
        for number in 2..=40 {
            visitors.enter(from(2), number);
        }
        for number in 41..=63 {
            visitors.enter(from(3), number);
        }
        assert_eq!(visitors.make_room(), None);
        visitors.enter(from(4), 64);
        assert_eq!(visitors.make_room(), Some(2));
        visitors.leave(|number| *number == 3);
        assert_eq!(visitors.make_room(), None);
        visitors.enter(from(2), 65);
        visitors.enter(from(2), 66);
        assert_eq!(visitors.make_room(), Some(4));
    }

    #[test]
    fn where_nobody_has_more_than_others_the_oldest_of_all_gives_way() {
        let mut visitors = Visitors::new();
        for last in 1..=64 {
            visitors.enter(from(last), last);
        }
        assert_eq!(visitors.make_room(), Some(1));
    }
}
