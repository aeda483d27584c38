//! What goes into a block comes out of it: through our reader, through the parquet crate's own, and never with a panic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;
use prost::Message;
use spanhouse_common::batch::{SpanBatch, merge};
use spanhouse_common::block::{
    Block, BlockCache, BlockInput, BlockLocation, BlockOrigin, BlockReader, WriterOptions, write_block,
};
use spanhouse_common::id::{BlockId, TenantId, TraceId};
use spanhouse_common::model::{Attribute, StoredSpan, Value, typed_json};
use spanhouse_common::source::{Source, SourceError};
use spanhouse_common::time::UnixNanos;
use spanhouse_proto::otlp_common::{AnyValue, KeyValue, any_value::Value as Any};
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span, span};

use super::generate::{Dice, Generator, scramble};
use super::{WalkOptions, stored, walk};

pub(super) fn origin() -> BlockOrigin {
    BlockOrigin {
        id: BlockId::generate(),
        tenant: TenantId::single(),
        created: UnixNanos(1_700_000_000_000_000_000),
        window: None,
        level: 0,
        wal: Vec::new(),
        inputs: Vec::new(),
        replaces: Vec::new(),
    }
}

pub(super) fn write(batches: &[Arc<SpanBatch>], row_group_rows: usize) -> Block {
    let input = BlockInput { batches: batches.to_vec(), rows: vec![None; batches.len()] };
    write_block(&input, origin(), WriterOptions { row_group_rows, ..WriterOptions::default() }).unwrap()
}

pub(super) async fn open(parquet: Bytes, filter: Bytes, tail_bytes: u64) -> Result<Arc<BlockReader>, SourceError> {
    let store = Arc::new(InMemory::new());
    let location = BlockLocation {
        parquet: Path::from("spans.parquet"),
        filter: Path::from("trace-ids.filter"),
        bytes: parquet.len() as u64,
        tail_bytes,
    };
    store.put(&location.parquet, parquet.into()).await.unwrap();
    store.put(&location.filter, filter.into()).await.unwrap();
    let store: Arc<dyn ObjectStore> = store;
    Ok(Arc::new(BlockReader::open(store, BlockCache::new(64 << 20), location).await?))
}

pub(super) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

/// A span in one text, equal exactly if the spans are equal in every bit.
pub(super) fn text_of(stored: &StoredSpan) -> String {
    let mut text = String::new();
    let mut span = stored.span.clone();
    let mut put = |attributes: &mut Vec<Attribute>| typed_json::push_attributes(&std::mem::take(attributes), &mut text);
    put(&mut span.attributes);
    span.events.iter_mut().for_each(|event| put(&mut event.attributes));
    span.links.iter_mut().for_each(|link| put(&mut link.attributes));
    typed_json::write_resource(&stored.resource, &mut text);
    typed_json::write_scope(&stored.scope, &mut text);
    format!("{span:?} {text}")
}

/// The texts of spans, sorted.
pub(super) fn texts<'s>(spans: impl IntoIterator<Item = &'s StoredSpan>) -> Vec<String> {
    let mut all: Vec<String> = spans.into_iter().map(text_of).collect();
    all.sort_unstable();
    all
}

/// Reads a block in all ways and compares with what went into it: each distinct span once.
pub(super) fn assert_block_holds(block: &Block, spans: &[StoredSpan]) {
    let distinct: BTreeMap<String, &StoredSpan> = spans.iter().map(|span| (text_of(span), span)).collect();
    let mut traces: BTreeMap<TraceId, BTreeSet<&String>> = BTreeMap::new();
    for (text, span) in &distinct {
        traces.entry(span.span.trace_id).or_default().insert(text);
    }
    assert_eq!(block.meta.rows, distinct.len() as u64);
    assert_eq!(block.meta.traces, traces.len() as u64);
    assert_eq!(block.meta.duplicates_removed, (spans.len() - distinct.len()) as u64);
    block_on(async {
        let reader = open(block.parquet.clone(), block.filter.clone(), block.tail_bytes).await.unwrap();
        assert_eq!(reader.meta(), &block.meta);
        reader.summary().unwrap();
        let all = reader.all_spans().await.unwrap();
        assert!(texts(&all).iter().eq(distinct.keys()), "{:#?}\n{:#?}", texts(&all), distinct.keys());
        for (id, expected) in &traces {
            let found = reader.find_trace(*id).await.unwrap();
            assert!(texts(&found.spans).iter().eq(expected.iter().copied()), "trace {id}");
        }
        for absent in [[0; 16], [0xff; 16], [0x55; 16]].map(TraceId) {
            assert!(traces.contains_key(&absent) || reader.find_trace(absent).await.unwrap().spans.is_empty());
        }
        assert_arrow_agrees(&block.parquet, &all);
    });
}

