//! Exemplars: a few spans that stand for a series, spread over time.
//!
//! At most two in each stretch of time, chosen by a hash of the trace id, so that the same ones come every time and one trace
//! gives one at most.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use spanhouse_common::columns::{Part, Rows};
use spanhouse_common::id::TraceId;
use spanhouse_common::source::SourceError;

use super::super::answer::AnswerAttribute;
use super::super::budget::Budget;
use super::super::filter::PartView;
use super::super::{EngineError, Grid};
use super::plan::Measurement;
use crate::traceql::ast::{Attribute, Intrinsic};

/// Exemplars of one stretch of time.
const PER_STRETCH: usize = 2;

/// A span chosen.
#[derive(Debug, Clone)]
pub(crate) struct Picked {
    pub(crate) part: Arc<dyn Part>,
    pub(crate) row: u32,
    pub(crate) start: u64,
    pub(crate) bucket: u32,
    pub(crate) series: u32,
    /// NaN where the function measures nothing of a span.
    pub(crate) value: f64,
}

/// Chooses among spans that are offered.
#[derive(Debug)]
pub(crate) struct Picker {
    grid: Grid,
    /// Of a stretch, in nanoseconds.
    length: u64,
    /// By stretch: hash and id of the trace, lowest hash first.
    stretches: Vec<Vec<(u64, TraceId, Picked)>>,
}

impl Picker {
    pub(crate) fn new(grid: Grid, exemplars: usize) -> Self {
        let stretches = if exemplars == 0 || grid.instant { 0 } else { (exemplars / PER_STRETCH).max(1) };
        let length = (grid.end - grid.start).div_ceil(stretches.max(1) as u64).max(1);
        Self { grid, length, stretches: vec![Vec::new(); stretches] }
    }

    pub(crate) fn wants(&self) -> bool {
        !self.stretches.is_empty()
    }

    /// Offers a span that starts then; it is only made up if it is wanted, which few are.
    pub(crate) fn offer(&mut self, id: TraceId, start: u64, picked: impl FnOnce() -> Picked) {
        let hash = foldhash::fast::FixedState::default().hash_one(id.0);
        let at = (start.saturating_sub(self.grid.start + 1) / self.length) as usize;
        if let Some(stretch) = self.stretches.get_mut(at)
            && !is_full(stretch, hash)
        {
            insert(stretch, hash, id, picked());
        }
    }

    pub(crate) fn merge(&mut self, other: Self, series: impl Fn(u32) -> u32) {
        for (own, other) in self.stretches.iter_mut().zip(other.stretches) {
            for (hash, id, picked) in other {
                insert(own, hash, id, Picked { series: series(picked.series), ..picked });
            }
        }
    }

    /// What was chosen, one of each trace, with the trace's id.
    pub(crate) fn finish(self) -> Vec<(TraceId, Picked)> {
        let mut seen = std::collections::HashSet::new();
        let all = self.stretches.into_iter().flatten().filter(|(_, id, _)| seen.insert(*id));
        all.map(|(_, id, picked)| (id, picked)).collect()
    }
}

/// Whether there is no room for this hash.
fn is_full(stretch: &[(u64, TraceId, Picked)], hash: u64) -> bool {
    stretch.len() == PER_STRETCH && stretch[PER_STRETCH - 1].0 < hash
}

fn insert(stretch: &mut Vec<(u64, TraceId, Picked)>, hash: u64, id: TraceId, picked: Picked) {
    if is_full(stretch, hash) {
        return;
    }
    if let Some(known) = stretch.iter_mut().find(|(_, known, _)| *known == id) {
        if picked.start < known.2.start {
            known.2 = picked;
        }
        return;
    }
    let at = stretch.partition_point(|(other, _, _)| *other < hash);
    stretch.insert(at, (hash, id, picked));
    stretch.truncate(PER_STRETCH);
}

/// The labels of chosen spans: the trace's id and what the query reads of the span.
pub(crate) fn labels(
    measurement: &Measurement,
    picked: &[(TraceId, Picked)],
    budget: &Budget,
) -> Result<Vec<Vec<AnswerAttribute>>, EngineError> {
    let mut out: Vec<Vec<AnswerAttribute>> = picked
        .iter()
        .map(|(id, _)| {
            let hex: Arc<str> = format!("{:x}", u128::from_be_bytes(id.0)).into();
            vec![AnswerAttribute { key: Arc::from("trace:id"), value: super::super::answer::AnswerValue::Str(hex) }]
        })
        .collect();
    let mut by_part: HashMap<usize, Vec<usize>> = HashMap::new();
    for (at, (_, picked)) in picked.iter().enumerate() {
        by_part.entry(Arc::as_ptr(&picked.part).cast::<()>() as usize).or_default().push(at);
    }
    for mut all in by_part.into_values() {
        all.sort_unstable_by_key(|at| picked[*at].1.row);
        let mut rows: Vec<u32> = all.iter().map(|at| picked[*at].1.row).collect();
        rows.dedup();
        let Some(first) = all.first() else { continue };
        let part = Arc::clone(&picked[*first].1.part);
        let view = PartView::new(&*part, &measurement.spans.attributes, budget)?;
        let frame = view.frame(Rows::At(&rows));
        for (id, attribute) in measurement.spans.attributes.iter() {
            if *attribute == Attribute::Intrinsic(Intrinsic::TraceId) {
                continue;
            }
            let (field, key): (_, Arc<str>) = match frame.field(id) {
                Ok(field) => (field, attribute.text().into()),
                // Told where the column was measured; the trace's id is enough to find the span.
                Err(EngineError::Source(SourceError::Damaged { .. })) => continue,
                Err(error) => return Err(error),
            };
            for at in &all {
                let slot = rows.binary_search(&picked[*at].1.row).ok();
                if let Some(value) = slot.and_then(|slot| field.value(slot).answer()) {
                    out[*at].push(AnswerAttribute { key: Arc::clone(&key), value });
                }
            }
        }
    }
    Ok(out)
}
