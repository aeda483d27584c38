//! The engine: opens what a query reads, cuts the work into jobs, and runs them on a bounded number of threads.
//!
//! A job is some whole traces of one part. Traces that lie in several parts are joined and are jobs of their own, so that no
//! trace is seen twice or in pieces.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt as _;
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::budget::{Lease, Share};
use spanhouse_common::columns::{MemoryPart, MergedPart, Part, TraceTable};
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::model::StoredSpan;
use spanhouse_common::source::{Snapshots, SourceError};
use spanhouse_common::time::{TimeRange, UnixNanos};
use tokio::sync::Semaphore;

use super::answer::{
    EdgesAnswer, OperationsAnswer, QueryStats, SearchAnswer, SeriesAnswer, TagNamesAnswer, TagValuesAnswer,
};
use super::bits::Bits;
use super::budget::Budget;
use super::edges::KeptEdges;
use super::expr::Compiler;
use super::filter::PartView;
use super::hidden::HiddenTraces;
use super::parts::{LiveParts, OpenParts, open};
use super::shared::{Shared, SharedTraces};
use super::tags::{KeptNames, KeptOperations};
use super::{
    EdgesRequest, EngineError, MetricsRequest, OperationsRequest, Progress, QueryEngine, SearchRequest, SpanPredicate,
    TagNamesRequest, TagValuesRequest,
};
use crate::find_trace::QueryBounds;
use crate::traceql::ast;

/// Rows of a job, about. More makes the last jobs of a query run alone, fewer repeat the work of starting.
const JOB_ROWS: u32 = 96 * 1024;

/// Taken from the share before anything is read; grows with what is kept.
const FIRST_LEASE_BYTES: usize = 24 << 20;

/// Runs queries over the sources of this process.
#[derive(Debug)]
pub struct Engine {
    snapshots: Arc<dyn Snapshots>,
    memory: Share,
    bounds: QueryBounds,
    live: LiveParts,
    hidden: Arc<HiddenTraces>,
    shared: Arc<SharedTraces>,
    names: Arc<KeptNames>,
    operations: Arc<KeptOperations>,
    edges: Arc<KeptEdges>,
    cpu: Arc<Semaphore>,
    threads: usize,
}

/// One query on its way.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) opened: Arc<OpenParts>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) budget: Budget,
    pub(crate) stats: QueryStats,
    slices: Vec<Slice>,
    lease: Lease,
    cpu: Arc<Semaphore>,
    threads: usize,
}

/// Ends the jobs of a query that nobody waits for.
struct CancelOnDrop(Option<Budget>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(budget) = &self.0 {
            budget.cancel();
        }
    }
}

/// Some whole traces of a part.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    pub(crate) part: Arc<dyn Part>,
    /// Index among the opened parts; `None` for joined traces.
    pub(crate) number: Option<usize>,
    /// First trace, and the one after the last.
    pub(crate) traces: (usize, usize),
    /// Their rows.
    pub(crate) rows: (u32, u32),
    /// Traces that are wanted, by their number in the part; `None` for all.
    pub(crate) only: Option<Vec<u32>>,
    /// Its spans lie in it; no span starts later.
    pub(crate) range: TimeRange,
}

impl Slice {
    /// No span of it starts later.
    pub(crate) fn newest(&self) -> u64 {
        self.range.max.0
    }
}

