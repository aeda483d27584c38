//! Tenant limits and their overrides: who may send how much, and how long it is kept.
//!
//! Owns: the limits of every tenant, the file they are read from while running, the token buckets. Does not own: the memory
//! budget, the limits on one request's size, or what happens to a refused request.

pub mod limits;
pub mod metrics;
pub mod overrides;
pub mod rate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use spanhouse_common::id::TenantId;
use spanhouse_common::retention::Retention;
use spanhouse_common::time::Clock;
use tokio_util::sync::CancellationToken;

pub use self::limits::Limits;
use self::metrics::AdmissionMetrics;
use self::overrides::{Overrides, OverridesError};
use self::rate::RateLimiter;
use crate::pipeline::IngestError;

/// How often the overrides file is looked at.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// Decides per tenant. One per process, shared by every receiver.
#[derive(Debug)]
pub struct Admission {
    path: Option<PathBuf>,
    defaults: Limits,
    current: ArcSwap<Overrides>,
    rate: RateLimiter,
    metrics: AdmissionMetrics,
    reading: Mutex<Reading>,
}

/// What the last look at the file found.
#[derive(Debug, Default)]
struct Reading {
    text: String,
    /// Set while the file is broken, so that the same fault is told once.
    fault: Option<String>,
}

impl Admission {
    /// Reads the overrides at `path`, if any. Before the first request a broken file is an error: there are no old values yet.
    pub fn new(
        path: Option<PathBuf>,
        defaults: Limits,
        clock: Arc<dyn Clock>,
        metrics: AdmissionMetrics,
    ) -> Result<Self, OverridesError> {
        let admission = Self {
            path,
            defaults,
            current: ArcSwap::from_pointee(Overrides::only(defaults)),
            rate: RateLimiter::new(clock),
            metrics,
            reading: Mutex::default(),
        };
        admission.read()?;
        Ok(admission)
    }

    /// Takes `decoded_bytes` (of protobuf) from the tenant's rate, or says why not and when to come back.
    pub fn admit(&self, tenant: &TenantId, decoded_bytes: usize) -> Result<(), IngestError> {
        let limits = self.limits(tenant);
        self.rate.admit(tenant, decoded_bytes as u64, &limits).inspect_err(|_| self.metrics.count_rate_limited())
    }

    /// The limits in force for `tenant` right now.
    pub fn limits(&self, tenant: &TenantId) -> Limits {
        self.current.load().limits(tenant)
    }

    /// The retention in force, asked again each time: it follows the file.
    pub fn retention(self: &Arc<Self>) -> Retention {
        let admission = Arc::clone(self);
        Retention::by(move |tenant| admission.limits(tenant).retention)
    }

    /// The limits in force for everybody right now.
    pub fn overrides(&self) -> Arc<Overrides> {
        self.current.load_full()
    }

    /// Reads the file again. True if its content changed; on an error the old limits stay in force, and the error is counted
    /// and logged.
    pub fn reload(&self) -> Result<bool, OverridesError> {
        let result = self.read();
        let mut reading = self.reading.lock();
        match &result {
            Ok(changed) => {
                if *changed || reading.fault.take().is_some() {
                    tracing::info!(tenants = self.current.load().tenants(), "overrides loaded");
                }
                reading.fault = None;
                self.metrics.reload_succeeded();
            }
            Err(error) => {
                let text = error.to_string();
                self.metrics.reload_failed();
                if reading.fault.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, "overrides not loaded: the old limits stay in force");
                    reading.fault = Some(text);
                }
            }
        }
        result
    }

    /// Reloads every [`RELOAD_INTERVAL`] until `stop`. Compares content and not times: mounted configuration changes by symlink.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        if self.path.is_none() {
            return;
        }
        while stop.run_until_cancelled(tokio::time::sleep(RELOAD_INTERVAL)).await.is_some() {
            let admission = Arc::clone(&self);
            // Faults are counted and logged inside.
            let _: Result<Result<bool, OverridesError>, _> = tokio::task::spawn_blocking(move || admission.reload()).await;
        }
    }

    fn read(&self) -> Result<bool, OverridesError> {
        let Some(path) = &self.path else { return Ok(false) };
        let text = overrides::read_file(path)?;
        let mut reading = self.reading.lock();
        if reading.text == text && reading.fault.is_none() {
            return Ok(false);
        }
        let parsed = Overrides::parse(&text, self.defaults)?;
        self.current.store(Arc::new(parsed));
        let changed = reading.text != text;
        reading.text = text;
        Ok(changed)
    }

    /// The file the overrides come from.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use spanhouse_common::time::{ManualClock, UnixNanos};

    use super::*;

    fn admission(path: &Path) -> Result<Admission, OverridesError> {
        let clock = ManualClock::at(UnixNanos(0));
        Admission::new(Some(path.into()), Limits::default(), clock, AdmissionMetrics::unregistered())
    }

    #[test]
    fn a_changed_file_takes_effect_and_a_broken_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overrides.yaml");
        let tenant: TenantId = "a".parse().unwrap();
        assert!(admission(&path).unwrap_err().to_string().contains("overrides.yaml"));

        std::fs::write(&path, "overrides: {a: {max_trace_bytes: 1}}").unwrap();
        let admission = Arc::new(admission(&path).unwrap());
        let retention = admission.retention();
        assert_eq!(retention.of(&tenant), Limits::default().retention);
        assert_eq!(admission.limits(&tenant).max_trace_bytes, 1);
        assert!(!admission.reload().unwrap());

        std::fs::write(&path, "overrides: {a: {max_trace_bytes: 2, retention: 48h}}").unwrap();
        assert!(admission.reload().unwrap());
        assert_eq!(retention.of(&tenant), Duration::from_secs(48 * 3600));
        assert_eq!(admission.limits(&tenant).max_trace_bytes, 2);

        std::fs::write(&path, "overrides: {a: {max_trace_byte: 3}}").unwrap();
        admission.reload().unwrap_err();
        admission.reload().unwrap_err();
        assert_eq!(admission.limits(&tenant).max_trace_bytes, 2);
        assert_eq!((admission.metrics.failed_reloads(), admission.metrics.is_stale()), (2, true));

        std::fs::remove_file(&path).unwrap();
        admission.reload().unwrap_err();
        std::fs::write(&path, "overrides: {a: {max_trace_bytes: 2, retention: 48h}}").unwrap();
        assert!(!admission.reload().unwrap());
        assert_eq!((admission.metrics.failed_reloads(), admission.metrics.is_stale()), (3, false));
    }

    #[test]
    fn rates_apply_per_tenant() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overrides.yaml");
        std::fs::write(&path, "overrides: {a: {ingestion_rate_bytes: 10}}").unwrap();
        let admission = admission(&path).unwrap();
        let [limited, free] = ["a", "b"].map(|name| name.parse().unwrap());
        admission.admit(&limited, 10).unwrap();
        assert!(matches!(admission.admit(&limited, 1), Err(IngestError::RateLimited { .. })));
        admission.admit(&free, usize::MAX).unwrap();
        assert_eq!(admission.metrics.rate_limited(), 1);
    }
}
