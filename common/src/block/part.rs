//! A row group as a part: columns for the query engine.
//!
//! Owns how the pages of a column are brought in and which of a block's columns answers for an attribute. What is missing of
//! the file is read while the calling thread waits; pages are kept inflated in the cache.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::bloom_filter::Sbbf;
use tokio::runtime::Handle;

use super::cache::Fetched;
use super::decode::BadPage;
use super::page::{Chunk, ColumnRows, DataPage, Dictionary, Inflater, TraceIdPage};
use super::part_columns::{
    ByKind, ReadItems, Runs, column_of_items, column_of_rows, shape_has_rest_first, slots_of, without,
};
use super::reader::BlockReader;
use super::rows::Group;
use super::tree::flag;
use crate::columns::{
    Column, Fixed, Items, KindCounts, List, Member, Owner, Part, Present, Rows, TraceTable, TraceTimes, Values,
};
use crate::id::TraceId;
use crate::model::{StoredSpan, Value, typed_json};
use crate::source::SourceError;

/// One row group of an open block.
pub struct BlockPart {
    reader: Arc<BlockReader>,
    group: usize,
    /// Where reads from the store run.
    runtime: Handle,
}

impl std::fmt::Debug for BlockPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockPart({}, row group {})", self.reader.meta().origin.id, self.group)
    }
}

impl BlockPart {
    pub fn new(reader: Arc<BlockReader>, group: usize, runtime: Handle) -> Self {
        Self { reader, group, runtime }
    }

    /// The row groups of a block.
    pub fn all(reader: &Arc<BlockReader>, runtime: &Handle) -> Vec<Self> {
        (0..reader.parquet().num_row_groups()).map(|group| Self::new(Arc::clone(reader), group, runtime.clone())).collect()
    }

    pub fn reader(&self) -> &Arc<BlockReader> {
        &self.reader
    }

