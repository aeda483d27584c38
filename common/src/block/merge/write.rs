//! Writes an output row group: every column in schema order, one column of all inputs in memory at a time.
//!
//! Owns what stands in each column of the output and what the summary says of it. Columns that are candidates for a value filter
//! are gathered first and held, because which of them get one depends on all.

use std::collections::HashMap;
use std::io::Write;

use foldhash::fast::RandomState;

use super::super::bitmap::Bitmap;
use super::super::chunk::{Extras, Levels, Values as ChunkValues};
use super::super::emit::{Emitter, Frame};
use super::super::layout::{Keys, Layout};
use super::super::row_group::{FilterCandidate, choose_filters};
use super::super::schema::{TypedKey, TypedKeys};
use super::super::spans::bad;
use super::super::writer::WriteError;
use super::attrs::{Mapping, Owner, Pair, PairRest, Relaid, kind_of_json, pairs_of, text_rest};
use super::column::{PlacedItems, StripColumn, StripItems, Texts, gather, gather_all_codes, gather_texts, stretches};
use super::dictionary::TextDictionary;
use super::input::{Input, Result, Scratch};
use super::place::{Deciding, Placed, Strip};
use super::put::{
    KINDS, Written, all_present, coded, count_rest, each_trace, emit_texts, frame_of, i32s, i64s, optional, optional_bytes,
    said_of_texts, text_at, texts_of, typed,
};
use super::totals::{Said, Totals};
use crate::batch::ValueKind;
use crate::model::typed_json;
use crate::time::UnixNanos;

/// Columns held from the choice of filters until they are written take about this much; others are gathered again.
/// Little in tests, so that both ways are taken.
const HELD_BYTES: usize = if cfg!(any(test, feature = "test-util")) { 1 << 10 } else { 24 << 20 };

/// What of an input its owners' columns mean for the output.
pub(super) struct Mappings {
    span: Mapping,
    event: Mapping,
    link: Mapping,
}

impl Mappings {
    pub(super) fn new(input: &Input, keys: &TypedKeys) -> Self {
        let (layout, summary) = (&input.layout, &input.summary);
        Self {
            span: Mapping::new(input, &layout.attributes, &keys.span, &summary.span),
            event: Mapping::new(input, &layout.events.attributes, &keys.event, &summary.event),
            link: Mapping::new(input, &layout.links.attributes, &keys.link, &summary.link),
        }
    }
}

/// Attributes of one owner in all strips.
struct Attrs {
    shapes: Vec<StripColumn>,
    relaid: Vec<Relaid>,
}

/// A row group on its way out.
pub(super) struct GroupWriter<'a, 'e, 'g, W: Write + Send> {
    pub(super) inputs: &'a [Input],
    pub(super) mappings: &'a [Mappings],
    pub(super) scratch: &'a Scratch,
    pub(super) keys: &'a TypedKeys,
    pub(super) placed: &'a Placed,
    /// By strip. Given back when the last of it is written.
    pub(super) deciding: Vec<Deciding>,
    pub(super) totals: &'a mut Totals,
    pub(super) out: Emitter<'e, 'g, W>,
}

/// One owner's columns in the output, and where an input has its own.
type Of<'s> = (&'s [TypedKey], fn(&Layout) -> &Keys, fn(&Mappings) -> &Mapping);

const NO_CODE: u32 = u32::MAX;

