//! The stages of writing a block one by one, for benches: what a profile shows as one stack here has a figure each.

use super::gather::Global;
use super::writer::{self, Block, BlockInput, WriteError, WriterOptions};
use super::{BlockOrigin, order};

/// Rows in block order, and the symbols they are written in.
#[derive(Debug)]
pub struct Ordered<'a> {
    input: &'a BlockInput,
    rows: order::Ordered,
    global: Global<'a>,
}

/// The first stage.
pub fn order(input: &BlockInput) -> Result<Ordered<'_>, WriteError> {
    let mut global = Global::new(&input.batches);
    let rows = order::order(&input.batches, &input.rows, &mut global)?;
    Ok(Ordered { input, rows, global })
}

/// All stages after it.
pub fn write(ordered: &mut Ordered<'_>, origin: BlockOrigin, options: WriterOptions) -> Result<Block, WriteError> {
    writer::write_ordered(&ordered.input.batches, &ordered.rows, &mut ordered.global, origin, options)
}
