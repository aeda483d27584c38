//! The walker: from the bytes of an `ExportTraceServiceRequest` straight into a [`SpanBatch`], without owned structs between.
//!
//! One pass over every span; each text is compared with what stood at the same place in the span before, then looked up, and
//! only copied (and checked to be UTF-8) if it is new. A request is all or nothing: malformed bytes anywhere fail it. Single
//! spans whose ids are invalid, or that break a limit, are refused by ordinal (their place in the request, counted from 0).
//!
//! Owns: validation and refusal of spans. Does not own: decompression, JSON, tenants, the WAL. Replay passes the ordinals the
//! WAL recorded and no limits, so what it rebuilds does not depend on the configuration of the day.

mod groups;

use spanhouse_common::batch::{
    AttrValues, AttrsEnd, EventRow, Interner, ItemAttrs, LinkRow, Row, Shape, ShapeFinder, SpanBatch, Sym, ValueKind,
    row_flag,
};
use spanhouse_common::caps::MAX_SPANS_PER_REQUEST;
use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::model::{Value, typed_json};

use groups::{Group, Groups, Part, ResourceTable, ScopeTable, known_text};

use super::values::{self, ValueError};
use super::wire::{Malformed, Reader, put_bytes};
use crate::pipeline::RefusalReason;

/// What may refuse spans, beyond their ids.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalkOptions<'a> {
    /// Longest attribute value in bytes.
    pub max_attribute_bytes: Option<usize>,
    /// Ordinals to leave out, ascending: refused when the request was received.
    pub refused: &'a [u32],
}

/// What a walk made of a request.
#[derive(Debug, Default)]
pub struct Walked {
    pub batch: SpanBatch,
    /// Ordinals and reasons of the spans not in the batch, ascending. Those of [`WalkOptions::refused`] are not listed.
    pub refused: Vec<(u32, RefusalReason)>,
    /// Ordinal of each row of the batch.
    pub ordinals: Vec<u32>,
    /// Encoded size of each row's span.
    pub span_bytes: Vec<u32>,
}

/// The tables that make one walk fast; kept by a worker and used again for the next request.
#[derive(Debug, Default)]
pub struct Walker {
    interner: Interner,
    shapes: ShapeFinder,
    /// By symbol of a key: what its values were like.
    hints: Vec<Hint>,
    /// The last batch, emptied: a batch grows in memory that is there already and leaves as an exact copy.
    room: SpanBatch,
}

/// Hints kept between requests.
const MAX_HINTS: usize = 1 << 16;

/// A larger batch leaves as it is: copying it would hold it twice.
const MAX_ROOM_BYTES: usize = 8 << 20;

#[derive(Clone, Copy, Debug, Default)]
struct Hint {
    /// The text value this key had.
    value: Sym,
    /// Lookups of text values that found nothing, against those that found something.
    misses: u16,
    hits: u16,
}

impl Hint {
    /// Most values of this key are new: looking them up costs more than storing the few repeats twice.
    fn mostly_unique(self) -> bool {
        self.misses > 128 && self.misses / 8 > self.hits
    }
}

enum Refuse {
    Span(RefusalReason),
    Malformed(Malformed),
}

