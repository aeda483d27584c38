//! A store that misbehaves as real ones do, from a seed: for tests of this and other crates.
//!
//! Owns the faults. Does not own the oracle: what must still hold is for the test to say.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// How likely each fault is, per operation, from 0 to 1. The default has none.
#[derive(Clone, Debug)]
pub struct FaultConfig {
    /// An error, and nothing happened.
    pub error_before: f64,
    /// An error, but the write happened: the reply was lost.
    pub error_after: f64,
    /// An error, and the write happens some time later: the request was still on its way.
    pub late_put: f64,
    /// A put-if-absent answers "exists" although it wrote nothing, as S3 does by 409 under contention.
    pub spurious_exists: f64,
    /// A put-if-absent looks first and writes later, without a lock between: not a fault of the network but a broken store.
    pub check_then_write: f64,
    /// 429 or 503, and nothing happened.
    pub throttled: f64,
    /// The operation waits, before or after its effect, letting others run.
    pub delay: f64,
    /// Longest such wait, on tokio's clock.
    pub max_delay: Duration,
    /// A whole or ranged read ends before its end without an error.
    pub cut_body: f64,
}

impl Default for FaultConfig {
    fn default() -> Self {
        Self {
            error_before: 0.0,
            error_after: 0.0,
            late_put: 0.0,
            spurious_exists: 0.0,
            check_then_write: 0.0,
            throttled: 0.0,
            delay: 0.0,
            max_delay: Duration::from_millis(20),
            cut_body: 0.0,
        }
    }
}

impl FaultConfig {
    /// Everything at once, each with probability `p`, and waits half of the time.
    pub fn chaos(p: f64) -> Self {
        Self {
            error_before: p,
            error_after: p,
            late_put: p,
            spurious_exists: p,
            throttled: p,
            delay: 0.5,
            cut_body: p,
            ..Self::default()
        }
    }
}

/// The wrapper. Several over one inner store are several clients of it.
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    config: Mutex<FaultConfig>,
    rng: Mutex<SmallRng>,
}

impl FaultyStore {
    pub fn new(inner: Arc<dyn ObjectStore>, config: FaultConfig, seed: u64) -> Self {
        Self { inner, config: Mutex::new(config), rng: Mutex::new(SmallRng::seed_from_u64(seed)) }
    }

    /// Changes the weather from here on.
    pub fn set(&self, config: FaultConfig) {
        *self.config.lock() = config;
    }

    fn roll(&self, choose: impl Fn(&FaultConfig) -> f64) -> bool {
        let p = choose(&self.config.lock());
        p > 0.0 && self.rng.lock().random_bool(p.min(1.0))
    }

