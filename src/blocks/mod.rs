//! `spanhouse blocks`: look at the blocks of a store, check them, and make a lost manifest again.
//!
//! Owns what the sub-commands read and print. Does not own the command line ([`BlocksCommand`] is plain data), nor the format
//! of blocks and manifests. All but [`BlocksCommand::RebuildManifest`] only read, and may run beside a server.

pub(crate) mod catalog;
mod check;
mod columns;
mod inspect;
mod ls;
mod packs;
mod rebuild;
mod sql;
pub(crate) mod text;
mod tree;
mod verify;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::manifest::Manifests;
use spanhouse_common::time::Clock;

/// What to do. `tenant: None` means every tenant of the store.
#[derive(Clone, Debug)]
pub enum BlocksCommand {
    /// The blocks of the newest manifest version. `sql`: a DuckDB statement over exactly their files instead.
    Ls { tenant: Option<TenantId>, json: bool, sql: bool },
    /// All that one block says of itself.
    Inspect { tenant: Option<TenantId>, id: BlockId, json: bool },
    /// Stored bytes by column.
    Columns { tenant: Option<TenantId>, json: bool },
    /// Reads everything and compares it with what the manifest, the footers and the summaries say.
    Verify { tenant: Option<TenantId>, json: bool },
    /// Makes the manifest again from the blocks. Needs the data directory for itself.
    RebuildManifest { tenant: Option<TenantId>, json: bool },
}

/// What the commands work on.
#[derive(Debug)]
pub struct BlocksDeps {
    /// The opened store with its manifests.
    pub manifests: Arc<Manifests>,
    /// The store's URL or path as configured: where other programs find the files.
    pub store_url: String,
    /// Its lock tells whether a server is running.
    pub data_dir: PathBuf,
    pub clock: Arc<dyn Clock>,
}

/// Runs a command, its result going to `out`. The exit code is 1 if a check found something wrong.
pub async fn run(command: BlocksCommand, deps: &BlocksDeps, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let whole = match command {
        BlocksCommand::Ls { tenant, sql: true, .. } => sql::run(deps, tenant.as_ref(), out).await.map(|()| true),
        BlocksCommand::Ls { tenant, json, .. } => ls::run(deps, tenant.as_ref(), json, out).await.map(|()| true),
        BlocksCommand::Inspect { tenant, id, json } => {
            inspect::run(deps, tenant.as_ref(), id, json, out).await.map(|()| true)
        }
        BlocksCommand::Columns { tenant, json } => columns::run(deps, tenant.as_ref(), json, out).await.map(|()| true),
        BlocksCommand::Verify { tenant, json } => verify::run(deps, tenant.as_ref(), json, out).await,
        BlocksCommand::RebuildManifest { tenant, json } => rebuild::run(deps, tenant.as_ref(), json, out).await,
    }?;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
