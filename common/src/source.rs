//! Sources: the one way the query engine reads spans, whether they lie in a block or are still live.
//!
//! A [`Source`] is immutable and knows no query. A [`Snapshot`] is the set of sources that together hold every visible span of
//! a tenant exactly once; it stays valid until dropped.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::batch::SpanBatch;
use crate::block::Summary;
use crate::columns::Part;
use crate::id::{TenantId, TraceId, WalPosition, WriterId};
use crate::manifest::Tombstones;
use crate::model::StoredSpan;
use crate::time::TimeRange;

/// Why a source could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The object is gone although the manifest names it: take a new snapshot and try once more.
    #[error("{what} is gone")]
    Gone { what: String },
    /// The bytes are not what was written.
    #[error("{what} is damaged: {why}")]
    Damaged { what: String, why: String },
    /// The store did not answer; trying again may help.
    #[error("reading {what}: {why}")]
    Unreadable { what: String, why: String },
    /// Reading on would go over the query's memory budget.
    #[error("{what} needs more memory than the query may use ({limit} bytes): memory.per_query sets how much that is")]
    OverBudget { what: String, limit: usize },
}

/// One immutable set of spans.
#[async_trait]
pub trait Source: Send + Sync + fmt::Debug {
    /// Name for messages and metrics: a block id, or `live`.
    fn name(&self) -> String;

    /// Earliest start to latest end of the spans in it; wider is allowed.
    fn time_range(&self) -> TimeRange;

    /// Whether the spans are still live, which no time hint may exclude.
    fn is_live(&self) -> bool;

    /// Bytes it takes in the store; 0 for live data.
    fn stored_bytes(&self) -> u64 {
        0
    }

    /// Opens it for reading by column.
    async fn open(&self) -> Result<Opened, SourceError>;

    /// The spans of one trace, in any order; empty if there are none. To know which sources are worth asking, ask
    /// [`Snapshot::may_hold`] first.
    async fn find_trace(&self, id: TraceId) -> Result<Found, SourceError>;
}

/// A source ready to be read by column.
#[derive(Debug, Clone)]
pub enum Opened {
    Block {
        parts: Vec<Arc<dyn Part>>,
        summary: Arc<Summary>,
    },
    /// Whoever reads puts batches together: each is small.
    Live(Arc<SpanBatch>),
}

/// Spans of a trace, and what reading them took.
#[derive(Debug, Default, Clone)]
pub struct Found {
    pub spans: Vec<StoredSpan>,
    /// Bytes decoded to find them.
    pub inspected_bytes: u64,
}

/// Every visible span of a tenant exactly once, but for traces that are deleted.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub sources: Vec<Arc<dyn Source>>,
    /// The manifest version the blocks were taken from.
    pub manifest_version: u64,
    /// Deleted traces, whose spans the sources may still have: whoever reads them leaves these out.
    pub tombstones: Arc<Tombstones>,
    /// `None`: nothing is known of sources before they are asked.
    pub filters: Option<Arc<dyn TraceFilters>>,
}

impl Snapshot {
    /// For each of `wanted`, places in [`Snapshot::sources`]: whether the source may have spans of the trace. `false` is
    /// certain. An error is that source's alone.
    pub async fn may_hold(&self, id: TraceId, wanted: &[usize]) -> Vec<Result<bool, SourceError>> {
        match &self.filters {
            Some(filters) => filters.may_hold(id, wanted).await,
            None => vec![Ok(true); wanted.len()],
        }
    }
}

/// Answers [`Snapshot::may_hold`] for all blocks of a snapshot at once, in few requests.
#[async_trait]
pub trait TraceFilters: Send + Sync + fmt::Debug {
    /// One answer for each of `wanted`, in this order.
    async fn may_hold(&self, id: TraceId, wanted: &[usize]) -> Vec<Result<bool, SourceError>>;
}

/// Makes snapshots. The wiring plugs live data and the manifest into one of these.
#[async_trait]
pub trait Snapshots: Send + Sync + fmt::Debug {
    /// A snapshot of `tenant`: empty, not an error, if nothing was ever stored for it.
    async fn snapshot(&self, tenant: &TenantId) -> Result<Snapshot, SourceError>;
}

/// Live data of one tenant at one moment.
#[derive(Debug, Clone, Default)]
pub struct LiveView {
    pub parts: Vec<LivePart>,
    /// Blocks must be taken from a manifest version no older than this one; parts which that version's watermarks cover are
    /// then dropped.
    pub manifest_version: u64,
}

/// Consecutive WAL records that are live.
#[derive(Debug, Clone)]
pub struct LivePart {
    pub writer: WriterId,
    /// The last record in it.
    pub to: WalPosition,
    pub source: Arc<dyn Source>,
}

/// Whoever holds live data: the ingester of this process.
pub trait LiveReader: Send + Sync + fmt::Debug {
    fn live(&self, tenant: &TenantId) -> LiveView;
}
