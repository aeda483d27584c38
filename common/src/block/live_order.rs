//! Rows of live batches in the order of a block, for reading them without writing one.

use std::sync::Arc;

use super::gather::Global;
use super::order;
pub(crate) use super::order::BlockRow;
use crate::batch::{SpanBatch, Strings};
use crate::model::typed_json::TypedJsonError;

/// Rows in block order; texts are codes of `strings`, the empty one 0.
pub(crate) struct LiveOrder {
    pub(crate) rows: Vec<BlockRow>,
    pub(crate) parent_delta: Vec<i32>,
    pub(crate) subtree_size: Vec<i32>,
    pub(crate) flags: Vec<i32>,
    /// First row of each trace.
    pub(crate) traces: Vec<u32>,
    pub(crate) strings: Strings,
}

pub(crate) fn order_all(batches: &[Arc<SpanBatch>]) -> Result<LiveOrder, TypedJsonError> {
    let mut global = Global::new(batches);
    let ordered = order::order(batches, &vec![None; batches.len()], &mut global)?;
    let mut strings = Strings::default();
    // The first is the empty one, which every table begins with.
    global.strings().iter().skip(1).for_each(|text| {
        strings.push(text);
    });
    Ok(LiveOrder {
        traces: ordered.traces.iter().map(|trace| trace.first).collect(),
        rows: ordered.rows,
        parent_delta: ordered.parent_delta,
        subtree_size: ordered.subtree_size,
        flags: ordered.flags,
        strings,
    })
}
