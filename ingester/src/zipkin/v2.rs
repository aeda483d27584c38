//! Zipkin's span model of today to an OTLP span.
//!
//! Owns the mapping. Fields come in any order and are written as they come; what decides at the end is noted.
//!
//! Tags that describe the process rather than the span go to the resource. Spans of a service whose such tags differ are put
//! under resources of their own, so that no span is said to come from another's host.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::Value as Json;

use super::endpoint::Endpoint;
use crate::otlp::build::{
    Code, Draft, Groups, Head, Kind, RESOURCE_ATTRIBUTES, Scalar, event, link, put_attribute, put_json, put_scope, span,
};
use crate::otlp::wire::{VARINT, begin_message, end_message, put_bytes, put_fixed64, put_tag, put_varint};
use crate::pipeline::IngestError;

pub(super) const ABSENT_START: &str = "otel.zipkin.absentField.startTime";
/// The whole text of an annotation of which a part became the name of the event.
const ANNOTATION: &str = "otel.zipkin.annotation";
/// Tags `otlp.link.0` to `otlp.link.127`.
const LINK_TAG: &str = "otlp.link.";
const MAX_LINK: u8 = 127;

/// Whether a key describes a process.
fn is_of_resource(key: &str) -> bool {
    match key.split_once('.') {
        Some((
            "aws" | "cloud" | "container" | "device" | "faas" | "host" | "k8s" | "opencensus" | "os" | "process" | "service"
            | "webengine",
            _,
        )) => true,
        Some(("telemetry", rest)) => rest.starts_with("sdk."),
        Some(("deployment", rest)) => rest == "environment" || rest.starts_with("environment."),
        _ => false,
    }
}

type Text<'a> = Cow<'a, str>;

/// One span being read. Used again for the next.
#[derive(Debug)]
pub(super) struct SpanWriter<'a> {
    pub(super) trace_id: [u8; 16],
    /// Zero: none was sent.
    pub(super) span_id: [u8; 8],
    pub(super) parent: [u8; 8],
    pub(super) kind: Option<Kind>,
    /// Microseconds; 0 is absent.
    pub(super) timestamp: u64,
    pub(super) duration: u64,
    draft: Draft,
    service: Text<'a>,
    /// Key of the resource that the service's name stands under, if not `service.name`.
    service_key: Text<'a>,
    of_resource: ResourceTags<'a>,
    links: Vec<(u8, Text<'a>)>,
    said: Said<'a>,
    /// Of `resource_service` under `resource_key` with the tags of the last span.
    resource: Vec<u8>,
    resource_service: Text<'a>,
    resource_key: Text<'a>,
    scope: Vec<u8>,
}

/// Tags of a span that describe the process, in the order in which they came.
///
/// Exporters send the same ones with every span of a process, so what is here is the last span's until a tag differs.
#[derive(Debug, Default)]
struct ResourceTags<'a> {
    tags: Vec<(Text<'a>, Text<'a>)>,
    /// So many of them are of this span.
    len: usize,
    changed: bool,
}

impl<'a> ResourceTags<'a> {
    fn begin(&mut self) {
        self.len = 0;
        self.changed = false;
    }

    /// Whether the last span had this key at this place.
    #[inline]
    fn expects(&self, key: &str) -> bool {
        !self.changed && self.tags.get(self.len).is_some_and(|(expected, _)| expected == key)
    }

    #[inline]
    fn push(&mut self, key: Text<'a>, value: Text<'a>) {
        let same = self.expects(&key) && self.tags[self.len].1 == value;
        if !same {
            self.end();
            self.changed = true;
            self.tags.push((key, value));
        }
        self.len += 1;
    }

    /// Drops what only the last span had.
    fn end(&mut self) {
        self.changed |= self.len < self.tags.len();
        self.tags.truncate(self.len);
    }

    /// Sorted, because maps come in any order; of equal keys the last.
    fn sorted(&self) -> Vec<&(Text<'a>, Text<'a>)> {
        let mut sorted: Vec<_> = self.tags.iter().rev().collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        sorted.dedup_by(|later, first| later.0 == first.0);
        sorted
    }
}

#[derive(Debug, Default)]
struct Said<'a> {
    /// The tag `span.kind` and where it was written.
    kind: Option<(Kind, Range<usize>)>,
    error: bool,
    status: Option<Code>,
    description: Option<(Text<'a>, Range<usize>)>,
    trace_state: Text<'a>,
    library: Text<'a>,
    library_version: Text<'a>,
}