    fn group(&self) -> Group<'_> {
        self.reader.group(self.group)
    }

    fn damaged(&self, error: impl std::fmt::Display) -> SourceError {
        self.reader.damaged(error)
    }

    fn fetch(&self, ranges: &[Range<u64>]) -> std::result::Result<Fetched, SourceError> {
        if ranges.is_empty() {
            return Ok(Fetched::default());
        }
        self.runtime.block_on(self.reader.fetch(ranges))
    }

    /// The dictionary of a column; `None` if its values are not coded.
    fn dictionary(&self, column: usize) -> std::result::Result<Option<Arc<Dictionary>>, SourceError> {
        let Some(place) = self.group().dictionary(column) else { return Ok(None) };
        let cache = self.reader.cache();
        if let Some(known) = cache.dictionary(place.start) {
            return Ok(Some(known));
        }
        let fetched = self.fetch(std::slice::from_ref(&place))?;
        let read = || {
            let raw = fetched.get(place.clone()).ok_or(BadPage("its bytes were not fetched"))?;
            Dictionary::read(&raw, &self.group().chunk(column), &mut Inflater::default())
        };
        let dictionary = Arc::new(read().map_err(|e| self.damaged(e))?);
        cache.keep_dictionary(place.start, &dictionary);
        Ok(Some(dictionary))
    }

    /// Reads stretches of a column, one after the other, into `out`, which is empty.
    fn read(
        &self,
        column: usize,
        runs: &[Range<usize>],
        mut out: ColumnRows,
    ) -> std::result::Result<(ColumnRows, Chunk), SourceError> {
        let (group, cache) = (self.group(), self.reader.cache());
        let chunk = group.chunk(column);
        let pages = group.pages(column).map_err(|e| self.damaged(e))?;
        let mut wanted: Vec<(usize, Range<usize>)> = Vec::new();
        for run in runs {
            for page in pages.of_rows(run) {
                let has = pages.rows(page);
                wanted.push((page, run.start.max(has.start) - has.start..run.end.min(has.end) - has.start));
            }
        }
        let mut known: Vec<(usize, Option<Arc<DataPage>>)> = Vec::new();
        let mut missing = Vec::new();
        for (page, _) in &wanted {
            if known.last().is_some_and(|(last, _)| last == page) {
                continue;
            }
            let place = pages.place(*page);
            let found = cache.data(place.start);
            if found.is_none() {
                missing.push(place);
            }
            known.push((*page, found));
        }
        let fetched = self.fetch(&missing)?;
        let mut inflater = Inflater::default();
        let mut at = 0;
        for (page, rows) in wanted {
            while known[at].0 != page {
                at += 1;
            }
            let read = || -> std::result::Result<Arc<DataPage>, BadPage> {
                let place = pages.place(page);
                let raw = fetched.get(place.clone()).ok_or(BadPage("its bytes were not fetched"))?;
                let read = Arc::new(DataPage::read(&raw, &chunk, &mut inflater)?);
                cache.keep_data(place.start, &read);
                Ok(read)
            };
            let data = match &known[at].1 {
                Some(data) => Arc::clone(data),
                None => {
                    let data = { read }().map_err(|e| self.damaged(e))?;
                    known[at].1 = Some(Arc::clone(&data));
                    data
                }
            };
            data.rows(&chunk, rows, &mut out).map_err(|e| self.damaged(e))?;
        }
        if out.is_coded() {
            let dictionary = self.dictionary(column)?.ok_or_else(|| self.damaged("coded page without dictionary"))?;
            out.explain(&dictionary, &chunk).map_err(|e| self.damaged(e))?;
        }
        Ok((out, chunk))
    }

    fn row_column(&self, column: usize, rows: Rows<'_>) -> std::result::Result<Column, SourceError> {
        let runs = Runs::of(rows);
        let (read, chunk) = self.read(column, &runs.runs, ColumnRows::flat(runs.rows(), &self.group().chunk(column)))?;
        let column = column_of_rows(read, &chunk, runs.rows()).map_err(|e| self.damaged(e))?;
        Ok(runs.pick(column))
    }

    /// Items of a list whose levels a column shows, and the stretches that were read.
    fn read_items(&self, column: usize, runs: &Runs) -> std::result::Result<ReadItems, SourceError> {
        let (levels, _) = self.read(column, &runs.runs, ColumnRows::new())?;
        ReadItems::of(&levels, runs).map_err(|e| self.damaged(e))
    }

    fn item_column(&self, column: usize, runs: &Runs, items: &ReadItems) -> std::result::Result<Column, SourceError> {
        let (read, chunk) = self.read(column, &runs.runs, ColumnRows::new())?;
        let column = column_of_items(read, &chunk).map_err(|e| self.damaged(e))?;
        Ok(items.pick(column))
    }

    fn list_column(&self, list: List) -> usize {
        match list {
            List::Events => self.reader.layout().events.time_offset_ns,
            List::Links => self.reader.layout().links.flags,
        }
    }

    fn parent_ids(&self, rows: Rows<'_>) -> std::result::Result<Column, SourceError> {
        let layout = self.reader.layout();
        let own = self.row_column(layout.parent_span_id, rows)?;
        let delta = self.row_column(layout.parent_delta, rows)?;
        let flags = self.row_column(layout.row_flags, rows)?;
        let (Values::Small(delta), Values::Small(flags)) = (&delta.values, &flags.values) else {
            return Err(self.damaged("structure of another type"));
        };
        let mut out = vec![[0u8; 8]; rows.len()];
        let mut parents: Vec<u32> = Vec::new();
        let mut of: Vec<usize> = Vec::new();
        for (slot, row) in rows.iter().enumerate() {
            if delta[slot] > 0 && flags[slot] & flag::ROOT == 0 {
                parents
                    .push(row.checked_sub(delta[slot] as u32).ok_or_else(|| self.damaged("parent before the first row"))?);
                of.push(slot);
            }
        }
        let mut distinct = parents.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let ids = self.row_column(layout.span_id, Rows::At(&distinct))?;
        if let Values::Ids(ids) = &ids.values {
            for (parent, slot) in parents.iter().zip(of) {
                if let Ok(at) = distinct.binary_search(parent) {
                    out[slot] = ids[at];
                }
            }
        }
        if let (Values::Ids(ids), present) = (&own.values, &own.present) {
            for (at, id) in ids.iter().enumerate() {
                let slot = match present {
                    Present::All => at,
                    Present::At(slots) => slots[at] as usize,
                };
                out[slot] = *id;
            }
        }
        Ok(Column::all(Values::Ids(out)))
    }

    /// Whether the rest of the spans' attributes may have a key.
    fn rest_has(&self, key: &str) -> std::result::Result<bool, SourceError> {
        let column = self.reader.layout().rest_key;
        if self.group().metadata().column(column).num_values() == 0 {
            return Ok(false);
        }
        Ok(match self.dictionary(column)? {
            Some(dictionary) => (0..dictionary.len() as u32).any(|code| dictionary.get(code) == Some(key.as_bytes())),
            // A chunk without any key has no dictionary either; reading its levels is cheap.
            None => true,
        })
    }

    /// Values of a key in the rest: slot and typed JSON, the first of each row.
    fn rest_values(&self, key: &str, rows: Rows<'_>) -> std::result::Result<Vec<(u32, Bytes)>, SourceError> {
        let layout = self.reader.layout();
        let runs = Runs::of(rows);
        let items = self.read_items(layout.rest_key, &runs)?;
        if items.slots.is_empty() {
            return Ok(Vec::new());
        }
        let keys = self.item_column(layout.rest_key, &runs, &items)?;
        let mut found: Vec<u32> = Vec::new();
        let mut last = None;
        for (item, slot) in (0u32..).zip(&items.slots) {
            let is_key = keys.place(item).and_then(|place| keys.values.text(place)) == Some(key.as_bytes());
            if is_key && last != Some(*slot) {
                found.push(item);
                last = Some(*slot);
            }
        }
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.item_column(layout.rest_value, &runs, &items)?;
        let value = |item: &u32| {
            let text = values.place(*item).and_then(|place| values.values.text(place)).unwrap_or_default();
            (items.slots[*item as usize], Bytes::copy_from_slice(text))
        };
        Ok(found.iter().map(value).collect())
    }

    /// Of slots that have a key both in its column and in the rest: those where the rest comes first.
    fn rest_first(&self, key: &str, rows: Rows<'_>, slots: &[u32]) -> std::result::Result<Vec<u32>, SourceError> {
        let at: Vec<u32> = slots.iter().map(|slot| rows.row(*slot as usize)).collect();
        let shapes = self.row_column(self.reader.layout().attributes.shape, Rows::At(&at))?;
        let mut out = Vec::new();
        for (nth, slot) in (0u32..).zip(slots) {
            let shape = shapes.place(nth).and_then(|place| shapes.values.text(place)).unwrap_or_default();
            if shape_has_rest_first(shape, key).map_err(|e| self.damaged(e))? {
                out.push(*slot);
            }
        }
        Ok(out)
    }
}

