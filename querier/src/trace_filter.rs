//! A part of a trace: spans that a predicate chooses, and their kin if wanted.
//!
//! Owns what is kept around matching spans. Does not own what matches.

use std::collections::HashMap;
use std::sync::Arc;

use spanhouse_common::id::SpanId;
use spanhouse_common::model::StoredSpan;

use crate::assemble::Trace;

/// How far to go from a matching span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    Levels(usize),
    All,
}

/// Which relatives matching spans bring along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kin {
    pub descendants: Depth,
    pub ancestors: Depth,
}

impl Kin {
    pub const NONE: Self = Self { descendants: Depth::Levels(0), ancestors: Depth::Levels(0) };
}

/// Drops the spans of `trace` that neither match nor are kin of one that does.
pub fn filter_trace(trace: &mut Trace, matches: &(dyn Fn(&StoredSpan) -> bool + Send + Sync), kin: Kin) {
    let matching = matching(trace, matches);
    let family = Family::of(trace);
    let mut keep = vec![false; matching.len()];
    spread(&matching, kin.descendants, &mut keep, |at| family.children.get(&family.ids[at]));
    spread(&matching, kin.ancestors, &mut keep, |at| family.parents[at].and_then(|parent| family.holders.get(&parent)));
    let mut keep = keep.into_iter();
    trace.retain(|_| keep.next().unwrap_or(false));
}

/// In the order of [`Trace::spans`].
fn matching(trace: &mut Trace, matches: &(dyn Fn(&StoredSpan) -> bool + Send + Sync)) -> Vec<bool> {
    let mut found = Vec::new();
    for group in &mut trace.groups {
        for scope in &mut group.scopes {
            for span in &mut scope.spans {
                // Lent to the predicate together with its owners.
                let stored = StoredSpan {
                    span: std::mem::take(span),
                    resource: Arc::clone(&group.resource),
                    scope: Arc::clone(&scope.scope),
                    maybe_duplicate: false,
                };
                found.push(matches(&stored));
                *span = stored.span;
            }
        }
    }
    found
}

/// Who is whose parent. Spans are numbered in the order of the trace; several may have one id.
struct Family {
    ids: Vec<SpanId>,
    parents: Vec<Option<SpanId>>,
    holders: HashMap<SpanId, Vec<usize>>,
    children: HashMap<SpanId, Vec<usize>>,
}

impl Family {
    fn of(trace: &Trace) -> Self {
        let mut family = Self { ids: Vec::new(), parents: Vec::new(), holders: HashMap::new(), children: HashMap::new() };
        for (at, span) in trace.spans().enumerate() {
            family.ids.push(span.span_id);
            family.parents.push(span.parent_span_id);
            family.holders.entry(span.span_id).or_default().push(at);
            if let Some(parent) = span.parent_span_id {
                family.children.entry(parent).or_default().push(at);
            }
        }
        family
    }
}

/// Marks what is at most `depth` steps from a start. A span is visited once, so circles end.
fn spread<'a>(starts: &[bool], depth: Depth, keep: &mut [bool], next: impl Fn(usize) -> Option<&'a Vec<usize>>) {
    let mut level: Vec<usize> = (0..starts.len()).filter(|at| starts[*at]).collect();
    let mut seen = starts.to_vec();
    let mut left = depth;
    for at in &level {
        keep[*at] = true;
    }
    while !level.is_empty() && left != Depth::Levels(0) {
        let mut reached = Vec::new();
        for at in level.iter().filter_map(|at| next(*at)).flatten() {
            if !std::mem::replace(&mut seen[*at], true) {
                keep[*at] = true;
                reached.push(*at);
            }
        }
        level = reached;
        if let Depth::Levels(levels) = &mut left {
            *levels -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::assemble;
    use crate::test_util::{span, span_id, stored};

    /// 1 > 2 > 3 > 4 > 5, and 1 > 6.
    fn chain() -> Trace {
        let parents = [(1, None), (2, Some(1)), (3, Some(2)), (4, Some(3)), (5, Some(4)), (6, Some(1))];
        let spans = parents.into_iter().map(|(id, parent)| {
            let mut span = span(id, 1, id);
            span.parent_span_id = parent.map(span_id);
            stored(span)
        });
        assemble(vec![spans.collect()])
    }

    #[test]
    fn kin_of_matching_spans_stay() {
        let kept = |id: u64, descendants, ancestors| {
            let mut trace = chain();
            filter_trace(&mut trace, &move |stored| stored.span.span_id == span_id(id), Kin { descendants, ancestors });
            trace.spans().map(|span| u64::from_be_bytes(span.span_id.0)).collect::<Vec<_>>()
        };
        use Depth::{All, Levels};
        assert_eq!(kept(3, Levels(0), Levels(0)), [3]);
        assert_eq!(kept(3, Levels(1), Levels(0)), [3, 4]);
        assert_eq!(kept(3, All, Levels(1)), [2, 3, 4, 5]);
        assert_eq!(kept(3, Levels(0), All), [1, 2, 3]);
        assert_eq!(kept(1, All, All), [1, 2, 3, 4, 5, 6]);
        assert!(kept(9, All, All).is_empty());
    }
}
