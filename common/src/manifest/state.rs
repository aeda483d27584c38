//! What a version of the manifest says: blocks, watermarks, tombstones, and the change from one version to the next.
//!
//! Owns the pure values. Does not own bytes ([`super::codec`]) nor what is allowed ([`super::invariants`]).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::packs::FilterPack;
use super::tombstones::{Tombstone, Tombstones, trace_ids_hex};
use crate::id::{BlockId, PackId, TraceId, WalPosition, WriterId};
use crate::time::{TimeRange, UnixNanos};

/// Names one attempt to write one version. Found again in the store, it proves whose version that is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// The parent of version 1.
    pub const ROOT: Self = Self([0; 16]);
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Nonce {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        hex128(d).map(Self)
    }
}

pub(super) fn hex128<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 16], D::Error> {
    let text = String::deserialize(d)?;
    let bytes = text.as_bytes();
    if bytes.len() != 32 || !bytes.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b)) {
        return Err(serde::de::Error::custom("expected 32 lower-case hex digits"));
    }
    u128::from_str_radix(&text, 16).map(u128::to_be_bytes).map_err(serde::de::Error::custom)
}

/// [`TraceId`] as 32 hex digits.
pub(super) mod trace_id_hex {
    use super::*;

    pub(in crate::manifest) fn serialize<S: Serializer>(id: &TraceId, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(id)
    }

    pub(in crate::manifest) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<TraceId, D::Error> {
        hex128(d).map(TraceId)
    }
}

/// A stretch of time that blocks are cut by, in seconds since 1970. Holds `start` and not `start + length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    pub start: u64,
    pub length: u64,
}

/// A stretch of one writer's WAL: after `from`, up to and including `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalRange {
    pub writer: WriterId,
    /// Excluded; `0:0` for the beginning of the WAL.
    pub from: WalPosition,
    /// Included.
    pub to: WalPosition,
}

/// All that is known of a block without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockEntry {
    pub id: BlockId,
    /// Format version of the block's file.
    pub format: u32,
    pub size_bytes: u64,
    /// Length of the footer with what precedes it for opening: one GET of so many bytes from the end opens the file.
    pub footer_bytes: u32,
    /// Size of the filter object; 0 if there is none.
    pub filter_bytes: u64,
    /// CRC-32C of the spans object.
    pub crc32c: u32,
    pub rows: u64,
    pub traces: u64,
    /// Earliest start to latest end of the spans whose times are sane; [`TimeRange::EMPTY`] if none is.
    pub range: TimeRange,
    pub min_start: UnixNanos,
    pub max_start: UnixNanos,
    /// `None` for a block of outliers.
    pub window: Option<Window>,
    #[serde(with = "trace_id_hex")]
    pub min_trace_id: TraceId,
    #[serde(with = "trace_id_hex")]
    pub max_trace_id: TraceId,
    /// Latest receive time: retention counts from the later of it and the span's start.
    pub received_max: UnixNanos,
    /// How many merges are behind it; 0 for a flushed block.
    pub level: u8,
    /// What it holds of which WAL. One range for a flushed block; those of the inputs, joined by writer, for a merged one.
    pub wal: Vec<WalRange>,
    /// The blocks it was merged from: what must not come back when it is readable. What those replaced stands in its footer.
    pub replaces: Vec<BlockId>,
}

/// One step from a version to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub add: Vec<BlockEntry>,
    pub remove: Vec<BlockId>,
    /// WAL stretches that `add` covers: each watermark moves from exactly `from` to `to`.
    pub watermarks: Vec<WalRange>,
    /// Traces that are deleted with this change. Of one that is deleted already, the earlier tombstone stays, unless the change
    /// unburies it too: then this one takes its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bury: Vec<Tombstone>,
    /// Traces whose tombstones go, see [`super::unbury`]. One without a tombstone is no error: two compactors may agree.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "trace_ids_hex")]
    pub unbury: Vec<TraceId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_packs: Vec<FilterPack>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove_packs: Vec<PackId>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.add.is_empty()
            && self.remove.is_empty()
            && self.watermarks.is_empty()
            && self.bury.is_empty()
            && self.unbury.is_empty()
            && self.add_packs.is_empty()
            && self.remove_packs.is_empty()
    }
}

/// One version: every block that exists, how far each WAL is covered, and which traces are deleted. Immutable once shared.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ManifestState {
    /// 0 before the first version.
    pub version: u64,
    pub nonce: Nonce,
    pub blocks: BTreeMap<BlockId, Arc<BlockEntry>>,
    pub watermarks: BTreeMap<WriterId, WalPosition>,
    /// Shared, so that a snapshot takes them as they are.
    pub tombstones: Arc<Tombstones>,
    /// Copies of blocks' filters, many in one object. A block is in at most one; a pack may name blocks that are gone.
    pub packs: BTreeMap<PackId, Arc<FilterPack>>,
}

