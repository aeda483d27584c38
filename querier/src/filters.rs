//! Trace-id filters of the blocks of a snapshot: which blocks may hold a trace, asked of all at once and in few requests.
//!
//! Owns where a filter is read from and what of it is kept. Does not own the blocks ([`crate::sources`]) nor the decision what
//! to look for ([`crate::find_trace`]).
//!
//! A filter that is not kept comes from its pack, if the manifest names one that has it. A pack is read whole, in one request that
//! all who miss it share, and all of its filters are kept; if it is larger than what may be kept, or most of it is kept already,
//! only what is missing is read of it. A pack that is damaged or gone is counted and left alone for a minute: each block still
//! has a filter of its own. Only if that is damaged or gone too, the block cannot be judged.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, Shared, WeakShared};
use futures::{FutureExt as _, StreamExt as _, stream};
use object_store::ObjectStore;
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use spanhouse_common::block::filter_pack::{read_pack, read_packed};
use spanhouse_common::block::{BlockLocation, TraceIdFilter};
use spanhouse_common::id::{BlockId, PackId, TenantId, TraceId};
use spanhouse_common::manifest::{BlockEntry, FilterPack, ManifestState, PackedFilter};
use spanhouse_common::source::{SourceError, TraceFilters};
use tokio::sync::Semaphore;

use crate::sources::bounded;

/// Packs that are read at the same time, of all queries together: bounds what is in memory and not yet kept.
const PACKS_AT_ONCE: usize = 2;

/// Filters of single blocks read at the same time by one query.
const SINGLE_FILTERS_AT_ONCE: usize = 16;

/// How long a pack that could not be used is not asked again.
const SPOILED_FOR: Duration = Duration::from_secs(60);

/// Packs remembered as spoiled.
const MAX_SPOILED: u64 = 10_000;

/// Bytes of filters that are decoded at once, where they are wanted: below a millisecond.
const LITTLE_BYTES: u64 = 256 * 1024;

/// Filters by block.
type ByBlock = HashMap<BlockId, Arc<TraceIdFilter>>;

/// A pack on its way, shared by all who wait for it.
type Load = Shared<BoxFuture<'static, Result<Arc<ByBlock>, SourceError>>>;
type WeakLoad = WeakShared<BoxFuture<'static, Result<Arc<ByBlock>, SourceError>>>;

/// Where filters were read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum ReadFrom {
    Pack,
    PartOfPack,
    Block,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadLabels {
    from: ReadFrom,
}

/// What is counted of reading filters; clones share it.
#[derive(Clone, Debug, Default)]
pub struct FilterMetrics {
    reads: Family<ReadLabels, Counter>,
    spoiled_packs: Counter,
}

impl FilterMetrics {
    /// Adds the metrics to `registry`, whose prefix names product and role.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("filter_reads", "Reads of trace-id filters, by what was read", self.reads.clone());
        registry.register(
            "spoiled_filter_packs",
            "Packs of filters that were damaged or gone, so that the blocks' own filters were read",
            self.spoiled_packs.clone(),
        );
    }

    /// Packs that were damaged or gone.
    pub fn spoiled_packs(&self) -> u64 {
        self.spoiled_packs.get()
    }

    fn read(&self, from: ReadFrom) {
        self.reads.get_or_create(&ReadLabels { from }).inc();
    }
}

/// The filters that are kept between queries, and those on their way.
#[derive(Debug)]
pub(crate) struct Filters {
    store: Arc<dyn ObjectStore>,
    kept: moka::sync::Cache<BlockId, Arc<TraceIdFilter>>,
    kept_bytes: u64,
    loads: Mutex<HashMap<PackId, WeakLoad>>,
    turns: Semaphore,
    spoiled: moka::sync::Cache<PackId, ()>,
    metrics: FilterMetrics,
}

