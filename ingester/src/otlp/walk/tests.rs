//! The walker says what prost says, about every request there is.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message;
use spanhouse_common::batch::ModelReader;
use spanhouse_common::caps::MAX_VALUE_DEPTH;
use spanhouse_common::model::StoredSpan;
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;

use super::*;
use generate::{Dice, Generator, scramble, unknown_field};

mod blocks;
mod generate;
mod merging;
mod reference;

fn walk(body: &[u8], options: WalkOptions<'_>) -> Result<Walked, Malformed> {
    Walker::default().walk(body, options)
}

fn stored(batch: &SpanBatch) -> Vec<StoredSpan> {
    let mut reader = ModelReader::new(batch);
    (0..batch.len()).map(|row| reader.stored_span(row).unwrap()).collect()
}

/// Everything about a walk that a test can see: prost must have decoded `request` out of the same bytes.
fn assert_same(walked: &Walked, request: &ExportTraceServiceRequest) {
    let expected = reference::spans_of(request);
    let refused: Vec<_> = expected.iter().filter_map(|span| Some((span.ordinal, span.refusal?))).collect();
    assert_eq!(walked.refused, refused);
    let kept: Vec<_> = expected.iter().filter(|span| span.refusal.is_none()).collect();
    assert_eq!(walked.ordinals, kept.iter().map(|span| span.ordinal).collect::<Vec<_>>());
    assert_eq!(walked.span_bytes.len(), kept.len());
    let rows = stored(&walked.batch);
    assert_eq!(rows.len(), kept.len());
    for (row, placed) in rows.iter().zip(&kept) {
        let got = reference::group_of(&row.span, &row.resource, &row.scope);
        // Compared as bytes, because a NaN must come back bit for bit but never equals itself.
        if got.encode_to_vec() != placed.alone.encode_to_vec() {
            assert_eq!(got, placed.alone, "span {}", placed.ordinal);
            panic!("span {} differs in a NaN: {got:?}", placed.ordinal);
        }
    }
    assert_same_groups(&rows, &kept);
}

