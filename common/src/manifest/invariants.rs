//! What must hold of every version: pure checks, called before each write, at each replay, and by the tests' oracle.
//!
//! Owns the rules. Does not own what a caller does about a broken one: before a write it is a conflict to rebase on, in a
//! version already written it is damage.

use std::collections::HashSet;

use super::packs::{FilterPack, MAX_PACK_BYTES, MAX_PACKED_FILTERS};
use super::state::{BlockEntry, Change, ManifestState};
use super::tombstones::MAX_TOMBSTONES;
use crate::id::{BlockId, PackId, TraceId, WalPosition, WriterId};

/// The rule a change breaks. Each is final for this change on this state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Another commit replaced or retired it: make the change anew from the present state.
    #[error("block {id} to be removed is not in the manifest: another commit took it out")]
    BlockGone { id: BlockId },
    /// The same change was committed before; block ids are never used twice.
    #[error("block {id} to be added is in the manifest already")]
    BlockExists { id: BlockId },
    #[error("block {id} is named twice in one change")]
    NamedTwice { id: BlockId },
    /// The stretch was flushed before, by this process or another: drop the blocks made from it.
    #[error("the WAL of writer {writer} is covered up to {covered}, not up to {from} as the change assumes")]
    AlreadyCovered { writer: WriterId, from: WalPosition, covered: WalPosition },
    #[error("the watermark of writer {writer} would move back, from {from} to {to}")]
    Backwards { writer: WriterId, from: WalPosition, to: WalPosition },
    #[error("the watermark of writer {writer} is moved twice in one change")]
    MovedTwice { writer: WriterId },
    #[error("block {id} contradicts itself: {why}")]
    BadEntry { id: BlockId, why: &'static str },
    /// Each tombstone goes with the retention of what it hides; delete the rest when some have gone, or by a shorter retention.
    #[error(
        "{after} traces of the tenant would be deleted by id, at most {MAX_TOMBSTONES} can be at a time: a deletion is \
             forgotten when retention is past, so delete fewer or shorten the retention"
    )]
    TooManyTombstones { after: usize },
    #[error("the trace id {id} is all zeros: no span has it")]
    NoTrace { id: TraceId },
    #[error("trace {id} is deleted twice in one change")]
    BuriedTwice { id: TraceId },
    /// Another compactor packed anew: plan again from the present state.
    #[error("filter pack {id} to be removed is not in the manifest: another commit took it out")]
    PackGone { id: PackId },
    #[error("filter pack {id} to be added is in the manifest already")]
    PackExists { id: PackId },
    #[error("filter pack {id} is named twice in one change")]
    PackNamedTwice { id: PackId },
    /// Another compactor packed it: plan again from the present state.
    #[error("the filter of block {block} would be in pack {pack} and in another one")]
    PackedTwice { block: BlockId, pack: PackId },
    #[error("filter pack {id} contradicts itself: {why}")]
    BadPack { id: PackId, why: &'static str },
}

/// Whether `change` may follow `state`. What holds here holds of every written version for good.
pub fn check(state: &ManifestState, change: &Change) -> Result<(), Violation> {
    let mut named = HashSet::with_capacity(change.add.len() + change.remove.len());
    for id in change.remove.iter().copied().chain(change.add.iter().map(|entry| entry.id)) {
        if !named.insert(id) {
            return Err(Violation::NamedTwice { id });
        }
    }
    // The watermark first: a flush committed before should hear "covered", whether or not its blocks were since replaced.
    let mut moved = HashSet::new();
    for range in &change.watermarks {
        let (writer, from, to) = (range.writer, range.from, range.to);
        if !moved.insert(writer) {
            return Err(Violation::MovedTwice { writer });
        }
        if to <= from {
            return Err(Violation::Backwards { writer, from, to });
        }
        let covered = state.watermark(writer);
        if covered != from {
            return Err(Violation::AlreadyCovered { writer, from, covered });
        }
    }
    if let Some(&id) = change.remove.iter().find(|id| !state.blocks.contains_key(id)) {
        return Err(Violation::BlockGone { id });
    }
    if let Some(entry) = change.add.iter().find(|entry| state.blocks.contains_key(&entry.id)) {
        return Err(Violation::BlockExists { id: entry.id });
    }
    check_tombstones(state, change)
}

