//! Tenants whose spans cannot become blocks until somebody repairs something.
//!
//! Owns who they are and why, for `/status`, the gauge and the refusal of further spans. Does not own the decision, which is the
//! flush's or the replay's. What such a tenant has already is safe: live, in the WAL, and there to be found by queries.
//!
//! Further spans are refused, because each WAL segment with one of them would have to stay, until the WAL is full for everybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use spanhouse_common::id::TenantId;

/// How a stop ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// As soon as a flush succeeds: attempts go on.
    Repaired,
    /// With the process.
    Restart,
}

/// Who is stopped.
#[derive(Debug, Default)]
pub struct StoppedTenants {
    tenants: Mutex<BTreeMap<TenantId, (Until, Arc<str>)>>,
    /// Read for each request: nearly always 0.
    count: AtomicUsize,
    gauge: Gauge,
}

impl StoppedTenants {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { gauge, ..Self::default() }
    }

    /// Why nothing of the tenant is flushed, if so.
    pub fn why(&self, tenant: &TenantId) -> Option<Arc<str>> {
        if self.count.load(SeqCst) == 0 {
            return None;
        }
        self.tenants.lock().get(tenant).map(|(_, why)| Arc::clone(why))
    }

    /// All of them, for `/status`.
    pub fn all(&self) -> Vec<(TenantId, Arc<str>)> {
        self.tenants.lock().iter().map(|(tenant, (_, why))| (tenant.clone(), Arc::clone(why))).collect()
    }

    /// Stops a tenant and says so once.
    pub(crate) fn stop(&self, tenant: &TenantId, until: Until, why: String) {
        let mut tenants = self.tenants.lock();
        let known = tenants.get(tenant).map(|(until, _)| *until);
        if known.is_some_and(|known| known == until || known == Until::Restart) {
            return;
        }
        tracing::error!(
            tenant = %tenant, error = %why,
            "no span of the tenant becomes a block until this is repaired: new ones are refused, acknowledged ones are kept in the WAL"
        );
        tenants.insert(tenant.clone(), (until, why.into()));
        self.note(tenants.len());
    }

    /// A flush succeeded.
    pub(super) fn repaired(&self, tenant: &TenantId) {
        let mut tenants = self.tenants.lock();
        if tenants.get(tenant).is_some_and(|(until, _)| *until == Until::Repaired) {
            tenants.remove(tenant);
            self.note(tenants.len());
            tracing::info!(tenant = %tenant, "spans of the tenant become blocks again");
        }
    }

    fn note(&self, tenants: usize) {
        self.count.store(tenants, SeqCst);
        self.gauge.set(tenants as i64);
    }
}
