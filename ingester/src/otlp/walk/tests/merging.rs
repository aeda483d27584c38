//! Merging blocks loses and changes no span: any requests, cut into blocks anyhow, merged in any number of rounds, are what one
//! block of all of them is.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::merge::{FileBytes, MergeError, MergeInput, MergeSettings, merge};
use spanhouse_common::block::{Block, KeySummary, Summary, flag};
use spanhouse_common::id::TraceId;
use spanhouse_common::model::StoredSpan;
use spanhouse_common::time::UnixNanos;
use spanhouse_proto::otlp_common::any_value::Value as Any;
use spanhouse_proto::otlp_trace::{Span, span};

use super::blocks::{
    assert_block_holds, attribute, batch_of, batches, block_on, open, origin, plain_span, text_of, texts, write,
};
use super::generate::Dice;
use super::stored;

fn input_of(block: &Block) -> MergeInput {
    let file = FileBytes::Memory(block.parquet.clone());
    MergeInput { id: block.meta.origin.id, file, tail_bytes: block.tail_bytes }
}

/// Merges into memory; `None` if no span is left.
fn merged(blocks: &[&Block], settings: &MergeSettings) -> Result<Option<Block>, MergeError> {
    let inputs: Vec<MergeInput> = blocks.iter().map(|block| input_of(block)).collect();
    let mut file = Vec::new();
    let done = merge(&inputs, origin(), settings, &mut file, |_| ControlFlow::Continue(()))?;
    Ok(done.block.map(|block| {
        assert_eq!(block.file_bytes, file.len() as u64);
        Block { meta: block.meta, parquet: file.into(), filter: block.filter, tail_bytes: block.tail_bytes }
    }))
}

fn groups_of(rows: usize) -> MergeSettings {
    MergeSettings { row_group_rows: rows, ..MergeSettings::default() }
}

/// Merges neighbours, as many as the dice say, until one block is left.
fn merged_in_rounds(mut blocks: Vec<Block>, dice: &mut Dice) -> Block {
    while blocks.len() > 1 {
        let mut next = Vec::new();
        let mut rest = blocks.as_slice();
        while !rest.is_empty() {
            let (some, others) = rest.split_at((2 + dice.below(4)).min(rest.len()));
            rest = others;
            let settings = groups_of(1 + dice.below(40));
            next.push(merged(&some.iter().collect::<Vec<_>>(), &settings).unwrap().unwrap());
        }
        blocks = next;
    }
    blocks.swap_remove(0)
}

/// Tree and times of all rows, which are the same whichever of equal spans comes first.
fn structure(parquet: &Bytes) -> Vec<(i32, i32, i32, i64, i64)> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(parquet.clone()).unwrap();
    let mut out = Vec::new();
    for batch in builder.build().unwrap() {
        let batch = batch.unwrap();
        let small = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int32Type>().values().to_vec();
        let wide = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec();
        let (delta, size, flags) = (small("parent_delta"), small("subtree_size"), small("row_flags"));
        let (duration, whole) = (wide("duration_ns"), wide("trace_duration_ns"));
        for at in 0..batch.num_rows() {
            out.push((delta[at], size[at], flags[at] & !flag::MAYBE_DUPLICATE, duration[at], whole[at]));
        }
    }
    out
}

/// Root service and name of every row.
fn roots(parquet: &Bytes) -> Vec<[Option<String>; 2]> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(parquet.clone()).unwrap();
    let mut out = Vec::new();
    for batch in builder.build().unwrap() {
        let batch = batch.unwrap();
        let columns = ["root_service_name", "root_span_name"].map(|name| Arc::clone(batch.column_by_name(name).unwrap()));
        for at in 0..batch.num_rows() {
            out.push([0, 1].map(|n: usize| {
                let texts = columns[n].as_string::<i32>();
                (!texts.is_null(at)).then(|| texts.value(at).to_owned())
            }));
        }
    }
    out
}

/// What two summaries must agree in: counts always, values where both list them.
fn assert_same_summary(a: &Summary, b: &Summary) {
    let counts = |all: &[KeySummary]| all.iter().map(|key| (key.key.clone(), key.counts)).collect::<BTreeMap<_, _>>();
    let all = |summary: &Summary| {
        [&summary.span, &summary.event, &summary.link, &summary.resource, &summary.scope].map(|keys| keys.clone())
    };
    for (a, b) in all(a).iter().zip(&all(b)) {
        assert_eq!(counts(a), counts(b));
        for (a, b) in a.iter().zip(b).filter(|(a, b)| !a.cut && !b.cut) {
            assert_eq!(a.values, b.values, "values of {}", a.key);
        }
    }
    assert_eq!((&a.operations, a.operations_cut), (&b.operations, b.operations_cut));
}

async fn summary_of(block: &Block) -> Summary {
    let reader = open(block.parquet.clone(), block.filter.clone(), block.tail_bytes).await.unwrap();
    reader.summary().unwrap()
}

