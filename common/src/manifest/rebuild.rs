//! Makes a lost or damaged manifest again from what the blocks say of themselves.
//!
//! Owns which blocks come back and how far each WAL counts as covered. Does not own reading the blocks: the caller hands in
//! one [`BlockEntry`] per readable block of the tenant. Writers must be stopped: a flush under way would be forgotten.
//!
//! Crash story: 1. the rebuilt state is put as version n + 1, n being the highest number seen anywhere; 2. its checkpoint is
//! put. Until 2 is done, starts still stumble over the damage; running it again makes version n + 2 and its checkpoint.
//!
//! Where it cannot know, it prefers a span twice to a span lost: blocks of a flush or merge that was never committed come
//! back if they are readable, and the pairs are reported. The compactor removes identical spans where such blocks meet.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use object_store::{ObjectStore, PutMode, PutPayload};

use super::codec::{self, CodecError, Content, Version};
use super::error::{Damage, ManifestError};
use super::io::{ManifestIo, pause};
use super::open::list_numbers;
use super::state::{BlockEntry, ManifestState, Nonce, Window};
use crate::id::{BlockId, TenantId};
use crate::time::Clock;

/// Places tried for the rebuilt version; more than a few mean that writers are still at work.
const MAX_TRIES: u32 = 8;

/// What the blocks add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// The blocks that come back and the watermarks; its version and nonce are given when it is written.
    pub state: ManifestState,
    /// Readable blocks that stay out, since what replaced them is readable.
    pub superseded: Vec<BlockId>,
    /// Pairs of blocks that came back and may hold the same spans.
    pub doubtful: Vec<(BlockId, BlockId)>,
}

/// Why the rebuilt manifest was not written.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("the rebuilt manifest cannot be encoded: {0}")]
    Codec(#[from] CodecError),
    #[error("other writers keep committing: stop every ingester and compactor, then run this again")]
    WritersActive,
    #[error("the object store did not take the rebuilt manifest: run this again")]
    Store(#[from] object_store::Error),
}

/// Which of the readable blocks exist: those that no other readable block replaces. Every readable block's word counts,
/// also of one that is itself replaced, so that the inputs of its inputs stay out too.
pub fn rebuild(readable: impl IntoIterator<Item = BlockEntry>) -> Rebuilt {
    let readable: BTreeMap<BlockId, Arc<BlockEntry>> = readable.into_iter().map(|b| (b.id, Arc::new(b))).collect();
    let replaced: HashSet<BlockId> =
        readable.values().flat_map(|b| b.replaces.iter().copied().filter(|id| *id != b.id)).collect();
    let mut rebuilt = Rebuilt::default();
    for range in readable.values().flat_map(|b| &b.wal) {
        let watermark = rebuilt.state.watermarks.entry(range.writer).or_insert(range.to);
        *watermark = range.to.max(*watermark);
    }
    for (id, block) in readable {
        if replaced.contains(&id) {
            rebuilt.superseded.push(id);
        } else {
            rebuilt.state.blocks.insert(id, block);
        }
    }
    rebuilt.doubtful = doubtful(rebuilt.state.blocks.values().map(Arc::as_ref));
    rebuilt
}

/// Pairs that were made from the same input, or from the same stretch of a WAL for windows that overlap.
fn doubtful<'a>(blocks: impl Iterator<Item = &'a BlockEntry>) -> Vec<(BlockId, BlockId)> {
    let (mut by_input, mut by_writer) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
    for block in blocks {
        for input in &block.replaces {
            by_input.entry(*input).or_default().push(block.id);
        }
        for range in &block.wal {
            by_writer.entry(range.writer).or_default().push((range.from, range.to, block));
        }
    }
    let mut pairs = BTreeSet::new();
    for ids in by_input.values() {
        pairs.extend(ids.iter().flat_map(|a| ids.iter().filter(move |b| a < b).map(move |b| (*a, *b))));
    }
    for ranges in by_writer.values_mut() {
        ranges.sort_by_key(|(from, to, block)| (*from, *to, block.id));
        for (at, (_, to, a)) in ranges.iter().enumerate() {
            let overlapping = ranges[at + 1..].iter().take_while(|(from, _, _)| from < to);
            let same_window = overlapping.filter(|(_, _, b)| a.id != b.id && windows_meet(a.window, b.window));
            pairs.extend(same_window.map(|(_, _, b)| (a.id.min(b.id), a.id.max(b.id))));
        }
    }
    pairs.into_iter().collect()
}

