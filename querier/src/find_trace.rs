//! Finding a trace: every source of a snapshot is asked for one id, within time and memory.
//!
//! Owns which sources are asked (all filters first, then what they let through), what happens when one fails, and the bounds. Does not own how a source reads, nor what
//! becomes of the spans ([`crate::assemble`]).
//!
//! When something fails: an object that is gone restarts the query once on a new snapshot (a compaction replaced it
//! meanwhile). Damage, or an object still gone then, makes the answer partial: no retry brings it back, and the rest is
//! worth having. A store that does not answer fails the query: a retry may bring everything.

use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use spanhouse_common::budget::{Lease, Share, ShareFull};
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::model::{Attribute, Event, Link, Span, StoredSpan, Value};
use spanhouse_common::source::{Found, Snapshot, Snapshots, Source, SourceError};
use spanhouse_common::time::TimeRange;

/// Sources of one query read at the same time: enough to hide the latency of a store, few enough to stay within memory.
const CONCURRENT_SOURCES: usize = 8;

/// Taken from the share before anything is read. Growing beyond is accounted as spans arrive.
const FIRST_LEASE_BYTES: usize = 1 << 20;

/// Which spans are wanted.
#[derive(Debug, Clone)]
pub struct TraceQuery {
    pub tenants: Vec<TenantId>,
    pub id: TraceId,
    /// Blocks outside are not read. Live data always is.
    pub hint: Option<TimeRange>,
    pub sources: WhichSources,
}

/// The sources a query asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhichSources {
    #[default]
    All,
    Live,
    Blocks,
}

/// What a query may use.
#[derive(Debug, Clone, Copy)]
pub struct QueryBounds {
    /// From start to answer.
    pub deadline: Duration,
    /// Memory of one query.
    pub memory_bytes: usize,
    /// How long a query waits for memory that others hold before it is refused.
    pub patience: Duration,
}

impl Default for QueryBounds {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), memory_bytes: 256 << 20, patience: Duration::from_secs(5) }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FindError {
    #[error("context deadline exceeded")]
    Deadline,
    /// Others hold the memory: retry later.
    #[error("too many outstanding requests")]
    Busy(#[source] ShareFull),
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// What the sources hold of a trace. The memory is given back when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct FoundTrace {
    /// Spans, a piece per source that has any.
    pub pieces: Vec<Vec<StoredSpan>>,
    pub inspected_bytes: u64,
    /// What could not be read and never will be.
    pub damage: Vec<String>,
    pub lease: Lease,
}

impl FoundTrace {
    /// Nothing yet, with the memory to begin with.
    async fn none(memory: &Share, bounds: QueryBounds) -> Result<Self, FindError> {
        let first = FIRST_LEASE_BYTES.min(bounds.memory_bytes);
        let lease = memory.take(first, bounds.patience).await.map_err(FindError::Busy)?;
        Ok(Self { pieces: Vec::new(), inspected_bytes: 0, damage: Vec::new(), lease })
    }

