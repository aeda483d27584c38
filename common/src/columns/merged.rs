//! Traces that lie in several parts, put together: rows of all pieces in the order one block would have.
//!
//! Owns joining: the tree is laid out anew over all spans of a trace, and identical copies are left out. Columns are read from
//! the parts when asked for. Nothing is kept of a trace that lies in one part only.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{
    Column, Fixed, Items, KindCounts, List, Member, Owner, Part, Present, Rows, Texts, TraceTable, TraceTimes, Values,
    next_identity,
};
use crate::batch::{Interner, Strings};
use crate::block::flag;
use crate::block::tree::{Node, TreeBuilder};
use crate::id::TraceId;
use crate::model::StoredSpan;
use crate::source::SourceError;

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

/// Rows of a trace in one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the part.
    pub part: u32,
    pub rows: Range<u32>,
}

/// Where a row lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    part: u32,
    row: u32,
}

/// How traces of several parts are put together: no values, only where rows lie. It may be kept when the parts are not.
#[derive(Debug)]
pub struct Joined {
    identity: u64,
    traces: Arc<TraceTable>,
    times: OnceLock<Arc<TraceTimes>>,
    places: Vec<Place>,
    parent_delta: Vec<i32>,
    subtree_size: Vec<i32>,
    row_flags: Vec<i32>,
    /// By part: its rows, ascending, and where each goes.
    by_part: Vec<PartRows>,
}

#[derive(Debug, Default, Clone)]
struct PartRows {
    rows: Vec<u32>,
    slots: Vec<u32>,
}

impl Joined {
    pub fn heap_bytes(&self) -> usize {
        // A row has a place, three numbers of structure, and an entry by part.
        self.traces.heap_bytes() + self.places.len() * (size_of::<Place>() + 3 * 4 + 2 * 4)
    }
}

/// Whole traces out of several parts.
#[derive(Debug)]
pub struct MergedPart {
    parts: Vec<Arc<dyn Part>>,
    joined: Arc<Joined>,
}

fn ints(column: &Column) -> &[i64] {
    if let Values::Ints(all) = &column.values { all } else { &[] }
}

fn smalls(column: &Column) -> &[i32] {
    if let Values::Small(all) = &column.values { all } else { &[] }
}

fn ids(column: &Column) -> &[[u8; 8]] {
    if let Values::Ids(all) = &column.values { all } else { &[] }
}

/// What laying out needs of the rows of one part.
#[derive(Default)]
struct Loaded {
    rows: Vec<u32>,
    span_id: Column,
    parent: Column,
    start: Column,
    duration: Column,
    kind: Column,
    flags: Column,
}

