//! Deletes the objects of blocks that no manifest version a reader may still hold refers to.
//!
//! Owns what counts as garbage under `blocks/`, per tenant. Does not own the manifest's own objects ([`crate::history`]) nor
//! any object whose key is not a block's: those are left alone.
//!
//! An object is garbage if all of this holds:
//! - The newest manifest version, read **after** the object was listed, does not name its block. The other way round, a block
//!   committed between the two looks like an orphan.
//! - This process has found it so for [`Graces::query`], by the monotonic clock: whoever began a query on a version that names
//!   the block has ended it.
//! - Either this process once saw the block in the manifest (ids are never used twice, so it cannot come back), or the object
//!   is older than [`Graces::orphan`]: the flush that put it may have its commit still before it, and nothing in the listing
//!   tells such a block from one that was left by a kill. So whoever puts a block **must** commit it within that age, or put
//!   it anew under another id.
//!
//! Crash story: deleting is idempotent, and what is watched is forgotten with the process, which only makes garbage wait
//! anew. Of a block's two objects one may go first: nobody reads either.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore};
use spanhouse_common::id::BlockId;
use spanhouse_common::manifest::{ManifestState, ManifestStore};
use spanhouse_common::store::paths::{TenantPaths, block_of};
use spanhouse_common::time::{Clock, UnixNanos};

use crate::delete::{Deleted, Garbage, delete_all};
use crate::error::SweepError;

/// Unreferenced objects looked at in one sweep: bounds memory. The rest waits until these are gone.
const MAX_WATCHED: usize = 100_000;

/// How long garbage is left where it is.
#[derive(Clone, Copy, Debug)]
pub struct Graces {
    /// Since it was first found unreferenced.
    pub query: Duration,
    /// Since it was put, if it was never seen referenced.
    pub orphan: Duration,
}

/// What to do with what is found.
#[derive(Clone, Copy, Debug)]
pub struct SweepLimits {
    pub max_deletes: usize,
    /// Only report.
    pub dry_run: bool,
}

/// What a sweep found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects not in the newest version, garbage or not yet.
    pub unreferenced: u64,
    pub garbage: u64,
    pub garbage_bytes: u64,
    pub deleted: Deleted,
}

impl Swept {
    /// Whether garbage was left lying for the next round, other than by a dry run.
    pub fn has_more(&self, limits: SweepLimits) -> bool {
        !limits.dry_run && self.garbage > self.deleted.objects
    }
}

/// An object as listed.
#[derive(Clone, Debug)]
struct Listed {
    id: BlockId,
    object: Garbage,
    modified: UnixNanos,
}

/// A block whose objects are there and which the manifest does not name.
#[derive(Clone, Copy, Debug)]
struct Watched {
    /// By the monotonic clock.
    since: Duration,
    /// It was in the manifest once.
    retired: bool,
}

/// One tenant's garbage, watched from sweep to sweep.
#[derive(Debug, Default)]
pub struct Sweeper {
    watched: HashMap<BlockId, Watched>,
    /// The versions the sweep before went by, at its listing and after it: what has left them since was retired.
    last: Option<[Arc<ManifestState>; 2]>,
}

impl Sweeper {
    /// Finds garbage and deletes it. An error leaves what is watched as it was.
    pub async fn sweep(
        &mut self,
        store: &dyn ObjectStore,
        manifest: &ManifestStore,
        clock: &dyn Clock,
        graces: Graces,
        limits: SweepLimits,
    ) -> Result<Swept, SweepError> {
        let paths = TenantPaths::new(manifest.tenant());
        let known = manifest.current();
        let listed = list_unreferenced(store, &paths, &known).await?;
        let state = manifest.refresh().await?;
        // A damaged manifest may name less than there is; a tenant without any version has no garbage, but lost its manifest.
        if let Some(damage) = manifest.damage() {
            return Err(SweepError::Manifest((*damage).clone().into()));
        }
        if state.version == 0 {
            return Ok(Swept::default());
        }
        let (now, monotonic) = (clock.now(), clock.monotonic());
        let mut garbage = self.observe(listed, &known, &state, now, monotonic, graces);
        let mut swept = Swept {
            unreferenced: self.watched.len() as u64,
            garbage: garbage.len() as u64,
            garbage_bytes: garbage.iter().map(|object| object.size).sum(),
            deleted: Deleted::default(),
        };
        if limits.dry_run {
            for object in &garbage {
                tracing::info!(tenant = %manifest.tenant(), key = %object.key, bytes = object.size, "dry run: would be swept");
            }
            return Ok(swept);
        }
        garbage.truncate(limits.max_deletes);
        swept.deleted = delete_all(store, &garbage).await;
        Ok(swept)
    }

    /// Notes what is unreferenced as of `state`, which is no older than the listing, and returns what is garbage by now.
    fn observe(
        &mut self,
        mut listed: Vec<Listed>,
        known: &Arc<ManifestState>,
        state: &Arc<ManifestState>,
        now: UnixNanos,
        monotonic: Duration,
        graces: Graces,
    ) -> Vec<Garbage> {
        listed.retain(|object| !state.blocks.contains_key(&object.id));
        let present: HashSet<BlockId> = listed.iter().map(|object| object.id).collect();
        self.watched.retain(|id, _| present.contains(id));
        let last = self.last.replace([Arc::clone(known), Arc::clone(state)]);
        for id in present {
            let retired = last.iter().flatten().any(|version| version.blocks.contains_key(&id));
            self.watched.entry(id).or_insert(Watched { since: monotonic, retired }).retired |= retired;
        }
        let is_garbage = |object: &Listed| {
            self.watched.get(&object.id).is_some_and(|watched| {
                monotonic.saturating_sub(watched.since) >= graces.query
                    && (watched.retired || object.modified < now.saturating_sub(graces.orphan))
            })
        };
        listed.into_iter().filter(is_garbage).map(|listed| listed.object).collect()
    }
}

/// The objects of blocks that `known` does not name.
async fn list_unreferenced(
    store: &dyn ObjectStore,
    paths: &TenantPaths,
    known: &ManifestState,
) -> Result<Vec<Listed>, SweepError> {
    let prefix = paths.blocks();
    let mut listing = store.list(Some(&prefix));
    let mut found = Vec::new();
    while found.len() < MAX_WATCHED {
        let next = listing.try_next().await;
        let Some(meta) = next.map_err(|source| SweepError::List { prefix: prefix.clone(), source })? else { break };
        found.extend(block_object(paths, meta).filter(|object| !known.blocks.contains_key(&object.id)));
    }
    Ok(found)
}

/// `None` for a key that we would not have written.
fn block_object(paths: &TenantPaths, meta: ObjectMeta) -> Option<Listed> {
    let (id, object) = block_of(&meta.location)?;
    let modified = modified(&meta)?;
    (paths.block(id, object) == meta.location).then_some(Listed {
        id,
        object: Garbage { key: meta.location, size: meta.size },
        modified,
    })
}

/// When the store took the object. `None` for a time before 1970 or after 2262, from which no age follows.
pub(crate) fn modified(meta: &ObjectMeta) -> Option<UnixNanos> {
    u64::try_from(meta.last_modified.timestamp_nanos_opt()?).ok().map(UnixNanos)
}

#[cfg(test)]
mod tests;
