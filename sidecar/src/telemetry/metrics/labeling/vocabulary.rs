//! The values of a label that come from clients: so many at a time, those in use.
//!
//! A [`Vocabulary`] is shared by all workers, each of which [knows](Known) a part of it, so that
//! a request asks no one. A value that no request of any worker had for [`FORGOTTEN_AFTER`] is
//! forgotten: by each worker at its next sweep, and when none knows it any more, its
//! place is another's. So no worker ever takes a place for that of another value.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Values that one label can have.
pub const MAX_VALUES: usize = 200;

/// Bytes of a value. Longer ones are taken for those beyond the bound.
pub const MAX_VALUE: usize = 128;

/// For how long no request has a value before it is forgotten: longer than its series are shown, and
/// than a client that comes by the hour stays away. It takes up to two sweeps more.
pub(super) const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// Which values a label takes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admits {
    /// So many at a time, those that come first. At most [`MAX_VALUES`].
    First(usize),
    /// These, for ever. At most [`MAX_VALUES`].
    Listed(Box<[Arc<str>]>),
}

/// The values of a label, which all workers share.
#[derive(Debug)]
pub struct Vocabulary {
    admits: Admits,
    places: Mutex<Vec<Option<Taken>>>,
}

/// A place that a value has.
#[derive(Debug)]
struct Taken {
    value: Arc<str>,
    /// How many know it, each worker once for each direction.
    known_by: usize,
    used: Used,
}

#[derive(Debug, Clone, Copy)]
enum Used {
    /// Since the last sweep.
    Lately,
    /// Seen by the sweep of this time.
    At(Instant),
    /// Not for so long that nobody learns it any more, unless a request has it.
    Over,
}

impl Vocabulary {
    /// One that takes in these.
    pub fn new(admits: Admits) -> Self {
        let places = match &admits {
            Admits::First(_) => Vec::new(),
            Admits::Listed(values) => values.iter().cloned().map(|value| Some(taken(value))).collect(),
        };
        Self { admits, places: Mutex::new(places) }
    }

    /// What it takes in.
    pub fn admits(&self) -> &Admits {
        &self.admits
    }

    fn bound(&self) -> usize {
        match &self.admits {
            Admits::First(bound) => *bound,
            Admits::Listed(values) => values.len(),
        }
        .min(MAX_VALUES)
    }

    /// The value that has a place.
    pub(super) fn value(&self, place: u8) -> Option<Arc<str>> {
        self.places.lock().get(usize::from(place))?.as_ref().map(|taken| taken.value.clone())
    }
}

#[cfg(test)]
impl Vocabulary {
    /// How many values have a place.
    pub(super) fn len(&self) -> usize {
        self.places.lock().iter().flatten().count()
    }

    /// Keeps everybody from asking.
    pub(super) fn lock(&self) -> impl Drop {
        self.places.lock()
    }
}

/// What one worker knows of a vocabulary.
#[derive(Debug)]
pub(super) struct Known {
    vocabulary: Arc<Vocabulary>,
    values: HashMap<Box<[u8]>, Place>,
}

#[derive(Debug)]
struct Place {
    place: u8,
    /// Whether a request had it since the last sweep.
    used: Cell<bool>,
}

impl Known {
    /// Nothing of it yet.
    pub(super) fn of(vocabulary: Arc<Vocabulary>) -> Self {
        Self { vocabulary, values: HashMap::new() }
    }

    /// The place of a request's value; `None`: it has none.
    pub(super) fn place(&mut self, value: &[u8]) -> Option<u8> {
        if let Some(known) = self.values.get(value) {
            known.used.set(true);
            return Some(known.place);
        }
        // Who knows all has nobody to ask.
        if self.values.len() < self.vocabulary.bound() { self.ask(value) } else { None }
    }

    /// Has a value taken in, if there is room and it can be one. When there is no room, all that are
    /// in use are learnt, so that nobody has to ask again.
    #[cold]
    fn ask(&mut self, value: &[u8]) -> Option<u8> {
        let text = std::str::from_utf8(value).ok()?;
        if text.len() > MAX_VALUE || text.chars().any(char::is_control) {
            return None;
        }
        let places = &mut *self.vocabulary.places.lock();
        let found = places.iter().position(|place| place.as_ref().is_some_and(|taken| *taken.value == *text));
        let at = found.or_else(|| {
            let free = places.iter().position(Option::is_none);
            free.or_else(|| (places.len() < self.vocabulary.bound()).then_some(places.len()))
        });
        let Some(at) = at else {
            for (taken, place) in places.iter_mut().zip(0..) {
                if let Some(taken) = taken.as_mut().filter(|taken| !matches!(taken.used, Used::Over)) {
                    learn(&mut self.values, taken, place, false);
                }
            }
            return None;
        };
        let place = u8::try_from(at).ok()?;
        if at == places.len() {
            places.push(None);
        }
        let taken = places[at].get_or_insert_with(|| taken(text.into()));
        taken.used = Used::Lately;
        learn(&mut self.values, taken, place, true);
        Some(place)
    }

    /// Says which values requests had since the last sweep, and forgets those that none of any worker
    /// had for long.
    pub(super) fn sweep(&mut self, now: Instant) {
        let Admits::First(_) = self.vocabulary.admits else { return };
        let places = &mut *self.vocabulary.places.lock();
        for Place { place, used } in self.values.values() {
            if used.replace(false)
                && let Some(taken) = &mut places[usize::from(*place)]
            {
                taken.used = Used::At(now);
            }
        }
        for taken in places.iter_mut().flatten() {
            taken.used = match taken.used {
                Used::Lately => Used::At(now),
                Used::At(used) if now.saturating_duration_since(used) >= FORGOTTEN_AFTER => Used::Over,
                before => before,
            };
        }
        self.values.retain(|_, known| {
            let Some(taken) = &mut places[usize::from(known.place)] else { return false };
            let is_over = matches!(taken.used, Used::Over);
            taken.known_by -= usize::from(is_over);
            !is_over
        });
        for place in places {
            if place.as_ref().is_some_and(|taken| matches!(taken.used, Used::Over) && taken.known_by == 0) {
                *place = None;
            }
        }
    }

    /// Knows nothing any more. What requests had lately stays for others.
    pub(super) fn leave(&mut self) {
        let places = &mut *self.vocabulary.places.lock();
        for (_, Place { place, used }) in self.values.drain() {
            if let Some(taken) = &mut places[usize::from(place)] {
                taken.known_by -= 1;
                if used.get() {
                    taken.used = Used::Lately;
                }
            }
        }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.leave();
    }
}

fn taken(value: Arc<str>) -> Taken {
    Taken { value, known_by: 0, used: Used::Lately }
}

/// From now on the value of this place is known.
fn learn(values: &mut HashMap<Box<[u8]>, Place>, taken: &mut Taken, place: u8, used: bool) {
    values.entry(taken.value.as_bytes().into()).or_insert_with(|| {
        taken.known_by += 1;
        Place { place, used: Cell::new(used) }
    });
}
