//! Live batches as one part: their rows put in the order a block would have, columns made when they are asked for.
//!
//! Owns what ordering costs and what is kept of columns. Made once for a set of batches; identical copies of a span within them
//! are left out, as a block leaves them out.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Column, Fixed, Items, KindCounts, List, Member, Owner, Part, Present, Rows, Texts, TraceTable, TraceTimes, Values,
    next_identity,
};
use crate::batch::{AttrValues, AttrsEnd, Interner, ModelReader, Shape, SpanBatch, Strings, Sym, ValueKind};
use crate::block::live_order::{BlockRow, order_all};
use crate::model::StoredSpan;
use crate::source::SourceError;

/// Rows of live batches.
pub struct MemoryPart {
    batches: Vec<Arc<SpanBatch>>,
    traces: Arc<TraceTable>,
    rows: Vec<SourceRow>,
    span_id: Values,
    parent_span_id: Values,
    parent_delta: Values,
    subtree_size: Values,
    row_flags: Values,
    start: Values,
    duration: Values,
    name: Values,
    kind: Values,
    status_code: Values,
    status_message: Column,
    service: Column,
    resource: Values,
    scope: Values,
    identity: u64,
    times: OnceLock<Arc<TraceTimes>>,
    has_duplicates: bool,
    bytes: u64,
    /// Attributes of spans that were asked for, of all rows.
    attributes: Mutex<HashMap<String, Arc<Vec<Column>>>>,
    lists: Mutex<HashMap<List, Arc<Lists>>>,
    /// By owner.
    keys: [OnceLock<Vec<(String, KindCounts)>>; 3],
}

/// Where a row comes from.
#[derive(Clone, Copy, Debug)]
struct SourceRow {
    batch: u32,
    row: u32,
    shape: Shape,
    attrs: AttrsEnd,
}

/// The events or links of all rows.
#[derive(Debug)]
struct Lists {
    /// The row of each item, ascending.
    rows: Vec<u32>,
    /// Batch and number of each item.
    items: Vec<(u32, u32)>,
}

impl std::fmt::Debug for MemoryPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryPart({} batches, {} rows)", self.batches.len(), self.rows.len())
    }
}

/// Bytes of the texts of a column that only this part has.
fn texts(column: &Column) -> usize {
    match &column.values {
        Values::Codes(_, texts) => texts.own_bytes(),
        Values::Texts(all) | Values::Json(all) => all.iter().map(|text| text.len()).sum(),
        _ => 0,
    }
}

impl MemoryPart {
    /// Orders the rows of `batches`.
    pub fn new(batches: Vec<Arc<SpanBatch>>) -> Result<Self, SourceError> {
        let bytes = batches.iter().map(|batch| batch.heap_bytes() as u64).sum();
        let ordered = order_all(&batches).map_err(|e| SourceError::Damaged { what: "live".into(), why: e.to_string() })?;
        let rows = &ordered.rows;
        let strings = Arc::new(ordered.strings);
        let texts = Texts::of_strings(Arc::clone(&strings));
        let codes = |of: fn(&BlockRow) -> u32| Values::Codes(rows.iter().map(of).collect(), texts.clone());
        // The empty text is code 0 and means that there is none.
        let present = |of: fn(&BlockRow) -> u32| {
            let found: Vec<(u32, u32)> = (0..).zip(rows.iter().map(of)).filter(|(_, code)| *code != 0).collect();
            let codes = found.iter().map(|(_, code)| *code).collect();
            let slots = found.into_iter().map(|(slot, _)| slot).collect();
            Column { present: Present::At(slots), values: Values::Codes(codes, texts.clone()) }
        };
        let small = |of: fn(&BlockRow) -> i32| Values::Small(rows.iter().map(of).collect());
        let mut starts: Vec<u32> = ordered.traces.clone();
        let ids = starts.iter().map(|first| rows[*first as usize].trace_id).collect();
        starts.push(rows.len() as u32);
        let source = |row: &BlockRow| SourceRow { batch: row.batch, row: row.row, shape: row.shape, attrs: row.attrs_start };
        let duplicate = crate::block::flag::MAYBE_DUPLICATE;
        Ok(Self {
            traces: Arc::new(TraceTable { ids, starts }),
            rows: rows.iter().map(source).collect(),
            span_id: Values::Ids(rows.iter().map(|row| row.span_id.0).collect()),
            parent_span_id: Values::Ids(rows.iter().map(|row| row.parent_span_id.0).collect()),
            start: Values::Ints(rows.iter().map(|row| row.start as i64).collect()),
            duration: Values::Ints(rows.iter().map(|row| row.end.wrapping_sub(row.start) as i64).collect()),
            name: codes(|row| row.name),
            kind: small(|row| row.kind),
            status_code: small(|row| row.status_code),
            status_message: present(|row| row.status_message),
            service: present(|row| row.service),
            resource: codes(|row| row.resource),
            scope: codes(|row| row.scope),
            has_duplicates: ordered.flags.iter().any(|flags| flags & duplicate != 0),
            parent_delta: Values::Small(ordered.parent_delta),
            subtree_size: Values::Small(ordered.subtree_size),
            row_flags: Values::Small(ordered.flags),
            identity: next_identity(),
            times: OnceLock::new(),
            batches,
            bytes,
            attributes: Mutex::default(),
            lists: Mutex::default(),
            keys: Default::default(),
        })
    }

