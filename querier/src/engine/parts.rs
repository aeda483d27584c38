//! The parts a query reads: the blocks and live data of its tenants, opened, and the traces that lie in several of them.
//!
//! Owns what is kept of live data in the form of parts: batches are small, so neighbours are put together, and kept while the
//! batches live. When an object is gone the query starts again on a new snapshot, once; what is damaged is left out and told.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::{Summary, flag};
use spanhouse_common::budget::{Lease, Share};
use spanhouse_common::columns::{Fixed, Joined, MemoryPart, Part, Piece, Rows, TraceTable, Values};
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::source::{Opened, Snapshot, Snapshots, SourceError};
use spanhouse_common::time::TimeRange;

use super::EngineError;
use super::bits::Bits;

/// Sources opened at the same time.
const CONCURRENT_SOURCES: usize = 8;

/// How much longer than the range asked for a trace may be and still be seen whole.
const MAX_TRACE_LENGTH: Duration = Duration::from_secs(3600);

/// Live batches are put together to so many rows, then to so many, then all that are left: what is complete stays as it is
/// when more arrives.
const LIVE_ROWS: [usize; 2] = [128 * 1024, 16 * 1024];

/// Bytes that are remembered of how parts share traces, about: those asked for last.
const REMEMBERED_BYTES: usize = 32 << 20;

/// What a query reads.
#[derive(Debug, Default)]
pub(crate) struct OpenParts {
    pub(crate) parts: Vec<Arc<dyn Part>>,
    /// By part: times its spans lie in, or wider.
    pub(crate) ranges: Vec<TimeRange>,
    pub(crate) summaries: Vec<Arc<Summary>>,
    /// For each of `parts`, which of `summaries` is of its block; `None` for live data.
    pub(crate) summary_of: Vec<Option<usize>>,
    /// Live parts, among `parts`.
    pub(crate) live: Vec<Arc<MemoryPart>>,
    pub(crate) blocks: u32,
    pub(crate) block_bytes: u64,
    /// What could not be read and never will be.
    pub(crate) damage: Vec<String>,
    /// Held to the end: they keep the objects and batches they name.
    _snapshots: Vec<Snapshot>,
    _leases: Vec<Lease>,
}

/// Live batches as parts, kept between queries.
#[derive(Debug)]
pub(crate) struct LiveParts {
    memory: Share,
    /// By tenant: the addresses of the batches of a part, and the part, which keeps them alive.
    kept: Mutex<HashMap<TenantId, Vec<Kept>>>,
}

#[derive(Debug)]
struct Kept {
    key: Vec<usize>,
    part: Arc<MemoryPart>,
    lease: Lease,
}

impl LiveParts {
    pub(crate) fn new(memory: Share) -> Self {
        Self { memory, kept: Mutex::default() }
    }

