//! OTLP written for the receivers of other protocols, straight into bytes: attributes, a span at a time, spans in groups.
//!
//! Owns: how attributes, statuses and groups look on the wire, and the bound on what a request may become. Does not own: what
//! the fields of another protocol mean. Fields of a message may come in any order, so that a span is written as it is read;
//! what only the rest of the span can decide is written first and taken out again at its end ([`Draft::cut`]).

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::ops::Range;

use hashbrown::HashTable;

use super::wire::{
    LENGTH_DELIMITED, VARINT, begin_message, end_message, put_bytes, put_fixed32, put_fixed64, put_tag, put_varint,
    varint_len,
};
use crate::pipeline::IngestError;

/// Fields of `Span`.
pub(crate) mod span {
    pub(crate) const TRACE_ID: u32 = 1;
    pub(crate) const SPAN_ID: u32 = 2;
    pub(crate) const TRACE_STATE: u32 = 3;
    pub(crate) const PARENT_SPAN_ID: u32 = 4;
    pub(crate) const NAME: u32 = 5;
    pub(crate) const KIND: u32 = 6;
    pub(crate) const START: u32 = 7;
    pub(crate) const END: u32 = 8;
    pub(crate) const ATTRIBUTES: u32 = 9;
    pub(crate) const EVENTS: u32 = 11;
    pub(crate) const LINKS: u32 = 13;
    pub(crate) const STATUS: u32 = 15;
    pub(crate) const FLAGS: u32 = 16;
}

/// Fields of `Span.Event`.
pub(crate) mod event {
    pub(crate) const TIME: u32 = 1;
    pub(crate) const NAME: u32 = 2;
    pub(crate) const ATTRIBUTES: u32 = 3;
    pub(crate) const DROPPED: u32 = 4;
}

/// Fields of `Span.Link`.
pub(crate) mod link {
    pub(crate) const TRACE_ID: u32 = 1;
    pub(crate) const SPAN_ID: u32 = 2;
    pub(crate) const TRACE_STATE: u32 = 3;
    pub(crate) const ATTRIBUTES: u32 = 4;
    pub(crate) const DROPPED: u32 = 5;
}

/// `Resource.attributes`.
pub(crate) const RESOURCE_ATTRIBUTES: u32 = 1;

/// `SpanKind`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    #[default]
    Unspecified = 0,
    Internal = 1,
    Server = 2,
    Client = 3,
    Producer = 4,
    Consumer = 5,
}

impl Kind {
    /// The kind by its lower-case name; unspecified for any other word.
    pub(crate) fn of_word(word: &[u8]) -> Self {
        match word {
            b"internal" => Self::Internal,
            b"server" => Self::Server,
            b"client" => Self::Client,
            b"producer" => Self::Producer,
            b"consumer" => Self::Consumer,
            _ => Self::Unspecified,
        }
    }
}

/// `StatusCode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    #[default]
    Unset = 0,
    Ok = 1,
    Error = 2,
}

impl Code {
    /// What an HTTP status says of a span of this kind: a client's mistake is no failure of the server.
    pub(crate) fn of_http(status: i64, kind: Kind) -> Self {
        match status {
            100..=399 => Self::Unset,
            400..=499 if kind == Kind::Client => Self::Error,
            400..=499 if kind == Kind::Server => Self::Unset,
            _ => Self::Error,
        }
    }
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scalar<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
}

impl<'a> Scalar<'a> {
    /// Text if it is UTF-8. Other bytes stay what they are, as bytes: OTLP has no other place for them.
    #[inline]
    pub(crate) fn text_or_bytes(bytes: &'a [u8]) -> Self {
        std::str::from_utf8(bytes).map_or(Self::Bytes(bytes), Self::Text)
    }

    fn len(self) -> usize {
        let bytes = |len: usize| 1 + varint_len(len as u64) + len;
        match self {
            Self::Text(text) => bytes(text.len()),
            Self::Bytes(value) => bytes(value.len()),
            Self::Bool(_) => 2,
            Self::Int(value) => 1 + varint_len(value as u64),
            Self::Double(_) => 9,
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => put_bytes(1, text.as_bytes(), out),
            Self::Bool(value) => out.extend([0x10, u8::from(value)]),
            Self::Int(value) => {
                put_tag(3, VARINT, out);
                put_varint(value as u64, out);
            }
            Self::Double(value) => put_fixed64(4, value.to_bits(), out),
            Self::Bytes(value) => put_bytes(7, value, out),
        }
    }
}

