//! `spanhouse compact plan`: what the compactor would merge now, and what all other blocks wait for. Reads manifests, no block.
//!
//! A server leaves blocks alone which it found damaged; this command does not know of them, `/status/compactor` names them.

use std::io::Write;

use serde_json::json;
use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::manifest::Window;
use spanhouse_common::time::UnixNanos;
use spanhouse_compactor::policy::{Plan, plan};

use super::CompactSettings;
use crate::blocks::BlocksDeps;
use crate::blocks::catalog::{self, TenantBlocks};
use crate::blocks::text::{self, Table};

pub(super) async fn run(
    deps: &BlocksDeps,
    settings: &CompactSettings,
    only: Option<&TenantId>,
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let now = deps.clock.now();
    let tenants = catalog::load(deps, only).await?;
    let plans: Vec<(&TenantBlocks, Plan)> = tenants
        .iter()
        .map(|of| {
            let retention = settings.retention.of(&of.tenant);
            (of, plan(&of.state, now, retention, &Default::default(), &settings.policy))
        })
        .collect();
    if as_json {
        let all: Vec<_> = plans.iter().map(|(of, plan)| json_of(of, plan, now)).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    write_table(&plans, out)
}

fn json_of(of: &TenantBlocks, plan: &Plan, now: UnixNanos) -> serde_json::Value {
    let ids = |ids: &[BlockId]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>();
    let window = |window: Option<Window>| window.map(|window| json!({ "start": window.start, "length": window.length }));
    let merges: Vec<_> = plan
        .jobs
        .iter()
        .map(|job| {
            json!({
                "window": window(job.window), "level": job.level, "inputs": ids(&job.inputs),
                "spans": job.rows, "bytes": job.bytes, "why": job.why.to_string(),
            })
        })
        .collect();
    let waiting: Vec<_> = plan
        .waiting
        .iter()
        .map(|waiting| {
            json!({
                "window": window(waiting.window), "blocks": ids(&waiting.blocks),
                "spans": waiting.rows, "bytes": waiting.bytes, "why": waiting.why.to_string(),
            })
        })
        .collect();
    json!({
        "tenant": of.tenant.as_str(), "manifest_version": of.state.version, "time": now.to_string(),
        "merges": merges, "waiting": waiting, "deleted_traces": of.state.tombstones.len(),
    })
}

fn write_table(plans: &[(&TenantBlocks, Plan)], out: &mut impl Write) -> anyhow::Result<()> {
    let mut table = Table::new(&["TENANT", "WHAT", "WINDOW", ">BLOCKS", ">SPANS", ">BYTES", "WHY"]);
    let mut merges = (0, 0, 0);
    let mut waits = 0;
    for (of, plan) in plans {
        let row = |what: String, window: Option<Window>, blocks: &[BlockId], rows: u64, bytes: u64, why: String| {
            let (blocks, rows) = (blocks.len().to_string(), rows.to_string());
            [of.tenant.to_string(), what, text::window(window), blocks, rows, text::bytes(bytes), why]
        };
        for job in &plan.jobs {
            let what = format!("merge to level {}", job.level);
            table.row(row(what, job.window, &job.inputs, job.rows, job.bytes, job.why.to_string()));
            merges = (merges.0 + 1, merges.1 + job.inputs.len(), merges.2 + job.rows);
        }
        for waiting in &plan.waiting {
            let why = waiting.why.to_string();
            table.row(row("leave".into(), waiting.window, &waiting.blocks, waiting.rows, waiting.bytes, why));
            waits += waiting.blocks.len();
        }
    }
    if merges.0 + waits > 0 {
        table.write(out)?;
    }
    let (count, blocks, spans) = merges;
    writeln!(out, "due: {count} merges of {blocks} blocks with {spans} spans; left as they are: {waits} blocks")?;
    let deleted: usize = plans.iter().map(|(of, _)| of.state.tombstones.len()).sum();
    if deleted > 0 {
        writeln!(
            out,
            "deleted traces: {deleted}; blocks that hold one are written anew after 6 h, by `compact run` at once"
        )?;
    }
    Ok(())
}
