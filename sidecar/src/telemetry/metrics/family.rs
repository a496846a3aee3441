//! Series by label set: shared by the shards, each with cells of its own.
//!
//! [`Family`] is the registry's side, under a lock that only resolving, sweeping
//! and scraping take. [`Local`] is a worker's side, a cache of handles.
//! Sums never fall while any shard uses a label set: what a leaving shard
//! counted stays in the group, and goes with its last user. Those in the process
//! who take differences of sums get them with what such groups had counted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;

use super::cell::Cells;

/// A label set.
pub(super) trait Labels: Clone + Eq + Hash + Ord {
    /// The set that stands for it when the family is full.
    fn overflow(&self) -> Self;

    /// The set that stands for it when half of the family's room is taken; `None`: it can have the
    /// other half as well. For sets that clients take part in making: they never take it all.
    fn coarser(&self) -> Option<Self> {
        None
    }

    /// The set under which its counts are kept for [`Family::sums`] when its last user has
    /// gone; `None`: they go too.
    fn gone(&self) -> Option<Self> {
        None
    }
}

/// All series of one kind.
#[derive(Debug)]
pub(super) struct Family<L, C> {
    series: Mutex<Series<L, C>>,
    limit: usize,
}

#[derive(Debug)]
struct Series<L, C> {
    groups: HashMap<L, Group<C>>,
    /// What groups without a user had counted: as bounded as the groups.
    gone: HashMap<L, C>,
}

#[derive(Default, Debug)]
struct Group<C> {
    live: Vec<Arc<C>>,
    retired: C,
}

impl<L: Labels, C: Cells> Family<L, C> {
    pub(super) fn new(limit: usize) -> Self {
        let series = Series { groups: HashMap::new(), gone: HashMap::new() };
        Self { series: Mutex::new(series), limit }
    }

    /// The labels' total over all shards, in the labels' order.
    pub(super) fn totals(&self) -> Vec<(L, C)> {
        let mut totals = self.series.lock().totals();
        totals.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        totals
    }

    /// All that was ever counted, that of label sets without a user under what [`Labels::gone`]
    /// makes of them.
    pub(super) fn sums(&self) -> Vec<(L, C)> {
        let series = self.series.lock();
        let mut sums = series.totals();
        sums.extend(series.gone.iter().map(|(labels, cells)| {
            let sum = C::default();
            sum.absorb(cells);
            (labels.clone(), sum)
        }));
        sums
    }

    /// Shows the cells of [`Self::sums`] that `wanted` picks, one shard's after the other.
    pub(super) fn visit(&self, wanted: impl Fn(&L) -> bool, mut look: impl FnMut(&C)) {
        let series = self.series.lock();
        for (_, group) in series.groups.iter().filter(|(labels, _)| wanted(labels)) {
            look(&group.retired);
            group.live.iter().for_each(|cells| look(cells));
        }
        series.gone.iter().filter(|(labels, _)| wanted(labels)).for_each(|(_, cells)| look(cells));
    }

    /// The labels to count under: the ones asked for if there is room.
    pub(super) fn admit(&self, labels: &L) -> L {
        let groups = &self.series.lock().groups;
        if groups.contains_key(labels) {
            return labels.clone();
        }
        let labels = match labels.coarser() {
            Some(coarser) if groups.len() >= self.limit / 2 => coarser,
            _ => labels.clone(),
        };
        if groups.contains_key(&labels) || groups.len() < self.limit { labels } else { labels.overflow() }
    }

    /// New cells for a label set, which count until they [`Self::leave`].
    pub(super) fn join(&self, labels: &L) -> Arc<C> {
        let cells = Arc::<C>::default();
        self.series.lock().groups.entry(labels.clone()).or_default().live.push(cells.clone());
        cells
    }

    pub(super) fn leave(&self, labels: &L, cells: &Arc<C>) {
        let Series { groups, gone } = &mut *self.series.lock();
        let Some(group) = groups.get_mut(labels) else { return };
        group.live.retain(|other| !Arc::ptr_eq(other, cells));
        group.retired.retire(cells);
        if !group.live.is_empty() {
            return;
        }
        let Some(Group { retired, .. }) = groups.remove(labels) else { return };
        if let Some(kept) = labels.gone() {
            let has_room = gone.contains_key(&kept) || gone.len() < self.limit;
            gone.entry(if has_room { kept } else { kept.overflow() }).or_default().absorb(&retired);
        }
    }
}

impl<L: Labels, C: Cells> Series<L, C> {
    fn totals(&self) -> Vec<(L, C)> {
        let totals = self.groups.iter().map(|(labels, group)| {
            let total = C::default();
            total.absorb(&group.retired);
            group.live.iter().for_each(|cells| total.absorb(cells));
            (labels.clone(), total)
        });
        totals.collect()
    }
}

/// A worker's handles into a [`Family`].
#[derive(Debug)]
pub(super) struct Local<L, C, H>(RefCell<HashMap<L, Entry<C, H>>>);

#[derive(Debug)]
struct Entry<C, H> {
    handle: Rc<H>,
    cells: Arc<C>,
    /// Sweeps in a row that found nobody holding the handle.
    unused: u8,
}

impl<L, C, H> Default for Local<L, C, H> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<L: Labels, C: Cells, H> Local<L, C, H> {
    /// The handle for a label set, made if this worker has none.
    pub(super) fn resolve(
        &self,
        family: &Family<L, C>,
        labels: &L,
        make: impl FnOnce(&L, Arc<C>) -> H,
    ) -> Rc<H> {
        let mut entries = self.0.borrow_mut();
        if let Some(entry) = entries.get_mut(labels) {
            entry.unused = 0;
            return entry.handle.clone();
        }
        // Only admitted label sets are cached, so the cache is as bounded as the family.
        let admitted = family.admit(labels);
        let entry = entries.entry(admitted).or_insert_with_key(|admitted| {
            let cells = family.join(admitted);
            Entry { handle: Rc::new(make(admitted, cells.clone())), cells, unused: 0 }
        });
        entry.unused = 0;
        entry.handle.clone()
    }

    /// Drops handles that nobody held during `after` sweeps.
    pub(super) fn sweep(&self, family: &Family<L, C>, after: u8) {
        self.0.borrow_mut().retain(|labels, entry| {
            entry.unused =
                if Rc::strong_count(&entry.handle) == 1 { entry.unused.saturating_add(1) } else { 0 };
            let keep = entry.unused < after;
            if !keep {
                family.leave(labels, &entry.cells);
            }
            keep
        });
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Gives everything back, for a worker that ends.
    pub(super) fn clear(&self, family: &Family<L, C>) {
        for (labels, entry) in self.0.borrow_mut().drain() {
            family.leave(&labels, &entry.cells);
        }
    }
}
