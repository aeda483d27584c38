//! Parts: rows of whole traces read column by column, whether they lie in a block, in live data or in several of them.
//!
//! A [`Part`] holds its rows by trace, and those of a trace in pre-order of the span tree, so that a trace is a range of rows and
//! structure is arithmetic on row numbers. The query engine knows nothing else of where spans come from.
//!
//! Owns the form of columns in memory. Does not own what a query makes of them, nor how a block stores them
//! ([`crate::block`]). Reading blocks the thread: parts are for threads that may wait.

mod memory;
mod merged;
mod without;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::batch::Strings;
use crate::block::Dictionary;
use crate::id::TraceId;
use crate::model::StoredSpan;
use crate::source::SourceError;

pub use memory::MemoryPart;
pub use merged::{Joined, MergedPart, Piece};
pub use without::{Hidden, HiddenNames, PartWithout};

/// Columns every part has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fixed {
    SpanId,
    /// Zeros for none.
    ParentSpanId,
    /// Rows back to the parent; 0 for none.
    ParentDelta,
    /// Rows of the span's subtree, itself included.
    SubtreeSize,
    /// Bits of [`crate::block::flag`].
    RowFlags,
    /// The 64 bits as sent.
    Start,
    /// End minus start, wrapping.
    Duration,
    Name,
    Kind,
    StatusCode,
    StatusMessage,
    ServiceName,
    /// Typed JSON.
    Resource,
    /// Typed JSON.
    Scope,
    /// W3C trace state, as sent. Missing where it is empty.
    TraceState,
}

/// Whose attributes are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    Span,
    Event,
    Link,
}

/// Lists of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum List {
    Events,
    Links,
}

impl List {
    pub fn owner(self) -> Owner {
        match self {
            Self::Events => Owner::Event,
            Self::Links => Owner::Link,
        }
    }
}

/// Columns of list items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Member {
    EventName,
    /// Nanoseconds after the span's start, wrapping.
    EventOffset,
    /// As received, of any length.
    LinkTraceId,
    LinkSpanId,
    /// As [`Fixed::TraceState`], of the link.
    LinkTraceState,
}

impl Member {
    pub fn list(self) -> List {
        match self {
            Self::EventName | Self::EventOffset => List::Events,
            Self::LinkTraceId | Self::LinkSpanId | Self::LinkTraceState => List::Links,
        }
    }
}

/// Rows of a part that are wanted. The nth of them is slot n of the columns that are read.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'r> {
    /// From the first to before the second.
    Range(u32, u32),
    /// Ascending, each once.
    At(&'r [u32]),
}