/// Names must be UTF-8 in OTLP: other bytes become U+FFFD.
#[inline]
pub(crate) fn name(bytes: &[u8]) -> Cow<'_, str> {
    // The check alone is several times as fast as looking for what to replace.
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// Appends a `KeyValue` as field `number`.
#[inline]
pub(crate) fn put_attribute(number: u32, key: &str, value: Scalar<'_>, out: &mut Vec<u8>) {
    let value_len = value.len();
    let pair = 1 + varint_len(key.len() as u64) + key.len() + 1 + varint_len(value_len as u64) + value_len;
    put_tag(number, LENGTH_DELIMITED, out);
    put_varint(pair as u64, out);
    put_bytes(1, key.as_bytes(), out);
    put_tag(2, LENGTH_DELIMITED, out);
    put_varint(value_len as u64, out);
    value.put(out);
}

/// Appends an attribute whose value is the array of these encoded values.
pub(crate) fn put_array(number: u32, key: &str, values: &[u8], out: &mut Vec<u8>) {
    let pair = begin_message(number, out);
    put_bytes(1, key.as_bytes(), out);
    let value = begin_message(2, out);
    put_bytes(5, values, out);
    end_message(value, out);
    end_message(pair, out);
}

/// Appends an attribute whose value is any JSON; numbers without a fraction are integers. The nesting is bounded by who parsed it.
pub(crate) fn put_json(number: u32, key: &str, value: &serde_json::Value, out: &mut Vec<u8>) {
    let pair = begin_message(number, out);
    put_bytes(1, key.as_bytes(), out);
    let at = begin_message(2, out);
    put_json_value(value, out);
    end_message(at, out);
    end_message(pair, out);
}

fn put_json_value(value: &serde_json::Value, out: &mut Vec<u8>) {
    use serde_json::Value;
    match value {
        Value::Null => {}
        Value::Bool(value) => Scalar::Bool(*value).put(out),
        Value::Number(number) => match number.as_i64() {
            Some(int) => Scalar::Int(int).put(out),
            None => Scalar::Double(number.as_f64().unwrap_or_default()).put(out),
        },
        Value::String(text) => Scalar::Text(text).put(out),
        Value::Array(values) => {
            let array = begin_message(5, out);
            for value in values {
                let item = begin_message(1, out);
                put_json_value(value, out);
                end_message(item, out);
            }
            end_message(array, out);
        }
        Value::Object(pairs) => {
            let map = begin_message(6, out);
            pairs.iter().for_each(|(key, value)| put_json(1, key, value, out));
            end_message(map, out);
        }
    }
}

/// Unix nanoseconds of a time in microseconds; times before 1970 and beyond 2554 are the nearest that OTLP has.
pub(crate) fn nanos(micros: i64) -> u64 {
    u64::try_from(micros).unwrap_or_default().saturating_mul(1_000)
}

/// Scalars every span has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head<'a> {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    /// Zero: none.
    pub(crate) parent: [u8; 8],
    pub(crate) trace_state: &'a [u8],
    pub(crate) kind: Kind,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) code: Code,
    pub(crate) message: &'a [u8],
    pub(crate) flags: u32,
}

/// One span being written, without tag and length. Used again for the next.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) bytes: Vec<u8>,
    cuts: Vec<Range<usize>>,
    max: usize,
}