impl Part for BlockPart {
    fn name(&self) -> String {
        self.reader.meta().origin.id.to_string()
    }

    fn identity(&self) -> u64 {
        use std::hash::BuildHasher;
        // The top bit keeps it apart from those of parts in memory.
        foldhash::fast::FixedState::default().hash_one((self.reader.meta().origin.id, self.group)) | 1 << 63
    }

    fn rows(&self) -> u32 {
        self.group().rows() as u32
    }

    fn bytes(&self) -> u64 {
        self.group().metadata().compressed_size().max(0) as u64
    }

    fn traces(&self) -> std::result::Result<Arc<TraceTable>, SourceError> {
        let (group, cache) = (self.group(), self.reader.cache());
        let column = self.reader.layout().trace_id;
        let pages = group.pages(column).map_err(|e| self.damaged(e))?;
        let key = pages.place(0).start;
        if let Some(known) = cache.trace_table(key) {
            return Ok(known);
        }
        let places: Vec<Range<u64>> = (0..pages.len()).map(|page| pages.place(page)).collect();
        let fetched = self.fetch(&places)?;
        let (chunk, mut inflater) = (group.chunk(column), Inflater::default());
        let mut table = TraceTable::default();
        for (page, place) in places.iter().enumerate() {
            let raw = fetched.get(place.clone()).ok_or_else(|| self.damaged("its bytes were not fetched"))?;
            let read = TraceIdPage::read(&raw, &chunk, &mut inflater).map_err(|e| self.damaged(e))?;
            let first = pages.rows(page).start as u32;
            for (id, start) in read.iter() {
                if table.ids.last().is_none_or(|last: &TraceId| *last < id) {
                    table.ids.push(id);
                    table.starts.push(first + start);
                } else if table.ids.last() != Some(&id) {
                    return Err(self.damaged("trace ids out of order"));
                }
            }
        }
        table.starts.push(group.rows() as u32);
        let table = Arc::new(table);
        cache.keep_trace_table(key, &table);
        Ok(table)
    }