    /// Bytes it holds beside its batches.
    pub fn heap_bytes(&self) -> usize {
        // Fixed columns take about 84 bytes a row.
        let attributes: usize = self
            .attributes
            .lock()
            .values()
            .flat_map(|all| all.iter())
            .map(|column| column.heap_bytes() + texts(column))
            .sum();
        let lists: usize = self.lists.lock().values().map(|lists| lists.rows.len() * 4 + lists.items.len() * 8).sum();
        let times = self.times.get().map_or(0, |times| times.heap_bytes());
        let keys: usize = self.keys.iter().filter_map(OnceLock::get).flatten().map(|(key, _)| key.len() + 48).sum();
        let strings = match &self.name {
            Values::Codes(_, texts) => texts.own_bytes(),
            _ => 0,
        };
        self.rows.len() * (84 + size_of::<SourceRow>())
            + self.traces.heap_bytes()
            + attributes
            + lists
            + times
            + keys
            + strings
    }

    /// Few spans have one and few queries ask, so it is not held as a column.
    fn trace_states(&self, rows: Rows<'_>) -> Column {
        let (mut slots, mut texts) = (Vec::new(), Vec::new());
        for (slot, row) in (0..).zip(rows.iter()) {
            let source = &self.rows[row as usize];
            let batch = &self.batches[source.batch as usize];
            let state = batch.rows[source.row as usize].trace_state;
            if state != Sym::EMPTY {
                slots.push(slot);
                texts.push(Bytes::copy_from_slice(batch.strings.get(state)));
            }
        }
        Column { present: Present::At(slots), values: Values::Texts(texts) }
    }

    fn known_keys(&self, owner: Owner) -> &[(String, KindCounts)] {
        let owned = |(key, counts): (&str, KindCounts)| (key.to_owned(), counts);
        self.keys[owner as usize].get_or_init(|| self.counted(owner).into_iter().map(owned).collect())
    }

    fn counted(&self, owner: Owner) -> HashMap<&str, KindCounts> {
        let mut out: HashMap<&str, KindCounts> = HashMap::new();
        for batch in &self.batches {
            let mut items = vec![0u32; batch.shapes.len()];
            match owner {
                Owner::Span => batch.rows.iter().for_each(|row| items[row.attrs.shape.index()] += 1),
                Owner::Event => batch.events.iter().for_each(|event| items[event.attrs.shape.index()] += 1),
                Owner::Link => batch.links.iter().for_each(|link| items[link.attrs.shape.index()] += 1),
            }
            // An item has the attributes of every node before its own.
            for (shape, node) in batch.shapes.iter().rev() {
                let count = items[shape.index()];
                if count > 0 {
                    items[node.before.index()] += count;
                    out.entry(batch.strings.text(node.key)).or_default()[node.kind as usize] += count;
                }
            }
        }
        out
    }

    fn lists(&self, list: List) -> Arc<Lists> {
        let mut known = self.lists.lock();
        Arc::clone(known.entry(list).or_insert_with(|| {
            let (mut rows, mut items) = (Vec::new(), Vec::new());
            for (at, row) in (0..).zip(&self.rows) {
                let batch = &self.batches[row.batch as usize];
                let (first, count) = match list {
                    List::Events => {
                        let (first, all) = batch.events_of(row.row as usize);
                        (first, all.len())
                    }
                    List::Links => {
                        let (first, all) = batch.links_of(row.row as usize);
                        (first, all.len())
                    }
                };
                for item in first..first + count {
                    rows.push(at);
                    items.push((row.batch, item as u32));
                }
            }
            Arc::new(Lists { rows, items })
        }))
    }

