//! Bytes of a version and of a checkpoint, and back. The layout is drawn in `FORMAT.md`.
//!
//! Owns encoding, the checksum, and the bounds on what is decoded. Does not own whether a version may follow another.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::packs::FilterPack;
use super::state::{BlockEntry, Change, ManifestState, Nonce};
use super::tombstones::Tombstone;
use crate::id::{TenantId, WalPosition, WriterId};
use crate::time::UnixNanos;

/// The format this version of the program writes, and the only one it reads.
pub const FORMAT: u32 = 1;

/// Largest object decoded or written: some 300,000 blocks. A tenant near it needs larger blocks, not a larger manifest.
pub const MAX_BYTES: usize = 256 * 1024 * 1024;

const TRAILER_START: &[u8] = b"\n\"crc32c:";
const TRAILER_END: &[u8] = b"\"\n";
const TRAILER_BYTES: usize = TRAILER_START.len() + 8 + TRAILER_END.len();

/// Why bytes are not a version or checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("it is {bytes} bytes long, the limit is {MAX_BYTES}")]
    TooLarge { bytes: usize },
    #[error("its end is missing or not a checksum")]
    NoChecksum,
    #[error("its checksum is {found:08x}, its bytes have {computed:08x}")]
    WrongChecksum { found: u32, computed: u32 },
    #[error("it has format {found}, this program knows {FORMAT}")]
    UnknownFormat { found: u32 },
    #[error("its content does not parse: {why}")]
    Malformed { why: String },
    #[error("it says it is {found} where {expected} should be")]
    Misplaced { found: String, expected: String },
}

/// A version: what one commit wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub version: u64,
    pub nonce: Nonce,
    pub time: UnixNanos,
    pub content: Content,
}

