//! Deleting a trace by id: a record that stays, and the tombstone that hides the trace.
//!
//! Owns the order of the two, the record's bytes and listing records. Does not own hiding (readers do, by the manifest version
//! they use), the removal from storage (the compactor) nor who may delete (whoever calls this has asked that).
//!
//! A deletion: 1. the record is put under `deletions/`, put-if-absent; 2. a commit buries the trace. It is deleted from 2 on.
//!
//! On disk after a kill: before 1 nothing. Between 1 and 2 a record without a tombstone, which says that somebody tried: the
//! trace is still there, and deleting it again is harmless, it leaves a second record. After 2 both. Where the answer to 2 is
//! lost, the same change is committed again until its outcome is known; what is told as done is in the manifest.
//!
//! Records are never changed nor deleted: a tombstone goes with the retention of what it hides, its record does not. A lost
//! manifest gets its tombstones back from them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use serde::{Deserialize, Serialize};

use crate::fail_points::reached;
use crate::id::{TenantId, TraceId};
use crate::manifest::{
    Change, CommitError, MAX_TOMBSTONES, ManifestError, ManifestState, ManifestStore, Manifests, Tombstone, Violation,
    WriteManifestError,
};
use crate::store::paths::{TenantPaths, deletion_of};
use crate::time::{Clock, UnixNanos};

/// The format of records this version writes.
pub const RECORD_FORMAT: u32 = 1;

/// Longest reason, in bytes of UTF-8.
pub const MAX_REASON_BYTES: usize = 1024;

/// Largest record that is read: twice what the longest reason takes, escaped.
const MAX_RECORD_BYTES: u64 = 16 * 1024;

/// Records read at a time.
const READ_AHEAD: usize = 16;

/// Tries of one commit, each above the manifest's own.
const COMMIT_TRIES: u32 = 6;

/// Tries to put a record, each above the store's own retries.
const RECORD_TRIES: u32 = 4;

/// A trace deleted again after so long is hidden for as long as one deleted now.
const RENEW_AFTER: Duration = Duration::from_secs(3600);

/// By which way a deletion came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asker {
    Api,
    Cli,
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Api => "api",
            Self::Cli => "cli",
        })
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    pub tenant: TenantId,
    pub trace_id: TraceId,
    pub by: Asker,
    /// At most [`MAX_REASON_BYTES`].
    pub reason: Option<String>,
}

/// What stays of a deletion: one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    pub tenant: TenantId,
    /// 32 hex digits.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub trace_id: TraceId,
    pub time: UnixNanos,
    pub by: Asker,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

fn as_text<S: serde::Serializer>(id: &TraceId, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(id)
}

fn from_text<'de, D: serde::Deserializer<'de>>(d: D) -> Result<TraceId, D::Error> {
    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
}

/// What a deletion came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Of a manifest in which the trace is buried.
    pub manifest_version: u64,
    /// It was deleted within the last hour: nothing was written.
    pub already: bool,
}

/// Why a trace is not deleted, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    #[error("the trace id is all zeros: no span has it")]
    NoTrace,
    #[error("the reason has {bytes} bytes, at most {MAX_REASON_BYTES} are kept: give a shorter one")]
    ReasonTooLong { bytes: usize },
    #[error("nothing was deleted: {0}")]
    Tenant(#[from] WriteManifestError),
    #[error("nothing was deleted: the object store did not take the record of it; try again")]
    Record(#[source] Error),
    #[error("nothing was deleted: {0}")]
    Commit(CommitError),
    /// The store did not say. Until a repetition succeeds the trace may be shown or not.
    #[error("whether trace {trace_id} is deleted is not known: delete it again until that succeeds ({source})")]
    Unknown {
        trace_id: TraceId,
        #[source]
        source: CommitError,
    },
}

impl DeleteError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoTrace | Self::ReasonTooLong { .. } => false,
            Self::Tenant(WriteManifestError::Tenants(error)) => error.is_retryable(),
            Self::Tenant(WriteManifestError::Commit(error)) | Self::Commit(error) => error.is_retryable(),
            Self::Record(_) | Self::Unknown { .. } => true,
        }
    }

    /// Whether as many traces are deleted as may be at a time.
    pub fn is_too_many(&self) -> bool {
        matches!(self, Self::Commit(CommitError::Conflict(Violation::TooManyTombstones { .. })))
    }
}

