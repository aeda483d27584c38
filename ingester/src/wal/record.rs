//! One WAL record: encode, decode, bounds. `FORMAT.md` draws the bytes.
//!
//! Owns: the layout of a record and its checks. Does not own: where records lie in a file (`segment.rs`), what the body means.

use bytes::Bytes;
use spanhouse_common::id::{MAX_TENANT_BYTES, TenantId, WalPosition};
use spanhouse_common::time::UnixNanos;
use spanhouse_common::varint::put_varint;

use crate::pipeline::{Compression, Encoding};

/// Marker, checksum and length: what must be read to know how long a record is.
pub(super) const PREFIX_BYTES: usize = 12;
const FIXED_BYTES: usize = 41;
const VERSION: u8 = 1;
/// No record is longer, whatever the configuration: bounds what a damaged length can make replay read.
pub const MAX_RECORD_BYTES: usize = 64 * 1024 * 1024;

/// What a record says of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMeta {
    pub tenant: TenantId,
    /// When the request came in: retention counts from it when spans claim to be older.
    pub received: UnixNanos,
    pub encoding: Encoding,
    pub compression: Compression,
    /// Ordinals, in walk order, of the spans that were refused. Replay leaves them out and asks no limit again.
    pub refused: Vec<u32>,
}

/// A record to append: the body as the sender sent it.
#[derive(Clone, Debug)]
pub struct NewRecord {
    pub meta: RecordMeta,
    pub body: Bytes,
}

/// The two secrets of a segment: what marks a record's start, and what its checksum starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt {
    pub marker: u32,
    pub seed: u32,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRecord {
    #[error("no record starts here")]
    Marker,
    #[error("the length is out of bounds")]
    Length,
    #[error("the checksum does not match")]
    Checksum,
    #[error("the checksum matches but the content is not of a version this release knows")]
    Content,
}

impl Encoding {
    fn from_number(number: u8) -> Option<Self> {
        [Self::OtlpProto, Self::OtlpJson].into_iter().find(|e| *e as u8 == number)
    }
}

impl Compression {
    fn from_number(number: u8) -> Option<Self> {
        [Self::Identity, Self::Gzip, Self::Zstd, Self::Deflate, Self::Snappy].into_iter().find(|c| *c as u8 == number)
    }
}

/// Upper bound of the bytes a record takes, known before it has a position.
pub(super) fn max_encoded_len(record: &NewRecord) -> usize {
    FIXED_BYTES + MAX_TENANT_BYTES + 4 + 5 * record.meta.refused.len() + record.body.len()
}

/// Appends to `out` everything of the record but its body, which the caller writes right after it from where it lies.
pub(super) fn encode_head(out: &mut Vec<u8>, salt: Salt, position: WalPosition, record: &NewRecord) {
    let start = out.len();
    let meta = &record.meta;
    let tenant = meta.tenant.as_str().as_bytes();
    out.extend_from_slice(&salt.marker.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[VERSION, meta.encoding as u8, meta.compression as u8, 0]);
    out.extend_from_slice(&position.epoch.to_le_bytes());
    out.extend_from_slice(&position.sequence.to_le_bytes());
    out.extend_from_slice(&meta.received.0.to_le_bytes());
    // A TenantId has at most 150 bytes by construction.
    out.push(tenant.len() as u8);
    out.extend_from_slice(tenant);
    out.extend_from_slice(&(meta.refused.len() as u32).to_le_bytes());
    let mut last = 0u32;
    for ordinal in &meta.refused {
        put_varint(u64::from(ordinal.wrapping_sub(last)), out);
        last = *ordinal;
    }
    let len = (out.len() - start - PREFIX_BYTES + record.body.len()) as u32;
    out[start + 8..start + 12].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(salt.seed, &out[start + 8..]), &record.body);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Length of the whole record that starts with these [`PREFIX_BYTES`] bytes.
pub(super) fn frame_len(prefix: &[u8], salt: Salt) -> Result<usize, BadRecord> {
    if u32_at(prefix, 0) != Some(salt.marker) {
        return Err(BadRecord::Marker);
    }
    let len = u32_at(prefix, 8).ok_or(BadRecord::Length)? as usize + PREFIX_BYTES;
    if (FIXED_BYTES + 4..=MAX_RECORD_BYTES).contains(&len) { Ok(len) } else { Err(BadRecord::Length) }
}

/// Reads a record from exactly its bytes. The body is a slice of `frame`, not a copy.
pub(super) fn decode(frame: &Bytes, salt: Salt) -> Result<(WalPosition, RecordMeta, Bytes), BadRecord> {
    if frame_len(frame, salt)? != frame.len() {
        return Err(BadRecord::Length);
    }
    if u32_at(frame, 4) != Some(crc32c::crc32c_append(salt.seed, &frame[8..])) {
        return Err(BadRecord::Checksum);
    }
    decode_checked(frame).ok_or(BadRecord::Content)
}

