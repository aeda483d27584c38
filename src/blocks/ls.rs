//! `blocks ls`: the blocks of the newest manifest version. Reads manifests, no block.

use std::io::Write;

use serde::Serialize;
use spanhouse_common::block::BlockLocation;
use spanhouse_common::id::TenantId;
use spanhouse_common::manifest::BlockEntry;
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::packs::{self, Pack};
use super::text::{self, Table};
use super::{BlocksDeps, catalog};

#[derive(Serialize)]
struct Tenant<'a> {
    tenant: &'a TenantId,
    manifest_version: u64,
    damage: &'a Option<String>,
    blocks: Vec<Block<'a>>,
    filter_packs: Vec<Pack<'a>>,
}

#[derive(Serialize)]
struct Block<'a> {
    path: String,
    bytes_per_span: f64,
    #[serde(flatten)]
    entry: &'a BlockEntry,
}

pub(super) async fn run(
    deps: &BlocksDeps,
    tenant: Option<&TenantId>,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let tenants = catalog::load(deps, tenant).await?;
    if json {
        let all: Vec<Tenant<'_>> = tenants
            .iter()
            .map(|blocks| Tenant {
                tenant: &blocks.tenant,
                manifest_version: blocks.state.version,
                damage: &blocks.damage,
                blocks: blocks.entries().map(|(tenant, entry)| describe(tenant, entry)).collect(),
                filter_packs: blocks.state.packs.values().map(|pack| packs::describe(blocks, pack)).collect(),
            })
            .collect();
        serde_json::to_writer_pretty(&mut *out, &all)?;
        writeln!(out)?;
        return Ok(());
    }
    let mut table =
        Table::new(&["TENANT", "BLOCK", "WINDOW", ">LEVEL", ">ROWS", ">TRACES", ">BYTES", ">B/SPAN", "FROM", "TO", ">AGE"]);
    let (mut count, mut rows, mut bytes) = (0, 0, 0);
    for (tenant, entry) in tenants.iter().flat_map(|blocks| blocks.entries()) {
        let size = entry.size_bytes + entry.filter_bytes;
        (count, rows, bytes) = (count + 1, rows + entry.rows, bytes + size);
        let (from, to) = range(entry.range);
        table.row([
            tenant.to_string(),
            entry.id.to_string(),
            text::window(entry.window),
            entry.level.to_string(),
            entry.rows.to_string(),
            entry.traces.to_string(),
            text::bytes(size),
            text::ratio(size, entry.rows),
            from,
            to,
            text::age(deps.clock.now().as_seconds().saturating_sub(made(entry).as_seconds())),
        ]);
    }
    if count > 0 {
        table.write(out)?;
    }
    let blocks = if count == 1 { "block" } else { "blocks" };
    let of_packs = || tenants.iter().flat_map(|blocks| blocks.state.packs.values());
    bytes += of_packs().map(|pack| pack.size_bytes).sum::<u64>();
    let packs = packs::count(of_packs().count() as u64);
    let (size, per_span) = (text::bytes(bytes), text::ratio(bytes, rows));
    writeln!(out, "{count} {blocks}{packs}, {rows} spans, {size}, {per_span} B/span")?;
    Ok(())
}

fn describe<'a>(tenant: &TenantId, entry: &'a BlockEntry) -> Block<'a> {
    let bytes = (entry.size_bytes + entry.filter_bytes) as f64;
    let path = BlockLocation::of(tenant, entry).parquet.to_string();
    Block { path, bytes_per_span: bytes / entry.rows.max(1) as f64, entry }
}

/// When the block was made: its id holds the time, as a UUID of version 7.
fn made(entry: &BlockEntry) -> UnixNanos {
    entry.id.made().unwrap_or(entry.received_max)
}

pub(super) fn range(range: TimeRange) -> (String, String) {
    if range.min > range.max { ("-".to_owned(), "-".to_owned()) } else { (text::time(range.min), text::time(range.max)) }
}