impl Draft {
    /// No span may become longer than `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.cuts.clear();
    }

    pub(crate) fn check(&self) -> Result<(), IngestError> {
        if self.bytes.len() > self.max { Err(too_large(self.max)) } else { Ok(()) }
    }

    /// Writes an attribute of the span and says where.
    #[inline]
    pub(crate) fn attribute(&mut self, key: &str, value: Scalar<'_>) -> Range<usize> {
        let start = self.bytes.len();
        put_attribute(span::ATTRIBUTES, key, value, &mut self.bytes);
        start..self.bytes.len()
    }

    /// Takes out at the end of the span what was written there. Nothing is to be cut twice.
    pub(crate) fn cut(&mut self, place: Range<usize>) {
        self.cuts.push(place);
    }

    /// Makes the cuts and appends `head`.
    pub(crate) fn finish(&mut self, head: &Head<'_>) {
        if !self.cuts.is_empty() {
            self.settle();
        }
        let out = &mut self.bytes;
        put_bytes(span::TRACE_ID, &head.trace_id, out);
        put_bytes(span::SPAN_ID, &head.span_id, out);
        if !head.trace_state.is_empty() {
            put_bytes(span::TRACE_STATE, name(head.trace_state).as_bytes(), out);
        }
        if head.parent != [0; 8] {
            put_bytes(span::PARENT_SPAN_ID, &head.parent, out);
        }
        if head.kind != Kind::Unspecified {
            put_tag(span::KIND, VARINT, out);
            out.push(head.kind as u8);
        }
        put_fixed64(span::START, head.start, out);
        put_fixed64(span::END, head.end, out);
        if head.code != Code::Unset || !head.message.is_empty() {
            let status = begin_message(span::STATUS, out);
            if !head.message.is_empty() {
                put_bytes(2, name(head.message).as_bytes(), out);
            }
            if head.code != Code::Unset {
                out.extend([0x18, head.code as u8]);
            }
            end_message(status, out);
        }
        if head.flags != 0 {
            put_fixed32(span::FLAGS, head.flags, out);
        }
    }

    fn settle(&mut self) {
        self.cuts.sort_unstable_by_key(|cut| cut.start);
        let (mut to, mut from) = (self.cuts[0].start, self.cuts[0].start);
        for cut in &self.cuts {
            self.bytes.copy_within(from..cut.start, to);
            to += cut.start - from;
            from = cut.end;
        }
        let rest = self.bytes.len() - from;
        self.bytes.copy_within(from.., to);
        self.bytes.truncate(to + rest);
        self.cuts.clear();
    }
}

/// What a group costs beside its spans: bounds requests in which each span makes one.
const GROUP_BYTES: usize = 256;

/// Spans by resource and scope, in the order in which these came first.
#[derive(Debug)]
pub(crate) struct Groups {
    max: usize,
    bytes: usize,
    /// Spans as fields of their group, in the order in which they came.
    spans: Vec<u8>,
    pieces: Vec<Piece>,
    resources: Vec<ResourceGroup>,
    scopes: Vec<ScopeGroup>,
    resource_table: HashTable<usize>,
    scope_table: HashTable<usize>,
    hasher: foldhash::fast::RandomState,
    /// The scope group of the last span.
    last: usize,
}

/// Spans of one scope group that came one after the other.
#[derive(Debug)]
struct Piece {
    scope: usize,
    place: Range<usize>,
}

/// A state of [`Groups`] to go back to.
#[derive(Debug)]
pub(crate) struct GroupsMark {
    bytes: usize,
    spans: usize,
    pieces: usize,
}

#[derive(Debug)]
struct ResourceGroup {
    message: Box<[u8]>,
    scopes: Vec<usize>,
}

#[derive(Debug)]
struct ScopeGroup {
    resource: usize,
    message: Box<[u8]>,
}

impl ScopeGroup {
    /// Bytes of the `ScopeSpans` with so many bytes of spans.
    fn len(&self, spans: usize) -> usize {
        let scope = if self.message.is_empty() { 0 } else { field_len(self.message.len()) };
        scope + spans
    }
}

fn field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

impl Groups {
    /// The request made of a body of `body` bytes may become `max` bytes at most.
    pub(crate) fn new(body: usize, max: usize) -> Self {
        Self {
            max,
            bytes: 0,
            // Other protocols take twice the bytes and more. Growing a large buffer costs more than all else that is done here.
            spans: Vec::with_capacity((body / 2).min(max)),
            pieces: Vec::new(),
            resources: Vec::new(),
            scopes: Vec::new(),
            resource_table: HashTable::new(),
            scope_table: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            last: 0,
        }
    }

    /// Most bytes of the request.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Adds a span under the `Resource` and `InstrumentationScope` given as messages; an empty scope is none.
    pub(crate) fn push(&mut self, resource: &[u8], scope: &[u8], span: &[u8]) -> Result<(), IngestError> {
        let same = self
            .scopes
            .get(self.last)
            .is_some_and(|last| *last.message == *scope && *self.resources[last.resource].message == *resource);
        if !same {
            self.last = self.group(resource, scope);
        }
        self.bytes += field_len(span.len());
        if self.bytes > self.max {
            return Err(too_large(self.max));
        }
        let start = self.spans.len();
        put_bytes(2, span, &mut self.spans);
        let end = self.spans.len();
        match self.pieces.last_mut() {
            Some(piece) if piece.scope == self.last => piece.place.end = end,
            _ => self.pieces.push(Piece { scope: self.last, place: start..end }),
        }
        Ok(())
    }