/// Deletes traces. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Deletions {
    manifests: Arc<Manifests>,
    clock: Arc<dyn Clock>,
}

impl Deletions {
    pub fn new(manifests: Arc<Manifests>, clock: Arc<dyn Clock>) -> Self {
        Self { manifests, clock }
    }

    /// Deletes a trace, whether any span of it is there or not: its spans may still be on their way. The tenant is made if it
    /// does not exist.
    ///
    /// When this returns `Ok`, every snapshot this process takes from then on is without the trace; those of other processes
    /// when they look for a newer manifest. Dropped half way, it did all of it or left at most the record.
    pub async fn delete(&self, deletion: &Deletion) -> Result<Deleted, DeleteError> {
        if !deletion.trace_id.is_valid() {
            return Err(DeleteError::NoTrace);
        }
        if let Some(bytes) = deletion.reason.as_ref().map(String::len).filter(|bytes| *bytes > MAX_REASON_BYTES) {
            return Err(DeleteError::ReasonTooLong { bytes });
        }
        let manifest = self.manifests.for_writing(&deletion.tenant).await?;
        let state = match manifest.refresh().await {
            // The commit looks again; what is known tells the same but of the last moments.
            Err(error) if error.is_retryable() => manifest.current(),
            read => read.map_err(|error| DeleteError::Commit(error.into()))?,
        };
        let now = self.clock.now();
        if is_recent(&state, deletion.trace_id, now) {
            return Ok(Deleted { manifest_version: state.version, already: true });
        }
        let after = state.tombstones.len().saturating_add(1);
        if after > MAX_TOMBSTONES && !state.tombstones.contains_key(&deletion.trace_id) {
            // Before the record: it would be one of an attempt that cannot succeed.
            return Err(DeleteError::Commit(Violation::TooManyTombstones { after }.into()));
        }
        let deleted_at = self.record(deletion, now).await?;
        reached("deletion-recorded");
        self.bury(&manifest, Tombstone { trace_id: deletion.trace_id, deleted_at })
            .await
            .inspect(|_| reached("deletion-buried"))
    }

    /// Puts the record. Returns the time it has.
    async fn record(&self, deletion: &Deletion, now: UnixNanos) -> Result<UnixNanos, DeleteError> {
        let store = self.manifests.store();
        let paths = TenantPaths::new(&deletion.tenant);
        let (mut time, mut tries) = (now, 0);
        loop {
            let record = Record {
                format: RECORD_FORMAT,
                tenant: deletion.tenant.clone(),
                trace_id: deletion.trace_id,
                time,
                by: deletion.by,
                reason: deletion.reason.clone(),
            };
            let mut bytes = serde_json::to_vec(&record).unwrap_or_default();
            bytes.push(b'\n');
            let bytes = Bytes::from(bytes);
            let key = paths.deletion(time, deletion.trace_id);
            let error = match store.put_opts(&key, PutPayload::from(bytes.clone()), PutMode::Create.into()).await {
                Ok(_) => return Ok(time),
                Err(error) => error,
            };
            // Whatever the error, only what is there counts: the reply to our own request may have been lost.
            let found = match store.get(&key).await {
                Ok(found) => found.bytes().await.ok(),
                Err(_) => None,
            };
            match found {
                Some(found) if found == bytes => return Ok(time),
                // Another deletion of the trace in the same nanosecond.
                Some(_) => time = time.saturating_add(Duration::from_nanos(1)),
                None => {}
            }
            tries += 1;
            if tries == RECORD_TRIES {
                return Err(DeleteError::Record(error));
            }
            pause(tries).await;
        }
    }

    async fn bury(&self, manifest: &ManifestStore, tombstone: Tombstone) -> Result<Deleted, DeleteError> {
        let (id, now) = (tombstone.trace_id, tombstone.deleted_at);
        let build = |state: &ManifestState| {
            if is_recent(state, id, now) {
                return Some(Change::default());
            }
            let unbury = state.tombstones.contains_key(&id).then_some(id).into_iter().collect();
            Some(Change { bury: vec![tombstone], unbury, ..Change::default() })
        };
        let (mut tries, mut is_unknown) = (0, false);
        loop {
            let error = match manifest.commit_with(build).await {
                Ok(state) => return Ok(Deleted { manifest_version: state.version, already: false }),
                Err(error) => error,
            };
            tries += 1;
            is_unknown |= error.is_unknown();
            if tries == COMMIT_TRIES || !error.is_retryable() {
                return Err(if is_unknown {
                    DeleteError::Unknown { trace_id: id, source: error }
                } else {
                    DeleteError::Commit(error)
                });
            }
            pause(tries).await;
        }
    }
}