impl Engine {
    /// `memory` is what all queries together may hold.
    pub fn new(snapshots: Arc<dyn Snapshots>, memory: Share, bounds: QueryBounds) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            snapshots,
            live: LiveParts::new(memory.clone()),
            hidden: Arc::new(HiddenTraces::new(memory.clone())),
            shared: Arc::new(SharedTraces::new(memory.clone())),
            edges: Arc::new(KeptEdges::new(memory.clone())),
            memory,
            bounds,
            names: Arc::default(),
            operations: Arc::default(),
            cpu: Arc::new(Semaphore::new(threads)),
            threads,
        }
    }

    /// Opens what a query reads.
    async fn start(&self, tenants: &[TenantId], range: Option<TimeRange>) -> Result<Running, EngineError> {
        self.start_with(tenants, range, true).await
    }

    /// `joins`: whether traces may have to be joined. Without, there are no slices either, and trace ids are read only where
    /// traces are deleted.
    async fn start_with(&self, tenants: &[TenantId], range: Option<TimeRange>, joins: bool) -> Result<Running, EngineError> {
        let first = FIRST_LEASE_BYTES.min(self.bounds.memory_bytes);
        let lease = match self.memory.try_take(first) {
            Ok(lease) => lease,
            Err(_) => {
                // What is kept between queries is made again when needed; only other queries are worth waiting for.
                self.live.forget(&[]);
                self.hidden.forget();
                self.shared.forget();
                self.edges.forget();
                self.memory.take(first, self.bounds.patience).await.map_err(|_| EngineError::Busy)?
            }
        };
        let budget = Budget::new(self.bounds.memory_bytes, Instant::now() + self.bounds.deadline);
        let opened = open(&*self.snapshots, &self.live, tenants, range, self.bounds.patience).await?;
        let mut running = Running {
            opened: Arc::default(),
            shared: Arc::default(),
            budget,
            stats: QueryStats::default(),
            slices: Vec::new(),
            lease,
            cpu: Arc::clone(&self.cpu),
            threads: self.threads,
        };
        let (hidden, shared) = (Arc::clone(&self.hidden), Arc::clone(&self.shared));
        let looked_at = move || {
            if !joins {
                let opened = if opened.has_deleted() { opened.checked(&hidden)? } else { opened };
                return Ok((opened, Arc::default(), Vec::new()));
            }
            let opened = opened.checked(&hidden)?;
            let shared = shared.of(&opened.parts, &opened.stages())?;
            let slices = slices(&opened, &shared, range)?;
            Ok((opened, shared, slices))
        };
        let (opened, shared, slices) = running.alone(looked_at).await?;
        running.stats = QueryStats {
            total_blocks: opened.blocks,
            total_block_bytes: opened.block_bytes,
            partial: (!opened.damage.is_empty()).then(|| opened.damage.join("; ")),
            // Something that was to be read was not.
            total_jobs: opened.damage.len() as u32,
            ..QueryStats::default()
        };
        (running.opened, running.shared, running.slices) = (Arc::new(opened), shared, slices);
        Ok(running)
    }

    /// Runs a query within its time, once more if an object went while it ran.
    async fn within_time<T, F: Future<Output = Result<T, EngineError>>>(
        &self,
        run: impl Fn() -> F,
    ) -> Result<T, EngineError> {
        let twice = async {
            match run().await {
                Err(EngineError::Source(SourceError::Gone { what })) => {
                    tracing::debug!(gone = %what, "an object is gone, the query starts again");
                    run().await
                }
                done => done,
            }
        };
        tokio::time::timeout(self.bounds.deadline, twice).await.unwrap_or(Err(EngineError::Deadline))
    }
}

