//! Hard limits, each with its reason. They bound what a request from outside can make us do; configuration can only be stricter.

/// Deepest nesting of an attribute value (arrays and maps inside each other). Deeper spans are refused with reason
/// `attribute_too_deep`: recursion over stored values must fit a 2 MiB stack everywhere.
/// Also, 30 nested maps are what a client with prost's limit of 100 message levels can still decode.
pub const MAX_VALUE_DEPTH: usize = 30;

/// Most spans in one request; keeps ordinals and row numbers in 32 bits with room to spare.
pub const MAX_SPANS_PER_REQUEST: usize = 4_000_000;

/// Typed attribute columns per scope and block: more makes the footer slower to read than the columns save.
pub const MAX_TYPED_COLUMNS: usize = 256;

/// Rows per row group.
pub const MAX_ROW_GROUP_ROWS: usize = 512 * 1024;

/// Blocks one cut may make: one per time window, the last one for outliers.
pub const MAX_BLOCKS_PER_CUT: usize = 8;

/// Distinct values kept per attribute key in a block's summary before it is marked as cut.
pub const MAX_SUMMARY_VALUES: usize = 50;

/// Bytes of one value in a block's summary; longer values mark the key as cut.
pub const MAX_SUMMARY_VALUE_BYTES: usize = 128;
