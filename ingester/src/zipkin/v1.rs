//! Zipkin's first span model to an OTLP span.
//!
//! Owns the mapping: what the core annotations say of kind, service and times, and which binary annotation is the status.

use std::borrow::Cow;
use std::ops::Range;

use super::endpoint::Endpoint;
use super::v2::ABSENT_START;
use crate::otlp::build::{Code, Draft, Groups, Head, Kind, RESOURCE_ATTRIBUTES, Scalar, event, nanos, put_attribute, span};
use crate::otlp::wire::{begin_message, end_message, put_bytes, put_fixed64};
use crate::pipeline::IngestError;

const NO_SERVICE: &str = "unknown-service";

/// The value of a binary annotation.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    /// Text that may not be UTF-8.
    Raw(&'a [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
}

impl Value<'_> {
    fn scalar(&self) -> Scalar<'_> {
        match self {
            Self::Text(text) => Scalar::Text(text),
            Self::Raw(bytes) => Scalar::text_or_bytes(bytes),
            Self::Bool(value) => Scalar::Bool(*value),
            Self::Int(value) => Scalar::Int(*value),
            Self::Double(value) => Scalar::Double(*value),
        }
    }

    fn number(&self) -> Option<i64> {
        match self.scalar() {
            Scalar::Int(value) => Some(value),
            Scalar::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn text(&self) -> Cow<'_, str> {
        match self.scalar() {
            Scalar::Text(text) => text.into(),
            Scalar::Bytes(bytes) => String::from_utf8_lossy(bytes),
            Scalar::Bool(value) => value.to_string().into(),
            Scalar::Int(value) => value.to_string().into(),
            Scalar::Double(value) => value.to_string().into(),
        }
    }
}

/// A status somebody wrote into the annotations: code and text.
#[derive(Debug, Default)]
struct Status<'a> {
    code: Option<i64>,
    text: Option<(&'static str, Value<'a>)>,
}

impl Status<'_> {
    fn message(&self) -> Cow<'_, str> {
        self.text.as_ref().map_or("".into(), |(_, text)| text.text())
    }
}

/// One span being read. Used again for the next.
#[derive(Debug)]
pub(super) struct SpanWriter<'a> {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    pub(super) parent: [u8; 8],
    /// Microseconds; 0 is absent.
    pub(super) timestamp: i64,
    pub(super) duration: i64,
    draft: Draft,
    kind: Option<Kind>,
    /// Of the first core annotation that names a service.
    core: Option<Endpoint<'a>>,
    /// The last binary annotation that names a service.
    binary: Option<usize>,
    component: Option<Value<'a>>,
    /// Of all annotations with a time.
    times: Option<(i64, i64)>,
    census: Status<'a>,
    otel: Status<'a>,
    http: Status<'a>,
    error: Option<Value<'a>>,
    resource: Vec<u8>,
    /// The last span as it was written.
    last: Vec<u8>,
    /// By their places in the list.
    annotations: Vec<BinaryAnnotation<'a>>,
    /// So many of them are of this span; the others of the last.
    annotated: usize,
}

/// What a binary annotation was and became.
#[derive(Debug)]
struct BinaryAnnotation<'a> {
    /// Its bytes; none if more than an attribute came of it.
    said: &'a [u8],
    /// Where its attribute is in the span.
    place: Range<usize>,
    /// If it names a service.
    host: Option<Endpoint<'a>>,
}