impl Rows<'_> {
    /// As a range, if the rows follow each other without a gap: that is read faster.
    #[must_use]
    pub fn joined(self) -> Self {
        match self {
            Self::At([first, .., last]) if (last - first) as usize + 1 == self.len() => Self::Range(*first, last + 1),
            rows => rows,
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Range(from, to) => to.saturating_sub(*from) as usize,
            Self::At(rows) => rows.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row of a slot.
    pub fn row(&self, slot: usize) -> u32 {
        match self {
            Self::Range(from, _) => from + slot as u32,
            Self::At(rows) => rows[slot],
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len()).map(|slot| self.row(slot))
    }
}

/// Values of some rows (or list items), all of one kind.
#[derive(Clone, Debug)]
pub struct Column {
    pub present: Present,
    pub values: Values,
}

/// Which slots have a value.
#[derive(Clone, Debug)]
pub enum Present {
    /// Slot n has value n.
    All,
    /// The slot of each value, ascending.
    At(Vec<u32>),
}

#[derive(Clone, Debug)]
pub enum Values {
    Codes(Vec<u32>, Texts),
    Texts(Vec<bytes::Bytes>),
    /// Of fixed columns only.
    Small(Vec<i32>),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Bools(Vec<bool>),
    Ids(Vec<[u8; 8]>),
    /// Typed JSON of values that are none of the above.
    Json(Vec<bytes::Bytes>),
}

impl Values {
    pub fn len(&self) -> usize {
        match self {
            Self::Codes(codes, _) => codes.len(),
            Self::Texts(all) | Self::Json(all) => all.len(),
            Self::Small(all) => all.len(),
            Self::Ints(all) => all.len(),
            Self::Floats(all) => all.len(),
            Self::Bools(all) => all.len(),
            Self::Ids(all) => all.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text at a place; `None` for other kinds.
    pub fn text(&self, at: usize) -> Option<&[u8]> {
        match self {
            Self::Codes(codes, texts) => texts.get(*codes.get(at)?),
            Self::Texts(all) | Self::Json(all) => all.get(at).map(|text| &text[..]),
            Self::Ids(all) => all.get(at).map(|id| &id[..]),
            Self::Small(_) | Self::Ints(_) | Self::Floats(_) | Self::Bools(_) => None,
        }
    }

    /// Bytes on the heap, shared dictionaries left out.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Codes(codes, _) => codes.len() * 4,
            Self::Texts(all) | Self::Json(all) => all.len() * size_of::<bytes::Bytes>(),
            Self::Small(all) => all.len() * 4,
            Self::Ints(all) => all.len() * 8,
            Self::Floats(all) => all.len() * 8,
            Self::Ids(all) => all.len() * 8,
            Self::Bools(all) => all.len(),
        }
    }

    /// The values at these places.
    fn pick(&self, places: impl Iterator<Item = usize>) -> Self {
        match self {
            Self::Codes(codes, texts) => Self::Codes(places.map(|at| codes[at]).collect(), texts.clone()),
            Self::Texts(all) => Self::Texts(places.map(|at| all[at].clone()).collect()),
            Self::Json(all) => Self::Json(places.map(|at| all[at].clone()).collect()),
            Self::Small(all) => Self::Small(places.map(|at| all[at]).collect()),
            Self::Ints(all) => Self::Ints(places.map(|at| all[at]).collect()),
            Self::Floats(all) => Self::Floats(places.map(|at| all[at]).collect()),
            Self::Bools(all) => Self::Bools(places.map(|at| all[at]).collect()),
            Self::Ids(all) => Self::Ids(places.map(|at| all[at]).collect()),
        }
    }

    fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::Codes(codes, texts) => Self::Codes(codes[range].to_vec(), texts.clone()),
            Self::Texts(all) => Self::Texts(all[range].to_vec()),
            Self::Json(all) => Self::Json(all[range].to_vec()),
            Self::Small(all) => Self::Small(all[range].to_vec()),
            Self::Ints(all) => Self::Ints(all[range].to_vec()),
            Self::Floats(all) => Self::Floats(all[range].to_vec()),
            Self::Bools(all) => Self::Bools(all[range].to_vec()),
            Self::Ids(all) => Self::Ids(all[range].to_vec()),
        }
    }
}

impl Default for Column {
    fn default() -> Self {
        Self { present: Present::At(Vec::new()), values: Values::Small(Vec::new()) }
    }
}

impl Column {
    pub fn all(values: Values) -> Self {
        Self { present: Present::All, values }
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub fn heap_bytes(&self) -> usize {
        let present = match &self.present {
            Present::All => 0,
            Present::At(slots) => slots.len() * 4,
        };
        present + self.values.heap_bytes()
    }

    /// The place of a slot's value among the values.
    pub fn place(&self, slot: u32) -> Option<usize> {
        match &self.present {
            Present::All => Some(slot as usize).filter(|at| *at < self.values.len()),
            Present::At(slots) => slots.binary_search(&slot).ok(),
        }
    }

    /// The values of some slots, which are renumbered.
    #[must_use]
    pub fn select(&self, rows: Rows<'_>) -> Self {
        match (&self.present, rows) {
            (Present::All, Rows::Range(from, to)) => Self::all(self.values.slice(from as usize..to as usize)),
            (Present::All, Rows::At(rows)) => Self::all(self.values.pick(rows.iter().map(|row| *row as usize))),
            (Present::At(slots), Rows::Range(from, to)) => {
                let range = slots.partition_point(|slot| *slot < from)..slots.partition_point(|slot| *slot < to);
                let present = slots[range.clone()].iter().map(|slot| slot - from).collect();
                Self { present: Present::At(present), values: self.values.slice(range) }
            }
            (Present::At(slots), Rows::At(rows)) => {
                let (mut present, mut places) = (Vec::new(), Vec::new());
                let mut at = 0;
                for (slot, row) in (0..).zip(rows) {
                    at = not_below(slots, at, *row);
                    if slots.get(at) == Some(row) {
                        present.push(slot);
                        places.push(at);
                    }
                }
                Self { present: Present::At(present), values: self.values.pick(places.into_iter()) }
            }
        }
    }
}

/// The first place from `at` on whose slot is not below `row`: near ones are found without halving.
#[inline]
fn not_below(slots: &[u32], mut at: usize, row: u32) -> usize {
    for _ in 0..8 {
        match slots.get(at) {
            Some(slot) if *slot < row => at += 1,
            _ => return at,
        }
    }
    at + slots[at..].partition_point(|slot| *slot < row)
}

/// Distinct texts by code.
#[derive(Clone)]
pub struct Texts(Inner);

#[derive(Clone)]
enum Inner {
    Block(Arc<Dictionary>),
    Memory(Arc<Strings>),
}

impl Texts {
    pub(crate) fn of_block(dictionary: Arc<Dictionary>) -> Self {
        Self(Inner::Block(dictionary))
    }

