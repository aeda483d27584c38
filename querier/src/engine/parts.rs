//! The parts a query reads: the blocks and live data of its tenants, opened.
//!
//! Owns what is kept of live data in the form of parts: batches are small, so neighbours are put together, and kept while the
//! batches live. When an object is gone the query starts again on a new snapshot, once; what is damaged is left out and told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use parking_lot::Mutex;
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::Summary;
use spanhouse_common::budget::{Lease, Share};
use spanhouse_common::columns::{MemoryPart, Part, PartWithout};
use spanhouse_common::id::TenantId;
use spanhouse_common::manifest::Tombstones;
use spanhouse_common::source::{Opened, Snapshot, Snapshots, SourceError};
use spanhouse_common::time::TimeRange;

use super::EngineError;
use super::hidden::HiddenTraces;

/// Sources opened at the same time.
const CONCURRENT_SOURCES: usize = 8;

/// How much longer than the range asked for a trace may be and still be seen whole.
const MAX_TRACE_LENGTH: Duration = Duration::from_secs(3600);

/// Live batches are put together to so many rows, then to so many, then all that are left: what is complete stays as it is
/// when more arrives.
const LIVE_ROWS: [usize; 2] = [128 * 1024, 16 * 1024];

/// Of a live part before any attribute was asked for.
const BYTES_PER_ROW: usize = 84;

/// How long live parts of a tenant are kept that nobody asks about.
const IDLE: Duration = Duration::from_secs(60);

/// What a query reads.
#[derive(Debug, Default)]
pub(crate) struct OpenParts {
    pub(crate) parts: Vec<Arc<dyn Part>>,
    /// By part: times its spans lie in, or wider.
    pub(crate) ranges: Vec<TimeRange>,
    pub(crate) summaries: Vec<Arc<Summary>>,
    /// For each of `parts`, which of `summaries` is of its block; `None` for live data.
    pub(crate) summary_of: Vec<Option<usize>>,
    /// For each of `summaries`, the parts of its block of which deleted traces are left out: it tells of these as well.
    pub(crate) hiding: Vec<Vec<Arc<PartWithout>>>,
    /// For each of `parts`, the deleted traces of its tenant; `None` if there are none.
    tombstones: Vec<Option<Arc<Tombstones>>>,
    pub(crate) blocks: u32,
    pub(crate) block_bytes: u64,
    /// What could not be read and never will be.
    pub(crate) damage: Vec<String>,
    /// Held to the end: they keep the objects and batches they name.
    _snapshots: Vec<Snapshot>,
    live: Vec<Arc<Charged>>,
}

/// Live batches as parts, kept between queries.
#[derive(Debug)]
pub(crate) struct LiveParts {
    memory: Share,
    /// By tenant: the addresses of the batches of a part, and the part, which keeps them alive.
    kept: Mutex<HashMap<TenantId, Vec<Kept>>>,
    /// Queries that come together must not each order the same batches.
    ordering: tokio::sync::Mutex<()>,
}

/// A live part and its memory, which is given back when the last query that reads it ends, be it kept or not.
#[derive(Debug)]
struct Charged {
    part: Arc<MemoryPart>,
    lease: Mutex<Lease>,
}

impl Charged {
    /// Columns are added as queries ask for them.
    fn charge(&self) {
        self.lease.lock().resize(self.part.heap_bytes());
    }
}

#[derive(Debug)]
struct Kept {
    key: Vec<usize>,
    part: Arc<Charged>,
    used: Instant,
}

/// What tells a group of batches from others: batches that are alive have different places.
fn key(group: &[Arc<SpanBatch>]) -> Vec<usize> {
    group.iter().map(|batch| Arc::as_ptr(batch) as usize).collect()
}

impl LiveParts {
    pub(crate) fn new(memory: Share) -> Self {
        Self { memory, kept: Mutex::default(), ordering: tokio::sync::Mutex::default() }
    }

