//! Finds the newest version of a manifest: the only place that lists.
//!
//! Owns the way from nothing to a state, and the judgement of a chain that is not whole. Does not write.
//!
//! 1. List the checkpoints, take the newest that is readable.
//! 2. List the versions after it, read them.
//! 3. Read on past what the listing showed until a version is not there: listings may lag.
//! 4. If the chain stops before something that exists, the manifest is damaged: the state is that of the last whole version,
//!    flagged.
//! 5. If there is no version at all, there may be no block either: version 1 is always put before the first block.

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use object_store::path::Path;

use super::codec::{Content, Version};
use super::error::{Damage, ManifestError};
use super::invariants;
use super::io::ManifestIo;
use super::state::ManifestState;
use crate::id::TenantId;
use crate::store::paths;

/// Versions read at a time while starting.
const READ_AHEAD: usize = 16;

/// A state, and how it was come by.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) state: ManifestState,
    /// Why there may be more than `state` says.
    pub(super) damage: Option<Damage>,
    /// Versions read since the checkpoint.
    pub(super) walked: u64,
}

/// Makes the step to `next`, or says why it does not follow.
pub(super) fn follow(tenant: &TenantId, state: &mut ManifestState, next: &Version) -> Result<(), Damage> {
    let broken = |why: String| Damage::BrokenChain { tenant: tenant.clone(), version: next.version, why };
    if next.version != state.version.saturating_add(1) {
        return Err(broken(format!("the one before is {}", state.version)));
    }
    match &next.content {
        Content::Change { parent, change } => {
            if *parent != state.nonce {
                return Err(broken(format!("it names {parent} as its parent, which is {}", state.nonce)));
            }
            invariants::check(state, change).map_err(|violation| broken(violation.to_string()))?;
            state.apply(next.version, next.nonce, change);
        }
        Content::Rebuilt(rebuilt) => *state = rebuilt.clone(),
    }
    Ok(())
}

/// The newest whole version. A damage that leaves nothing to read is an error: no store is taken for an empty one.
pub(super) async fn load(io: &ManifestIo) -> Result<Loaded, ManifestError> {
    // A tenant may get its first version and blocks between our listings; then a second look is enough.
    let mut last_look = false;
    loop {
        let loaded = load_once(io).await?;
        if loaded.state.version > 0 {
            return Ok(loaded);
        }
        if let Some(damage) = loaded.damage {
            return Err(damage.into());
        }
        let any_block = io.store.list(Some(&io.paths.blocks())).try_next().await;
        if any_block.map_err(|e| unavailable(&io.paths.blocks(), e))?.is_none() {
            return Ok(loaded);
        }
        if last_look || io.read_version(1).await?.is_none() {
            return Err(Damage::Lost { tenant: io.tenant.clone() }.into());
        }
        last_look = true;
    }
}

async fn load_once(io: &ManifestIo) -> Result<Loaded, ManifestError> {
    let checkpoints = list_numbers(io, &io.paths.checkpoints(), None).await?;
    let mut state = ManifestState::default();
    for number in checkpoints.iter().rev() {
        match io.read_checkpoint(*number).await {
            Ok(Some(found)) => {
                state = found;
                break;
            }
            Ok(None) => {}
            // The versions before it say the same, if they are still there; if not, that is found out below.
            Err(ManifestError::Damaged(damage)) => {
                tracing::warn!(tenant = %io.tenant, error = %damage, "checkpoint skipped")
            }
            Err(error) => return Err(error),
        }
    }
    let start = state.version;
    let versions = list_numbers(io, &io.paths.versions(), (start > 0).then_some(start)).await?;
    let newest = versions.last().max(checkpoints.last()).copied().unwrap_or(0).max(start);

    let listed = stream::iter(start.saturating_add(1)..=newest).map(|number| io.read_version(number)).buffered(READ_AHEAD);
    let mut listed = std::pin::pin!(listed);
    let mut damage = None;
    while damage.is_none() {
        let next = match listed.next().await {
            Some(read) => read,
            None => io.read_version(state.version.saturating_add(1)).await,
        };
        damage = match next {
            Ok(Some(next)) => follow(&io.tenant, &mut state, &next).err(),
            Ok(None) if state.version < newest => {
                let (tenant, version) = (io.tenant.clone(), state.version.saturating_add(1));
                Some(Damage::Missing { tenant, version, newest })
            }
            Ok(None) => break,
            Err(ManifestError::Damaged(damage)) => Some(damage),
            Err(error) => return Err(error),
        };
    }
    let walked = state.version.saturating_sub(start);
    Ok(Loaded { state, damage, walked })
}

/// The numbers of the objects under a prefix, ascending.
pub(super) async fn list_numbers(io: &ManifestIo, prefix: &Path, after: Option<u64>) -> Result<Vec<u64>, ManifestError> {
    let listing = match after {
        Some(number) => io.store.list_with_offset(Some(prefix), &prefix.clone().join(format!("{number:020}.json"))),
        None => io.store.list(Some(prefix)),
    };
    let numbers = listing.try_filter_map(|meta| futures::future::ok(paths::version_of(&meta.location)));
    let mut numbers: Vec<u64> = numbers.try_collect().await.map_err(|e| unavailable(prefix, e))?;
    numbers.sort_unstable();
    Ok(numbers)
}

fn unavailable(what: &Path, source: object_store::Error) -> ManifestError {
    ManifestError::Unavailable { what: format!("a listing of `{what}`"), source: source.into() }
}
