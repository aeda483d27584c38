//! The manifests of all tenants this process touches, each opened once.
//!
//! Owns: finding a tenant's [`ManifestStore`]. Does not own: what is in it. Readers never create anything; writers register the
//! tenant and make version 1 first, so that blocks without a manifest are always a lost manifest.

use std::collections::HashMap;
use std::sync::Arc;

use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::{CommitError, ManifestError, ManifestSettings, ManifestStore};
use crate::id::TenantId;
use crate::store::tenants::{TenantRegistry, TenantsError};
use crate::time::Clock;

type Slot = Arc<OnceCell<Arc<ManifestStore>>>;

/// Opens manifests and keeps them. Cheap to ask again.
pub struct Manifests {
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    tenants: TenantRegistry,
    open: Mutex<HashMap<TenantId, Slot>>,
}

impl std::fmt::Debug for Manifests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Manifests({} open)", self.open.lock().len())
    }
}

/// A tenant's manifest cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteManifestError {
    #[error(transparent)]
    Tenants(#[from] TenantsError),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Manifests {
    pub fn new(store: Arc<dyn ObjectStore>, clock: Arc<dyn Clock>, tenants: TenantRegistry) -> Self {
        Self { store, clock, tenants, open: Mutex::default() }
    }

    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub fn tenants(&self) -> &TenantRegistry {
        &self.tenants
    }

    fn slot(&self, tenant: &TenantId) -> Slot {
        Arc::clone(self.open.lock().entry(tenant.clone()).or_default())
    }

    /// The manifest for reading. `None` if nothing was ever stored for the tenant.
    pub async fn for_reading(&self, tenant: &TenantId) -> Result<Option<Arc<ManifestStore>>, ManifestError> {
        let known = self.open.lock().get(tenant).and_then(|slot| slot.get().map(Arc::clone));
        if known.is_some() || !self.tenants.knows(tenant) {
            return Ok(known);
        }
        let open = || async {
            let settings = ManifestSettings::default();
            let manifest = ManifestStore::open(Arc::clone(&self.store), tenant.clone(), Arc::clone(&self.clock), settings);
            Ok::<_, ManifestError>(Arc::new(manifest.await?))
        };
        self.slot(tenant).get_or_try_init(open).await.map(|manifest| Some(Arc::clone(manifest)))
    }

    /// The manifest for writing; the tenant and its manifest are made if they do not exist.
    pub async fn for_writing(&self, tenant: &TenantId) -> Result<Arc<ManifestStore>, WriteManifestError> {
        self.tenants.register(tenant).await?;
        let slot = self.slot(tenant);
        if let Some(known) = slot.get()
            && known.current().version > 0
        {
            return Ok(Arc::clone(known));
        }
        let open = || async {
            let settings = ManifestSettings::default();
            let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
            Ok::<_, CommitError>(Arc::new(ManifestStore::open_or_create(store, tenant.clone(), clock, settings).await?))
        };
        let manifest = Arc::clone(slot.get_or_try_init(open).await?);
        if manifest.current().version == 0 {
            // Opened for reading before: an empty commit makes version 1.
            manifest.commit(super::Change::default()).await?;
        }
        Ok(manifest)
    }
}
