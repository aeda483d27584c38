//! Verbs the tests are written in: start, send, read, wait.

pub(crate) mod ask;
pub(crate) mod otlp;
pub(crate) mod query;
pub(crate) mod server;
pub(crate) mod tools;

use std::time::{Duration, Instant};

/// How long anything that must happen soon may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Polls until `check` says `Some`, or fails with `what` at the deadline.
pub(crate) async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(SOON, what, check).await
}

/// The same, for what takes longer by design.
pub(crate) async fn eventually_within<T>(patience: Duration, what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A number from the environment: how often the long tests go round.
pub(crate) fn times(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")),
        Err(_) => default,
    }
}
