//! Puts a finished file into the store, in parts if it is large.
//!
//! Small files are put if absent. Large ones cannot be; their names are unique to the attempt, so nobody else writes them, and an
//! upload in parts appears whole or not at all.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectStore, PutMode, PutPayload};
use spanhouse_common::block::merge::FileBytes;

use super::TaskError;

/// Size of a part, and of what is put at once.
const PART: u64 = 8 << 20;

pub(super) async fn put(store: &Arc<dyn ObjectStore>, key: Path, file: &FileBytes) -> Result<(), TaskError> {
    let result = if file.len() <= PART { at_once(store, &key, file).await } else { in_parts(store, &key, file).await };
    result.map_err(|source| TaskError::Write { key, source })
}

fn read(file: &FileBytes, from: u64, to: u64) -> Result<bytes::Bytes, Error> {
    file.read(from..to).map_err(|source| Error::Generic { store: "spool", source: Box::new(source) })
}

async fn at_once(store: &Arc<dyn ObjectStore>, key: &Path, file: &FileBytes) -> Result<(), Error> {
    let payload = PutPayload::from(read(file, 0, file.len())?);
    match store.put_opts(key, payload, PutMode::Create.into()).await {
        Ok(_) => Ok(()),
        // A try before this one got through, or a conflict that wrote nothing: the object is looked at.
        Err(error @ (Error::AlreadyExists { .. } | Error::Precondition { .. })) => {
            let found = store.get_opts(key, GetOptions::new().with_head(true)).await?;
            if found.meta.size == file.len() { Ok(()) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
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