    fn times(&self) -> std::result::Result<Arc<TraceTimes>, SourceError> {
        let group = self.group();
        let key = group.pages(self.reader.layout().trace_id).map_err(|e| self.damaged(e))?.place(0).start;
        if let Some(known) = self.reader.cache().trace_times(key) {
            return Ok(known);
        }
        let read = Arc::new(TraceTimes::read(self)?);
        self.reader.cache().keep_trace_times(key, &read);
        Ok(read)
    }

    fn column(&self, which: Fixed, rows: Rows<'_>) -> std::result::Result<Column, SourceError> {
        let rows = rows.joined();
        let layout = self.reader.layout();
        let column = match which {
            Fixed::ParentSpanId => return self.parent_ids(rows),
            Fixed::SpanId => layout.span_id,
            Fixed::ParentDelta => layout.parent_delta,
            Fixed::SubtreeSize => layout.subtree_size,
            Fixed::RowFlags => layout.row_flags,
            Fixed::Start => layout.start_time,
            Fixed::Duration => layout.duration_ns,
            Fixed::Name => layout.name,
            Fixed::Kind => layout.kind,
            Fixed::StatusCode => layout.status_code,
            Fixed::StatusMessage => layout.status_message,
            Fixed::ServiceName => layout.service_name,
            Fixed::Resource => layout.resource,
            Fixed::Scope => layout.scope,
            Fixed::TraceState => layout.trace_state,
        };
        self.row_column(column, rows)
    }

    fn attribute(&self, key: &str, rows: Rows<'_>) -> std::result::Result<Vec<Column>, SourceError> {
        let rows = rows.joined();
        let summary = self.reader.summary_shared()?;
        let mut out = Vec::new();
        if !summary.span.iter().any(|known| known.key == key) || rows.is_empty() {
            return Ok(out);
        }
        if let Some(column) = self.reader.layout().attributes.by_key.get(key) {
            out.push(self.row_column(*column, rows)?);
        }
        if self.rest_has(key)? {
            let mut rest = self.rest_values(key, rows)?;
            if let (Some(column), false) = (out.first_mut(), rest.is_empty()) {
                let both: Vec<u32> =
                    rest.iter().map(|(slot, _)| *slot).filter(|slot| column.place(*slot).is_some()).collect();
                let first = self.rest_first(key, rows, &both)?;
                rest.retain(|(slot, _)| both.binary_search(slot).is_err() || first.binary_search(slot).is_ok());
                let all = std::mem::replace(column, Column::all(Values::Bools(Vec::new())));
                *column = without(all, &first);
            }
            let mut kinds = ByKind::default();
            for (slot, json) in rest {
                let text = std::str::from_utf8(&json).map_err(|e| self.damaged(e))?;
                kinds.push(slot, typed_json::parse_value(text).map_err(|e| self.damaged(e))?, &json);
            }
            kinds.finish(&mut out);
        }
        out.retain(|column| !column.is_empty());
        Ok(out)
    }

    fn items(&self, list: List, rows: Rows<'_>) -> std::result::Result<Items, SourceError> {
        let rows = rows.joined();
        let runs = Runs::of(rows);
        Ok(Items { slots: self.read_items(self.list_column(list), &runs)?.slots })
    }

