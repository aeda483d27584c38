//! What a block says of itself, in its own footer: enough to rebuild a lost manifest.

use serde::{Deserialize, Serialize};

use crate::id::{BlockId, TenantId, TraceId, WalPosition, WriterId};
use crate::time::{TimeRange, UnixNanos};

/// An aligned span of start times that a block is limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// Seconds since 1970, a multiple of `length`.
    pub start: u64,
    /// In seconds.
    pub length: u64,
}

impl Window {
    /// The window of `length` seconds that holds `at`.
    pub fn of(at: UnixNanos, length: u64) -> Self {
        Self { start: at.as_seconds() / length * length, length }
    }
}

/// WAL records `from` (exclusive) to `to` (inclusive) of one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    pub writer: WriterId,
    pub from: WalPosition,
    pub to: WalPosition,
}

/// Where a block comes from: given to the writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockOrigin {
    pub id: BlockId,
    pub tenant: TenantId,
    pub created: UnixNanos,
    /// `None`: the outlier block of its cut.
    pub window: Option<Window>,
    /// 0 at flush; one more at each compaction.
    pub level: u8,
    /// The records whose spans it holds, all of this tenant's in that range that fall in its window.
    pub wal: Option<WalRange>,
    /// Number of blocks that hold the same records' spans together with this one, itself included.
    pub wal_siblings: u32,
    /// Blocks that this one holds all spans of.
    pub replaces: Vec<BlockId>,
}

/// [`BlockOrigin`] and what the writer found in the spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockMeta {
    #[serde(flatten)]
    pub origin: BlockOrigin,
    pub rows: u64,
    pub traces: u64,
    /// Spans left out because an identical one is in the block.
    pub duplicates_removed: u64,
    /// Earliest start to latest end; times from 2^63 on are left out.
    pub range: TimeRange,
    /// Latest start; with `range.min`, the range of starts.
    pub max_start: UnixNanos,
    #[serde(with = "hex_trace_id")]
    pub min_trace_id: TraceId,
    #[serde(with = "hex_trace_id")]
    pub max_trace_id: TraceId,
    /// Latest time a span was received: retention counts from the later of this and the start.
    pub received_max: UnixNanos,
}

mod hex_trace_id {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::id::TraceId;

    pub(super) fn serialize<S: Serializer>(id: &TraceId, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<TraceId, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
