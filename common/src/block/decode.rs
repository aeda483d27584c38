//! Parquet's run-length hybrid and variable-length numbers, reading: the counterpart of `encode`, able to read a few values out of
//! a page without the rest.
//!
//! Everything is bounds-checked: a damaged page gives an error, never a panic or an unbounded allocation.

use std::ops::Range;

use parquet::errors::ParquetError;

/// The page does not hold what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page is damaged: {0}")]
pub(crate) struct BadPage(pub(crate) &'static str);

impl From<BadPage> for ParquetError {
    fn from(error: BadPage) -> Self {
        Self::External(Box::new(error))
    }
}

type Result<T> = std::result::Result<T, BadPage>;

pub(crate) fn varint(buf: &[u8], at: &mut usize) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *buf.get(*at).ok_or(BadPage("truncated varint"))?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(BadPage("varint too long"))
}

pub(crate) fn zigzag(buf: &[u8], at: &mut usize) -> Result<i64> {
    let raw = varint(buf, at)?;
    Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
}

/// A place in a hybrid to begin reading at: a run, what is before it, and how often a chosen value is before it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    at: u32,
    position: u32,
    count: u32,
}

/// Values between marks, at least.
const MARK_DISTANCE: usize = 512;

/// A run-length/bit-packing hybrid.
#[derive(Clone, Copy)]
pub(crate) struct Hybrid<'a> {
    buf: &'a [u8],
    width: u32,
    /// The value that can be counted and selected.
    chosen: u32,
    marks: &'a [Mark],
}

/// A stretch of a hybrid: one value many times, or values packed to bits.
enum Run<'a> {
    Repeated(u32),
    Packed(&'a [u8]),
}

impl<'a> Hybrid<'a> {
    /// `chosen` is the value to count or select later.
    pub(crate) fn new(buf: &'a [u8], width: u8, chosen: u32) -> Result<Self> {
        if width > 32 {
            Err(BadPage("bit width over 32"))
        } else {
            Ok(Self { buf, width: u32::from(width), chosen, marks: &[] })
        }
    }

    /// Reads from `marks`, which were made of the same bytes and value.
    pub(crate) fn with_marks(self, marks: &'a [Mark]) -> Self {
        Self { marks, ..self }
    }

    /// Walks all runs once, so that later reads need not.
    pub(crate) fn marks(&self) -> Result<Vec<Mark>> {
        let (mut out, mut at, mut position, mut count) = (Vec::new(), 0, 0usize, 0usize);
        let mut next = MARK_DISTANCE;
        while at < self.buf.len() {
            let (run, len) = self.run(&mut at)?;
            // Of a last run nothing needs to be known: it may be cut.
            if at >= self.buf.len() {
                break;
            }
            count = count.saturating_add(self.matches(&run, 0..len)?);
            position = position.saturating_add(len);
            if position < next {
                continue;
            }
            let small = |n: usize| u32::try_from(n).ok();
            let (Some(at), Some(position), Some(count)) = (small(at), small(position), small(count)) else { break };
            out.push(Mark { at, position, count });
            next = position as usize + MARK_DISTANCE;
        }
        out.shrink_to_fit();
        Ok(out)
    }

    /// The last mark of those that `is_before` holds for, which are the first ones.
    fn mark(&self, is_before: impl Fn(&Mark) -> bool) -> (usize, usize, usize) {
        let at = self.marks.partition_point(is_before);
        let mark = at.checked_sub(1).map_or(Mark::default(), |at| self.marks[at]);
        (mark.at as usize, mark.position as usize, mark.count as usize)
    }

    /// How many of the values of a run in `range` are the chosen one.
    fn matches(&self, run: &Run<'_>, range: Range<usize>) -> Result<usize> {
        match run {
            Run::Repeated(value) => Ok(if *value == self.chosen { range.len() } else { 0 }),
            Run::Packed(packed) => matches(packed, range, self.width, self.chosen),
        }
    }

