//! Any OTLP request: every kind of value, odd ids, absurd times, groups that repeat, and any of the many bytes that say the same.

use prost::Message;
use spanhouse_proto::otlp_common::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value as Any,
};
use spanhouse_proto::otlp_resource::Resource;
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span, Status, span};

/// Random numbers from a seed (splitmix64): a case is two numbers, and a smaller case is a smaller number.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }

    pub(super) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(super) fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    fn many<T>(&mut self, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(most + 1);
        (0..count).map(|_| one(self)).collect()
    }

    fn maybe<T>(&mut self, one: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (!self.one_in(5)).then(|| one(self))
    }
}

/// What requests are made of.
pub(super) struct Generator {
    pub(super) dice: Dice,
    /// Most elements of each list.
    pub(super) size: usize,
    /// Whether ids may be such that the span is refused.
    pub(super) bad_ids: bool,
}

impl Generator {
    pub(super) fn new(seed: u64, size: usize) -> Self {
        Self { dice: Dice(seed), size, bad_ids: true }
    }

    pub(super) fn request(&mut self) -> ExportTraceServiceRequest {
        // Few distinct resources and scopes, so that equal ones come several times in a request.
        let resources: Vec<_> = (0..3).map(|_| self.resource()).collect();
        let scopes: Vec<_> = (0..3).map(|_| self.scope()).collect();
        let groups = self.dice.below(self.size + 1);
        let resource_spans = (0..groups)
            .map(|_| ResourceSpans {
                resource: self.dice.maybe(|dice| dice.pick(&resources)),
                schema_url: self.dice.pick(&["", "", "https://a", "https://b"]).into(),
                scope_spans: (0..self.dice.below(self.size + 1))
                    .map(|_| ScopeSpans {
                        scope: self.dice.maybe(|dice| dice.pick(&scopes)),
                        schema_url: self.dice.pick(&["", "", "https://a"]).into(),
                        spans: (0..self.dice.below(self.size + 1)).map(|_| self.span()).collect(),
                    })
                    .collect(),
            })
            .collect();
        ExportTraceServiceRequest { resource_spans }
    }

    fn resource(&mut self) -> Resource {
        let mut attributes = self.attributes();
        if self.dice.one_in(2) {
            let name = self.value(0);
            let shop = AnyValue { value: Some(Any::StringValue("shop".into())) };
            let value = self.dice.pick(&[name, shop.clone(), shop]);
            attributes.push(KeyValue { key: "service.name".into(), value: Some(value), key_strindex: 0 });
        }
        let entity = |dice: &mut Dice| EntityRef {
            schema_url: text(dice),
            r#type: text(dice),
            id_keys: dice.many(3, text),
            description_keys: dice.many(2, text),
        };
        Resource {
            attributes,
            dropped_attributes_count: count(&mut self.dice),
            entity_refs: if self.dice.one_in(3) { self.dice.many(2, entity) } else { Vec::new() },
        }
    }

    fn scope(&mut self) -> InstrumentationScope {
        InstrumentationScope {
            name: text(&mut self.dice),
            version: text(&mut self.dice),
            attributes: if self.dice.one_in(2) { self.attributes() } else { Vec::new() },
            dropped_attributes_count: count(&mut self.dice),
        }
    }

