//! Deletes objects, in bulk where the store can, and counts.
//!
//! Owns the requests. Does not own what is garbage: its callers do. Dropped half-way, some objects are gone and some are not.

use std::collections::HashMap;

use futures::{StreamExt, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStore};
use spanhouse_common::fail_points::reached;

/// An object to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Garbage {
    pub(crate) key: Path,
    pub(crate) size: u64,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub objects: u64,
    pub bytes: u64,
    /// Objects of which it is not known that they are gone.
    pub failed: u64,
}

/// Deletes what it can. That an object is gone already is a success of somebody else.
pub(crate) async fn delete_all(store: &dyn ObjectStore, garbage: &[Garbage]) -> Deleted {
    let mut deleted = Deleted::default();
    if garbage.is_empty() {
        return deleted;
    }
    reached("delete-begins");
    let sizes: HashMap<Path, u64> = garbage.iter().map(|object| (object.key.clone(), object.size)).collect();
    let keys: Vec<_> = garbage.iter().map(|object| Ok(object.key.clone())).collect();
    let mut replies = store.delete_stream(stream::iter(keys).boxed());
    let mut gone_before = 0;
    while let Some(reply) = replies.next().await {
        reached("delete-under-way");
        match reply {
            Ok(key) => {
                deleted.objects += 1;
                deleted.bytes += sizes.get(&key).copied().unwrap_or_default();
            }
            Err(Error::NotFound { .. }) => gone_before += 1,
            Err(error) => tracing::warn!(error = %error, "an object was not deleted; the next sweep tries again"),
        }
    }
    // One error may stand for a whole bulk request, so what failed is what nobody confirmed.
    deleted.failed = (garbage.len() as u64).saturating_sub(deleted.objects).saturating_sub(gone_before);
    deleted
}