    /// The run that begins at byte `at`, which is moved past it, and its length in values.
    fn run(&self, at: &mut usize) -> Result<(Run<'a>, usize)> {
        let header = varint(self.buf, at)?;
        let len = usize::try_from(header >> 1).map_err(|_| BadPage("run too long"))?;
        if len == 0 {
            return Err(BadPage("empty run"));
        }
        if header & 1 == 0 {
            let width = self.width.div_ceil(8) as usize;
            let bytes = self.buf.get(*at..*at + width).ok_or(BadPage("truncated run"))?;
            *at += width;
            let mut value = [0; 4];
            value[..width].copy_from_slice(bytes);
            return Ok((Run::Repeated(u32::from_le_bytes(value)), len));
        }
        let bytes = len.checked_mul(self.width as usize).ok_or(BadPage("run too long"))?;
        // The last run may be cut where its padding would be.
        let from = (*at).min(self.buf.len());
        *at = at.saturating_add(bytes);
        Ok((Run::Packed(&self.buf[from..(*at).min(self.buf.len())]), len.saturating_mul(8)))
    }

    /// Calls `each` for each run that overlaps `range`, with the part of it that does.
    fn runs(&self, range: Range<usize>, mut each: impl FnMut(Run<'a>, Range<usize>) -> Result<()>) -> Result<()> {
        let (mut at, mut position, _) = self.mark(|mark| mark.position as usize <= range.start);
        while position < range.end {
            let (run, len) = self.run(&mut at)?;
            let end = position.saturating_add(len);
            let (from, to) = (position.max(range.start), end.min(range.end));
            if from < to {
                each(run, from - position..to - position)?;
            }
            position = end;
        }
        Ok(())
    }

    /// Calls `each` for each stretch of values within `range`: a value and how often it comes.
    pub(crate) fn visit(&self, range: Range<usize>, mut each: impl FnMut(u32, usize)) -> Result<()> {
        self.runs(range, |run, part| {
            match run {
                Run::Repeated(value) => each(value, part.len()),
                Run::Packed(packed) => {
                    for value in part {
                        each(unpack(packed, value, self.width)?, 1);
                    }
                }
            }
            Ok(())
        })
    }

    /// Appends the positions of the chosen value in `range`, of values of one bit; that of the first of the range is `first`.
    pub(crate) fn positions(&self, range: Range<usize>, first: u32, out: &mut Vec<u32>) -> Result<()> {
        let mut at = first;
        self.runs(range, |run, part| {
            let len = part.len() as u32;
            match run {
                Run::Repeated(value) if value == self.chosen => out.extend(at..at + len),
                Run::Repeated(_) => {}
                Run::Packed(packed) => set_bits(packed, part, self.chosen == 0, at, out)?,
            }
            at += len;
            Ok(())
        })
    }

    /// Appends the values in `range`.
    pub(crate) fn append(&self, range: Range<usize>, out: &mut Vec<u32>) -> Result<()> {
        out.reserve(range.len().min(1 << 20));
        self.runs(range, |run, part| match run {
            Run::Repeated(value) => {
                out.extend(std::iter::repeat_n(value, part.len()));
                Ok(())
            }
            Run::Packed(packed) => unpack_all(packed, part, self.width, out),
        })
    }

    /// The values in `range`.
    pub(crate) fn values(&self, range: Range<usize>) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        self.append(range, &mut out)?;
        Ok(out)
    }

    /// How many of the first `end` values are the chosen one.
    pub(crate) fn count(&self, end: usize) -> Result<usize> {
        let (mut at, mut position, mut count) = self.mark(|mark| mark.position as usize <= end);
        while position < end {
            let (run, len) = self.run(&mut at)?;
            let len = len.min(end - position);
            count += self.matches(&run, 0..len)?;
            position += len;
        }
        Ok(count)
    }

    /// Position of the chosen value that has `rank` such values before it, among the first `total` values; `total` if there
    /// is none.
    pub(crate) fn select(&self, rank: usize, total: usize) -> Result<usize> {
        let (mut at, mut position, before) =
            self.mark(|mark| mark.count as usize <= rank && mark.position as usize <= total);
        let mut rank = rank - before;
        while position < total {
            let (run, len) = self.run(&mut at)?;
            let len = len.min(total - position);
            // By words first, then value by value in the one that has it.
            let step = if matches!(run, Run::Packed(_)) { SELECT_STEP } else { len };
            for from in (0..len).step_by(step) {
                let part = from..(from + step).min(len);
                let found = self.matches(&run, part.clone())?;
                if rank >= found {
                    rank -= found;
                    continue;
                }
                let Run::Packed(packed) = run else { return Ok(position + rank) };
                for value in part {
                    if unpack(packed, value, self.width)? == self.chosen {
                        if rank == 0 {
                            return Ok(position + value);
                        }
                        rank -= 1;
                    }
                }
            }
            position += len;
        }
        Ok(total)
    }
}

