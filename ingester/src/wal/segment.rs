//! One segment file: its name, its header, and reading it front to back past damage.
//!
//! Owns: names, headers, the search for the next record after damage. Does not own: which segments exist (`truncate.rs`),
//! writing records (`writer.rs`), what to do with damage (`replay.rs`).

use std::fmt;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use spanhouse_common::fs::FsFile;
use spanhouse_common::id::{WalPosition, WriterId};

use super::identity::Secret;
use super::record::{self, RecordMeta, Salt, u32_at, u64_at};

pub(super) const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"SPANWAL\n";
const VERSION: u16 = 1;
/// Read at once: most records lie in one chunk and are slices of it.
const CHUNK_BYTES: usize = 256 * 1024;

/// Which segment: also its order, and its file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SegmentId {
    pub epoch: u64,
    pub index: u32,
}

impl SegmentId {
    pub(super) fn file_name(self) -> String {
        format!("{self}.wal")
    }

    /// Reads a file name back; anything else in the directory is not ours to touch.
    pub(super) fn from_file_name(name: &str) -> Option<Self> {
        let (epoch, index) = name.strip_suffix(".wal")?.split_once('-')?;
        let id = Self { epoch: u64::from_str_radix(epoch, 16).ok()?, index: u32::from_str_radix(index, 16).ok()? };
        (id.file_name() == name).then_some(id)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}", self.epoch, self.index)
    }
}

/// The first 64 bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub writer: WriterId,
    pub id: SegmentId,
    pub salt: Salt,
    pub first_sequence: u64,
}

