//! A trace as queries see it: spans in storage order, who is whose parent, and facts of the whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use spanhouse_common::id::TraceId;
use spanhouse_common::model::StoredSpan;

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

#[derive(Debug)]
pub(super) struct Trace<'a> {
    pub(super) id: TraceId,
    /// A parent, then each child with all below it, by (start, span id); roots, then orphans, then what was cut off a cycle.
    pub(super) spans: Vec<&'a StoredSpan>,
    /// By span, as all below.
    pub(super) parents: Vec<Option<usize>>,
    /// Without parent id and without parent.
    pub(super) is_root: Vec<bool>,
    pub(super) nested: Vec<NestedSet>,
    /// The earliest span without parent id.
    pub(super) root: Option<usize>,
    pub(super) start: u64,
    pub(super) duration: u64,
    /// How many spans name a parent that is not in the trace.
    pub(super) orphans: usize,
}

/// The numbers of a walk down from the roots; all 0 for what it does not reach.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NestedSet {
    pub(super) left: i64,
    pub(super) right: i64,
    /// The parent's left, -1 for roots.
    pub(super) parent: i64,
}

/// The traces of `spans`, by id.
pub(super) fn traces(spans: &[StoredSpan]) -> Vec<Trace<'_>> {
    let mut by_id: BTreeMap<TraceId, Vec<&StoredSpan>> = BTreeMap::new();
    for span in spans {
        let trace = by_id.entry(span.span.trace_id).or_default();
        if !trace.iter().any(|other| is_copy(other, span)) {
            trace.push(span);
        }
    }
    by_id.into_iter().map(|(id, spans)| Trace::new(id, &spans)).collect()
}

/// Whether the spans say the same. As texts: `==` tells equal doubles that are no number apart.
fn is_copy(a: &StoredSpan, b: &StoredSpan) -> bool {
    let key = |s: &StoredSpan| (s.span.span_id, s.span.kind, s.span.start_unix_nano, s.span.end_unix_nano);
    let text = |s: &StoredSpan| {
        let scope = (&s.scope.name, &s.scope.version, &s.scope.attributes);
        format!("{:?} {:?} {scope:?}", s.span, s.resource.attributes)
    };
    key(a) == key(b) && text(a) == text(b)
}

impl<'a> Trace<'a> {
    fn new(id: TraceId, arrived: &[&'a StoredSpan]) -> Self {
        let mut parents: Vec<_> = (0..arrived.len()).map(|at| named_parent(arrived, at)).collect();
        let mut by_start: Vec<usize> = (0..arrived.len()).collect();
        by_start.sort_by_key(|at| (arrived[*at].span.start_unix_nano, arrived[*at].span.span_id, tie(arrived[*at]), *at));
        let mut order = Vec::new();
        for has_id in [false, true] {
            for at in &by_start {
                if parents[*at].is_none() && parent_id(arrived[*at]).is_some() == has_id {
                    visit(*at, &parents, &by_start, &mut order);
                }
            }
        }
        // The rest hangs below cycles: each is cut at its earliest span.
        for at in &by_start {
            if !order.contains(at) {
                parents[*at] = None;
                visit(*at, &parents, &by_start, &mut order);
            }
        }
        let position = |at: usize| order.iter().position(|other| *other == at);
        let spans: Vec<_> = order.iter().map(|at| arrived[*at]).collect();
        let parents: Vec<_> = order.iter().map(|at| parents[*at].and_then(position)).collect();
        let is_here = |id| spans.iter().any(|span| span.span.span_id == id);
        let is_orphan = |at: &usize| parents[*at].is_none() && parent_id(spans[*at]).is_some_and(|id| !is_here(id));
        let orphans = (0..spans.len()).filter(is_orphan).count();
        let is_root: Vec<_> = (0..spans.len()).map(|at| parents[at].is_none() && parent_id(spans[at]).is_none()).collect();
        let start = arrived.iter().map(|s| s.span.start_unix_nano).min().unwrap_or_default();
        let end = arrived.iter().map(|s| s.span.end_unix_nano).max().unwrap_or_default();
        let root = by_start.iter().find(|at| parent_id(arrived[**at]).is_none()).and_then(|at| position(*at));
        let mut trace = Self {
            id,
            nested: vec![NestedSet::default(); spans.len()],
            spans,
            parents,
            is_root,
            root,
            start,
            duration: 0,
            orphans,
        };
        trace.duration = end.saturating_sub(start);
        let mut counter = 0;
        for at in 0..trace.spans.len() {
            if trace.is_root[at] {
                trace.number(at, -1, &mut counter);
            }
        }
        trace
    }

    fn number(&mut self, at: usize, parent: i64, counter: &mut i64) {
        *counter += 1;
        let left = *counter;
        for child in 0..self.spans.len() {
            if self.parents[child] == Some(at) {
                self.number(child, left, counter);
            }
        }
        *counter += 1;
        self.nested[at] = NestedSet { left, right: *counter, parent };
    }

    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.spans.len()).collect()
    }

    pub(super) fn child_count(&self, at: usize) -> usize {
        self.parents.iter().filter(|parent| **parent == Some(at)).count()
    }

    pub(super) fn is_ancestor(&self, of: usize, ancestor: usize) -> bool {
        let mut at = of;
        while let Some(parent) = self.parents[at] {
            if parent == ancestor {
                return true;
            }
            at = parent;
        }
        false
    }

    pub(super) fn are_siblings(&self, a: usize, b: usize) -> bool {
        let same_parent = self.parents[a].is_some() && self.parents[a] == self.parents[b];
        a != b && (same_parent || (self.is_root[a] && self.is_root[b]))
    }

    pub(super) fn root_name(&self) -> Option<Arc<str>> {
        self.root.map(|at| Arc::from(self.spans[at].span.name.as_str()))
    }

    pub(super) fn root_service(&self) -> Option<Arc<str>> {
        self.root.and_then(|at| service(self.spans[at])).map(Arc::from)
    }
}

