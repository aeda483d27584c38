//! What processes share in the object store: counts and probabilities.
//!
//! ```text
//! sampling/throughput/<start of the period, 20 digits>-<uuid>.json     counts of one process
//! sampling/probabilities/<start of the period, 20 digits>.json         probabilities, put if absent
//! ```
//!
//! Owns both forms and which of them are read. Objects are never written again; those nobody reads any more are deleted by
//! whoever leads. An object that cannot be understood counts as not there: nothing but sampling hangs on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spanhouse_common::store::{paths, put_new};
use spanhouse_common::time::UnixNanos;
use uuid::Uuid;

use super::calculate::Learned;
use super::observer::{Throughput, period_of};

/// The largest object that is read: more than the counts of the most operations take.
const MAX_OBJECT_BYTES: u64 = 32 << 20;
/// Objects read at once.
const READS: usize = 8;
/// Probabilities kept: readers that list may be about to read the last but one.
const KEPT: usize = 3;

/// What was to be shared is not, or not seen; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    #[error("the object store did not {action}: {source}")]
    Store { action: &'static str, source: Error },
    /// No number of tries mends it: a mistake of this program, to be reported.
    #[error("cannot {action}, which have no form: {source}")]
    Form { action: &'static str, source: serde_json::Error },
}

fn not(action: &'static str) -> impl Fn(Error) -> SharedError {
    move |source| SharedError::Store { action, source }
}

fn written(action: &'static str, what: &impl Serialize) -> Result<Vec<u8>, SharedError> {
    serde_json::to_vec(what).map_err(|source| SharedError::Form { action, source })
}

/// Whose probabilities a period has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Ours,
    Others,
}

/// Counts on their way to the store: an attempt that is repeated means the same object.
#[derive(Clone, Debug)]
pub struct Counted {
    key: Path,
    throughput: Arc<Throughput>,
}

#[derive(Serialize, Deserialize)]
struct CountsForm<T> {
    /// Length of the period: counts of another length say nothing here.
    interval_nanos: u64,
    services: T,
}

/// The shared objects of a store.
#[derive(Debug)]
pub struct Shared {
    store: Arc<dyn ObjectStore>,
    interval: Duration,
}

impl Shared {
    pub fn new(store: Arc<dyn ObjectStore>, interval: Duration) -> Self {
        Self { store, interval }
    }

    /// The start of the period that `time` lies in.
    pub fn period_of(&self, time: UnixNanos) -> UnixNanos {
        period_of(time, self.interval)
    }

