//! What a block says of itself, in its own footer: enough to rebuild a lost manifest.

use serde::{Deserialize, Serialize};

use crate::id::{BlockId, TenantId, TraceId};
use crate::manifest::{BlockEntry, WalRange, Window};
use crate::time::{TimeRange, UnixNanos};

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
    pub wal: Vec<WalRange>,
    /// The blocks it was merged from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<BlockId>,
    /// These, and the blocks they were merged from in turn.
    pub replaces: Vec<BlockId>,
}

/// [`BlockOrigin`] and what the writer found in the spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockMeta {
    #[serde(flatten)]
    pub origin: BlockOrigin,
    pub rows: u64,
    pub traces: u64,
    /// Events and links of all spans: of how many a key is frequent.
    #[serde(default)]
    pub events: u64,
    #[serde(default)]
    pub links: u64,
    /// Spans left out because an identical one is in the block.
    pub duplicates_removed: u64,
    /// Earliest start to latest end; times from 2^63 on are left out.
    pub range: TimeRange,
    pub min_start: UnixNanos,
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

impl BlockMeta {
    /// As [`BlockMeta::entry`], of a file in memory.
    pub fn entry_of(&self, parquet: &[u8], tail_bytes: u64, filter_bytes: u64) -> BlockEntry {
        self.entry(parquet.len() as u64, crc32c::crc32c(parquet), tail_bytes, filter_bytes)
    }

    /// As [`BlockMeta::entry`], with everything it replaces: what a lost manifest is made again from.
    pub fn full_entry(&self, size_bytes: u64, crc32c: u32, tail_bytes: u64, filter_bytes: u64) -> BlockEntry {
        BlockEntry { replaces: self.origin.replaces.clone(), ..self.entry(size_bytes, crc32c, tail_bytes, filter_bytes) }
    }

    /// What the manifest says of this block, given its objects. Of the blocks it replaces only its inputs: a thousand more ids
    /// in each entry would be most of a manifest, and are needed only if it is lost.
    pub fn entry(&self, size_bytes: u64, crc32c: u32, tail_bytes: u64, filter_bytes: u64) -> BlockEntry {
        let origin = &self.origin;
        BlockEntry {
            id: origin.id,
            format: super::schema::FORMAT_VERSION,
            size_bytes,
            footer_bytes: u32::try_from(tail_bytes).unwrap_or(u32::MAX),
            filter_bytes,
            crc32c,
            rows: self.rows,
            traces: self.traces,
            range: self.range,
            min_start: self.min_start,
            max_start: self.max_start,
            window: origin.window,
            min_trace_id: self.min_trace_id,
            max_trace_id: self.max_trace_id,
            received_max: self.received_max,
            level: origin.level,
            wal: origin.wal.clone(),
            replaces: origin.inputs.clone(),
        }
    }
}

/// The window of `length` seconds that holds `at`.
pub fn window_of(at: UnixNanos, length: u64) -> Window {
    Window { start: at.as_seconds() / length * length, length }
}