/// What a version does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// One step from the version that `parent` names.
    Change { parent: Nonce, change: Change },
    /// A new beginning, made from the blocks: takes the place of everything before it.
    Rebuilt(ManifestState),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionFile<'a> {
    format: u32,
    tenant: TenantId,
    version: u64,
    parent: Option<Nonce>,
    nonce: Nonce,
    time: UnixNanos,
    change: Option<std::borrow::Cow<'a, Change>>,
    state: Option<StateFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointFile {
    format: u32,
    tenant: TenantId,
    version: u64,
    nonce: Nonce,
    time: UnixNanos,
    state: StateFile,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    blocks: Vec<Arc<BlockEntry>>,
    watermarks: Vec<Watermark>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tombstones: Vec<Tombstone>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    packs: Vec<Arc<FilterPack>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Watermark {
    writer: WriterId,
    position: WalPosition,
}

/// Read first: another format may have any other fields.
#[derive(Deserialize)]
struct Probe {
    format: u32,
}

impl StateFile {
    fn of(state: &ManifestState) -> Self {
        let watermarks = state.watermarks.iter().map(|(&writer, &position)| Watermark { writer, position });
        Self {
            blocks: state.blocks.values().map(Arc::clone).collect(),
            watermarks: watermarks.collect(),
            tombstones: state.tombstones.values().copied().collect(),
            packs: state.packs.values().map(Arc::clone).collect(),
        }
    }

    fn into_state(self, version: u64, nonce: Nonce) -> Result<ManifestState, CodecError> {
        let (blocks, watermarks) = (self.blocks.len(), self.watermarks.len());
        let (tombstones, packs) = (self.tombstones.len(), self.packs.len());
        let state = ManifestState {
            version,
            nonce,
            blocks: self.blocks.into_iter().map(|b| (b.id, b)).collect(),
            watermarks: self.watermarks.into_iter().map(|w| (w.writer, w.position)).collect::<BTreeMap<_, _>>(),
            tombstones: Arc::new(self.tombstones.into_iter().map(|t| (t.trace_id, t)).collect()),
            packs: self.packs.into_iter().map(|p| (p.id, p)).collect(),
        };
        let is_whole = state.blocks.len() == blocks
            && state.watermarks.len() == watermarks
            && state.tombstones.len() == tombstones
            && state.packs.len() == packs;
        if !is_whole {
            return Err(CodecError::Malformed { why: "a block, writer, deleted trace or pack is named twice".to_owned() });
        }
        Ok(state)
    }
}

/// The bytes of a version.
pub fn encode_version(tenant: &TenantId, version: &Version) -> Result<Bytes, CodecError> {
    let (parent, change, state) = match &version.content {
        Content::Change { parent, change } => (Some(*parent), Some(std::borrow::Cow::Borrowed(change)), None),
        Content::Rebuilt(state) => (None, None, Some(StateFile::of(state))),
    };
    seal(&VersionFile {
        format: FORMAT,
        tenant: tenant.clone(),
        version: version.version,
        parent,
        nonce: version.nonce,
        time: version.time,
        change,
        state,
    })
}

/// The version in `bytes`, which were found where version `number` of `tenant` belongs.
pub fn decode_version(tenant: &TenantId, number: u64, bytes: &[u8]) -> Result<Version, CodecError> {
    let file: VersionFile<'_> = unseal(bytes)?;
    check_place((&file.tenant, file.version), (tenant, number))?;
    let content = match (file.parent, file.change, file.state) {
        (Some(parent), Some(change), None) => Content::Change { parent, change: change.into_owned() },
        (None, None, Some(state)) => Content::Rebuilt(state.into_state(file.version, file.nonce)?),
        _ => return Err(CodecError::Malformed { why: "it is neither a change with a parent nor a state".to_owned() }),
    };
    Ok(Version { version: file.version, nonce: file.nonce, time: file.time, content })
}

/// The bytes of a checkpoint.
pub fn encode_checkpoint(tenant: &TenantId, time: UnixNanos, state: &ManifestState) -> Result<Bytes, CodecError> {
    seal(&CheckpointFile {
        format: FORMAT,
        tenant: tenant.clone(),
        version: state.version,
        nonce: state.nonce,
        time,
        state: StateFile::of(state),
    })
}

/// The state in `bytes`, which were found where checkpoint `number` of `tenant` belongs.
pub fn decode_checkpoint(tenant: &TenantId, number: u64, bytes: &[u8]) -> Result<ManifestState, CodecError> {
    let file: CheckpointFile = unseal(bytes)?;
    check_place((&file.tenant, file.version), (tenant, number))?;
    file.state.into_state(file.version, file.nonce)
}

fn check_place(found: (&TenantId, u64), expected: (&TenantId, u64)) -> Result<(), CodecError> {
    if found == expected {
        return Ok(());
    }
    let name = |(tenant, version): (&TenantId, u64)| format!("version {version} of tenant {tenant}");
    Err(CodecError::Misplaced { found: name(found), expected: name(expected) })
}

fn seal(file: &impl Serialize) -> Result<Bytes, CodecError> {
    let mut out = serde_json::to_vec(file).map_err(|e| CodecError::Malformed { why: e.to_string() })?;
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(TRAILER_START);
    out.extend_from_slice(format!("{checksum:08x}").as_bytes());
    out.extend_from_slice(TRAILER_END);
    if out.len() > MAX_BYTES {
        return Err(CodecError::TooLarge { bytes: out.len() });
    }
    Ok(Bytes::from(out))
}

fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_BYTES {
        return Err(CodecError::TooLarge { bytes: bytes.len() });
    }
    let at = bytes.len().checked_sub(TRAILER_BYTES).ok_or(CodecError::NoChecksum)?;
    let (json, trailer) = bytes.split_at(at);
    let digits = trailer
        .strip_prefix(TRAILER_START)
        .and_then(|t| t.strip_suffix(TRAILER_END))
        .filter(|t| t.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b)))
        .and_then(|t| std::str::from_utf8(t).ok())
        .ok_or(CodecError::NoChecksum)?;
    let found = u32::from_str_radix(digits, 16).map_err(|_| CodecError::NoChecksum)?;
    let computed = crc32c::crc32c(json);
    if found != computed {
        return Err(CodecError::WrongChecksum { found, computed });
    }
    let malformed = |e: serde_json::Error| CodecError::Malformed { why: e.to_string() };
    let Probe { format } = serde_json::from_slice(json).map_err(malformed)?;
    if format != FORMAT {
        return Err(CodecError::UnknownFormat { found: format });
    }
    serde_json::from_slice(json).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::packs::PackedFilter;
    use super::super::state::samples::{block, pack, pack_id, tombstone, wal};
    use super::super::state::{WalRange, Window};
    use super::*;
    use crate::id::{BlockId, PackId, TraceId};
    use crate::time::TimeRange;

    fn tenant() -> TenantId {
        TenantId::single()
    }

    fn any_wal() -> impl Strategy<Value = WalRange> {
        let position = || any::<(u64, u64)>().prop_map(|(epoch, sequence)| WalPosition { epoch, sequence });
        (any::<[u8; 16]>(), position(), position()).prop_map(|(w, from, to)| WalRange {
            writer: WriterId::from_bytes(w),
            from,
            to,
        })
    }

    fn any_block() -> impl Strategy<Value = BlockEntry> {
        let numbers = any::<(u64, u32, u64, u32, u64, u64, u8, u32)>();
        let times = any::<[u64; 5]>();
        let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>(), vec(any::<[u8; 16]>(), 0..4));
        let window = proptest::option::of(any::<(u64, u64)>());
        (numbers, times, ids, window, vec(any_wal(), 0..3)).prop_map(|(n, t, (id, min, max, replaces), window, wal)| {
            BlockEntry {
                id: BlockId::from_bytes(id),
                size_bytes: n.0,
                footer_bytes: n.1,
                filter_bytes: n.2,
                crc32c: n.3,
                rows: n.4,
                traces: n.5,
                level: n.6,
                format: n.7,
                range: TimeRange { min: UnixNanos(t[0]), max: UnixNanos(t[1]) },
                min_start: UnixNanos(t[2]),
                max_start: UnixNanos(t[3]),
                received_max: UnixNanos(t[4]),
                window: window.map(|(start, length)| Window { start, length }),
                min_trace_id: TraceId(min),
                max_trace_id: TraceId(max),
                wal,
                replaces: replaces.into_iter().map(BlockId::from_bytes).collect(),
            }
        })
    }

    fn any_pack() -> impl Strategy<Value = FilterPack> {
        let filter = any::<([u8; 16], u32, u32)>().prop_map(|(block, offset, bytes)| PackedFilter {
            block: BlockId::from_bytes(block),
            offset,
            bytes,
        });
        (any::<([u8; 16], u64, u32)>(), vec(filter, 0..4)).prop_map(|((id, size_bytes, crc32c), filters)| FilterPack {
            id: PackId::from_bytes(id),
            size_bytes,
            crc32c,
            filters,
        })
    }

    fn sample() -> Version {
        let change = Change {
            add: vec![block(1), block(2)],
            remove: vec![block(3).id],
            watermarks: vec![wal(1, 0, 9)],
            bury: vec![tombstone(7, 1)],
            unbury: vec![TraceId([8; 16])],
            add_packs: vec![pack(1, &[1, 2])],
            remove_packs: vec![pack_id(2)],
        };
        let content = Content::Change { parent: Nonce([5; 16]), change };
        Version { version: 12, nonce: Nonce([6; 16]), time: UnixNanos(u64::MAX), content }
    }

    #[test]
    fn no_damage_goes_unseen() {
        let good = encode_version(&tenant(), &sample()).unwrap();
        assert_eq!(decode_version(&tenant(), 12, &good), Ok(sample()));
        for at in 0..good.len() {
            for flip in [1, 0x20, 0x80] {
                let mut bad = good.to_vec();
                bad[at] ^= flip;
                assert!(decode_version(&tenant(), 12, &bad).is_err(), "bit {flip} of byte {at}");
            }
            assert!(decode_version(&tenant(), 12, &good[..at]).is_err(), "cut at {at}");
        }
        let mut longer = good.to_vec();
        longer.push(b'\n');
        assert!(decode_version(&tenant(), 12, &longer).is_err());
    }

    #[test]
    fn the_wrong_place_and_the_future_are_refused() {
        let good = encode_version(&tenant(), &sample()).unwrap();
        assert!(matches!(decode_version(&tenant(), 13, &good), Err(CodecError::Misplaced { .. })));
        let other = "other".parse().unwrap();
        let text = decode_version(&other, 12, &good).unwrap_err().to_string();
        assert_eq!(text, "it says it is version 12 of tenant single-tenant where version 12 of tenant other should be");
        let newer = seal(&serde_json::json!({ "format": 2, "what": "ever" })).unwrap();
        assert_eq!(decode_version(&tenant(), 12, &newer), Err(CodecError::UnknownFormat { found: 2 }));
        assert_eq!(decode_checkpoint(&tenant(), 12, &newer), Err(CodecError::UnknownFormat { found: 2 }));
        let deep = seal(&serde_json::json!({ "format": 1, "x": "y" })).unwrap();
        assert!(matches!(decode_version(&tenant(), 1, &deep), Err(CodecError::Malformed { .. })));
    }

    /// What was written before there were packs says nothing of them, and so does what is written without any.
    #[test]
    fn versions_without_packs_read_as_before() {
        let json = format!(
            r#"{{"format":1,"tenant":"single-tenant","version":2,"parent":"{}","nonce":"{}","time":7,{}"#,
            "05".repeat(16),
            "06".repeat(16),
            r#""change":{"add":[],"remove":[],"watermarks":[]},"state":null}"#
        );
        let old = format!("{json}\n\"crc32c:{:08x}\"\n", crc32c::crc32c(json.as_bytes())).into_bytes();
        let content = Content::Change { parent: Nonce([5; 16]), change: Change::default() };
        let version = Version { version: 2, nonce: Nonce([6; 16]), time: UnixNanos(7), content };
        assert_eq!(decode_version(&tenant(), 2, &old), Ok(version.clone()));
        assert_eq!(encode_version(&tenant(), &version).unwrap(), old);
        let checkpoint = encode_checkpoint(&tenant(), UnixNanos(7), &ManifestState::default()).unwrap();
        assert!(!std::str::from_utf8(&checkpoint).unwrap().contains("packs"));
    }

    #[test]
    fn the_bytes_are_two_lines_of_json() {
        let bytes = encode_version(&tenant(), &sample()).unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["parent"], "05".repeat(16));
        assert_eq!(lines[0]["change"]["add"][0]["min_trace_id"], "01".repeat(16));
        let buried = serde_json::json!([{ "trace_id": "07".repeat(16), "deleted_at": 1_000_000_000 }]);
        assert_eq!((&lines[0]["change"]["bury"], &lines[0]["change"]["unbury"][0]), (&buried, &"08".repeat(16).into()));
    }

    #[test]
    fn files_without_tombstones_are_as_they_were_before_there_were_any() {
        let zeros = "0".repeat(32);
        let mut version = serde_json::json!({
            "format": 1, "tenant": "single-tenant", "version": 1, "parent": zeros, "nonce": zeros, "time": 5,
            "change": { "add": [], "remove": [], "watermarks": [] }, "state": null,
        });
        let decoded = decode_version(&tenant(), 1, &seal(&version).unwrap()).unwrap();
        assert_eq!(decoded.content, Content::Change { parent: Nonce::ROOT, change: Change::default() });
        let written = encode_version(&tenant(), &decoded).unwrap();
        let line = written.split(|b| *b == b'\n').next().unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(line).unwrap(), version);

        let twice = serde_json::json!({ "trace_id": "07".repeat(16), "deleted_at": 1 });
        version["parent"] = serde_json::Value::Null;
        version["change"] = serde_json::Value::Null;
        version["state"] = serde_json::json!({ "blocks": [], "watermarks": [], "tombstones": [twice, twice] });
        let refused = decode_version(&tenant(), 1, &seal(&version).unwrap());
        assert!(matches!(refused, Err(CodecError::Malformed { .. })), "{refused:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn versions_and_checkpoints_come_back(
            blocks in vec(any_block(), 0..5),
            removed in vec(any::<[u8; 16]>(), 0..5),
            watermarks in vec(any_wal(), 0..4),
            buried in vec((any::<[u8; 16]>(), any::<u64>()), 0..4),
            unburied in vec(any::<[u8; 16]>(), 0..4),
            (version, time) in any::<(u64, u64)>(),
            (nonce, parent) in any::<([u8; 16], [u8; 16])>(),
            packs in vec(any_pack(), 0..3),
            packs_gone in vec(any::<[u8; 16]>(), 0..3),
        ) {
            let (nonce, time) = (Nonce(nonce), UnixNanos(time));
            let bury: Vec<Tombstone> = buried
                .into_iter()
                .map(|(id, at)| Tombstone { trace_id: TraceId(id), deleted_at: UnixNanos(at) })
                .collect();
            let state = ManifestState {
                version,
                nonce,
                blocks: blocks.iter().map(|b| (b.id, Arc::new(b.clone()))).collect(),
                watermarks: watermarks.iter().map(|w| (w.writer, w.to)).collect(),
                tombstones: Arc::new(bury.iter().map(|t| (t.trace_id, *t)).collect()),
                packs: packs.iter().map(|p| (p.id, Arc::new(p.clone()))).collect(),
            };
            let remove = removed.into_iter().map(BlockId::from_bytes).collect();
            let unbury = unburied.into_iter().map(TraceId).collect();
            let remove_packs = packs_gone.into_iter().map(PackId::from_bytes).collect();
            let change = Change { add: blocks, remove, watermarks, bury, unbury, add_packs: packs, remove_packs };
            for content in [Content::Change { parent: Nonce(parent), change }, Content::Rebuilt(state.clone())] {
                let written = Version { version, nonce, time, content };
                let bytes = encode_version(&tenant(), &written).unwrap();
                prop_assert_eq!(decode_version(&tenant(), version, &bytes), Ok(written));
            }
            let bytes = encode_checkpoint(&tenant(), time, &state).unwrap();
            prop_assert_eq!(decode_checkpoint(&tenant(), version, &bytes), Ok(state));
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
            prop_assert!(decode_version(&tenant(), 1, &bytes).is_err());
        }
    }
}