fn check_tombstones(state: &ManifestState, change: &Change) -> Result<(), Violation> {
    let mut buried = HashSet::with_capacity(change.bury.len());
    for id in change.bury.iter().map(|tombstone| tombstone.trace_id) {
        if !id.is_valid() {
            return Err(Violation::NoTrace { id });
        }
        if !buried.insert(id) {
            return Err(Violation::BuriedTwice { id });
        }
    }
    let unburied: HashSet<TraceId> = change.unbury.iter().copied().collect();
    let gone = unburied.iter().filter(|id| state.tombstones.contains_key(id)).count();
    let new = buried.iter().filter(|id| unburied.contains(id) || !state.tombstones.contains_key(id)).count();
    let after = state.tombstones.len().saturating_sub(gone).saturating_add(new);
    // What only takes some away always may.
    if new > gone && after > MAX_TOMBSTONES {
        return Err(Violation::TooManyTombstones { after });
    }
    check_packs(state, change)
}

/// A pack may name blocks that are not in the state: they were retired since it was planned, or will be.
fn check_packs(state: &ManifestState, change: &Change) -> Result<(), Violation> {
    let mut named = HashSet::with_capacity(change.add_packs.len() + change.remove_packs.len());
    for id in change.remove_packs.iter().copied().chain(change.add_packs.iter().map(|pack| pack.id)) {
        if !named.insert(id) {
            return Err(Violation::PackNamedTwice { id });
        }
    }
    if let Some(&id) = change.remove_packs.iter().find(|id| !state.packs.contains_key(id)) {
        return Err(Violation::PackGone { id });
    }
    if let Some(pack) = change.add_packs.iter().find(|pack| state.packs.contains_key(&pack.id)) {
        return Err(Violation::PackExists { id: pack.id });
    }
    if change.add_packs.is_empty() {
        return Ok(());
    }
    let stay = state.packs.values().filter(|pack| !named.contains(&pack.id));
    let mut packed: HashSet<BlockId> = stay.flat_map(|pack| pack.filters.iter().map(|filter| filter.block)).collect();
    for pack in &change.add_packs {
        if let Some(filter) = pack.filters.iter().find(|filter| !packed.insert(filter.block)) {
            return Err(Violation::PackedTwice { block: filter.block, pack: pack.id });
        }
    }
    Ok(())
}

/// Whether a pack makes sense in itself. Asked before a write only, as [`check_entry`].
pub fn check_pack(pack: &FilterPack) -> Result<(), Violation> {
    let bad = |why| Err(Violation::BadPack { id: pack.id, why });
    if pack.filters.is_empty() || pack.filters.len() > MAX_PACKED_FILTERS {
        return bad("it has no filter or too many");
    }
    let ends = |at: usize| u64::from(pack.filters[at].offset) + u64::from(pack.filters[at].bytes);
    let places = (1..pack.filters.len()).all(|at| ends(at - 1) <= u64::from(pack.filters[at].offset));
    if !places || ends(pack.filters.len() - 1) > pack.size_bytes {
        return bad("its filters overlap or lie outside");
    }
    if pack.filters.iter().map(|filter| u64::from(filter.bytes)).sum::<u64>() > MAX_PACK_BYTES {
        return bad("its filters are too large together");
    }
    Ok(())
}