/// Values that [`Hybrid::select`] counts at once.
const SELECT_STEP: usize = 128;

/// How many of the packed values in `range` equal `wanted`: levels, of one or two bits, by words.
fn matches(packed: &[u8], range: Range<usize>, width: u32, wanted: u32) -> Result<usize> {
    let pattern = match (width, wanted) {
        // Nothing is stored, so nothing bounds how many there are: not counted one by one.
        (0, _) => return Ok(if wanted == 0 { range.len() } else { 0 }),
        (1, 0 | 1) => u64::from(wanted) * u64::MAX,
        (2, 0..=3) => u64::from(wanted) * (u64::MAX / 3),
        _ => {
            return range.into_iter().try_fold(0, |sum, at| Ok(sum + usize::from(unpack(packed, at, width)? == wanted)));
        }
    };
    let width = width as usize;
    let bits = range.start * width..range.end * width;
    if bits.end.div_ceil(8) > packed.len() {
        return Err(BadPage("truncated bit-packed run"));
    }
    let mut count = 0;
    let mut at = bits.start / 64 * 8;
    while at * 8 < bits.end {
        let rest = &packed[at..];
        let word = match rest.first_chunk::<8>() {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => {
                let mut bytes = [0; 8];
                bytes[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(bytes)
            }
        };
        let differs = word ^ pattern;
        let mut equal = if width == 1 { !differs } else { !(differs | differs >> 1) & (u64::MAX / 3) };
        if at * 8 < bits.start {
            equal &= u64::MAX << (bits.start - at * 8);
        }
        if bits.end - at * 8 < 64 {
            equal &= (1 << (bits.end - at * 8)) - 1;
        }
        count += equal.count_ones() as usize;
        at += 8;
    }
    Ok(count)
}

/// Appends the positions of the bits in `range` that are set, or of those that are not; that of the first is `first`.
fn set_bits(packed: &[u8], range: Range<usize>, inverted: bool, first: u32, out: &mut Vec<u32>) -> Result<()> {
    if range.end.div_ceil(8) > packed.len() {
        return Err(BadPage("truncated bit-packed run"));
    }
    let mut bit = range.start;
    while bit < range.end {
        let take = (64 - bit % 8).min(range.end - bit);
        let mask = u64::MAX >> (64 - take);
        let mut word = (word_at(packed, bit / 8) >> (bit % 8) ^ if inverted { u64::MAX } else { 0 }) & mask;
        let at = first + (bit - range.start) as u32;
        if word == mask {
            out.extend(at..at + take as u32);
        } else {
            while word != 0 {
                out.push(at + word.trailing_zeros());
                word &= word - 1;
            }
        }
        bit += take;
    }
    Ok(())
}

/// Values of a bit-packed run.
fn unpack_all(packed: &[u8], range: Range<usize>, width: u32, out: &mut Vec<u32>) -> Result<()> {
    if width == 0 {
        out.extend(std::iter::repeat_n(0, range.len()));
        return Ok(());
    }
    let width = width as usize;
    if (range.end * width).div_ceil(8) > packed.len() {
        return Err(BadPage("truncated bit-packed run"));
    }
    // Many dictionaries have codes of whole bytes.
    match width {
        8 => out.extend(packed[range].iter().map(|code| u32::from(*code))),
        16 => {
            let (codes, _) = packed[range.start * 2..range.end * 2].as_chunks::<2>();
            out.extend(codes.iter().map(|code| u32::from(u16::from_le_bytes(*code))));
        }
        _ => unpack_odd(packed, range, width, out),
    }
    Ok(())
}

fn unpack_odd(packed: &[u8], range: Range<usize>, width: usize, out: &mut Vec<u32>) {
    let mask = (1u64 << width) - 1;
    // Values whose eight bytes are all there are read without looking for the end.
    let whole = if packed.len() >= 8 { ((packed.len() - 8) * 8 / width + 1).min(range.end) } else { 0 };
    out.extend((range.start..whole.max(range.start)).map(|index| {
        let bit = index * width;
        let word = packed.get(bit / 8..bit / 8 + 8).and_then(|bytes| bytes.first_chunk::<8>());
        (u64::from_le_bytes(*word.unwrap_or(&[0; 8])) >> (bit % 8) & mask) as u32
    }));
    out.extend((whole.max(range.start)..range.end).map(|index| {
        let bit = index * width;
        (word_at(packed, bit / 8) >> (bit % 8) & mask) as u32
    }));
}

/// Value number `index` of a bit-packed run.
#[inline]
fn unpack(packed: &[u8], index: usize, width: u32) -> Result<u32> {
    if width == 0 {
        return Ok(0);
    }
    let bit = index * width as usize;
    let (byte, shift) = (bit / 8, bit % 8);
    if (bit + width as usize).div_ceil(8) > packed.len() {
        return Err(BadPage("truncated bit-packed run"));
    }
    Ok((word_at(packed, byte) >> shift & ((1u64 << width) - 1)) as u32)
}

/// The eight bytes from `at`, with zeros beyond the end.
#[inline]
pub(super) fn word_at(buf: &[u8], at: usize) -> u64 {
    let rest = buf.get(at..).unwrap_or_default();
    match rest.first_chunk::<8>() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => {
            let mut bytes = [0; 8];
            bytes[..rest.len()].copy_from_slice(rest);
            u64::from_le_bytes(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::delta::Delta;
    use super::super::encode;
    use super::*;

    /// Miniblocks of one value would end inside a byte, and reading them beyond the last.
    #[test]
    fn miniblocks_of_odd_length_are_refused() {
        assert!(Delta::new(&[2, 2, 2, 0, 0, 7, 7], 2, false).is_err());
    }

    proptest! {
        #[test]
        fn hybrid_round_trips(runs in prop::collection::vec((0u32..9, 1usize..40), 1..200), cut in any::<prop::sample::Index>()) {
            let values: Vec<u32> = runs.iter().flat_map(|(v, n)| std::iter::repeat_n(*v, *n)).collect();
            let mut buf = Vec::new();
            encode::hybrid(&values, 4, &mut buf);
            let from = cut.index(values.len());
            let hybrid = Hybrid::new(&buf, 4, 0).unwrap();
            prop_assert_eq!(hybrid.values(from..values.len()).unwrap(), &values[from..]);
            for (width, wanted) in [(1, 0), (1, 1), (2, 0), (2, 2), (2, 3), (3, 5)] {
                let values: Vec<u32> = values.iter().map(|v| v & ((1 << width) - 1)).collect();
                let mut buf = Vec::new();
                encode::hybrid(&values, width, &mut buf);
                let plain = Hybrid::new(&buf, width, wanted).unwrap();
                let marks = plain.marks().unwrap();
                for hybrid in [plain, plain.with_marks(&marks)] {
                    let counted = values[..from].iter().filter(|v| **v == wanted).count();
                    prop_assert_eq!(hybrid.count(from).unwrap(), counted);
                    prop_assert_eq!(hybrid.values(from..values.len()).unwrap(), &values[from..]);
                    let mut places = values.iter().enumerate().filter(|(_, v)| **v == wanted).map(|(at, _)| at);
                    let place = places.nth(from / 2).unwrap_or(values.len());
                    prop_assert_eq!(hybrid.select(from / 2, values.len()).unwrap(), place);
                }
            }
        }

        #[test]
        fn delta_round_trips(values in prop::collection::vec(any::<i64>(), 1..400), small in any::<bool>(), cut in any::<prop::sample::Index>()) {
            let values: Vec<i64> = values.iter().map(|v| if small { i64::from(*v as i32) } else { *v }).collect();
            let mut buf = Vec::new();
            encode::delta(&values, small, &mut buf);
            let from = cut.index(values.len());
            let delta = Delta::new(&buf, values.len(), small).unwrap();
            prop_assert_eq!(delta.values(&buf, from..values.len(), small).unwrap(), &values[from..]);
            prop_assert_eq!(delta.values(&buf, from / 2..from, small).unwrap(), &values[from / 2..from]);
        }

        #[test]
        fn damage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), width in 0u8..34, to in 0usize..2000) {
            for wanted in 0..4 {
                let Ok(hybrid) = Hybrid::new(&bytes, width, wanted) else { continue };
                let marks = hybrid.marks().unwrap_or_default();
                for hybrid in [hybrid, hybrid.with_marks(&marks)] {
                    let _ = (hybrid.values(to / 2..to), hybrid.count(to), hybrid.select(to / 7, to));
                }
            }
            if let Ok(delta) = Delta::new(&bytes, 2000, false) {
                let _ = delta.values(&bytes, to / 2..to, false);
            }
        }
    }
}
