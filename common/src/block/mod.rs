//! The block: one immutable Parquet file of spans and its sidecars.
//!
//! Owns the bytes: schema, encodings, filters, what a block says of itself. Does not own object names, the manifest, or when
//! blocks are made. A block written but not named by a manifest does not exist; nothing here changes one that does.
#![doc = include_str!("FORMAT.md")]

mod attrs;
mod bitmap;
mod cache;
mod chunk;
mod decode;
mod delta;
mod emit;
mod encode;
mod filter;
pub mod filter_pack;
mod gather;
mod identical;
mod layout;
mod lists;
pub(crate) mod live_order;
pub mod merge;
mod meta;
mod order;
mod page;
mod page_header;
mod part;
mod part_columns;
mod reader;
mod row_group;
mod rows;
pub mod schema;
mod shape;
mod spans;
#[cfg(feature = "test-util")]
pub mod stages;
mod summary;
pub(crate) mod tree;
mod writer;

pub use cache::BlockCache;
pub use filter::{BadFilter, TraceIdFilter};
pub use meta::{BlockMeta, BlockOrigin, window_of};
pub(crate) use page::Dictionary;
pub use part::BlockPart;
pub use reader::{BlockLocation, BlockReader, tail_length};
pub use summary::{KeySummary, Operation, Summary};
pub use tree::flag;
pub use writer::{Block, BlockInput, WriteError, WriterOptions, write_block};

/// Link ids of unusual length in one string: length of the trace id as four bytes little endian, trace id, span id.
fn odd_ids(trace_id: &[u8], span_id: &[u8]) -> Vec<u8> {
    [&(trace_id.len() as u32).to_le_bytes(), trace_id, span_id].concat()
}