    fn span(&mut self) -> Span {
        let (events, links) = (self.dice.below(3), self.dice.below(3));
        // Few ids: traces with many spans, shared span ids, parents that are there, are not, or are the span itself.
        let trace_id = if self.bad_ids && self.dice.one_in(9) { self.odd_id(16) } else { self.small_id(16, 4) };
        let span_id = if self.bad_ids && self.dice.one_in(9) { self.odd_id(8) } else { self.small_id(8, 9) };
        let parent_span_id = match self.dice.below(12) {
            0 if self.bad_ids => self.odd_id(8),
            0 | 1 => vec![0; 8],
            2..=4 => Vec::new(),
            _ => self.small_id(8, 10),
        };
        Span {
            trace_id,
            span_id,
            parent_span_id,
            trace_state: if self.dice.one_in(3) { text(&mut self.dice) } else { String::new() },
            flags: count(&mut self.dice),
            name: text(&mut self.dice),
            kind: self.dice.pick(&[0, 1, 2, 2, 3, 3, 4, 5, 6, -1, i32::MAX, i32::MIN]),
            start_time_unix_nano: time(&mut self.dice),
            end_time_unix_nano: time(&mut self.dice),
            attributes: self.attributes(),
            dropped_attributes_count: count(&mut self.dice),
            events: (0..events).map(|_| self.event()).collect(),
            dropped_events_count: count(&mut self.dice),
            links: (0..links).map(|_| self.link()).collect(),
            dropped_links_count: count(&mut self.dice),
            status: self.dice.maybe(|dice| Status { message: text(dice), code: dice.pick(&[0, 1, 2, 2, 3, -1]) }),
        }
    }

    fn event(&mut self) -> span::Event {
        span::Event {
            time_unix_nano: time(&mut self.dice),
            name: text(&mut self.dice),
            attributes: self.attributes(),
            dropped_attributes_count: count(&mut self.dice),
        }
    }

    fn link(&mut self) -> span::Link {
        span::Link {
            trace_id: if self.dice.one_in(2) { self.odd_id(16) } else { self.small_id(16, 3) },
            span_id: if self.dice.one_in(3) { self.odd_id(8) } else { self.small_id(8, 3) },
            trace_state: text(&mut self.dice),
            attributes: self.attributes(),
            dropped_attributes_count: count(&mut self.dice),
            flags: count(&mut self.dice),
        }
    }

    fn small_id(&mut self, len: usize, ids: usize) -> Vec<u8> {
        let mut id = vec![0; len];
        id[len - 1] = 1 + self.dice.below(ids) as u8;
        id
    }

    fn odd_id(&mut self, len: usize) -> Vec<u8> {
        let len = self.dice.pick(&[0, 1, len - 1, len, len + 1, 40]);
        let fill = self.dice.pick(&[0, 7, 255]);
        vec![fill; len]
    }

    fn attributes(&mut self) -> Vec<KeyValue> {
        let count = self.dice.below(5);
        (0..count).map(|_| self.pair(0)).collect()
    }

    fn pair(&mut self, depth: usize) -> KeyValue {
        // Keys that differ only in case, keys that would make a bad column name, and keys that look like syntax.
        let keys = ["a", "a", "b", "B", "http.route", "HTTP.Route", "", "[\"a\"]", "tab\t", "ключ", "span.a", "x\u{0}"];
        let key = self.dice.pick(&keys).to_owned();
        let key_strindex = if self.dice.one_in(12) { self.dice.pick(&[1, -1, i32::MAX]) } else { 0 };
        let value = if self.dice.one_in(12) { None } else { Some(self.value(depth)) };
        KeyValue { key, value, key_strindex }
    }

    pub(super) fn value(&mut self, depth: usize) -> AnyValue {
        let dice = &mut self.dice;
        let value = match dice.below(if depth < 4 { 14 } else { 11 }) {
            0 => None,
            1 => Some(Any::BoolValue(dice.one_in(2))),
            2 | 3 => Some(Any::IntValue(dice.pick(&[0, 1, -1, 200, 200, i64::MIN, i64::MAX]))),
            4 | 5 => {
                let odd_nan = f64::from_bits(0xfff8_0000_dead_beef);
                let all = [0.0, -0.0, 1.0, 1.5, 1e300, 5e-324, f64::NAN, odd_nan, f64::INFINITY, f64::NEG_INFINITY];
                Some(Any::DoubleValue(dice.pick(&all)))
            }
            6 => Some(Any::BytesValue(dice.pick(&[&b""[..], b"\0\xff\x80", b"text"]).to_vec())),
            7 if dice.one_in(3) => Some(Any::StringValueStrindex(dice.pick(&[0, 1, -1]))),
            7..=10 => Some(Any::StringValue(text(dice))),
            11 | 12 => {
                let len = dice.below(4);
                let values = (0..len).map(|_| self.value(depth + 1)).collect();
                Some(Any::ArrayValue(ArrayValue { values }))
            }
            _ => {
                let len = dice.below(4);
                let values = (0..len).map(|_| self.pair(depth + 1)).collect();
                Some(Any::KvlistValue(KeyValueList { values }))
            }
        };
        AnyValue { value }
    }
}

