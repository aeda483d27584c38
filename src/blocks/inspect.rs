//! `blocks inspect`: all that one block says of itself, and what its columns cost. Reads the whole file, to count nulls.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use object_store::ObjectStoreExt;
use parquet::column::page::Page;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::serialized_reader::SerializedPageReader;
use serde::Serialize;
use spanhouse_common::block::{BlockLocation, BlockMeta, KeySummary, Summary};
use spanhouse_common::id::{BlockId, PackId, TenantId};
use spanhouse_common::manifest::BlockEntry;

use super::text::{self, Table};
use super::{BlocksDeps, catalog, ls, packs};

/// Values listed per key for people; JSON has them all.
const SHOWN_VALUES: usize = 5;
/// Operations listed for people.
const SHOWN_OPERATIONS: usize = 20;

#[derive(Debug, Serialize)]
struct Report<'a> {
    path: String,
    entry: &'a BlockEntry,
    /// The pack that has a copy of its filter.
    filter_pack: Option<PackId>,
    meta: &'a BlockMeta,
    row_groups: Vec<RowGroup>,
    columns: Vec<Column>,
    summary: &'a Summary,
}

#[derive(Debug, Serialize)]
struct RowGroup {
    rows: i64,
    bytes: i64,
    uncompressed_bytes: i64,
}

/// A column over all row groups.
#[derive(Debug, Default, Serialize)]
struct Column {
    column: String,
    kind: String,
    encodings: Vec<String>,
    bytes: u64,
    uncompressed_bytes: u64,
    bytes_per_span: f64,
    pages: u64,
    values: u64,
    nulls: u64,
    filter_bytes: u64,
}

pub(super) async fn run(
    deps: &BlocksDeps,
    tenant: Option<&TenantId>,
    id: BlockId,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let (blocks, entry) = catalog::find(deps, tenant, id).await?;
    let tenant = &blocks.tenant;
    let reader = catalog::open(deps, tenant, &entry).await?;
    let location = BlockLocation::of(tenant, &entry);
    let object = async { deps.manifests.store().get(&location.parquet).await?.bytes().await };
    let file = object.await.with_context(|| format!("reading {}", location.parquet))?;
    let summary = reader.summary()?;
    let metadata = reader.parquet();
    let groups = metadata.row_groups().iter().map(|group| RowGroup {
        rows: group.num_rows(),
        bytes: group.compressed_size(),
        uncompressed_bytes: group.total_byte_size(),
    });
    let report = Report {
        path: location.parquet.to_string(),
        entry: &entry,
        filter_pack: packs::of_block(&blocks.state, id),
        meta: reader.meta(),
        row_groups: groups.collect(),
        columns: columns(&file, metadata)?,
        summary: &summary,
    };
    if json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
        return Ok(());
    }
    print(&report, out)
}

fn columns(file: &Bytes, metadata: &ParquetMetaData) -> anyhow::Result<Vec<Column>> {
    let rows = metadata.file_metadata().num_rows().max(1) as f64;
    let mut columns: Vec<Column> = Vec::new();
    for group in metadata.row_groups() {
        columns.resize_with(group.num_columns(), Column::default);
        for (column, chunk) in columns.iter_mut().zip(group.columns()) {
            add_chunk(column, chunk, file, group.num_rows() as usize)
                .with_context(|| format!("reading the pages of `{}`", chunk.column_path().string()))?;
        }
    }
    columns.iter_mut().for_each(|column| column.bytes_per_span = column.bytes as f64 / rows);
    Ok(columns)
}

fn add_chunk(column: &mut Column, chunk: &ColumnChunkMetaData, file: &Bytes, rows: usize) -> anyhow::Result<()> {
    let descriptor = chunk.column_descr();
    column.column = chunk.column_path().string();
    column.kind = match descriptor.logical_type_ref() {
        Some(logical) => format!("{} {logical:?}", descriptor.physical_type()),
        None => descriptor.physical_type().to_string(),
    };
    column.bytes += u64::try_from(chunk.compressed_size()).unwrap_or(0);
    column.uncompressed_bytes += u64::try_from(chunk.uncompressed_size()).unwrap_or(0);
    column.filter_bytes += chunk.bloom_filter_length().map_or(0, |length| u64::try_from(length).unwrap_or(0));
    for page in SerializedPageReader::new(Arc::new(file.clone()), chunk, rows, None)? {
        if let Page::DataPageV2 { num_values, num_nulls, encoding, .. } = page? {
            column.pages += 1;
            column.values += u64::from(num_values - num_nulls);
            column.nulls += u64::from(num_nulls);
            let encoding = encoding.to_string();
            if !column.encodings.contains(&encoding) {
                column.encodings.push(encoding);
            }
        }
    }
    Ok(())
}

