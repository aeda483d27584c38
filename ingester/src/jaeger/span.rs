//! Jaeger's span model to an OTLP span.
//!
//! Owns the mapping: which tags become status, kind, scope and trace state, which reference is the parent, what a log is. Fields
//! come in any order and are written as they come; what decides at the end is noted with its place, and cut out there.
//!
//! Where a key that means something comes twice, the last one counts and is the only one kept, as in Jaeger; other tags are kept
//! as often as they were sent. Bytes that are no UTF-8 stay bytes as values and become U+FFFD in names.

use std::ops::Range;

use crate::otlp::build::{
    Code, Draft, Groups, Head, Kind, Scalar, event, link, name, put_array, put_attribute, put_scope, span,
};
use crate::otlp::wire::{begin_message, end_message, put_bytes, put_fixed64};
use crate::pipeline::IngestError;

/// Where Jaeger keeps the warnings of a span in OTLP.
const WARNINGS: &str = "@jaeger@warnings";
const REF_TYPE: &str = "opentracing.ref_type";
/// Bit 0 of the flags, in Jaeger and in OTLP.
const SAMPLED: u32 = 1;

/// A key and its value, in Thrift or in protobuf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: TagValue<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum TagValue<'a> {
    Text(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
    Bytes(&'a [u8]),
    /// A type with this number, which nobody knows.
    Unknown(i64),
}

impl<'a> TagValue<'a> {
    /// Lends the value as OTLP has it.
    pub(super) fn lend<R>(self, to: impl FnOnce(Scalar<'_>) -> R) -> R {
        match self {
            Self::Text(text) => to(Scalar::text_or_bytes(text)),
            Self::Bool(value) => to(Scalar::Bool(value)),
            Self::Int(value) => to(Scalar::Int(value)),
            Self::Double(value) => to(Scalar::Double(value)),
            Self::Bytes(bytes) => to(Scalar::Bytes(bytes)),
            Self::Unknown(number) => to(Scalar::Text(&format!("<Unknown Jaeger TagType \"{number}\">"))),
        }
    }

    fn text(self) -> Option<&'a [u8]> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// An integer, or the decimal text of one.
    fn number(self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(value),
            Self::Text(text) => std::str::from_utf8(text).ok()?.trim().parse().ok(),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefType {
    ChildOf,
    FollowsFrom,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Reference {
    pub(super) kind: RefType,
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
}

/// A tag that the end of the span decides about: what it says and where it was written.
#[derive(Clone, Debug, Default)]
struct Noted<'a> {
    place: Option<Range<usize>>,
    text: &'a [u8],
}

impl<'a> Noted<'a> {
    /// Takes the place of an earlier one.
    fn note(&mut self, draft: &mut Draft, place: Range<usize>, text: &'a [u8]) {
        if let Some(earlier) = self.place.replace(place) {
            draft.cut(earlier);
        }
        self.text = text;
    }

    fn cut(&mut self, draft: &mut Draft) {
        if let Some(place) = self.place.take() {
            draft.cut(place);
        }
    }
}

/// What the tags of a span said so far.
#[derive(Debug, Default)]
struct Said<'a> {
    kind: Kind,
    error: bool,
    error_tag: Noted<'a>,
    status_code: Option<&'a [u8]>,
    description: Noted<'a>,
    http_code: Option<i64>,
    http_message: &'a [u8],
    trace_state: &'a [u8],
    scope: [Noted<'a>; 2],
    library: [Noted<'a>; 2],
}

/// One span being read. Used again for the next.
#[derive(Debug)]
pub(super) struct SpanWriter<'a> {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    /// The parent as Thrift has it beside the references; zero if there is none.
    pub(super) parent: [u8; 8],
    pub(super) flags: u32,
    pub(super) start_nanos: u64,
    pub(super) duration_nanos: i64,
    pub(super) references: Vec<Reference>,
    /// Encoded values of an array.
    warnings: Vec<u8>,
    /// Whether the tag `w3c.tracestate` is the trace state: so in protobuf, not in Thrift.
    takes_trace_state: bool,
    draft: Draft,
    said: Said<'a>,
    /// Whether something was written beside scalars.
    written: bool,
    event_name: Option<&'a [u8]>,
    scope_message: Vec<u8>,
}

/// An event that has begun.
pub(super) struct Event(usize);

impl<'a> SpanWriter<'a> {
    pub(super) fn new(max: usize, takes_trace_state: bool) -> Self {
        Self {
            trace_id: [0; 16],
            span_id: [0; 8],
            parent: [0; 8],
            flags: 0,
            start_nanos: 0,
            duration_nanos: 0,
            references: Vec::new(),
            warnings: Vec::new(),
            takes_trace_state,
            draft: Draft::new(max),
            said: Said::default(),
            written: false,
            event_name: None,
            scope_message: Vec::new(),
        }
    }

    /// Forgets the last span.
    pub(super) fn begin(&mut self) {
        self.trace_id = [0; 16];
        self.span_id = [0; 8];
        self.parent = [0; 8];
        self.flags = 0;
        self.start_nanos = 0;
        self.duration_nanos = 0;
        self.references.clear();
        self.warnings.clear();
        self.draft.clear();
        self.said = Said::default();
        self.written = false;
    }

    pub(super) fn name(&mut self, operation: &[u8]) {
        if !operation.is_empty() {
            self.written = true;
            put_bytes(span::NAME, name(operation).as_bytes(), &mut self.draft.bytes);
        }
    }

    pub(super) fn warning(&mut self, text: &[u8]) -> Result<(), IngestError> {
        self.draft.check()?;
        let item = begin_message(1, &mut self.warnings);
        put_bytes(1, name(text).as_bytes(), &mut self.warnings);
        end_message(item, &mut self.warnings);
        Ok(())
    }

    pub(super) fn tag(&mut self, tag: Tag<'a>) -> Result<(), IngestError> {
        self.written = true;
        self.draft.check()?;
        let Tag { key, value } = tag;
        let said = &mut self.said;
        match (key, value.text()) {
            (b"span.kind", text) => {
                said.kind = Kind::of_word(text.unwrap_or_default());
                return Ok(());
            }
            (b"otel.status_code", text) => {
                said.status_code = Some(text.unwrap_or_default());
                return Ok(());
            }
            (b"w3c.tracestate", Some(text)) if self.takes_trace_state => {
                said.trace_state = text;
                return Ok(());
            }
            _ => {}
        }
        let key_text = name(key);
        let place = value.lend(|scalar| self.draft.attribute(&key_text, scalar));
        match (key, value.text()) {
            (b"error", _) => {
                said.error = matches!(value, TagValue::Bool(true));
                said.error_tag.note(&mut self.draft, place, b"");
            }
            (b"otel.status_description", Some(text)) => said.description.note(&mut self.draft, place, text),
            (b"http.status_message", Some(text)) => said.http_message = text,
            (b"http.status_code", _) => said.http_code = value.number(),
            (b"otel.scope.name", Some(text)) => said.scope[0].note(&mut self.draft, place, text),
            (b"otel.scope.version", Some(text)) => said.scope[1].note(&mut self.draft, place, text),
            (b"otel.library.name", Some(text)) => said.library[0].note(&mut self.draft, place, text),
            (b"otel.library.version", Some(text)) => said.library[1].note(&mut self.draft, place, text),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn begin_event(&mut self) -> Event {
        self.written = true;
        self.event_name = None;
        Event(begin_message(span::EVENTS, &mut self.draft.bytes))
    }

    pub(super) fn event_time(&mut self, nanos: u64) {
        put_fixed64(event::TIME, nanos, &mut self.draft.bytes);
    }

    pub(super) fn event_field(&mut self, field: Tag<'a>) -> Result<(), IngestError> {
        self.draft.check()?;
        match (field.key, field.value) {
            (b"event", TagValue::Text(text)) if self.event_name.is_none() => self.event_name = Some(text),
            (key, value) => {
                let key = name(key);
                value.lend(|scalar| put_attribute(event::ATTRIBUTES, &key, scalar, &mut self.draft.bytes));
            }
        }
        Ok(())
    }

    pub(super) fn end_event(&mut self, begun: Event) {
        if let Some(text) = self.event_name.take() {
            put_bytes(event::NAME, name(text).as_bytes(), &mut self.draft.bytes);
        }
        end_message(begun.0, &mut self.draft.bytes);
    }

    fn is_default(&self) -> bool {
        !self.written
            && self.references.is_empty()
            && self.warnings.is_empty()
            && (self.trace_id, self.span_id, self.parent) == ([0; 16], [0; 8], [0; 8])
            && (self.flags, self.start_nanos, self.duration_nanos) == (0, 0, 0)
    }

    /// Puts the span under its resource and scope. A span in which nothing was set is none.
    pub(super) fn finish(&mut self, resource: &[u8], groups: &mut Groups) -> Result<(), IngestError> {
        if self.is_default() {
            return Ok(());
        }
        let parent = self.links()?;
        if !self.warnings.is_empty() {
            put_array(span::ATTRIBUTES, WARNINGS, &self.warnings, &mut self.draft.bytes);
        }
        let (code, message) = self.status();
        self.scope();
        let head = Head {
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent,
            trace_state: self.said.trace_state,
            kind: self.said.kind,
            start: self.start_nanos,
            end: self.start_nanos.saturating_add_signed(self.duration_nanos),
            code,
            message,
            flags: self.flags & SAMPLED,
        };
        self.draft.finish(&head);
        self.draft.check()?;
        groups.push(resource, &self.scope_message, &self.draft.bytes)
    }

    /// Finds the parent and writes every other reference as a link. One that only follows from its parent is both.
    fn links(&mut self) -> Result<[u8; 8], IngestError> {
        let mut parent = self.parent;
        for kind in [RefType::ChildOf, RefType::FollowsFrom] {
            if parent == [0; 8] {
                let found = self.references.iter().find(|r| r.kind == kind && r.trace_id == self.trace_id);
                parent = found.map_or([0; 8], |reference| reference.span_id);
            }
        }
        for reference in &self.references {
            let word = match reference.kind {
                RefType::ChildOf if reference.span_id == parent => continue,
                RefType::ChildOf => "child_of",
                RefType::FollowsFrom => "follows_from",
            };
            let out = &mut self.draft.bytes;
            let at = begin_message(span::LINKS, out);
            put_bytes(link::TRACE_ID, &reference.trace_id, out);
            put_bytes(link::SPAN_ID, &reference.span_id, out);
            put_attribute(link::ATTRIBUTES, REF_TYPE, Scalar::Text(word), out);
            end_message(at, out);
            self.draft.check()?;
        }
        Ok(parent)
    }

    fn status(&mut self) -> (Code, &'a [u8]) {
        let said = &mut self.said;
        if said.error {
            said.error_tag.cut(&mut self.draft);
            let described = said.description.place.is_some();
            said.description.cut(&mut self.draft);
            return (Code::Error, if described { said.description.text } else { said.http_message });
        }
        if let Some(word) = said.status_code {
            said.description.cut(&mut self.draft);
            let code = match word {
                word if word.eq_ignore_ascii_case(b"ok") => Code::Ok,
                word if word.eq_ignore_ascii_case(b"error") => Code::Error,
                _ => Code::Unset,
            };
            return (code, said.description.text);
        }
        match said.http_code.map(|status| Code::of_http(status, said.kind)) {
            None | Some(Code::Unset) => (Code::Unset, b""),
            Some(code) => (code, said.http_message),
        }
    }

    /// The scope by its name in the newer or the older spelling; a version without a name stays a tag. Exporters write both
    /// spellings of the same: then both go.
    fn scope(&mut self) {
        self.scope_message.clear();
        let Said { scope, library, .. } = &mut self.said;
        let chosen = if scope[0].text.is_empty() { &*library } else { &*scope };
        let [name, version] = [chosen[0].text, chosen[1].text];
        if name.is_empty() {
            return;
        }
        put_scope(name, version, &mut self.scope_message);
        for [known, its_version] in [scope, library] {
            if (known.text, its_version.text) == (name, version) {
                known.cut(&mut self.draft);
                its_version.cut(&mut self.draft);
            }
        }
    }
}
