//! Whether the bytes of a block are what the format says: rows decode, are in order, and agree with footer and summary.
//!
//! Owns the check of one block, given its bytes. Does not own where they come from, nor what the manifest says of them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use spanhouse_common::block::{
    BlockCache, BlockLocation, BlockMeta, BlockReader, KeySummary, Operation, Summary, TraceIdFilter, tail_length,
};
use spanhouse_common::caps::MAX_SUMMARY_VALUES;
use spanhouse_common::id::TraceId;
use spanhouse_common::model::{Attribute, Resource, Scope, StoredSpan, Value, typed_json};
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::tree::Tree;

/// Rows decoded to spans at a time, unless one trace has more.
const CHUNK_ROWS: usize = 16 * 1024;
/// Findings told of one block; a damaged page would otherwise give thousands.
const MAX_FINDINGS: usize = 20;

/// What is wrong with a block.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) list: Vec<String>,
    more: usize,
}

impl Findings {
    pub(super) fn add(&mut self, what: String) {
        if self.list.len() < MAX_FINDINGS { self.list.push(what) } else { self.more += 1 }
    }

    pub(super) fn finish(mut self) -> Vec<String> {
        if self.more > 0 {
            self.list.push(format!("and {} more", self.more));
        }
        self.list
    }
}

/// A block whose footer could be read.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) meta: BlockMeta,
    pub(super) tail_bytes: u64,
    /// A filter over the trace ids that are in the rows: what the sidecar must be.
    pub(super) filter: Bytes,
    /// In order, each once.
    pub(super) trace_ids: Vec<TraceId>,
}

/// Reads every row. An error means that the block is not readable; a readable block may still give findings.
pub(super) async fn check(parquet: &Bytes, findings: &mut Findings) -> anyhow::Result<Checked> {
    // A task of its own: damaged bytes that make a decoder panic are one more way of being unreadable.
    let parquet = parquet.clone();
    let task = tokio::spawn(async move {
        let mut findings = Findings::default();
        let checked = read_rows(&parquet, &mut findings).await;
        (checked, findings)
    });
    let (checked, found) = task.await.context("decoding the block")?;
    found.finish().into_iter().for_each(|finding| findings.add(finding));
    checked
}

async fn read_rows(parquet: &Bytes, findings: &mut Findings) -> anyhow::Result<Checked> {
    let file = parquet.clone();
    let tree = tokio::task::spawn_blocking(move || Tree::read(file)).await.context("reading the tree columns")??;
    let tail_bytes = tail_length(parquet).context("reading the footer")?;
    let mut trace_ids = tree.trace_ids.clone();
    trace_ids.dedup();
    let filter = Bytes::from(TraceIdFilter::build(trace_ids.iter().copied(), trace_ids.len())?.to_bytes());
    let reader = open(parquet, &filter, tail_bytes).await?;
    let meta = reader.meta().clone();
    tree.check(findings);
    let summary = reader.summary().context("reading the summary")?;
    let mut seen = Seen::new();
    let mut first_of_group = 0;
    let mut traces = tree.traces().peekable();
    for (group, rows) in tree.groups.iter().enumerate() {
        let end = first_of_group + rows;
        while let Some(first) = traces.next_if(|rows| rows.start < end) {
            let mut chunk = first;
            while let Some(next) = traces.next_if(|next| next.end <= end && next.end - chunk.start <= CHUNK_ROWS) {
                chunk.end = next.end;
            }
            let within = chunk.start - first_of_group..chunk.end.min(end) - first_of_group;
            let spans = reader.spans(group, within).await.with_context(|| format!("decoding rows {chunk:?}"))?;
            for (stored, row) in spans.iter().zip(chunk.clone()) {
                if stored.span.trace_id != tree.trace_ids[row] {
                    findings.add(format!("row {row}: two readers disagree about the trace id"));
                }
                seen.add(stored);
            }
            for of_trace in spans.chunk_by(|a, b| a.span.trace_id == b.span.trace_id) {
                let start = of_trace.iter().map(|s| s.span.start_unix_nano).min().unwrap_or(0);
                let end = of_trace.iter().map(|s| s.span.end_unix_nano).max().unwrap_or(0);
                let id = of_trace[0].span.trace_id;
                let row = tree.trace_ids.partition_point(|other| *other < id);
                if tree.trace_duration.get(row) != Some(&(end.wrapping_sub(start) as i64)) {
                    findings.add(format!("trace {id}: trace_duration_ns is not that of its spans"));
                }
            }
        }
        first_of_group = end;
    }
    let traces = trace_ids.len() as u64;
    let mut differs = |what: &str, said: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
        let (said, found) = (format!("{said:?}"), format!("{found:?}"));
        if said != found {
            findings.add(format!("{what}: the footer says {said}, the rows {found}"));
        }
    };
    differs("rows", &meta.rows, &(tree.rows() as u64));
    differs("spans", &meta.rows, &seen.spans);
    differs("traces", &meta.traces, &traces);
    differs("time range", &meta.range, &seen.range);
    differs("earliest start", &meta.min_start, &seen.starts.min);
    differs("latest start", &meta.max_start, &seen.starts.max);
    differs("lowest trace id", &meta.min_trace_id, &trace_ids.first().copied().unwrap_or_default());
    differs("highest trace id", &meta.max_trace_id, &trace_ids.last().copied().unwrap_or_default());
    seen.compare(&summary, findings);
    Ok(Checked { meta, tail_bytes, filter, trace_ids })
}

