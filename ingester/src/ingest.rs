//! The pipeline behind every receiver: admit, decompress, walk, append to the WAL, publish.
//!
//! Owns the order of these steps and what each failure means to the sender. Nothing is kept of a request that fails before its
//! record is durable; nothing is dropped after. A dropped request future does not take back a record that was queued.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::budget::{Lease, Share};
use spanhouse_common::id::{TenantId, WalPosition};
use spanhouse_common::manifest::Manifests;
use spanhouse_common::store::tenants::TenantsError;
use spanhouse_common::time::Clock;

use crate::admission::Admission;
use crate::flush::StoppedTenants;
use crate::live::Live;
use crate::metrics::PipelineMetrics;
use crate::otlp::json;
use crate::otlp::walk::{WalkOptions, Walked, Walker};
use crate::pipeline::{Accepted, Compression, Encoding, Ingest, IngestError, IngestRequest, RefusalReason};
use crate::receive::decompress::{DecompressError, decompress};
use crate::sampling::adaptive::{Observer, observer};
use crate::wal::{NewRecord, Publish, RecordMeta, Wal, WalError};

/// How long a request waits for memory before it is refused.
const MEMORY_PATIENCE: Duration = Duration::from_secs(2);
/// When a refused sender should come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest document quoted in an error.
const MAX_ERROR_TEXT: usize = 300;

/// What becomes visible when its record is durable.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub spans: SpanBatch,
    pub lease: Lease,
}

/// Publishes durable records as live data.
#[derive(Debug)]
pub(crate) struct PublishLive(pub(crate) Arc<Live>);

impl Publish<Decoded> for PublishLive {
    fn publish(&self, position: WalPosition, record: &RecordMeta, payload: Decoded) {
        self.0.publish(&record.tenant, position, payload.spans, Some(payload.lease));
    }
}

/// The pipeline.
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) admission: Arc<Admission>,
    pub(crate) wal: Arc<Wal<Decoded>>,
    pub(crate) live: Arc<Live>,
    pub(crate) manifests: Arc<Manifests>,
    pub(crate) memory: Share,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: PipelineMetrics,
    pub(crate) stopped: Arc<StoppedTenants>,
    pub(crate) max_decoded_bytes: usize,
    /// Learns from what is accepted, if anything does.
    pub(crate) observer: Option<Arc<Observer>>,
    pub(crate) stopping: AtomicBool,
}

/// Memory the process holds for so many bytes of live batches: the allocator keeps about half as much again between them
/// while requests come and go. A burst of 1M spans showed resident memory of 1.5 to 2 times what was asked for.
pub(crate) fn resident(bytes: usize) -> usize {
    bytes + bytes / 2
}

thread_local! {
    /// Tables of the walker: a few hundred kilobytes a thread, not made again for each request.
    static WALKER: RefCell<Walker> = RefCell::default();
}

/// Decodes a body as received into columns. Also what replay does.
pub(crate) fn decode(
    body: &Bytes,
    encoding: Encoding,
    compression: Compression,
    max_decoded: usize,
    options: WalkOptions<'_>,
) -> Result<(Walked, usize), IngestError> {
    let plain = protobuf_of(body, encoding, compression, max_decoded)?;
    let walked = walk(&plain, options)?;
    Ok((walked, plain.len()))
}

fn walk(plain: &[u8], options: WalkOptions<'_>) -> Result<Walked, IngestError> {
    WALKER.with_borrow_mut(|walker| walker.walk(plain, options)).map_err(|error| IngestError::Malformed(error.to_string()))
}

fn protobuf_of(
    body: &Bytes,
    encoding: Encoding,
    compression: Compression,
    max_decoded: usize,
) -> Result<Bytes, IngestError> {
    let plain = decompress(compression, body, max_decoded).map_err(|error| match error {
        DecompressError::TooLarge { limit } => IngestError::TooLarge { what: "decompressed body", limit },
        DecompressError::Malformed(text) => IngestError::Malformed(text),
    })?;
    match encoding {
        Encoding::OtlpProto => Ok(plain),
        Encoding::OtlpJson => {
            let mut out = Vec::new();
            json::transcode(&plain, &mut out).map_err(|error| {
                let text: String = error.to_string().chars().take(MAX_ERROR_TEXT).collect();
                IngestError::Malformed(text)
            })?;
            Ok(Bytes::from(out))
        }
    }
}