/// Holds a merged block against all the spans and against one block of them.
fn assert_is_whole(block: &Block, batches: &[Arc<SpanBatch>]) {
    let spans: Vec<StoredSpan> = batches.iter().flat_map(|batch| stored(batch)).collect();
    assert_block_holds(block, &spans);
    let at_once = write(batches, 1000);
    let (a, b) = (structure(&block.parquet), structure(&at_once.parquet));
    assert_eq!(a, b);
    if a.iter().all(|(_, _, flags, _, _)| flags & flag::DUPLICATE_ID == 0) {
        assert_eq!(roots(&block.parquet), roots(&at_once.parquet));
    }
    let [mut a, mut b] = [&block.meta, &at_once.meta].map(Clone::clone);
    (a.origin, b.origin) = (origin(), origin());
    b.origin.id = a.origin.id;
    assert_eq!(a, b);
    assert_same_summary(&block_on(summary_of(block)), &block_on(summary_of(&at_once)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_number_of_merges_keeps_every_span(seed in 0..u64::MAX / 2, requests in 2usize..9, size in 1usize..5) {
        let batches: Vec<Arc<SpanBatch>> = batches(seed, requests, size).into_iter().filter(|b| !b.is_empty()).collect();
        let mut dice = Dice(seed);
        let mut blocks = Vec::new();
        let mut rest = batches.as_slice();
        while !rest.is_empty() {
            let (some, others) = rest.split_at((1 + dice.below(3)).min(rest.len()));
            rest = others;
            blocks.push(write(some, 1 + dice.below(40)));
        }
        // One alone is merged too: a rewrite changes nothing.
        if blocks.len() == 1 {
            blocks = vec![merged(&[&blocks[0]], &groups_of(7)).unwrap().unwrap()];
        }
        assert_is_whole(&merged_in_rounds(blocks, &mut dice), &batches);
    }

    #[test]
    fn dropped_traces_and_expired_spans_go_and_no_others(seed in 0..u64::MAX / 2, requests in 2usize..6) {
        let mut batches: Vec<Arc<SpanBatch>> = batches(seed, requests, 4).into_iter().filter(|b| !b.is_empty()).collect();
        for (at, batch) in batches.iter_mut().enumerate() {
            Arc::make_mut(batch).received_max = UnixNanos(at as u64 * 100);
        }
        let mut dice = Dice(seed);
        let mut blocks: Vec<Block> = batches.iter().map(|batch| write(&[Arc::clone(batch)], 20)).collect();
        // Blocks of outliers keep their spans: their starts are not trusted.
        for block in &mut blocks {
            if dice.one_in(2) {
                block.meta.origin.window = Some(spanhouse_common::manifest::Window { start: 0, length: 900 });
            }
        }
        let windowed: Vec<Block> = blocks.iter().zip(&batches).map(|(block, batch)| in_window(block, batch)).collect();
        let spans: Vec<(UnixNanos, bool, StoredSpan)> = windowed
            .iter()
            .zip(&batches)
            .flat_map(|(block, batch)| {
                let (received, in_window) = (batch.received_max, block.meta.origin.window.is_some());
                stored(batch).into_iter().map(move |span| (received, in_window, span))
            })
            .collect();
        let ids: Vec<TraceId> = spans.iter().map(|(_, _, span)| span.span.trace_id).collect();
        let dropped: HashSet<TraceId> = ids.iter().filter(|_| dice.one_in(4)).copied().collect();
        let starts: Vec<u64> = spans.iter().map(|(_, _, span)| span.span.start_unix_nano).collect();
        let expired_before = UnixNanos([0, 150, dice.pick(&starts)][dice.below(3)]);
        let settings = MergeSettings { dropped: Arc::new(dropped.clone()), expired_before, ..groups_of(30) };
        let is_kept = |(received, in_window, span): &&(UnixNanos, bool, StoredSpan)| {
            let is_old = *in_window && *received < expired_before && span.span.start_unix_nano < expired_before.0;
            !dropped.contains(&span.span.trace_id) && !is_old
        };
        let kept: Vec<StoredSpan> = spans.iter().filter(is_kept).map(|(_, _, span)| span.clone()).collect();
        let block = merged(&windowed.iter().collect::<Vec<_>>(), &settings).unwrap();
        match block {
            None => prop_assert!(kept.is_empty()),
            Some(mut block) => {
                // Copies that went because they were old or dropped are not counted as copies.
                let distinct: HashSet<String> = kept.iter().map(text_of).collect();
                block.meta.duplicates_removed = (kept.len() - distinct.len()) as u64;
                let reader = block_on(open(block.parquet.clone(), block.filter.clone(), block.tail_bytes)).unwrap();
                let mut found = texts(&block_on(reader.all_spans()).unwrap());
                found.dedup();
                let mut expected = texts(&kept);
                expected.dedup();
                prop_assert_eq!(found, expected);
            }
        }
    }
}

/// The block of a batch, in the window the given one has.
fn in_window(block: &Block, batch: &Arc<SpanBatch>) -> Block {
    use spanhouse_common::block::{BlockInput, WriterOptions, write_block};
    let origin = spanhouse_common::block::BlockOrigin { window: block.meta.origin.window, ..origin() };
    let input = BlockInput { batches: vec![Arc::clone(batch)], rows: vec![None] };
    write_block(&input, origin, WriterOptions::default()).unwrap()
}

/// Keys that have a column in one block and not in another, of other kinds, in other orders, in spans, events and links.
#[test]
fn columns_are_chosen_again() {
    let mut dice = Dice(5);
    let values = |n: u64, kind: usize| match kind {
        0 => Any::StringValue(format!("v{}", n % 9)),
        1 => Any::IntValue(n as i64),
        2 => Any::DoubleValue(n as f64 / 4.0),
        _ => Any::BoolValue(n.is_multiple_of(2)),
    };
    let mut blocks = Vec::new();
    let mut all = Vec::new();
    for part in 0..6u64 {
        let spans: Vec<Span> = (0..900)
            .map(|n| {
                let mut span = plain_span(1 + n % 100, 1 + part * 1000 + n, 0);
                // Rare in some blocks, frequent in others; of one kind here and another there.
                for key in 0..8u64 {
                    if (n * 7 + key * 3) % (1 + (part * 131 + key * 57) % 400) == 0 {
                        let kind = ((part + key) % 4) as usize;
                        span.attributes.push(attribute(&format!("key{key}"), values(n, kind)));
                        if dice.one_in(5) {
                            span.attributes.insert(0, attribute(&format!("key{key}"), values(n, (kind + 1) % 4)));
                        }
                    }
                }
                let attributes = span.attributes.clone();
                if dice.one_in(3) {
                    let event = span::Event { name: "e".into(), attributes: attributes.clone(), ..span::Event::default() };
                    span.events = vec![event; 1 + dice.below(2)];
                }
                if dice.one_in(3) {
                    span.links = vec![span::Link { attributes, ..span::Link::default() }];
                }
                span
            })
            .collect();
        let batch = batch_of(spans);
        blocks.push(write(std::slice::from_ref(&batch), 300));
        all.push(batch);
    }
    let typed: Vec<usize> = blocks.iter().map(|block| columns_of(&block.parquet).len()).collect();
    assert!(typed.iter().any(|count| *count != typed[0]), "the blocks have the same columns");
    let block = merged_in_rounds(blocks, &mut dice);
    assert_is_whole(&block, &all);
    assert_eq!(columns_of(&block.parquet), columns_of(&write(&all, 1000).parquet));
}

fn columns_of(parquet: &Bytes) -> Vec<(String, String)> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(parquet.clone()).unwrap();
    let fields = builder.schema().fields().iter();
    fields.map(|field| (field.name().clone(), field.data_type().to_string())).collect()
}

/// One trace over many blocks, parents in others than their children, and every block twice.
#[test]
fn a_large_trace_in_many_blocks() {
    let mut dice = Dice(11);
    let mut parts: Vec<Vec<Span>> = vec![Vec::new(); 8];
    for n in 1..=40_000u64 {
        let parent = if n == 1 { 0 } else { 1 + dice.below(n as usize - 1) as u64 };
        let mut span = plain_span(1, n, parent);
        span.attributes.push(attribute("unique", Any::StringValue(format!("value {n}"))));
        span.attributes.push(attribute("few", Any::StringValue(format!("value {}", n % 5))));
        parts[dice.below(8)].push(span);
    }
    let batches: Vec<Arc<SpanBatch>> = parts.into_iter().map(batch_of).collect();
    let blocks: Vec<Block> = batches.iter().map(|batch| write(std::slice::from_ref(batch), 10_000)).collect();
    let twice: Vec<&Block> = blocks.iter().chain(&blocks).collect();
    let block = merged(&twice, &MergeSettings::default()).unwrap().unwrap();
    let doubled: Vec<Arc<SpanBatch>> = batches.iter().chain(&batches).cloned().collect();
    assert_is_whole(&block, &doubled);
}

/// Damage is an error that names the block, whatever byte it is in, or is not read at all: never a panic.
#[test]
fn a_damaged_input_is_named() {
    let batches = batches(77, 6, 4);
    let (good, bad) = (write(&batches, 20), write(&batches, 13));
    let mut dice = Dice(3);
    let (mut refused, mut unseen) = (0, 0);
    for _ in 0..1500 {
        let mut bytes = bad.parquet.to_vec();
        let at = dice.below(bytes.len());
        bytes[at] ^= 1 << dice.below(8);
        let damaged = MergeInput { file: FileBytes::Memory(bytes.into()), ..input_of(&bad) };
        let mut out = Vec::new();
        match merge(&[input_of(&good), damaged], origin(), &groups_of(25), &mut out, |_| ControlFlow::Continue(())) {
            Ok(_) => unseen += 1,
            Err(MergeError::Input { block, .. }) => {
                assert_eq!(block, bad.meta.origin.id);
                refused += 1;
            }
            // Values of another type than the column's in other inputs.
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
    println!("{refused} refused, {unseen} not seen: the manifest's checksum is for those");
    assert!(refused > 300);
}

#[test]
fn a_merge_stops_when_told() {
    let batches = batches(5, 4, 4);
    let block = write(&batches, 20);
    let stopped = merge(&[input_of(&block)], origin(), &groups_of(1), Vec::new(), |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(MergeError::Stopped)));
}
