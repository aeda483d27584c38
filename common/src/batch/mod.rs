//! A batch of spans in columns: what the walker fills, live data holds and the block writer drains.