impl Pipeline {
    async fn accept(&self, request: IngestRequest) -> Result<Accepted, IngestError> {
        if self.stopping.load(SeqCst) {
            return Err(IngestError::Unavailable("the server is stopping".into()));
        }
        let IngestRequest { tenant, encoding, compression, body } = request;
        if self.stopped.why(&tenant).is_some() {
            let what = "its manifest must be repaired first, by the operator: see /status";
            return Err(IngestError::Unavailable(format!("no further spans of tenant `{tenant}` are taken: {what}")));
        }
        let plain = protobuf_of(&body, encoding, compression, self.max_decoded_bytes)?;
        self.admission.admit(&tenant, plain.len())?;
        // Columns take about as much as the protobuf they come from; corrected once they exist.
        let mut lease = self.take(plain.len()).await?;
        let limits = self.admission.limits(&tenant);
        let max_attribute_bytes = limits.max_attribute_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let options = WalkOptions { max_attribute_bytes, refused: &[] };
        let mut walked = walk(&plain, options)?;
        self.metrics.received(&tenant, walked.batch.len() + walked.refused.len(), plain.len());
        let over = self.over_trace_limit(&tenant, &walked, limits.max_trace_bytes);
        if !over.is_empty() {
            walked = self.without(&plain, max_attribute_bytes, walked, over)?;
        }
        drop(plain);
        let accepted = self.count(&tenant, &walked);
        if walked.batch.is_empty() {
            return Ok(accepted);
        }
        self.known_tenant(&tenant).await?;
        let received = self.clock.now();
        walked.batch.received_max = received;
        lease.resize(resident(walked.batch.heap_bytes()));
        let refused = walked.refused.iter().map(|(ordinal, _)| *ordinal).collect();
        let meta = RecordMeta { tenant, received, encoding, compression, refused };
        let seen = self.observer.as_ref().map(|_| observer::look(&walked.batch));
        let payload = Decoded { spans: walked.batch, lease };
        self.wal.append(NewRecord { meta, body }, payload).await.map_err(from_wal)?;
        if let (Some(observer), Some(seen)) = (&self.observer, seen) {
            observer.add(seen);
        }
        Ok(accepted)
    }

    async fn take(&self, bytes: usize) -> Result<Lease, IngestError> {
        if let Ok(lease) = self.memory.try_take(bytes) {
            return Ok(lease);
        }
        self.live.pressure.notify_one();
        self.memory.take(bytes, MEMORY_PATIENCE).await.map_err(|full| {
            self.metrics.out_of_memory();
            IngestError::Overloaded { message: full.to_string(), retry_after: RETRY_AFTER }
        })
    }

    /// Ordinals of the spans that would take their trace over its limit.
    fn over_trace_limit(&self, tenant: &TenantId, walked: &Walked, limit: u64) -> Vec<u32> {
        let sizes = self.live.sizes();
        let rows = walked.batch.rows.iter().zip(&walked.span_bytes).zip(&walked.ordinals);
        rows.filter(|((row, bytes), _)| !sizes.add(tenant, row.trace_id, **bytes, limit)).map(|(_, at)| *at).collect()
    }

    /// Walks again without some spans: rare, so that the common case needs no way to take rows out of a batch.
    fn without(
        &self,
        plain: &[u8],
        max_attribute_bytes: Option<usize>,
        walked: Walked,
        over: Vec<u32>,
    ) -> Result<Walked, IngestError> {
        let mut refused = walked.refused;
        refused.extend(over.into_iter().map(|ordinal| (ordinal, RefusalReason::TraceTooLarge)));
        refused.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        let ordinals: Vec<u32> = refused.iter().map(|(ordinal, _)| *ordinal).collect();
        let again = walk(plain, WalkOptions { max_attribute_bytes, refused: &ordinals })?;
        Ok(Walked { refused, ..again })
    }

    fn count(&self, tenant: &TenantId, walked: &Walked) -> Accepted {
        let mut accepted = Accepted { spans: walked.batch.len() as u64, refused: Vec::new() };
        for (_, reason) in &walked.refused {
            match accepted.refused.iter_mut().find(|(known, _)| known == reason) {
                Some((_, count)) => *count += 1,
                None => accepted.refused.push((*reason, 1)),
            }
        }
        for (reason, count) in &accepted.refused {
            self.metrics.refused(tenant, *reason, *count);
        }
        accepted
    }

    async fn known_tenant(&self, tenant: &TenantId) -> Result<(), IngestError> {
        if self.manifests.tenants().knows(tenant) {
            return Ok(());
        }
        self.manifests.tenants().register(tenant).await.map_err(|error| match error {
            TenantsError::TooMany { .. } => IngestError::RateLimited { message: error.to_string(), retry_after: None },
            TenantsError::Store { .. } => IngestError::Unavailable(error.to_string()),
        })
    }
}

fn from_wal(error: WalError) -> IngestError {
    match error {
        WalError::Full | WalError::Capped { .. } => {
            IngestError::Overloaded { message: error.to_string(), retry_after: error.retry_after().unwrap_or(RETRY_AFTER) }
        }
        WalError::TooLarge { limit, .. } => {
            IngestError::TooLarge { what: "request as a WAL record", limit: usize::try_from(limit).unwrap_or(usize::MAX) }
        }
        WalError::Failed { .. } | WalError::Closed => IngestError::Unavailable(error.to_string()),
    }
}

impl Ingest for Pipeline {
    async fn ingest(&self, request: IngestRequest) -> Result<Accepted, IngestError> {
        let result = self.accept(request).await;
        self.metrics.finished(&result);
        result
    }
}