impl<'a> SpanWriter<'a> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            trace_id: [0; 16],
            span_id: [0; 8],
            parent: [0; 8],
            kind: None,
            timestamp: 0,
            duration: 0,
            draft: Draft::new(max),
            service: "".into(),
            service_key: "".into(),
            of_resource: ResourceTags::default(),
            links: Vec::new(),
            said: Said::default(),
            resource: Vec::new(),
            resource_service: "".into(),
            resource_key: "".into(),
            scope: Vec::new(),
        }
    }

    /// Forgets the last span.
    pub(super) fn begin(&mut self) {
        self.trace_id = [0; 16];
        self.span_id = [0; 8];
        self.parent = [0; 8];
        self.kind = None;
        self.timestamp = 0;
        self.duration = 0;
        self.draft.clear();
        self.service = "".into();
        self.service_key = "".into();
        self.of_resource.begin();
        self.links.clear();
        self.said = Said::default();
    }

    pub(super) fn name(&mut self, name: &str) {
        if !name.is_empty() {
            put_bytes(span::NAME, name.as_bytes(), &mut self.draft.bytes);
        }
    }

    fn text(&mut self, key: &str, value: &str) -> Range<usize> {
        self.draft.attribute(key, Scalar::Text(value))
    }

    pub(super) fn local(&mut self, endpoint: Endpoint<'a>) {
        self.address(&endpoint, "net.host.ip", "net.host.port");
        self.service = endpoint.service;
    }

    pub(super) fn remote(&mut self, endpoint: &Endpoint<'a>) {
        if !endpoint.service.is_empty() {
            self.text("peer.service", &endpoint.service);
        }
        self.address(endpoint, "net.peer.ip", "net.peer.port");
    }

    fn address(&mut self, endpoint: &Endpoint<'_>, ip: &str, port: &str) {
        if !endpoint.ip().is_none() {
            self.text(ip, &endpoint.ip().text());
        }
        if endpoint.port != 0 {
            self.draft.attribute(port, Scalar::Int(endpoint.port.into()));
        }
    }

    pub(super) fn tag(&mut self, key: Text<'a>, value: Text<'a>) -> Result<(), IngestError> {
        self.draft.check()?;
        if self.of_resource.expects(&key) {
            self.of_resource.push(key, value);
            return Ok(());
        }
        let said = &mut self.said;
        match &*key {
            "error" => {
                said.error = true;
                if value == "true" {
                    return Ok(());
                }
            }
            "otel.status_code" => {
                said.status = Some(code_of_word(&value));
                return Ok(());
            }
            "w3c.tracestate" => {
                said.trace_state = value;
                return Ok(());
            }
            "otel.library.name" => {
                said.library = value;
                return Ok(());
            }
            "otel.library.version" => {
                said.library_version = value;
                return Ok(());
            }
            "otlp.service.name.source" => {
                self.service_key = value;
                return Ok(());
            }
            "span.kind" => {
                let place = self.text(&key, &value);
                let kind = if value == "internal" { Kind::Internal } else { Kind::Unspecified };
                self.said.kind = Some((kind, place));
                return Ok(());
            }
            "otel.status_description" => {
                let place = self.text(&key, &value);
                self.said.description = Some((value, place));
                return Ok(());
            }
            key if key.starts_with(LINK_TAG) => {
                if let Some(number) = link_number(key) {
                    self.links.push((number, value));
                    return Ok(());
                }
            }
            _ => {}
        }
        if is_of_resource(&key) {
            self.of_resource.push(key, value);
        } else {
            self.text(&key, &value);
        }
        Ok(())
    }

    pub(super) fn annotation(&mut self, micros: u64, text: &str) -> Result<(), IngestError> {
        self.draft.check()?;
        let out = &mut self.draft.bytes;
        let at = begin_message(span::EVENTS, out);
        put_fixed64(event::TIME, micros.saturating_mul(1_000), out);
        let (name, rest) = text.split_once('|').map_or((text, None), |(name, rest)| (name, Some(rest)));
        put_bytes(event::NAME, name.as_bytes(), out);
        match rest.map(|rest| attributes_and_count(rest).ok_or(text)) {
            None => {}
            Some(Ok((attributes, dropped))) => {
                attributes.iter().for_each(|(key, value)| put_json(event::ATTRIBUTES, key, value, out));
                put_dropped(event::DROPPED, dropped, out);
            }
            Some(Err(text)) => put_attribute(event::ATTRIBUTES, ANNOTATION, Scalar::Text(text), out),
        }
        end_message(at, out);
        Ok(())
    }

    /// Puts the span under its resource and scope.
    pub(super) fn finish(&mut self, groups: &mut Groups) -> Result<(), IngestError> {
        if self.span_id == [0; 8] {
            return Err(IngestError::Malformed("valid span id required".into()));
        }
        self.put_links();
        let duration = self.duration.saturating_mul(1_000);
        let start = self.timestamp.saturating_mul(1_000);
        if start == 0 {
            self.draft.attribute(ABSENT_START, Scalar::Bool(true));
        }
        let kind = match (self.kind, self.said.kind.take()) {
            (Some(kind), _) => kind,
            (None, None) => Kind::Unspecified,
            (None, Some((kind, place))) => {
                self.draft.cut(place);
                kind
            }
        };
        let mut message: Text<'a> = "".into();
        if self.said.status.is_some()
            && let Some((text, place)) = self.said.description.take()
        {
            self.draft.cut(place);
            message = text;
        }
        let code = if self.said.error { Code::Error } else { self.said.status.unwrap_or_default() };
        let head = Head {
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent: if self.parent == self.span_id { [0; 8] } else { self.parent },
            trace_state: self.said.trace_state.as_bytes(),
            kind,
            start,
            end: start.saturating_add(duration),
            code,
            message: message.as_bytes(),
            flags: 0,
        };
        self.draft.finish(&head);
        self.draft.check()?;
        self.resource_and_scope();
        groups.push(&self.resource, &self.scope, &self.draft.bytes)
    }

    fn resource_and_scope(&mut self) {
        self.scope.clear();
        put_scope(self.said.library.as_bytes(), self.said.library_version.as_bytes(), &mut self.scope);
        self.of_resource.end();
        let same = self.resource_service == self.service && self.resource_key == self.service_key;
        if same && !self.of_resource.changed {
            return;
        }
        self.resource.clear();
        let tags = self.of_resource.sorted();
        let key = if self.service_key.is_empty() { "service.name" } else { &self.service_key };
        // A tag counts more than the endpoint.
        if !self.service.is_empty() && tags.iter().all(|(of_tag, _)| of_tag != key) {
            put_attribute(RESOURCE_ATTRIBUTES, key, Scalar::Text(&self.service), &mut self.resource);
        }
        for (key, value) in tags {
            put_attribute(RESOURCE_ATTRIBUTES, key, Scalar::Text(value), &mut self.resource);
        }
        self.resource_service = std::mem::take(&mut self.service);
        self.resource_key = std::mem::take(&mut self.service_key);
    }

    /// Links in the order of their numbers; what is not one stays a tag.
    fn put_links(&mut self) {
        self.links.sort_by_key(|(number, _)| *number);
        for (number, text) in std::mem::take(&mut self.links) {
            if put_link(&text, &mut self.draft.bytes).is_none() {
                self.text(&format!("{LINK_TAG}{number}"), &text);
            }
        }
    }
}