impl From<Malformed> for Refuse {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl From<ValueError> for Refuse {
    fn from(error: ValueError) -> Self {
        match error {
            ValueError::Malformed(error) => Self::Malformed(error),
            ValueError::TooDeep => Self::Span(RefusalReason::AttributeTooDeep),
        }
    }
}

impl Walker {
    /// Walks one request.
    pub fn walk(&mut self, body: &[u8], options: WalkOptions<'_>) -> Result<Walked, Malformed> {
        self.interner.reset();
        self.shapes.reset();
        self.hints.clear();
        // One request with many keys must not cost memory for good.
        self.hints.shrink_to(MAX_HINTS);
        let groups = Groups::of_request(body)?;
        let batch = std::mem::take(&mut self.room);
        let mut walk = Walk {
            walker: self,
            options,
            out: Walked { batch, ..Walked::default() },
            ordinal: 0,
            next_refused: 0,
            scratch: Scratch::default(),
        };
        let walked = walk.groups(&groups);
        let mut out = walk.out;
        if out.batch.heap_bytes() > MAX_ROOM_BYTES {
            out.batch.shrink();
            return walked.map(|()| out);
        }
        self.room = std::mem::take(&mut out.batch);
        let walked = walked.map(|()| Walked { batch: self.room.clone(), ..out });
        self.room.clear();
        walked
    }
}

#[derive(Default)]
struct Scratch {
    json: String,
    unknown: Vec<u8>,
    status_unknown: Vec<u8>,
}

struct Walk<'w, 'o> {
    walker: &'w mut Walker,
    options: WalkOptions<'o>,
    out: Walked,
    ordinal: u32,
    next_refused: usize,
    scratch: Scratch,
}

/// Lengths of a batch's arrays, to take back what a refused span added.
struct Mark {
    attrs: AttrsEnd,
    events: usize,
    event_attrs: AttrsEnd,
    links: usize,
    link_attrs: AttrsEnd,
}

/// What an attribute belongs to.
#[derive(Clone, Copy)]
enum Owner {
    Span,
    Event,
    Link,
}

impl Owner {
    #[inline]
    fn values(self, batch: &mut SpanBatch) -> &mut AttrValues {
        match self {
            Self::Span => &mut batch.attrs,
            Self::Event => &mut batch.event_attrs,
            Self::Link => &mut batch.link_attrs,
        }
    }
}

impl Walk<'_, '_> {
    fn groups(&mut self, groups: &Groups<'_>) -> Result<(), Malformed> {
        let mut resources = ResourceTable::new(groups);
        let mut scopes = ScopeTable::default();
        for (at, group) in groups.all.iter().enumerate() {
            resources.enter(at);
            self.group(group, &mut resources, &mut scopes)?;
        }
        Ok(())
    }

    fn group(
        &mut self,
        group: &Group<'_>,
        resources: &mut ResourceTable<'_>,
        scopes: &mut ScopeTable,
    ) -> Result<(), Malformed> {
        for part in scopes.enter(group.bytes)? {
            self.scope_spans(&part, group.content, resources, scopes)?;
        }
        Ok(())
    }

    fn scope_spans(
        &mut self,
        part: &Part<'_>,
        content: usize,
        resources: &mut ResourceTable<'_>,
        scopes: &mut ScopeTable,
    ) -> Result<(), Malformed> {
        let refused = resources.groups.contents[content].resource.as_ref().err().copied();
        let refused = scopes.enter_part(part.content).or(refused);
        let mut reader = Reader::new(part.bytes);
        while let Some(tag) = reader.tag()? {
            if tag.number != 2 {
                reader.unknown(tag)?;
                continue;
            }
            let span = reader.bytes_of(tag)?;
            let ordinal = self.ordinal;
            self.ordinal += 1;
            if ordinal as usize >= MAX_SPANS_PER_REQUEST {
                return Err(Malformed { at: 0, what: "more spans in one request than the limit of 4,000,000" });
            }
            if self.options.refused.get(self.next_refused) == Some(&ordinal) {
                self.next_refused += 1;
                continue;
            }
            let mark = self.mark();
            // A span is read even if it will be refused: malformed bytes fail the request wherever they are.
            let row = self.span(span);
            match (row, refused) {
                (Ok(mut row), None) => {
                    row.resource = resources.index(content, row.trace_id, &mut self.out.batch, &mut self.walker.interner);
                    row.scope = scopes.index(part.content, row.trace_id, &mut self.out.batch, &mut self.walker.interner);
                    self.out.batch.rows.push(row);
                    self.out.ordinals.push(ordinal);
                    self.out.span_bytes.push(span.len() as u32);
                }
                (Ok(_), Some(reason)) | (Err(Refuse::Span(reason)), _) => {
                    self.take_back(&mark);
                    self.out.refused.push((ordinal, reason));
                }
                (Err(Refuse::Malformed(error)), _) => return Err(error),
            }
        }
        Ok(())
    }