impl SegmentHeader {
    pub(super) fn new(writer: WriterId, secret: &Secret, id: SegmentId, first_sequence: u64) -> Self {
        Self { writer, id, salt: secret.salt(id), first_sequence }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[12..14].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(self.writer.as_bytes());
        out[32..40].copy_from_slice(&self.id.epoch.to_le_bytes());
        out[40..44].copy_from_slice(&self.id.index.to_le_bytes());
        out[44..48].copy_from_slice(&self.salt.marker.to_le_bytes());
        out[48..52].copy_from_slice(&self.salt.seed.to_le_bytes());
        out[56..].copy_from_slice(&self.first_sequence.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` for anything but an intact header of this version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let intact = bytes[..8] == *MAGIC && u32_at(bytes, 8) == Some(crc32c::crc32c(&bytes[12..]));
        if !intact || bytes[12..14] != VERSION.to_le_bytes() {
            return None;
        }
        Some(Self {
            writer: WriterId::from_bytes(bytes[16..32].try_into().ok()?),
            id: SegmentId { epoch: u64_at(bytes, 32)?, index: u32_at(bytes, 40)? },
            salt: Salt { marker: u32_at(bytes, 44)?, seed: u32_at(bytes, 48)? },
            first_sequence: u64_at(bytes, 56)?,
        })
    }
}

/// What lies at the reader's place in a segment.
#[derive(Debug)]
pub(super) enum Item {
    Record {
        position: WalPosition,
        meta: RecordMeta,
        frame: Bytes,
        body: Bytes,
    },
    /// Bytes that are no record, and after them a record.
    Damage(Range<u64>),
    /// No record follows. The range is what is left in the file.
    Tail(Range<u64>),
}

/// Reads a segment's records in order. Holds one chunk or one record in memory.
#[derive(Debug)]
pub(super) struct SegmentReader {
    file: Box<dyn FsFile>,
    len: u64,
    at: u64,
    salt: Salt,
    epoch: u64,
    /// First and last of each run of sequences seen. One run, but in a damaged segment: there records may lie in another
    /// order, and one that was copied must not come out twice.
    seen: Vec<(u64, u64)>,
    chunk: Bytes,
    chunk_at: u64,
}

impl SegmentReader {
    pub(super) fn new(file: Box<dyn FsFile>, from: u64, salt: Salt, epoch: u64) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self { file, len, at: from.min(len), salt, epoch, seen: Vec::new(), chunk: Bytes::new(), chunk_at: 0 })
    }

    /// The next item. After a `Tail` there is nothing more.
    pub(super) fn next(&mut self) -> io::Result<Item> {
        if let Some(record) = self.record_at(self.at)? {
            return Ok(self.take(record));
        }
        let start = self.at;
        let mut search = start;
        while let Some(candidate) = self.find_marker(search)? {
            if self.record_at(candidate)?.is_some() {
                self.at = candidate;
                return Ok(Item::Damage(start..candidate));
            }
            search = candidate + 1;
        }
        self.at = self.len;
        Ok(Item::Tail(start..self.len))
    }

    fn take(&mut self, (position, meta, frame, body): (WalPosition, RecordMeta, Bytes, Bytes)) -> Item {
        self.at += frame.len() as u64;
        match self.seen.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(position.sequence) => *last = position.sequence,
            _ => self.seen.push((position.sequence, position.sequence)),
        }
        Item::Record { position, meta, frame, body }
    }

    fn record_at(&mut self, at: u64) -> io::Result<Option<(WalPosition, RecordMeta, Bytes, Bytes)>> {
        let Some(prefix) = self.bytes(at, record::PREFIX_BYTES)? else { return Ok(None) };
        let Ok(len) = record::frame_len(&prefix, self.salt) else { return Ok(None) };
        let Some(frame) = self.bytes(at, len)? else { return Ok(None) };
        let Ok((position, meta, body)) = record::decode(&frame, self.salt) else { return Ok(None) };
        let seen = self.seen.iter().any(|(first, last)| (*first..=*last).contains(&position.sequence));
        Ok((position.epoch == self.epoch && !seen).then_some((position, meta, frame, body)))
    }

    /// Exactly `len` bytes at `at`, or `None` if the file ends before.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<Option<Bytes>> {
        if self.len.checked_sub(at).is_none_or(|left| left < len as u64) {
            return Ok(None);
        }
        let within = at.checked_sub(self.chunk_at).map(|skip| skip as usize);
        if let Some(skip) = within.filter(|skip| skip + len <= self.chunk.len()) {
            return Ok(Some(self.chunk.slice(skip..skip + len)));
        }
        let bytes = self.read(at, len.max(CHUNK_BYTES))?;
        if bytes.len() < len {
            return Ok(None);
        }
        if len <= CHUNK_BYTES {
            self.chunk = bytes.clone();
            self.chunk_at = at;
        }
        Ok(Some(bytes.slice(..len)))
    }

    fn read(&self, at: u64, len: usize) -> io::Result<Bytes> {
        let len = (self.len - at).min(len as u64) as usize;
        let mut bytes = vec![0; len];
        let read = self.file.read_at(at, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes.into())
    }

    fn find_marker(&mut self, from: u64) -> io::Result<Option<u64>> {
        let marker = self.salt.marker.to_le_bytes();
        let mut at = from;
        while self.len.saturating_sub(at) >= record::PREFIX_BYTES as u64 {
            let chunk = self.read(at, CHUNK_BYTES)?;
            if let Some(found) = chunk.windows(4).position(|window| window == marker) {
                return Ok(Some(at + found as u64));
            }
            if chunk.len() < 4 {
                break;
            }
            // The last three bytes may be the start of a marker.
            at += chunk.len() as u64 - 3;
            if at + 3 >= self.len {
                break;
            }
        }
        Ok(None)
    }

    /// Hands the bytes of `range` to `sink` in chunks: how damage is copied.
    pub(super) fn copy(&self, range: Range<u64>, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let chunk = self.read(at, CHUNK_BYTES.min((range.end - at) as usize))?;
            if chunk.is_empty() {
                break;
            }
            sink(&chunk)?;
            at += chunk.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_segment_names_read_back_and_strangers_do_not() {
        let id = SegmentId { epoch: 0xfeed, index: 7 };
        assert_eq!(id.file_name(), "000000000000feed-00000007.wal");
        assert_eq!(SegmentId::from_file_name(&id.file_name()), Some(id));
        for stranger in ["writer", "1-2.wal", "000000000000feed-00000007.wal.tmp", "000000000000FEED-00000007.wal", "-.wal"]
        {
            assert_eq!(SegmentId::from_file_name(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn wal_segment_header_round_trips_and_any_flip_is_seen() {
        let id = SegmentId { epoch: 3, index: 9 };
        let header = SegmentHeader::new(WriterId::generate(), &Secret::generate(), id, 42);
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), None);
        }
    }
}