    /// The batches of a tenant, oldest first, as parts. Ordering them takes long enough to leave the I/O threads.
    async fn parts(&self, tenant: &TenantId, batches: Vec<Arc<SpanBatch>>) -> Result<Vec<Arc<MemoryPart>>, SourceError> {
        let groups = group(batches);
        let key = |group: &[Arc<SpanBatch>]| -> Vec<usize> { group.iter().map(|b| Arc::as_ptr(b) as usize).collect() };
        let mut out: Vec<Option<Arc<MemoryPart>>> = Vec::new();
        {
            let mut kept = self.kept.lock();
            let of_tenant = kept.entry(tenant.clone()).or_default();
            // What was flushed meanwhile must not stay in memory.
            of_tenant.retain(|kept| groups.iter().any(|group| key(group) == kept.key));
            for group in &groups {
                let key = key(group);
                out.push(of_tenant.iter_mut().find(|kept| kept.key == key).map(|kept| {
                    // Columns are added as queries ask for them.
                    kept.lease.resize(kept.part.heap_bytes());
                    Arc::clone(&kept.part)
                }));
            }
            kept.retain(|_, parts| !parts.is_empty());
        }
        let missing: Vec<Vec<Arc<SpanBatch>>> =
            groups.into_iter().zip(&out).filter(|(_, known)| known.is_none()).map(|(group, _)| group).collect();
        if missing.is_empty() {
            return Ok(out.into_iter().flatten().collect());
        }
        let made = futures::stream::iter(missing)
            .map(|group| async move {
                let key = key(&group);
                let made = tokio::task::spawn_blocking(move || MemoryPart::new(group)).await;
                let broken = |e: tokio::task::JoinError| SourceError::Unreadable { what: "live".into(), why: e.to_string() };
                made.map_err(broken)?.map(|part| (key, Arc::new(part)))
            })
            .buffered(2)
            .collect::<Vec<_>>()
            .await;
        let mut made = made.into_iter().collect::<Result<Vec<_>, SourceError>>()?.into_iter();
        let mut kept = self.kept.lock();
        let of_tenant = kept.entry(tenant.clone()).or_default();
        for slot in out.iter_mut().filter(|slot| slot.is_none()) {
            let Some((key, part)) = made.next() else { break };
            // Half of the memory is for running queries.
            let room = self.memory.used() < self.memory.limit() / 2;
            if let Some(lease) = room.then(|| self.memory.try_take(part.heap_bytes()).ok()).flatten() {
                of_tenant.push(Kept { key, part: Arc::clone(&part), lease });
            }
            *slot = Some(part);
        }
        Ok(out.into_iter().flatten().collect())
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
) -> Result<OpenParts, EngineError> {
    let mut out = OpenParts::default();
    for tenant in tenants {
        match open_tenant(snapshots, live, tenant, range, false).await {
            Ok(opened) => out.add(opened),
            Err(SourceError::Gone { what }) => {
                tracing::debug!(%tenant, gone = %what, "an object is gone, the query starts again");
                out.add(open_tenant(snapshots, live, tenant, range, true).await?);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(out)
}

async fn open_tenant(
    snapshots: &dyn Snapshots,
    live: &LiveParts,
    tenant: &TenantId,
    range: Option<TimeRange>,
    last_try: bool,
) -> Result<OpenParts, SourceError> {
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
                out.blocks += 1;
                out.block_bytes += bytes;
            }
            Ok(Opened::Live(batch)) => batches.push(batch),
            Err(error @ SourceError::Damaged { .. }) => out.damage.push(error.to_string()),
            Err(error @ SourceError::Gone { .. }) if last_try => out.damage.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    drop(opening);
    out.live = live.parts(tenant, batches).await?;
    out.parts.extend(out.live.iter().map(|part| Arc::clone(part) as Arc<dyn Part>));
    // Whatever is live may be new.
    out.ranges.resize(out.parts.len(), TimeRange::ALL);
    out.summary_of.resize(out.parts.len(), None);
    out._snapshots.push(snapshot);
    Ok(out)
}

impl OpenParts {
    /// Leaves out parts whose traces cannot be told.
    pub(crate) fn without_damaged(mut self) -> Result<Self, SourceError> {
        let parts = std::mem::take(&mut self.parts).into_iter();
        let about = std::mem::take(&mut self.ranges).into_iter().zip(std::mem::take(&mut self.summary_of));
        for (part, (range, summary)) in parts.zip(about) {
            match part.traces() {
                Ok(_) => {
                    self.parts.push(part);
                    self.ranges.push(range);
                    self.summary_of.push(summary);
                }
                Err(error @ SourceError::Damaged { .. }) => self.damage.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(self)
    }

    fn add(&mut self, other: Self) {
        let before = self.summaries.len();
        self.summary_of.extend(other.summary_of.iter().map(|of| of.map(|at| before + at)));
        self.parts.extend(other.parts);
        self.ranges.extend(other.ranges);
        self.summaries.extend(other.summaries);
        self.live.extend(other.live);
        self.blocks += other.blocks;
        self.block_bytes += other.block_bytes;
        self.damage.extend(other.damage);
        self._snapshots.extend(other._snapshots);
    }
}

/// The traces that lie in several of some parts.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// By id, with their pieces by part.
    pub(crate) traces: Vec<(TraceId, Vec<Piece>)>,
    /// By part: number of the trace in the part, and in `traces`, ascending.
    pub(crate) of_part: Vec<Vec<(u32, u32)>>,
    /// Those of `traces` with a span that some part marks as perhaps received before.
    marked: Bits,
    /// Neighbouring traces joined together, when somebody first needs them.
    lots: Vec<Lot>,
}

/// Some of the shared traces.
#[derive(Debug)]
struct Lot {
    /// First trace, and the one after the last.
    traces: (u32, u32),
    joined: Mutex<Option<Arc<Joined>>>,
}

/// Rows of joined traces in one lot, about.
const LOT_ROWS: u32 = 48 * 1024;

impl Shared {
    fn find(parts: &[Arc<dyn Part>]) -> Result<Self, SourceError> {
        let tables: Vec<Arc<TraceTable>> = parts.iter().map(|part| part.traces()).collect::<Result<_, _>>()?;
        let mut out =
            Self { traces: Vec::new(), of_part: vec![Vec::new(); parts.len()], marked: Bits::default(), lots: Vec::new() };
        if parts.len() < 2 {
            return Ok(out);
        }
        // Ids as numbers: comparing them is most of the work.
        let id = |part: usize, at: usize| tables[part].ids.get(at).map(|id| u128::from_be_bytes(id.0));
        let mut heap: BinaryHeap<Reverse<(u128, usize, usize)>> =
            (0..parts.len()).filter_map(|part| Some(Reverse((id(part, 0)?, part, 0)))).collect();
        let mut last: Option<(u128, usize, usize)> = None;
        let mut is_open = false;
        while let Some(Reverse((this, part, at))) = heap.pop() {
            if let Some(next) = id(part, at + 1) {
                heap.push(Reverse((next, part, at + 1)));
            }
            let piece = |part: usize, at: usize| Piece { part: part as u32, rows: tables[part].rows(at) };
            match last {
                Some((id, first_part, first_at)) if id == this => {
                    if !is_open {
                        let number = out.traces.len() as u32;
                        out.traces.push((TraceId(this.to_be_bytes()), vec![piece(first_part, first_at)]));
                        out.of_part[first_part].push((first_at as u32, number));
                        is_open = true;
                    }
                    let number = out.traces.len() as u32 - 1;
                    if let Some((_, pieces)) = out.traces.last_mut() {
                        pieces.push(piece(part, at));
                    }
                    out.of_part[part].push((at as u32, number));
                }
                _ => is_open = false,
            }
            last = Some((this, part, at));
        }
        out.find_marked(parts, &tables)?;
        out.make_lots();
        Ok(out)
    }

    fn make_lots(&mut self) {
        let mut rows = 0;
        for (number, (_, pieces)) in (0u32..).zip(&self.traces) {
            let size: u32 = pieces.iter().map(|piece| piece.rows.len() as u32).sum();
            match self.lots.last_mut() {
                Some(lot) if rows + size <= LOT_ROWS => lot.traces.1 = number + 1,
                _ => {
                    rows = 0;
                    self.lots.push(Lot { traces: (number, number + 1), joined: Mutex::new(None) });
                }
            }
            rows += size;
        }
    }

    /// The lots that some traces (ascending) are in: number of the lot, and of the traces in it.
    pub(crate) fn lots_of(&self, traces: &[u32]) -> Vec<(usize, Vec<u32>)> {
        let mut out: Vec<(usize, Vec<u32>)> = Vec::new();
        for trace in traces {
            let lot = self.lots.partition_point(|lot| lot.traces.1 <= *trace);
            let number = trace - self.lots[lot].traces.0;
            match out.last_mut() {
                Some((last, numbers)) if *last == lot => numbers.push(number),
                _ => out.push((lot, vec![number])),
            }
        }
        out
    }

    /// The traces of a lot, joined.
    pub(crate) fn join(&self, lot: usize, parts: &[Arc<dyn Part>]) -> Result<Arc<Joined>, SourceError> {
        let lot = &self.lots[lot];
        let mut known = lot.joined.lock();
        if let Some(joined) = &*known {
            return Ok(Arc::clone(joined));
        }
        let joined = Arc::new(Joined::new(parts, &self.traces[lot.traces.0 as usize..lot.traces.1 as usize])?);
        *known = Some(Arc::clone(&joined));
        Ok(joined)
    }

    fn find_marked(&mut self, parts: &[Arc<dyn Part>], tables: &[Arc<TraceTable>]) -> Result<(), SourceError> {
        self.marked = Bits::none(self.traces.len());
        for ((part, table), traces) in parts.iter().zip(tables).zip(&self.of_part) {
            if traces.is_empty() || !part.may_have_duplicates() {
                continue;
            }
            let rows: Vec<u32> = traces.iter().flat_map(|(trace, _)| table.rows(*trace as usize)).collect();
            let column = match part.column(Fixed::RowFlags, Rows::At(&rows)) {
                Ok(column) => column,
                // Told by whoever needs the column for an answer.
                Err(SourceError::Damaged { .. }) => continue,
                Err(error) => return Err(error),
            };
            let Values::Small(flags) = column.values else { continue };
            let mut at = 0;
            for (trace, shared) in traces {
                let count = table.rows(*trace as usize).len();
                if flags[at..at + count].iter().any(|flags| flags & flag::MAYBE_DUPLICATE != 0) {
                    self.marked.set(*shared as usize);
                }
                at += count;
            }
        }
        Ok(())
    }

    /// Whether a shared trace may have a span twice: only joining it tells.
    pub(crate) fn may_be_twice(&self, trace: u32) -> bool {
        self.marked.get(trace as usize)
    }

    /// Those of a part's traces from `from` to before `to`: numbers in the part and in [`Shared::traces`].
    pub(crate) fn between(&self, part: usize, from: usize, to: usize) -> &[(u32, u32)] {
        let all = &self.of_part[part];
        let at = |trace: usize| all.partition_point(|(known, _)| (*known as usize) < trace);
        &all[at(from)..at(to)]
    }

    /// Clears the rows (numbered from `base`) of these traces.
    pub(crate) fn clear(traces: &[(u32, u32)], table: &TraceTable, base: u32, rows: &mut Bits) {
        for (trace, _) in traces {
            let range = table.rows(*trace as usize);
            rows.clear_range((range.start - base) as usize, (range.end - base) as usize);
        }
    }

    /// As much as it may come to, joined.
    fn heap_bytes(&self) -> usize {
        let rows: usize = self.traces.iter().flat_map(|(_, pieces)| pieces).map(|piece| piece.rows.len()).sum();
        self.traces.len() * 140 + self.of_part.iter().map(|all| all.len() * 8).sum::<usize>() + rows * 28
    }
}

/// Which traces sets of parts share, remembered for the sets asked for last.
#[derive(Debug, Default)]
pub(crate) struct SharedTraces(Mutex<Vec<(Vec<u64>, Arc<Shared>)>>);

impl SharedTraces {
    pub(crate) fn of(&self, parts: &[Arc<dyn Part>]) -> Result<Arc<Shared>, SourceError> {
        let key: Vec<u64> = parts.iter().map(|part| part.identity()).collect();
        {
            let mut known = self.0.lock();
            if let Some(at) = known.iter().position(|(other, _)| *other == key) {
                let found = known.remove(at);
                let shared = Arc::clone(&found.1);
                known.push(found);
                return Ok(shared);
            }
        }
        let found = Arc::new(Shared::find(parts)?);
        let bytes = found.heap_bytes();
        // Large ones are made again rather than kept.
        if bytes <= REMEMBERED_BYTES {
            let mut known = self.0.lock();
            let mut sum: usize = bytes + known.iter().map(|(_, shared)| shared.heap_bytes()).sum::<usize>();
            while sum > REMEMBERED_BYTES && !known.is_empty() {
                sum -= known.remove(0).1.heap_bytes();
            }
            known.push((key, Arc::clone(&found)));
        }
        Ok(found)
    }
}
