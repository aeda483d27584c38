//! Whole traces as messages of a stream.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use prost::Message as _;
use spanhouse_common::budget::Lease;
use spanhouse_proto::{EncodedTraces, jaeger_v2};
use tonic::Status;

use super::call::refused;
use super::pieces::{PieceLimits, Pieces};
use crate::api::respond::{INLINE_BYTES, partial_trailer};
use crate::assemble::Trace;
use crate::jaeger::adjust::{adjust, sanitize, warn};
use crate::jaeger::model::{JaegerTrace, proto};
use crate::jaeger::{JaegerError, JaegerQueries, WholeTrace};
use crate::otlp::encode_trace_protobuf;

/// Largest message: clients take 4 MiB at once unless told otherwise.
const MAX_MESSAGE_BYTES: usize = 3 << 20;

/// Spans in a message of `jaeger.api_v2`, as stock Jaeger sends them.
pub(super) const QUERY_CHUNK: usize = 10;
/// Spans in a message of `jaeger.storage.v1`.
pub(super) const STORAGE_CHUNK: usize = 1000;

/// OTLP of a piece that becomes messages of Jaeger's model: there each span repeats its process, so the spans are few.
const PIECE_BYTES: usize = 1 << 20;

/// Spans read whole, one trace after the other.
pub(super) type Traces = BoxStream<'static, Result<WholeTrace, JaegerError>>;

/// The messages of a trace, made as they are asked for.
type Items<M> = Box<dyn Iterator<Item = M> + Send>;

/// How a trace becomes messages. The text says why spans are missing, if some are.
pub(super) type Cut<M> = Arc<dyn Fn(Trace, Option<&str>) -> Items<M> + Send + Sync>;

/// One trace.
pub(super) fn one(trace: WholeTrace) -> Traces {
    stream::iter([Ok(trace)]).boxed()
}

/// OTLP of traces as they were written.
pub(super) fn stored() -> Cut<EncodedTraces> {
    Arc::new(|trace, _| otlp(trace))
}

/// OTLP of traces as Jaeger's pages show them.
pub(super) fn shown(queries: &JaegerQueries, raw: bool) -> Cut<EncodedTraces> {
    mended(queries, raw, otlp)
}

/// Spans of Jaeger's model, so many in a message at most.
pub(super) fn spans(trace: Trace, most: usize) -> Items<Vec<jaeger_v2::Span>> {
    let limits = PieceLimits { spans: most, bytes: PIECE_BYTES };
    Box::new(Pieces::new(trace, limits).flat_map(|piece| {
        let spans: Vec<_> = JaegerTrace::of(&piece).iter().flat_map(proto::spans).collect();
        fitting(spans)
    }))
}

/// Does to traces what Jaeger's query service does, before they are cut.
pub(super) fn mended<M: 'static>(
    queries: &JaegerQueries,
    raw: bool,
    cut: impl Fn(Trace) -> Items<M> + Clone + Send + Sync + 'static,
) -> Cut<M> {
    let max_skew = queries.deps().settings.max_clock_skew_adjust;
    Arc::new(move |mut trace: Trace, partial| {
        let (cut, partial) = (cut.clone(), partial.map(str::to_owned));
        let mend = move || {
            sanitize(&mut trace);
            if !raw {
                adjust(&mut trace, max_skew);
            }
            if let (Some(why), Some(first)) = (partial, trace.spans_mut().next()) {
                warn(first, why);
            }
            trace
        };
        Box::new(std::iter::once_with(mend).flat_map(cut))
    })
}

fn otlp(trace: Trace) -> Items<EncodedTraces> {
    let limits = PieceLimits { spans: usize::MAX, bytes: MAX_MESSAGE_BYTES };
    Box::new(Pieces::new(trace, limits).map(|piece| EncodedTraces(encode_trace_protobuf(&piece))))
}

/// Cuts spans where the next would not fit into a message.
fn fitting(spans: Vec<jaeger_v2::Span>) -> Vec<Vec<jaeger_v2::Span>> {
    let mut messages: Vec<Vec<jaeger_v2::Span>> = Vec::new();
    let mut used = 0;
    for span in spans {
        // Tag and length of the span come on top.
        let size = span.encoded_len() + 6;
        match messages.last_mut() {
            Some(message) if used + size <= MAX_MESSAGE_BYTES => message.push(span),
            _ => {
                used = 0;
                messages.push(vec![span]);
            }
        }
        used += size;
    }
    messages
}

struct OfTraces<M> {
    traces: Traces,
    cut: Cut<M>,
    current: Option<OfTrace<M>>,
    /// Why the answer is not complete: the first reason.
    partial: Option<String>,
    what: &'static str,
    ended: bool,
}

struct OfTrace<M> {
    items: Items<M>,
    /// Large ones are worked on by threads that serve no socket.
    large: bool,
    /// Held until the last message of the trace is made.
    _lease: Lease,
}

/// The messages of `traces`. `what` says in a failure's text what was tried. An answer with parts missing ends well, with the reason in
/// a trailer.
pub(super) fn messages<M: Send + 'static>(
    traces: Traces,
    what: &'static str,
    cut: Cut<M>,
) -> BoxStream<'static, Result<M, Status>> {
    let state = OfTraces { traces, cut, current: None, partial: None, what, ended: false };
    stream::unfold(state, |mut state| async move {
        let message = state.next().await?;
        Some((message, state))
    })
    .boxed()
}

impl<M: Send + 'static> OfTraces<M> {
    async fn next(&mut self) -> Option<Result<M, Status>> {
        while !self.ended {
            if let Some(current) = self.current.take() {
                match current.next().await {
                    Ok(Some((message, current))) => {
                        self.current = Some(current);
                        return Some(Ok(message));
                    }
                    Ok(None) => {}
                    Err(status) => {
                        self.ended = true;
                        return Some(Err(status));
                    }
                }
            }
            match self.traces.next().await {
                Some(Ok(WholeTrace { trace, partial, lease, .. })) => {
                    let (large, items) = (lease.bytes() > INLINE_BYTES, (self.cut)(trace, partial.as_deref()));
                    self.current = Some(OfTrace { items, large, _lease: lease });
                    self.partial = self.partial.take().or(partial);
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(refused(self.what, &error)));
                }
                None => {
                    self.ended = true;
                    return self.partial.take().map(|why| Err(partial_trailer(&why)));
                }
            }
        }
        None
    }
}

impl<M: Send + 'static> OfTrace<M> {
    async fn next(mut self) -> Result<Option<(M, Self)>, Status> {
        let large = self.large;
        let step = move || {
            let message = self.items.next();
            message.map(|message| (message, self))
        };
        if large { tokio::task::spawn_blocking(step).await.map_err(|_| broken()) } else { Ok(step()) }
    }
}

fn broken() -> Status {
    Status::internal("the answer could not be written")
}