    pub fn of_strings(strings: Arc<Strings>) -> Self {
        Self(Inner::Memory(strings))
    }

    pub fn len(&self) -> usize {
        match &self.0 {
            Inner::Block(dictionary) => dictionary.len(),
            Inner::Memory(strings) => strings.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, code: u32) -> Option<&[u8]> {
        match &self.0 {
            Inner::Block(dictionary) => dictionary.get(code),
            Inner::Memory(strings) if (code as usize) < strings.len() => Some(strings.get(crate::batch::Sym(code))),
            Inner::Memory(_) => None,
        }
    }

    /// Bytes on the heap of a table in memory; what a block's dictionary takes is accounted for where it is kept.
    pub(crate) fn own_bytes(&self) -> usize {
        match &self.0 {
            Inner::Block(_) => 0,
            Inner::Memory(strings) => strings.heap_bytes(),
        }
    }

    /// Whether it is a dictionary of a block, the same one for every read.
    pub fn is_stored(&self) -> bool {
        matches!(self.0, Inner::Block(_))
    }

    /// Whether both are one dictionary, so that equal codes mean equal texts.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Inner::Block(a), Inner::Block(b)) => Arc::ptr_eq(a, b),
            (Inner::Memory(a), Inner::Memory(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Texts({})", self.len())
    }
}

/// The traces of a part, in order.
#[derive(Debug, Default)]
pub struct TraceTable {
    pub ids: Vec<TraceId>,
    /// First row of each; one more for the end.
    pub starts: Vec<u32>,
}

impl TraceTable {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Rows of the nth trace.
    pub fn rows(&self, trace: usize) -> Range<u32> {
        self.starts[trace]..self.starts[trace + 1]
    }

    /// The trace a row belongs to.
    pub fn trace_of(&self, row: u32) -> usize {
        self.starts.partition_point(|start| *start <= row) - 1
    }

    pub fn find(&self, id: TraceId) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    pub fn heap_bytes(&self) -> usize {
        self.ids.capacity() * size_of::<TraceId>() + self.starts.capacity() * 4
    }
}

/// When the traces of a part start and end, as far as the part has them.
#[derive(Debug, Default)]
pub struct TraceTimes {
    /// Earliest start of each trace, nanoseconds since 1970.
    pub starts: Vec<u64>,
    /// Latest end.
    pub ends: Vec<u64>,
}

impl TraceTimes {
    pub fn duration(&self, trace: usize) -> u64 {
        self.ends[trace].saturating_sub(self.starts[trace])
    }

    pub fn heap_bytes(&self) -> usize {
        (self.starts.capacity() + self.ends.capacity()) * 8
    }

    /// Reads starts and durations of all rows.
    pub(crate) fn read(part: &(impl Part + ?Sized)) -> Result<Self, SourceError> {
        let (table, mut out) = (part.traces()?, Self::default());
        out.starts.reserve(table.len());
        out.ends.reserve(table.len());
        // In stretches, so that little of the columns is in memory at once.
        const STRETCH: u32 = 1 << 16;
        let mut trace = 0;
        while trace < table.len() {
            let from = table.starts[trace];
            let mut to = trace + 1;
            while to < table.len() && table.starts[to + 1] - from <= STRETCH {
                to += 1;
            }
            let rows = Rows::Range(from, table.starts[to]);
            let (starts, durations) = (part.column(Fixed::Start, rows)?, part.column(Fixed::Duration, rows)?);
            let (Values::Ints(starts), Values::Ints(durations)) = (&starts.values, &durations.values) else {
                return Err(SourceError::Damaged { what: part.name(), why: "times of another type".into() });
            };
            for trace in trace..to {
                let rows = (table.starts[trace] - from) as usize..(table.starts[trace + 1] - from) as usize;
                let (mut first, mut last) = (u64::MAX, 0);
                for (start, duration) in starts[rows.clone()].iter().zip(&durations[rows]) {
                    let start = *start as u64;
                    first = first.min(start);
                    last = last.max(start.wrapping_add(*duration as u64));
                }
                out.starts.push(first);
                out.ends.push(last);
            }
            trace = to;
        }
        Ok(out)
    }
}

/// Which row each item of the wanted rows' lists belongs to, as slots, ascending.
#[derive(Clone, Debug, Default)]
pub struct Items {
    pub slots: Vec<u32>,
}

/// An identity that no other part of this process has.
fn next_identity() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// How often a key occurs with each kind of value: string, int, double, bool, other.
pub type KindCounts = [u32; 5];

/// Rows of whole traces, as far as one place has them.
pub trait Part: Send + Sync + fmt::Debug {
    /// For messages: a block id, or `live`.
    fn name(&self) -> String;

    /// Tells parts apart, also those of other queries: the same rows have the same identity for as long as they are kept.
    fn identity(&self) -> u64;

    fn rows(&self) -> u32;

    /// Bytes a full scan would look at.
    fn bytes(&self) -> u64;

    fn traces(&self) -> Result<Arc<TraceTable>, SourceError>;

    /// When each trace starts and ends.
    fn times(&self) -> Result<Arc<TraceTimes>, SourceError>;

    /// A column that every row has a value of, except status messages, service names and trace states, which may be missing.
    fn column(&self, which: Fixed, rows: Rows<'_>) -> Result<Column, SourceError>;

    /// Values of an attribute of spans: columns of different kinds, no slot in two of them. Of a key that a span has more than
    /// once, the first counts.
    fn attribute(&self, key: &str, rows: Rows<'_>) -> Result<Vec<Column>, SourceError>;

    /// The events or links of the rows.
    fn items(&self, list: List, rows: Rows<'_>) -> Result<Items, SourceError>;

    /// A column of events or links: its slots are numbers of [`Items`]. Every one has a value, but for trace states.
    fn member(&self, which: Member, rows: Rows<'_>) -> Result<Column, SourceError>;

    /// As [`Part::attribute`], of events or links.
    fn item_attribute(&self, list: List, key: &str, rows: Rows<'_>) -> Result<Vec<Column>, SourceError>;

    /// Keys of attributes, each once, in no order.
    fn keys(&self, owner: Owner) -> Result<Vec<(String, KindCounts)>, SourceError>;

    /// How often a key occurs with each kind of value, perhaps in more rows than the part has; zeros if it does not.
    fn counts_of(&self, owner: Owner, key: &str) -> Result<KindCounts, SourceError> {
        Ok(self.keys(owner)?.into_iter().find(|(known, _)| known == key).map_or([0; 5], |(_, counts)| counts))
    }

    /// Whether some span may have been received twice: its row flag says which.
    fn may_have_duplicates(&self) -> bool;

    /// Whether rows whose attribute `key` is the text `value` may exist. `true` if that is not known cheaply.
    fn may_hold(&self, key: &str, value: &str) -> Result<bool, SourceError>;

    /// Whether `test` may hold for the resource or the scope (typed JSON) of a row: asked of texts that are known without reading
    /// rows, perhaps also of some that no row has. `true` if these are not known, or are more than `most`.
    fn may_own(&self, which: Fixed, most: usize, test: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, SourceError>;

    /// Rows as whole spans: all of one trace, or of neighbouring ones. For the few that need comparing in everything.
    fn spans(&self, rows: Range<u32>) -> Result<Vec<StoredSpan>, SourceError>;
}
