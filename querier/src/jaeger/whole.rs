//! Whole traces, as they are stored.
//!
//! Several are read from one snapshot of each tenant, a few at a time, in order. Owns what becomes of a trace that is too large, of
//! one that is only in the archive, and of a hint that fits nothing. Does not own how a source reads ([`crate::find_trace`]).

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::source::{Snapshot, SourceError};
use spanhouse_common::time::{TimeRange, UnixNanos};
use tokio::task::{JoinError, JoinHandle};

use super::{JaegerError, JaegerQueries, TraceSearch, WholeTrace};
use crate::assemble::{Trace, gather};
use crate::find_trace::{FindError, FoundTrace, TraceQuery, WhichSources, find_trace, find_trace_in};

/// Traces that are read at the same time, ahead of the one that is wanted next.
const AHEAD: usize = 6;

/// How much longer than a hint a trace may be and still be read whole.
const MAX_TRACE_LENGTH: Duration = Duration::from_secs(3600);

/// Where the traces of a tenant are looked for: a moment of it.
struct Moment {
    tenants: Vec<TenantId>,
    snapshots: Vec<Snapshot>,
}

impl Moment {
    async fn of(queries: &JaegerQueries, tenants: Vec<TenantId>) -> Result<Self, JaegerError> {
        let mut snapshots = Vec::with_capacity(tenants.len());
        for tenant in &tenants {
            snapshots.push(queries.deps().snapshots.snapshot(tenant).await.map_err(FindError::Source)?);
        }
        Ok(Self { tenants, snapshots })
    }
}

pub(super) async fn trace(
    queries: &JaegerQueries,
    tenants: &[TenantId],
    id: TraceId,
    hint: Option<TimeRange>,
) -> Result<Option<WholeTrace>, JaegerError> {
    if let Some(found) = stored(queries, tenants, id, hint).await? {
        return Ok(Some(found));
    }
    archived(queries, tenants, id).await
}

/// Not from the archive.
async fn stored(
    queries: &JaegerQueries,
    tenants: &[TenantId],
    id: TraceId,
    hint: Option<TimeRange>,
) -> Result<Option<WholeTrace>, JaegerError> {
    let deps = queries.deps();
    let hint = hint.map(widened);
    let query = TraceQuery { tenants: tenants.to_vec(), id, hint, sources: WhichSources::All };
    let mut found = find_trace(&*deps.snapshots, &deps.memory, &query, deps.settings.bounds).await?;
    if !is_right(hint, &found) {
        drop(found);
        let query = TraceQuery { hint: None, ..query };
        found = find_trace(&*deps.snapshots, &deps.memory, &query, deps.settings.bounds).await?;
    }
    Ok(whole(queries, id, found))
}

/// Whether all of a trace was found where a hint says it is. Clients send hints in other units than they should, and what is live is
/// found whatever the hint.
fn is_right(hint: Option<TimeRange>, found: &FoundTrace) -> bool {
    let Some(hint) = hint else { return true };
    let within = |at: u64| hint.min.0 <= at && at <= hint.max.0;
    !found.pieces.is_empty() && found.pieces.iter().flatten().all(|s| within(s.span.start_unix_nano))
}

async fn archived(queries: &JaegerQueries, tenants: &[TenantId], id: TraceId) -> Result<Option<WholeTrace>, JaegerError> {
    let Some(archive) = &queries.deps().archive else { return Ok(None) };
    let tenants: Vec<TenantId> = tenants.iter().map(|tenant| archive.tenant_of(tenant)).collect();
    stored(queries, &tenants, id, None).await
}

pub(super) async fn archive(
    queries: &JaegerQueries,
    tenant: &TenantId,
    id: TraceId,
    hint: Option<TimeRange>,
) -> Result<Option<()>, JaegerError> {
    let Some(archive) = &queries.deps().archive else { return Err(JaegerError::NoArchive) };
    let Some(found) = stored(queries, std::slice::from_ref(tenant), id, hint).await? else { return Ok(None) };
    archive.archive(tenant, &found.trace).await.map_err(JaegerError::NotArchived)?;
    Ok(Some(()))
}

pub(super) fn traces(
    queries: JaegerQueries,
    tenants: Vec<TenantId>,
    ids: Vec<TraceId>,
    hint: Option<TimeRange>,
) -> BoxStream<'static, Result<WholeTrace, JaegerError>> {
    let wanted = ids.into_iter().map(|id| (id, hint)).collect();
    read_all(queries, tenants, wanted, true)
}

