//! Tombstones: the traces of a tenant that were deleted by id.
//!
//! Owns what a tombstone says and when it may go. Does not own the commit that makes or removes one, the hiding of its trace
//! (readers, from the manifest version they use) nor the removal of its spans from storage (the compactor).
//!
//! A tombstone hides every span of its trace, whenever it arrives, until it goes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::state::{BlockEntry, ManifestState, hex128, trace_id_hex};
use crate::id::TraceId;
use crate::time::UnixNanos;

/// Most tombstones of a tenant: some 8 MB in a checkpoint. Deleting more is a matter of retention, not of ids.
pub const MAX_TOMBSTONES: usize = 100_000;

/// How much longer than its start a window may be, and a clock ahead: added where ages are compared.
const SLACK: Duration = Duration::from_secs(48 * 3600);

/// One deleted trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    #[serde(with = "trace_id_hex")]
    pub trace_id: TraceId,
    /// When it was deleted, by the clock of who did: it goes when nothing from before that time is kept any more.
    pub deleted_at: UnixNanos,
}

/// The tombstones of a tenant, by trace.
pub type Tombstones = BTreeMap<TraceId, Tombstone>;

/// The tombstones that have nothing left to hide, in order of their ids: what a change may `unbury`. At most all.
///
/// That is so when a trace is deleted for longer than `retention` and no block is left that may hold spans from before. A block
/// is kept until all of it is past retention, so that it may outlive the tombstone of one of its traces: those that began before
/// the deletion and whose ids surround the trace hold it back. Outliers have no beginning one can trust; they do so until no
/// block from before the deletion can be left, however often it was merged since.
///
/// Spans that arrive after the deletion and are not yet merged away when the tombstone goes are seen from then on.
pub fn unbury(state: &ManifestState, now: UnixNanos, retention: Duration) -> Vec<TraceId> {
    let cutoff = now.saturating_sub(retention);
    let outliers_until = now.saturating_sub(retention.saturating_mul(3).saturating_add(SLACK));
    let holds = |block: &BlockEntry, stone: &Tombstone| match block.window {
        Some(_) => block.min_start <= stone.deleted_at,
        None => stone.deleted_at >= outliers_until,
    };
    let may_hold = |stone: &Tombstone| {
        let id = stone.trace_id;
        state.blocks.values().any(|b| b.min_trace_id <= id && id <= b.max_trace_id && holds(b, stone))
    };
    let past = state.tombstones.values().filter(|stone| stone.deleted_at < cutoff);
    past.filter(|stone| !may_hold(stone)).map(|stone| stone.trace_id).collect()
}

/// Trace ids as a list of 32 hex digits each.
pub(super) mod trace_ids_hex {
    use super::*;

    pub(in crate::manifest) fn serialize<S: Serializer>(ids: &[TraceId], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(ids.iter().map(TraceId::to_string))
    }

    pub(in crate::manifest) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<TraceId>, D::Error> {
        struct Hex(TraceId);
        impl<'de> Deserialize<'de> for Hex {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                hex128(d).map(|id| Self(TraceId(id)))
            }
        }
        Ok(Vec::<Hex>::deserialize(d)?.into_iter().map(|hex| hex.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::state::samples::{block, tombstone};
    use super::*;

    #[test]
    fn a_tombstone_goes_when_nothing_from_before_it_is_kept() {
        // now = 10,000,000 s, retention 1,000,000 s: the cut-off is 9,000,000 s, for outliers 6,827,200 s.
        // Whether it has a window, when it begins, and its first and last trace.
        type Blocks = &'static [(bool, u64, u8, u8)];
        let cases: [(&str, u64, Blocks, bool); 9] = [
            ("past retention, nothing stored", 8_999_999, &[], true),
            ("exactly at the cut-off", 9_000_000, &[], false),
            ("deleted after now", 20_000_000, &[], false),
            ("a block from before is kept for what else is in it", 8_000_000, &[(true, 8_000_000, 1, 9)], false),
            ("a block that began after it", 8_000_000, &[(true, 8_000_001, 1, 9)], true),
            ("a block whose ids are all higher", 8_000_000, &[(true, 1, 6, 9)], true),
            ("a block whose ids are all lower", 8_000_000, &[(true, 1, 1, 4)], true),
            ("outliers may be from any time", 6_827_200, &[(false, 9_500_000, 5, 5)], false),
            ("outliers too young to be from before", 6_827_199, &[(false, 1, 1, 9)], true),
        ];
        for (what, deleted, blocks, goes) in cases {
            let mut state = ManifestState::default();
            for (n, (windowed, start, min, max)) in blocks.iter().enumerate() {
                let mut block = block(n as u64);
                block.window = block.window.filter(|_| *windowed);
                block.min_start = UnixNanos::from_seconds(*start);
                (block.min_trace_id, block.max_trace_id) = (TraceId([*min; 16]), TraceId([*max; 16]));
                state.blocks.insert(block.id, Arc::new(block));
            }
            let stone = tombstone(5, deleted);
            Arc::make_mut(&mut state.tombstones).insert(stone.trace_id, stone);
            let found = unbury(&state, UnixNanos::from_seconds(10_000_000), Duration::from_secs(1_000_000));
            assert_eq!(found, if goes { vec![stone.trace_id] } else { vec![] }, "{what}");
            assert_eq!(unbury(&state, UnixNanos(0), Duration::ZERO), [], "{what}, before time began");
            assert_eq!(unbury(&state, UnixNanos(u64::MAX), Duration::MAX), [], "{what}, kept for ever");
        }
    }
}