/// Spans of one trace share a resource entry exactly if they shared a `ResourceSpans`, and likewise with scopes.
fn assert_same_groups(rows: &[StoredSpan], kept: &[&reference::Placed]) {
    let text = |row: &StoredSpan| {
        let (mut resource, mut scope) = (String::new(), String::new());
        typed_json::write_resource(&row.resource, &mut resource);
        typed_json::write_scope(&row.scope, &mut scope);
        (resource, scope)
    };
    let (mut forth, mut back) = (BTreeMap::new(), BTreeMap::new());
    for (row, placed) in rows.iter().zip(kept) {
        let trace = row.span.trace_id.0;
        let (resource, scope) = text(row);
        let (group, inner) = placed.group;
        assert_eq!(forth.entry((trace, group, None)).or_insert_with(|| (resource.clone(), None)).0, resource);
        assert_eq!(*back.entry((trace, resource.clone(), None)).or_insert((group, None)), (group, None));
        let whole = (resource, Some(scope));
        assert_eq!(*forth.entry((trace, group, Some(inner))).or_insert_with(|| whole.clone()), whole);
        assert_eq!(*back.entry((trace, whole.0, whole.1)).or_insert((group, Some(inner))), (group, Some(inner)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_request_is_read_as_prost_reads_it(size in 1usize..5, seed in any::<u64>(), rarity in 1usize..20) {
        let mut generator = Generator::new(seed, size);
        let request = generator.request();
        let bytes = request.encode_to_vec();
        assert_same(&walk(&bytes, WalkOptions::default()).unwrap(), &request);
        let bytes = scramble(&request, &mut generator.dice, rarity);
        let request = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
        assert_same(&walk(&bytes, WalkOptions::default()).unwrap(), &request);
    }

    /// Tables kept from one request to the next must not show.
    #[test]
    fn a_walker_used_again_reads_the_same(seed in any::<u64>()) {
        let mut generator = Generator::new(seed, 3);
        let mut walker = Walker::default();
        for _ in 0..4 {
            let request = generator.request();
            assert_same(&walker.walk(&request.encode_to_vec(), WalkOptions::default()).unwrap(), &request);
        }
    }

    #[test]
    fn damaged_bytes_are_taken_exactly_when_prost_takes_them(size in 1usize..4, seed in any::<u64>()) {
        let mut generator = Generator::new(seed, size);
        let request = generator.request();
        let bytes = scramble(&request, &mut generator.dice, 8);
        for _ in 0..40 {
            let damaged = damage(&bytes, &mut generator.dice);
            let walked = walk(&damaged, WalkOptions::default());
            match ExportTraceServiceRequest::decode(&damaged[..]) {
                Ok(request) => assert_same(&walked.unwrap(), &request),
                Err(error) => prop_assert!(walked.is_err(), "prost says {error}: {damaged:02x?}"),
            }
        }
    }

    /// Replay applies the ordinals that were refused, and no limits: what it rebuilds is what was acknowledged.
    #[test]
    fn replay_rebuilds_what_was_acknowledged(size in 1usize..5, seed in any::<u64>(), limit in 0usize..40) {
        let mut generator = Generator::new(seed, size);
        let request = generator.request();
        let bytes = scramble(&request, &mut generator.dice, 8);
        let first = walk(&bytes, WalkOptions { max_attribute_bytes: Some(limit), refused: &[] }).unwrap();
        let refused: Vec<u32> = first.refused.iter().map(|(ordinal, _)| *ordinal).collect();
        let again = walk(&bytes, WalkOptions { max_attribute_bytes: None, refused: &refused }).unwrap();
        prop_assert_eq!(&again.refused, &[]);
        prop_assert_eq!(&again.ordinals, &first.ordinals);
        prop_assert_eq!(&again.span_bytes, &first.span_bytes);
        // Debug texts, because a NaN does not equal itself.
        prop_assert_eq!(format!("{:?}", stored(&again.batch)), format!("{:?}", stored(&first.batch)));
    }
}

/// A few bytes flipped, cut or put in.
fn damage(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=dice.below(2) {
        let at = dice.below(out.len() + 1);
        match dice.below(5) {
            0 => out.truncate(at),
            1 => out.insert(at, dice.roll() as u8),
            2 if at < out.len() => drop(out.remove(at)),
            3 => drop(out.splice(at..at, unknown_field(dice))),
            _ if at < out.len() => out[at] ^= 1 << dice.below(8),
            _ => {}
        }
    }
    out
}

/// Appends a field with this content.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(number, content, &mut out);
    out
}

/// A span with valid ids and these fields besides.
fn span_bytes(rest: &[u8]) -> Vec<u8> {
    [field(1, &[1; 16]), field(2, &[2; 8]), rest.to_vec()].concat()
}

fn request_bytes(spans: &[Vec<u8>]) -> Vec<u8> {
    let spans: Vec<u8> = spans.iter().flat_map(|span| field(2, span)).collect();
    field(1, &field(2, &spans))
}

#[test]
fn unknown_fields_are_kept_where_they_stood() {
    for seed in 0..50 {
        let mut dice = Dice(seed);
        let mut unknown = || unknown_field(&mut dice);
        let (a, b, c, d, e, f, g, h, i, j) =
            (unknown(), unknown(), unknown(), unknown(), unknown(), unknown(), unknown(), unknown(), unknown(), unknown());
        let odd_pair = [field(1, b"k"), i.clone()].concat();
        let odd_value = [field(1, b"v"), j.clone()].concat();
        let pair_with_odd_value = [field(1, b"k"), field(2, &odd_value)].concat();
        let span = span_bytes(
            &[
                a.clone(),
                field(11, &b),
                field(13, &c),
                field(15, &[field(2, b"why"), d.clone()].concat()),
                field(9, &odd_pair),
                field(9, &pair_with_odd_value),
            ]
            .concat(),
        );
        let scope_spans = [field(1, &e), f.clone(), field(2, &span)].concat();
        let resource_spans = [field(1, &[field(3, &h), g.clone()].concat()), field(2, &scope_spans), a.clone()].concat();
        let body = [field(1, &resource_spans), unknown_field(&mut dice)].concat();

        let row = stored(&walk(&body, WalkOptions::default()).unwrap().batch).remove(0);
        let span = row.span;
        assert_eq!(span.unknown, [a.clone(), field(15, &d)].concat());
        assert_eq!(span.status_message, "why");
        assert_eq!(span.events[0].unknown, b);
        assert_eq!(span.links[0].unknown, c);
        assert_eq!((&row.scope.unknown, &row.scope.group_unknown), (&e, &f));
        assert_eq!((&row.resource.unknown, &row.resource.group_unknown), (&g, &a));
        assert_eq!(row.resource.entity_refs[0].unknown, h);
        assert_eq!(span.attributes[0].value, Value::RawPair(odd_pair));
        assert_eq!(span.attributes[1].value, Value::Raw(odd_value));
    }
}

/// An `AnyValue` with `depth` arrays (or maps) around a bool.
fn nested(depth: usize, map: bool) -> Vec<u8> {
    (0..depth).fold(
        vec![0x10, 1],
        |inner, _| if map { field(6, &field(1, &field(2, &inner))) } else { field(5, &field(1, &inner)) },
    )
}

#[test]
fn spans_nested_too_deep_are_refused_alone() {
    for map in [false, true] {
        let with = |depth| span_bytes(&field(9, &field(2, &nested(depth, map))));
        let body = request_bytes(&[with(MAX_VALUE_DEPTH), with(MAX_VALUE_DEPTH + 1), with(1), with(2000)]);
        let walked = walk(&body, WalkOptions::default()).unwrap();
        assert_eq!(walked.ordinals, [0, 2]);
        assert_eq!(walked.refused, [(1, RefusalReason::AttributeTooDeep), (3, RefusalReason::AttributeTooDeep)]);
        assert_eq!(stored(&walked.batch).len(), 2, "the deepest value allowed parses back");
    }
}

#[test]
fn a_resource_or_scope_nested_too_deep_refuses_its_spans() {
    let deep = field(1, &field(2, &nested(MAX_VALUE_DEPTH + 1, true)));
    let plain = field(2, &field(2, &span_bytes(&[])));
    let body = [field(1, &[field(1, &deep), plain.clone()].concat()), field(1, &plain)].concat();
    let walked = walk(&body, WalkOptions::default()).unwrap();
    assert_eq!(walked.refused, [(0, RefusalReason::AttributeTooDeep)]);
    assert_eq!(walked.ordinals, [1]);

    let deep = field(3, &field(2, &nested(MAX_VALUE_DEPTH + 1, true)));
    let scope_spans = field(2, &[field(1, &deep), field(2, &span_bytes(&[]))].concat());
    let body = field(1, &[scope_spans, plain].concat());
    let walked = walk(&body, WalkOptions::default()).unwrap();
    assert_eq!(walked.refused, [(0, RefusalReason::AttributeTooDeep)]);
    assert_eq!(walked.ordinals, [1]);
}

#[test]
fn only_the_largest_attributes_are_refused() {
    let with = |len: usize| span_bytes(&field(9, &[field(1, b"k"), field(2, &field(1, &vec![b'x'; len]))].concat()));
    let body = request_bytes(&[with(10), with(11), with(0)]);
    let walked = walk(&body, WalkOptions { max_attribute_bytes: Some(10), refused: &[] }).unwrap();
    assert_eq!(walked.refused, [(1, RefusalReason::AttributeTooLarge)]);
    assert_eq!(walked.ordinals, [0, 2]);
}

/// Values of one key that hardly ever repeat are no longer looked up: that must not change them.
#[test]
fn values_that_never_repeat_come_back() {
    let spans: Vec<Vec<u8>> = (0..3000)
        .map(|n| {
            let value = if n % 50 == 0 { "the same".to_owned() } else { format!("value {n}") };
            span_bytes(&field(9, &[field(1, b"user"), field(2, &field(1, value.as_bytes()))].concat()))
        })
        .collect();
    let body = request_bytes(&spans);
    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
    assert_same(&walk(&body, WalkOptions::default()).unwrap(), &request);
}