    fn group(&mut self, resource: &[u8], scope: &[u8]) -> usize {
        let hash = self.hasher.hash_one(resource);
        let at = match self.resource_table.find(hash, |at| *self.resources[*at].message == *resource) {
            Some(at) => *at,
            None => {
                let at = self.resources.len();
                self.bytes += resource.len() + GROUP_BYTES;
                self.resources.push(ResourceGroup { message: resource.into(), scopes: Vec::new() });
                let rehash = |at: &usize| self.hasher.hash_one(&*self.resources[*at].message);
                self.resource_table.insert_unique(hash, at, rehash);
                at
            }
        };
        let hash = self.hasher.hash_one((at, scope));
        let is = |group: &usize| self.scopes[*group].resource == at && *self.scopes[*group].message == *scope;
        if let Some(group) = self.scope_table.find(hash, is) {
            return *group;
        }
        let group = self.scopes.len();
        self.bytes += scope.len() + GROUP_BYTES;
        self.scopes.push(ScopeGroup { resource: at, message: scope.into() });
        self.resources[at].scopes.push(group);
        let rehash = |group: &usize| {
            let scope = &self.scopes[*group];
            self.hasher.hash_one((scope.resource, &*scope.message))
        };
        self.scope_table.insert_unique(hash, group, rehash);
        group
    }

    /// What is in the groups now.
    pub(crate) fn mark(&self) -> GroupsMark {
        GroupsMark { bytes: self.bytes, spans: self.spans.len(), pieces: self.pieces.len() }
    }

    /// Takes out every span that came after `mark`.
    pub(crate) fn take_back(&mut self, mark: &GroupsMark) {
        self.bytes = mark.bytes;
        self.spans.truncate(mark.spans);
        self.pieces.truncate(mark.pieces);
        if let Some(piece) = self.pieces.last_mut() {
            piece.place.end = mark.spans;
        }
    }

    /// The `ExportTraceServiceRequest`. Groups without spans are left out.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let mut spans = vec![0; self.scopes.len()];
        self.pieces.iter().for_each(|piece| spans[piece.scope] += piece.place.len());
        // Stable: spans stay in their order.
        self.pieces.sort_by_key(|piece| piece.scope);
        self.resources.iter_mut().for_each(|resource| resource.scopes.retain(|at| spans[*at] > 0));
        self.resources.retain(|resource| !resource.scopes.is_empty());
        let mut out = Vec::with_capacity(self.bytes + 8 * (self.resources.len() + self.scopes.len()));
        for resource in &self.resources {
            let scopes = resource.scopes.iter().map(|at| field_len(self.scopes[*at].len(spans[*at])));
            let len = field_len(resource.message.len()) + scopes.sum::<usize>();
            put_tag(1, LENGTH_DELIMITED, &mut out);
            put_varint(len as u64, &mut out);
            put_bytes(1, &resource.message, &mut out);
            for at in &resource.scopes {
                let scope = &self.scopes[*at];
                put_tag(2, LENGTH_DELIMITED, &mut out);
                put_varint(scope.len(spans[*at]) as u64, &mut out);
                if !scope.message.is_empty() {
                    put_bytes(1, &scope.message, &mut out);
                }
                let first = self.pieces.partition_point(|piece| piece.scope < *at);
                let pieces = self.pieces[first..].iter().take_while(|piece| piece.scope == *at);
                pieces.for_each(|piece| out.extend_from_slice(&self.spans[piece.place.clone()]));
            }
        }
        out
    }
}

/// An `InstrumentationScope`; empty without a name.
pub(crate) fn put_scope(scope_name: &[u8], version: &[u8], out: &mut Vec<u8>) {
    if scope_name.is_empty() {
        return;
    }
    put_bytes(1, name(scope_name).as_bytes(), out);
    if !version.is_empty() {
        put_bytes(2, name(version).as_bytes(), out);
    }
}

fn too_large(limit: usize) -> IngestError {
    IngestError::TooLarge { what: "request as OTLP", limit }
}
