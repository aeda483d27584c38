//! Requests for one version or checkpoint, with retries.
//!
//! Owns how an object is fetched and when its bytes count as damaged: only after they were fetched anew several times, since
//! a body cut on its way looks the same. Does not own what follows from it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};

use super::codec::{self, CodecError, Version};
use super::error::{Damage, ManifestError};
use super::state::ManifestState;
use crate::id::TenantId;
use crate::store::paths::TenantPaths;

/// Tries of one read. The store's own client retries below this: these are for what it takes for success.
const READ_TRIES: u32 = 5;

/// Longest wait between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// One tenant's manifest objects.
#[derive(Clone, Debug)]
pub(super) struct ManifestIo {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) tenant: TenantId,
    pub(super) paths: TenantPaths,
}

impl ManifestIo {
    pub(super) fn new(store: Arc<dyn ObjectStore>, tenant: TenantId) -> Self {
        let paths = TenantPaths::new(&tenant);
        Self { store, tenant, paths }
    }

    /// The version of that number, or `None` if there is none now.
    pub(super) async fn read_version(&self, number: u64) -> Result<Option<Version>, ManifestError> {
        let decode = |bytes: &[u8]| codec::decode_version(&self.tenant, number, bytes);
        self.read(&self.paths.version(number), decode).await
    }

    /// The state at that version, if it has a checkpoint.
    pub(super) async fn read_checkpoint(&self, number: u64) -> Result<Option<ManifestState>, ManifestError> {
        let decode = |bytes: &[u8]| codec::decode_checkpoint(&self.tenant, number, bytes);
        self.read(&self.paths.checkpoint(number), decode).await
    }

    async fn read<T>(
        &self,
        key: &Path,
        decode: impl Fn(&[u8]) -> Result<T, CodecError>,
    ) -> Result<Option<T>, ManifestError> {
        let mut tries = 0;
        loop {
            let failed = match self.fetch(key).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(bytes))) => match decode(&bytes) {
                    Ok(value) => return Ok(Some(value)),
                    Err(why) => damaged(key, why),
                },
                Ok(Some(Err(why))) => damaged(key, why),
                Err(source) => ManifestError::Unavailable { what: format!("`{key}`"), source: Arc::new(source) },
            };
            tries += 1;
            if tries == READ_TRIES {
                return Err(failed);
            }
            tokio::time::sleep(pause(tries)).await;
        }
    }

    /// The bytes of an object, `None` if it does not exist. The size is looked at before a byte is buffered.
    async fn fetch(&self, key: &Path) -> Result<Option<Result<Bytes, CodecError>>, Error> {
        let found = match self.store.get(key).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match usize::try_from(found.meta.size) {
            Ok(bytes) if bytes <= codec::MAX_BYTES => Ok(Some(Ok(found.bytes().await?))),
            other => Ok(Some(Err(CodecError::TooLarge { bytes: other.unwrap_or(usize::MAX) }))),
        }
    }
}

fn damaged(key: &Path, why: CodecError) -> ManifestError {
    let key = key.to_string();
    match why {
        CodecError::UnknownFormat { found } => Damage::NewerFormat { key, found }.into(),
        why => Damage::Corrupt { key, why }.into(),
    }
}

/// How long to wait before try number `tries` + 1, without jitter: these waits answer a store's weather, not a race.
pub(super) fn pause(tries: u32) -> Duration {
    Duration::from_millis(50).saturating_mul(1 << tries.min(10)).min(MAX_PAUSE)
}