/// Reads the file with the parquet crate's Arrow reader, whose page decoders share nothing with ours.
fn assert_arrow_agrees(parquet: &Bytes, spans: &[StoredSpan]) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(parquet.clone()).unwrap();
    let batches: Vec<RecordBatch> = builder.with_batch_size(4096).build().unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), spans.len());
    let mut from = 0;
    for batch in &batches {
        let spans = &spans[from..from + batch.num_rows()];
        from += batch.num_rows();
        let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("column {name}"));
        let ids = (column("trace_id").as_fixed_size_binary(), column("span_id").as_fixed_size_binary());
        let starts = column("start_time").as_primitive::<TimestampNanosecondType>();
        let durations = column("duration_ns").as_primitive::<Int64Type>();
        let (kinds, codes) = (column("kind").as_primitive::<Int32Type>(), column("status_code").as_primitive::<Int32Type>());
        let (names, services) = (column("name").as_string::<i32>(), column("resource.service.name").as_string::<i32>());
        let rest = column("attributes_rest").as_map();
        let (events, links) = (column("events").as_list::<i32>(), column("links").as_list::<i32>());
        let unknown = column("unknown").as_binary::<i32>();
        let typed: Vec<(&str, usize)> = (0..batch.num_columns())
            .filter_map(|at| Some((batch.schema_ref().field(at).name().strip_prefix("span.")?, at)))
            .collect();
        for (row, stored) in spans.iter().enumerate() {
            let span = &stored.span;
            assert_eq!(ids.0.value(row), span.trace_id.0);
            assert_eq!(ids.1.value(row), span.span_id.0);
            assert_eq!(starts.value(row) as u64, span.start_unix_nano);
            assert_eq!(durations.value(row) as u64, span.end_unix_nano.wrapping_sub(span.start_unix_nano));
            assert_eq!((kinds.value(row), codes.value(row)), (span.kind, span.status_code));
            assert_eq!(names.value(row), span.name);
            let service = stored.resource.service_name().filter(|name| !name.is_empty());
            assert_eq!(services.is_valid(row).then(|| services.value(row)), service);
            assert_eq!(unknown.is_valid(row), !span.unknown.is_empty());
            let mut in_columns = 0;
            for (key, at) in &typed {
                in_columns += usize::from(assert_typed(batch.column(*at), row, key, &span.attributes));
            }
            assert_eq!(rest.value_length(row) as usize + in_columns, span.attributes.len());
            let members = events.value(row);
            assert_eq!(members.len(), span.events.len());
            for (at, event) in span.events.iter().enumerate() {
                let members = members.as_struct();
                let offset = member(members, "time_offset_ns").as_primitive::<Int64Type>().value(at);
                assert_eq!(span.start_unix_nano.wrapping_add(offset as u64), event.time_unix_nano);
                assert_eq!(member(members, "name").as_string::<i32>().value(at), event.name);
                assert_members(members, "event.", at, &event.attributes);
            }
            let members = links.value(row);
            assert_eq!(members.len(), span.links.len());
            for (at, link) in span.links.iter().enumerate() {
                let members = members.as_struct();
                let (trace_id, span_id) = (member(members, "trace_id"), member(members, "span_id"));
                let is_usual = link.trace_id.len() == 16 && link.span_id.len() == 8;
                assert_eq!((trace_id.is_valid(at), span_id.is_valid(at)), (is_usual, is_usual));
                if is_usual {
                    assert_eq!(trace_id.as_fixed_size_binary().value(at), link.trace_id);
                    assert_eq!(span_id.as_fixed_size_binary().value(at), link.span_id);
                }
                assert_members(members, "link.", at, &link.attributes);
            }
        }
    }
}

fn member<'a>(members: &'a StructArray, name: &str) -> &'a Arc<dyn Array> {
    members.column_by_name(name).unwrap_or_else(|| panic!("member {name}"))
}