    fn mark(&self) -> Mark {
        let batch = &self.out.batch;
        Mark {
            attrs: batch.attrs.end(),
            events: batch.events.len(),
            event_attrs: batch.event_attrs.end(),
            links: batch.links.len(),
            link_attrs: batch.link_attrs.end(),
        }
    }

    fn take_back(&mut self, mark: &Mark) {
        let batch = &mut self.out.batch;
        batch.attrs.truncate(mark.attrs);
        batch.events.truncate(mark.events);
        batch.event_attrs.truncate(mark.event_attrs);
        batch.links.truncate(mark.links);
        batch.link_attrs.truncate(mark.link_attrs);
    }

    #[inline]
    fn intern(&mut self, value: &[u8]) -> Result<Sym, Malformed> {
        self.walker.interner.intern(&mut self.out.batch.strings, value, |new| values::text(new).map(drop))
    }

    /// Reads a span. The first reason to refuse it is remembered while the rest is still checked.
    fn span(&mut self, bytes: &[u8]) -> Result<Row, Refuse> {
        let mut row = Row::default();
        let (mut trace_id, mut span_id, mut parent): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let mut refusal = None;
        let mut shape = Shape::EMPTY;
        self.scratch.unknown.clear();
        self.scratch.status_unknown.clear();
        let mut reader = Reader::new(bytes);
        while let Some(tag) = reader.tag()? {
            match tag.number {
                1 => trace_id = reader.bytes_of(tag)?,
                2 => span_id = reader.bytes_of(tag)?,
                3 => row.trace_state = self.intern(reader.bytes_of(tag)?)?,
                4 => parent = reader.bytes_of(tag)?,
                5 => row.name = self.intern(reader.bytes_of(tag)?)?,
                6 => row.kind = reader.varint_of(tag)? as i32,
                7 => row.start = reader.fixed64_of(tag)?,
                8 => row.end = reader.fixed64_of(tag)?,
                9 => {
                    let attr = self.attr(reader.bytes_of(tag)?, Owner::Span, &mut shape);
                    or_refuse(attr, &mut refusal)?;
                }
                10 => row.dropped_attributes = reader.varint_of(tag)? as u32,
                11 => {
                    let event = self.event(reader.bytes_of(tag)?);
                    or_refuse(event, &mut refusal)?;
                }
                12 => row.dropped_events = reader.varint_of(tag)? as u32,
                13 => {
                    let link = self.link(reader.bytes_of(tag)?);
                    or_refuse(link, &mut refusal)?;
                }
                14 => row.dropped_links = reader.varint_of(tag)? as u32,
                15 => self.status(reader.bytes_of(tag)?, &mut row)?,
                16 => row.flags = reader.fixed32_of(tag)?,
                _ => values::keep(&mut reader, tag, &mut self.scratch.unknown)?,
            }
        }
        if !self.scratch.status_unknown.is_empty() {
            // Protobuf merges repeated occurrences of a message, so the rest of the status may follow as one more field 15.
            let rest = std::mem::take(&mut self.scratch.status_unknown);
            put_bytes(15, &rest, &mut self.scratch.unknown);
        }
        if !self.scratch.unknown.is_empty() {
            row.unknown = self.out.batch.strings.push(&self.scratch.unknown);
        }
        match trace_id.try_into().map(TraceId) {
            Ok(id) if id.is_valid() => row.trace_id = id,
            _ => refusal = Some(RefusalReason::InvalidTraceId),
        }
        match span_id.try_into().map(SpanId) {
            Ok(id) if id.is_valid() => row.span_id = id,
            _ => refusal = refusal.or(Some(RefusalReason::InvalidSpanId)),
        }
        if !parent.is_empty() {
            match parent.try_into().map(SpanId) {
                Ok(id) => {
                    row.parent_span_id = id;
                    if !id.is_valid() {
                        row.row_flags |= row_flag::ZERO_PARENT;
                    }
                }
                Err(_) => refusal = refusal.or(Some(RefusalReason::InvalidSpanId)),
            }
        }
        row.attrs = ItemAttrs { shape, end: self.out.batch.attrs.end() };
        row.events_end = self.out.batch.events.len() as u32;
        row.links_end = self.out.batch.links.len() as u32;
        match refusal {
            None => Ok(row),
            Some(reason) => Err(Refuse::Span(reason)),
        }
    }

