//! What receivers share: the pipeline behind them, the settings, and the counting of requests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use spanhouse_common::budget::{Lease, Share};
use spanhouse_common::time::Clock;

use super::body::{self, BodyError, BodyLimits, LeasedBody};
use super::buffers::BufferPool;
use super::decompress::decompress;
use super::metrics::{Outcome, Protocol, ReceiverMetrics};
use super::status::Refusal;
use super::tenant::{self, TenantTexts};
use crate::pipeline::{Accepted, Compression, Encoding, Ingest, IngestError, IngestRequest};
use spanhouse_common::id::TenantId;

/// Room for a body of another protocol while it becomes OTLP, in lengths of the body: the body decompressed, its spans by
/// group, the request made of them.
const WHILE_CONVERTED: usize = 3;

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct ReceiverSettings {
    /// Off: every request belongs to `single-tenant`. On: `X-Scope-OrgID` is required, or on Jaeger's ports `x-tenant`.
    pub multitenancy: bool,
    /// Longest HTTP body as sent. Larger batches cost fewer requests and more memory each.
    pub max_body_bytes: usize,
    /// Longest gRPC message as sent. Without compression this is also its decoded size.
    pub max_grpc_message_bytes: usize,
    /// Longest body after decompression, and longest OTLP that a body of another protocol may become.
    pub max_decoded_bytes: usize,
    /// A body that sends nothing for this long is ended.
    pub body_idle_timeout: Duration,
    /// A body that is not complete after this time is ended.
    pub body_timeout: Duration,
    /// How long a request may wait for memory before it is refused with a time to retry after.
    pub memory_patience: Duration,
    /// Web origins whose scripts may send spans over HTTP (`*`: all). Empty: none.
    pub cors_allowed_origins: Vec<String>,
}

impl Default for ReceiverSettings {
    fn default() -> Self {
        Self {
            multitenancy: false,
            max_body_bytes: 20 << 20,
            max_grpc_message_bytes: 64 << 20,
            max_decoded_bytes: 64 << 20,
            body_idle_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(300),
            memory_patience: Duration::from_secs(1),
            cors_allowed_origins: Vec::new(),
        }
    }
}

/// The components a receiver works with.
pub struct ReceiverDeps<I> {
    pub ingest: Arc<I>,
    /// The share that bodies are taken from while they are read and ingested.
    pub memory: Share,
    pub clock: Arc<dyn Clock>,
    pub metrics: ReceiverMetrics,
}

impl<I> fmt::Debug for ReceiverDeps<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiverDeps").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// Takes requests from a protocol to the pipeline. Cheap to clone.
pub struct Receiver<I>(Arc<Inner<I>>);

struct Inner<I> {
    deps: ReceiverDeps<I>,
    settings: ReceiverSettings,
    buffers: BufferPool,
}

impl<I> Clone for Receiver<I> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<I> fmt::Debug for Receiver<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

impl<I: Ingest> Receiver<I> {
    pub fn new(deps: ReceiverDeps<I>, settings: ReceiverSettings) -> Self {
        Self(Arc::new(Inner { deps, settings, buffers: BufferPool::default() }))
    }

    pub(crate) fn settings(&self) -> &ReceiverSettings {
        &self.0.settings
    }

    pub(crate) fn tenant(&self, headers: &HeaderMap, texts: TenantTexts) -> Result<TenantId, Refusal> {
        Ok(tenant::tenant(headers, self.0.settings.multitenancy, texts)?)
    }

    pub(crate) async fn read_body<B>(
        &self,
        body: B,
        max_bytes: usize,
        declared: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<LeasedBody, Refusal>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: fmt::Display,
    {
        let settings = &self.0.settings;
        let limits = BodyLimits {
            max_bytes,
            idle: settings.body_idle_timeout,
            total: settings.body_timeout,
            patience: settings.memory_patience,
        };
        Ok(body::read(body, declared, &limits, &self.0.deps.memory, &self.0.buffers).await?)
    }

    pub(crate) async fn ingest(&self, request: IngestRequest) -> Result<Accepted, IngestError> {
        self.0.deps.ingest.ingest(request).await
    }

    /// Takes a body of another protocol to the pipeline as the OTLP it says.
    ///
    /// `convert` gets the body decompressed and the most bytes it may make of it. What it makes is small in a request of any
    /// sense: several times the body only where a sender means harm, and then it ends at the limit.
    pub(crate) async fn ingest_as_otlp(
        &self,
        tenant: TenantId,
        compression: Compression,
        body: &Bytes,
        convert: impl FnOnce(&[u8], usize) -> Result<Vec<u8>, IngestError>,
    ) -> Result<Accepted, Refusal> {
        let max = self.0.settings.max_decoded_bytes;
        let plain = decompress(compression, body, max).map_err(IngestError::from)?;
        let mut lease = self.lease(plain.len() * WHILE_CONVERTED).await?;
        let body = convert(&plain, max)?;
        drop(plain);
        lease.resize(body.len());
        Ok(self.ingest(self.otlp_request(tenant, body)).await?)
    }

    /// A request that is plain OTLP.
    pub(crate) fn otlp_request(&self, tenant: TenantId, body: Vec<u8>) -> IngestRequest {
        IngestRequest { tenant, encoding: Encoding::OtlpProto, compression: Compression::Identity, body: body.into() }
    }

    /// Memory for what no body's lease covers.
    pub(crate) async fn lease(&self, bytes: usize) -> Result<Lease, Refusal> {
        Ok(self.0.deps.memory.take(bytes, self.0.settings.memory_patience).await.map_err(BodyError::NoMemory)?)
    }

    /// The same at once or not at all.
    pub(crate) fn try_lease(&self, bytes: usize) -> Option<Lease> {
        self.0.deps.memory.try_take(bytes).ok()
    }

    pub(crate) fn now_nanos(&self) -> u64 {
        self.0.deps.clock.now().0
    }

    /// Counts a request that went no way at all.
    pub(crate) fn count(&self, protocol: Protocol, outcome: Outcome) {
        self.0.deps.metrics.count(protocol, outcome, Duration::ZERO);
    }

    /// Counts packets that were lost before they were read.
    pub(crate) fn count_dropped(&self, protocol: Protocol, packets: u64) {
        self.0.deps.metrics.count_dropped(protocol, packets);
    }

    /// Runs one request to its end and counts it. A request whose client went away is not counted: nobody saw an answer.
    pub(crate) async fn counted(
        &self,
        protocol: Protocol,
        request: impl Future<Output = Result<Accepted, Refusal>>,
    ) -> Result<Accepted, Refusal> {
        self.counted_many(protocol, 1, request).await
    }

    /// The same for so many requests that go together.
    pub(crate) async fn counted_many(
        &self,
        protocol: Protocol,
        requests: usize,
        request: impl Future<Output = Result<Accepted, Refusal>>,
    ) -> Result<Accepted, Refusal> {
        let deps = &self.0.deps;
        let start = deps.clock.monotonic();
        let result = request.await;
        let outcome = match &result {
            Ok(accepted) if accepted.refused.is_empty() => Outcome::Accepted,
            Ok(_) => Outcome::Partial,
            Err(refusal) => refusal.outcome,
        };
        let took = deps.clock.monotonic().saturating_sub(start);
        (0..requests).for_each(|_| deps.metrics.count(protocol, outcome, took));
        result
    }
}
