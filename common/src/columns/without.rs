//! A part without some of its traces: those that were deleted by id and still lie in it.
//!
//! Owns the numbers of rows with the gaps closed, and what of a part's own words is true of the traces that are left. Does not
//! own which traces are deleted. Rows of the others are read where they lie; nothing of them is copied but where they are.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::{Column, Fixed, Items, KindCounts, List, Member, Owner, Part, Rows, TraceTable, TraceTimes};
use crate::id::TraceId;
use crate::model::{Attribute, StoredSpan};
use crate::source::SourceError;

/// Hidden spans read at a time: a deleted trace may be very large.
const STRETCH: u32 = 2048;

/// Rows looked at at a time for a key that the hidden traces have.
const KEY_ROWS: u32 = 8192;

/// Bytes of hidden traces' names that are kept. Of more, none is: any name may then be theirs.
const MAX_NAME_BYTES: usize = 1 << 20;

/// Which traces of a part are hidden, and where the others are. It may be kept when the part is not.
#[derive(Debug)]
pub struct Hidden {
    /// Ascending.
    ids: Vec<TraceId>,
    /// The rows left out, numbered as in the part, ascending. Neighbours are one.
    gaps: Vec<Range<u32>>,
    /// By gap: the number that the first row after it has when the gaps are closed, ascending.
    after: Vec<u32>,
    traces: Arc<TraceTable>,
    times: OnceLock<Arc<TraceTimes>>,
    names: OnceLock<Option<Arc<HiddenNames>>>,
    keys: [OnceLock<Vec<(String, KindCounts)>>; 3],
}

/// Keys of attributes that hidden spans have, by whose they are.
#[derive(Debug, Default)]
pub struct HiddenNames {
    pub span: BTreeSet<String>,
    pub event: BTreeSet<String>,
    pub link: BTreeSet<String>,
    pub resource: BTreeSet<String>,
    pub scope: BTreeSet<String>,
    bytes: usize,
}

impl HiddenNames {
    fn of(&self, owner: Owner) -> &BTreeSet<String> {
        match owner {
            Owner::Span => &self.span,
            Owner::Event => &self.event,
            Owner::Link => &self.link,
        }
    }

    fn add(&mut self, stored: &StoredSpan) {
        let mut bytes = 0;
        let mut add = |all: &[Attribute], names: &mut BTreeSet<String>| {
            for attribute in all {
                if !names.contains(&attribute.key) {
                    bytes += attribute.key.len() + 64;
                    names.insert(attribute.key.clone());
                }
            }
        };
        add(&stored.span.attributes, &mut self.span);
        stored.span.events.iter().for_each(|event| add(&event.attributes, &mut self.event));
        stored.span.links.iter().for_each(|link| add(&link.attributes, &mut self.link));
        add(&stored.resource.attributes, &mut self.resource);
        add(&stored.scope.attributes, &mut self.scope);
        self.bytes += bytes;
    }
}

impl Hidden {
    /// Leaves out the traces of `table` with these numbers, ascending, each once.
    pub fn new(table: &TraceTable, hidden: &[usize]) -> Self {
        let ids = hidden.iter().map(|trace| table.ids[*trace]).collect();
        let (mut gaps, mut after): (Vec<Range<u32>>, Vec<u32>) = (Vec::new(), Vec::new());
        let mut traces = TraceTable::default();
        traces.ids.reserve_exact(table.len() - hidden.len());
        traces.starts.reserve_exact(table.len() - hidden.len() + 1);
        let (mut left_out, mut next) = (0, hidden.iter().peekable());
        for trace in 0..table.len() {
            let rows = table.rows(trace);
            if next.next_if(|hidden| **hidden == trace).is_none() {
                traces.ids.push(table.ids[trace]);
                traces.starts.push(rows.start - left_out);
                continue;
            }
            left_out += rows.len() as u32;
            match gaps.last_mut() {
                Some(gap) if gap.end == rows.start => gap.end = rows.end,
                _ => {
                    after.push(rows.end - left_out);
                    gaps.push(rows);
                }
            }
        }
        traces.starts.push(table.starts.last().copied().unwrap_or_default() - left_out);
        let (times, names, keys) = Default::default();
        Self { ids, gaps, after, traces: Arc::new(traces), times, names, keys }
    }

    /// The traces left out, ascending.
    pub fn ids(&self) -> &[TraceId] {
        &self.ids
    }

    /// Whether no trace is left.
    pub fn is_all(&self) -> bool {
        self.traces.is_empty()
    }