    /// Numbers of the items of some rows, and the slot each belongs to.
    fn items_of(lists: &Lists, rows: Rows<'_>) -> (Vec<u32>, Vec<u32>) {
        let (mut numbers, mut slots) = (Vec::new(), Vec::new());
        match rows {
            Rows::Range(from, to) => {
                let range = lists.rows.partition_point(|row| *row < from)..lists.rows.partition_point(|row| *row < to);
                slots.extend(lists.rows[range.clone()].iter().map(|row| row - from));
                numbers.extend(range.map(|at| at as u32));
            }
            Rows::At(rows) => {
                let mut at = 0;
                for (slot, row) in (0..).zip(rows) {
                    at += lists.rows[at..].partition_point(|known| known < row);
                    while lists.rows.get(at) == Some(row) {
                        numbers.push(at as u32);
                        slots.push(slot);
                        at += 1;
                    }
                }
            }
        }
        (numbers, slots)
    }
}

/// What an attribute key is in one batch: by shape, where its value lies.
struct KeyPlaces {
    /// Kind, and how many values of its sort (texts or numbers) come before it; `None` where the shape has no such key.
    by_shape: Vec<Option<(ValueKind, u32)>>,
}

impl KeyPlaces {
    fn of(batch: &SpanBatch, key: &[u8]) -> Option<Self> {
        let shapes = &batch.shapes;
        let sym = shapes.iter().map(|(_, node)| node.key).find(|sym| batch.strings.get(*sym) == key)?;
        let mut by_shape: Vec<Option<(ValueKind, u32)>> = vec![None; shapes.len()];
        let mut before: Vec<(u32, u32)> = vec![(0, 0); shapes.len()];
        let mut any = false;
        // A node comes after the one before it, so what is before is known.
        for (shape, node) in shapes.iter() {
            let (texts, numbers) = before[node.before.index()];
            let is_text = matches!(node.kind, ValueKind::Str | ValueKind::Json);
            before[shape.index()] = if is_text { (texts + 1, numbers) } else { (texts, numbers + 1) };
            by_shape[shape.index()] = match by_shape[node.before.index()] {
                None if node.key == sym => {
                    any = true;
                    Some((node.kind, if is_text { texts } else { numbers }))
                }
                first => first,
            };
        }
        any.then_some(Self { by_shape })
    }
}

/// Collects values of one key by kind.
#[derive(Default)]
struct ByKind {
    strings: Strings,
    interner: Interner,
    codes: (Vec<u32>, Vec<u32>),
    ints: (Vec<u32>, Vec<i64>),
    floats: (Vec<u32>, Vec<f64>),
    bools: (Vec<u32>, Vec<bool>),
    json: (Vec<u32>, Vec<Bytes>),
}

impl ByKind {
    /// `known` maps symbols of the batch to codes; `u32::MAX` where not seen.
    fn push(&mut self, slot: u32, kind: ValueKind, at: usize, batch: &SpanBatch, values: &AttrValues, known: &mut [u32]) {
        match kind {
            ValueKind::Str => {
                let sym = values.texts[at];
                let code = &mut known[sym.index()];
                if *code == u32::MAX {
                    *code = self.interner.add(&mut self.strings, batch.strings.get(sym)).0;
                }
                self.codes.0.push(slot);
                self.codes.1.push(*code);
            }
            ValueKind::Json => {
                self.json.0.push(slot);
                self.json.1.push(Bytes::copy_from_slice(batch.strings.get(values.texts[at])));
            }
            ValueKind::Int => {
                self.ints.0.push(slot);
                self.ints.1.push(values.numbers[at] as i64);
            }
            ValueKind::Double => {
                self.floats.0.push(slot);
                self.floats.1.push(f64::from_bits(values.numbers[at]));
            }
            ValueKind::Bool => {
                self.bools.0.push(slot);
                self.bools.1.push(values.numbers[at] != 0);
            }
        }
    }

    fn finish(self) -> Vec<Column> {
        let texts = Texts::of_strings(Arc::new(self.strings));
        let column = |slots: Vec<u32>, values: Values| Column { present: Present::At(slots), values };
        let all = [
            column(self.codes.0, Values::Codes(self.codes.1, texts)),
            column(self.ints.0, Values::Ints(self.ints.1)),
            column(self.floats.0, Values::Floats(self.floats.1)),
            column(self.bools.0, Values::Bools(self.bools.1)),
            column(self.json.0, Values::Json(self.json.1)),
        ];
        all.into_iter().filter(|column| !column.is_empty()).collect()
    }
}

/// By batch, made when first needed.
struct Batches<'p> {
    part: &'p MemoryPart,
    key: &'p [u8],
    places: Vec<Option<Option<KeyPlaces>>>,
    known: Vec<Vec<u32>>,
}

