//! Finds tenants, their blocks and their objects. Shared by all sub-commands; writes nothing.

use std::sync::Arc;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use object_store::ObjectStore;
use spanhouse_common::block::{BlockCache, BlockLocation, BlockReader};
use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::manifest::{BlockEntry, ManifestError, ManifestState};

use super::BlocksDeps;

/// Footers are read once, so the cache only has to hold what one read needs.
const CACHE_BYTES: u64 = 8 << 20;

/// The blocks of one tenant.
#[derive(Debug)]
pub(crate) struct TenantBlocks {
    pub(crate) tenant: TenantId,
    pub(crate) state: Arc<ManifestState>,
    /// The state is older than what exists, and why.
    pub(crate) damage: Option<String>,
}

impl TenantBlocks {
    pub(super) fn entries(&self) -> impl Iterator<Item = (&TenantId, &Arc<BlockEntry>)> {
        self.state.blocks.values().map(|entry| (&self.tenant, entry))
    }
}

/// The tenants asked for. A tenant that the store does not know is an error: most likely a typing mistake.
pub(crate) async fn tenants(deps: &BlocksDeps, only: Option<&TenantId>) -> anyhow::Result<Vec<TenantId>> {
    let all = deps.manifests.tenants().list().await?;
    match only {
        None => Ok(all.into_iter().collect()),
        Some(tenant) if all.contains(tenant) => Ok(vec![tenant.clone()]),
        Some(tenant) => {
            let known: Vec<&str> = all.iter().take(20).map(TenantId::as_str).collect();
            let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
            bail!("the store {} has no tenant `{tenant}`; {known}", deps.store_url)
        }
    }
}

/// The blocks of a tenant by the newest version of its manifest.
pub(super) async fn blocks_of(deps: &BlocksDeps, tenant: &TenantId) -> Result<TenantBlocks, ManifestError> {
    let tenant = tenant.clone();
    match deps.manifests.for_reading(&tenant).await? {
        None => Ok(TenantBlocks { tenant, state: Arc::default(), damage: None }),
        Some(manifest) => {
            let state = manifest.refresh().await?;
            Ok(TenantBlocks { tenant, state, damage: manifest.damage().map(|damage| damage.to_string()) })
        }
    }
}

/// The blocks of all tenants asked for. Damage that leaves something to read is told on stderr.
pub(crate) async fn load(deps: &BlocksDeps, only: Option<&TenantId>) -> anyhow::Result<Vec<TenantBlocks>> {
    let mut all = Vec::new();
    for tenant in tenants(deps, only).await? {
        let blocks = blocks_of(deps, &tenant).await?;
        if let Some(damage) = &blocks.damage {
            eprintln!("warning: {damage}");
        }
        all.push(blocks);
    }
    Ok(all)
}

/// Opens a block where it lies.
pub(super) async fn open(deps: &BlocksDeps, tenant: &TenantId, entry: &BlockEntry) -> anyhow::Result<Arc<BlockReader>> {
    let store: Arc<dyn ObjectStore> = Arc::clone(deps.manifests.store());
    let reader = BlockReader::open_footer(store, BlockCache::new(CACHE_BYTES), BlockLocation::of(tenant, entry)).await;
    Ok(Arc::new(reader.with_context(|| format!("block {} of tenant {tenant}", entry.id))?))
}

/// The block with this id, whosever it is, with all blocks of its tenant.
pub(super) async fn find(
    deps: &BlocksDeps,
    only: Option<&TenantId>,
    id: BlockId,
) -> anyhow::Result<(TenantBlocks, Arc<BlockEntry>)> {
    for blocks in load(deps, only).await? {
        if let Some(entry) = blocks.state.blocks.get(&id).map(Arc::clone) {
            return Ok((blocks, entry));
        }
    }
    bail!("no manifest names a block {id}: `spanhouse blocks ls` lists those there are")
}

/// A bar on the terminal; nothing if stderr is something else.
pub(super) fn progress(what: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    let template = "{prefix} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar
}