    /// With times, as much as they may come to.
    pub fn heap_bytes(&self) -> usize {
        // Times are read when somebody asks.
        let times = self.traces.len() * 16;
        let names = self.names.get().and_then(Option::as_ref).map_or(0, |names| names.bytes);
        size_of::<Self>() + self.ids.len() * 16 + self.gaps.len() * 12 + self.traces.heap_bytes() + times + names
    }

    /// How many gaps are before a row of those that are left.
    fn gaps_before(&self, row: u32) -> usize {
        self.after.partition_point(|after| *after <= row)
    }

    /// How many rows of the part are left out in the first gaps.
    fn left_out(&self, gaps: usize) -> u32 {
        gaps.checked_sub(1).map_or(0, |last| self.gaps[last].end - self.after[last])
    }

    /// The same rows as the part numbers them; a list of them, if there must be one, is made in `room`.
    fn in_part<'r>(&self, rows: Rows<'r>, room: &'r mut Vec<u32>) -> Rows<'r> {
        match rows {
            Rows::Range(from, to) if from >= to => Rows::Range(0, 0),
            Rows::Range(from, to) => {
                let (first, last) = (self.gaps_before(from), self.gaps_before(to - 1));
                if first == last {
                    let left_out = self.left_out(first);
                    return Rows::Range(from + left_out, to + left_out);
                }
                room.reserve_exact(rows.len());
                self.stretches(from..to).for_each(|stretch| room.extend(stretch));
                Rows::At(room)
            }
            Rows::At(rows) => {
                let Some(first) = rows.first() else { return Rows::At(rows) };
                let mut gap = self.gaps_before(*first);
                room.reserve_exact(rows.len());
                room.extend(rows.iter().map(|row| {
                    while self.after.get(gap).is_some_and(|after| after <= row) {
                        gap += 1;
                    }
                    row + self.left_out(gap)
                }));
                Rows::At(room)
            }
        }
    }

    /// Some rows as stretches of the part's own, cut at the gaps.
    fn stretches(&self, rows: Range<u32>) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut from = rows.start;
        std::iter::from_fn(move || {
            if from >= rows.end {
                return None;
            }
            let gap = self.gaps_before(from);
            let to = self.after.get(gap).map_or(rows.end, |after| rows.end.min(*after));
            let left_out = self.left_out(gap);
            Some(std::mem::replace(&mut from, to) + left_out..to + left_out)
        })
    }
}

/// Rows of a part, but for those of hidden traces. Equal to a part that was made without them.
#[derive(Debug)]
pub struct PartWithout {
    part: Arc<dyn Part>,
    hidden: Arc<Hidden>,
}

impl PartWithout {
    /// `hidden` was made of the part's own traces.
    pub fn new(part: Arc<dyn Part>, hidden: Arc<Hidden>) -> Self {
        Self { part, hidden }
    }

    /// The keys of what is hidden; `None` if these are too many to list. Reads all hidden spans when first asked.
    pub fn hidden_names(&self) -> Result<Option<Arc<HiddenNames>>, SourceError> {
        if let Some(known) = self.hidden.names.get() {
            return Ok(known.clone());
        }
        let mut names = HiddenNames::default();
        let stretches = self.hidden.gaps.iter().flat_map(|gap| {
            let starts = (gap.start..gap.end).step_by(STRETCH as usize);
            starts.map(|from| from..gap.end.min(from.saturating_add(STRETCH)))
        });
        for stretch in stretches {
            self.part.spans(stretch)?.iter().for_each(|stored| names.add(stored));
            if names.bytes > MAX_NAME_BYTES {
                return Ok(self.hidden.names.get_or_init(|| None).clone());
            }
        }
        Ok(self.hidden.names.get_or_init(|| Some(Arc::new(names))).clone())
    }

