//! What can go wrong in a round. Nothing here is fatal: the next round tries again.

use object_store::path::Path;
use spanhouse_common::block::filter_pack::BadPack;
use spanhouse_common::manifest::codec::CodecError;
use spanhouse_common::manifest::{CommitError, ManifestError};
use spanhouse_common::source::SourceError;

/// Why blocks past retention were not retired. None was, or the outcome is unknown and the next round finds out.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("retiring blocks: {0}")]
    Commit(#[from] CommitError),
}

/// Why filters were not packed. Packs committed before stay; an object put for nothing is swept.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("packing filters: {0}")]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Read(#[from] SourceError),
    #[error(transparent)]
    Encode(#[from] BadPack),
    #[error("writing `{key}`: {source}")]
    Put { key: Path, source: object_store::Error },
}

/// Why a sweep ended early. What it had deleted was garbage, the rest still is.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Without the whole manifest nothing can be called unreferenced.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("listing `{prefix}`: {source}")]
    List { prefix: Path, source: object_store::Error },
    #[error("reading `{key}`: {source}")]
    Read { key: Path, source: object_store::Error },
    /// Old versions stay until a checkpoint that replaces them is readable.
    #[error("checkpoint `{key}` cannot be relied on: {why}")]
    Checkpoint { key: Path, why: CodecError },
}
