//! Settings of the compactor.

use std::time::Duration;

use crate::policy::PolicyConfig;

/// What is merged, how long garbage is kept and how often all that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactorConfig {
    /// Whether blocks are merged and rewritten. Retention and sweeps go on without.
    pub merge: bool,
    /// Which are merged, and when.
    pub policy: PolicyConfig,
    /// Between two rounds. A round costs a request per tenant.
    pub interval: Duration,
    /// Between two sweeps of a tenant that both succeed. A sweep costs a LIST of its blocks and one of its packs.
    pub sweep_interval: Duration,
    /// How long a block's objects outlive its place in the manifest: longer than the longest query, whose snapshot may name it.
    pub query_grace: Duration,
    /// Age an object must have that this process never saw in the manifest: longer than any flush holds objects it has put
    /// and not committed.
    pub sweep_grace: Duration,
    /// Most objects deleted per tenant and round.
    pub max_deletes: usize,
    /// Report what would be swept, and delete and merge nothing. Retention is applied all the same.
    pub dry_run: bool,
}

impl Default for CompactorConfig {
    fn default() -> Self {
        Self {
            merge: true,
            policy: PolicyConfig::default(),
            interval: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(3600),
            query_grace: Duration::from_secs(15 * 60),
            sweep_grace: Duration::from_secs(24 * 3600),
            max_deletes: 10_000,
            dry_run: false,
        }
    }
}
