//! Deletes the objects of blocks and filter packs that no manifest version a reader may still hold refers to.
//!
//! Owns what counts as garbage under `blocks/` and `filters/`, per tenant. Does not own the manifest's own objects
//! ([`crate::history`]) nor any object whose key is not one we write: those are left alone.
//!
//! An object is garbage if all of this holds:
//! - The newest manifest version, read **after** the object was listed, does not name its block or pack. The other way round,
//!   one committed between the two looks like an orphan.
//! - This process has found it so for [`Graces::query`], by the monotonic clock: whoever began a query on a version that names
//!   it has ended it.
//! - Either this process once saw it in the manifest (ids are never used twice, so it cannot come back), or the object is
//!   older than [`Graces::orphan`]: the flush that put it may have its commit still before it, and nothing in the listing
//!   tells such a block from one that was left by a kill. So whoever puts a block or pack **must** commit it within that age,
//!   or put it anew under another id.
//!
//! Crash story: deleting is idempotent, and what is watched is forgotten with the process, which only makes garbage wait
//! anew. Of a block's two objects one may go first: nobody reads either.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use spanhouse_common::fail_points::reached;
use spanhouse_common::id::{BlockId, PackId};
use spanhouse_common::manifest::{ManifestState, ManifestStore};
use spanhouse_common::store::paths::{TenantPaths, block_of, pack_of};
use spanhouse_common::time::{Clock, UnixNanos};

use crate::delete::{Deleted, Garbage, delete_all};
use crate::error::SweepError;

/// Unreferenced objects of a kind looked at in one sweep: bounds memory. The rest waits until these are gone.
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

/// What an object belongs to: a version of the manifest names it or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Block(BlockId),
    Pack(PackId),
}

impl Owner {
    fn is_named_by(self, state: &ManifestState) -> bool {
        match self {
            Self::Block(id) => state.blocks.contains_key(&id),
            Self::Pack(id) => state.packs.contains_key(&id),
        }
    }
}

/// What a sweep found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blocks and packs not in the newest version whose objects are there, garbage or not yet.
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
    owner: Owner,
    object: Garbage,
    modified: UnixNanos,
}

/// A block or pack whose objects are there and which the manifest does not name.
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
    watched: HashMap<Owner, Watched>,
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
        reached("sweep-listed");
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
        listed.retain(|object| !object.owner.is_named_by(state));
        let present: HashSet<Owner> = listed.iter().map(|object| object.owner).collect();
        self.watched.retain(|owner, _| present.contains(owner));
        let last = self.last.replace([Arc::clone(known), Arc::clone(state)]);
        for owner in present {
            let retired = last.iter().flatten().any(|version| owner.is_named_by(version));
            self.watched.entry(owner).or_insert(Watched { since: monotonic, retired }).retired |= retired;
        }
        let is_garbage = |object: &Listed| {
            self.watched.get(&object.owner).is_some_and(|watched| {
                monotonic.saturating_sub(watched.since) >= graces.query
                    && (watched.retired || object.modified < now.saturating_sub(graces.orphan))
            })
        };
        listed.into_iter().filter(is_garbage).map(|listed| listed.object).collect()
    }
}

/// The objects of blocks and packs that `known` does not name.
async fn list_unreferenced(
    store: &dyn ObjectStore,
    paths: &TenantPaths,
    known: &ManifestState,
) -> Result<Vec<Listed>, SweepError> {
    let mut found = list_under(store, paths, &paths.blocks(), known).await?;
    found.extend(list_under(store, paths, &paths.filter_packs(), known).await?);
    Ok(found)
}

async fn list_under(
    store: &dyn ObjectStore,
    paths: &TenantPaths,
    prefix: &Path,
    known: &ManifestState,
) -> Result<Vec<Listed>, SweepError> {
    let mut listing = store.list(Some(prefix));
    let mut found = Vec::new();
    while found.len() < MAX_WATCHED {
        let next = listing.try_next().await;
        let Some(meta) = next.map_err(|source| SweepError::List { prefix: prefix.clone(), source })? else { break };
        found.extend(our_object(paths, meta).filter(|object| !object.owner.is_named_by(known)));
    }
    Ok(found)
}

/// `None` for a key that we would not have written.
fn our_object(paths: &TenantPaths, meta: ObjectMeta) -> Option<Listed> {
    let of_block = || block_of(&meta.location).map(|(id, object)| (Owner::Block(id), paths.block(id, object)));
    let of_pack = || pack_of(&meta.location).map(|id| (Owner::Pack(id), paths.filter_pack(id)));
    let (owner, key) = of_block().or_else(of_pack)?;
    let modified = modified(&meta)?;
    (key == meta.location).then_some(Listed { owner, object: Garbage { key: meta.location, size: meta.size }, modified })
}

/// When the store took the object. `None` for a time before 1970 or after 2262, from which no age follows.
pub(crate) fn modified(meta: &ObjectMeta) -> Option<UnixNanos> {
    u64::try_from(meta.last_modified.timestamp_nanos_opt()?).ok().map(UnixNanos)
}

#[cfg(test)]
mod tests;