    /// Reads from the part by its own numbers.
    fn read<T>(
        &self,
        rows: Rows<'_>,
        read: impl FnOnce(&dyn Part, Rows<'_>) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let mut room = Vec::new();
        let rows = self.hidden.in_part(rows, &mut room);
        read(&*self.part, rows)
    }

    /// Whether some row that is left has a key.
    fn has(&self, owner: Owner, key: &str) -> Result<bool, SourceError> {
        for from in (0..self.rows()).step_by(KEY_ROWS as usize) {
            let rows = Rows::Range(from, self.rows().min(from + KEY_ROWS));
            let columns = match owner {
                Owner::Span => self.attribute(key, rows)?,
                Owner::Event => self.item_attribute(List::Events, key, rows)?,
                Owner::Link => self.item_attribute(List::Links, key, rows)?,
            };
            if columns.iter().any(|column| !column.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Part for PartWithout {
    fn name(&self) -> String {
        self.part.name()
    }

    fn identity(&self) -> u64 {
        use std::hash::BuildHasher;
        // The top bit keeps it apart from those of parts in memory.
        foldhash::fast::FixedState::default().hash_one((self.part.identity(), &self.hidden.ids)) | 1 << 63
    }

    fn rows(&self) -> u32 {
        self.hidden.traces.starts.last().copied().unwrap_or_default()
    }

    fn bytes(&self) -> u64 {
        self.part.bytes()
    }

    fn traces(&self) -> Result<Arc<TraceTable>, SourceError> {
        Ok(Arc::clone(&self.hidden.traces))
    }

    fn times(&self) -> Result<Arc<TraceTimes>, SourceError> {
        if let Some(known) = self.hidden.times.get() {
            return Ok(Arc::clone(known));
        }
        let read = Arc::new(TraceTimes::read(self)?);
        Ok(Arc::clone(self.hidden.times.get_or_init(|| read)))
    }

    fn column(&self, which: Fixed, rows: Rows<'_>) -> Result<Column, SourceError> {
        self.read(rows, |part, rows| part.column(which, rows))
    }

    fn attribute(&self, key: &str, rows: Rows<'_>) -> Result<Vec<Column>, SourceError> {
        self.read(rows, |part, rows| part.attribute(key, rows))
    }

    fn items(&self, list: List, rows: Rows<'_>) -> Result<Items, SourceError> {
        self.read(rows, |part, rows| part.items(list, rows))
    }

    fn member(&self, which: Member, rows: Rows<'_>) -> Result<Column, SourceError> {
        self.read(rows, |part, rows| part.member(which, rows))
    }

    fn item_attribute(&self, list: List, key: &str, rows: Rows<'_>) -> Result<Vec<Column>, SourceError> {
        self.read(rows, |part, rows| part.item_attribute(list, key, rows))
    }

    /// Those of the part but for what only hidden traces have; counts may be too high.
    fn keys(&self, owner: Owner) -> Result<Vec<(String, KindCounts)>, SourceError> {
        let known = &self.hidden.keys[owner as usize];
        if let Some(known) = known.get() {
            return Ok(known.clone());
        }
        let hidden = self.hidden_names()?;
        let mut out = Vec::new();
        for (key, counts) in self.part.keys(owner)? {
            let is_theirs = hidden.as_ref().is_none_or(|hidden| hidden.of(owner).contains(&key));
            if !is_theirs || self.has(owner, &key)? {
                out.push((key, counts));
            }
        }
        Ok(known.get_or_init(|| out).clone())
    }

    fn counts_of(&self, owner: Owner, key: &str) -> Result<KindCounts, SourceError> {
        self.part.counts_of(owner, key)
    }

    fn may_have_duplicates(&self) -> bool {
        self.part.may_have_duplicates()
    }

    fn may_hold(&self, key: &str, value: &str) -> Result<bool, SourceError> {
        self.part.may_hold(key, value)
    }

    fn may_own(&self, which: Fixed, most: usize, test: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, SourceError> {
        self.part.may_own(which, most, test)
    }

    fn spans(&self, rows: Range<u32>) -> Result<Vec<StoredSpan>, SourceError> {
        let mut out = Vec::with_capacity(rows.len());
        for stretch in self.hidden.stretches(rows) {
            out.extend(self.part.spans(stretch)?);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::SpanBatch;
    use crate::columns::{Joined, MemoryPart, MergedPart, Piece};
    use crate::model::{Event, Link, Resource, Scope, Span, Value};

    /// A span of the nth trace, with a key that only its trace has, one of every other and one of all.
    fn span(trace: u8, number: u64) -> StoredSpan {
        let attribute = |key: &str, value: i64| Attribute { key: key.into(), value: Value::Int(value) };
        let keys = [format!("only-{trace}"), format!("even-{}", trace % 2), "all".into()];
        let attributes: Vec<Attribute> = keys.iter().map(|key| attribute(key, i64::from(trace))).collect();
        let span = Span {
            trace_id: TraceId([trace; 16]),
            span_id: crate::id::SpanId(number.to_be_bytes()),
            parent_span_id: (number % 3 != 1).then(|| crate::id::SpanId((number - 1).to_be_bytes())),
            name: format!("{trace}-{number}"),
            start_unix_nano: 1000 * u64::from(trace) + number,
            end_unix_nano: 1000 * u64::from(trace) + number * 2,
            events: vec![
                Event { name: "event".into(), attributes: attributes.clone(), ..Event::default() };
                trace as usize % 3
            ],
            links: vec![Link { attributes: attributes.clone(), ..Link::default() }; number as usize % 2],
            attributes,
            ..Span::default()
        };
        let resource = Resource { attributes: vec![attribute(&keys[0], 1)], ..Resource::default() };
        StoredSpan { span, resource: resource.into(), scope: Scope::default().into(), maybe_duplicate: false }
    }

    fn part(traces: &[(u8, u64)], without: &[u8]) -> MemoryPart {
        let of = |(trace, spans): &(u8, u64)| (1..=*spans).map(|number| span(*trace, number)).collect::<Vec<_>>();
        let kept = traces.iter().filter(|(trace, _)| !without.contains(trace));
        let spans: Vec<StoredSpan> = kept.flat_map(of).collect();
        MemoryPart::new(vec![Arc::new(SpanBatch::of_spans(&spans))]).unwrap()
    }

    /// A column in words, whatever its codes are.
    fn words(column: &Column) -> Vec<(u32, String)> {
        let slots = 0..column.values.len() as u32 * 4 + 64;
        let word = |slot| {
            let at = column.place(slot)?;
            let text = column.values.text(at).map(<[u8]>::to_vec);
            let one = column.values.pick(std::iter::once(at));
            Some((slot, text.map_or_else(|| format!("{one:?}"), |text| format!("{text:?}"))))
        };
        slots.filter_map(word).collect()
    }

    fn all_words(columns: &[Column]) -> Vec<(u32, String)> {
        let mut out: Vec<_> = columns.iter().flat_map(words).collect();
        out.sort();
        out
    }

    fn keys(part: &dyn Part, owner: Owner) -> BTreeSet<String> {
        part.keys(owner).unwrap().into_iter().map(|(key, _)| key).collect()
    }

    /// Everything a part says of some rows.
    fn same(a: &dyn Part, b: &dyn Part, rows: Rows<'_>) -> Result<(), TestCaseError> {
        const ALL: [Fixed; 15] = [
            Fixed::SpanId,
            Fixed::ParentSpanId,
            Fixed::ParentDelta,
            Fixed::SubtreeSize,
            Fixed::RowFlags,
            Fixed::Start,
            Fixed::Duration,
            Fixed::Name,
            Fixed::Kind,
            Fixed::StatusCode,
            Fixed::StatusMessage,
            Fixed::ServiceName,
            Fixed::Resource,
            Fixed::Scope,
            Fixed::TraceState,
        ];
        for which in ALL {
            let [a, b] = [a, b].map(|part| words(&part.column(which, rows).unwrap()));
            prop_assert_eq!(a, b, "{:?}", which);
        }
        for key in ["all", "even-0", "even-1", "only-1", "only-2", "only-3"] {
            let [of_a, of_b] = [a, b].map(|part| all_words(&part.attribute(key, rows).unwrap()));
            prop_assert_eq!(of_a, of_b);
            for list in [List::Events, List::Links] {
                let [of_a, of_b] = [a, b].map(|part| all_words(&part.item_attribute(list, key, rows).unwrap()));
                prop_assert_eq!(of_a, of_b);
            }
        }
        for list in [List::Events, List::Links] {
            prop_assert_eq!(a.items(list, rows).unwrap().slots, b.items(list, rows).unwrap().slots);
        }
        let [names_a, names_b] = [a, b].map(|part| words(&part.member(Member::EventName, rows).unwrap()));
        prop_assert_eq!(names_a, names_b);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// A part without some traces says of everything what one says that was made without them.
        #[test]
        fn is_as_one_made_without(
            sizes in prop::collection::vec(1u64..5, 1..9),
            hide in any::<u16>(),
            picks in prop::collection::btree_set(0u32..40, 0..20),
            (from, to) in (0u32..40, 0u32..40),
        ) {
            let traces: Vec<(u8, u64)> = (1..).zip(sizes).collect();
            let gone: Vec<u8> = traces.iter().map(|(trace, _)| *trace).filter(|trace| hide >> trace & 1 == 1).collect();
            prop_assume!(!gone.is_empty() && gone.len() < traces.len());
            let whole: Arc<dyn Part> = Arc::new(part(&traces, &[]));
            let table = whole.traces().unwrap();
            let numbers: Vec<usize> = gone.iter().map(|trace| table.find(TraceId([*trace; 16])).unwrap()).collect();
            let hidden = Arc::new(Hidden::new(&table, &numbers));
            prop_assert_eq!(hidden.ids().to_vec(), gone.iter().map(|n| TraceId([*n; 16])).collect::<Vec<_>>());
            let found = PartWithout::new(Arc::clone(&whole), Arc::clone(&hidden));
            let expected = part(&traces, &gone);

            prop_assert_eq!(found.rows(), expected.rows());
            let [a, b] = [&found as &dyn Part, &expected].map(|part| part.traces().unwrap());
            prop_assert_eq!((&a.ids, &a.starts), (&b.ids, &b.starts));
            let [a, b] = [&found as &dyn Part, &expected].map(|part| part.times().unwrap());
            prop_assert_eq!((&a.starts, &a.ends), (&b.starts, &b.ends));
            for owner in [Owner::Span, Owner::Event, Owner::Link] {
                prop_assert_eq!(keys(&found, owner), keys(&expected, owner));
                // And again, from what it remembers.
                prop_assert_eq!(keys(&found, owner), keys(&expected, owner));
            }
            let rows = found.rows();
            let some: Vec<u32> = picks.into_iter().filter(|row| *row < rows).collect();
            let (from, to) = (from.min(rows), to.min(rows));
            for rows in [Rows::Range(0, rows), Rows::Range(from.min(to), from.max(to)), Rows::Range(to, to), Rows::At(&some)] {
                same(&found, &expected, rows)?;
            }
            for (from, to) in [(0, rows), (from.min(to), from.max(to))] {
                prop_assert_eq!(found.spans(from..to).unwrap(), expected.spans(from..to).unwrap());
            }
            let names = found.hidden_names().unwrap().unwrap();
            let own: BTreeSet<String> = gone.iter().map(|trace| format!("only-{trace}")).collect();
            prop_assert!(own.is_subset(&names.span) && names.resource == own && names.span.len() <= own.len() + 3);
            prop_assert!(hidden.heap_bytes() > names.bytes && names.bytes > 64 * own.len());
            prop_assert!(found.identity() != whole.identity() && found.identity() >> 63 == 1);
        }
    }

    /// Every part knows whose attributes its rows have, or says that it does not.
    #[test]
    fn owners_are_asked_without_reading_rows() {
        let whole: Arc<dyn Part> = Arc::new(part(&[(1, 2), (2, 3)], &[]));
        let other: Arc<dyn Part> = Arc::new(part(&[(1, 1), (3, 1)], &[]));
        let pieces = [(0u32, &whole), (1, &other)].map(|(part, of)| Piece { part, rows: of.traces().unwrap().rows(0) });
        let parts = vec![Arc::clone(&whole), Arc::clone(&other)];
        let joined = Joined::new(&parts, &[(TraceId([1; 16]), pieces.to_vec())]).unwrap();
        let merged = MergedPart::new(parts, Arc::new(joined));
        let hidden = Hidden::new(&whole.traces().unwrap(), &[0]);
        let without = PartWithout::new(Arc::clone(&whole), Arc::new(hidden));
        let owns = |part: &dyn Part, which, most, key: &str| {
            part.may_own(which, most, &mut |text| String::from_utf8_lossy(text).contains(&format!("\"{key}\""))).unwrap()
        };
        for (part, keys) in
            [(&*whole, &["only-1", "only-2"][..]), (&merged, &["only-1", "only-2", "only-3"]), (&without, &["only-2"])]
        {
            assert!(keys.iter().all(|key| owns(part, Fixed::Resource, 9, key)), "{part:?}");
            assert!(!owns(part, Fixed::Resource, 9, "all") && !owns(part, Fixed::Scope, 9, "only-1"), "{part:?}");
            assert!(owns(part, Fixed::Resource, 0, "all"), "more than are looked through: {part:?}");
        }
    }

    #[test]
    fn nothing_may_be_left() {
        let whole: Arc<dyn Part> = Arc::new(part(&[(1, 2), (2, 3)], &[]));
        let hidden = Hidden::new(&whole.traces().unwrap(), &[0, 1]);
        assert!(hidden.is_all());
        let found = PartWithout::new(whole, Arc::new(hidden));
        assert_eq!((found.rows(), found.traces().unwrap().len(), found.spans(0..0).unwrap()), (0, 0, vec![]));
        assert!(found.column(Fixed::Start, Rows::Range(0, 0)).unwrap().is_empty());
        assert_eq!(keys(&found, Owner::Span), BTreeSet::new());
    }
}
