//! What one query may use: memory, time, and the client's patience.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::EngineError;

/// Shared by the jobs of a query.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Bytes of what is kept to the end.
    kept: AtomicUsize,
    limit: usize,
    deadline: Instant,
    cancelled: AtomicBool,
}

impl Budget {
    pub(crate) fn new(limit: usize, deadline: Instant) -> Self {
        Self(Arc::new(Inner { kept: AtomicUsize::new(0), limit, deadline, cancelled: AtomicBool::new(false) }))
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn cancel(&self) {
        self.0.cancelled.store(true, Relaxed);
    }

    /// Whether to go on. Asked between steps, so that a query ends soon after it must.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        if self.0.cancelled.load(Relaxed) || Instant::now() >= self.0.deadline {
            return Err(EngineError::Deadline);
        }
        Ok(())
    }

    /// Checks that a job's column fits. What a job reads is given back when it ends, and few run at once.
    pub(crate) fn charge(&self, bytes: usize) -> Result<(), EngineError> {
        self.check()?;
        if self.0.kept.load(Relaxed).saturating_add(bytes) > self.0.limit { Err(self.over()) } else { Ok(()) }
    }

    /// Adds what stays until the answer.
    pub(crate) fn keep(&self, bytes: usize) -> Result<(), EngineError> {
        let kept = self.0.kept.fetch_add(bytes, Relaxed).saturating_add(bytes);
        if kept > self.0.limit { Err(self.over()) } else { Ok(()) }
    }

    /// Gives back what was kept and is there no more.
    pub(crate) fn release(&self, bytes: usize) {
        self.0.kept.fetch_sub(bytes, Relaxed);
    }

    pub(crate) fn kept(&self) -> usize {
        self.0.kept.load(Relaxed)
    }

    fn over(&self) -> EngineError {
        EngineError::OverBudget(format!(
            "the query needs more memory than it may use ({} bytes): ask for a shorter time range, fewer groups or a lower limit",
            self.0.limit
        ))
    }
}