    fn interval_nanos(&self) -> u64 {
        u64::try_from(self.interval.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Names the object that will hold these counts.
    pub fn counted(&self, period: UnixNanos, throughput: Throughput) -> Counted {
        Counted { key: paths::sampling_throughput(period, Uuid::now_v7()), throughput: Arc::new(throughput) }
    }

    /// Puts counts.
    pub async fn put_throughput(&self, counted: &Counted) -> Result<(), SharedError> {
        let action = "keep the counts of sampled traces";
        let form = CountsForm { interval_nanos: self.interval_nanos(), services: &*counted.throughput };
        let bytes = Bytes::from(written(action, &form)?);
        put_new(&*self.store, &counted.key, bytes).await.map_err(not(action))
    }

    /// The counts of all processes in the `count` periods before `until`, newest first. Periods without counts are not there.
    pub async fn throughputs(&self, until: UnixNanos, count: u32) -> Result<Vec<(UnixNanos, Throughput)>, SharedError> {
        let from = until.saturating_sub(self.interval.saturating_mul(count));
        let action = "list the counts of sampled traces";
        let mut found = self.list(&paths::sampling_throughputs(), paths::sampling_throughput_of, action).await?;
        found.retain(|(period, _)| (from..until).contains(period));
        // Which operations find room must not depend on the order of a listing.
        found.sort_by(|a, b| (a.0, &a.1.location).cmp(&(b.0, &b.1.location)));
        let mut reads = futures::stream::iter(found)
            .map(async |(period, meta)| Ok((period, self.read::<CountsForm<Throughput>>(&meta).await?)))
            .buffered(READS);
        let mut periods: BTreeMap<UnixNanos, Throughput> = BTreeMap::new();
        while let Some((period, form)) = reads.try_next().await? {
            if let Some(form) = form.filter(|form| form.interval_nanos == self.interval_nanos()) {
                periods.entry(self.period_of(period)).or_default().add(form.services);
            }
        }
        Ok(periods.into_iter().rev().collect())
    }

    /// Puts probabilities unless others have put some for their period.
    pub async fn put_learned(&self, learned: &Learned) -> Result<Taken, SharedError> {
        let action = "keep the probabilities";
        let key = paths::sampling_probabilities(learned.period);
        let bytes = PutPayload::from(written(action, learned)?);
        match self.store.put_opts(&key, bytes, PutMode::Create.into()).await {
            Ok(_) => Ok(Taken::Ours),
            // Ours too, if a reply was lost: then reading it back tells the same.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Taken::Others),
            Err(error) => Err(not(action)(error)),
        }
    }

    /// The newest probabilities. What another's clock puts far ahead of the period that is now is passed over.
    pub async fn newest(&self, now: UnixNanos) -> Result<Option<Learned>, SharedError> {
        let mut found = self.probabilities().await?;
        found.retain(|(period, _)| *period <= now.saturating_add(self.interval));
        while let Some((period, meta)) = found.pop() {
            if let Some(learned) = self.read::<Learned>(&meta).await?
                && learned.period == period
            {
                return Ok(Some(learned));
            }
        }
        Ok(None)
    }

    /// Deletes what nobody reads any more: counts from before the `count` periods before `until`, and old probabilities. A
    /// deletion that fails is made up for in the next round.
    pub async fn sweep(&self, until: UnixNanos, count: u32) {
        // Once more as long as they are read: another process may be behind.
        let from = until.saturating_sub(self.interval.saturating_mul(count.saturating_mul(2)));
        let action = "list the counts of sampled traces";
        let counts = self.list(&paths::sampling_throughputs(), paths::sampling_throughput_of, action).await;
        let counts = counts.unwrap_or_default().into_iter().filter(|(period, _)| *period < from);
        let mut probabilities = self.probabilities().await.unwrap_or_default();
        probabilities.truncate(probabilities.len().saturating_sub(KEPT));
        for (_, meta) in counts.chain(probabilities) {
            if let Err(error) = self.store.delete(&meta.location).await {
                tracing::debug!(key = %meta.location, error = %error, "an old object of adaptive sampling stays for now");
            }
        }
    }

    /// Probabilities that are there, oldest first.
    async fn probabilities(&self) -> Result<Vec<(UnixNanos, ObjectMeta)>, SharedError> {
        let prefix = paths::sampling_probabilities_prefix();
        let mut found = self.list(&prefix, paths::sampling_probabilities_of, "list the probabilities").await?;
        found.sort_by_key(|(period, _)| *period);
        Ok(found)
    }

    async fn list(
        &self,
        prefix: &Path,
        period_of: fn(&Path) -> Option<UnixNanos>,
        action: &'static str,
    ) -> Result<Vec<(UnixNanos, ObjectMeta)>, SharedError> {
        let all = self.store.list(Some(prefix)).try_collect::<Vec<_>>().await.map_err(not(action))?;
        Ok(all.into_iter().filter_map(|meta| Some((period_of(&meta.location)?, meta))).collect())
    }

    /// `None` if the object went meanwhile or is none of ours.
    async fn read<T: DeserializeOwned>(&self, meta: &ObjectMeta) -> Result<Option<T>, SharedError> {
        if meta.size > MAX_OBJECT_BYTES {
            return Ok(None);
        }
        let failed = not("read what adaptive sampling keeps");
        let bytes = match self.store.get(&meta.location).await {
            Ok(found) => found.bytes().await.map_err(failed)?,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        Ok(serde_json::from_slice(&bytes).ok())
    }
}
