//! What the footer of a merged block says of all its row groups, collected on the way.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;

use foldhash::fast::{FixedState, RandomState};

use super::super::schema::{TypedKey, TypedKeys};
use super::super::spans::bad;
use super::super::summary::{AttributeCollector, KeySummary, Operation, Summary, ValueSet, rank};
use super::input::Result;
use crate::batch::ValueKind;
use crate::time::TimeRange;

/// Operations counted; beyond that only known ones are, and the list is marked as cut.
const MAX_COUNTED_OPERATIONS: usize = 16_384;
/// Distinct resources told apart for the summary; further ones count again with each row group that has them.
const MAX_DISTINCT: usize = 1 << 20;
/// Keys counted for the summary. Beyond that a key's counts would be missing, so the merge is refused.
const MAX_KEYS: usize = 1 << 20;

/// What is said of one owner's attributes.
#[derive(Default)]
pub(super) struct Said {
    counts: BTreeMap<String, [u32; 5]>,
    /// By typed column.
    pub(super) values: Vec<ValueSet>,
}

type OperationKey = (Box<[u8]>, Box<[u8]>, i32);

/// Attributes of resources or scopes.
#[derive(Default)]
pub(super) struct Distinct {
    seen: HashSet<u64, RandomState>,
    collector: AttributeCollector,
}

/// Collects over all row groups what the footer says.
pub(super) struct Totals {
    pub(super) span: Said,
    pub(super) event: Said,
    pub(super) link: Said,
    pub(super) resource: Distinct,
    pub(super) scope: Distinct,
    /// By service, name and kind.
    operations: HashMap<OperationKey, u64, RandomState>,
    operations_cut: bool,
    pub(super) range: TimeRange,
    pub(super) starts: TimeRange,
    pub(super) events: u64,
    pub(super) links: u64,
}

impl Totals {
    pub(super) fn new(keys: &TypedKeys) -> Self {
        let said =
            |keys: &[TypedKey]| Said { counts: BTreeMap::new(), values: keys.iter().map(|_| ValueSet::default()).collect() };
        Self {
            span: said(&keys.span),
            event: said(&keys.event),
            link: said(&keys.link),
            resource: Distinct::default(),
            scope: Distinct::default(),
            operations: HashMap::default(),
            operations_cut: false,
            range: TimeRange::EMPTY,
            starts: TimeRange::EMPTY,
            events: 0,
            links: 0,
        }
    }

    pub(super) fn add_operation(&mut self, service: &[u8], name: &[u8], kind: i32, spans: u64) {
        let key = (Box::from(service), Box::from(name), kind);
        let room = self.operations.len() < MAX_COUNTED_OPERATIONS;
        match self.operations.get_mut(&key) {
            Some(sum) => *sum += spans,
            None if room => drop(self.operations.insert(key, spans)),
            None => self.operations_cut = true,
        }
    }

    pub(super) fn summary(self, keys: &TypedKeys) -> Summary {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut operations: Vec<Operation> = self
            .operations
            .into_iter()
            .map(|((service, name, kind), spans)| Operation { service: text(&service), name: text(&name), kind, spans })
            .collect();
        let cut = rank(&mut operations);
        Summary {
            span: self.span.finish(&keys.span),
            event: self.event.finish(&keys.event),
            link: self.link.finish(&keys.link),
            resource: self.resource.collector.finish(),
            scope: self.scope.collector.finish(),
            operations,
            operations_cut: cut || self.operations_cut,
        }
    }
}

impl Said {
    fn finish(mut self, keys: &[TypedKey]) -> Vec<KeySummary> {
        let slots: HashMap<&str, usize> = keys.iter().enumerate().map(|(slot, key)| (key.key.as_str(), slot)).collect();
        let mut out = Vec::with_capacity(self.counts.len());
        for (key, counts) in std::mem::take(&mut self.counts) {
            // The values of a column are all of the key's only if it has them all.
            let slot = slots.get(key.as_str()).copied();
            let whole = slot.filter(|slot| counts.iter().sum::<u32>() == self.values[*slot].stored);
            let mut set = whole.map_or_else(ValueSet::default, |slot| std::mem::take(&mut self.values[slot]));
            if whole.is_none() {
                set.cut();
            }
            out.push(set.into_summary(key, counts));
        }
        out
    }

    pub(super) fn count(&mut self, key: &str, kind: ValueKind, times: u32) -> Result<()> {
        if times == 0 {
            return Ok(());
        }
        let room = self.counts.len() < MAX_KEYS;
        match self.counts.get_mut(key) {
            Some(counts) => counts[kind as usize] = counts[kind as usize].saturating_add(times),
            None if room => {
                let mut counts = [0; 5];
                counts[kind as usize] = times;
                self.counts.insert(key.to_owned(), counts);
            }
            None => return Err(bad(format_args!("more than {MAX_KEYS} attribute keys"))),
        }
        Ok(())
    }
}

impl Distinct {
    pub(super) fn add<'t>(
        &mut self,
        texts: impl Iterator<Item = &'t [u8]>,
        add: impl Fn(&mut AttributeCollector, &str) -> Result<()>,
    ) -> Result<()> {
        for text in texts {
            let hash = FixedState::default().hash_one(text);
            if self.seen.contains(&hash) {
                continue;
            }
            if self.seen.len() < MAX_DISTINCT {
                self.seen.insert(hash);
            }
            add(&mut self.collector, std::str::from_utf8(text).map_err(bad)?)?;
        }
        Ok(())
    }
}
