//! `spanhouse compact run`: every merge that is due, one after the other.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use spanhouse_common::budget::Share;
use spanhouse_common::id::TenantId;
use spanhouse_compactor::CompactorMetrics;
use spanhouse_compactor::merge::{Done, Merger, Progress, TaskError};
use spanhouse_compactor::merging::{Due, MergeLimits, Merging};
use tokio::task::JoinHandle;

use super::CompactSettings;
use crate::blocks::BlocksDeps;
use crate::blocks::catalog;
use crate::blocks::text::{Table, bytes};

/// The bar of the merge under way; it is moved until dropped.
struct Bar {
    bar: ProgressBar,
    mover: JoinHandle<()>,
}

impl Bar {
    /// Reading counts as half of the way, in spans.
    fn start(tenant: &TenantId, due: &Due, progress: &Arc<Progress>) -> Self {
        let spans: u64 = due.task.inputs.iter().map(|entry| entry.rows).sum();
        let size: u64 = due.task.inputs.iter().map(|entry| entry.size_bytes).sum();
        let bar = ProgressBar::new(spans * 2);
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:40}] {percent}% {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(tenant.to_string());
        bar.set_message(format!("{} blocks, {spans} spans, {}", due.task.inputs.len(), bytes(size)));
        let (moved, progress) = (bar.clone(), Arc::clone(progress));
        let mover = tokio::spawn(async move {
            loop {
                let read = progress.fetched.load(Relaxed).min(size) as f64 / size.max(1) as f64;
                moved.set_position((read * spans as f64) as u64 + progress.merged.load(Relaxed).min(spans));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { bar, mover }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.mover.abort();
        self.bar.finish_and_clear();
    }
}

/// One merge that ended, for the table.
struct Line {
    tenant: TenantId,
    due: Due,
    end: Result<Done, String>,
}

/// Returns whether nothing failed.
pub(super) async fn run(
    deps: &BlocksDeps,
    settings: &CompactSettings,
    only: Option<&TenantId>,
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let merger = Merger {
        store: Arc::clone(deps.manifests.store()),
        clock: Arc::clone(&deps.clock),
        memory: Share::new("compaction", settings.memory_bytes),
        spool_dir: settings.spool_dir.clone(),
    };
    let (mut lines, mut whole) = (Vec::new(), true);
    for tenant in catalog::tenants(deps, only).await? {
        let Some(manifest) = deps.manifests.for_reading(&tenant).await? else { continue };
        manifest.refresh().await?;
        let limits = MergeLimits {
            retention: settings.retention.of(&tenant),
            policy: settings.policy,
            most: usize::MAX,
            // Whoever asks for it by hand does not want to wait.
            rewrite_after: Duration::ZERO,
        };
        let mut bar = None;
        let mut merging = Merging::default();
        let show = |due: &Due, progress: &Arc<Progress>, result: Option<&Result<Done, TaskError>>| match result {
            None => bar = Some(Bar::start(&tenant, due, progress)),
            Some(result) => {
                bar = None;
                let end = match result {
                    Ok(done) => Ok(done.clone()),
                    Err(error) => Err(error.to_string()),
                };
                lines.push(Line { tenant: tenant.clone(), due: due.clone(), end });
            }
        };
        let turn = merging.turn(&merger, &manifest, &limits, &CompactorMetrics::default(), show).await;
        whole &= turn.is_ok() && merging.quarantined().is_empty();
        if let Err(error) = turn {
            eprintln!("error: tenant {tenant}: {error}");
        }
    }
    if as_json {
        let all: Vec<_> = lines.iter().map(json_of).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        write_table(&lines, out)?;
    }
    Ok(whole)
}

fn json_of(line: &Line) -> serde_json::Value {
    let inputs: Vec<String> = line.due.task.inputs.iter().map(|entry| entry.id.to_string()).collect();
    let mut value = json!({
        "tenant": line.tenant.as_str(),
        "inputs": inputs,
        "level": line.due.task.level,
        "why": line.due.why,
    });
    value["result"] = match &line.end {
        Err(error) => json!({ "error": error }),
        Ok(done) => json!({
            "output": done.output.map(|id| id.to_string()),
            "spans_in": done.rows_in,
            "spans_out": done.rows_out,
            "bytes_in": done.bytes_in,
            "bytes_out": done.bytes_out,
            "duplicates_removed": done.duplicates_removed,
            "expired": done.expired,
            "deleted": done.dropped,
        }),
    };
    value
}

fn write_table(lines: &[Line], out: &mut impl Write) -> anyhow::Result<()> {
    if lines.is_empty() {
        writeln!(out, "nothing to merge: `spanhouse compact plan` says what each block waits for")?;
        return Ok(());
    }
    let headings = ["TENANT", ">LEVEL", ">BLOCKS", ">SPANS", ">BEFORE", ">AFTER", ">COPIES", ">DROPPED", "WHY"];
    let mut table = Table::new(&headings);
    let (mut merges, mut spans) = (0u64, 0u64);
    for Line { tenant, due, end } in lines {
        let head = [tenant.to_string(), due.task.level.to_string(), due.task.inputs.len().to_string()];
        let rest = match end {
            Ok(done) => {
                merges += 1;
                spans += done.rows_in;
                [
                    done.rows_out.to_string(),
                    bytes(done.bytes_in),
                    bytes(done.bytes_out),
                    done.duplicates_removed.to_string(),
                    (done.dropped + done.expired).to_string(),
                    due.why.clone(),
                ]
            }
            Err(error) => {
                let none = || "-".to_owned();
                [none(), none(), none(), none(), none(), format!("not done: {error}")]
            }
        };
        table.row(head.into_iter().chain(rest));
    }
    table.write(out)?;
    writeln!(out, "{merges} merges of {spans} spans")?;
    Ok(())
}
