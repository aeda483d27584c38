//! Packs trace-id filters: copies of many blocks' filters in one object, so that a look-up of a trace asks few.
//!
//! Owns making packs and taking them out of the manifest, step by step as `plan` says. Does not own the objects of packs that
//! are gone ([`crate::sweeper`]) nor the pack's bytes ([`spanhouse_common::block::filter_pack`]). Blocks and their own filters
//! stay as they are.
//!
//! A step: 1. the filters are read, each checked: from the pack that has it, or where that fails from the block's own object;
//! 2. the new pack is put under a new id; 3. one manifest version adds it and removes those it replaces, if they are all still
//! there and nobody else packed its blocks meanwhile.
//!
//! Crash story: before 2 nothing. After 2 an object that nothing names, which is swept as an orphan. After 3 the new pack
//! counts, and the objects of the old ones are swept after the grace of queries. Two compactors that pack the same: the
//! second finds in 3 that its plan no longer holds, and leaves an orphan. A reader that meets none of a pack's object reads the
//! blocks' own filters.

mod plan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::{Error, ObjectStore, ObjectStoreExt};
use spanhouse_common::block::TraceIdFilter;
use spanhouse_common::block::filter_pack::{encode_pack, read_packed};
use spanhouse_common::fail_points::reached;
use spanhouse_common::id::{BlockId, PackId, TenantId};
use spanhouse_common::manifest::{BlockEntry, Change, CommitError, FilterPack, ManifestState, ManifestStore, PackedFilter};
use spanhouse_common::source::SourceError;
use spanhouse_common::store::paths::{BlockObject, TenantPaths};
use spanhouse_common::store::put_new;
use spanhouse_common::time::Clock;

use crate::error::PackError;
use plan::{Member, Step, plan};

/// Steps of one tenant in one round: bounds how long others wait. The rest is for the next round.
const MAX_STEPS: usize = 32;

/// Filters read at a time.
const READ_AHEAD: usize = 8;

/// Commits of the same change while its outcome is unknown.
const COMMIT_TRIES: u32 = 3;

/// Between two tries of a filter that is missing or damaged: somebody may have put it back.
const RETRY_DAMAGED: Duration = Duration::from_secs(6 * 3600);

/// Between two tries of a filter that the store did not give: longer than a round, so that the next one goes on without it.
const RETRY_UNREADABLE: Duration = Duration::from_secs(10 * 60);

/// A pack that was put and not committed for so long is left to the sweeper, which may have it already.
const COMMIT_WITHIN: Duration = Duration::from_secs(3600);

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Packs written.
    pub packs: u64,
    /// Filters in them.
    pub filters: u64,
    /// Filters and packs that could not be read and were gone around.
    pub unreadable: u64,
}

/// One tenant's packing. What it remembers may be lost.
#[derive(Debug, Default)]
pub struct Packer {
    /// Blocks whose own filter could not be read, and until when that is not tried again.
    left_out: HashMap<BlockId, Duration>,
}

impl Packer {
    /// Packs what is due by the newest version this process knows. `done` holds what was done even if it ends in an error.
    pub async fn pack(
        &mut self,
        store: &Arc<dyn ObjectStore>,
        manifest: &ManifestStore,
        clock: &dyn Clock,
        done: &mut Packed,
    ) -> Result<(), PackError> {
        for _ in 0..MAX_STEPS {
            let (state, now) = (manifest.current(), clock.monotonic());
            self.left_out.retain(|id, until| now < *until && state.blocks.contains_key(id));
            let Some(step) = plan(&state, clock.now(), |id| self.left_out.contains_key(&id)) else { break };
            self.make(&step, &state, store, manifest, clock, done).await?;
        }
        Ok(())
    }

