//! Which column of a block is which: names of the schema to numbers, found once when a block is opened.
//!
//! Owns which columns spans are made of. The others (facts of the trace, shortcuts for searches) repeat what these say.

use std::collections::HashMap;

use parquet::errors::ParquetError;
use parquet::schema::types::SchemaDescriptor;

use super::rows::Wanted;
use super::schema::column;

/// Numbers of the columns that make a span.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) trace_id: usize,
    pub(super) span_id: usize,
    pub(super) parent_span_id: usize,
    pub(super) parent_delta: usize,
    pub(super) row_flags: usize,
    pub(super) start_time: usize,
    pub(super) duration_ns: usize,
    pub(super) name: usize,
    pub(super) kind: usize,
    pub(super) status_code: usize,
    pub(super) status_message: usize,
    pub(super) resource: usize,
    pub(super) scope: usize,
    pub(super) trace_state: usize,
    pub(super) flags: usize,
    pub(super) dropped_attributes: usize,
    pub(super) dropped_events: usize,
    pub(super) dropped_links: usize,
    pub(super) unknown: usize,
    pub(super) attributes: Keys,
    pub(super) rest_key: usize,
    pub(super) rest_value: usize,
    pub(super) events: EventColumns,
    pub(super) links: LinkColumns,
    pub(super) subtree_size: usize,
    pub(super) service_name: usize,
    /// All of the above but shortcuts, the first of each list before its others.
    wanted: Vec<Wanted>,
}

/// Columns of attributes.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) shape: usize,
    /// By key, without prefix.
    pub(super) by_key: HashMap<String, usize>,
}

#[derive(Debug)]
pub(super) struct EventColumns {
    pub(super) time_offset_ns: usize,
    pub(super) name: usize,
    pub(super) dropped_attributes: usize,
    pub(super) attributes: Keys,
    pub(super) rest: usize,
    pub(super) unknown: usize,
}

#[derive(Debug)]
pub(super) struct LinkColumns {
    pub(super) trace_id: usize,
    pub(super) span_id: usize,
    pub(super) odd_ids: usize,
    pub(super) trace_state: usize,
    pub(super) flags: usize,
    pub(super) dropped_attributes: usize,
    pub(super) attributes: Keys,
    pub(super) rest: usize,
    pub(super) unknown: usize,
}

/// Looks columns up, and notes which were.
struct Finder<'s> {
    /// First and last part of the path of each column.
    names: HashMap<(&'s str, &'s str), usize>,
    wanted: Vec<Wanted>,
}

impl<'s> Finder<'s> {
    fn span(&mut self, name: &str) -> Result<usize, ParquetError> {
        self.find(name, name, None)
    }

    fn find(&mut self, first: &str, last: &str, list: Option<usize>) -> Result<usize, ParquetError> {
        let column = self.number(first, last)?;
        self.wanted.push(Wanted { column, list });
        Ok(column)
    }

    /// A column that repeats what others say.
    fn shortcut(&self, name: &str) -> Result<usize, ParquetError> {
        self.number(name, name)
    }

    fn number(&self, first: &str, last: &str) -> Result<usize, ParquetError> {
        let missing = || ParquetError::General(format!("block is damaged: column `{first}` `{last}` is missing"));
        self.names.get(&(first, last)).copied().ok_or_else(missing)
    }

    fn keys(&mut self, top: Option<&str>, prefix: &str, list: Option<usize>) -> Result<Keys, ParquetError> {
        let shape = self.find(top.unwrap_or(column::ATTRIBUTE_SHAPE), column::ATTRIBUTE_SHAPE, list)?;
        let is_of = |first: &str, last: &str| top.map_or(first == last, |top| first == top);
        let keys = self.names.iter().filter(|((first, last), _)| is_of(first, last));
        let by_key: HashMap<String, usize> =
            keys.filter_map(|((_, last), column)| Some((last.strip_prefix(prefix)?.to_owned(), *column))).collect();
        self.wanted.extend(by_key.values().map(|column| Wanted { column: *column, list }));
        Ok(Keys { shape, by_key })
    }
}