    fn member(&self, which: Member, rows: Rows<'_>) -> std::result::Result<Column, SourceError> {
        let rows = rows.joined();
        let layout = self.reader.layout();
        let runs = Runs::of(rows);
        let items = self.read_items(self.list_column(which.list()), &runs)?;
        if items.slots.is_empty() {
            return Ok(Column::all(Values::Texts(Vec::new())));
        }
        match which {
            Member::EventName => self.item_column(layout.events.name, &runs, &items),
            Member::EventOffset => self.item_column(layout.events.time_offset_ns, &runs, &items),
            Member::LinkTraceState => self.item_column(layout.links.trace_state, &runs, &items),
            Member::LinkTraceId | Member::LinkSpanId => {
                let is_trace = which == Member::LinkTraceId;
                let column = if is_trace { layout.links.trace_id } else { layout.links.span_id };
                let usual = self.item_column(column, &runs, &items)?;
                let odd = self.item_column(layout.links.odd_ids, &runs, &items)?;
                let mut all = vec![Bytes::new(); items.slots.len()];
                for (at, slot) in slots_of(&usual).into_iter().enumerate() {
                    all[slot as usize] = Bytes::copy_from_slice(usual.values.text(at).unwrap_or_default());
                }
                for (at, slot) in slots_of(&odd).into_iter().enumerate() {
                    let text = odd.values.text(at).unwrap_or_default();
                    let (length, rest) = text.split_first_chunk::<4>().ok_or_else(|| self.damaged("link ids"))?;
                    let length = u32::from_le_bytes(*length) as usize;
                    let (trace, span) = rest.split_at_checked(length).ok_or_else(|| self.damaged("link ids"))?;
                    all[slot as usize] = Bytes::copy_from_slice(if is_trace { trace } else { span });
                }
                Ok(Column::all(Values::Texts(all)))
            }
        }
    }

    fn item_attribute(&self, list: List, key: &str, rows: Rows<'_>) -> std::result::Result<Vec<Column>, SourceError> {
        let rows = rows.joined();
        let summary = self.reader.summary_shared()?;
        let known = if list == List::Events { &summary.event } else { &summary.link };
        if !known.iter().any(|known| known.key == key) {
            return Ok(Vec::new());
        }
        let layout = self.reader.layout();
        let (keys, rest) = match list {
            List::Events => (&layout.events.attributes, layout.events.rest),
            List::Links => (&layout.links.attributes, layout.links.rest),
        };
        let runs = Runs::of(rows);
        let items = self.read_items(self.list_column(list), &runs)?;
        let mut out = Vec::new();
        if items.slots.is_empty() {
            return Ok(out);
        }
        if let Some(column) = keys.by_key.get(key) {
            out.push(self.item_column(*column, &runs, &items)?);
        }
        let rest = self.item_column(rest, &runs, &items)?;
        let mut found: Vec<(u32, Value, Bytes)> = Vec::new();
        // By code, because few texts repeat on many items.
        let mut parsed: HashMap<u32, Option<(Value, Bytes)>> = HashMap::new();
        for (at, slot) in slots_of(&rest).into_iter().enumerate() {
            let text = rest.values.text(at).unwrap_or_default();
            let parse = || -> std::result::Result<Option<(Value, Bytes)>, SourceError> {
                let text = std::str::from_utf8(text).map_err(|e| self.damaged(e))?;
                let all = typed_json::parse_attributes(text).map_err(|e| self.damaged(e))?;
                Ok(all.into_iter().find(|attribute| attribute.key == key).map(|attribute| {
                    let mut json = String::new();
                    typed_json::write_value(&attribute.value, &mut json);
                    (attribute.value, Bytes::from(json))
                }))
            };
            let value = match &rest.values {
                Values::Codes(codes, _) => match parsed.get(&codes[at]) {
                    Some(known) => known.clone(),
                    None => {
                        let value = parse()?;
                        parsed.insert(codes[at], value.clone());
                        value
                    }
                },
                _ => parse()?,
            };
            found.extend(value.map(|(value, json)| (slot, value, json)));
        }
        if let (Some(column), false) = (out.first_mut(), found.is_empty()) {
            let shapes = self.item_column(keys.shape, &runs, &items)?;
            let mut first = Vec::new();
            let mut kept = Vec::new();
            for (slot, value, json) in found {
                if column.place(slot).is_some() {
                    let shape = shapes.place(slot).and_then(|place| shapes.values.text(place)).unwrap_or_default();
                    if !shape_has_rest_first(shape, key).map_err(|e| self.damaged(e))? {
                        continue;
                    }
                    first.push(slot);
                }
                kept.push((slot, value, json));
            }
            let all = std::mem::replace(column, Column::all(Values::Bools(Vec::new())));
            *column = without(all, &first);
            found = kept;
        }
        let mut kinds = ByKind::default();
        for (slot, value, json) in found {
            kinds.push(slot, value, &json);
        }
        kinds.finish(&mut out);
        out.retain(|column| !column.is_empty());
        Ok(out)
    }