impl Filters {
    /// Keeps at most `kept_bytes`.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, kept_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            store,
            kept: bounded(kept_bytes, |filter: &Arc<TraceIdFilter>| filter.heap_bytes()),
            kept_bytes,
            loads: Mutex::default(),
            turns: Semaphore::new(PACKS_AT_ONCE),
            spoiled: moka::sync::Cache::builder().max_capacity(MAX_SPOILED).time_to_live(SPOILED_FOR).build(),
            metrics: FilterMetrics::default(),
        })
    }

    pub(crate) fn metrics(&self) -> &FilterMetrics {
        &self.metrics
    }

    /// The filters of `wanted`, all of this pack, and perhaps more. What could not be made sense of is missing.
    async fn of_pack(
        self: &Arc<Self>,
        tenant: &TenantId,
        state: &Arc<ManifestState>,
        pack: &Arc<FilterPack>,
        wanted: &[PackedFilter],
    ) -> Result<Arc<ByBlock>, SourceError> {
        let alive = || pack.filters.iter().filter(|filter| state.blocks.contains_key(&filter.block));
        let (mut all, mut missing) = (0, 0);
        for filter in alive() {
            let bytes = u64::from(filter.bytes);
            all += bytes;
            missing += if self.kept.contains_key(&filter.block) { 0 } else { bytes };
        }
        if pack.size_bytes <= self.kept_bytes && missing.saturating_mul(2) >= all {
            return self.load(tenant, state, pack).await;
        }
        let read = async {
            let _turn = self.turn(&pack.id).await?;
            let read = read_packed(&self.store, tenant, pack, wanted).await?;
            self.metrics.read(ReadFrom::PartOfPack);
            let read = wanted.iter().map(|filter| filter.block).zip(read).collect();
            self.keep(tenant, &pack.id, read).await
        };
        self.judged(tenant, &pack.id, read.await)
    }

    /// The whole pack, read once for all who ask for it meanwhile. Whoever is last to give up ends the read.
    fn load(self: &Arc<Self>, tenant: &TenantId, state: &Arc<ManifestState>, pack: &Arc<FilterPack>) -> Load {
        let mut loads = self.loads.lock();
        if let Some(load) = loads.get(&pack.id).and_then(WeakShared::upgrade) {
            return load;
        }
        loads.retain(|_, load| load.upgrade().is_some());
        let (this, tenant) = (Arc::clone(self), tenant.clone());
        let (state, pack) = (Arc::clone(state), Arc::clone(pack));
        let id = pack.id;
        let load = async move {
            let read = async {
                let _turn = this.turn(&pack.id).await?;
                let object = read_pack(&this.store, &tenant, &pack).await?;
                this.metrics.read(ReadFrom::Pack);
                let alive = pack.filters.iter().filter(|filter| state.blocks.contains_key(&filter.block));
                let read = alive.filter_map(|filter| Some((filter.block, filter.slice(&object)?))).collect();
                drop(object);
                this.keep(&tenant, &pack.id, read).await
            };
            this.judged(&tenant, &pack.id, read.await)
        };
        let load = load.boxed().shared();
        if let Some(weak) = load.downgrade() {
            loads.insert(id, weak);
        }
        load
    }

    async fn turn(&self, pack: &PackId) -> Result<tokio::sync::SemaphorePermit<'_>, SourceError> {
        let closed = |why: tokio::sync::AcquireError| unreadable(pack, &why);
        self.turns.acquire().await.map_err(closed)
    }

    /// Decodes filters of a pack and keeps those that are sound.
    async fn keep(&self, tenant: &TenantId, pack: &PackId, read: Vec<(BlockId, Bytes)>) -> Result<ByBlock, SourceError> {
        let count = read.len();
        let filters = decode(read).await.map_err(|error| unreadable(pack, &error))?;
        if filters.len() < count {
            self.spoil(tenant, *pack, &"a filter in it is damaged");
        }
        for (block, filter) in &filters {
            self.kept.insert(*block, Arc::clone(filter));
        }
        Ok(filters)
    }

    /// What came of reading a pack. One of no use is noted once, however many wait for it.
    fn judged(
        &self,
        tenant: &TenantId,
        pack: &PackId,
        read: Result<ByBlock, SourceError>,
    ) -> Result<Arc<ByBlock>, SourceError> {
        if let Err(error @ (SourceError::Gone { .. } | SourceError::Damaged { .. })) = &read {
            self.spoil(tenant, *pack, error);
        }
        read.map(Arc::new)
    }

    fn spoil(&self, tenant: &TenantId, pack: PackId, why: &dyn std::fmt::Display) {
        self.spoiled.insert(pack, ());
        self.metrics.spoiled_packs.inc();
        tracing::warn!(%tenant, %pack, %why, "a pack of trace-id filters is of no use, those of its blocks are read");
    }

    /// The block's own filter.
    async fn of_block(&self, tenant: &TenantId, entry: &BlockEntry) -> Result<Arc<TraceIdFilter>, SourceError> {
        let filter = Arc::new(BlockLocation::of(tenant, entry).open_filter(&self.store).await?);
        self.metrics.read(ReadFrom::Block);
        self.kept.insert(entry.id, Arc::clone(&filter));
        Ok(filter)
    }
}

fn unreadable(pack: &PackId, why: &dyn std::fmt::Display) -> SourceError {
    SourceError::Unreadable { what: format!("filter pack {pack}"), why: why.to_string() }
}

/// The filters that are sound. Many are decoded on a thread that may wait.
async fn decode(read: Vec<(BlockId, Bytes)>) -> Result<ByBlock, tokio::task::JoinError> {
    let sound = |(block, bytes): (BlockId, Bytes)| Some((block, Arc::new(TraceIdFilter::from_bytes(&bytes).ok()?)));
    if read.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>() <= LITTLE_BYTES {
        return Ok(read.into_iter().filter_map(sound).collect());
    }
    tokio::task::spawn_blocking(move || read.into_iter().filter_map(sound).collect()).await
}

