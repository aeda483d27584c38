//! Structure: which span is whose parent, as arithmetic on rows in pre-order.
//!
//! The rows of a trace are its spans in pre-order, so the descendants of row `r` are the `subtree_size - 1` rows after it. Every
//! relation of two sets of spans is one pass over their bits.

use std::collections::HashMap;
use std::sync::Arc;

use spanhouse_common::block::flag;
use spanhouse_common::columns::{Fixed, Part, Rows, TraceTable, Values};
use spanhouse_common::source::SourceError;

use super::bits::Bits;
use crate::traceql::ast::{Intrinsic, Relation, StructuralForm};

/// The traces of a part.
#[derive(Debug, Clone)]
pub(crate) struct Traces {
    pub(crate) table: Arc<TraceTable>,
}

impl Traces {
    /// Numbers of the traces of some rows, from 0, and the trace that 0 is.
    pub(crate) fn codes(&self, rows: Rows<'_>) -> (Vec<u32>, usize) {
        let Some(first) = rows.iter().next().map(|row| self.table.trace_of(row)) else { return (Vec::new(), 0) };
        let mut out = Vec::with_capacity(rows.len());
        let mut trace = first;
        for row in rows.iter() {
            while self.table.starts[trace + 1] <= row {
                trace += 1;
            }
            out.push((trace - first) as u32);
        }
        (out, first)
    }

    /// The id in hex without leading zeros.
    pub(crate) fn hex(&self, trace: usize) -> String {
        format!("{:x}", u128::from_be_bytes(self.table.ids[trace].0))
    }
}

/// The row that names each of some traces (ascending): of the earliest span without parent.
pub(crate) fn root_rows(part: &dyn Part, table: &TraceTable, traces: &[u32]) -> Result<Vec<Option<u32>>, SourceError> {
    let rows: Vec<u32> = traces.iter().flat_map(|trace| table.rows(*trace as usize)).collect();
    let flags = small(part.column(Fixed::RowFlags, Rows::At(&rows))?.values);
    let mut out: Vec<Option<u32>> = Vec::with_capacity(traces.len());
    // Of traces with several: which, and the rows.
    let mut several: Vec<(usize, Vec<u32>)> = Vec::new();
    let mut at = 0;
    for trace in traces {
        let count = table.rows(*trace as usize).len();
        let mut roots = (at..at + count).filter(|at| flags[*at] & flag::ROOT != 0).map(|at| rows[at]);
        let first = roots.next();
        let rest: Vec<u32> = roots.collect();
        if let Some(first) = first.filter(|_| !rest.is_empty()) {
            several.push((out.len(), std::iter::once(first).chain(rest).collect()));
        }
        out.push(first);
        at += count;
    }
    if several.is_empty() {
        return Ok(out);
    }
    let rows: Vec<u32> = several.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
    let (starts, ids) = (part.column(Fixed::Start, Rows::At(&rows))?, part.column(Fixed::SpanId, Rows::At(&rows))?);
    if let (Values::Ints(starts), Values::Ids(ids)) = (&starts.values, &ids.values) {
        let mut at = 0;
        for (place, rows) in several {
            let earliest = (at..at + rows.len()).min_by_key(|at| (starts[*at] as u64, ids[*at], *at));
            out[place] = earliest.map(|earliest| rows[earliest - at]);
            at += rows.len();
        }
    }
    Ok(out)
}

/// Structure columns of a part, read when needed.
#[derive(Debug)]
pub(crate) struct Structure<'p> {
    pub(crate) part: &'p dyn Part,
    pub(crate) traces: Traces,
}

fn small(values: Values) -> Vec<i32> {
    if let Values::Small(all) = values { all } else { Vec::new() }
}

impl Structure<'_> {
    fn small(&self, which: Fixed, rows: Rows<'_>) -> Result<Vec<i32>, SourceError> {
        Ok(small(self.part.column(which, rows)?.values))
    }

    /// Child counts or nested-set numbers of some rows.
    pub(crate) fn numbers(&self, which: Intrinsic, rows: Rows<'_>) -> Result<Vec<i64>, SourceError> {
        // All rows of the traces that the wanted ones are of.
        let table = &self.traces.table;
        let mut whole: Vec<u32> = Vec::new();
        let mut places: Vec<u32> = Vec::with_capacity(rows.len());
        let mut last: Option<usize> = None;
        let mut base = 0;
        for row in rows.iter() {
            let trace = match last {
                Some(trace) if row < table.starts[trace + 1] => trace,
                _ => {
                    let trace = table.trace_of(row);
                    base = whole.len() as u32;
                    whole.extend(table.rows(trace));
                    last = Some(trace);
                    trace
                }
            };
            places.push(base + row - table.starts[trace]);
        }
        let all = Rows::At(&whole);
        let delta = self.small(Fixed::ParentDelta, all)?;
        let out = match which {
            Intrinsic::ChildCount => {
                let mut counts = vec![0i64; whole.len()];
                for (at, delta) in delta.iter().enumerate().filter(|(_, delta)| **delta > 0) {
                    counts[at - *delta as usize] += 1;
                }
                counts
            }
            _ => {
                let (size, flags) = (self.small(Fixed::SubtreeSize, all)?, self.small(Fixed::RowFlags, all)?);
                nested_set(which, &whole, table, &delta, &size, &flags)
            }
        };
        Ok(places.into_iter().map(|place| out[place as usize]).collect())
    }

    /// Spans of `right` (or of both, by form) that stand in `relation` to those of `left`; both are sets of the rows from
    /// `from` on, which are whole traces.
    pub(crate) fn relate(
        &self,
        relation: Relation,
        form: StructuralForm,
        left: &Bits,
        right: &Bits,
        from: u32,
    ) -> Result<Bits, SourceError> {
        if right.is_none() || (left.is_none() && form != StructuralForm::Negated) {
            return Ok(Bits::none(right.len()));
        }
        let rows = Rows::Range(from, from + right.len() as u32);
        let links = Links {
            delta: self.small(Fixed::ParentDelta, rows)?,
            size: match relation {
                Relation::Descendant | Relation::Ancestor => self.small(Fixed::SubtreeSize, rows)?,
                _ => Vec::new(),
            },
            roots: match relation {
                Relation::Sibling => {
                    Some(Bits::of_values(&self.small(Fixed::RowFlags, rows)?, |flags| flags & flag::ROOT != 0))
                }
                _ => None,
            },
            table: &self.traces.table,
            from,
        };
        let related = links.related(relation, left, right);
        Ok(match form {
            StructuralForm::Plain => related,
            StructuralForm::Negated => {
                let mut out = right.clone();
                out.and_not(&related);
                out
            }
            StructuralForm::Union => {
                let inverse = match relation {
                    Relation::Child => Relation::Parent,
                    Relation::Parent => Relation::Child,
                    Relation::Descendant => Relation::Ancestor,
                    Relation::Ancestor => Relation::Descendant,
                    Relation::Sibling => Relation::Sibling,
                };
                let mut out = links.related(inverse, right, left);
                out.or(&related);
                out
            }
        })
    }
}

