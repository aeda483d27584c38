//! The block: one immutable Parquet file of spans and its sidecars. Bytes: `FORMAT.md`.
