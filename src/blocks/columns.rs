//! `blocks columns`: what each column costs, summed over blocks. Reads footers only.

use std::collections::BTreeMap;
use std::io::Write;

use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use spanhouse_common::id::TenantId;

use super::text::{self, Table};
use super::{BlocksDeps, catalog};

/// Footers read at a time.
const READ_AHEAD: usize = 16;

#[derive(Debug, Default, Serialize)]
struct Column {
    column: String,
    bytes: u64,
    uncompressed_bytes: u64,
    filter_bytes: u64,
    /// Blocks that have the column.
    blocks: u64,
    bytes_per_span: f64,
    percent: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    blocks: u64,
    spans: u64,
    bytes: u64,
    bytes_per_span: f64,
    columns: Vec<Column>,
}

pub(super) async fn run(
    deps: &BlocksDeps,
    tenant: Option<&TenantId>,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let report = collect(deps, tenant).await?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
        return Ok(());
    }
    let mut table = Table::new(&["COLUMN", ">BYTES", ">B/SPAN", ">%", ">RATIO", ">FILTER", ">BLOCKS"]);
    for column in &report.columns {
        table.row([
            column.column.clone(),
            column.bytes.to_string(),
            format!("{:.3}", column.bytes_per_span),
            format!("{:.1}", column.percent),
            text::ratio(column.uncompressed_bytes, column.bytes),
            if column.filter_bytes > 0 { column.filter_bytes.to_string() } else { String::new() },
            column.blocks.to_string(),
        ]);
    }
    table.write(out)?;
    let (size, per_span) = (text::bytes(report.bytes), text::ratio(report.bytes, report.spans));
    writeln!(out, "{} blocks, {} spans, {size}, {per_span} B/span", report.blocks, report.spans)?;
    Ok(())
}

async fn collect(deps: &BlocksDeps, tenant: Option<&TenantId>) -> anyhow::Result<Report> {
    let tenants = catalog::load(deps, tenant).await?;
    let entries: Vec<_> = tenants.iter().flat_map(|blocks| blocks.entries()).collect();
    let readers = stream::iter(entries.iter().copied())
        .map(|(tenant, entry)| async move { catalog::open(deps, tenant, entry).await.map(|reader| (entry, reader)) });
    let mut readers = std::pin::pin!(readers.buffered(READ_AHEAD));
    let mut columns: BTreeMap<String, Column> = BTreeMap::new();
    let (mut spans, mut bytes, mut in_columns, mut id_filters) = (0, 0, 0, 0);
    while let Some((entry, reader)) = readers.try_next().await? {
        spans += entry.rows;
        bytes += entry.size_bytes + entry.filter_bytes;
        id_filters += entry.filter_bytes;
        for (at, group) in reader.parquet().row_groups().iter().enumerate() {
            for chunk in group.columns() {
                let column = columns.entry(chunk.column_path().string()).or_default();
                let filter = chunk.bloom_filter_length().map_or(0, |length| u64::try_from(length).unwrap_or(0));
                let size = u64::try_from(chunk.compressed_size()).unwrap_or(0) + filter;
                in_columns += size;
                column.bytes += size;
                column.filter_bytes += filter;
                column.uncompressed_bytes += u64::try_from(chunk.uncompressed_size()).unwrap_or(0);
                column.blocks += u64::from(at == 0);
            }
        }
    }
    let packs = tenants.iter().flat_map(|blocks| blocks.state.packs.values()).map(|pack| pack.size_bytes).sum::<u64>();
    bytes += packs;
    id_filters += packs;
    let blocks = entries.len() as u64;
    let footers = Column { bytes: bytes.saturating_sub(in_columns + id_filters), blocks, ..Column::default() };
    columns.insert("(footers and page indexes)".to_owned(), footers);
    columns.insert("(trace-id filters)".to_owned(), Column { bytes: id_filters, blocks, ..Column::default() });
    let per_span = |bytes: u64| bytes as f64 / spans.max(1) as f64;
    let finish = |(name, column): (String, Column)| Column {
        column: name,
        bytes_per_span: per_span(column.bytes),
        percent: column.bytes as f64 * 100.0 / bytes.max(1) as f64,
        ..column
    };
    let mut columns: Vec<Column> = columns.into_iter().map(finish).collect();
    columns.sort_by_key(|column| std::cmp::Reverse(column.bytes));
    Ok(Report { blocks, spans, bytes, bytes_per_span: per_span(bytes), columns })
}