impl<'p> Batches<'p> {
    fn new(part: &'p MemoryPart, key: &'p str) -> Self {
        let count = part.batches.len();
        Self { part, key: key.as_bytes(), places: (0..count).map(|_| None).collect(), known: vec![Vec::new(); count] }
    }

    fn push(
        &mut self,
        out: &mut ByKind,
        slot: u32,
        number: u32,
        shape: Shape,
        start: AttrsEnd,
        values: impl Fn(&SpanBatch) -> &AttrValues,
    ) {
        let at = number as usize;
        let batch = &self.part.batches[at];
        let places = self.places[at].get_or_insert_with(|| KeyPlaces::of(batch, self.key));
        let Some((kind, offset)) = places.as_ref().and_then(|places| places.by_shape[shape.index()]) else { return };
        if self.known[at].is_empty() {
            self.known[at] = vec![u32::MAX; batch.strings.len()];
        }
        let is_text = matches!(kind, ValueKind::Str | ValueKind::Json);
        let place = (if is_text { start.texts } else { start.numbers }) + offset;
        out.push(slot, kind, place as usize, batch, values(batch), &mut self.known[at]);
    }
}

impl Part for MemoryPart {
    fn name(&self) -> String {
        "live".into()
    }

    fn identity(&self) -> u64 {
        self.identity
    }

