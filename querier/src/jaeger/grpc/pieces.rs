//! Traces cut to what a message may hold.

use std::iter::Peekable;
use std::sync::Arc;

use spanhouse_common::model::{Resource, Scope, Span};

use crate::assemble::{ResourceGroup, ScopeGroup, Trace};
use crate::otlp::{encoded_group_len, encoded_span_len};

/// What a piece may hold. A single span may be larger: it goes alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceLimits {
    pub(super) spans: usize,
    /// Of its OTLP form.
    pub(super) bytes: usize,
}

struct Placed {
    /// Which resource and scope of the trace, counted.
    group: (usize, usize),
    resource: Arc<Resource>,
    scope: Arc<Scope>,
    span: Span,
}

/// Pieces of a trace, in its order, each with the resources and scopes of its spans. Made as they are asked for.
pub(super) struct Pieces {
    spans: Peekable<Box<dyn Iterator<Item = Placed> + Send>>,
    limits: PieceLimits,
    scratch: Vec<u8>,
}

impl Pieces {
    pub(super) fn new(trace: Trace, limits: PieceLimits) -> Self {
        let spans = trace.groups.into_iter().enumerate().flat_map(|(nth, group)| {
            let ResourceGroup { resource, scopes } = group;
            scopes.into_iter().enumerate().flat_map(move |(nth_scope, ScopeGroup { scope, spans })| {
                let resource = Arc::clone(&resource);
                spans.into_iter().map(move |span| Placed {
                    group: (nth, nth_scope),
                    resource: Arc::clone(&resource),
                    scope: Arc::clone(&scope),
                    span,
                })
            })
        });
        let spans: Box<dyn Iterator<Item = Placed> + Send> = Box::new(spans);
        Self { spans: spans.peekable(), limits, scratch: Vec::new() }
    }
}

impl Iterator for Pieces {
    type Item = Trace;

    fn next(&mut self) -> Option<Trace> {
        let mut piece = Trace::default();
        let (mut spans, mut bytes, mut last) = (0, 0, None);
        loop {
            let Self { spans: left, limits, scratch } = self;
            let fits = |next: &Placed| {
                let mut size = encoded_span_len(&next.span, scratch);
                if last != Some(next.group) {
                    size += encoded_group_len(&next.resource, &next.scope, scratch);
                }
                bytes += size;
                spans == 0 || (spans < limits.spans && bytes <= limits.bytes)
            };
            let Some(Placed { group, resource, scope, span }) = left.next_if(fits) else { break };
            if last.is_none_or(|(nth, _)| nth != group.0) {
                piece.groups.push(ResourceGroup { resource, scopes: Vec::new() });
            }
            if let Some(of_resource) = piece.groups.last_mut() {
                if last != Some(group) {
                    of_resource.scopes.push(ScopeGroup { scope, spans: Vec::new() });
                }
                of_resource.scopes.last_mut()?.spans.push(span);
            }
            last = Some(group);
            spans += 1;
        }
        (spans > 0).then_some(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spanhouse_common::id::{SpanId, TraceId};

    use super::*;
    use crate::otlp::encode_trace_protobuf;

    /// Sizes of spans by scope by resource.
    fn trace(groups: &[Vec<Vec<usize>>]) -> Trace {
        let mut id = 0u64;
        let mut span = |size: &usize| {
            id += 1;
            Span {
                trace_id: TraceId([1; 16]),
                span_id: SpanId(id.to_be_bytes()),
                name: "x".repeat(*size),
                ..Span::default()
            }
        };
        let mut groups: Vec<ResourceGroup> = groups
            .iter()
            .enumerate()
            .map(|(nth, scopes)| ResourceGroup {
                resource: Arc::new(Resource { schema_url: format!("{nth}"), ..Resource::default() }),
                scopes: scopes
                    .iter()
                    .enumerate()
                    .map(|(nth, spans)| ScopeGroup {
                        scope: Arc::new(Scope { name: format!("{nth}"), ..Scope::default() }),
                        spans: spans.iter().map(&mut span).collect(),
                    })
                    .collect(),
            })
            .collect();
        groups.iter_mut().for_each(|group| group.scopes.retain(|scope| !scope.spans.is_empty()));
        groups.retain(|group| !group.scopes.is_empty());
        Trace { groups }
    }

    /// Where each span stands, in order.
    fn flat(traces: &[Trace]) -> Vec<(String, String, SpanId)> {
        let groups = traces.iter().flat_map(|trace| &trace.groups);
        let scopes = groups.flat_map(|group| group.scopes.iter().map(move |scope| (group, scope)));
        let place =
            |(group, scope): (&ResourceGroup, &ScopeGroup)| (group.resource.schema_url.clone(), scope.scope.name.clone());
        scopes
            .flat_map(|both| both.1.spans.iter().map(move |span| (both, span.span_id)))
            .map(|(both, id)| {
                let (resource, scope) = place(both);
                (resource, scope, id)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn pieces_hold_all_spans_within_the_limits(
            groups in prop::collection::vec(prop::collection::vec(prop::collection::vec(0usize..400, 0..6), 0..4), 0..5),
            spans in 1usize..8,
            bytes in 1usize..2000,
        ) {
            let whole = trace(&groups);
            let pieces: Vec<Trace> = Pieces::new(whole.clone(), PieceLimits { spans, bytes }).collect();
            prop_assert_eq!(flat(&pieces), flat(std::slice::from_ref(&whole)));
            for piece in &pieces {
                let count = piece.spans().count();
                prop_assert!((1..=spans).contains(&count));
                prop_assert!(count == 1 || encode_trace_protobuf(piece).len() <= bytes);
            }
            let roomy = PieceLimits { spans: usize::MAX, bytes: usize::MAX };
            let one: Vec<Trace> = Pieces::new(whole.clone(), roomy).collect();
            prop_assert_eq!(one, if whole.is_empty() { vec![] } else { vec![whole] });
        }
    }
}
