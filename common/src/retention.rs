//! How long a tenant's spans are kept: asked by the ingester, which tells outliers by it, and by the compactor.
//!
//! Owns the question. Does not own the answer, which comes from whoever knows tenants' limits, nor what is past retention.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::id::TenantId;

/// Two weeks, as in Tempo.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(14 * 86_400);

/// The shortest that can be set: spans are live for a while, and clocks of senders differ.
pub const SHORTEST_RETENTION: Duration = Duration::from_secs(3600);

/// The retention of every tenant, which may change while the process runs. Cheap to clone and to ask.
#[derive(Clone)]
pub struct Retention(Arc<dyn Fn(&TenantId) -> Duration + Send + Sync>);

impl Retention {
    /// Asks `of` each time.
    pub fn by(of: impl Fn(&TenantId) -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(of))
    }

    /// The same for every tenant.
    pub fn same(retention: Duration) -> Self {
        Self::by(move |_| retention)
    }

    /// How long spans of `tenant` are kept, from the later of their start and their receive time.
    pub fn of(&self, tenant: &TenantId) -> Duration {
        (self.0)(tenant)
    }
}

impl fmt::Debug for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Retention")
    }
}
