//! Who writes this WAL: the `writer` file with the writer's id, its secret and the last epoch it opened.
//!
//! Crash story: the file is replaced atomically, so it is whole or absent. It is made durable before the first segment; an
//! epoch is made durable in it before that epoch's first segment. If it is damaged by something else than a crash, the id and
//! the epoch come back from the headers of the segments.

use std::io;
use std::path::Path;

use spanhouse_common::fs::{Fs, read_small, write_atomic};
use spanhouse_common::id::WriterId;

use super::record::{Salt, u32_at, u64_at};
use super::segment::SegmentId;

const MAGIC: &[u8; 8] = b"SPANWRT\n";
const VERSION: u16 = 1;
const FILE_BYTES: usize = 56;
pub(super) const FILE_NAME: &str = "writer";

/// 16 random bytes no sender knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Secret([u8; 16]);

impl Secret {
    pub(super) fn generate() -> Self {
        let mut bytes = [0; 16];
        // The last four bytes of a version 7 UUID come from the system's random source.
        for part in bytes.chunks_exact_mut(4) {
            part.copy_from_slice(&WriterId::generate().as_bytes()[12..]);
        }
        Self(bytes)
    }

    /// CRC is linear: both numbers from one half would let one be computed from the other.
    pub(super) fn salt(&self, id: SegmentId) -> Salt {
        let of = |half: &[u8]| {
            let crc = crc32c::crc32c_append(crc32c::crc32c(half), &id.epoch.to_le_bytes());
            crc32c::crc32c_append(crc, &id.index.to_le_bytes())
        };
        let (marker, seed) = self.0.split_at(8);
        // A marker of zero would be found in every stretch of zeros.
        Salt { marker: of(marker).max(1), seed: of(seed) }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The content of the `writer` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub writer: WriterId,
    pub secret: Secret,
    /// The highest epoch that may have segments.
    pub epoch: u64,
}

/// What the `writer` file holds.
#[derive(Debug)]
pub(super) enum Found {
    Missing,
    Damaged,
    Intact(Identity),
}

impl Identity {
    pub(super) fn generate() -> Self {
        Self { writer: WriterId::generate(), secret: Secret::generate(), epoch: 0 }
    }

    pub(super) fn load(fs: &dyn Fs, dir: &Path) -> io::Result<Found> {
        match read_small(fs, &dir.join(FILE_NAME), 4096) {
            Ok(None) => Ok(Found::Missing),
            Ok(Some(bytes)) => Ok(Self::decode(&bytes).map_or(Found::Damaged, Found::Intact)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Found::Damaged),
            Err(error) => Err(error),
        }
    }

    pub(super) fn save(&self, fs: &dyn Fs, dir: &Path) -> io::Result<()> {
        write_atomic(fs, &dir.join(FILE_NAME), &self.encode())
    }

    fn encode(&self) -> [u8; FILE_BYTES] {
        let mut out = [0; FILE_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[12..14].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(self.writer.as_bytes());
        out[32..48].copy_from_slice(&self.secret.0);
        out[48..].copy_from_slice(&self.epoch.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let intact =
            bytes.len() == FILE_BYTES && bytes[..8] == *MAGIC && u32_at(bytes, 8) == Some(crc32c::crc32c(&bytes[12..]));
        if !intact || bytes[12..14] != VERSION.to_le_bytes() {
            return None;
        }
        let writer = WriterId::from_bytes(bytes[16..32].try_into().ok()?);
        Some(Self { writer, secret: Secret(bytes[32..48].try_into().ok()?), epoch: u64_at(bytes, 48)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_identity_round_trips_and_any_flip_is_seen() {
        let identity = Identity { epoch: 12, ..Identity::generate() };
        let bytes = identity.encode();
        assert_eq!(Identity::decode(&bytes), Some(identity));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Identity::decode(&bad), None);
        }
    }

    #[test]
    fn wal_salts_differ_by_segment_and_secret() {
        let (a, b) = (Secret::generate(), Secret::generate());
        let id = |index| SegmentId { epoch: 1, index };
        assert_ne!(a.salt(id(0)), a.salt(id(1)));
        assert_ne!(a.salt(id(0)), b.salt(id(0)));
    }
}
