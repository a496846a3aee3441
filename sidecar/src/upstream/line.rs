//! Who waits for one of a destination's connections to end, and what is under way for them.
//!
//! A connection that carries nothing ends where somebody waits for whom nothing is
//! under way: no room of which they have yet to hear, and no other connection that ends for them.

use std::cell::Cell;
use std::rc::Rc;

/// The numbers of a destination.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Requests that wait.
    waiting: Cell<usize>,
    /// Those of them that were told of room and have not looked yet.
    told: Cell<usize>,
    /// Connections that end for them.
    leaving: Cell<usize>,
}

impl Line {
    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// Whether a connection that carries nothing is in the way of somebody, of so many who
    /// are about to wait besides.
    pub(crate) fn lacks_room(&self, besides: usize) -> bool {
        self.waiting.get() + besides > self.told.get() + self.leaving.get()
    }

    /// One of those who wait is told that there is room.
    pub(crate) fn tell(&self) {
        self.told.set((self.told.get() + 1).min(self.waiting.get()));
    }
}

/// A request that waits, until dropped.
pub(crate) struct Waiting<'a>(&'a Line);

impl<'a> Waiting<'a> {
    pub(crate) fn new(line: &'a Line) -> Self {
        line.waiting.set(line.waiting.get() + 1);
        Self(line)
    }

    /// It was told, and looks.
    pub(crate) fn looks(self) {
        self.0.told.set(self.0.told.get().saturating_sub(1));
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
        // Who gives up leaves what they were told to the others.
        self.0.told.set(self.0.told.get().min(self.0.waiting.get()));
    }
}

/// A connection that ends to make room, until it has ended.
#[derive(Debug)]
pub(crate) struct Leaving(Rc<Line>);

impl Leaving {
    pub(crate) fn new(line: &Rc<Line>) -> Self {
        line.leaving.set(line.leaving.get() + 1);
        Self(line.clone())
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leaving.set(self.0.leaving.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_waits_is_made_room_for_once() {
        let line = Rc::new(Line::default());
        assert!(!line.lacks_room(0) && line.lacks_room(1));
        let first = Waiting::new(&line);
        assert!(line.lacks_room(0));
        let leaving = Leaving::new(&line);
        assert!(!line.lacks_room(0), "it is under way");
        let second = Waiting::new(&line);
        assert!(line.lacks_room(0), "but not for both");
        drop(second);
        line.tell();
        drop(leaving);
        assert!(!line.lacks_room(0), "it is there, and not looked at yet");
        first.looks();
        assert!(!line.lacks_room(0));
        line.tell();
        assert!(line.lacks_room(1), "nobody was told");
    }

    #[test]
    fn what_one_was_told_who_gave_up_is_the_next_ones() {
        let line = Line::default();
        let (gone, stays) = (Waiting::new(&line), Waiting::new(&line));
        line.tell();
        drop(gone);
        assert!(!line.lacks_room(0));
        stays.looks();
        let next = Waiting::new(&line);
        assert!(line.lacks_room(0));
        drop(next);
    }
}