fn assert_members(members: &StructArray, prefix: &str, at: usize, attributes: &[Attribute]) {
    for (field, column) in members.fields().iter().zip(members.columns()) {
        if let Some(key) = field.name().strip_prefix(prefix) {
            assert_typed(column, at, key, attributes);
        }
    }
}

/// A typed column has the first value of its key that is of its type. Returns whether there is one.
fn assert_typed(column: &Arc<dyn Array>, row: usize, key: &str, attributes: &[Attribute]) -> bool {
    let values = || attributes.iter().filter(|attribute| attribute.key == key).map(|attribute| &attribute.value);
    let null = column.is_null(row);
    if let Some(column) = column.as_string_opt::<i32>() {
        let want = values().find_map(|value| if let Value::Str(value) = value { Some(value.as_str()) } else { None });
        assert_eq!((!null).then(|| column.value(row)), want, "{key}");
    } else if let Some(column) = column.as_primitive_opt::<Int64Type>() {
        let want = values().find_map(|value| if let Value::Int(value) = value { Some(*value) } else { None });
        assert_eq!((!null).then(|| column.value(row)), want, "{key}");
    } else if let Some(column) = column.as_primitive_opt::<Float64Type>() {
        let want = values().find_map(|value| if let Value::Double(value) = value { Some(value.to_bits()) } else { None });
        assert_eq!((!null).then(|| column.value(row).to_bits()), want, "{key}");
    } else if let Some(column) = column.as_boolean_opt() {
        let want = values().find_map(|value| if let Value::Bool(value) = value { Some(*value) } else { None });
        assert_eq!((!null).then(|| column.value(row)), want, "{key}");
    } else {
        panic!("column of {key} is {:?}", column.data_type());
    }
    !null
}

/// Batches of several requests, some of them merged, with at least one span.
pub(super) fn batches(seed: u64, requests: usize, size: usize) -> Vec<Arc<SpanBatch>> {
    let mut generator = Generator { bad_ids: false, ..Generator::new(seed, size) };
    let mut all: Vec<Arc<SpanBatch>> = Vec::new();
    for _ in 0..requests {
        let request = generator.request();
        let bytes = scramble(&request, &mut generator.dice, 10);
        all.push(Arc::new(walk(&bytes, WalkOptions::default()).unwrap().batch));
        if generator.dice.one_in(4) {
            // The same request again: every span of it is an identical copy.
            all.push(Arc::clone(&all[generator.dice.below(all.len())]));
        }
        if generator.dice.one_in(3) {
            let from = generator.dice.below(all.len());
            let tail = all.split_off(from);
            all.push(Arc::new(merge(tail.iter().map(|batch| &**batch))));
        }
    }
    if all.iter().all(|batch| batch.is_empty()) { batches(seed + 1, requests, size + 1) } else { all }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_block_holds_what_was_written(seed in 0..u64::MAX / 2, requests in 1usize..5, size in 1usize..5, group in 1usize..40) {
        let batches = batches(seed, requests, size);
        let spans: Vec<StoredSpan> = batches.iter().flat_map(|batch| stored(batch)).collect();
        assert_block_holds(&write(&batches, group), &spans);
    }

    #[test]
    fn merging_changes_no_span(seed in 0..u64::MAX / 2, requests in 1usize..5) {
        let batches = batches(seed, requests, 3);
        let before: Vec<String> = batches.iter().flat_map(|batch| stored(batch)).map(|span| text_of(&span)).collect();
        let merged = merge(batches.iter().map(|batch| &**batch));
        let after: Vec<String> = stored(&merged).iter().map(text_of).collect();
        prop_assert_eq!(after, before);
    }

    #[test]
    fn the_same_batches_make_the_same_bytes(seed in 0..u64::MAX / 2, group in 1usize..40) {
        let batches = batches(seed, 3, 4);
        let input = || BlockInput { batches: batches.clone(), rows: vec![None; batches.len()] };
        let options = WriterOptions { row_group_rows: group, ..WriterOptions::default() };
        let origin = origin();
        let (a, b) = (write_block(&input(), origin.clone(), options).unwrap(), write_block(&input(), origin, options).unwrap());
        prop_assert!(a.parquet == b.parquet && a.filter == b.filter && a.tail_bytes == b.tail_bytes);
    }
}

pub(super) fn id(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len - 8];
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes
}

pub(super) fn attribute(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
}