    /// The batches of a tenant, oldest first, as parts. Ordering them takes long enough to leave the I/O threads.
    async fn parts(
        &self,
        tenant: &TenantId,
        batches: Vec<Arc<SpanBatch>>,
        patience: Duration,
    ) -> Result<Vec<Arc<Charged>>, EngineError> {
        let groups = group(batches);
        let mut out = self.known(tenant, &groups);
        if out.iter().all(Option::is_some) {
            return Ok(out.into_iter().flatten().collect());
        }
        let _turn = self.ordering.lock().await;
        out = self.known(tenant, &groups);
        for (group, slot) in groups.into_iter().zip(&mut out).filter(|(_, known)| known.is_none()) {
            let key = key(&group);
            let rows: usize = group.iter().map(|batch| batch.len()).sum();
            let lease = match self.memory.try_take(rows * BYTES_PER_ROW) {
                Ok(lease) => lease,
                Err(_) => {
                    // What is kept is made again when needed; only running queries are worth waiting for.
                    self.forget(&[]);
                    self.memory.take(rows * BYTES_PER_ROW, patience).await.map_err(|_| EngineError::Busy)?
                }
            };
            let made = tokio::task::spawn_blocking(move || MemoryPart::new(group)).await;
            let broken = |e: tokio::task::JoinError| SourceError::Unreadable { what: "live".into(), why: e.to_string() };
            let part = Arc::new(Charged { part: Arc::new(made.map_err(broken)??), lease: Mutex::new(lease) });
            part.charge();
            *slot = Some(Arc::clone(&part));
            // Half of the memory is for running queries.
            if self.memory.used() < self.memory.limit() / 2 {
                self.kept.lock().entry(tenant.clone()).or_default().push(Kept { key, part, used: Instant::now() });
            }
        }
        Ok(out.into_iter().flatten().collect())
    }

    /// For each group the part that is kept of it.
    fn known(&self, tenant: &TenantId, groups: &[Vec<Arc<SpanBatch>>]) -> Vec<Option<Arc<Charged>>> {
        let mut kept = self.kept.lock();
        let of_tenant = kept.entry(tenant.clone()).or_default();
        // What was flushed meanwhile must not stay in memory.
        of_tenant.retain(|kept| groups.iter().any(|group| key(group) == kept.key));
        let mut known = |group: &Vec<Arc<SpanBatch>>| {
            let key = key(group);
            of_tenant.iter_mut().find(|kept| kept.key == key).map(|kept| {
                kept.part.charge();
                kept.used = Instant::now();
                Arc::clone(&kept.part)
            })
        };
        let out = groups.iter().map(&mut known).collect();
        // Of a tenant that nobody asks about, what was flushed stays only so long.
        kept.retain(|_, parts| parts.iter().any(|kept| kept.used.elapsed() < IDLE));
        out
    }

    /// Forgets parts of tenants that nobody asked for lately.
    pub(crate) fn forget(&self, keep: &[TenantId]) {
        self.kept.lock().retain(|tenant, _| keep.contains(tenant));
    }
}

fn group(batches: Vec<Arc<SpanBatch>>) -> Vec<Vec<Arc<SpanBatch>>> {
    let mut out = Vec::new();
    let mut rest = batches;
    for rows in LIVE_ROWS {
        loop {
            let mut sum = 0;
            let Some(end) = rest.iter().position(|batch| {
                sum += batch.len();
                sum >= rows
            }) else {
                break;
            };
            let tail = rest.split_off(end + 1);
            out.push(std::mem::replace(&mut rest, tail));
        }
    }
    if !rest.is_empty() {
        out.push(rest);
    }
    out
}