pub(super) fn found(queries: JaegerQueries, search: TraceSearch) -> BoxStream<'static, Result<WholeTrace, JaegerError>> {
    let searched = async move {
        let found = match queries.find(&search).await {
            Ok(found) => found,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        if found.found.is_empty() && found.partial.is_some() {
            let (trace_id, trace, lease) = (TraceId::default(), Trace::default(), queries.deps().memory.count(0));
            return stream::iter([Ok(WholeTrace { trace_id, trace, partial: found.partial, lease })]).boxed();
        }
        let range = |start, end| TimeRange { min: UnixNanos(start), max: UnixNanos(end) };
        let wanted = found.found.iter().map(|trace| (trace.trace_id, Some(range(trace.min_start, trace.max_end))));
        let mut partial = found.partial;
        let traces = read_all(queries, search.tenants, wanted.collect(), false);
        // Said once, with the first trace.
        traces
            .map(move |result| {
                let mut whole = result?;
                if let Some(why) = partial.take() {
                    add(&mut whole.partial, why);
                }
                Ok(whole)
            })
            .boxed()
    };
    searched.flatten_stream().boxed()
}

/// Reads traces in order, a few at a time; those that are not there are left out. `else_archived`: the archive is asked as well.
fn read_all(
    queries: JaegerQueries,
    tenants: Vec<TenantId>,
    wanted: Vec<(TraceId, Option<TimeRange>)>,
    else_archived: bool,
) -> BoxStream<'static, Result<WholeTrace, JaegerError>> {
    let read = async move {
        let moment = match Moment::of(&queries, tenants).await {
            Ok(moment) => Arc::new(moment),
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let reads = wanted.into_iter().map(move |(id, hint)| {
            let (queries, moment) = (queries.clone(), Arc::clone(&moment));
            async move {
                // A task of its own: decoding is most of the work, and another core may do it.
                let task = tokio::spawn(async move { read_one(&queries, &moment, id, hint, else_archived).await });
                let mut task = AbortOnDrop(task);
                match (&mut task.0).await {
                    Ok(read) => read.transpose(),
                    Err(error) => Some(Err(broken(&error))),
                }
            }
        });
        stream::iter(reads).buffered(AHEAD).filter_map(std::future::ready).boxed()
    };
    read.flatten_stream().boxed()
}

/// Ends a task that nobody waits for any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A panic comes of data that nobody expected: trying again would not help.
fn broken(error: &JoinError) -> JaegerError {
    tracing::error!(%error, "reading a trace failed");
    let (what, why) = ("a trace".to_owned(), "reading it failed".to_owned());
    JaegerError::Find(FindError::Source(SourceError::Damaged { what, why }))
}

async fn read_one(
    queries: &JaegerQueries,
    moment: &Moment,
    id: TraceId,
    hint: Option<TimeRange>,
    else_archived: bool,
) -> Result<Option<WholeTrace>, JaegerError> {
    let deps = queries.deps();
    let query = TraceQuery { tenants: moment.tenants.clone(), id, hint: hint.map(widened), sources: WhichSources::All };
    match find_trace_in(&moment.snapshots, &deps.memory, &query, deps.settings.bounds).await {
        Ok(found) if is_right(query.hint, &found) => {
            if let Some(whole) = whole(queries, id, found) {
                return Ok(Some(whole));
            }
        }
        Ok(_) => {}
        // Compacted meanwhile: another moment has it.
        Err(FindError::Source(SourceError::Gone { .. })) => {}
        Err(error) => return Err(error.into()),
    }
    if !else_archived {
        return stored(queries, &moment.tenants, id, hint).await;
    }
    trace(queries, &moment.tenants, id, hint).await
}

fn widened(hint: TimeRange) -> TimeRange {
    TimeRange { min: hint.min.saturating_sub(MAX_TRACE_LENGTH), max: hint.max.saturating_add(MAX_TRACE_LENGTH) }
}

/// `None` if nothing was found, and nothing is missing.
fn whole(queries: &JaegerQueries, id: TraceId, found: FoundTrace) -> Option<WholeTrace> {
    let bytes = found.heap_bytes();
    let FoundTrace { pieces, damage, mut lease, .. } = found;
    if pieces.is_empty() && damage.is_empty() {
        return None;
    }
    let mut partial = (!damage.is_empty()).then(|| damage.join("; "));
    let mut trace = gather(pieces);
    let spans = trace.spans().count();
    if trace.truncate(queries.deps().settings.max_trace_bytes) {
        let shown = trace.spans().count();
        add(
            &mut partial,
            format!("trace has {spans} spans, which are too large together, showing first {shown} spans only"),
        );
    }
    lease.resize(bytes);
    Some(WholeTrace { trace_id: id, trace, partial, lease })
}

/// Adds a reason.
fn add(partial: &mut Option<String>, why: String) {
    *partial = Some(match partial.take() {
        Some(known) => format!("{known}; {why}"),
        None => why,
    });
}