    fn rows(&self) -> u32 {
        self.rows.len() as u32
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn traces(&self) -> Result<Arc<TraceTable>, SourceError> {
        Ok(Arc::clone(&self.traces))
    }

    fn times(&self) -> Result<Arc<TraceTimes>, SourceError> {
        if let Some(known) = self.times.get() {
            return Ok(Arc::clone(known));
        }
        let read = Arc::new(TraceTimes::read(self)?);
        Ok(Arc::clone(self.times.get_or_init(|| read)))
    }

    fn column(&self, which: Fixed, rows: Rows<'_>) -> Result<Column, SourceError> {
        let rows = rows.joined();
        let dense = |values: &Values| match rows {
            Rows::Range(from, to) => Column::all(values.slice(from as usize..to as usize)),
            Rows::At(rows) => Column::all(values.pick(rows.iter().map(|row| *row as usize))),
        };
        Ok(match which {
            Fixed::SpanId => dense(&self.span_id),
            Fixed::ParentSpanId => dense(&self.parent_span_id),
            Fixed::ParentDelta => dense(&self.parent_delta),
            Fixed::SubtreeSize => dense(&self.subtree_size),
            Fixed::RowFlags => dense(&self.row_flags),
            Fixed::Start => dense(&self.start),
            Fixed::Duration => dense(&self.duration),
            Fixed::Name => dense(&self.name),
            Fixed::Kind => dense(&self.kind),
            Fixed::StatusCode => dense(&self.status_code),
            Fixed::StatusMessage => self.status_message.select(rows),
            Fixed::ServiceName => self.service.select(rows),
            Fixed::Resource => dense(&self.resource),
            Fixed::Scope => dense(&self.scope),
            Fixed::TraceState => self.trace_states(rows),
        })
    }

    fn attribute(&self, key: &str, rows: Rows<'_>) -> Result<Vec<Column>, SourceError> {
        let rows = rows.joined();
        let known = self.attributes.lock().get(key).map(Arc::clone);
        let all = match known {
            Some(known) => known,
            None => {
                let (mut out, mut batches) = (ByKind::default(), Batches::new(self, key));
                for (slot, row) in (0..).zip(&self.rows) {
                    batches.push(&mut out, slot, row.batch, row.shape, row.attrs, |batch| &batch.attrs);
                }
                let made = Arc::new(out.finish());
                // A key that no span has is not kept: queries can name any number of those.
                if !made.is_empty() {
                    self.attributes.lock().insert(key.to_owned(), Arc::clone(&made));
                }
                made
            }
        };
        Ok(all.iter().map(|column| column.select(rows)).filter(|column| !column.is_empty()).collect())
    }

    fn items(&self, list: List, rows: Rows<'_>) -> Result<Items, SourceError> {
        let rows = rows.joined();
        Ok(Items { slots: Self::items_of(&self.lists(list), rows).1 })
    }

    fn member(&self, which: Member, rows: Rows<'_>) -> Result<Column, SourceError> {
        let rows = rows.joined();
        let lists = self.lists(which.list());
        let (numbers, _) = Self::items_of(&lists, rows);
        let Values::Ints(starts) = &self.start else { return Ok(Column::all(Values::Ints(Vec::new()))) };
        let items = numbers.iter().map(|number| {
            let (batch, item) = lists.items[*number as usize];
            (&self.batches[batch as usize], item as usize, lists.rows[*number as usize] as usize)
        });
        let text = |batch: &SpanBatch, sym: Sym| Bytes::copy_from_slice(batch.strings.get(sym));
        Ok(Column::all(match which {
            Member::EventName => Values::Texts(items.map(|(batch, at, _)| text(batch, batch.events[at].name)).collect()),
            Member::EventOffset => {
                let offset = |(batch, at, row): (&Arc<SpanBatch>, usize, usize)| {
                    (batch.events[at].time as i64).wrapping_sub(starts[row])
                };
                Values::Ints(items.map(offset).collect())
            }
            Member::LinkTraceId => {
                Values::Texts(items.map(|(batch, at, _)| text(batch, batch.links[at].trace_id)).collect())
            }
            Member::LinkSpanId => Values::Texts(items.map(|(batch, at, _)| text(batch, batch.links[at].span_id)).collect()),
            Member::LinkTraceState => {
                let states = (0..).zip(items).map(|(slot, (batch, at, _))| (slot, batch, batch.links[at].trace_state));
                let (slots, texts) = states
                    .filter(|(_, _, state)| *state != Sym::EMPTY)
                    .map(|(slot, batch, state)| (slot, text(batch, state)))
                    .unzip();
                return Ok(Column { present: Present::At(slots), values: Values::Texts(texts) });
            }
        }))
    }

    fn item_attribute(&self, list: List, key: &str, rows: Rows<'_>) -> Result<Vec<Column>, SourceError> {
        let rows = rows.joined();
        let lists = self.lists(list);
        let (numbers, _) = Self::items_of(&lists, rows);
        let (mut out, mut batches) = (ByKind::default(), Batches::new(self, key));
        for (slot, number) in (0..).zip(numbers) {
            let (number, item) = lists.items[number as usize];
            let (batch, at) = (&self.batches[number as usize], item as usize);
            match list {
                List::Events => {
                    let (shape, start) = (batch.events[at].attrs.shape, batch.event_attrs_start(at));
                    batches.push(&mut out, slot, number, shape, start, |batch| &batch.event_attrs);
                }
                List::Links => {
                    let (shape, start) = (batch.links[at].attrs.shape, batch.link_attrs_start(at));
                    batches.push(&mut out, slot, number, shape, start, |batch| &batch.link_attrs);
                }
            }
        }
        Ok(out.finish())
    }

    fn keys(&self, owner: Owner) -> Result<Vec<(String, KindCounts)>, SourceError> {
        Ok(self.known_keys(owner).to_vec())
    }

    fn counts_of(&self, owner: Owner, key: &str) -> Result<KindCounts, SourceError> {
        let all = self.known_keys(owner);
        Ok(all.iter().find(|(known, _)| known == key).map_or([0; 5], |(_, counts)| *counts))
    }

    fn may_have_duplicates(&self) -> bool {
        self.has_duplicates
    }

    fn may_hold(&self, _: &str, _: &str) -> Result<bool, SourceError> {
        Ok(true)
    }

    fn may_own(&self, which: Fixed, most: usize, test: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, SourceError> {
        let count = |batch: &SpanBatch| match which {
            Fixed::Resource => batch.resources.len(),
            Fixed::Scope => batch.scopes.len(),
            _ => usize::MAX,
        };
        // Every batch has its own, of which most are those of others.
        let all = self.batches.iter().fold(0usize, |sum, batch| sum.saturating_add(count(batch)));
        if all > most {
            return Ok(true);
        }
        Ok(self.batches.iter().any(|batch| match which {
            Fixed::Resource => batch.resources.iter().any(|resource| test(batch.strings.get(resource.json))),
            _ => batch.scopes.iter().any(|scope| test(batch.strings.get(*scope))),
        }))
    }

    fn spans(&self, rows: Range<u32>) -> Result<Vec<StoredSpan>, SourceError> {
        let mut readers: HashMap<u32, ModelReader<'_>> = HashMap::new();
        let bad = |e: crate::batch::BadJson| SourceError::Damaged { what: self.name(), why: e.to_string() };
        let span = |row: &SourceRow| {
            let reader = readers.entry(row.batch).or_insert_with(|| ModelReader::new(&self.batches[row.batch as usize]));
            reader.stored_span(row.row as usize).map_err(bad)
        };
        self.rows[rows.start as usize..rows.end as usize].iter().map(span).collect()
    }
}