/// Whether an entry makes sense in itself. Asked before a write only: what an older version allowed stays readable.
pub fn check_entry(entry: &BlockEntry) -> Result<(), Violation> {
    let bad = |why| Err(Violation::BadEntry { id: entry.id, why });
    if entry.rows == 0 || entry.traces == 0 || entry.traces > entry.rows {
        return bad("a block has at least one trace and a row for each");
    }
    if u64::from(entry.footer_bytes) > entry.size_bytes {
        return bad("its footer is longer than its file");
    }
    if entry.min_trace_id > entry.max_trace_id {
        return bad("its trace ids end before they begin");
    }
    if entry.window.is_some_and(|w| w.length == 0) {
        return bad("its window has no length");
    }
    if entry.wal.iter().any(|range| range.to <= range.from) {
        return bad("a WAL range in it ends before it begins");
    }
    if entry.replaces.contains(&entry.id) {
        return bad("it replaces itself");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::state::Nonce;
    use std::sync::Arc;

    use super::super::state::samples::{block, id, pack, pack_id, tombstone, wal, writer};
    use super::*;
    use crate::time::UnixNanos;

    fn state() -> ManifestState {
        let mut state = ManifestState::default();
        state.apply(
            1,
            Nonce([1; 16]),
            &Change {
                add: vec![block(1), block(2)],
                watermarks: vec![wal(1, 0, 5)],
                add_packs: vec![pack(1, &[1, 7])],
                ..Change::default()
            },
        );
        state
    }

    #[test]
    fn changes_that_may_not_follow() {
        let check = |add: &[u64], remove: &[u64], watermarks: &[_]| {
            let change = Change {
                add: add.iter().map(|n| block(*n)).collect(),
                remove: remove.iter().map(|n| id(*n)).collect(),
                watermarks: watermarks.to_vec(),
                ..Change::default()
            };
            super::check(&state(), &change)
        };
        assert_eq!(check(&[3], &[1, 2], &[wal(1, 5, 9), wal(2, 0, 1)]), Ok(()));
        assert_eq!(check(&[], &[3], &[]), Err(Violation::BlockGone { id: id(3) }));
        assert_eq!(check(&[2], &[], &[]), Err(Violation::BlockExists { id: id(2) }));
        assert_eq!(check(&[3, 3], &[], &[]), Err(Violation::NamedTwice { id: id(3) }));
        assert_eq!(check(&[1], &[1], &[]), Err(Violation::NamedTwice { id: id(1) }));
        let (from, covered) = (wal(1, 4, 9).from, wal(1, 0, 5).to);
        let covered_already = Err(Violation::AlreadyCovered { writer: writer(1), from, covered });
        assert_eq!(check(&[], &[], &[wal(1, 4, 9)]), covered_already);
        assert!(matches!(check(&[], &[], &[wal(1, 5, 5)]), Err(Violation::Backwards { .. })));
        assert!(matches!(check(&[], &[], &[wal(1, 5, 6), wal(1, 6, 7)]), Err(Violation::MovedTwice { .. })));
    }

    #[test]
    fn tombstones_that_may_not_follow() {
        let change = |bury: &[u8], unbury: &[u8]| Change {
            bury: bury.iter().map(|n| tombstone(*n, 9)).collect(),
            unbury: unbury.iter().map(|n| TraceId([*n; 16])).collect(),
            ..Change::default()
        };
        let mut state = state();
        assert_eq!(check(&state, &change(&[1, 2], &[3])), Ok(()));
        assert_eq!(check(&state, &change(&[0], &[])), Err(Violation::NoTrace { id: TraceId([0; 16]) }));
        assert_eq!(check(&state, &change(&[1, 1], &[])), Err(Violation::BuriedTwice { id: TraceId([1; 16]) }));

        state.apply(2, Nonce([2; 16]), &Change { bury: vec![tombstone(1, 5)], ..Change::default() });
        state.apply(3, Nonce([3; 16]), &change(&[1, 2], &[4]));
        let deleted = |state: &ManifestState, n: u8| state.tombstones.get(&TraceId([n; 16])).map(|t| t.deleted_at);
        let seconds = |n| Some(UnixNanos::from_seconds(n));
        assert_eq!([1, 2, 4].map(|n| deleted(&state, n)), [seconds(5), seconds(9), None], "the earlier stays");
        state.apply(4, Nonce([4; 16]), &change(&[1], &[1, 2]));
        assert_eq!([1, 2].map(|n| deleted(&state, n)), [seconds(9), None], "but where it is taken away too");
    }

    #[test]
    fn tombstones_are_bounded() {
        let mut state = state();
        let many = Arc::make_mut(&mut state.tombstones);
        for n in 0..MAX_TOMBSTONES as u128 {
            let stone = super::super::Tombstone { trace_id: TraceId((n + 1).to_be_bytes()), deleted_at: UnixNanos(1) };
            many.insert(stone.trace_id, stone);
        }
        let change = |bury: &[u8], unbury: &[u128]| Change {
            bury: bury.iter().map(|n| tombstone(*n, 9)).collect(),
            unbury: unbury.iter().map(|n| TraceId(n.to_be_bytes())).collect(),
            ..Change::default()
        };
        assert_eq!(check(&state, &change(&[7], &[])), Err(Violation::TooManyTombstones { after: MAX_TOMBSTONES + 1 }));
        assert_eq!(check(&state, &change(&[7, 8], &[1])), Err(Violation::TooManyTombstones { after: MAX_TOMBSTONES + 1 }));
        assert_eq!(check(&state, &change(&[7], &[1])), Ok(()));
        let again = state.tombstones[&TraceId(5_u128.to_be_bytes())];
        assert_eq!(check(&state, &Change { bury: vec![again], ..Change::default() }), Ok(()), "one it has");
        // Written by a version of the program that allows more: still to be taken away.
        let stone = tombstone(9, 9);
        Arc::make_mut(&mut state.tombstones).insert(stone.trace_id, stone);
        assert_eq!(check(&state, &change(&[], &[1])), Ok(()));
    }

    #[test]
    fn packs_that_may_not_follow() {
        let check = |add: &[(u64, &[u64])], remove: &[u64]| {
            let change = Change {
                add_packs: add.iter().map(|(n, blocks)| pack(*n, blocks)).collect(),
                remove_packs: remove.iter().map(|n| pack_id(*n)).collect(),
                ..Change::default()
            };
            super::check(&state(), &change)
        };
        assert_eq!(check(&[(2, &[2])], &[]), Ok(()));
        assert_eq!(check(&[(2, &[1, 2, 7])], &[1]), Ok(()));
        // Blocks that are gone may be named.
        assert_eq!(check(&[(2, &[2, 99])], &[]), Ok(()));
        assert_eq!(check(&[], &[1]), Ok(()));
        assert_eq!(check(&[], &[2]), Err(Violation::PackGone { id: pack_id(2) }));
        assert_eq!(check(&[(1, &[2])], &[]), Err(Violation::PackExists { id: pack_id(1) }));
        assert_eq!(check(&[(1, &[2])], &[1]), Err(Violation::PackNamedTwice { id: pack_id(1) }));
        assert_eq!(check(&[(2, &[2]), (2, &[3])], &[]), Err(Violation::PackNamedTwice { id: pack_id(2) }));
        let twice = |block, pack| Err(Violation::PackedTwice { block: id(block), pack: pack_id(pack) });
        assert_eq!(check(&[(2, &[2, 7])], &[]), twice(7, 2));
        assert_eq!(check(&[(2, &[2, 2])], &[]), twice(2, 2));
        assert_eq!(check(&[(2, &[2]), (3, &[2])], &[1]), twice(2, 3));
    }

    #[test]
    fn packs_that_contradict_themselves() {
        assert_eq!(check_pack(&pack(1, &[1, 2])), Ok(()));
        let spoil: [fn(&mut FilterPack); 6] = [
            |p| p.filters.clear(),
            |p| p.filters[1].offset = 9,
            |p| p.filters.reverse(),
            |p| p.size_bytes = 19,
            |p| p.filters[1].bytes = u32::MAX,
            |p| {
                p.filters[1].bytes = MAX_PACK_BYTES as u32;
                p.size_bytes = u64::MAX;
            },
        ];
        for spoil in spoil {
            let mut pack = pack(1, &[1, 2]);
            spoil(&mut pack);
            assert!(matches!(check_pack(&pack), Err(Violation::BadPack { .. })), "{pack:?}");
        }
        let many: Vec<u64> = (0..=MAX_PACKED_FILTERS as u64).collect();
        assert_eq!(check_pack(&pack(1, &many[1..])), Ok(()));
        assert!(matches!(check_pack(&pack(1, &many)), Err(Violation::BadPack { .. })));
    }

    #[test]
    fn entries_that_contradict_themselves() {
        assert_eq!(check_entry(&block(1)), Ok(()));
        let spoil: [fn(&mut BlockEntry); 6] = [
            |b| b.rows = 0,
            |b| b.traces = b.rows + 1,
            |b| b.footer_bytes = 1001,
            |b| std::mem::swap(&mut b.min_trace_id, &mut b.max_trace_id),
            |b| b.replaces = vec![b.id],
            |b| b.wal = vec![wal(1, 3, 3)],
        ];
        for spoil in spoil {
            let mut entry = block(1);
            spoil(&mut entry);
            assert!(matches!(check_entry(&entry), Err(Violation::BadEntry { .. })), "{entry:?}");
        }
    }
}
