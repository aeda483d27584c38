//! Counts and times every operation on the store it wraps.
//!
//! Owns the `spanhouse_store_*` metrics. Does not retry, limit or cache: those are wrappers of their own.
//!
//! Formulas: requests per second = rate of `requests_total`; the bill = that by operation (PUT, COPY and LIST cost about
//! twelve times a GET); error share = `outcome="error"` over all; latency = `request_seconds`, the time until the reply's
//! head, bodies excluded.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::telemetry::{Telemetry, seconds_histogram};

/// What was asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Operation {
    Put,
    PutPart,
    Get,
    Delete,
    List,
    Copy,
}

impl EncodeLabelValue for Operation {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Put => "put",
            Self::PutPart => "put_part",
            Self::Get => "get",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Copy => "copy",
        })
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outcome {
    Ok,
    NotFound,
    /// Put-if-absent found an object: half of all manifest polls and every lost race, so not an error.
    Exists,
    Error,
    /// The caller went before the reply came.
    Cancelled,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        })
    }
}

impl Outcome {
    fn of<T>(result: &Result<T>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(Error::NotFound { .. }) => Self::NotFound,
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }) => Self::Exists,
            Err(_) => Self::Error,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: Operation,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimeLabels {
    operation: Operation,
}

/// The metrics of one store, or of several counted together.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<TimeLabels, Histogram>,
    read: Counter,
    written: Counter,
}

impl StoreMetrics {
    pub fn new(telemetry: &Telemetry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(seconds_histogram),
            read: Counter::default(),
            written: Counter::default(),
        };
        telemetry.register("store", |r| {
            r.register("requests", "Object-store operations by outcome", metrics.requests.clone());
            r.register("request_seconds", "Time until the store's reply", metrics.seconds.clone());
            r.register("read_bytes", "Bytes asked of the store in reads it granted", metrics.read.clone());
            r.register("written_bytes", "Bytes in writes the store took", metrics.written.clone());
        });
        metrics
    }

    fn count(&self, operation: Operation, outcome: Outcome) {
        self.requests.get_or_create(&RequestLabels { operation, outcome }).inc();
    }

    /// Counts and times `work`, also if it is dropped half-way.
    async fn observe<T>(&self, operation: Operation, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut timer = Timer { metrics: self, operation, start: Instant::now(), outcome: Outcome::Cancelled };
        let result = work.await;
        timer.outcome = Outcome::of(&result);
        result
    }
}

struct Timer<'a> {
    metrics: &'a StoreMetrics,
    operation: Operation,
    start: Instant,
    outcome: Outcome,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.metrics.count(self.operation, self.outcome);
        let labels = TimeLabels { operation: self.operation };
        self.metrics.seconds.get_or_create(&labels).observe(self.start.elapsed().as_secs_f64());
    }
}

/// The wrapper.
#[derive(Debug)]
pub struct InstrumentedStore {
    inner: Arc<dyn ObjectStore>,
    metrics: StoreMetrics,
}

impl InstrumentedStore {
    pub fn new(inner: Arc<dyn ObjectStore>, metrics: StoreMetrics) -> Self {
        Self { inner, metrics }
    }
}

