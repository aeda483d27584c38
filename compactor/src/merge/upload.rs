//! Puts a finished file into the store, in parts if it is large.
//!
//! Small files are put if absent. Large ones cannot be; their names are unique to the attempt, so nobody else writes them, and an
//! upload in parts appears whole or not at all.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error, ObjectStore, PutPayload};
use spanhouse_common::block::merge::FileBytes;
use spanhouse_common::store::put_new;

use super::TaskError;

/// Size of a part, and of what is put at once.
const PART: u64 = 8 << 20;

pub(super) async fn put(store: &Arc<dyn ObjectStore>, key: Path, file: &FileBytes) -> Result<(), TaskError> {
    let result = match file.len() {
        length if length <= PART => match read(file, 0, length) {
            Ok(bytes) => put_new(store.as_ref(), &key, bytes).await,
            Err(error) => Err(error),
        },
        _ => in_parts(store, &key, file).await,
    };
    result.map_err(|source| TaskError::Write { key, source })
}

fn read(file: &FileBytes, from: u64, to: u64) -> Result<bytes::Bytes, Error> {
    file.read(from..to).map_err(|source| Error::Generic { store: "spool", source: Box::new(source) })
}

async fn in_parts(store: &Arc<dyn ObjectStore>, key: &Path, file: &FileBytes) -> Result<(), Error> {
    let mut upload = store.put_multipart_opts(key, Default::default()).await?;
    let mut from = 0;
    let sent = loop {
        if from == file.len() {
            break upload.complete().await.map(drop);
        }
        let to = (from + PART).min(file.len());
        let part = match read(file, from, to) {
            Ok(bytes) => upload.put_part(PutPayload::from(bytes)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = part {
            break Err(error);
        }
        from = to;
    };
    if sent.is_err()
        && let Err(error) = upload.abort().await
    {
        tracing::debug!(key = %key, error = %error, "an upload was not aborted; the store drops it in time");
    }
    sent
}