fn text(dice: &mut Dice) -> String {
    let all = [
        "",
        "",
        "GET /",
        "GET /",
        "checkout",
        "\"quoted\\\" \n\t\r",
        "\u{0}\u{1f}\u{7f}",
        "日本語",
        "🦀\u{2028}",
        "null",
        "{}",
    ];
    match dice.below(8) {
        0 => format!("user-{}", dice.below(100_000)),
        1 => "long ".repeat(dice.below(60)),
        _ => dice.pick(&all).to_owned(),
    }
}

fn count(dice: &mut Dice) -> u32 {
    dice.pick(&[0, 0, 0, 0, 1, 300, u32::MAX])
}

fn time(dice: &mut Dice) -> u64 {
    let now = 1_700_000_000_000_000_000;
    match dice.below(3) {
        0 => dice.pick(&[0, 1, now, now, 1 << 63, (1 << 63) - 1, u64::MAX]),
        1 => now + dice.below(5) as u64,
        _ => now + dice.below(4_000_000_000) as u64,
    }
}

/// The messages of a request, as far as their fields decide how bytes may be moved about.
#[derive(Clone, Copy)]
enum Shape {
    Request,
    ResourceSpans,
    Resource,
    ScopeSpans,
    Scope,
    Span,
    Event,
    Link,
    Pair,
    Value,
    Array,
    Map,
    /// Messages without messages inside: entity refs and statuses.
    Flat,
}

impl Shape {
    fn of_field(self, number: u32) -> Option<Self> {
        Some(match (self, number) {
            (Self::Request, 1) => Self::ResourceSpans,
            (Self::ResourceSpans, 1) => Self::Resource,
            (Self::ResourceSpans, 2) => Self::ScopeSpans,
            (Self::ScopeSpans, 1) => Self::Scope,
            (Self::ScopeSpans, 2) => Self::Span,
            (Self::Resource, 1) | (Self::Scope, 3) | (Self::Span, 9) | (Self::Event, 3) | (Self::Link, 4) => Self::Pair,
            (Self::Map, 1) => Self::Pair,
            (Self::Resource, 3) | (Self::Span, 15) => Self::Flat,
            (Self::Span, 11) => Self::Event,
            (Self::Span, 13) => Self::Link,
            (Self::Pair, 2) | (Self::Array, 1) => Self::Value,
            (Self::Value, 5) => Self::Array,
            (Self::Value, 6) => Self::Map,
            _ => return None,
        })
    }
}

/// Other bytes for a request: fields in another order, given twice, split, or unknown. One in `rarity` messages changes.
pub(super) fn scramble(request: &ExportTraceServiceRequest, dice: &mut Dice, rarity: usize) -> Vec<u8> {
    scramble_message(&request.encode_to_vec(), Shape::Request, dice, rarity)
}

fn scramble_message(bytes: &[u8], shape: Shape, dice: &mut Dice, rarity: usize) -> Vec<u8> {
    let mut fields = fields_of(bytes);
    for field in &mut fields {
        if let Some(inner) = shape.of_field(field.number) {
            field.content = scramble_message(&field.content, inner, dice, rarity);
        }
    }
    if dice.one_in(rarity) {
        match dice.below(4) {
            0 => {
                for at in (1..fields.len()).rev() {
                    fields.swap(at, dice.below(at + 1));
                }
            }
            1 if !fields.is_empty() => {
                let again = dice.pick(&fields);
                fields.insert(dice.below(fields.len() + 1), again);
            }
            // An empty or default field, said all the same: any of the singular ones.
            2 => fields.insert(dice.below(fields.len() + 1), default_field(shape, dice)),
            _ => fields.insert(dice.below(fields.len() + 1), Field { number: 0, wire: 0, content: unknown_field(dice) }),
        }
    }
    let mut out = Vec::new();
    for field in fields {
        match (field.number, field.wire) {
            (0, _) => {}
            (number, 2) => {
                prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut out);
                prost::encoding::encode_varint(field.content.len() as u64, &mut out);
            }
            (number, wire) => prost::encoding::encode_varint(u64::from(number << 3 | wire), &mut out),
        }
        out.extend_from_slice(&field.content);
    }
    out
}