    async fn pause(&self) {
        if !self.roll(|c| c.delay) {
            return;
        }
        let longest = self.config.lock().max_delay.as_micros() as u64;
        let micros = self.rng.lock().random_range(0..=longest);
        // A third of the waits are mere turns of the scheduler: other interleavings than those of sleeping.
        if micros % 3 == 0 {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
    }

    /// The faults that leave no effect.
    fn refuse(&self) -> Result<()> {
        if self.roll(|c| c.error_before) {
            return Err(fault("connection reset before the request was sent"));
        }
        if self.roll(|c| c.throttled) {
            return Err(fault("503 SlowDown"));
        }
        Ok(())
    }

    /// The faults after the effect.
    fn lose_reply<T>(&self, result: Result<T>) -> Result<T> {
        if self.roll(|c| c.error_after) { Err(fault("timeout waiting for the reply")) } else { result }
    }
}

fn fault(what: &'static str) -> Error {
    Error::Generic { store: "faults", source: what.into() }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.pause().await;
        self.refuse()?;
        let create = matches!(opts.mode, PutMode::Create);
        if create && self.roll(|c| c.spurious_exists) {
            let source = "409 ConditionalRequestConflict".into();
            return Err(Error::AlreadyExists { path: location.to_string(), source });
        }
        // Only create-only puts: a late overwrite is a write to an object that someone else may own by then.
        if create && self.roll(|c| c.late_put) {
            let (inner, location) = (Arc::clone(&self.inner), location.clone());
            let micros = self.rng.lock().random_range(0..200_000);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(micros)).await;
                inner.put_opts(&location, payload, opts).await
            });
            return Err(fault("timeout, the request is still on its way"));
        }
        let result = if create && self.roll(|c| c.check_then_write) {
            if self.inner.head(location).await.is_ok() {
                let source = "412 Precondition Failed".into();
                return Err(Error::AlreadyExists { path: location.to_string(), source });
            }
            self.pause().await;
            self.inner.put(location, payload).await
        } else {
            self.inner.put_opts(location, payload, opts).await
        };
        self.pause().await;
        self.lose_reply(result)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.pause().await;
        self.refuse()?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.pause().await;
        self.refuse()?;
        let head = options.head;
        let mut result = self.inner.get_opts(location, options).await;
        if !head && self.roll(|c| c.cut_body) {
            result = match result {
                Ok(found) => {
                    let (meta, range) = (found.meta.clone(), found.range.clone());
                    let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
                    let body = found.bytes().await?;
                    let keep = if body.is_empty() { 0 } else { self.rng.lock().random_range(0..body.len()) };
                    let cut = stream::once(futures::future::ready(Ok(body.slice(..keep)))).boxed();
                    Ok(GetResult { payload: GetResultPayload::Stream(cut), meta, range, attributes, extensions })
                }
                Err(error) => Err(error),
            };
        }
        self.pause().await;
        self.lose_reply(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.pause().await;
        self.refuse()?;
        let mut parts = self.inner.get_ranges(location, ranges).await;
        if self.roll(|c| c.cut_body)
            && let Some(last) = parts.as_mut().ok().and_then(|parts| parts.last_mut())
        {
            last.truncate(last.len() / 2);
        }
        self.lose_reply(parts)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.refuse() {
            Err(error) => stream::once(futures::future::ready(Err(error))).boxed(),
            Ok(()) => self.inner.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.refuse() {
            Err(error) => stream::once(futures::future::ready(Err(error))).boxed(),
            Ok(()) => self.inner.list(prefix),
        }
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.refuse() {
            Err(error) => stream::once(futures::future::ready(Err(error))).boxed(),
            Ok(()) => self.inner.list_with_offset(prefix, offset),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.pause().await;
        self.refuse()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.pause().await;
        self.refuse()?;
        let result = self.inner.copy_opts(from, to, options).await;
        self.lose_reply(result)
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.pause().await;
        self.refuse()?;
        let result = self.inner.rename_opts(from, to, options).await;
        self.lose_reply(result)
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    async fn put(store: &FaultyStore, key: &str) -> (Option<Error>, bool) {
        let key = Path::from(key);
        let reply = store.put_opts(&key, PutPayload::from_static(b"12345678"), PutMode::Create.into()).await;
        (reply.err(), store.inner.head(&key).await.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn each_fault_does_what_it_says() {
        let store = FaultyStore::new(Arc::new(InMemory::new()), FaultConfig::default(), 1);
        assert!(matches!(put(&store, "a").await, (None, true)));
        let none = FaultConfig::default();
        store.set(FaultConfig { error_before: 1.0, ..none.clone() });
        assert!(matches!(put(&store, "b").await, (Some(Error::Generic { .. }), false)));
        store.set(FaultConfig { error_after: 1.0, ..none.clone() });
        assert!(matches!(put(&store, "c").await, (Some(Error::Generic { .. }), true)));
        store.set(FaultConfig { spurious_exists: 1.0, ..none.clone() });
        assert!(matches!(put(&store, "d").await, (Some(Error::AlreadyExists { .. }), false)));
        store.set(FaultConfig { late_put: 1.0, ..none.clone() });
        assert!(matches!(put(&store, "e").await, (Some(Error::Generic { .. }), false)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(store.inner.head(&Path::from("e")).await.is_ok());
        store.set(FaultConfig { cut_body: 1.0, ..none });
        assert!(store.get(&Path::from("a")).await.unwrap().bytes().await.unwrap().len() < 8);
    }
}
