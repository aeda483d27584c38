//! Puts an object under a name that nobody else ever uses.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, Result};

/// Puts `bytes` if nothing is there. Whatever the reply, an object of this size is ours: the name is unique to the attempt, an
/// earlier reply may have been lost, and stores report conflicts that wrote nothing as "exists" too.
pub async fn put_new(store: &dyn ObjectStore, key: &Path, bytes: Bytes) -> Result<()> {
    let length = bytes.len() as u64;
    let Err(error) = store.put_opts(key, PutPayload::from_bytes(bytes), PutMode::Create.into()).await else {
        return Ok(());
    };
    match store.head(key).await {
        Ok(found) if found.size == length => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::super::faults::{FaultConfig, FaultyStore};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_what_is_there_counts() {
        let store = FaultyStore::new(Arc::new(InMemory::new()), FaultConfig::default(), 1);
        let put = async |key: &str, bytes: &'static [u8]| put_new(&store, &Path::from(key), Bytes::from_static(bytes)).await;
        put("a", b"1234").await.unwrap();
        // Its reply was lost, and it is put again.
        put("a", b"1234").await.unwrap();
        assert!(put("a", b"12345").await.is_err(), "another's object");
        store.set(FaultConfig { spurious_exists: 1.0, ..FaultConfig::default() });
        assert!(put("b", b"1234").await.is_err(), "a conflict that wrote nothing");
        store.set(FaultConfig { error_before: 1.0, ..FaultConfig::default() });
        assert!(put("c", b"1234").await.is_err());
    }
}
