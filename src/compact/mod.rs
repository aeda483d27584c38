//! `spanhouse compact`: see what the compactor would do, and do it by hand.
//!
//! Owns what the sub-commands print. Does not own which blocks are merged nor how (the compactor role). Both may run beside a server:
//! two compactors at the same blocks lose nothing.

mod plan;
mod run;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use spanhouse_common::id::TenantId;
use spanhouse_common::retention::Retention;
use spanhouse_compactor::policy::PolicyConfig;

use crate::blocks::BlocksDeps;

/// What to do. `tenant: None` means every tenant of the store.
#[derive(Clone, Debug)]
pub enum CompactCommand {
    /// Shows which merges are due and why other blocks wait. Reads manifests, no block.
    Plan { tenant: Option<TenantId>, json: bool },
    /// Runs every merge that is due, and rewrites blocks that hold deleted traces.
    Run { tenant: Option<TenantId>, json: bool },
}

/// What the commands work with beside the store.
#[derive(Debug)]
pub struct CompactSettings {
    pub policy: PolicyConfig,
    pub retention: Retention,
    /// Bytes that merges may take.
    pub memory_bytes: usize,
    pub spool_dir: PathBuf,
}

/// Runs a command, its result going to `out`. The exit code is 1 if a merge failed or a block was found damaged.
pub async fn run(
    command: CompactCommand,
    deps: &BlocksDeps,
    settings: &CompactSettings,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let whole = match command {
        CompactCommand::Plan { tenant, json } => {
            plan::run(deps, settings, tenant.as_ref(), json, out).await.map(|()| true)?
        }
        CompactCommand::Run { tenant, json } => run::run(deps, settings, tenant.as_ref(), json, out).await?,
    };
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
