//! Brings a block's file here whole, and holds it against the checksum in the manifest.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use spanhouse_common::manifest::BlockEntry;

use super::Progress;
use super::spool::Spool;

/// A file that differs so many times, read anew each time, is damaged.
const TRIES: u32 = 3;

pub(super) enum FetchError {
    Gone,
    Damaged(String),
    Store(Error),
    Spool(std::io::Error),
}

/// Appends the block's file to the spool. Returns where it begins.
pub(super) async fn fetch(
    store: &Arc<dyn ObjectStore>,
    key: &Path,
    entry: &BlockEntry,
    spool: &mut Spool,
    progress: &Progress,
) -> Result<u64, FetchError> {
    let from = spool.len();
    let mut tries = 0;
    loop {
        tries += 1;
        let before = progress.fetched.load(Relaxed);
        let why = match once(store, key, entry, spool, progress).await {
            Ok(()) => return Ok(from),
            Err(FetchError::Damaged(why)) => why,
            Err(FetchError::Store(_)) if tries < TRIES => String::new(),
            Err(other) => return Err(other),
        };
        if tries == TRIES {
            return Err(FetchError::Damaged(why));
        }
        // A reply that was cut short looks the same.
        spool.truncate(from).map_err(FetchError::Spool)?;
        progress.fetched.store(before, Relaxed);
    }
}

async fn once(
    store: &Arc<dyn ObjectStore>,
    key: &Path,
    entry: &BlockEntry,
    spool: &mut Spool,
    progress: &Progress,
) -> Result<(), FetchError> {
    let of = |error| if matches!(error, Error::NotFound { .. }) { FetchError::Gone } else { FetchError::Store(error) };
    let found = store.get(key).await.map_err(of)?;
    let size = found.meta.size;
    let (mut body, mut crc32c, mut length) = (found.into_stream(), 0, 0u64);
    while let Some(bytes) = body.try_next().await.map_err(of)? {
        length += bytes.len() as u64;
        if length > entry.size_bytes {
            break;
        }
        crc32c = crc32c::crc32c_append(crc32c, &bytes);
        spool.write_all(&bytes).map_err(FetchError::Spool)?;
        progress.fetched.fetch_add(bytes.len() as u64, Relaxed);
    }
    if length < size && size == entry.size_bytes {
        // The object is whole, so the connection broke.
        let source = format!("its body ended after {length} of {size} bytes").into();
        return Err(FetchError::Store(Error::Generic { store: "fetch", source }));
    }
    if length != entry.size_bytes {
        return Err(FetchError::Damaged(format!("its file has not the {} bytes that the manifest says", entry.size_bytes)));
    }
    if crc32c != entry.crc32c {
        return Err(FetchError::Damaged(format!(
            "its file has the checksum {crc32c:08x}, the manifest says {:08x}",
            entry.crc32c
        )));
    }
    Ok(())
}
