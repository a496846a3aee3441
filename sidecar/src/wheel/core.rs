//! The wheel without a clock: ticks in, wakers out.
//!
//! Entries live in a slab and are linked into one of 128 slots, a tick each.
//! An armed entry is always linked, at its due tick or earlier; `due` may have
//! moved later meanwhile. A disarmed entry may stay linked until its slot comes by.

use std::task::Waker;

/// No tick, no slot, nothing linked.
pub(crate) const NEVER: u64 = u64::MAX;

/// The end of a list.
const NIL: u32 = u32::MAX;

/// A power of two above the recheck distance, so that a tick has one slot and
/// one word of bits says which are in use.
const SLOTS: usize = 128;

const TURN: u64 = SLOTS as u64;

/// Entries are looked at on ticks divisible by this, a whole second, at the
/// latest: far entries of all connections share one wake-up.
const RECHECK: u64 = 100;

/// An entry's place in the slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u32);

#[derive(Debug)]
pub(crate) struct Core {
    /// All slots up to this tick are done.
    now: u64,
    /// Heads of the slots' lists.
    slots: [u32; SLOTS],
    /// Bit `n`: slot `n` is not empty.
    occupied: u128,
    entries: Vec<Entry>,
    /// Head of the list of unused entries, linked by `next`.
    free: u32,
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// The tick whose slot it is linked in, [`NEVER`] if in none.
    slot: u64,
    next: u32,
    previous: u32,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Disarmed,
    Armed { due: u64 },
    Expired,
}

impl Default for Core {
    fn default() -> Self {
        Self { now: 0, slots: [NIL; SLOTS], occupied: 0, entries: Vec::new(), free: NIL }
    }
}

impl Core {
    /// A new entry, not armed.
    pub(crate) fn insert(&mut self) -> Key {
        let entry = Entry { state: State::Disarmed, slot: NEVER, next: NIL, previous: NIL, waker: None };
        if self.free == NIL {
            self.entries.push(entry);
            return Key(u32::try_from(self.entries.len() - 1).expect("fewer deadlines than 2^32"));
        }
        let index = self.free;
        self.free = self.entries[index as usize].next;
        self.entries[index as usize] = entry;
        Key(index)
    }

    /// Gives an entry back, and its waker to be dropped outside.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Waker> {
        self.unlink(key.0);
        let free = self.free;
        let entry = &mut self.entries[key.0 as usize];
        entry.next = free;
        self.free = key.0;
        entry.waker.take()
    }

    /// Sets when an entry is due; the tick it had to be linked at anew, if it had to be.
    #[inline]
    pub(crate) fn arm(&mut self, key: Key, due: u64) -> Option<u64> {
        let entry = &mut self.entries[key.0 as usize];
        entry.state = State::Armed { due };
        if entry.slot <= due {
            return None;
        }
        self.unlink(key.0);
        Some(self.link(key.0, due))
    }

    /// Takes an entry's due time away. It stays linked: the next exchange arms
    /// it again, most likely.
    #[inline]
    pub(crate) fn disarm(&mut self, key: Key) {
        self.entries[key.0 as usize].state = State::Disarmed;
    }

    pub(crate) fn is_expired(&self, key: Key) -> bool {
        self.entries[key.0 as usize].state == State::Expired
    }

    /// Remembers whom to wake when an entry is over; who was to be woken before,
    /// if that is another.
    #[inline]
    pub(crate) fn watch(&mut self, key: Key, waker: &Waker) -> Option<Waker> {
        let known = &mut self.entries[key.0 as usize].waker;
        match known {
            Some(known) if known.will_wake(waker) => None,
            _ => known.replace(waker.clone()),
        }
    }

    /// Everyone who waits for an entry.
    pub(crate) fn watchers(&self) -> Vec<Waker> {
        self.entries.iter().filter_map(|entry| entry.waker.clone()).collect()
    }

    /// Moves on to `now`: whom to wake is appended to `due`, what is not yet
    /// due is put further ahead.
    pub(crate) fn advance(&mut self, now: u64, due: &mut Vec<Waker>) {
        let passed = now.saturating_sub(self.now).min(TURN);
        if passed == 0 {
            return;
        }
        let first = self.now + 1;
        self.now = now;
        // Slots that are passed, in order: entries are linked anew behind `now`
        // while this goes on, and at most one turn ahead.
        let mut passing = self.occupied & passed_slots(first, passed);
        while passing != 0 {
            let slot = slot_of(first + u64::from(passing.rotate_right(turn(first)).trailing_zeros()));
            passing &= !(1 << slot);
            self.occupied &= !(1 << slot);
            let mut index = std::mem::replace(&mut self.slots[slot], NIL);
            while index != NIL {
                let entry = &mut self.entries[index as usize];
                let following = entry.next;
                (entry.slot, entry.next, entry.previous) = (NEVER, NIL, NIL);
                match entry.state {
                    State::Armed { due: tick } if tick <= now => {
                        entry.state = State::Expired;
                        due.extend(entry.waker.take());
                    }
                    State::Armed { due: tick } => {
                        self.link(index, tick);
                    }
                    State::Disarmed | State::Expired => {}
                }
                index = following;
            }
        }
    }

    /// The next tick with something to look at, [`NEVER`] if there is none.
    pub(crate) fn next(&self) -> u64 {
        match self.occupied {
            0 => NEVER,
            occupied => {
                let first = self.now + 1;
                first + u64::from(occupied.rotate_right(turn(first)).trailing_zeros())
            }
        }
    }

    /// Entries that take memory.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Links an entry at `due`, or at the next recheck if that is earlier.
    fn link(&mut self, index: u32, due: u64) -> u64 {
        let recheck = (self.now / RECHECK + 1) * RECHECK;
        let tick = due.clamp(self.now + 1, recheck);
        let slot = slot_of(tick);
        let head = std::mem::replace(&mut self.slots[slot], index);
        self.occupied |= 1 << slot;
        let entry = &mut self.entries[index as usize];
        (entry.slot, entry.next, entry.previous) = (tick, head, NIL);
        if head != NIL {
            self.entries[head as usize].previous = index;
        }
        tick
    }

    fn unlink(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        if entry.slot == NEVER {
            return;
        }
        let slot = slot_of(entry.slot);
        let (previous, next) = (entry.previous, entry.next);
        (entry.slot, entry.next, entry.previous) = (NEVER, NIL, NIL);
        if next != NIL {
            self.entries[next as usize].previous = previous;
        }
        if previous == NIL {
            self.slots[slot] = next;
            if next == NIL {
                self.occupied &= !(1 << slot);
            }
        } else {
            self.entries[previous as usize].next = next;
        }
    }
}

fn slot_of(tick: u64) -> usize {
    (tick % TURN) as usize
}

fn turn(tick: u64) -> u32 {
    (tick % TURN) as u32
}

/// The bits of `count` slots from the one of tick `first` on.
fn passed_slots(first: u64, count: u64) -> u128 {
    let bits = if count >= TURN { u128::MAX } else { (1 << count) - 1 };
    bits.rotate_left(turn(first))
}