impl<W: Write + Send> GroupWriter<'_, '_, '_, W> {
    fn strips(&self) -> impl Iterator<Item = (&Input, &Strip)> {
        self.placed.strips.iter().map(|strip| (&self.inputs[strip.input], strip))
    }

    fn rows_of(&self, pick: impl Fn(&Layout) -> usize) -> Result<Vec<StripColumn>> {
        self.strips().map(|(input, strip)| StripColumn::of_rows(input, self.scratch, strip, pick(&input.layout))).collect()
    }

    fn items_of(&self, items: &[StripItems], pick: impl Fn(&Layout) -> usize) -> Result<Vec<StripColumn>> {
        let read = |((input, strip), items): ((&Input, &Strip), &StripItems)| {
            StripColumn::of_items(input, self.scratch, strip, pick(&input.layout), items)
        };
        self.strips().zip(items).map(read).collect()
    }

    /// All columns.
    pub(super) fn write(mut self) -> Written {
        self.structure()?;
        self.fixed()?;
        self.span_attributes()?;
        self.events()?;
        self.links()?;
        let unknown = self.rows_of(|layout| layout.unknown)?;
        let runs = &self.placed.runs;
        optional_bytes(&mut self.out, &Frame::Spans, runs, &unknown)
    }

    /// Ids, tree and times: all that was read to find the order.
    fn structure(&mut self) -> Written {
        let placed = self.placed;
        let plain = Extras::default();
        let with_statistics = Extras { statistics: true, ..plain };
        let with_bounds = Extras { page_statistics: true, ..with_statistics };
        let frame = &Frame::Spans;
        let out = &mut self.out;

        let mut ids = Vec::with_capacity(placed.rows * 16);
        each_trace(placed, |trace, rows| (0..rows).for_each(|_| ids.extend_from_slice(&placed.traces[trace].id.0)));
        out.required(frame, &ChunkValues::Fixed { width: 16, bytes: &ids }, with_bounds)?;
        drop(ids);
        let mut indexes: Vec<i32> = Vec::with_capacity(placed.rows);
        each_trace(placed, |trace, rows| indexes.extend(std::iter::repeat_n(trace as i32, rows)));
        out.required(frame, &ChunkValues::I32(&indexes), Extras { ascending: true, ..plain })?;
        drop(indexes);
        let mut ids = Vec::with_capacity(placed.rows * 8);
        for run in &placed.runs {
            let all = &self.deciding[run.strip as usize].span_id;
            ids.extend_from_slice(all[run.from as usize..(run.from + run.len) as usize].as_flattened());
        }
        out.required(frame, &ChunkValues::Fixed { width: 8, bytes: &ids }, plain)?;
        drop(ids);
        let parents = ChunkValues::Fixed { width: 8, bytes: &placed.parents };
        out.emit(Levels::Optional(&placed.with_parent), &parents, plain)?;
        out.required(frame, &ChunkValues::I32(&placed.parent_delta), plain)?;
        out.required(frame, &ChunkValues::I32(&placed.subtree_size), plain)?;
        out.required(frame, &ChunkValues::I32(&placed.flags), with_statistics)?;

        let (mut starts, mut durations) = (Vec::with_capacity(placed.rows), Vec::with_capacity(placed.rows));
        for run in &placed.runs {
            let (of, rows) = (&self.deciding[run.strip as usize], run.from as usize..(run.from + run.len) as usize);
            starts.extend_from_slice(&of.start[rows.clone()]);
            durations.extend_from_slice(&of.duration[rows]);
        }
        for (start, duration) in starts.iter().zip(&durations) {
            let end = start.wrapping_add(*duration);
            if *start >= 0 {
                self.totals.range.include(UnixNanos(*start as u64));
                self.totals.starts.include(UnixNanos(*start as u64));
            }
            if end >= 0 {
                self.totals.range.include(UnixNanos(end as u64));
            }
        }
        out.required(frame, &ChunkValues::I64(&starts), with_statistics)?;
        out.required(frame, &ChunkValues::I64(&durations), with_bounds)
    }

    /// The other columns before the attributes.
    fn fixed(&mut self) -> Written {
        let (placed, frame) = (self.placed, &Frame::Spans);
        let runs = &placed.runs;
        let with_bounds = Extras { statistics: true, page_statistics: true, ..Extras::default() };

        let names = self.rows_of(|layout| layout.name)?;
        let (name_codes, names_known, _) = gather_all_codes(runs, &names)?;
        drop(names);
        coded(&mut self.out, Levels::Required, &name_codes, &names_known)?;
        let mut kinds: Vec<i32> = Vec::with_capacity(placed.rows);
        for run in runs {
            let all = &self.deciding[run.strip as usize].kind;
            kinds.extend_from_slice(&all[run.from as usize..(run.from + run.len) as usize]);
        }
        self.deciding = Vec::new();
        self.out.required(frame, &ChunkValues::I32(&kinds), Extras::default())?;
        self.numbers(|layout| layout.status_code, with_bounds)?;
        self.optional_text(|layout| layout.status_message)?;

        let services = self.rows_of(|layout| layout.service_name)?;
        let (service_codes, services_known, present) = gather_all_codes(runs, &services)?;
        drop(services);
        let present = present.unwrap_or_else(|| all_present(placed.rows));
        coded(&mut self.out, Levels::Optional(&present), &service_codes, &services_known)?;
        // By row.
        let mut service_of = vec![NO_CODE; placed.rows];
        present.iter().zip(&service_codes).for_each(|(row, code)| service_of[row as usize] = *code);
        self.operations((&service_of, &services_known), (&name_codes, &names_known), &kinds);
        drop(kinds);

        let resources = self.required_text(|layout| layout.resource)?;
        self.totals.resource.add(texts_of(&resources), |collector, text| {
            collector.add(&typed_json::parse_resource(text).map_err(bad)?.attributes);
            Ok(())
        })?;
        let scopes = self.required_text(|layout| layout.scope)?;
        self.totals.scope.add(texts_of(&scopes), |collector, text| {
            collector.add(&typed_json::parse_scope(text).map_err(bad)?.attributes);
            Ok(())
        })?;
        drop((resources, scopes));

        self.of_roots(|row| service_of[row as usize], &services_known)?;
        let name_of = |row: u32| {
            let code = name_codes[row as usize];
            // An empty name is no name.
            if names_known.get(code).is_empty() { NO_CODE } else { code }
        };
        self.of_roots(name_of, &names_known)?;
        drop((service_of, service_codes, name_codes));
        let mut durations: Vec<i64> = Vec::with_capacity(placed.rows);
        each_trace(placed, |trace, rows| durations.extend(std::iter::repeat_n(placed.traces[trace].duration_ns, rows)));
        self.out.required(frame, &ChunkValues::I64(&durations), with_bounds)?;
        drop(durations);
        self.optional_text(|layout| layout.trace_state)?;
        self.numbers(|layout| layout.flags, Extras::default())?;
        self.numbers(|layout| layout.dropped_attributes, Extras::default())?;
        self.numbers(|layout| layout.dropped_events, Extras::default())?;
        self.numbers(|layout| layout.dropped_links, Extras::default())
    }

    fn numbers(&mut self, pick: impl Fn(&Layout) -> usize, extras: Extras) -> Written {
        let columns = self.rows_of(pick)?;
        let (values, _) = gather(&self.placed.runs, &columns, i32s)?;
        self.out.required(&Frame::Spans, &ChunkValues::I32(&values), extras)
    }

    fn required_text(&mut self, pick: impl Fn(&Layout) -> usize) -> std::result::Result<Texts, WriteError> {
        let columns = self.rows_of(pick)?;
        let texts = gather_texts(&self.placed.runs, &columns)?;
        emit_texts(&mut self.out, Levels::Required, &texts, Extras::default())?;
        Ok(texts)
    }

    fn optional_text(&mut self, pick: impl Fn(&Layout) -> usize) -> Written {
        let columns = self.rows_of(pick)?;
        let texts = gather_texts(&self.placed.runs, &columns)?;
        optional(&mut self.out, &Frame::Spans, &texts, self.placed.rows, Extras::default())
    }

    /// A text of each trace's root on all its rows.
    fn of_roots(&mut self, code_of: impl Fn(u32) -> u32, known: &TextDictionary) -> Written {
        let placed = self.placed;
        let (mut present, mut codes) = (Bitmap::default(), Vec::new());
        // Only what is used may stand in the dictionary.
        let mut used = TextDictionary::default();
        let mut renamed = vec![NO_CODE; known.len()];
        each_trace(placed, |trace, rows| {
            let of = &placed.traces[trace];
            let Some(code) = of.root.map(&code_of).filter(|code| *code != NO_CODE) else { return };
            let renamed = &mut renamed[code as usize];
            if *renamed == NO_CODE {
                *renamed = used.push(known.get(code));
            }
            (of.first..of.first + rows as u32).for_each(|row| present.push(row));
            codes.extend(std::iter::repeat_n(*renamed, rows));
        });
        coded(&mut self.out, Levels::Optional(&present), &codes, &used)
    }

    fn operations(&mut self, services: (&[u32], &TextDictionary), names: (&[u32], &TextDictionary), kinds: &[i32]) {
        let mut counts: HashMap<(u32, u32, i32), u64, RandomState> = HashMap::default();
        for ((service, name), kind) in services.0.iter().zip(names.0).zip(kinds) {
            *counts.entry((*service, *name, *kind)).or_default() += 1;
        }
        for ((service, name, kind), count) in counts {
            let service = if service == NO_CODE { &[] } else { services.1.get(service) };
            self.totals.add_operation(service, names.1.get(name), kind, count);
        }
    }

    fn span_attributes(&mut self) -> Written {
        let shapes = self.rows_of(|layout| layout.attributes.shape)?;
        let mut rests: Vec<PairRest> = Vec::with_capacity(shapes.len());
        for (input, strip) in self.strips() {
            let layout = &input.layout;
            let items = StripItems::read(input, self.scratch, strip, layout.rest_key)?;
            let keys = StripColumn::of_items(input, self.scratch, strip, layout.rest_key, &items)?;
            let values = StripColumn::of_items(input, self.scratch, strip, layout.rest_value, &items)?;
            rests.push(PairRest { items, keys, values });
        }
        let mut attrs = self.relay(
            shapes,
            (&self.keys.span, |layout| &layout.attributes, |mappings| &mappings.span),
            |strip, row| Ok(rests[strip].of(row)),
            |input, strip, column, _| StripColumn::of_rows(input, self.scratch, strip, column),
            &[],
        )?;
        let rows = self.placed.rows;
        let (shapes, runs) = (gather_texts(&self.placed.runs, &attrs.shapes)?, &self.placed.runs);
        attrs.shapes = Vec::new();
        optional(&mut self.out, &Frame::Spans, &shapes, rows, Extras::default())?;
        drop(shapes);

        let mut held: Vec<Option<Texts>> = Vec::new();
        held.resize_with(self.keys.span.len(), || None);
        let mut held_bytes = 0;
        let mut candidates = Vec::new();
        for (slot, key) in self.keys.span.iter().enumerate() {
            // Values that moved here from the rest are given away once.
            let twice = self.strips().all(|(_, strip)| self.mappings[strip.input].span.sources[slot].is_some());
            if key.kind != ValueKind::Str || (!twice && held_bytes > HELD_BYTES) {
                continue;
            }
            let columns = self.typed_columns(slot, key.kind, &mut attrs)?;
            let texts = gather_texts(runs, &columns)?;
            let (distinct, bytes) = texts.distinct();
            candidates.push(FilterCandidate { slot, values: texts.len(), distinct, bytes });
            if !twice || held_bytes + texts.heap_bytes() <= HELD_BYTES {
                held_bytes += texts.heap_bytes();
                held[slot] = Some(texts);
            }
        }
        let filters = choose_filters(candidates, self.keys.span.len(), rows);
        for (slot, key) in self.keys.span.iter().enumerate() {
            let extras = Extras { filter: filters[slot], ..Extras::default() };
            match held[slot].take() {
                Some(texts) => self.typed_texts(slot, key, &texts, extras)?,
                None => {
                    let columns = self.typed_columns(slot, key.kind, &mut attrs)?;
                    let said = &mut self.totals.span;
                    typed(&mut self.out, &Frame::Spans, runs, (slot, key), columns, (rows, said), extras)?;
                }
            }
        }
        let rests: Vec<PairRest> = rests
            .into_iter()
            .zip(&mut attrs.relaid)
            .zip(&self.placed.strips)
            .map(|((rest, relaid), strip)| rest.with(relaid, strip.rows.len()))
            .collect();
        self.pair_rest(rests)
    }

    fn typed_columns(&self, slot: usize, kind: ValueKind, attrs: &mut Attrs) -> Result<Vec<StripColumn>> {
        let mut out = Vec::with_capacity(attrs.relaid.len());
        for ((input, strip), relaid) in self.strips().zip(&mut attrs.relaid) {
            out.push(match self.mappings[strip.input].span.sources[slot] {
                Some(column) => StripColumn::of_rows(input, self.scratch, strip, column)?,
                None => relaid.promoted(slot, kind),
            });
        }
        Ok(out)
    }

    fn typed_texts(&mut self, slot: usize, key: &TypedKey, texts: &Texts, extras: Extras) -> Written {
        let said = &mut self.totals.span;
        said_of_texts(said, (slot, key), texts)?;
        optional(&mut self.out, &Frame::Spans, texts, self.placed.rows, extras)
    }

    /// Lays out what moves in each strip.
    fn relay<'s>(
        &'s self,
        mut shapes: Vec<StripColumn>,
        (output, keys, mapping): Of<'s>,
        rest: impl Fn(usize, u32) -> Result<Vec<Pair>>,
        column: impl Fn(&Input, &Strip, usize, &StripItems) -> Result<StripColumn>,
        items: &[StripItems],
    ) -> Result<Attrs> {
        let mut relaid = Vec::with_capacity(shapes.len());
        let none = StripItems::default();
        for (number, ((input, strip), shapes)) in self.strips().zip(&mut shapes).enumerate() {
            let mapping = mapping(&self.mappings[strip.input]);
            let owner = Owner { input, keys: keys(&input.layout), output, mapping };
            let items = items.get(number).unwrap_or(&none);
            let laid_out = owner.lay_out(shapes, |item| rest(number, item), |at| column(input, strip, at, items));
            relaid.push(laid_out.map_err(|error| input.own(error))?);
        }
        Ok(Attrs { shapes, relaid })
    }

    /// The map of attributes without column.
    fn pair_rest(&mut self, rests: Vec<PairRest>) -> Written {
        let (mut items, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for rest in rests {
            items.push(rest.items);
            keys.push(rest.keys);
            values.push(rest.values);
        }
        let placed = PlacedItems::of(&self.placed.runs, &items);
        let levels = Levels::Nested { definition: &placed.definition, repetition: &placed.repetition };
        let (key_codes, known, _) = gather_all_codes(&placed.runs, &keys)?;
        let texts = gather_texts(&placed.runs, &values)?;
        let mut counts: HashMap<u32, [u32; 5], RandomState> = HashMap::default();
        for (at, key) in key_codes.iter().enumerate() {
            let kind = kind_of_json(text_at(&texts, at));
            counts.entry(*key).or_default()[kind as usize] += 1;
        }
        for (key, kinds) in counts {
            let key = std::str::from_utf8(known.get(key)).map_err(bad)?;
            for (kind, times) in KINDS.into_iter().zip(kinds) {
                self.totals.span.count(key, kind, times)?;
            }
        }
        coded(&mut self.out, levels, &key_codes, &known)?;
        emit_texts(&mut self.out, levels, &texts, Extras::default())
    }

    fn events(&mut self) -> Written {
        let items = self.list_items(|layout| layout.events.time_offset_ns)?;
        let placed = PlacedItems::of(&self.placed.runs, &items);
        self.totals.events += placed.len() as u64;
        let frame = frame_of(&placed);
        let columns = self.items_of(&items, |layout| layout.events.time_offset_ns)?;
        let (offsets, _) = gather(&placed.runs, &columns, i64s)?;
        self.out.required(&frame, &ChunkValues::I64(&offsets), Extras::default())?;
        let columns = self.items_of(&items, |layout| layout.events.name)?;
        let names = gather_texts(&placed.runs, &columns)?;
        emit_texts(&mut self.out, frame.required(), &names, Extras::default())?;
        self.item_numbers(&placed, &items, |layout| layout.events.dropped_attributes)?;
        self.item_attributes(
            &placed,
            &items,
            (&self.keys.event, |layout| &layout.events.attributes, |mappings| &mappings.event),
            |layout| layout.events.rest,
            |totals| &mut totals.event,
        )?;
        let unknown = self.items_of(&items, |layout| layout.events.unknown)?;
        optional_bytes(&mut self.out, &frame, &placed.runs, &unknown)
    }

    fn links(&mut self) -> Written {
        let items = self.list_items(|layout| layout.links.flags)?;
        let placed = PlacedItems::of(&self.placed.runs, &items);
        self.totals.links += placed.len() as u64;
        let frame = frame_of(&placed);
        for (pick, width) in
            [((|layout: &Layout| layout.links.trace_id) as fn(&Layout) -> usize, 16), (|layout| layout.links.span_id, 8)]
        {
            let columns = self.items_of(&items, pick)?;
            let mut bytes = Vec::new();
            let present = stretches(&placed.runs, &columns, |strip, places| {
                places.for_each(|at| bytes.extend_from_slice(columns[strip].text(at)));
                Ok(())
            })?;
            let present = present.unwrap_or_else(|| all_present(placed.len()));
            let values = ChunkValues::Fixed { width, bytes: &bytes };
            self.out.optional(&frame, &present, &values, Extras::default())?;
        }
        let odd = self.items_of(&items, |layout| layout.links.odd_ids)?;
        optional_bytes(&mut self.out, &frame, &placed.runs, &odd)?;
        let columns = self.items_of(&items, |layout| layout.links.trace_state)?;
        let states = gather_texts(&placed.runs, &columns)?;
        optional(&mut self.out, &frame, &states, placed.len(), Extras::default())?;
        self.item_numbers(&placed, &items, |layout| layout.links.flags)?;
        self.item_numbers(&placed, &items, |layout| layout.links.dropped_attributes)?;
        self.item_attributes(
            &placed,
            &items,
            (&self.keys.link, |layout| &layout.links.attributes, |mappings| &mappings.link),
            |layout| layout.links.rest,
            |totals| &mut totals.link,
        )?;
        let unknown = self.items_of(&items, |layout| layout.links.unknown)?;
        optional_bytes(&mut self.out, &frame, &placed.runs, &unknown)
    }

    fn list_items(&self, pick: impl Fn(&Layout) -> usize) -> Result<Vec<StripItems>> {
        self.strips().map(|(input, strip)| StripItems::read(input, self.scratch, strip, pick(&input.layout))).collect()
    }

    fn item_numbers(&mut self, placed: &PlacedItems, items: &[StripItems], pick: impl Fn(&Layout) -> usize) -> Written {
        let columns = self.items_of(items, pick)?;
        let (values, _) = gather(&placed.runs, &columns, i32s)?;
        self.out.required(&frame_of(placed), &ChunkValues::I32(&values), Extras::default())
    }

    /// Shape, typed columns and rest of events or links.
    fn item_attributes(
        &mut self,
        placed: &PlacedItems,
        items: &[StripItems],
        of: Of<'_>,
        rest: fn(&Layout) -> usize,
        said: fn(&mut Totals) -> &mut Said,
    ) -> Written {
        let (output, keys, mapping) = of;
        let frame = frame_of(placed);
        let shapes = self.items_of(items, |layout| keys(layout).shape)?;
        let mut rests = self.items_of(items, rest)?;
        let mut attrs = self.relay(
            shapes,
            of,
            |strip, item| {
                let place = rests[strip].place(item);
                place.map_or_else(|| Ok(Vec::new()), |place| pairs_of(rests[strip].text(place)))
            },
            |input, strip, column, items| StripColumn::of_items(input, self.scratch, strip, column, items),
            items,
        )?;
        let shapes = gather_texts(&placed.runs, &attrs.shapes)?;
        optional(&mut self.out, &frame, &shapes, placed.len(), Extras::default())?;
        drop(shapes);
        for (slot, key) in output.iter().enumerate() {
            let mut columns = Vec::with_capacity(attrs.relaid.len());
            for (((input, strip), relaid), items) in self.strips().zip(&mut attrs.relaid).zip(items) {
                columns.push(match mapping(&self.mappings[strip.input]).sources[slot] {
                    Some(column) => StripColumn::of_items(input, self.scratch, strip, column, items)?,
                    None => relaid.promoted(slot, key.kind),
                });
            }
            let said = said(self.totals);
            typed(&mut self.out, &frame, &placed.runs, (slot, key), columns, (placed.len(), said), Extras::default())?;
        }
        rests = rests
            .into_iter()
            .zip(&mut attrs.relaid)
            .zip(items)
            .map(|((rest, relaid), items)| text_rest(rest, relaid, items.len()))
            .collect();
        let texts = gather_texts(&placed.runs, &rests)?;
        count_rest(said(self.totals), &texts)?;
        optional(&mut self.out, &frame, &texts, placed.len(), Extras::default())
    }
}
