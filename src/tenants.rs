//! `spanhouse tenants`: what each tenant has stored, since when, and how long it is kept. Reads manifests, no block.
//!
//! Owns what is printed. Does not own where retention comes from (the overrides of the ingester role). What is live is in no
//! manifest yet, and not counted.

use std::io::Write;

use serde::Serialize;
use spanhouse_common::id::TenantId;
use spanhouse_common::time::UnixNanos;
use spanhouse_common::units::show_duration;
use spanhouse_ingester::admission::overrides::Overrides;

use crate::blocks::BlocksDeps;
use crate::blocks::catalog::{self, TenantBlocks};
use crate::blocks::text::{self, Table};

#[derive(Debug, Serialize)]
struct Tenant {
    tenant: TenantId,
    blocks: usize,
    spans: u64,
    /// Of all objects, packs of filters included.
    bytes: u64,
    /// Start of the oldest span in a window; `None` without one.
    oldest_span: Option<UnixNanos>,
    /// Spans whose start is past retention or in the future as they came.
    outlier_spans: u64,
    /// Latest arrival of a span that is in a block.
    last_received: Option<UnixNanos>,
    deleted_traces: usize,
    retention_seconds: u64,
    /// Where the retention is set.
    retention_from: String,
}

impl Tenant {
    fn of(blocks: &TenantBlocks, overrides: &Overrides) -> Self {
        let (tenant, state) = (&blocks.tenant, &blocks.state);
        let entries = || state.blocks.values();
        let packs: u64 = state.packs.values().map(|pack| pack.size_bytes).sum();
        Self {
            tenant: tenant.clone(),
            blocks: state.blocks.len(),
            spans: entries().map(|entry| entry.rows).sum(),
            bytes: entries().map(|entry| entry.size_bytes + entry.filter_bytes).sum::<u64>() + packs,
            oldest_span: entries().filter(|entry| entry.window.is_some()).map(|entry| entry.min_start).min(),
            outlier_spans: entries().filter(|entry| entry.window.is_none()).map(|entry| entry.rows).sum(),
            last_received: entries().map(|entry| entry.received_max).max(),
            deleted_traces: state.tombstones.len(),
            retention_seconds: overrides.limits(tenant).retention.as_secs(),
            retention_from: overrides.retention_source(tenant).to_string(),
        }
    }
}

/// Lists `only` this tenant or all of the store.
pub async fn run(
    deps: &BlocksDeps,
    overrides: &Overrides,
    only: Option<&TenantId>,
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let blocks = catalog::load(deps, only).await?;
    let all: Vec<Tenant> = blocks.iter().map(|blocks| Tenant::of(blocks, overrides)).collect();
    if as_json {
        serde_json::to_writer_pretty(&mut *out, &all)?;
        writeln!(out)?;
        return Ok(());
    }
    let headings = [
        "TENANT",
        ">BLOCKS",
        ">SPANS",
        ">BYTES",
        ">B/SPAN",
        "OLDEST SPAN",
        ">OUTLIERS",
        "LAST RECEIVED",
        ">DELETED",
        ">RETENTION",
        "SET BY",
    ];
    let mut table = Table::new(&headings);
    let time = |at: Option<UnixNanos>| at.map_or_else(|| "-".to_owned(), text::time);
    for one in &all {
        table.row([
            one.tenant.to_string(),
            one.blocks.to_string(),
            one.spans.to_string(),
            text::bytes(one.bytes),
            text::ratio(one.bytes, one.spans),
            time(one.oldest_span),
            one.outlier_spans.to_string(),
            time(one.last_received),
            one.deleted_traces.to_string(),
            show_duration(std::time::Duration::from_secs(one.retention_seconds)),
            one.retention_from.clone(),
        ]);
    }
    if !all.is_empty() {
        table.write(out)?;
    }
    let (spans, bytes) = all.iter().fold((0, 0), |(spans, bytes), one| (spans + one.spans, bytes + one.bytes));
    let word = if all.len() == 1 { "tenant" } else { "tenants" };
    writeln!(
        out,
        "{} {word}, {spans} spans in blocks, {}; what is still live is not counted",
        all.len(),
        text::bytes(bytes)
    )?;
    Ok(())
}
