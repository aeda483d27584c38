//! The stages of writing a block one by one, for benches: what a profile shows as one stack here has a figure each.

use super::BlockOrigin;
use super::order;
use super::writer::{self, Block, BlockInput, WriteError, WriterOptions};

/// Rows in block order.
#[derive(Debug)]
pub struct Ordered(order::Ordered);

/// The first stage.
pub fn order(input: &BlockInput) -> Result<Ordered, WriteError> {
    writer::order_rows(input).map(Ordered)
}

/// All stages after it.
pub fn write(
    input: &BlockInput,
    ordered: &Ordered,
    origin: BlockOrigin,
    options: WriterOptions,
) -> Result<Block, WriteError> {
    writer::write_ordered(&input.batches, &ordered.0, origin, options)
}