impl fmt::Display for InstrumentedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instrumented({})", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for InstrumentedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let bytes = payload.content_length() as u64;
        let result = self.metrics.observe(Operation::Put, self.inner.put_opts(location, payload, opts)).await;
        if result.is_ok() {
            self.metrics.written.inc_by(bytes);
        }
        result
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let work = self.inner.put_multipart_opts(location, opts);
        let upload = self.metrics.observe(Operation::Put, work).await?;
        Ok(Box::new(InstrumentedUpload { inner: upload, metrics: self.metrics.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let result = self.metrics.observe(Operation::Get, self.inner.get_opts(location, options)).await;
        if let (Ok(found), false) = (&result, head) {
            self.metrics.read.inc_by(found.range.end.saturating_sub(found.range.start));
        }
        result
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let result = self.metrics.observe(Operation::Get, self.inner.get_ranges(location, ranges)).await;
        if let Ok(parts) = &result {
            self.metrics.read.inc_by(parts.iter().map(|part| part.len() as u64).sum());
        }
        result
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let metrics = self.metrics.clone();
        let counted = move |result: &Result<Path>| metrics.count(Operation::Delete, Outcome::of(result));
        self.inner.delete_stream(locations).inspect(counted).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        count_listing(self.metrics.clone(), self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        count_listing(self.metrics.clone(), self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.metrics.observe(Operation::List, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.metrics.observe(Operation::Copy, self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.metrics.observe(Operation::Copy, self.inner.rename_opts(from, to, options)).await
    }
}

/// Counts a listing once per thousand keys, as stores page and bill it, and each error.
fn count_listing(
    metrics: StoreMetrics,
    listing: BoxStream<'static, Result<ObjectMeta>>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    metrics.count(Operation::List, Outcome::Ok);
    let mut keys = 0_u64;
    let counted = move |item: &Result<ObjectMeta>| match item {
        Ok(_) => {
            keys += 1;
            if keys.is_multiple_of(1000) {
                metrics.count(Operation::List, Outcome::Ok);
            }
        }
        Err(_) => metrics.count(Operation::List, Outcome::of(item)),
    };
    listing.inspect(counted).boxed()
}

#[derive(Debug)]
struct InstrumentedUpload {
    inner: Box<dyn MultipartUpload>,
    metrics: StoreMetrics,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MultipartUpload for InstrumentedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let bytes = data.content_length() as u64;
        let part = self.inner.put_part(data);
        let metrics = self.metrics.clone();
        Box::pin(async move {
            let result = metrics.observe(Operation::PutPart, part).await;
            if result.is_ok() {
                metrics.written.inc_by(bytes);
            }
            result
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.metrics.observe(Operation::Put, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.metrics.observe(Operation::Delete, self.inner.abort()).await
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, PutMode};

    use super::*;

    #[tokio::test]
    async fn operations_outcomes_and_bytes_are_counted() {
        let telemetry = Telemetry::new();
        let store = InstrumentedStore::new(Arc::new(InMemory::new()), StoreMetrics::new(&telemetry));
        let key = Path::from("a/b");
        for _ in 0..2 {
            let _unused = store.put_opts(&key, PutPayload::from_static(b"12345"), PutMode::Create.into()).await;
        }
        assert_eq!(store.get(&key).await.unwrap().bytes().await.unwrap().len(), 5);
        assert_eq!(store.get_range(&key, 1..3).await.unwrap().len(), 2);
        assert_eq!(store.head(&key).await.unwrap().size, 5);
        assert!(store.get(&Path::from("c")).await.is_err());
        assert_eq!(store.list(None).try_collect::<Vec<_>>().await.unwrap().len(), 1);
        let mut upload = store.put_multipart(&Path::from("d")).await.unwrap();
        upload.put_part(PutPayload::from_static(b"123")).await.unwrap();
        upload.complete().await.unwrap();
        store.delete(&key).await.unwrap();

        let text = telemetry.encode();
        for line in [
            "requests_total{operation=\"put\",outcome=\"ok\"} 3",
            "requests_total{operation=\"put\",outcome=\"exists\"} 1",
            "requests_total{operation=\"put_part\",outcome=\"ok\"} 1",
            "requests_total{operation=\"get\",outcome=\"ok\"} 3",
            "requests_total{operation=\"get\",outcome=\"not_found\"} 1",
            "requests_total{operation=\"list\",outcome=\"ok\"} 1",
            "requests_total{operation=\"delete\",outcome=\"ok\"} 1",
            "request_seconds_count{operation=\"get\"} 4",
            "read_bytes_total 7",
            "written_bytes_total 8",
        ] {
            assert!(text.contains(&format!("spanhouse_store_{line}\n")), "{line} in {text}");
        }
    }
}
