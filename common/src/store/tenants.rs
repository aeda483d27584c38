//! The registry of tenants: one marker object each, under one fixed prefix.
//!
//! Owns which tenants exist and the limit on their number. Does not own their data or their limits.
//!
//! Crash story of the first write of a tenant: 1. marker put, 2. manifest version 1 put, 3. blocks. A kill after 1 leaves a
//! tenant without data, which every reader takes for an empty one; the next write goes on from there.

use std::collections::BTreeSet;
use std::sync::Arc;

use object_store::{ObjectStore, PutMode, PutPayload};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::paths::{self, TenantPaths};
use crate::id::TenantId;
use crate::time::{Clock, UnixNanos};

/// Most tenants a store takes unless configured otherwise: each costs requests even while idle.
pub const DEFAULT_MAX_TENANTS: usize = 10_000;

/// Why a tenant was not registered or the tenants not listed.
#[derive(Debug, thiserror::Error)]
pub enum TenantsError {
    #[error(
        "tenant `{tenant}` would be one more than the {max} tenants this store takes: raise `max_tenants` or use a known tenant"
    )]
    TooMany { tenant: TenantId, max: usize },
    #[error("the object store did not {action}: try again")]
    Store {
        action: &'static str,
        #[source]
        source: object_store::Error,
    },
}

impl TenantsError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store { .. })
    }
}

/// What the marker object says. Only its existence matters; the content is for humans.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    tenant: TenantId,
    created: UnixNanos,
}

/// The tenants of a store, with those already seen kept in memory.
#[derive(Debug)]
pub struct TenantRegistry {
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    max_tenants: usize,
    known: RwLock<BTreeSet<TenantId>>,
    /// One registration of a new tenant at a time, so that this process cannot overshoot the limit.
    turn: tokio::sync::Mutex<()>,
}

impl TenantRegistry {
    /// Lists the tenants once. Several processes may overshoot `max_tenants` by a tenant each: it bounds cost, not safety.
    pub async fn open(store: Arc<dyn ObjectStore>, clock: Arc<dyn Clock>, max_tenants: usize) -> Result<Self, TenantsError> {
        let registry = Self { store, clock, max_tenants, known: RwLock::default(), turn: tokio::sync::Mutex::default() };
        registry.list().await?;
        Ok(registry)
    }

    /// Whether this process knows the tenant, without asking the store.
    pub fn knows(&self, tenant: &TenantId) -> bool {
        self.known.read().contains(tenant)
    }

    /// The tenants this process knows, without asking the store.
    pub fn known(&self) -> BTreeSet<TenantId> {
        self.known.read().clone()
    }

    /// Makes the tenant exist. Costs a request for a tenant new to this process and nothing for a known one.
    pub async fn register(&self, tenant: &TenantId) -> Result<(), TenantsError> {
        if self.knows(tenant) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if self.knows(tenant) {
            return Ok(());
        }
        if self.known.read().len() >= self.max_tenants {
            // Another process may have registered it, or an operator removed some: only a fresh list may refuse.
            let listed = self.list().await?;
            if listed.contains(tenant) {
                return Ok(());
            }
            if listed.len() >= self.max_tenants {
                return Err(TenantsError::TooMany { tenant: tenant.clone(), max: self.max_tenants });
            }
        }
        let marker = Marker { tenant: tenant.clone(), created: self.clock.now() };
        let body = serde_json::to_vec(&marker).unwrap_or_default();
        let key = TenantPaths::new(tenant).marker();
        match self.store.put_opts(&key, PutPayload::from(body), PutMode::Create.into()).await {
            Ok(_) => {}
            Err(error @ (object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })) => {
                // S3's 409 also surfaces as "exists" although nothing was written: look.
                let found = self.store.get_opts(&key, object_store::GetOptions::new().with_head(true)).await;
                if found.is_err() {
                    return Err(TenantsError::Store { action: "create the tenant's marker", source: error });
                }
            }
            Err(source) => return Err(TenantsError::Store { action: "create the tenant's marker", source }),
        }
        self.known.write().insert(tenant.clone());
        Ok(())
    }

    /// Every tenant of the store, in order. One LIST: for the compactor's rounds and start-up, not for requests.
    pub async fn list(&self) -> Result<BTreeSet<TenantId>, TenantsError> {
        let listing = self.store.list_with_delimiter(Some(&paths::tenants_prefix())).await;
        let listing = listing.map_err(|source| TenantsError::Store { action: "list the tenants", source })?;
        let tenants: BTreeSet<TenantId> = listing.common_prefixes.iter().filter_map(paths::tenant_of).collect();
        self.known.write().clone_from(&tenants);
        Ok(tenants)
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::store::faults::{FaultConfig, FaultyStore};
    use crate::time::ManualClock;

    #[tokio::test(start_paused = true)]
    async fn registering_twice_is_one_tenant_and_the_limit_refuses() {
        let inner = Arc::new(InMemory::new());
        let store = Arc::new(FaultyStore::new(inner, FaultConfig { spurious_exists: 0.3, ..FaultConfig::default() }, 7));
        let clock = ManualClock::at(UnixNanos(1));
        let open = || TenantRegistry::open(Arc::clone(&store) as _, Arc::clone(&clock) as _, 2);
        let registry = open().await.unwrap();
        let tenants: Vec<TenantId> = ["b", "A", "c"].iter().map(|n| n.parse().unwrap()).collect();
        for tenant in [&tenants[0], &tenants[0], &tenants[1]] {
            while registry.register(tenant).await.is_err() {}
        }
        let error = registry.register(&tenants[2]).await.unwrap_err();
        assert!(matches!(error, TenantsError::TooMany { max: 2, .. }) && !error.is_retryable());
        let other = open().await.unwrap();
        other.register(&tenants[1]).await.unwrap();
        assert_eq!(other.list().await.unwrap().into_iter().collect::<Vec<_>>(), [tenants[1].clone(), tenants[0].clone()]);
    }
}
