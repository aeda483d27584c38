//! What can go wrong with a manifest, by what the caller or the user does next.

use std::sync::Arc;

use super::codec::CodecError;
use super::invariants::Violation;
use crate::id::TenantId;

/// The chain in the store is not whole. Reads go on from the last valid version, flagged; nothing is written until it is
/// repaired, because a write on top would bury what is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error(
        "`{key}` is damaged: {why}. Restore that object, or stop all writers and run `spanhouse blocks rebuild-manifest`"
    )]
    Corrupt { key: String, why: CodecError },
    #[error("`{key}` was written by a newer version of spanhouse (format {found}): upgrade this process")]
    NewerFormat { key: String, found: u32 },
    #[error(
        "manifest version {version} of tenant {tenant} is missing although version {newest} exists. Restore it, or stop all \
         writers and run `spanhouse blocks rebuild-manifest`"
    )]
    Missing { tenant: TenantId, version: u64, newest: u64 },
    #[error(
        "manifest version {version} of tenant {tenant} does not follow from the one before: {why}. Restore the objects \
         from one source, or stop all writers and run `spanhouse blocks rebuild-manifest`"
    )]
    BrokenChain { tenant: TenantId, version: u64, why: String },
    #[error(
        "tenant {tenant} has blocks but no manifest: it was lost. Restore its `manifest/` directory, or run `spanhouse \
         blocks rebuild-manifest`"
    )]
    Lost { tenant: TenantId },
}

/// Why the manifest could not be read to its newest version.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ManifestError {
    /// The store did not answer: try again.
    #[error("the object store did not answer for {what}")]
    Unavailable {
        what: String,
        #[source]
        source: Arc<object_store::Error>,
    },
    /// A human has to repair it first; the text says how.
    #[error(transparent)]
    Damaged(#[from] Damage),
}

impl ManifestError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Why a commit did not succeed. Except for [`CommitError::Unknown`], nothing of it is or ever will be in the manifest.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// Another commit came first and this change does not go with it. Make a new one from the present state, or drop it.
    #[error("the change does not fit the manifest: {0}")]
    Conflict(#[from] Violation),
    /// The closure wanted no change any more.
    #[error("the change was given up: the manifest has moved on")]
    Abandoned,
    /// Every place was taken by others. Try again later.
    #[error("lost the race for the next manifest version {tries} times: try again")]
    Contended { tries: u32 },
    /// The manifest could not be read, so nothing was written.
    #[error("nothing was committed: {0}")]
    Unreadable(#[from] ManifestError),
    /// The change is too large for one version: commit fewer blocks at a time.
    #[error("nothing was committed, the version would be too large: {0}")]
    TooLarge(CodecError),
    /// The write may have happened or may yet happen. Commit **the same change, with the same block ids,** again: on the
    /// same `ManifestStore`, within an hour, that finds out and succeeds either way. After a restart a flush or merge that
    /// did happen ends in [`CommitError::Conflict`], its watermark being moved or its inputs gone; only a change that does
    /// nothing but add has no such guard. Do not delete its blocks before it is known.
    #[error("whether manifest version {version} was written is unknown: commit the same change again")]
    Unknown {
        version: u64,
        #[source]
        source: Arc<object_store::Error>,
    },
}

impl CommitError {
    /// Whether the same change may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Contended { .. } | Self::Unknown { .. } => true,
            Self::Unreadable(error) => error.is_retryable(),
            Self::Conflict(_) | Self::Abandoned | Self::TooLarge(_) => false,
        }
    }

    /// Whether the change may be in the manifest all the same.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}