pub(super) fn batch_of(spans: Vec<Span>) -> Arc<SpanBatch> {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let request = ExportTraceServiceRequest { resource_spans };
    Arc::new(walk(&request.encode_to_vec(), WalkOptions::default()).unwrap().batch)
}

/// Span `n` of trace `trace`, below span `parent`.
pub(super) fn plain_span(trace: u64, n: u64, parent: u64) -> Span {
    Span {
        trace_id: id(trace, 16),
        span_id: id(n, 8),
        parent_span_id: if parent == 0 { Vec::new() } else { id(parent, 8) },
        start_time_unix_nano: 1_700_000_000_000_000_000 + n * 1000,
        end_time_unix_nano: 1_700_000_000_000_000_900 + n * 1001,
        name: format!("operation {}", n % 7),
        kind: (n % 6) as i32,
        ..Span::default()
    }
}

/// Exporters that repeat their scope must not multiply the dictionary: only the parts of one trace are kept apart.
#[test]
fn equal_scopes_are_told_apart_by_trace() {
    let part = |trace| ScopeSpans { spans: vec![plain_span(trace, 1, 0)], ..ScopeSpans::default() };
    let group = ResourceSpans { scope_spans: (1..=500).chain([7, 7]).map(part).collect(), ..ResourceSpans::default() };
    let request = ExportTraceServiceRequest { resource_spans: vec![group.clone(), group] };
    let batch = walk(&request.encode_to_vec(), WalkOptions::default()).unwrap().batch;
    // The two groups differ by their resources; in each, trace 7 has three parts.
    assert_eq!((batch.resources.len(), batch.scopes.len(), batch.len()), (2, 3, 1004));
    let of_seven: Vec<u32> =
        batch.rows.iter().filter(|r| r.trace_id.0[15] == 7 && r.trace_id.0[14] == 0).map(|r| r.scope).collect();
    assert_eq!(of_seven, [0, 1, 2, 0, 1, 2]);
}

/// One trace in a block of its own, over many pages, with numbers that do and do not repeat, lists now and then, and a wide text.
#[test]
fn a_trace_of_a_hundred_thousand_spans() {
    let mut dice = Dice(7);
    let spans: Vec<Span> = (1..=100_000)
        .map(|n| {
            let mut span = plain_span(1, n, if n == 1 { 0 } else { 1 + dice.below(n as usize - 1) as u64 });
            span.attributes.push(attribute("unique", Any::StringValue(format!("value {n}"))));
            span.attributes.push(attribute("few", Any::StringValue(format!("value {}", n % 5))));
            span.attributes.push(attribute("counter", Any::IntValue(dice.roll() as i64 >> dice.below(60))));
            if n % 3 == 0 {
                span.attributes.push(attribute("ratio", Any::DoubleValue(n as f64 / 3.0)));
                span.attributes.push(attribute("flag", Any::BoolValue(dice.one_in(2))));
            }
            if n % 1000 == 0 {
                span.attributes.push(attribute("wide", Any::StringValue("x".repeat(4000))));
            }
            if n % 11 == 0 {
                let attributes = vec![attribute("id", Any::IntValue(n as i64)), attribute("id", Any::IntValue(0))];
                let event = span::Event { time_unix_nano: n, name: "tick".into(), attributes, ..span::Event::default() };
                span.events = vec![event; 1 + n as usize % 3];
            }
            span
        })
        .collect();
    let batch = batch_of(spans);
    let block = write(&[Arc::clone(&batch)], 1000);
    assert_eq!(block.meta.rows, 100_000);
    assert_block_holds(&block, &stored(&batch));
}

/// Small traces over many pages and several row groups: a point read must find the right pages.
#[test]
fn traces_are_found_on_any_page() {
    let spans = (0..20_000).map(|n| plain_span(1 + n / 3, 1 + n, if n % 3 == 0 { 0 } else { n })).collect();
    let batch = batch_of(spans);
    let all = stored(&batch);
    let block = write(&[batch], 9_000);
    block_on(async {
        let reader = open(block.parquet.clone(), block.filter.clone(), block.tail_bytes).await.unwrap();
        assert_eq!(reader.parquet().num_row_groups(), 3);
        for chunk in all.chunk_by(|a, b| a.span.trace_id == b.span.trace_id).step_by(97) {
            let found = reader.find_trace(chunk[0].span.trace_id).await.unwrap();
            assert_eq!(texts(&found.spans), texts(chunk));
        }
    });
    assert_block_holds(&write(&[batch_of(vec![plain_span(1, 2, 3)])], 1), &stored(&batch_of(vec![plain_span(1, 2, 3)])));
}

