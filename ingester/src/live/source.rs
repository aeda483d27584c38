//! Live batches as sources for queries.

use std::sync::Arc;

use async_trait::async_trait;
use spanhouse_common::batch::TraceIndex;
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::source::{Found, LivePart, LiveReader, LiveView, Opened, Source, SourceError};
use spanhouse_common::time::TimeRange;

use super::{Live, LiveBatch};

#[async_trait]
impl Source for LiveBatch {
    fn name(&self) -> String {
        "live".into()
    }

    fn time_range(&self) -> TimeRange {
        self.range
    }

    fn is_live(&self) -> bool {
        true
    }

    async fn open(&self) -> Result<Opened, SourceError> {
        Ok(Opened::Live(Arc::clone(&self.spans)))
    }

    async fn find_trace(&self, id: TraceId) -> Result<Found, SourceError> {
        let found = self.index().find_trace(&self.spans, id);
        let spans = found.map_err(|error| SourceError::Damaged { what: self.name(), why: error.to_string() })?;
        let inspected_bytes = if spans.is_empty() { 0 } else { self.spans.heap_bytes() as u64 };
        Ok(Found { spans, inspected_bytes })
    }
}

impl LiveBatch {
    /// The rows by trace. Spans that nobody looks for while they are live cost nothing.
    fn index(&self) -> &TraceIndex {
        self.index.get_or_init(|| {
            let index = TraceIndex::new(&self.spans);
            if let Some(lease) = &mut *self.lease.lock() {
                lease.resize(lease.bytes() + index.heap_bytes());
            }
            index
        })
    }
}

impl LiveReader for Live {
    fn live(&self, tenant: &TenantId) -> LiveView {
        let snapshot = self.snapshot(tenant);
        let part = |batch: Arc<LiveBatch>| LivePart { writer: self.writer(), to: batch.to, source: batch };
        LiveView { parts: snapshot.batches.into_iter().map(part).collect(), manifest_version: snapshot.manifest_version }
    }
}