impl<'a> SpanWriter<'a> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            trace_id: [0; 16],
            span_id: [0; 8],
            parent: [0; 8],
            timestamp: 0,
            duration: 0,
            draft: Draft::new(max),
            kind: None,
            core: None,
            binary: None,
            component: None,
            times: None,
            census: Status::default(),
            otel: Status::default(),
            http: Status::default(),
            error: None,
            resource: Vec::new(),
            last: Vec::new(),
            annotations: Vec::new(),
            annotated: 0,
        }
    }

    /// Forgets the last span.
    pub(super) fn begin(&mut self) {
        self.trace_id = [0; 16];
        self.span_id = [0; 8];
        self.parent = [0; 8];
        self.timestamp = 0;
        self.duration = 0;
        std::mem::swap(&mut self.draft.bytes, &mut self.last);
        self.annotations.truncate(self.annotated);
        self.annotated = 0;
        self.draft.clear();
        self.kind = None;
        self.core = None;
        self.binary = None;
        self.component = None;
        self.times = None;
        self.census = Status::default();
        self.otel = Status::default();
        self.http = Status::default();
        self.error = None;
    }

    pub(super) fn name(&mut self, name: &str) {
        if !name.is_empty() {
            put_bytes(span::NAME, name.as_bytes(), &mut self.draft.bytes);
        }
    }

    pub(super) fn annotation(&mut self, micros: i64, text: &str, host: Option<Endpoint<'a>>) -> Result<(), IngestError> {
        self.draft.check()?;
        if micros != 0 {
            let (first, last) = self.times.unwrap_or((micros, micros));
            self.times = Some((first.min(micros), last.max(micros)));
        }
        let kind = match text {
            "cs" | "cr" => Kind::Client,
            "ss" | "sr" => Kind::Server,
            "ms" => Kind::Producer,
            "mr" => Kind::Consumer,
            // What says nothing at all is left out: it would cost more than it took to send.
            "" if micros == 0 => return Ok(()),
            _ => {
                let out = &mut self.draft.bytes;
                let at = begin_message(span::EVENTS, out);
                put_fixed64(event::TIME, nanos(micros), out);
                put_bytes(event::NAME, text.as_bytes(), out);
                end_message(at, out);
                return Ok(());
            }
        };
        self.kind.get_or_insert(kind);
        if self.core.is_none() {
            self.core = host.filter(|host| !host.service.is_empty());
        }
        Ok(())
    }

    /// Takes the next binary annotation if `rest` begins with the bytes that were the last span's at this place of the list, and
    /// says how many these are. Spans of a process repeat most of theirs, each with the process's endpoint.
    #[inline]
    pub(super) fn repeated(&mut self, rest: &[u8]) -> Result<Option<usize>, IngestError> {
        let Some(annotation) = self.annotations.get_mut(self.annotated) else { return Ok(None) };
        if annotation.said.is_empty() || !rest.starts_with(annotation.said) {
            return Ok(None);
        }
        self.draft.check()?;
        let start = self.draft.bytes.len();
        self.draft.bytes.extend_from_slice(&self.last[annotation.place.clone()]);
        annotation.place = start..self.draft.bytes.len();
        if annotation.host.is_some() {
            self.binary = Some(self.annotated);
        }
        self.annotated += 1;
        Ok(Some(annotation.said.len()))
    }

    /// Takes a binary annotation that was read from the bytes `said`.
    pub(super) fn binary_annotation(
        &mut self,
        said: &'a [u8],
        key: &str,
        value: Value<'a>,
        host: Option<Endpoint<'a>>,
    ) -> Result<(), IngestError> {
        self.draft.check()?;
        let host = host.filter(|host| !host.service.is_empty());
        if host.is_some() {
            self.binary = Some(self.annotated);
        }
        let start = self.draft.bytes.len();
        let noted = self.note(key, value);
        let said = if noted { &[] } else { said };
        let annotation = BinaryAnnotation { said, place: start..self.draft.bytes.len(), host };
        match self.annotations.get_mut(self.annotated) {
            Some(last) => *last = annotation,
            None => self.annotations.push(annotation),
        }
        self.annotated += 1;
        Ok(())
    }

    /// Writes the attribute of a binary annotation or notes what it decides at the end; false if it is an attribute and no more.
    fn note(&mut self, key: &str, value: Value<'a>) -> bool {
        match key {
            "census.status_code" => self.census.code = value.number(),
            "census.status_description" => self.census.text = Some(("census.status_description", value)),
            "opencensus.status_description" => self.census.text = Some(("opencensus.status_description", value)),
            "otel.status_code" => self.otel.code = code_of(&value),
            "otel.status_description" => self.otel.text = Some(("otel.status_description", value)),
            "error" => self.error = Some(value),
            "lc" => {
                self.draft.attribute("component", value.scalar());
                self.component = Some(value);
            }
            _ => {
                self.draft.attribute(key, value.scalar());
                match key {
                    "http.status_code" => self.http.code = value.number(),
                    "http.status_message" => self.http.text = Some(("http.status_message", value)),
                    _ => return false,
                }
            }
        }
        true
    }

    /// Puts the span under its resource. `now` in Unix nanoseconds is the time of a span that has none, for forms that want that.
    pub(super) fn finish(&mut self, now: Option<u64>, groups: &mut Groups) -> Result<(), IngestError> {
        let duration = self.duration.saturating_mul(1_000);
        let (start, end) = match (self.timestamp, self.times, now) {
            (0, Some((first, last)), _) => (nanos(first), nanos(last)),
            (0, None, Some(now)) => {
                self.draft.attribute(ABSENT_START, Scalar::Bool(true));
                (now, now.saturating_add_signed(duration))
            }
            (timestamp, _, _) => (nanos(timestamp), nanos(timestamp).saturating_add_signed(duration)),
        };
        let (code, message) = self.status();
        let message = message.into_owned();
        let head = Head {
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent: self.parent,
            trace_state: b"",
            kind: self.kind.unwrap_or_default(),
            start,
            end,
            code,
            message: message.as_bytes(),
            flags: 0,
        };
        self.draft.finish(&head);
        self.draft.check()?;
        self.resource();
        groups.push(&self.resource, b"", &self.draft.bytes)
    }

    /// The status by the first that says one. Texts without their code stay what they were.
    fn status(&mut self) -> (Code, Cow<'_, str>) {
        let kind = self.kind.unwrap_or_default();
        for status in [&self.census, &self.otel] {
            if let (None, Some((key, text))) = (status.code, &status.text) {
                self.draft.attribute(key, text.scalar());
            }
        }
        let (code, message) = match (self.census.code, self.otel.code, &self.error, self.http.code) {
            (Some(0), ..) => (Code::Ok, self.census.message()),
            (Some(_), ..) => (Code::Error, self.census.message()),
            (None, Some(1), ..) => (Code::Ok, self.otel.message()),
            (None, Some(2), ..) => (Code::Error, self.otel.message()),
            (None, Some(_), ..) => (Code::Unset, self.otel.message()),
            (None, None, Some(_), _) => (Code::Error, "".into()),
            (None, None, None, Some(http)) => match Code::of_http(http, kind) {
                Code::Unset => (Code::Unset, "".into()),
                code => (code, self.http.message()),
            },
            (None, None, None, None) => (Code::Unset, "".into()),
        };
        // The tag goes; what it says beyond that there was an error is kept here, if nobody says it better.
        match &self.error {
            Some(error) if code == Code::Error && message.is_empty() => {
                let text = error.text();
                (code, if matches!(&*text, "true" | "false") { "".into() } else { text })
            }
            _ => (code, message),
        }
    }

    fn resource(&mut self) {
        self.resource.clear();
        let mut put = |key: &str, value: &str| {
            if !value.is_empty() {
                put_attribute(RESOURCE_ATTRIBUTES, key, Scalar::Text(value), &mut self.resource);
            }
        };
        let Some(endpoint) = self.core.as_ref().or_else(|| self.annotations[self.binary?].host.as_ref()) else {
            let component = self.component.as_ref().map(Value::text).filter(|text| !text.is_empty());
            return put("service.name", component.as_deref().unwrap_or(NO_SERVICE));
        };
        put("service.name", &endpoint.service);
        put("ipv4", &endpoint.ipv4.text());
        put("ipv6", &endpoint.ipv6.text());
        if endpoint.port != 0 {
            put("port", &endpoint.port.to_string());
        }
    }
}

/// A number, or the word that exporters write instead.
fn code_of(value: &Value<'_>) -> Option<i64> {
    value.number().or_else(|| match &*value.text() {
        text if text.eq_ignore_ascii_case("ok") => Some(1),
        text if text.eq_ignore_ascii_case("error") => Some(2),
        _ => Some(0),
    })
}