impl Joined {
    /// Joins traces, given in the order of their ids with their pieces.
    pub fn new(parts: &[Arc<dyn Part>], traces: &[(TraceId, Vec<Piece>)]) -> Result<Self, SourceError> {
        let mut of_part: Vec<Vec<u32>> = vec![Vec::new(); parts.len()];
        for piece in traces.iter().flat_map(|(_, pieces)| pieces) {
            of_part[piece.part as usize].extend(piece.rows.clone());
        }
        let mut loaded = Vec::with_capacity(parts.len());
        for (part, rows) in parts.iter().zip(of_part) {
            if rows.is_empty() {
                loaded.push(Loaded::default());
                continue;
            }
            let read = |which| part.column(which, Rows::At(&rows));
            loaded.push(Loaded {
                span_id: read(Fixed::SpanId)?,
                parent: read(Fixed::ParentSpanId)?,
                start: read(Fixed::Start)?,
                duration: read(Fixed::Duration)?,
                kind: read(Fixed::Kind)?,
                flags: read(Fixed::RowFlags)?,
                rows,
            });
        }
        let mut out = Self {
            identity: next_identity(),
            traces: Arc::default(),
            times: OnceLock::new(),
            places: Vec::new(),
            parent_delta: Vec::new(),
            subtree_size: Vec::new(),
            row_flags: Vec::new(),
            by_part: Vec::new(),
        };
        let mut table = TraceTable::default();
        let mut at = vec![0usize; loaded.len()];
        let mut tree = TreeBuilder::default();
        let (mut nodes, mut found): (Vec<Node>, Vec<(Place, i32)>) = (Vec::new(), Vec::new());
        for (id, pieces) in traces {
            nodes.clear();
            found.clear();
            for piece in pieces {
                let part = &loaded[piece.part as usize];
                let from = at[piece.part as usize];
                at[piece.part as usize] += piece.rows.len();
                for slot in from..from + piece.rows.len() {
                    let kind = smalls(&part.kind)[slot];
                    nodes.push(Node {
                        span_id: u64::from_be_bytes(ids(&part.span_id)[slot]),
                        parent_id: u64::from_be_bytes(ids(&part.parent)[slot]),
                        start: ints(&part.start)[slot] as u64,
                        is_server: kind == SERVER,
                        is_client: kind == CLIENT,
                        duration: ints(&part.duration)[slot] as u64,
                    });
                    found.push((Place { part: piece.part, row: part.rows[slot] }, smalls(&part.flags)[slot]));
                }
            }
            if tree.index(&nodes) {
                let gone = copies(parts, pieces, &nodes, &found, &loaded)?;
                if gone.iter().any(|gone| *gone) {
                    let mut marks = gone.iter();
                    nodes.retain(|_| marks.next() == Some(&false));
                    let mut marks = gone.iter();
                    found.retain(|_| marks.next() == Some(&false));
                    tree.index(&nodes);
                }
            }
            tree.lay_out(&nodes);
            table.ids.push(*id);
            table.starts.push(out.places.len() as u32);
            let layout = &tree.layout;
            const STRUCTURE: i32 = flag::ROOT | flag::ORPHAN | flag::DUPLICATE_ID | flag::CYCLE_BROKEN;
            for (node, flags) in layout.order.iter().zip(&layout.flags) {
                let (place, own) = found[*node as usize];
                out.places.push(place);
                out.row_flags.push(flags | own & !STRUCTURE);
            }
            out.parent_delta.extend_from_slice(&layout.parent_delta);
            out.subtree_size.extend_from_slice(&layout.subtree_size);
        }
        table.starts.push(out.places.len() as u32);
        out.traces = Arc::new(table);
        out.by_part = out.rows_by_part(parts.len(), Rows::Range(0, out.places.len() as u32));
        Ok(out)
    }

    /// By part: rows, ascending, and the slots they go to.
    fn rows_by_part(&self, parts: usize, rows: Rows<'_>) -> Vec<PartRows> {
        let mut pairs: Vec<Vec<(u32, u32)>> = vec![Vec::new(); parts];
        for (slot, row) in (0u32..).zip(rows.iter()) {
            let place = self.places[row as usize];
            pairs[place.part as usize].push((place.row, slot));
        }
        let of_part = |mut pairs: Vec<(u32, u32)>| {
            if !pairs.is_sorted() {
                pairs.sort_unstable();
            }
            let (rows, slots) = pairs.into_iter().unzip();
            PartRows { rows, slots }
        };
        pairs.into_iter().map(of_part).collect()
    }
}

