//! A pipeline for receiver tests: keeps what it was given and answers as told.

use std::sync::Arc;

use parking_lot::Mutex;
use spanhouse_common::budget::Share;
use spanhouse_common::time::SystemClock;

use super::metrics::ReceiverMetrics;
use super::receiver::{Receiver, ReceiverDeps, ReceiverSettings};
use crate::pipeline::{Accepted, Ingest, IngestError, IngestRequest};

pub(crate) struct FakeIngest {
    pub(crate) requests: Mutex<Vec<IngestRequest>>,
    answer: Result<Accepted, IngestError>,
}

impl Ingest for FakeIngest {
    async fn ingest(&self, request: IngestRequest) -> Result<Accepted, IngestError> {
        self.requests.lock().push(request);
        self.answer.clone()
    }
}

/// A receiver with the fake behind it, and what a test looks at.
pub(crate) struct Bench {
    pub(crate) ingest: Arc<FakeIngest>,
    pub(crate) memory: Share,
    pub(crate) metrics: ReceiverMetrics,
    pub(crate) receiver: Receiver<FakeIngest>,
}

impl Bench {
    pub(crate) fn new(settings: ReceiverSettings, answer: Result<Accepted, IngestError>) -> Self {
        let ingest = Arc::new(FakeIngest { requests: Mutex::default(), answer });
        let (memory, metrics) = (Share::new("test", 8 << 20), ReceiverMetrics::unregistered());
        let deps = ReceiverDeps {
            ingest: Arc::clone(&ingest),
            memory: memory.clone(),
            clock: SystemClock::shared(),
            metrics: metrics.clone(),
        };
        Self { ingest, memory, metrics, receiver: Receiver::new(deps, settings) }
    }

    pub(crate) fn accepting() -> Self {
        Self::new(ReceiverSettings::default(), Ok(Accepted { spans: 1, refused: vec![] }))
    }
}
