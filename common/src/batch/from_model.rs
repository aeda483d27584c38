//! From owned spans to a batch: for protocols that are read into the span model first, and for tests.

use std::collections::HashMap;
use std::sync::Arc;

use super::{
    AttrValues, EventRow, Interner, ItemAttrs, LinkRow, ResourceEntry, Row, Shape, ShapeFinder, Shapes, SpanBatch, Strings,
    Sym, ValueKind, row_flag,
};
use crate::model::{Attribute, StoredSpan, Value, typed_json};

#[derive(Default)]
struct Tables {
    interner: Interner,
    finder: ShapeFinder,
    resources: HashMap<String, u32>,
    scopes: HashMap<String, u32>,
}

impl Tables {
    fn sym(&mut self, strings: &mut Strings, text: &[u8]) -> Sym {
        self.interner.add(strings, text)
    }

    fn attributes(
        &mut self,
        strings: &mut Strings,
        shapes: &mut Shapes,
        values: &mut AttrValues,
        attributes: &[Attribute],
    ) -> ItemAttrs {
        let mut shape = Shape::EMPTY;
        for attribute in attributes {
            let key = self.sym(strings, attribute.key.as_bytes());
            let (kind, bits) = match &attribute.value {
                Value::Str(text) => (ValueKind::Str, u64::from(self.sym(strings, text.as_bytes()).0)),
                Value::Int(value) => (ValueKind::Int, *value as u64),
                Value::Double(value) => (ValueKind::Double, value.to_bits()),
                Value::Bool(value) => (ValueKind::Bool, u64::from(*value)),
                other => {
                    let mut json = String::new();
                    typed_json::write_value(other, &mut json);
                    (ValueKind::Json, u64::from(self.sym(strings, json.as_bytes()).0))
                }
            };
            shape = self.finder.with(shapes, shape, key, kind);
            values.push(kind, bits);
        }
        ItemAttrs { shape, end: values.end() }
    }
}

impl SpanBatch {
    /// A batch of these spans, in their order.
    pub fn of_spans(spans: &[StoredSpan]) -> Self {
        let (mut out, mut tables) = (Self::default(), Tables::default());
        for stored in spans {
            out.push_span(stored, &mut tables);
        }
        out
    }

    fn push_span(&mut self, stored: &StoredSpan, tables: &mut Tables) {
        let span = &stored.span;
        let resource = self.resource(&stored.resource, tables);
        let scope = self.scope(&stored.scope, tables);
        let strings = &mut self.strings;
        for event in &span.events {
            let attrs = tables.attributes(strings, &mut self.shapes, &mut self.event_attrs, &event.attributes);
            self.events.push(EventRow {
                time: event.time_unix_nano,
                name: tables.sym(strings, event.name.as_bytes()),
                unknown: tables.sym(strings, &event.unknown),
                dropped_attributes: event.dropped_attributes_count,
                attrs,
            });
        }
        for link in &span.links {
            let attrs = tables.attributes(strings, &mut self.shapes, &mut self.link_attrs, &link.attributes);
            self.links.push(LinkRow {
                trace_id: tables.sym(strings, &link.trace_id),
                span_id: tables.sym(strings, &link.span_id),
                trace_state: tables.sym(strings, link.trace_state.as_bytes()),
                unknown: tables.sym(strings, &link.unknown),
                flags: link.flags,
                dropped_attributes: link.dropped_attributes_count,
                attrs,
            });
        }
        let has_zero_parent = span.parent_span_id.is_some_and(|parent| !parent.is_valid());
        let mut row_flags = if has_zero_parent { row_flag::ZERO_PARENT } else { 0 };
        if stored.maybe_duplicate {
            row_flags |= row_flag::MAYBE_DUPLICATE;
        }
        let attrs = tables.attributes(strings, &mut self.shapes, &mut self.attrs, &span.attributes);
        self.rows.push(Row {
            trace_id: span.trace_id,
            span_id: span.span_id,
            parent_span_id: span.parent_span_id.unwrap_or_default(),
            start: span.start_unix_nano,
            end: span.end_unix_nano,
            resource,
            scope,
            name: tables.sym(strings, span.name.as_bytes()),
            trace_state: tables.sym(strings, span.trace_state.as_bytes()),
            status_message: tables.sym(strings, span.status_message.as_bytes()),
            unknown: tables.sym(strings, &span.unknown),
            kind: span.kind,
            status_code: span.status_code,
            flags: span.flags,
            dropped_attributes: span.dropped_attributes_count,
            dropped_events: span.dropped_events_count,
            dropped_links: span.dropped_links_count,
            attrs,
            events_end: self.events.len() as u32,
            links_end: self.links.len() as u32,
            row_flags,
        });
    }

    fn resource(&mut self, resource: &Arc<crate::model::Resource>, tables: &mut Tables) -> u32 {
        let mut json = String::new();
        typed_json::write_resource(resource, &mut json);
        if let Some(known) = tables.resources.get(&json) {
            return *known;
        }
        let entry = ResourceEntry {
            json: tables.sym(&mut self.strings, json.as_bytes()),
            service_name: tables.sym(&mut self.strings, resource.service_name().unwrap_or_default().as_bytes()),
        };
        self.resources.push(entry);
        let number = self.resources.len() as u32 - 1;
        tables.resources.insert(json, number);
        number
    }

    fn scope(&mut self, scope: &Arc<crate::model::Scope>, tables: &mut Tables) -> u32 {
        let mut json = String::new();
        typed_json::write_scope(scope, &mut json);
        if let Some(known) = tables.scopes.get(&json) {
            return *known;
        }
        self.scopes.push(tables.sym(&mut self.strings, json.as_bytes()));
        let number = self.scopes.len() as u32 - 1;
        tables.scopes.insert(json, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::ModelReader;
    use crate::id::{SpanId, TraceId};
    use crate::model::{Event, Link, Resource, Scope, Span};

    #[test]
    fn spans_come_back_as_they_were() {
        let attribute = |key: &str, value| Attribute { key: key.to_owned(), value };
        let attributes = vec![
            attribute("a", Value::Str("x".into())),
            attribute("b", Value::Int(-1)),
            attribute("a", Value::Array(vec![Value::Bool(true)])),
            attribute("c", Value::Double(0.5)),
        ];
        let span = Span {
            trace_id: TraceId([1; 16]),
            span_id: SpanId([2; 8]),
            parent_span_id: Some(SpanId::default()),
            name: "n".into(),
            start_unix_nano: 5,
            end_unix_nano: 4,
            events: vec![Event { time_unix_nano: 7, name: "e".into(), attributes: attributes.clone(), ..Event::default() }],
            links: vec![Link { trace_id: vec![1, 2], attributes: attributes.clone(), ..Link::default() }],
            attributes,
            status_code: 2,
            ..Span::default()
        };
        let resource =
            Resource { attributes: vec![attribute("service.name", Value::Str("s".into()))], ..Resource::default() };
        let stored =
            StoredSpan { span, resource: Arc::new(resource), scope: Arc::new(Scope::default()), maybe_duplicate: true };
        let root = StoredSpan { span: Span { parent_span_id: None, ..stored.span.clone() }, ..stored.clone() };
        let all = vec![stored, root];
        let batch = SpanBatch::of_spans(&all);
        let mut reader = ModelReader::new(&batch);
        let read: Vec<StoredSpan> = (0..2).map(|at| reader.stored_span(at).unwrap()).collect();
        assert_eq!(read, all);
    }
}