/// More keys than there may be columns, keys equal but for case, and every type under one key.
#[test]
fn keys_without_column_keep_their_values() {
    let values = [
        Any::StringValue("text".into()),
        Any::IntValue(-5),
        Any::DoubleValue(-0.0),
        Any::BoolValue(true),
        Any::BytesValue(vec![0, 255]),
    ];
    let spans = (1..=40)
        .map(|n| {
            let mut span = plain_span(n % 4 + 1, n, n / 2);
            for key in 0..300 {
                span.attributes.push(attribute(&format!("key{key}"), values[(n + key) as usize % 5].clone()));
            }
            for key in ["Case", "case", "CASE", "case"] {
                span.attributes.push(attribute(key, values[n as usize % 5].clone()));
            }
            span.attributes.rotate_left(n as usize);
            span
        })
        .collect();
    let batch = batch_of(spans);
    let block = write(&[Arc::clone(&batch)], 15);
    assert_block_holds(&block, &stored(&batch));
}

/// Equal to the eye or by `==`, but not the same bits: neither may replace the other.
#[test]
fn only_identical_spans_are_one() {
    let nan = f64::from_bits(0x7ff8_0000_0000_0001);
    let values = [Any::DoubleValue(0.0), Any::DoubleValue(-0.0), Any::DoubleValue(f64::NAN), Any::DoubleValue(nan)];
    let with = |value: &Any| Span { attributes: vec![attribute("v", value.clone())], ..plain_span(1, 1, 0) };
    let batch = batch_of(values.iter().chain(&values).map(with).collect());
    let block = write(&[Arc::clone(&batch)], 10);
    assert_eq!((block.meta.rows, block.meta.duplicates_removed), (4, 4));
    assert_block_holds(&block, &stored(&batch));
}

/// Spans that share ids and times but differ are compared in linear time.
#[test]
fn many_different_spans_under_one_id() {
    let spans = (0..20_000).map(|n| Span { name: format!("{n}"), kind: 2, ..plain_span(1, 1, 1) }).collect();
    let block = write(&[batch_of(spans)], 100_000);
    assert_eq!((block.meta.rows, block.meta.duplicates_removed), (20_000, 0));
}

/// Pages have no checksum, so damage may give wrong data; but never a panic, a hang or an allocation without bounds.
#[test]
fn a_damaged_block_never_panics() {
    let all = batches(3, 4, 5);
    let block = write(&all, 8);
    let ids: BTreeSet<TraceId> = all.iter().flat_map(|batch| batch.rows.iter().map(|row| row.trace_id)).collect();
    let mut dice = Dice(11);
    for round in 0..300 {
        let mut bytes = block.parquet.to_vec();
        let mut length = bytes.len();
        match round % 7 {
            0 => length = dice.below(bytes.len()),
            // Half of the rounds hit the footer and indexes, which decide where everything is read.
            1..4 => {
                let at = bytes.len() - 1 - dice.below(block.tail_bytes as usize);
                bytes[at] ^= 1 << dice.below(8);
            }
            4 => {
                let at = bytes.len() - 1 - dice.below(block.tail_bytes as usize);
                bytes[at] = dice.pick(&[0, 0x7f, 0x80, 0xff]);
            }
            _ => {
                for _ in 0..=dice.below(3) {
                    let at = dice.below(bytes.len());
                    bytes[at] = dice.pick(&[0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x10]);
                }
            }
        }
        bytes.truncate(length);
        block_on(async {
            let Ok(reader) = open(bytes.into(), block.filter.clone(), block.tail_bytes).await else { return };
            let _ = reader.summary();
            let mut results = vec![reader.all_spans().await.map(drop)];
            // The second time from pages that were kept, where they could be read.
            for id in ids.iter().chain(&ids) {
                results.push(reader.find_trace(*id).await.map(drop));
            }
            for error in results.into_iter().filter_map(Result::err) {
                // A panic on a decoding thread comes back as its join error.
                assert!(!error.to_string().contains("panic"), "round {round}: {error}");
            }
        });
    }
}
