//! Deletes manifest versions and checkpoints that no reader starts from any more.
//!
//! Owns which those are. Does not own writing either: checkpoints come with commits ([`ManifestStore`]).
//!
//! The newest two checkpoints stay, and every version from the older of the two on, so that a start survives the loss of one
//! checkpoint. Of what is below, versions go after `VERSION_AGE`, which is what commits rely on for a process that slept
//! (`common/src/manifest/FORMAT.md`), and checkpoints after `CHECKPOINT_AGE`, longer than a start takes.
//!
//! Ages are counted between the store's own times, from the newest object of the manifest back and not from this machine's
//! clock: a version deleted early could be written again by a process that missed it. An idle tenant's history so stays
//! until its next commit, and does not grow meanwhile.
//!
//! Crash story: versions go oldest first, after the checkpoint that replaces them was read back. A kill leaves fewer of what
//! nobody reads.

use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use spanhouse_common::manifest::{ManifestStore, codec};
use spanhouse_common::store::paths::{TenantPaths, version_of};
use spanhouse_common::time::UnixNanos;

use crate::delete::{Deleted, Garbage, delete_all};
use crate::error::SweepError;
use crate::sweeper::{SweepLimits, modified};

/// Age from which a version that a checkpoint covers may go.
const VERSION_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Age from which a checkpoint below the newest two may go.
const CHECKPOINT_AGE: Duration = Duration::from_secs(3600);

/// A version or checkpoint as listed.
#[derive(Clone, Debug)]
struct Numbered {
    number: u64,
    object: Garbage,
    modified: UnixNanos,
}

/// What may go, and what must be readable first.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// The checkpoint that replaces everything below it.
    relies_on: Option<u64>,
    garbage: Vec<Garbage>,
}

/// Deletes old history. `garbage` of the answer counts what could go, `deleted` what went.
pub async fn clean(
    store: &dyn ObjectStore,
    manifest: &ManifestStore,
    limits: SweepLimits,
) -> Result<(u64, Deleted), SweepError> {
    let paths = TenantPaths::new(manifest.tenant());
    let checkpoints = list(store, &paths.checkpoints(), |n| paths.checkpoint(n)).await?;
    if checkpoints.len() < 2 {
        return Ok((0, Deleted::default()));
    }
    let versions = list(store, &paths.versions(), |n| paths.version(n)).await?;
    // In a damaged chain every object may be needed for its repair.
    let state = manifest.refresh().await?;
    if let Some(damage) = manifest.damage() {
        return Err(SweepError::Manifest((*damage).clone().into()));
    }
    let mut plan = plan(versions, checkpoints, state.version);
    let found = plan.garbage.len() as u64;
    let Some(relies_on) = plan.relies_on.filter(|_| found > 0) else { return Ok((0, Deleted::default())) };
    require_readable(store, manifest, &paths, relies_on).await?;
    if limits.dry_run {
        tracing::info!(tenant = %manifest.tenant(), objects = found, below = relies_on, "dry run: old manifest objects would go");
        return Ok((found, Deleted::default()));
    }
    plan.garbage.truncate(limits.max_deletes);
    Ok((found, delete_all(store, &plan.garbage).await))
}

fn plan(mut versions: Vec<Numbered>, mut checkpoints: Vec<Numbered>, newest: u64) -> Plan {
    versions.sort_unstable_by_key(|v| v.number);
    checkpoints.sort_unstable_by_key(|c| c.number);
    let [.., older, newer] = checkpoints.as_slice() else { return Plan::default() };
    if newer.number > newest {
        // A checkpoint of a version that does not exist: not ours to judge.
        return Plan::default();
    }
    let relies_on = older.number;
    let now = versions.iter().chain(&checkpoints).map(|object| object.modified).max().unwrap_or_default();
    let old = |objects: Vec<Numbered>, age: Duration| {
        let cutoff = now.saturating_sub(age);
        objects.into_iter().filter(move |o| o.number < relies_on && o.modified < cutoff).map(|o| o.object)
    };
    Plan {
        relies_on: Some(relies_on),
        garbage: old(versions, VERSION_AGE).chain(old(checkpoints, CHECKPOINT_AGE)).collect(),
    }
}

/// The objects under `prefix` whose key is exactly the one we write for their number.
async fn list(store: &dyn ObjectStore, prefix: &Path, key: impl Fn(u64) -> Path) -> Result<Vec<Numbered>, SweepError> {
    let numbered = store.list(Some(prefix)).try_filter_map(|meta| {
        let found = version_of(&meta.location).filter(|number| key(*number) == meta.location).zip(modified(&meta));
        let numbered = found.map(|(number, modified)| {
            let object = Garbage { key: meta.location, size: meta.size };
            Numbered { number, object, modified }
        });
        futures::future::ok(numbered)
    });
    numbered.try_collect().await.map_err(|source| SweepError::List { prefix: prefix.clone(), source })
}

/// The checkpoint says what the versions up to it said, or they must stay.
async fn require_readable(
    store: &dyn ObjectStore,
    manifest: &ManifestStore,
    paths: &TenantPaths,
    number: u64,
) -> Result<(), SweepError> {
    let key = paths.checkpoint(number);
    let read = async {
        let found = store.get(&key).await?;
        match usize::try_from(found.meta.size) {
            Ok(bytes) if bytes <= codec::MAX_BYTES => Ok(Ok(found.bytes().await?)),
            other => Ok(Err(codec::CodecError::TooLarge { bytes: other.unwrap_or(usize::MAX) })),
        }
    };
    let bytes = read.await.map_err(|source| SweepError::Read { key: key.clone(), source })?;
    let decoded = bytes.and_then(|bytes| codec::decode_checkpoint(manifest.tenant(), number, &bytes));
    decoded.map(drop).map_err(|why| SweepError::Checkpoint { key, why })
}

#[cfg(test)]
mod tests;