/// Opens what `tenants` have in `range`.
pub(crate) async fn open(
    snapshots: &dyn Snapshots,
    live: &LiveParts,
    tenants: &[TenantId],
    range: Option<TimeRange>,
    patience: Duration,
) -> Result<OpenParts, EngineError> {
    let mut out = OpenParts::default();
    for tenant in tenants {
        match open_tenant(snapshots, live, tenant, (range, patience), false).await {
            Ok(opened) => out.add(opened),
            Err(EngineError::Source(SourceError::Gone { what })) => {
                tracing::debug!(%tenant, gone = %what, "an object is gone, the query starts again");
                out.add(open_tenant(snapshots, live, tenant, (range, patience), true).await?);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(out)
}

async fn open_tenant(
    snapshots: &dyn Snapshots,
    live: &LiveParts,
    tenant: &TenantId,
    (range, patience): (Option<TimeRange>, Duration),
    last_try: bool,
) -> Result<OpenParts, EngineError> {
    let snapshot = snapshots.snapshot(tenant).await?;
    let mut out = OpenParts::default();
    let wide = range.map(|range| TimeRange {
        min: range.min.saturating_sub(MAX_TRACE_LENGTH),
        max: range.max.saturating_add(MAX_TRACE_LENGTH),
    });
    let wanted = snapshot
        .sources
        .iter()
        .filter(|source| source.is_live() || wide.is_none_or(|range| range.overlaps(&source.time_range())));
    let opening = wanted.map(|source| {
        let source = Arc::clone(source);
        async move { (source.stored_bytes(), source.time_range(), source.open().await) }
    });
    let mut opening = futures::stream::iter(opening.collect::<Vec<_>>()).buffered(CONCURRENT_SOURCES);
    let mut batches = Vec::new();
    while let Some((bytes, range, opened)) = opening.next().await {
        match opened {
            Ok(Opened::Block { parts, summary }) => {
                out.summary_of.extend(parts.iter().map(|_| Some(out.summaries.len())));
                out.ranges.extend(parts.iter().map(|_| range));
                out.parts.extend(parts);
                out.summaries.push(summary);
                out.hiding.push(Vec::new());
                out.blocks += 1;
                out.block_bytes += bytes;
            }
            Ok(Opened::Live(batch)) => batches.push(batch),
            Err(error @ SourceError::Damaged { .. }) => out.damage.push(error.to_string()),
            Err(error @ SourceError::Gone { .. }) if last_try => out.damage.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    drop(opening);
    out.live = live.parts(tenant, batches, patience).await?;
    out.parts.extend(out.live.iter().map(|live| Arc::clone(&live.part) as Arc<dyn Part>));
    // Whatever is live may be new.
    out.ranges.resize(out.parts.len(), TimeRange::ALL);
    out.summary_of.resize(out.parts.len(), None);
    let tombstones = (!snapshot.tombstones.is_empty()).then(|| Arc::clone(&snapshot.tombstones));
    out.tombstones.resize(out.parts.len(), tombstones);
    out._snapshots.push(snapshot);
    Ok(out)
}

impl OpenParts {
    /// Leaves out deleted traces, and parts whose traces cannot be told. Reads trace ids: for a thread that may wait.
    pub(crate) fn checked(mut self, known: &HiddenTraces) -> Result<Self, SourceError> {
        let parts = std::mem::take(&mut self.parts).into_iter();
        let about = std::mem::take(&mut self.ranges).into_iter().zip(std::mem::take(&mut self.summary_of));
        let mut look = known.look();
        for ((part, tombstones), (range, summary)) in parts.zip(std::mem::take(&mut self.tombstones)).zip(about) {
            let table = match part.traces() {
                Ok(table) => table,
                Err(error @ SourceError::Damaged { .. }) => {
                    self.damage.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut part = part;
            if let Some(hidden) = tombstones.and_then(|tombstones| look.hidden(&*part, &table, &tombstones)) {
                let without = Arc::new(PartWithout::new(part, Arc::clone(&hidden)));
                if let Some(summary) = summary {
                    self.hiding[summary].push(Arc::clone(&without));
                }
                if hidden.is_all() {
                    continue;
                }
                part = without;
            }
            self.parts.push(part);
            self.ranges.push(range);
            self.summary_of.push(summary);
        }
        Ok(self)
    }

    /// Whether some traces of a tenant are deleted.
    pub(crate) fn has_deleted(&self) -> bool {
        self.tombstones.iter().any(Option::is_some)
    }

    /// Accounts for what live parts hold by now.
    pub(crate) fn charge(&self) {
        self.live.iter().for_each(|live| live.charge());
    }

    /// How many of the first parts stay the longest: blocks and live data that is complete, and so on.
    pub(crate) fn stages(&self) -> [usize; 2] {
        LIVE_ROWS.map(|rows| {
            let stays =
                |(part, summary): &(&Arc<dyn Part>, &Option<usize>)| summary.is_some() || part.rows() as usize >= rows;
            self.parts.iter().zip(&self.summary_of).take_while(stays).count()
        })
    }

    fn add(&mut self, other: Self) {
        let before = self.summaries.len();
        self.summary_of.extend(other.summary_of.iter().map(|of| of.map(|at| before + at)));
        self.parts.extend(other.parts);
        self.ranges.extend(other.ranges);
        self.summaries.extend(other.summaries);
        self.hiding.extend(other.hiding);
        self.tombstones.extend(other.tombstones);
        self.blocks += other.blocks;
        self.block_bytes += other.block_bytes;
        self.damage.extend(other.damage);
        self._snapshots.extend(other._snapshots);
        self.live.extend(other.live);
    }
}