fn link_number(key: &str) -> Option<u8> {
    let digits = key.strip_prefix(LINK_TAG)?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|number| plain && *number <= MAX_LINK)
}

/// `TRACE|SPAN|TRACE STATE|{attributes}|DROPPED`.
fn put_link(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let mut parts = text.splitn(4, '|');
    let trace_id = hex::<16>(parts.next()?)?;
    let span_id = hex::<8>(parts.next()?)?;
    let trace_state = parts.next()?;
    let (attributes, dropped) = attributes_and_count(parts.next()?)?;
    let at = begin_message(span::LINKS, out);
    put_bytes(link::TRACE_ID, &trace_id, out);
    put_bytes(link::SPAN_ID, &span_id, out);
    if !trace_state.is_empty() {
        put_bytes(link::TRACE_STATE, trace_state.as_bytes(), out);
    }
    attributes.iter().for_each(|(key, value)| put_json(link::ATTRIBUTES, key, value, out));
    put_dropped(link::DROPPED, dropped, out);
    end_message(at, out);
    Some(())
}

/// `{attributes}|DROPPED`.
fn attributes_and_count(text: &str) -> Option<(serde_json::Map<String, Json>, u32)> {
    let (json, dropped) = text.rsplit_once('|')?;
    match serde_json::from_str(json).ok()? {
        Json::Object(attributes) => Some((attributes, dropped.trim().parse().ok()?)),
        _ => None,
    }
}

fn put_dropped(number: u32, dropped: u32, out: &mut Vec<u8>) {
    if dropped > 0 {
        put_tag(number, VARINT, out);
        put_varint(dropped.into(), out);
    }
}

/// Exporters write the word in several ways.
fn code_of_word(word: &str) -> Code {
    match word.strip_prefix("STATUS_CODE_").unwrap_or(word) {
        word if word.eq_ignore_ascii_case("ok") => Code::Ok,
        word if word.eq_ignore_ascii_case("error") => Code::Error,
        _ => Code::Unset,
    }
}

/// An id of up to twice `N` hex digits, filled up with zeros from the left.
pub(super) fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.is_empty() || text.len() > 2 * N {
        return None;
    }
    let mut id = [0; N];
    for (at, digit) in text.bytes().rev().enumerate() {
        let nibble = (digit as char).to_digit(16)? as u8;
        id[N - 1 - at / 2] |= nibble << (4 * (at % 2));
    }
    Some(id)
}