/// Left, right or parent's left numbers of whole traces, one after the other. Spans that no root leads to have zeros.
fn nested_set(which: Intrinsic, rows: &[u32], table: &TraceTable, delta: &[i32], size: &[i32], flags: &[i32]) -> Vec<i64> {
    let mut out = vec![0i64; rows.len()];
    let mut depth = vec![0i64; rows.len()];
    let mut at = 0;
    while at < rows.len() {
        let trace = table.rows(table.trace_of(rows[at]));
        let end = at + trace.len();
        let first = at;
        while at < end {
            let is_root = flags[at] & flag::ROOT != 0;
            // Roots and all below them come first.
            if delta[at] == 0 && !is_root {
                break;
            }
            depth[at] = if delta[at] == 0 { 0 } else { depth[at - delta[at] as usize] + 1 };
            let left = |at: usize, depth: i64| 2 * (at - first) as i64 - depth + 1;
            out[at] = match which {
                Intrinsic::NestedSetLeft => left(at, depth[at]),
                Intrinsic::NestedSetRight => left(at, depth[at]) + 2 * i64::from(size[at]) - 1,
                _ if depth[at] == 0 => -1,
                _ => left(at - delta[at] as usize, depth[at] - 1),
            };
            at += 1;
        }
        at = end;
    }
    out
}

/// The links of the rows of whole traces.
struct Links<'p> {
    delta: Vec<i32>,
    size: Vec<i32>,
    roots: Option<Bits>,
    table: &'p TraceTable,
    from: u32,
}

impl Links<'_> {
    /// Spans of `right` that are the children (or what `relation` says) of one of `left`.
    fn related(&self, relation: Relation, left: &Bits, right: &Bits) -> Bits {
        let mut out = Bits::none(right.len());
        match relation {
            Relation::Child => {
                for at in right.ones() {
                    let delta = self.delta[at] as usize;
                    if delta > 0 && left.get(at - delta) {
                        out.set(at);
                    }
                }
            }
            Relation::Parent => {
                for at in left.ones() {
                    let delta = self.delta[at] as usize;
                    if delta > 0 && right.get(at - delta) {
                        out.set(at - delta);
                    }
                }
            }
            Relation::Descendant => {
                // Subtrees nest, so the farthest end of those begun covers all that are open.
                let (mut covered, mut next) = (0, left.next(0));
                for at in right.ones() {
                    while let Some(above) = next.filter(|above| *above < at) {
                        covered = covered.max(above + self.size[above] as usize);
                        next = left.next(above + 1);
                    }
                    if at < covered {
                        out.set(at);
                    }
                }
            }
            Relation::Ancestor => {
                let mut next = left.next(0);
                for at in right.ones() {
                    while next.is_some_and(|below| below <= at) {
                        next = next.and_then(|below| left.next(below + 1));
                    }
                    if next.is_some_and(|below| below < at + self.size[at] as usize) {
                        out.set(at);
                    }
                }
            }
            Relation::Sibling => {
                // By parent; the roots of a trace have none and are siblings too.
                let mut counts: HashMap<u64, u32, foldhash::fast::RandomState> = HashMap::default();
                let mut trace = None;
                for at in left.ones() {
                    if let Some(key) = self.family(at, &mut trace) {
                        *counts.entry(key).or_default() += 1;
                    }
                }
                let mut trace = None;
                for at in right.ones() {
                    let family = self.family(at, &mut trace).and_then(|key| counts.get(&key).copied());
                    if family.unwrap_or(0) > u32::from(left.get(at)) {
                        out.set(at);
                    }
                }
            }
        }
        out
    }

    /// What siblings share: a parent's row, or being roots of one trace. `trace` is that of the row before.
    fn family(&self, at: usize, trace: &mut Option<usize>) -> Option<u64> {
        let delta = self.delta[at] as usize;
        if delta == 0 && self.roots.as_ref().is_some_and(|roots| roots.get(at)) {
            let row = self.from + at as u32;
            let known = trace.filter(|trace| self.table.rows(*trace).contains(&row));
            let number = known.unwrap_or_else(|| self.table.trace_of(row));
            *trace = Some(number);
            return Some(number as u64 | 1 << 63);
        }
        (delta > 0).then(|| (at - delta) as u64)
    }
}