/// Between tries: 50 ms, then twice as long each time.
async fn pause(tries: u32) {
    tokio::time::sleep(Duration::from_millis(25 << tries)).await;
}

/// Whether a trace is buried, and not so long ago that its tombstone should be a newer one.
fn is_recent(state: &ManifestState, id: TraceId, now: UnixNanos) -> bool {
    state.tombstones.get(&id).is_some_and(|stone| stone.deleted_at.saturating_add(RENEW_AFTER) >= now)
}

/// A record, or what is in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    Readable(Record),
    /// Time and trace as the key has them.
    Unreadable {
        time: UnixNanos,
        trace_id: TraceId,
        why: String,
    },
}

/// The records of a tenant, oldest first. For people: it lists and reads every one.
pub async fn records(store: &dyn ObjectStore, tenant: &TenantId) -> Result<Vec<Recorded>, ManifestError> {
    let keys = keys(store, tenant).await?;
    let paths = TenantPaths::new(tenant);
    let read = keys.into_iter().map(|(time, trace_id, size)| {
        let key = paths.deletion(time, trace_id);
        async move {
            let unreadable = |why: String| Recorded::Unreadable { time, trace_id, why };
            if size > MAX_RECORD_BYTES {
                return Ok(unreadable(format!("it has {size} bytes, more than a record can have")));
            }
            let bytes = match store.get(&key).await {
                Ok(found) => found.bytes().await,
                Err(error) => Err(error),
            };
            let bytes = bytes.map_err(|source| unavailable(key.to_string(), source))?;
            Ok(parse(tenant, time, trace_id, &bytes).map_or_else(unreadable, Recorded::Readable))
        }
    });
    stream::iter(read).buffered(READ_AHEAD).try_collect().await
}

fn parse(tenant: &TenantId, time: UnixNanos, trace_id: TraceId, bytes: &[u8]) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if record.format != RECORD_FORMAT {
        return Err(format!("it has format {}, this program knows {RECORD_FORMAT}", record.format));
    }
    if (&record.tenant, record.time, record.trace_id) != (tenant, time, trace_id) {
        return Err("it is the record of another deletion".to_owned());
    }
    Ok(record)
}

/// The tombstones that the records of a tenant speak for, the latest of each trace; of too many, the latest. Reads no record:
/// the keys say it. For a manifest that is made again.
pub async fn recorded_tombstones(
    store: &dyn ObjectStore,
    tenant: &TenantId,
) -> Result<BTreeMap<TraceId, Tombstone>, ManifestError> {
    let mut out = BTreeMap::new();
    // Oldest first, so that the latest of a trace is what stays.
    for (deleted_at, trace_id, _) in keys(store, tenant).await? {
        if trace_id.is_valid() {
            out.insert(trace_id, Tombstone { trace_id, deleted_at });
        }
    }
    if out.len() > MAX_TOMBSTONES {
        let mut times: Vec<UnixNanos> = out.values().map(|stone| stone.deleted_at).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = times[MAX_TOMBSTONES - 1];
        out.retain(|_, stone| stone.deleted_at >= oldest);
        while out.len() > MAX_TOMBSTONES {
            out.pop_last();
        }
    }
    Ok(out)
}

/// Time, trace and size of every record, oldest first.
async fn keys(store: &dyn ObjectStore, tenant: &TenantId) -> Result<Vec<(UnixNanos, TraceId, u64)>, ManifestError> {
    let prefix = TenantPaths::new(tenant).deletions();
    let found = store.list(Some(&prefix)).try_filter_map(|meta| {
        let key = deletion_of(&meta.location);
        futures::future::ok(key.map(|(time, trace_id)| (time, trace_id, meta.size)))
    });
    let found: Result<Vec<_>, Error> = found.try_collect().await;
    let mut found = found.map_err(|source| unavailable(format!("a listing of `{prefix}`"), source))?;
    found.sort_unstable();
    Ok(found)
}

fn unavailable(what: String, source: Error) -> ManifestError {
    ManifestError::Unavailable { what, source: source.into() }
}

#[cfg(test)]
mod tests;