    async fn make(
        &mut self,
        step: &Step,
        state: &ManifestState,
        store: &Arc<dyn ObjectStore>,
        manifest: &ManifestStore,
        clock: &dyn Clock,
        done: &mut Packed,
    ) -> Result<(), PackError> {
        let tenant = manifest.tenant();
        let sidecars = self.read(step, state, store, tenant, clock, done).await?;
        reached("pack-read");
        let mut change = Change { remove_packs: step.drop.clone(), ..Change::default() };
        let put_at = clock.monotonic();
        if !sidecars.is_empty() {
            let (pack, object) = encode_pack(tenant, PackId::generate(), &sidecars)?;
            put(store, tenant, &pack, object).await?;
            reached("pack-put");
            change.add_packs.push(pack);
        }
        let (packs, filters) = (change.add_packs.len() as u64, sidecars.len() as u64);
        drop(sidecars);
        let build = |state: &ManifestState| {
            let in_time = clock.monotonic().saturating_sub(put_at) < COMMIT_WITHIN;
            (in_time && still_holds(state, &change)).then(|| change.clone())
        };
        let mut committed = manifest.commit_with(build).await;
        for _ in 1..COMMIT_TRIES {
            if !matches!(&committed, Err(error) if error.is_unknown()) {
                break;
            }
            committed = manifest.commit_with(build).await;
        }
        match committed {
            Ok(_) => {
                reached("pack-committed");
                done.packs += packs;
                done.filters += filters;
                Ok(())
            }
            // Another compactor was faster: what is left to do follows from the state as it is now.
            Err(CommitError::Abandoned) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The filters of the step that can be read. A store that does not answer ends it: what it was asked for is left out of the
    /// next tries, so that one object does not hold up the others for good.
    async fn read(
        &mut self,
        step: &Step,
        state: &ManifestState,
        store: &Arc<dyn ObjectStore>,
        tenant: &TenantId,
        clock: &dyn Clock,
        done: &mut Packed,
    ) -> Result<Vec<(BlockId, Bytes)>, PackError> {
        let mut packed = HashMap::new();
        let mut of_packs: BTreeMap<PackId, Vec<&Member>> = BTreeMap::new();
        for member in &step.members {
            if let Some((id, _)) = member.from {
                of_packs.entry(id).or_default().push(member);
            }
        }
        // One after the other: of a pack only what is still wanted stays in memory.
        for (id, members) in of_packs {
            let Some(pack) = state.packs.get(&id) else { continue };
            match from_pack(store, tenant, pack, &members).await {
                Ok(found) => packed.extend(found),
                Err(error) => {
                    done.unreadable += 1;
                    tracing::warn!(%tenant, pack = %id, %error, "the filters in it are read from their blocks");
                }
            }
        }
        let reads = step.members.iter().map(|member| {
            let known = packed.remove(&member.entry.id);
            let store = Arc::clone(store);
            async move {
                let read = match known {
                    Some(bytes) => Ok(bytes),
                    None => read_sidecar(&store, tenant, &member.entry).await,
                };
                (member.entry.id, read)
            }
        });
        let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(READ_AHEAD);
        let mut sidecars = Vec::with_capacity(step.members.len());
        while let Some((id, read)) = reads.next().await {
            let now = clock.monotonic();
            match read {
                Ok(bytes) => sidecars.push((id, bytes)),
                Err(error @ SourceError::Unreadable { .. }) => {
                    self.left_out.insert(id, now.saturating_add(RETRY_UNREADABLE));
                    return Err(error.into());
                }
                Err(error) => {
                    self.left_out.insert(id, now.saturating_add(RETRY_DAMAGED));
                    done.unreadable += 1;
                    tracing::warn!(%tenant, block = %id, %error, "its trace-id filter is left out of packs");
                }
            }
        }
        Ok(sidecars)
    }
}

/// The wanted filters that are sound; which are not is told by their absence.
async fn from_pack(
    store: &Arc<dyn ObjectStore>,
    tenant: &TenantId,
    pack: &FilterPack,
    members: &[&Member],
) -> Result<Vec<(BlockId, Bytes)>, SourceError> {
    let wanted: Vec<PackedFilter> = members.iter().filter_map(|member| member.from).map(|(_, filter)| filter).collect();
    let read = read_packed(store, tenant, pack, &wanted).await?;
    let sound = members.iter().zip(read).filter(|(member, bytes)| why_not(bytes, &member.entry).is_none());
    // Copied, so that a few filters do not keep the whole read alive.
    Ok(sound.map(|(member, bytes)| (member.entry.id, Bytes::copy_from_slice(&bytes))).collect())
}

async fn read_sidecar(store: &Arc<dyn ObjectStore>, tenant: &TenantId, entry: &BlockEntry) -> Result<Bytes, SourceError> {
    let path = TenantPaths::new(tenant).block(entry.id, BlockObject::Filter);
    let what = path.to_string();
    let read = async {
        let found = store.get(&path).await?;
        // Looked at before a byte is buffered.
        if found.meta.size != entry.filter_bytes {
            return Ok(Err(format!("it has {} bytes, the manifest says {}", found.meta.size, entry.filter_bytes)));
        }
        Ok(Ok(found.bytes().await?))
    };
    match read.await {
        Ok(Ok(bytes)) => match why_not(&bytes, entry) {
            None => Ok(bytes),
            Some(why) => Err(SourceError::Damaged { what, why }),
        },
        Ok(Err(why)) => Err(SourceError::Damaged { what, why }),
        Err(Error::NotFound { .. }) => Err(SourceError::Gone { what }),
        Err(error) => Err(SourceError::Unreadable { what, why: error.to_string() }),
    }
}

fn why_not(bytes: &Bytes, entry: &BlockEntry) -> Option<String> {
    if bytes.len() as u64 != entry.filter_bytes {
        return Some(format!("{} bytes came, the manifest says {}", bytes.len(), entry.filter_bytes));
    }
    TraceIdFilter::from_bytes(bytes).err().map(|error| error.to_string())
}

async fn put(store: &Arc<dyn ObjectStore>, tenant: &TenantId, pack: &FilterPack, object: Bytes) -> Result<(), PackError> {
    let key = TenantPaths::new(tenant).filter_pack(pack.id);
    put_new(store.as_ref(), &key, object).await.map_err(|source| PackError::Put { key, source })
}

/// Whether the change still does what it was planned for: the packs it replaces are there, no other one has its blocks, and
/// some of these are alive.
fn still_holds(state: &ManifestState, change: &Change) -> bool {
    let replaced = change.remove_packs.iter().all(|id| state.packs.contains_key(id));
    let others = state.packs.values().filter(|pack| !change.remove_packs.contains(&pack.id));
    let elsewhere: HashSet<BlockId> = others.flat_map(|pack| pack.filters.iter().map(|filter| filter.block)).collect();
    let added = || change.add_packs.iter().flat_map(|pack| &pack.filters);
    let wanted = change.add_packs.is_empty() || added().any(|filter| state.blocks.contains_key(&filter.block));
    replaced && wanted && !added().any(|filter| elsewhere.contains(&filter.block))
}

#[cfg(test)]
mod tests;
