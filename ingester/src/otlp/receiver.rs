//! What the HTTP and the gRPC receiver share: the pipeline behind them, the settings, and the counting of requests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use spanhouse_common::budget::Share;
use spanhouse_common::time::Clock;

use super::body::{self, BodyLimits, LeasedBody};
use super::buffers::BufferPool;
use super::metrics::{Outcome, Protocol, ReceiverMetrics};
use super::status::Refusal;
use super::tenant;
use crate::pipeline::{Accepted, Ingest, IngestError, IngestRequest};
use spanhouse_common::id::TenantId;

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct ReceiverSettings {
    /// Off: every request belongs to `single-tenant`. On: `X-Scope-OrgID` is required.
    pub multitenancy: bool,
    /// Longest HTTP body as sent. Larger batches cost fewer requests and more memory each.
    pub max_body_bytes: usize,
    /// Longest gRPC message as sent. Without compression this is also its decoded size.
    pub max_grpc_message_bytes: usize,
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

    pub(super) fn settings(&self) -> &ReceiverSettings {
        &self.0.settings
    }

    pub(super) fn tenant(&self, headers: &HeaderMap) -> Result<TenantId, Refusal> {
        Ok(tenant::tenant(headers, self.0.settings.multitenancy)?)
    }

    pub(super) async fn read_body<B>(
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

    pub(super) async fn ingest(&self, request: IngestRequest) -> Result<Accepted, IngestError> {
        self.0.deps.ingest.ingest(request).await
    }

    /// Runs one request to its end and counts it. A request whose client went away is not counted: nobody saw an answer.
    pub(super) async fn counted(
        &self,
        protocol: Protocol,
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
        deps.metrics.count(protocol, outcome, deps.clock.monotonic().saturating_sub(start));
        result
    }
}