fn decode_checked(frame: &Bytes) -> Option<(WalPosition, RecordMeta, Bytes)> {
    let bytes: &[u8] = frame;
    if bytes.get(12) != Some(&VERSION) {
        return None;
    }
    let encoding = Encoding::from_number(*bytes.get(13)?)?;
    let compression = Compression::from_number(*bytes.get(14)?)?;
    let position = WalPosition { epoch: u64_at(bytes, 16)?, sequence: u64_at(bytes, 24)? };
    let received = UnixNanos(u64_at(bytes, 32)?);
    let tenant_end = FIXED_BYTES + *bytes.get(40)? as usize;
    let tenant = std::str::from_utf8(bytes.get(FIXED_BYTES..tenant_end)?).ok()?.parse().ok()?;
    let count = u32_at(bytes, tenant_end)? as usize;
    let mut at = tenant_end + 4;
    // Each ordinal takes a byte at least: a count beyond the bytes there are must not allocate.
    if count > bytes.len().checked_sub(at)? {
        return None;
    }
    let mut refused = Vec::with_capacity(count);
    let mut last = 0u32;
    for _ in 0..count {
        last = last.wrapping_add(take_varint(bytes, &mut at)?);
        refused.push(last);
    }
    let body = frame.slice(at..);
    Some((position, RecordMeta { tenant, received, encoding, compression, refused }, body))
}

fn take_varint(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let mut value = 0u64;
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return u32::try_from(value).ok();
        }
    }
    None
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALT: Salt = Salt { marker: 0x1234_5678, seed: 0x9abc_def0 };

    fn encode(position: WalPosition, record: &NewRecord) -> Bytes {
        let mut out = Vec::new();
        encode_head(&mut out, SALT, position, record);
        out.extend_from_slice(&record.body);
        assert!(out.len() <= max_encoded_len(record));
        out.into()
    }

    fn records() -> impl Strategy<Value = (WalPosition, NewRecord)> {
        let encoding = prop_oneof![Just(Encoding::OtlpProto), Just(Encoding::OtlpJson)];
        let compression = prop_oneof![
            Just(Compression::Identity),
            Just(Compression::Gzip),
            Just(Compression::Zstd),
            Just(Compression::Deflate),
            Just(Compression::Snappy)
        ];
        let refused = prop_oneof![
            Just(vec![]),
            prop::collection::vec(any::<u32>(), 0..20),
            prop::collection::btree_set(0u32..100_000, 0..50).prop_map(|set| set.into_iter().collect()),
        ];
        let body = prop::collection::vec(any::<u8>(), 0..2000);
        ("[a-zA-Z0-9_-]{1,150}", any::<[u64; 3]>(), encoding, compression, refused, body).prop_map(
            |(tenant, [epoch, sequence, received], encoding, compression, refused, body)| {
                let tenant = tenant.parse().unwrap();
                let meta = RecordMeta { tenant, received: UnixNanos(received), encoding, compression, refused };
                (WalPosition { epoch, sequence }, NewRecord { meta, body: body.into() })
            },
        )
    }

    proptest! {
        #[test]
        fn wal_record_round_trips((position, record) in records()) {
            let frame = encode(position, &record);
            prop_assert_eq!(frame_len(&frame[..PREFIX_BYTES], SALT), Ok(frame.len()));
            let (at, meta, body) = decode(&frame, SALT).unwrap();
            prop_assert_eq!((at, meta, body), (position, record.meta, record.body));
        }

        #[test]
        fn wal_record_with_any_damage_is_refused((position, record) in records(), at in any::<prop::sample::Index>(), bit in 0u32..8) {
            let good = encode(position, &record);
            let mut bad = good.to_vec();
            let at = at.index(bad.len());
            bad[at] ^= 1u8 << bit;
            prop_assert!(decode(&bad.into(), SALT).is_err());
            prop_assert!(decode(&good.slice(..at), SALT).is_err());
            let other = Salt { seed: SALT.seed ^ 1, ..SALT };
            prop_assert_eq!(decode(&good, other), Err(BadRecord::Checksum));
        }

        #[test]
        fn wal_record_decode_survives_any_bytes_with_a_good_checksum(mut bytes in prop::collection::vec(any::<u8>(), 45..400), v in any::<bool>()) {
            if v { bytes[12] = VERSION; bytes[13] = 1; bytes[14] = 0; }
            bytes[..4].copy_from_slice(&SALT.marker.to_le_bytes());
            let len = (bytes.len() - PREFIX_BYTES) as u32;
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            let crc = crc32c::crc32c_append(SALT.seed, &bytes[8..]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            let _ = decode(&bytes.into(), SALT);
        }
    }
}