fn print(report: &Report<'_>, out: &mut impl Write) -> anyhow::Result<()> {
    let (entry, meta) = (report.entry, report.meta);
    let (from, to) = ls::range(entry.range);
    let size = format!("{} + {} filter", text::bytes(entry.size_bytes), text::bytes(entry.filter_bytes));
    let list = |ids: &[BlockId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let wal: Vec<String> = entry.wal.iter().map(|w| format!("{} after {} up to {}", w.writer, w.from, w.to)).collect();
    let mut facts = Table::new(&["BLOCK", &entry.id.to_string()]);
    for (name, value) in [
        ("object", report.path.clone()),
        ("tenant", meta.origin.tenant.to_string()),
        ("created", text::time(meta.origin.created)),
        ("window", text::window(entry.window)),
        ("level", entry.level.to_string()),
        ("rows", format!("{} in {} traces", entry.rows, entry.traces)),
        ("duplicates removed", meta.duplicates_removed.to_string()),
        ("bytes", format!("{size}, {} B/span", text::ratio(entry.size_bytes + entry.filter_bytes, entry.rows))),
        ("footer", text::bytes(u64::from(entry.footer_bytes))),
        ("filter pack", report.filter_pack.map_or_else(|| "none".to_owned(), |id| id.to_string())),
        ("crc32c", format!("{:08x}", entry.crc32c)),
        ("times", format!("{from} to {to}")),
        ("received until", text::time(entry.received_max)),
        ("trace ids", format!("{} to {}", entry.min_trace_id, entry.max_trace_id)),
        ("wal", wal.join(", ")),
        ("replaces", list(&entry.replaces)),
    ] {
        facts.row([name.to_owned(), value]);
    }
    facts.write(out)?;

    writeln!(out)?;
    let mut groups = Table::new(&[">ROW GROUP", ">ROWS", ">BYTES", ">UNCOMPRESSED"]);
    for (at, group) in report.row_groups.iter().enumerate() {
        let numbers = [at as i64, group.rows, group.bytes, group.uncompressed_bytes];
        groups.row(numbers.map(|number| number.to_string()));
    }
    groups.write(out)?;

    writeln!(out)?;
    let mut columns =
        Table::new(&["COLUMN", "TYPE", "ENCODING", ">BYTES", ">B/SPAN", ">PAGES", ">VALUES", ">NULLS", ">FILTER"]);
    for column in &report.columns {
        columns.row([
            column.column.clone(),
            column.kind.clone(),
            column.encodings.join(" "),
            column.bytes.to_string(),
            format!("{:.3}", column.bytes_per_span),
            column.pages.to_string(),
            column.values.to_string(),
            column.nulls.to_string(),
            if column.filter_bytes > 0 { column.filter_bytes.to_string() } else { String::new() },
        ]);
    }
    columns.write(out)?;

    writeln!(out)?;
    let mut keys = Table::new(&["SCOPE", "KEY", ">STRING", ">INT", ">DOUBLE", ">BOOL", ">OTHER", "VALUES"]);
    let summary = report.summary;
    let scopes = [
        ("span", &summary.span),
        ("event", &summary.event),
        ("link", &summary.link),
        ("resource", &summary.resource),
        ("scope", &summary.scope),
    ];
    for (scope, key) in scopes.iter().flat_map(|(scope, keys)| keys.iter().map(move |key| (scope, key))) {
        let counts = key.counts.iter().map(ToString::to_string);
        keys.row([(*scope).to_owned(), key.key.clone()].into_iter().chain(counts).chain([values(key)]));
    }
    keys.write(out)?;

    writeln!(out)?;
    let mut operations = Table::new(&["SERVICE", "OPERATION", ">KIND", ">SPANS"]);
    for operation in summary.operations.iter().take(SHOWN_OPERATIONS) {
        let (kind, spans) = (operation.kind.to_string(), operation.spans.to_string());
        operations.row([operation.service.clone(), operation.name.clone(), kind, spans]);
    }
    operations.write(out)?;
    let hidden = summary.operations.len().saturating_sub(SHOWN_OPERATIONS);
    if hidden > 0 || summary.operations_cut {
        let cut = if summary.operations_cut { ", and more that the summary does not list" } else { "" };
        writeln!(out, "and {hidden} more{cut}")?;
    }
    Ok(())
}

fn values(key: &KeySummary) -> String {
    if key.cut {
        return "(not listed)".to_owned();
    }
    let shown: Vec<&str> = key.values.iter().take(SHOWN_VALUES).map(String::as_str).collect();
    let more = if key.values.len() > SHOWN_VALUES { ", .." } else { "" };
    format!("{}{more}", shown.join(", "))
}