/// Which spans of a trace are copies of one before them, in everything they say.
fn copies(
    parts: &[Arc<dyn Part>],
    pieces: &[Piece],
    nodes: &[Node],
    found: &[(Place, i32)],
    loaded: &[Loaded],
) -> Result<Vec<bool>, SourceError> {
    let mut gone = vec![false; nodes.len()];
    let key = |at: &usize| {
        let node = &nodes[*at];
        let place = found[*at].0;
        let part = &loaded[place.part as usize];
        let slot = part.rows.partition_point(|row| *row < place.row);
        (node.span_id, node.start, ints(&part.duration)[slot], smalls(&part.kind)[slot])
    };
    let mut by_key: Vec<usize> = (0..nodes.len()).collect();
    by_key.sort_by_key(|at| (key(at), *at));
    let same: Vec<&[usize]> = by_key.chunk_by(|a, b| key(a) == key(b)).filter(|same| same.len() > 1).collect();
    if same.is_empty() {
        return Ok(gone);
    }
    // Nodes stand in the order of the pieces, as spans do.
    let mut spans: Vec<StoredSpan> = Vec::with_capacity(nodes.len());
    for piece in pieces {
        spans.extend(parts[piece.part as usize].spans(piece.rows.clone())?);
    }
    if spans.len() != nodes.len() {
        return Err(SourceError::Damaged { what: "trace".into(), why: "its columns differ in length".into() });
    }
    for same in same {
        // By content, so that many spans of one id do not cost the square of their number.
        let mut seen: HashMap<u64, Vec<usize>> = HashMap::new();
        for at in same {
            let known = seen.entry(content_hash(&spans[*at])).or_default();
            if known.iter().any(|first| is_same(&spans[*first], &spans[*at])) {
                gone[*at] = true;
            } else {
                known.push(*at);
            }
        }
    }
    Ok(gone)
}

impl MergedPart {
    /// `parts` are those that `joined` was made of.
    pub fn new(parts: Vec<Arc<dyn Part>>, joined: Arc<Joined>) -> Self {
        Self { parts, joined }
    }