/// The filters of one snapshot's blocks.
#[derive(Debug)]
pub(crate) struct SnapshotFilters {
    filters: Arc<Filters>,
    tenant: TenantId,
    state: Arc<ManifestState>,
    /// The blocks of `state`, in its order, are the snapshot's sources from this place on.
    first: usize,
    entries: Vec<Arc<BlockEntry>>,
}

type Answer = Result<bool, SourceError>;

/// A place among the answers whose filter is not kept.
struct Missing {
    at: usize,
    entry: Arc<BlockEntry>,
}

impl SnapshotFilters {
    pub(crate) fn new(filters: Arc<Filters>, tenant: TenantId, state: Arc<ManifestState>, first: usize) -> Self {
        let entries = state.blocks.values().map(Arc::clone).collect();
        Self { filters, tenant, state, first, entries }
    }

    /// The packs that have the filters of `missing`, with what is missing of each; and the blocks that no pack has.
    fn by_pack(&self, missing: Vec<Missing>) -> (Vec<OfPack>, Vec<Missing>) {
        let mut missing: HashMap<BlockId, Missing> = missing.into_iter().map(|m| (m.entry.id, m)).collect();
        let mut packs = Vec::new();
        for pack in self.state.packs.values().filter(|pack| !self.filters.spoiled.contains_key(&pack.id)) {
            if missing.is_empty() {
                break;
            }
            let mut of_pack = OfPack { pack: Arc::clone(pack), wanted: Vec::new(), missing: Vec::new() };
            for filter in &pack.filters {
                if let Some(found) = missing.remove(&filter.block) {
                    of_pack.wanted.push(*filter);
                    of_pack.missing.push(found);
                }
            }
            if !of_pack.wanted.is_empty() {
                packs.push(of_pack);
            }
        }
        (packs, missing.into_values().collect())
    }

    /// Fills in the answers for what the pack has. Returns what is still missing.
    async fn ask_pack(&self, id: TraceId, of_pack: OfPack) -> (Vec<(usize, Answer)>, Vec<Missing>) {
        let OfPack { pack, wanted, missing } = of_pack;
        let filters = &self.filters;
        let found = match filters.of_pack(&self.tenant, &self.state, &pack, &wanted).await {
            Ok(found) => found,
            Err(SourceError::Gone { .. } | SourceError::Damaged { .. }) => return (Vec::new(), missing),
            Err(error) => return (missing.iter().map(|m| (m.at, Err(error.clone()))).collect(), Vec::new()),
        };
        let (mut answers, mut left) = (Vec::with_capacity(missing.len()), Vec::new());
        for missing in missing {
            match found.get(&missing.entry.id) {
                Some(filter) => answers.push((missing.at, Ok(filter.may_contain(id)))),
                None => left.push(missing),
            }
        }
        (answers, left)
    }

    async fn ask_block(&self, id: TraceId, missing: Missing) -> (usize, Answer) {
        let filter = self.filters.of_block(&self.tenant, &missing.entry).await;
        (missing.at, filter.map(|filter| filter.may_contain(id)))
    }
}

struct OfPack {
    pack: Arc<FilterPack>,
    wanted: Vec<PackedFilter>,
    missing: Vec<Missing>,
}

#[async_trait]
impl TraceFilters for SnapshotFilters {
    async fn may_hold(&self, id: TraceId, wanted: &[usize]) -> Vec<Answer> {
        let mut answers: Vec<Answer> = vec![Ok(true); wanted.len()];
        let mut missing = Vec::new();
        for (at, place) in wanted.iter().enumerate() {
            // What is live has no filter, and a block may have none.
            let entry = place.checked_sub(self.first).and_then(|nth| self.entries.get(nth));
            let Some(entry) = entry.filter(|entry| entry.filter_bytes > 0) else { continue };
            if id < entry.min_trace_id || id > entry.max_trace_id {
                answers[at] = Ok(false);
            } else if let Some(filter) = self.filters.kept.get(&entry.id) {
                answers[at] = Ok(filter.may_contain(id));
            } else {
                missing.push(Missing { at, entry: Arc::clone(entry) });
            }
        }
        if missing.is_empty() {
            return answers;
        }
        let (packs, mut singles) = self.by_pack(missing);
        // Each is asked and let go before the next but one is read.
        let asked: Vec<_> = packs.into_iter().map(|of_pack| self.ask_pack(id, of_pack)).collect();
        let mut asked = stream::iter(asked).buffer_unordered(PACKS_AT_ONCE);
        while let Some((answered, left)) = asked.next().await {
            for (at, answer) in answered {
                answers[at] = answer;
            }
            singles.extend(left);
        }
        let asked: Vec<_> = singles.into_iter().map(|missing| self.ask_block(id, missing)).collect();
        let mut asked = stream::iter(asked).buffer_unordered(SINGLE_FILTERS_AT_ONCE);
        while let Some((at, answer)) = asked.next().await {
            answers[at] = answer;
        }
        answers
    }
}

#[cfg(test)]
mod tests;