    /// Bytes of its spans in memory, about.
    pub fn heap_bytes(&self) -> usize {
        self.pieces.iter().flatten().map(|s| size_of::<StoredSpan>() + heap_bytes(&s.span)).sum()
    }
}

/// Asks the sources of all tenants of `query`.
pub async fn find_trace(
    snapshots: &dyn Snapshots,
    memory: &Share,
    query: &TraceQuery,
    bounds: QueryBounds,
) -> Result<FoundTrace, FindError> {
    let find = async {
        let (mut found, mut used) = (FoundTrace::none(memory, bounds).await?, 0);
        for tenant in &query.tenants {
            let mark = (found.pieces.len(), found.inspected_bytes, found.damage.len(), used);
            let gone = match find_in_tenant(snapshots, tenant, query, bounds, &mut used, &mut found, false).await {
                Ok(()) => continue,
                Err(SourceError::Gone { what }) => what,
                Err(error) => return Err(error.into()),
            };
            tracing::debug!(%tenant, trace_id = %query.id, %gone, "an object is gone, the query starts again");
            found.pieces.truncate(mark.0);
            (found.inspected_bytes, used) = (mark.1, mark.3);
            found.damage.truncate(mark.2);
            find_in_tenant(snapshots, tenant, query, bounds, &mut used, &mut found, true).await?;
        }
        Ok(found)
    };
    tokio::time::timeout(bounds.deadline, find).await.unwrap_or(Err(FindError::Deadline))
}

/// As [`find_trace`], of snapshots that were taken before, one for each tenant: for several traces at one moment. Where an object
/// is gone, the snapshots are too old.
pub async fn find_trace_in(
    snapshots: &[Snapshot],
    memory: &Share,
    query: &TraceQuery,
    bounds: QueryBounds,
) -> Result<FoundTrace, FindError> {
    let find = async {
        let (mut found, mut used) = (FoundTrace::none(memory, bounds).await?, 0);
        for snapshot in snapshots {
            find_in_snapshot(snapshot, query, bounds, &mut used, &mut found, false).await?;
        }
        Ok(found)
    };
    tokio::time::timeout(bounds.deadline, find).await.unwrap_or(Err(FindError::Deadline))
}

async fn find_in_tenant(
    snapshots: &dyn Snapshots,
    tenant: &TenantId,
    query: &TraceQuery,
    bounds: QueryBounds,
    used: &mut usize,
    found: &mut FoundTrace,
    last_try: bool,
) -> Result<(), SourceError> {
    // Held to the end: it keeps the objects and live batches it names.
    let snapshot = snapshots.snapshot(tenant).await?;
    find_in_snapshot(&snapshot, query, bounds, used, found, last_try).await
}

async fn find_in_snapshot(
    snapshot: &Snapshot,
    query: &TraceQuery,
    bounds: QueryBounds,
    used: &mut usize,
    found: &mut FoundTrace,
    last_try: bool,
) -> Result<(), SourceError> {
    let id = query.id;
    if snapshot.tombstones.contains_key(&id) {
        return Ok(());
    }
    let reads = wanted(snapshot, query).await;
    // In order of the snapshot, so that an answer is the same every time.
    let mut results = futures::stream::iter(reads).buffered(CONCURRENT_SOURCES);
    while let Some(result) = results.next().await {
        match result {
            Ok(Found { spans, inspected_bytes }) => {
                found.inspected_bytes += inspected_bytes;
                if spans.is_empty() {
                    continue;
                }
                *used += spans.iter().map(|s| size_of::<StoredSpan>() + heap_bytes(&s.span)).sum::<usize>();
                if *used > bounds.memory_bytes {
                    let what = format!("trace {id}");
                    return Err(SourceError::OverBudget { what, limit: bounds.memory_bytes });
                }
                found.lease.resize(found.lease.bytes().max(*used));
                found.pieces.push(spans);
            }
            Err(error @ SourceError::Damaged { .. }) => found.damage.push(error.to_string()),
            Err(error @ SourceError::Gone { .. }) if last_try => found.damage.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is to be read. The filters of all blocks are asked first: together they take few requests, and most blocks then none.
async fn wanted(snapshot: &Snapshot, query: &TraceQuery) -> Vec<BoxFuture<'static, Result<Found, SourceError>>> {
    let id = query.id;
    let asked = (0..snapshot.sources.len()).filter(|at| is_wanted(snapshot.sources[*at].as_ref(), query));
    let asked: Vec<usize> = asked.collect();
    let may_hold = snapshot.may_hold(id, &asked).await;
    let read = |(at, may_hold): (usize, Result<bool, SourceError>)| match may_hold {
        Ok(false) => None,
        Ok(true) => {
            let source = Arc::clone(&snapshot.sources[at]);
            Some(async move { source.find_trace(id).await }.boxed())
        }
        Err(error) => Some(std::future::ready(Err(error)).boxed()),
    };
    asked.into_iter().zip(may_hold).filter_map(read).collect()
}

fn is_wanted(source: &dyn Source, query: &TraceQuery) -> bool {
    if source.is_live() {
        return query.sources != WhichSources::Blocks;
    }
    query.sources != WhichSources::Live && query.hint.is_none_or(|hint| hint.overlaps(&source.time_range()))
}

/// What a span holds besides its own struct, roughly: its owners are shared with others and not counted.
fn heap_bytes(span: &Span) -> usize {
    let events: usize = span
        .events
        .iter()
        .map(|e| size_of::<Event>() + e.name.len() + e.unknown.len() + attributes_bytes(&e.attributes))
        .sum();
    let link = |l: &Link| l.trace_id.len() + l.span_id.len() + l.trace_state.len() + l.unknown.len();
    let links: usize = span.links.iter().map(|l| size_of::<Link>() + link(l) + attributes_bytes(&l.attributes)).sum();
    let texts = span.name.len() + span.trace_state.len() + span.status_message.len() + span.unknown.len();
    texts + events + links + attributes_bytes(&span.attributes)
}

fn attributes_bytes(attributes: &[Attribute]) -> usize {
    attributes.iter().map(|a| size_of::<Attribute>() + a.key.len() + value_bytes(&a.value)).sum()
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::Empty | Value::Bool(_) | Value::Int(_) | Value::Double(_) => 0,
        Value::Str(text) => text.len(),
        Value::Bytes(bytes) | Value::Raw(bytes) | Value::RawPair(bytes) => bytes.len(),
        Value::Array(values) => values.iter().map(|v| size_of::<Value>() + value_bytes(v)).sum(),
        Value::Map(pairs) => pairs.iter().map(|(key, v)| size_of::<(String, Value)>() + key.len() + value_bytes(v)).sum(),
    }
}