impl ManifestState {
    /// How far the WAL of `writer` is covered by blocks, its end included; `0:0` for a writer that never committed.
    pub fn watermark(&self, writer: WriterId) -> WalPosition {
        self.watermarks.get(&writer).copied().unwrap_or_default()
    }

    /// Blocks that may hold spans in `range`, in order of their ids. Outliers always may: their range is not trusted.
    pub fn overlapping(&self, range: TimeRange) -> impl Iterator<Item = &Arc<BlockEntry>> {
        self.blocks.values().filter(move |b| b.window.is_none() || b.range.overlaps(&range))
    }

    /// Bytes of all objects it refers to.
    pub fn total_bytes(&self) -> u64 {
        let blocks = self.blocks.values().map(|b| b.size_bytes.saturating_add(b.filter_bytes));
        blocks.chain(self.packs.values().map(|p| p.size_bytes)).fold(0, u64::saturating_add)
    }

    /// Makes the change. The caller has checked it: see [`super::invariants::check`].
    pub(super) fn apply(&mut self, version: u64, nonce: Nonce, change: &Change) {
        for id in &change.remove {
            self.blocks.remove(id);
        }
        for entry in &change.add {
            self.blocks.insert(entry.id, Arc::new(entry.clone()));
        }
        for range in &change.watermarks {
            self.watermarks.insert(range.writer, range.to);
        }
        if !change.bury.is_empty() || !change.unbury.is_empty() {
            let tombstones = Arc::make_mut(&mut self.tombstones);
            for id in &change.unbury {
                tombstones.remove(id);
            }
            for tombstone in &change.bury {
                tombstones.entry(tombstone.trace_id).or_insert(*tombstone);
            }
        }
        for id in &change.remove_packs {
            self.packs.remove(id);
        }
        for pack in &change.add_packs {
            self.packs.insert(pack.id, Arc::new(pack.clone()));
        }
        self.version = version;
        self.nonce = nonce;
    }
}

#[cfg(test)]
pub(super) mod samples {
    use super::super::packs::PackedFilter;
    use super::*;

    /// A valid block whose id is made of `n`.
    pub(in crate::manifest) fn block(n: u64) -> BlockEntry {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        BlockEntry {
            id: BlockId::from_bytes(id),
            format: 1,
            size_bytes: 1000,
            footer_bytes: 100,
            filter_bytes: 10,
            crc32c: 7,
            rows: 5,
            traces: 2,
            range: TimeRange { min: UnixNanos(10), max: UnixNanos(20) },
            min_start: UnixNanos(10),
            max_start: UnixNanos(15),
            window: Some(Window { start: 0, length: 900 }),
            min_trace_id: TraceId([1; 16]),
            max_trace_id: TraceId([2; 16]),
            received_max: UnixNanos(30),
            level: 0,
            wal: Vec::new(),
            replaces: Vec::new(),
        }
    }

    pub(in crate::manifest) fn id(n: u64) -> BlockId {
        block(n).id
    }

    /// A valid pack whose id is made of `n`, with a filter of each of `blocks`.
    pub(in crate::manifest) fn pack(n: u64, blocks: &[u64]) -> FilterPack {
        let filters: Vec<PackedFilter> =
            blocks.iter().zip(0..).map(|(b, at)| PackedFilter { block: id(*b), offset: at * 10, bytes: 10 }).collect();
        FilterPack { id: pack_id(n), size_bytes: filters.len() as u64 * 10 + 100, crc32c: 9, filters }
    }

    pub(in crate::manifest) fn pack_id(n: u64) -> PackId {
        PackId::from_bytes(*id(n).as_bytes())
    }

    pub(in crate::manifest) fn writer(n: u8) -> WriterId {
        WriterId::from_bytes([n; 16])
    }

    /// The trace whose id is made of `n`, deleted so many seconds after 1970.
    pub(in crate::manifest) fn tombstone(n: u8, deleted: u64) -> Tombstone {
        Tombstone { trace_id: TraceId([n; 16]), deleted_at: UnixNanos::from_seconds(deleted) }
    }

    pub(in crate::manifest) fn wal(n: u8, from: u64, to: u64) -> WalRange {
        let at = |sequence| WalPosition { epoch: u64::from(sequence > 0), sequence };
        WalRange { writer: writer(n), from: at(from), to: at(to) }
    }
}