fn windows_meet(a: Option<Window>, b: Option<Window>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.start < b.start.saturating_add(b.length) && b.start < a.start.saturating_add(a.length),
        (None, None) => true,
        _ => false,
    }
}

/// Writes the state as the next version after everything there is, and its checkpoint. Returns the version.
pub async fn write_rebuilt(
    store: Arc<dyn ObjectStore>,
    tenant: &TenantId,
    clock: &dyn Clock,
    rebuilt: &Rebuilt,
) -> Result<u64, RebuildError> {
    let io = ManifestIo::new(store, tenant.clone());
    let mut number = 0;
    for prefix in [io.paths.versions(), io.paths.checkpoints()] {
        number = number.max(list_numbers(&io, &prefix, None).await?.last().copied().unwrap_or(0));
    }
    for tries in 1..=MAX_TRIES {
        number = number.saturating_add(1);
        let mut state = rebuilt.state.clone();
        (state.version, state.nonce) = (number, Nonce(rand::random()));
        if put(&io, clock, &state, tries).await? {
            let checkpoint = codec::encode_checkpoint(tenant, clock.now(), &state)?;
            let key = io.paths.checkpoint(number);
            io.store.put_opts(&key, PutPayload::from_bytes(checkpoint), PutMode::Create.into()).await?;
            return Ok(number);
        }
    }
    Err(RebuildError::WritersActive)
}

