//! What a version says of packs: copies of the trace-id filters of many blocks in one object, so that a look-up asks few.
//!
//! Owns the pure values and the bounds on a pack. Does not own the object's bytes ([`crate::block::filter_pack`]) nor which
//! filters go together: the compactor's plan. A pack says nothing that the blocks' own filters do not say.

use serde::{Deserialize, Serialize};

use crate::id::{BlockId, PackId};

/// Most filters of one pack.
pub const MAX_PACKED_FILTERS: usize = 256;

/// Most bytes of one pack's filters together: readers may fetch a pack whole.
pub const MAX_PACK_BYTES: u64 = 16 * 1024 * 1024;

/// An object with copies of filters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterPack {
    pub id: PackId,
    /// Of the whole object, its directory included.
    pub size_bytes: u64,
    /// CRC-32C of the whole object.
    pub crc32c: u32,
    /// Ascending by offset. Blocks that have left the manifest since are still named.
    pub filters: Vec<PackedFilter>,
}

/// Where the copy of a block's filter object lies in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedFilter {
    pub block: BlockId,
    pub offset: u32,
    pub bytes: u32,
}
