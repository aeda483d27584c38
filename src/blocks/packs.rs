//! Packs of trace-id filters as the sub-commands show and check them. Writes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use object_store::ObjectStore;
use serde::Serialize;
use spanhouse_common::block::filter_pack::read_directory;
use spanhouse_common::id::{BlockId, PackId, TenantId};
use spanhouse_common::manifest::{FilterPack, ManifestState, PackedFilter};
use spanhouse_common::store::{BlockObject, TenantPaths};

use super::catalog::TenantBlocks;
use super::check::Findings;
use super::{BlocksDeps, verify};

/// A pack in a listing.
#[derive(Debug, Serialize)]
pub(super) struct Pack<'a> {
    id: &'a PackId,
    path: String,
    size_bytes: u64,
    filters: usize,
    /// Of blocks that the manifest still names.
    alive: usize,
}

pub(super) fn describe<'a>(blocks: &TenantBlocks, pack: &'a FilterPack) -> Pack<'a> {
    Pack {
        id: &pack.id,
        path: TenantPaths::new(&blocks.tenant).filter_pack(pack.id).to_string(),
        size_bytes: pack.size_bytes,
        filters: pack.filters.len(),
        alive: pack.filters.iter().filter(|filter| blocks.state.blocks.contains_key(&filter.block)).count(),
    }
}

/// The pack that has a copy of a block's filter.
pub(super) fn of_block(state: &ManifestState, block: BlockId) -> Option<PackId> {
    let has = |pack: &&Arc<FilterPack>| pack.filters.iter().any(|filter| filter.block == block);
    state.packs.values().find(has).map(|pack| pack.id)
}

/// `, n filter packs` for a line of totals, or nothing.
pub(super) fn count(packs: u64) -> String {
    match packs {
        0 => String::new(),
        1 => ", 1 filter pack".to_owned(),
        packs => format!(", {packs} filter packs"),
    }
}

/// What is wrong with a pack: its bytes, what it says of itself, and each filter against that of its block.
pub(super) async fn verify(
    deps: &BlocksDeps,
    tenant: &TenantId,
    state: &ManifestState,
    pack: &Arc<FilterPack>,
) -> Vec<String> {
    let mut findings = Findings::default();
    let (store, paths) = (deps.manifests.store().as_ref() as &dyn ObjectStore, TenantPaths::new(tenant));
    let object = match verify::read(store, &paths.filter_pack(pack.id)).await {
        Ok(object) => object,
        Err(error) => {
            findings.add(error);
            return findings.finish();
        }
    };
    if object.len() as u64 != pack.size_bytes {
        findings.add(format!("{} bytes long, the manifest says {}", object.len(), pack.size_bytes));
    } else if crc32c::crc32c(&object) != pack.crc32c {
        findings.add("its checksum is not the one in the manifest: bytes have changed".to_owned());
    }
    match read_directory(&object) {
        Err(error) => findings.add(error.to_string()),
        Ok(directory) => {
            if directory.tenant != *tenant || directory.id != pack.id {
                findings.add(format!("it says that it is pack {} of tenant {}", directory.id, directory.tenant));
            }
            compare(&directory.filters, &pack.filters, &mut findings);
        }
    }
    for filter in pack.filters.iter().filter(|filter| state.blocks.contains_key(&filter.block)) {
        let Some(packed) = filter.slice(&object) else {
            findings.add(format!("the filter of block {} lies outside of it", filter.block));
            continue;
        };
        // A block's own filter that is missing or damaged is told where the block is.
        let own = verify::read(store, &paths.block(filter.block, BlockObject::Filter)).await;
        if own.is_ok_and(|own| own != packed) {
            findings.add(format!("the filter of block {} is not the block's own", filter.block));
        }
    }
    findings.finish()
}

fn compare(own: &[PackedFilter], manifest: &[PackedFilter], findings: &mut Findings) {
    let own: HashMap<_, _> = own.iter().map(|filter| (filter.block, *filter)).collect();
    let differs = |filter: &&PackedFilter| own.get(&filter.block) != Some(*filter);
    for filter in manifest.iter().filter(differs) {
        findings.add(format!("its directory does not have the filter of block {} where the manifest has", filter.block));
    }
    if own.len() != manifest.len() {
        findings.add(format!("its directory has {} filters, the manifest {}", own.len(), manifest.len()));
    }
}