/// Whether the version is ours: as in a commit, only what can be read back counts.
async fn put(io: &ManifestIo, clock: &dyn Clock, state: &ManifestState, tries: u32) -> Result<bool, RebuildError> {
    let content = Content::Rebuilt(state.clone());
    let version = Version { version: state.version, nonce: state.nonce, time: clock.now(), content };
    let bytes = codec::encode_version(&io.tenant, &version)?;
    let key = io.paths.version(state.version);
    let Err(error) = io.store.put_opts(&key, PutPayload::from_bytes(bytes), PutMode::Create.into()).await else {
        return Ok(true);
    };
    match io.read_version(state.version).await {
        Ok(Some(found)) => Ok(found.nonce == state.nonce),
        // Someone's, though unreadable: not ours, which was put whole or not at all.
        Err(ManifestError::Damaged(Damage::Corrupt { .. } | Damage::NewerFormat { .. })) => Ok(false),
        // Nothing there now, and our request may still be on its way: not to be tried under another number.
        Ok(None) | Err(_) => {
            tokio::time::sleep(pause(tries)).await;
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::super::state::Change;
    use super::super::state::samples::{block, id, wal, writer};
    use super::super::{ManifestSettings, ManifestStore};
    use super::*;
    use crate::store::paths::{BlockObject, TenantPaths};
    use crate::time::{ManualClock, UnixNanos};

    fn made(n: u64, replaces: &[u64], range: Option<(u64, u64)>) -> BlockEntry {
        let mut entry = block(n);
        entry.replaces = replaces.iter().map(|n| id(*n)).collect();
        entry.wal = range.map(|(from, to)| wal(1, from, to)).into_iter().collect();
        entry
    }

    fn check(readable: &[BlockEntry], back: &[u64], doubtful: &[(u64, u64)]) {
        let rebuilt = rebuild(readable.to_vec());
        assert_eq!(
            rebuilt.state.blocks.keys().copied().collect::<Vec<_>>(),
            back.iter().map(|n| id(*n)).collect::<Vec<_>>()
        );
        assert_eq!(rebuilt.doubtful, doubtful.iter().map(|(a, b)| (id(*a), id(*b))).collect::<Vec<_>>());
        assert_eq!(rebuilt.superseded.len() + back.len(), readable.len());
    }

    #[test]
    fn what_comes_back() {
        check(&[], &[], &[]);
        check(&[made(1, &[], Some((0, 5))), made(2, &[], Some((5, 8)))], &[1, 2], &[]);
        // A merge, of which one input is already swept.
        check(&[made(1, &[], None), made(3, &[1, 2], None)], &[3], &[]);
        // A merge of merges: 1 went into 3, 3 into 4; and the same with 3 unreadable but named with its inputs.
        check(&[made(1, &[], None), made(3, &[1], None), made(4, &[3], None)], &[4], &[]);
        check(&[made(1, &[], None), made(4, &[3, 1], None)], &[4], &[]);
        // The merge itself is unreadable: its inputs come back.
        check(&[made(1, &[], None), made(2, &[], None)], &[1, 2], &[]);
        // Two racing merges of 2, and two attempts of one flush: both stay, and it is told.
        check(&[made(4, &[1, 2], None), made(5, &[2, 3], None)], &[4, 5], &[(4, 5)]);
        check(&[made(1, &[], Some((0, 5))), made(2, &[], Some((0, 8))), made(3, &[], Some((8, 9)))], &[1, 2, 3], &[(1, 2)]);
        // Two windows of one cut share their stretch of the WAL.
        let mut other = made(2, &[], Some((0, 5)));
        other.window = None;
        check(&[made(1, &[], Some((0, 5))), other], &[1, 2], &[]);
    }

    #[test]
    fn watermarks_are_the_highest_readable() {
        let rebuilt = rebuild([made(1, &[], Some((0, 5))), made(2, &[1], Some((0, 3)))]);
        assert_eq!(rebuilt.state.watermark(writer(1)), wal(1, 0, 5).to);
        assert_eq!(rebuilt.superseded, [id(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_manifest_is_written_again_and_taken_up_by_all() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let (tenant, clock) = (TenantId::single(), ManualClock::at(UnixNanos(5)));
        let paths = TenantPaths::new(&tenant);
        let open =
            || ManifestStore::open(Arc::clone(&store), tenant.clone(), Arc::clone(&clock) as _, ManifestSettings::default());
        let running = ManifestStore::open_or_create(
            Arc::clone(&store),
            tenant.clone(),
            Arc::clone(&clock) as _,
            ManifestSettings::default(),
        );
        let running = running.await.unwrap();
        let blocks = vec![made(1, &[], Some((0, 5))), made(2, &[], Some((5, 8)))];
        for (entry, range) in blocks.iter().zip([wal(1, 0, 5), wal(1, 5, 8)]) {
            store.put(&paths.block(entry.id, BlockObject::Spans), PutPayload::from_static(b"x")).await.unwrap();
            let change = Change { add: vec![entry.clone()], watermarks: vec![range], ..Change::default() };
            running.commit(change).await.unwrap();
        }
        let before = running.current();
        for version in 1..=2 {
            store.delete(&paths.version(version)).await.unwrap();
        }
        let error = open().await.unwrap_err();
        assert!(matches!(error, ManifestError::Damaged(Damage::Missing { version: 1, newest: 3, .. })), "{error}");
        store.delete(&paths.version(3)).await.unwrap();
        let error = open().await.unwrap_err();
        assert!(matches!(error, ManifestError::Damaged(Damage::Lost { .. })), "{error}");
        assert!(error.to_string().contains("spanhouse blocks rebuild-manifest"));

        // A number that the running process has not seen, so that it meets the rebuilt version too.
        store.put(&paths.version(3), PutPayload::from_static(b"damaged")).await.unwrap();
        let rebuilt = rebuild(blocks);
        assert_eq!(write_rebuilt(Arc::clone(&store), &tenant, clock.as_ref(), &rebuilt).await.unwrap(), 4);
        let fresh = open().await.unwrap();
        assert_eq!(fresh.damage(), None);
        assert_eq!((&fresh.current().blocks, &fresh.current().watermarks), (&before.blocks, &before.watermarks));
        assert_eq!(running.refresh().await.unwrap(), fresh.current());
        running.commit(Change { remove: vec![id(1)], ..Change::default() }).await.unwrap();
        assert_eq!(fresh.refresh().await.unwrap().blocks.len(), 1);
    }
}