/// A field with its payload. Number 0 holds whole fields, tags included.
#[derive(Clone)]
struct Field {
    number: u32,
    wire: u32,
    content: Vec<u8>,
}

fn fields_of(mut bytes: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = prost::encoding::decode_varint(&mut bytes).unwrap() as u32;
        let len = match key & 7 {
            0 => 1 + bytes.iter().take_while(|byte| **byte >= 0x80).count(),
            1 => 8,
            2 => prost::encoding::decode_varint(&mut bytes).unwrap() as usize,
            _ => 4,
        };
        let (content, rest) = bytes.split_at(len);
        fields.push(Field { number: key >> 3, wire: key & 7, content: content.to_vec() });
        bytes = rest;
    }
    fields
}

fn default_field(shape: Shape, dice: &mut Dice) -> Field {
    let (number, wire) = match shape {
        Shape::Request => (1, 2),
        Shape::ResourceSpans | Shape::ScopeSpans => dice.pick(&[(1, 2), (2, 2), (3, 2)]),
        Shape::Resource => dice.pick(&[(1, 2), (2, 0), (3, 2)]),
        Shape::Scope => dice.pick(&[(1, 2), (2, 2), (3, 2), (4, 0)]),
        Shape::Span => {
            dice.pick(&[(3, 2), (4, 2), (5, 2), (6, 0), (7, 1), (8, 1), (10, 0), (11, 2), (13, 2), (15, 2), (16, 5)])
        }
        Shape::Event => dice.pick(&[(1, 1), (2, 2), (3, 2), (4, 0)]),
        Shape::Link => dice.pick(&[(1, 2), (2, 2), (3, 2), (4, 2), (5, 0), (6, 5)]),
        Shape::Pair => dice.pick(&[(1, 2), (2, 2), (3, 0)]),
        Shape::Value => dice.pick(&[(1, 2), (2, 0), (3, 0), (4, 1), (5, 2), (6, 2), (7, 2), (8, 0)]),
        Shape::Array | Shape::Map => (1, 2),
        Shape::Flat => (2, 2),
    };
    let content = match wire {
        0 => vec![0],
        1 => vec![0; 8],
        5 => vec![0; 4],
        _ => Vec::new(),
    };
    Field { number, wire, content }
}

/// A field no version knows, of any wire type.
pub(super) fn unknown_field(dice: &mut Dice) -> Vec<u8> {
    let mut out = Vec::new();
    let number = dice.pick(&[99u32, 1000, (1 << 29) - 1]);
    put_unknown(number, dice.below(5), dice, &mut out);
    out
}

fn put_unknown(number: u32, kind: usize, dice: &mut Dice, out: &mut Vec<u8>) {
    let key = |wire: u32, out: &mut Vec<u8>| prost::encoding::encode_varint(u64::from(number << 3 | wire), out);
    match kind {
        0 => {
            key(0, out);
            prost::encoding::encode_varint(dice.roll(), out);
        }
        1 => {
            key(1, out);
            out.extend_from_slice(&dice.roll().to_le_bytes());
        }
        2 => {
            key(2, out);
            out.extend_from_slice(b"\x03\xff\x00\xfe");
        }
        3 => {
            key(5, out);
            out.extend_from_slice(&[0xff; 4]);
        }
        _ => {
            key(3, out);
            for _ in 0..dice.below(3) {
                let kind = dice.below(5);
                put_unknown(7, kind, dice, out);
            }
            key(4, out);
        }
    }
}