    fn status(&mut self, bytes: &[u8], row: &mut Row) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes);
        while let Some(tag) = reader.tag()? {
            match tag.number {
                2 => row.status_message = self.intern(reader.bytes_of(tag)?)?,
                3 => row.status_code = reader.varint_of(tag)? as i32,
                _ => values::keep(&mut reader, tag, &mut self.scratch.status_unknown)?,
            }
        }
        Ok(())
    }

    /// Reads one attribute. `shape` is what stands before it in the same list: the same key usually follows the same keys.
    #[inline]
    fn attr(&mut self, bytes: &[u8], owner: Owner, shape: &mut Shape) -> Result<(), Refuse> {
        let pair = values::split_pair(bytes)?;
        let (key, (kind, bits)) = match pair.value {
            Some(value) => {
                let key = self.key(pair.key, *shape)?;
                (key, self.value(key, value)?)
            }
            None => {
                let key = values::check_raw_pair(bytes, 0)?.as_bytes();
                (self.key(key, *shape)?, self.json(|out| typed_json::push_raw_pair(bytes, out)))
            }
        };
        let batch = &mut self.out.batch;
        *shape = self.walker.shapes.with(&mut batch.shapes, *shape, key, kind);
        owner.values(batch).push(kind, bits);
        Ok(())
    }

    #[inline]
    fn key(&mut self, key: &[u8], before: Shape) -> Result<Sym, Malformed> {
        let batch = &self.out.batch;
        match self.walker.shapes.likely(&batch.shapes, before) {
            Some(likely) if batch.strings.get(likely.key) == key => Ok(likely.key),
            _ => self.intern(key),
        }
    }

    #[inline]
    fn hint(&mut self, key: Sym) -> &mut Hint {
        let hints = &mut self.walker.hints;
        if hints.len() <= key.index() {
            hints.resize(key.index() + 1, Hint::default());
        }
        &mut hints[key.index()]
    }

    #[inline]
    fn value(&mut self, key: Sym, bytes: &[u8]) -> Result<(ValueKind, u64), Refuse> {
        let mut reader = Reader::new(bytes);
        let Some(tag) = reader.tag()? else {
            return Ok(self.json(typed_json::push_empty));
        };
        let value = match tag.number {
            1 => {
                let text = reader.bytes_of(tag)?;
                self.check_size(text.len())?;
                (ValueKind::Str, u64::from(self.text(key, text)?.0))
            }
            2 => (ValueKind::Bool, u64::from(reader.varint_of(tag)? != 0)),
            3 => (ValueKind::Int, reader.varint_of(tag)?),
            4 => (ValueKind::Double, reader.fixed64_of(tag)?),
            _ => return self.nested(bytes),
        };
        if reader.tag()?.is_some() {
            return self.nested(bytes);
        }
        Ok(value)
    }

    fn check_size(&self, bytes: usize) -> Result<(), Refuse> {
        match self.options.max_attribute_bytes {
            Some(limit) if bytes > limit => Err(Refuse::Span(RefusalReason::AttributeTooLarge)),
            _ => Ok(()),
        }
    }

    /// Interns a text value, unless nearly every value of this key is different.
    #[inline]
    fn text(&mut self, key: Sym, text: &[u8]) -> Result<Sym, Malformed> {
        if text.is_empty() {
            return Ok(Sym::EMPTY);
        }
        let hint = *self.hint(key);
        if !hint.value.is_empty() && self.out.batch.strings.get(hint.value) == text {
            return Ok(hint.value);
        }
        if hint.mostly_unique() {
            values::text(text)?;
            return Ok(self.out.batch.strings.push(text));
        }
        let before = self.out.batch.strings.len();
        let sym = self.intern(text)?;
        let is_new = self.out.batch.strings.len() > before;
        let hint = self.hint(key);
        hint.value = sym;
        if is_new {
            hint.misses = hint.misses.saturating_add(1);
        } else {
            hint.hits = hint.hits.saturating_add(1);
        }
        Ok(sym)
    }

    fn nested(&mut self, bytes: &[u8]) -> Result<(ValueKind, u64), Refuse> {
        let value: Value = values::any_value(bytes, 0)?;
        self.check_size(bytes.len())?;
        Ok(self.json(|out| typed_json::write_value(&value, out)))
    }

    fn json(&mut self, write: impl FnOnce(&mut String)) -> (ValueKind, u64) {
        self.scratch.json.clear();
        write(&mut self.scratch.json);
        let sym = known_text(&mut self.walker.interner, &mut self.out.batch, self.scratch.json.as_bytes());
        (ValueKind::Json, u64::from(sym.0))
    }

    fn event(&mut self, bytes: &[u8]) -> Result<(), Refuse> {
        let mut event =
            EventRow { time: 0, name: Sym::EMPTY, unknown: Sym::EMPTY, dropped_attributes: 0, attrs: ItemAttrs::default() };
        let mut unknown = Vec::new();
        let (mut shape, mut refusal) = (Shape::EMPTY, None);
        let mut reader = Reader::new(bytes);
        while let Some(tag) = reader.tag()? {
            match tag.number {
                1 => event.time = reader.fixed64_of(tag)?,
                2 => event.name = self.intern(reader.bytes_of(tag)?)?,
                3 => {
                    let attr = self.attr(reader.bytes_of(tag)?, Owner::Event, &mut shape);
                    or_refuse(attr, &mut refusal)?;
                }
                4 => event.dropped_attributes = reader.varint_of(tag)? as u32,
                _ => values::keep(&mut reader, tag, &mut unknown)?,
            }
        }
        if !unknown.is_empty() {
            event.unknown = self.out.batch.strings.push(&unknown);
        }
        event.attrs = ItemAttrs { shape, end: self.out.batch.event_attrs.end() };
        self.out.batch.events.push(event);
        refusal.map_or(Ok(()), |reason| Err(Refuse::Span(reason)))
    }

    fn link(&mut self, bytes: &[u8]) -> Result<(), Refuse> {
        let (mut trace_id, mut span_id): (&[u8], &[u8]) = (&[], &[]);
        let (mut trace_state, mut flags, mut dropped_attributes) = (Sym::EMPTY, 0, 0);
        let mut unknown = Vec::new();
        let (mut shape, mut refusal) = (Shape::EMPTY, None);
        let mut reader = Reader::new(bytes);
        while let Some(tag) = reader.tag()? {
            match tag.number {
                1 => trace_id = reader.bytes_of(tag)?,
                2 => span_id = reader.bytes_of(tag)?,
                3 => trace_state = self.intern(reader.bytes_of(tag)?)?,
                4 => {
                    let attr = self.attr(reader.bytes_of(tag)?, Owner::Link, &mut shape);
                    or_refuse(attr, &mut refusal)?;
                }
                5 => dropped_attributes = reader.varint_of(tag)? as u32,
                6 => flags = reader.fixed32_of(tag)?,
                _ => values::keep(&mut reader, tag, &mut unknown)?,
            }
        }
        let strings = &mut self.out.batch.strings;
        let trace_id = strings.push(trace_id);
        let span_id = strings.push(span_id);
        let unknown = if unknown.is_empty() { Sym::EMPTY } else { strings.push(&unknown) };
        let attrs = ItemAttrs { shape, end: self.out.batch.link_attrs.end() };
        self.out.batch.links.push(LinkRow { trace_id, span_id, trace_state, unknown, flags, dropped_attributes, attrs });
        refusal.map_or(Ok(()), |reason| Err(Refuse::Span(reason)))
    }
}

/// Remembers a refusal and goes on; malformed bytes end the walk.
fn or_refuse<T>(result: Result<T, Refuse>, refusal: &mut Option<RefusalReason>) -> Result<Option<T>, Malformed> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Refuse::Span(reason)) => {
            *refusal = refusal.or(Some(reason));
            Ok(None)
        }
        Err(Refuse::Malformed(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests;
