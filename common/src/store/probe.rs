//! Finds out at start-up whether a store keeps the one promise everything rests on: of several writers that put one new key
//! with put-if-absent, at most one succeeds.
//!
//! Owns the question. Does not own the decision: the wiring refuses to start on an error.
//!
//! The writers must race: some servers check the condition and then write without a lock, and pass any test in sequence.
//! After a kill in the middle a few bytes stay under `probe/`, which nothing reads.

use std::sync::Arc;

use futures::future::join_all;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::paths;

const ROUNDS: usize = 4;
const WRITERS: usize = 4;

/// Why the store was not found fit.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "two writers created the same object: this store's put-if-absent is not atomic and would lose commits. Use another"
    )]
    NotAtomic,
    #[error("the store knows no put-if-absent: use another, or a newer version of it")]
    NotSupported(#[source] Error),
    #[error("the store did not keep what it took: use another")]
    NotKept,
    #[error("the store cannot be written to and read: check its address, its credentials and their permissions")]
    Unusable(#[source] Error),
}

/// Races writers for a few keys. Costs some twenty small requests.
pub async fn probe(store: &Arc<dyn ObjectStore>) -> Result<(), ProbeError> {
    for _ in 0..ROUNDS {
        let key = paths::probe(rand::random());
        let puts = (0..WRITERS).map(|writer| {
            let body = PutPayload::from(vec![writer as u8; 8]);
            store.put_opts(&key, body, PutMode::Create.into())
        });
        let replies = join_all(puts).await;
        let winners: Vec<usize> = (0..WRITERS).filter(|writer| replies[*writer].is_ok()).collect();
        let failed = replies
            .into_iter()
            .filter_map(Result::err)
            .find(|error| !matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. }));
        let verdict = match (winners.as_slice(), failed) {
            ([_, _, ..], _) => Err(ProbeError::NotAtomic),
            (_, Some(error @ (Error::NotImplemented { .. } | Error::NotSupported { .. }))) => {
                Err(ProbeError::NotSupported(error))
            }
            ([winner], _) => kept(store, &key, *winner as u8).await,
            ([], Some(error)) => Err(ProbeError::Unusable(error)),
            // All were told "exists": a store may answer so under contention, having written nothing.
            ([], None) => Ok(()),
        };
        // Best effort: what stays behind harms nobody.
        if let Err(error) = store.delete(&key).await {
            tracing::debug!(%key, %error, "probe object not deleted");
        }
        verdict?;
    }
    Ok(())
}

async fn kept(store: &Arc<dyn ObjectStore>, key: &object_store::path::Path, winner: u8) -> Result<(), ProbeError> {
    let found = store.get(key).await.map_err(ProbeError::Unusable)?;
    let bytes = found.bytes().await.map_err(ProbeError::Unusable)?;
    if bytes.as_ref() == [winner; 8] { Ok(()) } else { Err(ProbeError::NotKept) }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::memory::InMemory;

    use super::*;
    use crate::store::faults::{FaultConfig, FaultyStore};

    #[tokio::test(start_paused = true)]
    async fn good_stores_pass_and_stay_clean() {
        let dir = tempfile::tempdir().unwrap();
        let local = crate::store::open(dir.path().to_str().unwrap(), &Default::default()).unwrap();
        let faults = FaultConfig { delay: 0.5, spurious_exists: 0.3, ..FaultConfig::default() };
        let memory = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), faults, 3));
        for store in [local, memory] {
            probe(&store).await.unwrap();
            assert!(store.list(None).try_collect::<Vec<_>>().await.unwrap().is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_checks_before_it_writes_is_found_out() {
        let faults = FaultConfig { check_then_write: 1.0, delay: 1.0, ..FaultConfig::default() };
        let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), faults, 3));
        assert!(matches!(probe(&store).await, Err(ProbeError::NotAtomic)));
        let down = FaultConfig { error_before: 1.0, ..FaultConfig::default() };
        let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), down, 3));
        assert!(matches!(probe(&store).await, Err(ProbeError::Unusable(_))));
    }
}