    /// By part: rows and the slots they go to, by row.
    fn by_part(&self, rows: Rows<'_>) -> Cow<'_, [PartRows]> {
        match rows {
            Rows::Range(0, to) if to as usize == self.joined.places.len() => Cow::Borrowed(&self.joined.by_part),
            rows => Cow::Owned(self.joined.rows_by_part(self.parts.len(), rows)),
        }
    }

    /// Reads from every part and puts the values in their places.
    fn gather(
        &self,
        rows: Rows<'_>,
        read: impl Fn(&dyn Part, Rows<'_>) -> Result<Vec<Column>, SourceError>,
    ) -> Result<Vec<Column>, SourceError> {
        let by_part = self.by_part(rows);
        let mut read_columns = Vec::with_capacity(self.parts.len());
        for (part, of_part) in self.parts.iter().zip(by_part.iter()) {
            if !of_part.rows.is_empty() {
                read_columns.push((read(&**part, Rows::At(&of_part.rows))?, &of_part.slots));
            }
        }
        if let Some(dense) = scatter(&read_columns, rows.len()) {
            return Ok(vec![Column::all(dense)]);
        }
        let mut gathered = Gathered::default();
        for (columns, slots) in &read_columns {
            columns.iter().for_each(|column| gathered.add(column, |slot| slots[slot as usize]));
        }
        Ok(gathered.finish())
    }

    /// Items of the rows' lists in order: slot, part, and number among what that part has.
    fn item_order(&self, list: List, rows: Rows<'_>) -> Result<Vec<(u32, u32, u32)>, SourceError> {
        let mut out = Vec::new();
        for ((number, part), of_part) in (0u32..).zip(&self.parts).zip(self.by_part(rows).iter()) {
            if of_part.rows.is_empty() {
                continue;
            }
            let items = part.items(list, Rows::At(&of_part.rows))?;
            out.extend((0u32..).zip(&items.slots).map(|(item, slot)| (of_part.slots[*slot as usize], number, item)));
        }
        out.sort_unstable();
        Ok(out)
    }

    fn gather_items(
        &self,
        list: List,
        rows: Rows<'_>,
        read: impl Fn(&dyn Part, Rows<'_>) -> Result<Vec<Column>, SourceError>,
    ) -> Result<(Vec<Column>, usize), SourceError> {
        let order = self.item_order(list, rows)?;
        let mut numbers: Vec<Vec<u32>> = vec![Vec::new(); self.parts.len()];
        for (joined, (_, part, item)) in (0u32..).zip(&order) {
            let of_part = &mut numbers[*part as usize];
            if of_part.len() <= *item as usize {
                of_part.resize(*item as usize + 1, u32::MAX);
            }
            of_part[*item as usize] = joined;
        }
        let mut gathered = Gathered::default();
        for ((part, of_part), numbers) in self.parts.iter().zip(self.by_part(rows).iter()).zip(&numbers) {
            if of_part.rows.is_empty() || numbers.is_empty() {
                continue;
            }
            for column in read(&**part, Rows::At(&of_part.rows))? {
                gathered.add(&column, |item| numbers[item as usize]);
            }
        }
        Ok((gathered.finish(), order.len()))
    }
}

fn is_same(a: &StoredSpan, b: &StoredSpan) -> bool {
    // Derived equality compares doubles by value: texts compare them by their bits, as storage does.
    a.span.trace_id == b.span.trace_id && content(a) == content(b)
}

fn content(span: &StoredSpan) -> String {
    format!("{:?}{:?}{:?}", span.span, span.resource, span.scope)
}

fn content_hash(span: &StoredSpan) -> u64 {
    use std::hash::BuildHasher;
    foldhash::fast::FixedState::default().hash_one(content(span))
}

/// Puts dense columns of one kind together; `None` if they are not.
fn scatter(read: &[(Vec<Column>, &Vec<u32>)], slots: usize) -> Option<Values> {
    fn put<'v, T: Copy + Default + 'v>(
        read: &'v [(Vec<Column>, &Vec<u32>)],
        slots: usize,
        of: impl Fn(&'v Values) -> Option<&'v Vec<T>>,
    ) -> Option<Vec<T>> {
        let mut out = vec![T::default(); slots];
        for (columns, places) in read {
            let [Column { present: Present::All, values }] = columns.as_slice() else { return None };
            for (value, slot) in of(values)?.iter().zip(places.iter()) {
                out[*slot as usize] = *value;
            }
        }
        Some(out)
    }
    let [Column { values, .. }] = read.first()?.0.as_slice() else { return None };
    Some(match values {
        Values::Small(_) => Values::Small(put(read, slots, |v| if let Values::Small(all) = v { Some(all) } else { None })?),
        Values::Ints(_) => Values::Ints(put(read, slots, |v| if let Values::Ints(all) = v { Some(all) } else { None })?),
        Values::Ids(_) => Values::Ids(put(read, slots, |v| if let Values::Ids(all) = v { Some(all) } else { None })?),
        Values::Codes(..) => {
            let (mut strings, mut interner) = (Strings::default(), Interner::default());
            let mut out = vec![0u32; slots];
            for (columns, places) in read {
                let [Column { present: Present::All, values: Values::Codes(codes, texts) }] = columns.as_slice() else {
                    return None;
                };
                let mut known = vec![u32::MAX; texts.len()];
                for (code, slot) in codes.iter().zip(places.iter()) {
                    let known = &mut known[*code as usize];
                    if *known == u32::MAX {
                        let text = texts.get(*code).unwrap_or_default();
                        *known = interner.add(&mut strings, text).0;
                    }
                    out[*slot as usize] = *known;
                }
            }
            Values::Codes(out, Texts::of_strings(Arc::new(strings)))
        }
        _ => return None,
    })
}

/// Values by kind with their slots, in any order until the end.
#[derive(Default)]
struct Gathered {
    strings: Strings,
    interner: Interner,
    codes: Vec<(u32, u32)>,
    small: Vec<(u32, i32)>,
    ints: Vec<(u32, i64)>,
    floats: Vec<(u32, f64)>,
    bools: Vec<(u32, bool)>,
    ids: Vec<(u32, [u8; 8])>,
    json: Vec<(u32, Bytes)>,
}

impl Gathered {
    fn code(&mut self, text: &[u8]) -> u32 {
        self.interner.add(&mut self.strings, text).0
    }

    fn add(&mut self, column: &Column, place: impl Fn(u32) -> u32) {
        let slot = |at: usize| match &column.present {
            Present::All => place(at as u32),
            Present::At(slots) => place(slots[at]),
        };
        match &column.values {
            Values::Codes(codes, texts) => {
                let mut known = vec![u32::MAX; texts.len()];
                for (at, code) in codes.iter().enumerate() {
                    if known[*code as usize] == u32::MAX {
                        known[*code as usize] = self.code(texts.get(*code).unwrap_or_default());
                    }
                    self.codes.push((slot(at), known[*code as usize]));
                }
            }
            Values::Texts(all) => {
                for (at, text) in all.iter().enumerate() {
                    let code = self.code(text);
                    self.codes.push((slot(at), code));
                }
            }
            Values::Small(all) => self.small.extend(all.iter().enumerate().map(|(at, value)| (slot(at), *value))),
            Values::Ints(all) => self.ints.extend(all.iter().enumerate().map(|(at, value)| (slot(at), *value))),
            Values::Floats(all) => self.floats.extend(all.iter().enumerate().map(|(at, value)| (slot(at), *value))),
            Values::Bools(all) => self.bools.extend(all.iter().enumerate().map(|(at, value)| (slot(at), *value))),
            Values::Ids(all) => self.ids.extend(all.iter().enumerate().map(|(at, value)| (slot(at), *value))),
            Values::Json(all) => self.json.extend(all.iter().enumerate().map(|(at, value)| (slot(at), value.clone()))),
        }
    }

    fn finish(self) -> Vec<Column> {
        fn column<T>(mut all: Vec<(u32, T)>, make: impl FnOnce(Vec<T>) -> Values, out: &mut Vec<Column>) {
            if all.is_empty() {
                return;
            }
            let by_slot = |a: &(u32, T), b: &(u32, T)| -> Ordering { a.0.cmp(&b.0) };
            if !all.is_sorted_by(|a, b| a.0 <= b.0) {
                all.sort_unstable_by(by_slot);
            }
            let (slots, values): (Vec<u32>, Vec<T>) = all.into_iter().unzip();
            out.push(Column { present: Present::At(slots), values: make(values) });
        }
        let mut out = Vec::new();
        let texts = Texts::of_strings(Arc::new(self.strings));
        column(self.codes, |codes| Values::Codes(codes, texts), &mut out);
        column(self.small, Values::Small, &mut out);
        column(self.ints, Values::Ints, &mut out);
        column(self.floats, Values::Floats, &mut out);
        column(self.bools, Values::Bools, &mut out);
        column(self.ids, Values::Ids, &mut out);
        column(self.json, Values::Json, &mut out);
        out
    }
}

/// The only column of `all`, of every slot; an empty one if there is none.
fn only(all: Vec<Column>, slots: usize) -> Column {
    let Some(mut column) = all.into_iter().next() else {
        return Column { present: Present::At(Vec::new()), values: Values::Texts(Vec::new()) };
    };
    if column.values.len() == slots {
        column.present = Present::All;
    }
    column
}

impl Part for MergedPart {
    fn name(&self) -> String {
        "several".into()
    }

    fn identity(&self) -> u64 {
        self.joined.identity
    }

    fn rows(&self) -> u32 {
        self.joined.places.len() as u32
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn traces(&self) -> Result<Arc<TraceTable>, SourceError> {
        Ok(Arc::clone(&self.joined.traces))
    }

    fn times(&self) -> Result<Arc<TraceTimes>, SourceError> {
        if let Some(known) = self.joined.times.get() {
            return Ok(Arc::clone(known));
        }
        let read = Arc::new(TraceTimes::read(self)?);
        Ok(Arc::clone(self.joined.times.get_or_init(|| read)))
    }

    fn column(&self, which: Fixed, rows: Rows<'_>) -> Result<Column, SourceError> {
        let rows = rows.joined();
        let own = match which {
            Fixed::ParentDelta => &self.joined.parent_delta,
            Fixed::SubtreeSize => &self.joined.subtree_size,
            Fixed::RowFlags => &self.joined.row_flags,
            _ => {
                let all = self.gather(rows, |part, rows| Ok(vec![part.column(which, rows)?]))?;
                return Ok(only(all, rows.len()));
            }
        };
        Ok(Column::all(Values::Small(match rows {
            Rows::Range(from, to) => own[from as usize..to as usize].to_vec(),
            Rows::At(rows) => rows.iter().map(|row| own[*row as usize]).collect(),
        })))
    }

    fn attribute(&self, key: &str, rows: Rows<'_>) -> Result<Vec<Column>, SourceError> {
        let rows = rows.joined();
        self.gather(rows, |part, rows| part.attribute(key, rows))
    }

    fn items(&self, list: List, rows: Rows<'_>) -> Result<Items, SourceError> {
        let rows = rows.joined();
        Ok(Items { slots: self.item_order(list, rows)?.into_iter().map(|(slot, _, _)| slot).collect() })
    }

    fn member(&self, which: Member, rows: Rows<'_>) -> Result<Column, SourceError> {
        let rows = rows.joined();
        let (all, items) = self.gather_items(which.list(), rows, |part, rows| Ok(vec![part.member(which, rows)?]))?;
        Ok(only(all, items))
    }

    fn item_attribute(&self, list: List, key: &str, rows: Rows<'_>) -> Result<Vec<Column>, SourceError> {
        let rows = rows.joined();
        Ok(self.gather_items(list, rows, |part, rows| part.item_attribute(list, key, rows))?.0)
    }

    fn keys(&self, owner: Owner) -> Result<Vec<(String, KindCounts)>, SourceError> {
        let mut out: HashMap<String, KindCounts> = HashMap::new();
        for part in &self.parts {
            for (key, counts) in part.keys(owner)? {
                let sum = out.entry(key).or_default();
                sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum = sum.saturating_add(count));
            }
        }
        Ok(out.into_iter().collect())
    }

    fn counts_of(&self, owner: Owner, key: &str) -> Result<KindCounts, SourceError> {
        let mut sum = KindCounts::default();
        for part in &self.parts {
            let counts = part.counts_of(owner, key)?;
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum = sum.saturating_add(count));
        }
        Ok(sum)
    }

    fn may_have_duplicates(&self) -> bool {
        false
    }

    fn may_hold(&self, _: &str, _: &str) -> Result<bool, SourceError> {
        Ok(true)
    }

    fn may_own(&self, which: Fixed, most: usize, test: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, SourceError> {
        for part in &self.parts {
            if part.may_own(which, most, test)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn spans(&self, rows: Range<u32>) -> Result<Vec<StoredSpan>, SourceError> {
        let mut out: Vec<Option<StoredSpan>> = vec![None; rows.len()];
        for (part, of_part) in self.parts.iter().zip(self.by_part(Rows::Range(rows.start, rows.end)).iter()) {
            let Some((first, last)) = of_part.rows.first().zip(of_part.rows.last()) else { continue };
            let traces = part.traces()?;
            let from = traces.rows(traces.trace_of(*first)).start;
            let spans = part.spans(from..traces.rows(traces.trace_of(*last)).end)?;
            for (row, slot) in of_part.rows.iter().zip(&of_part.slots) {
                out[*slot as usize] = spans.get((row - from) as usize).cloned();
            }
        }
        let short = || SourceError::Damaged { what: "trace".into(), why: "its columns differ in length".into() };
        out.into_iter().map(|span| span.ok_or_else(short)).collect()
    }
}