    fn keys(&self, owner: Owner) -> std::result::Result<Vec<(String, KindCounts)>, SourceError> {
        let summary = self.reader.summary_shared()?;
        let all = match owner {
            Owner::Span => &summary.span,
            Owner::Event => &summary.event,
            Owner::Link => &summary.link,
        };
        Ok(all.iter().map(|key| (key.key.clone(), key.counts)).collect())
    }

    fn counts_of(&self, owner: Owner, key: &str) -> std::result::Result<KindCounts, SourceError> {
        let summary = self.reader.summary_shared()?;
        let all = match owner {
            Owner::Span => &summary.span,
            Owner::Event => &summary.event,
            Owner::Link => &summary.link,
        };
        Ok(all.iter().find(|known| known.key == key).map_or([0; 5], |known| known.counts))
    }

    fn may_have_duplicates(&self) -> bool {
        let chunk = self.group().metadata().column(self.reader.layout().row_flags);
        let max = chunk.statistics().and_then(|statistics| statistics.max_bytes_opt());
        let max = max.and_then(|bytes| bytes.first_chunk::<4>()).map(|bytes| i32::from_le_bytes(*bytes));
        max.is_none_or(|max| max >= flag::MAYBE_DUPLICATE)
    }

    fn may_hold(&self, key: &str, value: &str) -> std::result::Result<bool, SourceError> {
        let summary = self.reader.summary_shared()?;
        let Some(known) = summary.span.iter().find(|known| known.key == key) else { return Ok(false) };
        // Texts, or arrays that may hold some.
        if known.counts[0] == 0 && known.counts[4] == 0 {
            return Ok(false);
        }
        if !known.cut && !known.values.is_empty() && known.counts[4] == 0 {
            let mut text = String::new();
            typed_json::write_value(&Value::Str(value.to_owned()), &mut text);
            return Ok(known.values.contains(&text));
        }
        let Some(column) = self.reader.layout().attributes.by_key.get(key) else { return Ok(true) };
        let chunk = self.group().metadata().column(*column);
        if self.rest_has(key)? {
            return Ok(true);
        }
        let (Some(offset), Some(length)) = (chunk.bloom_filter_offset(), chunk.bloom_filter_length()) else {
            // A dictionary has every value; looking through it is cheaper than reading the column.
            return Ok(match self.dictionary(*column)? {
                Some(dictionary) => (0..dictionary.len() as u32).any(|code| dictionary.get(code) == Some(value.as_bytes())),
                None => true,
            });
        };
        let place = offset as u64..(offset as u64).saturating_add(length.max(0) as u64);
        let cache = self.reader.cache();
        let filter = match cache.value_filter(place.start) {
            Some(known) => known,
            None => {
                let fetched = self.fetch(std::slice::from_ref(&place))?;
                let raw = fetched.get(place.clone()).ok_or_else(|| self.damaged("its bytes were not fetched"))?;
                let filter = Arc::new(Sbbf::from_bytes(&raw).map_err(|e| self.damaged(e))?);
                cache.keep_value_filter(place.start, &filter, raw.len());
                filter
            }
        };
        Ok(filter.check(value))
    }

    fn may_own(
        &self,
        which: Fixed,
        most: usize,
        test: &mut dyn FnMut(&[u8]) -> bool,
    ) -> std::result::Result<bool, SourceError> {
        let column = match which {
            Fixed::Resource => self.reader.layout().resource,
            Fixed::Scope => self.reader.layout().scope,
            _ => return Ok(true),
        };
        // A dictionary has every value of its chunk.
        Ok(match self.dictionary(column)? {
            Some(all) if all.len() <= most => (0..all.len() as u32).any(|code| all.get(code).is_some_and(&mut *test)),
            _ => true,
        })
    }

    fn spans(&self, rows: Range<u32>) -> std::result::Result<Vec<StoredSpan>, SourceError> {
        self.runtime.block_on(self.reader.spans(self.group, rows.start as usize..rows.end as usize))
    }
}