impl Layout {
    pub(super) fn of(schema: &SchemaDescriptor) -> Result<Self, ParquetError> {
        let parts = schema.columns().iter().map(|column| column.path().parts());
        let ends = parts.map(|parts| Some((parts.first()?.as_str(), parts.last()?.as_str())));
        let names = ends.enumerate().filter_map(|(at, ends)| Some((ends?, at))).collect();
        let mut find = Finder { names, wanted: Vec::new() };
        let (events, links, rest) = (column::EVENTS, column::LINKS, column::ATTRIBUTES_REST);
        let time_offset_ns = find.find(events, column::TIME_OFFSET_NS, None)?;
        let of_event = Some(time_offset_ns);
        let link_flags = find.find(links, column::FLAGS, None)?;
        let of_link = Some(link_flags);
        let rest_key = find.find(rest, "key", None)?;
        let mut out = Self {
            trace_id: find.span(column::TRACE_ID)?,
            span_id: find.span(column::SPAN_ID)?,
            parent_span_id: find.span(column::PARENT_SPAN_ID)?,
            parent_delta: find.span(column::PARENT_DELTA)?,
            row_flags: find.span(column::ROW_FLAGS)?,
            start_time: find.span(column::START_TIME)?,
            duration_ns: find.span(column::DURATION_NS)?,
            name: find.span(column::NAME)?,
            kind: find.span(column::KIND)?,
            status_code: find.span(column::STATUS_CODE)?,
            status_message: find.span(column::STATUS_MESSAGE)?,
            resource: find.span(column::RESOURCE)?,
            scope: find.span(column::SCOPE)?,
            trace_state: find.span(column::TRACE_STATE)?,
            flags: find.span(column::FLAGS)?,
            dropped_attributes: find.span(column::DROPPED_ATTRIBUTES)?,
            dropped_events: find.span(column::DROPPED_EVENTS)?,
            dropped_links: find.span(column::DROPPED_LINKS)?,
            unknown: find.span(column::UNKNOWN)?,
            attributes: find.keys(None, column::SPAN_PREFIX, None)?,
            rest_key,
            rest_value: find.find(rest, "value", Some(rest_key))?,
            events: EventColumns {
                time_offset_ns,
                name: find.find(events, column::NAME, of_event)?,
                dropped_attributes: find.find(events, column::DROPPED_ATTRIBUTES, of_event)?,
                attributes: find.keys(Some(events), column::EVENT_PREFIX, of_event)?,
                rest: find.find(events, column::ATTRIBUTES_REST, of_event)?,
                unknown: find.find(events, column::UNKNOWN, of_event)?,
            },
            links: LinkColumns {
                trace_id: find.find(links, column::TRACE_ID, of_link)?,
                span_id: find.find(links, column::SPAN_ID, of_link)?,
                odd_ids: find.find(links, column::ODD_IDS, of_link)?,
                trace_state: find.find(links, column::TRACE_STATE, of_link)?,
                flags: link_flags,
                dropped_attributes: find.find(links, column::DROPPED_ATTRIBUTES, of_link)?,
                attributes: find.keys(Some(links), column::LINK_PREFIX, of_link)?,
                rest: find.find(links, column::ATTRIBUTES_REST, of_link)?,
                unknown: find.find(links, column::UNKNOWN, of_link)?,
            },
            subtree_size: find.shortcut(column::SUBTREE_SIZE)?,
            service_name: find.shortcut(column::SERVICE_NAME)?,
            wanted: Vec::new(),
        };
        out.wanted = find.wanted;
        Ok(out)
    }

    /// The columns to read; the trace id only if it is not known.
    pub(super) fn wanted(&self, with_trace_id: bool) -> Vec<Wanted> {
        self.wanted.iter().copied().filter(|wanted| with_trace_id || wanted.column != self.trace_id).collect()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let keys = [&self.attributes, &self.events.attributes, &self.links.attributes].map(|keys| &keys.by_key);
        let of = |keys: &HashMap<String, usize>| -> usize {
            keys.capacity() * size_of::<(String, usize)>() + keys.keys().map(String::capacity).sum::<usize>()
        };
        keys.into_iter().map(of).sum::<usize>() + self.wanted.capacity() * size_of::<Wanted>()
    }
}