/// Opens a block out of memory.
async fn open(parquet: &Bytes, filter: &Bytes, tail_bytes: u64) -> anyhow::Result<Arc<BlockReader>> {
    let store = InMemory::new();
    let location = BlockLocation {
        parquet: Path::from("block.parquet"),
        filter: Path::from("block.filter"),
        bytes: parquet.len() as u64,
        tail_bytes,
    };
    store.put(&location.parquet, PutPayload::from(parquet.clone())).await?;
    store.put(&location.filter, PutPayload::from(filter.clone())).await?;
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    Ok(Arc::new(BlockReader::open(store, BlockCache::new(0), location).await?))
}

/// What the rows hold, counted the way the summary counts.
struct Seen {
    spans: u64,
    range: TimeRange,
    starts: TimeRange,
    attributes: [Keys; 5],
    resources: HashSet<String>,
    scopes: HashSet<String>,
    operations: BTreeMap<(String, String, i32), u64>,
}

const SPAN: usize = 0;
const EVENT: usize = 1;
const LINK: usize = 2;
const RESOURCE: usize = 3;
const SCOPE: usize = 4;
const SCOPE_NAMES: [&str; 5] = ["span", "event", "link", "resource", "scope"];

#[derive(Default)]
struct Keys(BTreeMap<String, ([u32; 5], BTreeSet<String>)>);

impl Keys {
    fn add(&mut self, attributes: &[Attribute]) {
        for attribute in attributes {
            if !self.0.contains_key(&attribute.key) {
                self.0.insert(attribute.key.clone(), Default::default());
            }
            let Some((counts, values)) = self.0.get_mut(&attribute.key) else { continue };
            let kind = match &attribute.value {
                Value::Str(_) => 0,
                Value::Int(_) => 1,
                Value::Double(_) => 2,
                Value::Bool(_) => 3,
                _ => 4,
            };
            counts[kind] += 1;
            if values.len() <= MAX_SUMMARY_VALUES {
                let mut text = String::new();
                typed_json::write_value(&attribute.value, &mut text);
                values.insert(text);
            }
        }
    }
}

impl Seen {
    fn new() -> Self {
        Self {
            spans: 0,
            range: TimeRange::EMPTY,
            starts: TimeRange::EMPTY,
            attributes: Default::default(),
            resources: HashSet::new(),
            scopes: HashSet::new(),
            operations: BTreeMap::new(),
        }
    }

    fn add(&mut self, stored: &StoredSpan) {
        let span = &stored.span;
        self.spans += 1;
        // Times from 2^63 on are in no range.
        if i64::try_from(span.start_unix_nano).is_ok() {
            self.range.include(UnixNanos(span.start_unix_nano));
            self.starts.include(UnixNanos(span.start_unix_nano));
        }
        if i64::try_from(span.end_unix_nano).is_ok() {
            self.range.include(UnixNanos(span.end_unix_nano));
        }
        self.attributes[SPAN].add(&span.attributes);
        span.events.iter().for_each(|event| self.attributes[EVENT].add(&event.attributes));
        span.links.iter().for_each(|link| self.attributes[LINK].add(&link.attributes));
        self.add_resource(&stored.resource);
        self.add_scope(&stored.scope);
        let service = stored.resource.service_name().unwrap_or_default().to_owned();
        *self.operations.entry((service, span.name.clone(), span.kind)).or_default() += 1;
    }

    fn add_resource(&mut self, resource: &Resource) {
        let mut text = String::new();
        typed_json::write_resource(resource, &mut text);
        if self.resources.insert(text) {
            self.attributes[RESOURCE].add(&resource.attributes);
        }
    }

    fn add_scope(&mut self, scope: &Scope) {
        let mut text = String::new();
        typed_json::write_scope(scope, &mut text);
        if self.scopes.insert(text) {
            self.attributes[SCOPE].add(&scope.attributes);
        }
    }

    fn compare(&self, summary: &Summary, findings: &mut Findings) {
        let said = [&summary.span, &summary.event, &summary.link, &summary.resource, &summary.scope];
        for ((name, said), found) in SCOPE_NAMES.iter().zip(said).zip(&self.attributes) {
            compare_keys(name, said, found, findings);
        }
        for Operation { service, name, kind, spans } in &summary.operations {
            let found = self.operations.get(&(service.clone(), name.clone(), *kind)).copied().unwrap_or(0);
            if found != *spans {
                findings.add(format!("summary: operation `{name}` of `{service}` has {spans} spans, the rows {found}"));
            }
        }
        if !summary.operations_cut && summary.operations.len() != self.operations.len() {
            let (said, found) = (summary.operations.len(), self.operations.len());
            findings.add(format!("summary: {said} operations, the rows {found}"));
        }
    }
}

fn compare_keys(scope: &str, said: &[KeySummary], found: &Keys, findings: &mut Findings) {
    for key in found.0.keys().filter(|key| !said.iter().any(|s| s.key == **key)) {
        findings.add(format!("summary: {scope} key `{key}` is missing"));
    }
    for KeySummary { key, counts, values, cut } in said {
        let Some((found_counts, found_values)) = found.0.get(key) else {
            findings.add(format!("summary: {scope} key `{key}` is in no row"));
            continue;
        };
        if counts != found_counts {
            findings.add(format!("summary: {scope} key `{key}` occurs {counts:?} times, in the rows {found_counts:?}"));
        }
        if !cut && !values.iter().collect::<BTreeSet<_>>().iter().copied().eq(found_values) {
            findings.add(format!("summary: the values of {scope} key `{key}` are not those of the rows"));
        }
    }
}