impl Running {
    /// Runs one job.
    pub(crate) async fn alone<T: Send + 'static>(
        &mut self,
        job: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let mut out = None;
        self.jobs(vec![job], |_, done| {
            out = Some(done);
            Ok(())
        })
        .await?;
        out.ok_or_else(|| EngineError::Evaluation(self.stats.partial.clone().unwrap_or_else(|| "a job failed".into())))
    }

    /// Runs jobs, a few at a time, and hands on what each made. Damage makes the answer partial; anything else ends the query.
    pub(crate) async fn jobs<T: Send + 'static, J: FnOnce() -> Result<T, EngineError> + Send + 'static>(
        &mut self,
        jobs: Vec<J>,
        mut each: impl FnMut(&mut QueryStats, T) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        self.stats.total_jobs += jobs.len() as u32;
        let mut guard = CancelOnDrop(Some(self.budget.clone()));
        let (cpu, budget) = (Arc::clone(&self.cpu), self.budget.clone());
        let running = jobs.into_iter().map(|job| {
            let (cpu, budget) = (Arc::clone(&cpu), budget.clone());
            async move {
                let Ok(permit) = cpu.acquire_owned().await else { return Err(EngineError::Deadline) };
                let task = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    budget.check()?;
                    job()
                });
                task.await.unwrap_or_else(|error| {
                    // A panic comes of data that nobody expected: trying again would not help.
                    tracing::error!(%error, "a job of a query failed");
                    Err(EngineError::Source(SourceError::Damaged {
                        what: "data".into(),
                        why: "a job of the query failed".into(),
                    }))
                })
            }
        });
        let mut done = futures::stream::iter(running).buffer_unordered(self.threads);
        while let Some(result) = done.next().await {
            match result {
                Ok(value) => {
                    self.stats.completed_jobs += 1;
                    each(&mut self.stats, value)?;
                    self.charge()?;
                }
                Err(EngineError::Source(error @ SourceError::Damaged { .. })) => {
                    self.stats.miss(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        drop(done);
        guard.0 = None;
        Ok(())
    }

    /// Accounts for what the query and the live parts it reads hold by now. Ends the query if all together hold far too much:
    /// what runs grows after it was let in.
    fn charge(&mut self) -> Result<(), EngineError> {
        self.opened.charge();
        let before = self.lease.bytes();
        self.lease.resize(before.max(self.budget.kept()));
        let share = self.lease.share();
        if self.lease.bytes() > before && share.used() > share.limit() / 2 * 3 {
            return Err(EngineError::Busy);
        }
        Ok(())
    }

    /// All there is to read.
    pub(crate) fn slices(&self) -> Vec<Slice> {
        self.slices.clone()
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Jobs that do `work` on shared traces, given by number: lot by lot, joined.
    pub(crate) fn merged<T: Send + 'static>(
        &self,
        mut traces: Vec<u32>,
        work: impl Fn(Slice) -> Result<T, EngineError> + Clone + Send + 'static,
    ) -> Vec<impl FnOnce() -> Result<T, EngineError> + Send + 'static> {
        traces.sort_unstable();
        traces.dedup();
        self.shared
            .lots_of(&traces)
            .into_iter()
            .map(|(lot, wanted)| {
                let (shared, opened, work) = (Arc::clone(&self.shared), Arc::clone(&self.opened), work.clone());
                move || {
                    let part = Arc::new(MergedPart::new(opened.parts.clone(), shared.join(lot, &opened.parts)?));
                    let (count, rows) = (part.traces()?.len(), part.rows());
                    let only = (wanted.len() < count).then_some(wanted);
                    work(Slice { part, number: None, traces: (0, count), rows: (0, rows), only, range: TimeRange::ALL })
                }
            })
            .collect()
    }
}

#[async_trait]
impl QueryEngine for Engine {
    async fn search(
        &self,
        request: SearchRequest,
        progress: &dyn Progress<SearchAnswer>,
    ) -> Result<SearchAnswer, EngineError> {
        self.within_time(|| async {
            let running = self.start(&request.tenants, request.range).await?;
            super::search::search(running, &request, progress).await
        })
        .await
    }

    async fn metrics(
        &self,
        request: MetricsRequest,
        progress: &dyn Progress<SeriesAnswer>,
    ) -> Result<SeriesAnswer, EngineError> {
        self.within_time(|| async {
            let range = TimeRange { min: UnixNanos(request.grid.start), max: UnixNanos(request.grid.end) };
            let running = self.start(&request.tenants, Some(range)).await?;
            super::series::metrics(running, &request, progress).await
        })
        .await
    }

    fn span_filter(&self, filter: &ast::FieldExpr) -> SpanPredicate {
        let mut compiler = Compiler::default();
        match compiler.filter(filter) {
            Ok(expr) => {
                let attributes = compiler.attributes;
                Box::new(move |span| holds_for(&expr, &attributes, span).unwrap_or(false))
            }
            // What cannot be evaluated holds for nothing.
            Err(_) => Box::new(|_| false),
        }
    }

    async fn tag_names(&self, request: TagNamesRequest) -> Result<TagNamesAnswer, EngineError> {
        self.within_time(|| async {
            let running = self.start(&request.tenants, request.range).await?;
            super::tags::names(running, &request, &self.names).await
        })
        .await
    }

    async fn operations(&self, request: OperationsRequest) -> Result<OperationsAnswer, EngineError> {
        self.within_time(|| async {
            let running = self.start_with(&request.tenants, request.range, false).await?;
            super::tags::operations(running, &request, &self.operations).await
        })
        .await
    }

    async fn edges(&self, request: EdgesRequest) -> Result<EdgesAnswer, EngineError> {
        self.within_time(|| async {
            let running = self.start(&request.tenants, Some(request.range)).await?;
            super::edges::edges(running, &request, &self.edges).await
        })
        .await
    }

    async fn tag_values(&self, request: TagValuesRequest) -> Result<TagValuesAnswer, EngineError> {
        self.within_time(|| async {
            let running = self.start(&request.tenants, request.range).await?;
            super::tags::values(running, &request).await
        })
        .await
    }
}

/// All parts in slices of about equal work. Parts that do not overlap the range in question were opened because traces in others
/// may reach into them: of these only shared traces are wanted. Reads trace ids: for a thread that may wait.
fn slices(opened: &OpenParts, shared: &Shared, range: Option<TimeRange>) -> Result<Vec<Slice>, EngineError> {
    let mut out = Vec::new();
    for (number, part) in opened.parts.iter().enumerate() {
        let (table, of_part) = (part.traces()?, opened.ranges[number]);
        let is_asked = range.is_none_or(|asked| asked.overlaps(&of_part));
        let mut first = 0;
        while first < table.len() {
            let from = table.starts[first];
            let end = table.starts.partition_point(|start| *start <= from.saturating_add(JOB_ROWS)) - 1;
            let to = end.clamp(first + 1, table.len());
            let only =
                (!is_asked).then(|| shared.between(number, first, to).iter().map(|(trace, _)| *trace).collect::<Vec<u32>>());
            if only.as_ref().is_none_or(|only| !only.is_empty()) {
                out.push(Slice {
                    part: Arc::clone(part),
                    number: Some(number),
                    traces: (first, to),
                    rows: (from, table.starts[to]),
                    only,
                    range: of_part,
                });
            }
            first = to;
        }
    }
    Ok(out)
}

impl Slice {
    /// The rows of its traces that are wanted, numbered from the first.
    pub(crate) fn wanted(&self, table: &TraceTable) -> Bits {
        let (from, to) = self.rows;
        let Some(only) = &self.only else { return Bits::all((to - from) as usize) };
        let mut out = Bits::none((to - from) as usize);
        for trace in only {
            table.rows(*trace as usize).for_each(|row| out.set((row - from) as usize));
        }
        out
    }
}

/// Whether a span fulfils a filter by itself.
fn holds_for(
    filter: &super::expr::Expr,
    attributes: &super::expr::Attributes,
    span: &StoredSpan,
) -> Result<bool, EngineError> {
    let part = MemoryPart::new(vec![Arc::new(SpanBatch::of_spans(std::slice::from_ref(span)))])?;
    let budget = Budget::new(usize::MAX, Instant::now() + Duration::from_secs(3600));
    let view = PartView::new(&part, attributes, &budget)?;
    Ok(!view.select(filter, 0, part.rows())?.is_none())
}

/// Where a trace is in the order of answers: newest first, then by id.
pub(crate) fn newest_first(start: u64, id: TraceId) -> (std::cmp::Reverse<u64>, TraceId) {
    (std::cmp::Reverse(start), id)
}