pub(super) fn service(span: &StoredSpan) -> Option<&str> {
    span.resource.service_name()
}

/// None for none or eight zero bytes.
fn parent_id(span: &StoredSpan) -> Option<spanhouse_common::id::SpanId> {
    span.span.parent_span_id.filter(|id| id.is_valid())
}

/// A server that shares its id with a client hangs below that. Children of a shared id hang below the server.
fn named_parent(spans: &[&StoredSpan], at: usize) -> Option<usize> {
    let span = &spans[at].span;
    // Of several spans that fit, the earliest.
    let earliest = |fits: &dyn Fn(&StoredSpan) -> bool| {
        let all = (0..spans.len()).filter(|at| fits(spans[*at]));
        all.min_by_key(|at| (spans[*at].span.start_unix_nano, tie(spans[*at]), *at))
    };
    if span.kind == SERVER
        && let Some(client) = earliest(&|s| s.span.span_id == span.span_id && s.span.kind == CLIENT)
    {
        return Some(client);
    }
    let id = parent_id(spans[at])?;
    let server = earliest(&|s| s.span.span_id == id && s.span.kind == SERVER);
    server.or_else(|| earliest(&|s| s.span.span_id == id)).filter(|parent| *parent != at)
}

/// Orders spans of one id and start, so that answers do not depend on which came first.
fn tie(stored: &StoredSpan) -> (bool, u64, u64) {
    let span = &stored.span;
    let parent = parent_id(stored).map_or(0, |id| u64::from_be_bytes(id.0));
    (span.kind != CLIENT, span.end_unix_nano.wrapping_sub(span.start_unix_nano), parent)
}

fn visit(at: usize, parents: &[Option<usize>], by_start: &[usize], order: &mut Vec<usize>) {
    if order.contains(&at) {
        return;
    }
    order.push(at);
    for child in by_start {
        if parents[*child] == Some(at) {
            visit(*child, parents, by_start, order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::naive::cases::parse_spans;

    fn laid_out(text: &str) -> Vec<(String, Option<usize>)> {
        let spans = parse_spans(text).unwrap();
        let traces = traces(&spans);
        let trace = &traces[0];
        trace.spans.iter().zip(&trace.parents).map(|(s, parent)| (s.span.name.clone(), *parent)).collect()
    }

    #[test]
    fn children_follow_their_parent_by_start_and_orphans_come_last() {
        let rows = laid_out(
            "trace=1 id=4 parent=2 start=30 name=d\ntrace=1 id=3 parent=1 start=50 name=c\ntrace=1 id=1 start=10 name=a\n\
             trace=1 id=2 parent=1 start=20 name=b\ntrace=1 id=9 parent=77 start=5 name=e\n",
        );
        let expected = [("a", None), ("b", Some(0)), ("d", Some(1)), ("c", Some(0)), ("e", None)];
        assert_eq!(rows, expected.map(|(name, parent)| (name.to_owned(), parent)));
    }

    #[test]
    fn cycles_are_cut_and_shared_ids_told_apart() {
        let rows = laid_out(
            "trace=1 id=1 parent=2 start=20 name=a\ntrace=1 id=2 parent=1 start=10 name=b\n\
             trace=1 id=3 parent=3 start=1 name=c\n",
        );
        assert_eq!(rows, [("c", None), ("b", None), ("a", Some(1))].map(|(name, parent)| (name.to_owned(), parent)));
        let rows = laid_out(
            "trace=1 id=1 start=0 name=a\ntrace=1 id=5 parent=1 start=11 kind=server name=s\n\
             trace=1 id=6 parent=5 start=12 name=x\ntrace=1 id=5 parent=1 start=10 kind=client name=c\n",
        );
        let expected = [("a", None), ("c", Some(0)), ("s", Some(1)), ("x", Some(2))];
        assert_eq!(rows, expected.map(|(name, parent)| (name.to_owned(), parent)));
    }
}
