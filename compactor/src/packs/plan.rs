//! Which filters go into a new pack and which packs go: a pure function of a manifest version and the time.
//!
//! Owns the rules. Does not own reading, writing or committing ([`super`]).
//!
//! A step is due when
//! - [`MIN_LOT`] blocks of any level have no pack, or
//! - more than half of a pack's bytes are of blocks that are gone, or
//! - the tenant is quiet, no block having been made for [`QUIET`], and fewer objects could hold the same filters.
//!
//! What a step packs: what is left of packs that are half empty, then blocks without a pack, oldest first. If there is room for
//! more, packs that are still open join, so that packs stay few: the smaller of two always, another one when what joins it is
//! a quarter of it, any that fit when the tenant is quiet. A pack filled to three quarters is left alone while the tenant is not.
//!
//! So up to 256 blocks of common size are in two packs, in one when the tenant is quiet. How often a filter is copied: about
//! six times until its pack is full where blocks come by eights, a dozen at most; once more per as many bytes of filters that
//! went with their blocks; and once per pause of a tenant that pauses between its blocks, at most a pack's bytes each time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use spanhouse_common::id::{BlockId, PackId};
use spanhouse_common::manifest::{BlockEntry, FilterPack, MAX_PACK_BYTES, MAX_PACKED_FILTERS, ManifestState, PackedFilter};
use spanhouse_common::time::UnixNanos;

/// Blocks without a pack that are worth a new one: a look-up asks for less than so many filters one by one.
pub(super) const MIN_LOT: usize = 8;

/// Larger filters stay alone: a reader should not have to fetch them for the sake of their neighbours.
pub(super) const MAX_FILTER_BYTES: u64 = 1024 * 1024;

/// Since the newest block was made. Longer than tenants wait between flushes, or each flush would be a pause.
const QUIET: Duration = Duration::from_secs(15 * 60);

/// Packs that take more before the larger is left alone.
const OPEN_PACKS: usize = 2;

/// A pack is copied for the sake of others that have at least this part of its size.
const WORTH_PART: u64 = 4;

/// What a filter counts at least: as many small ones fill a pack as large ones.
const UNIT: u64 = MAX_PACK_BYTES / MAX_PACKED_FILTERS as u64;

/// A filter to be packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) entry: Arc<BlockEntry>,
    /// The pack that has it now, and where; `None`: only its own object has it.
    pub(super) from: Option<(PackId, PackedFilter)>,
}

/// One new pack, or none, in the place of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// In the order they are to be written. Empty: packs go without another taking their place.
    pub(super) members: Vec<Member>,
    pub(super) drop: Vec<PackId>,
}

/// Filters that are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    filters: usize,
    bytes: u64,
}

impl Load {
    fn of(members: &[Member]) -> Self {
        Self { filters: members.len(), bytes: members.iter().map(|member| member.entry.filter_bytes).sum() }
    }

    fn with(self, other: Self) -> Self {
        Self { filters: self.filters + other.filters, bytes: self.bytes.saturating_add(other.bytes) }
    }

    fn fits(self) -> bool {
        self.filters <= MAX_PACKED_FILTERS && self.bytes <= MAX_PACK_BYTES
    }

    /// [`MAX_PACK_BYTES`] for a full pack, whichever bound it meets.
    fn weight(self) -> u64 {
        self.bytes.max(self.filters as u64 * UNIT)
    }

    fn is_open(self) -> bool {
        self.weight() <= MAX_PACK_BYTES / 4 * 3
    }
}

/// A pack of the manifest without what is gone.
#[derive(Debug)]
struct Alive {
    id: PackId,
    members: Vec<Member>,
    load: Load,
    sparse: bool,
}

impl Alive {
    fn of(pack: &FilterPack, state: &ManifestState, owners: &HashMap<BlockId, PackId>) -> Self {
        let member = |filter: &PackedFilter| {
            let entry = state.blocks.get(&filter.block).filter(|_| owners.get(&filter.block) == Some(&pack.id))?;
            Some(Member { entry: Arc::clone(entry), from: Some((pack.id, *filter)) })
        };
        let members: Vec<Member> = pack.filters.iter().filter_map(member).collect();
        let alive: u64 = members.iter().filter_map(|m| m.from).map(|(_, filter)| u64::from(filter.bytes)).sum();
        let all: u64 = pack.filters.iter().map(|filter| u64::from(filter.bytes)).sum();
        Self { id: pack.id, load: Load::of(&members), members, sparse: alive.saturating_mul(2) < all }
    }
}

/// The next step, or `None` if everything is where it should be. After every step another may be due; their number is bounded,
/// since each leaves fewer objects that hold filters, or fewer bytes that nobody needs. `leave_out` names blocks whose
/// own filter cannot be read.
pub(super) fn plan(state: &ManifestState, now: UnixNanos, leave_out: impl Fn(BlockId) -> bool) -> Option<Step> {
    let mut owners = HashMap::new();
    for pack in state.packs.values() {
        for filter in &pack.filters {
            owners.entry(filter.block).or_insert(pack.id);
        }
    }
    let (mut gone, mut sparse, mut dense) = (Vec::new(), Vec::new(), Vec::new());
    for pack in state.packs.values() {
        let alive = Alive::of(pack, state, &owners);
        if alive.members.is_empty() {
            gone.push(alive.id);
        } else if alive.sparse {
            sparse.push(alive);
        } else {
            dense.push(alive);
        }
    }
    for packs in [&mut sparse, &mut dense] {
        packs.sort_by_key(|alive| (alive.load.weight(), alive.id));
    }
    let packable = |entry: &&Arc<BlockEntry>| {
        let fits = (1..=MAX_FILTER_BYTES).contains(&entry.filter_bytes);
        fits && !owners.contains_key(&entry.id) && !leave_out(entry.id)
    };
    let lot: Vec<Member> =
        state.blocks.values().filter(packable).map(|entry| Member { entry: Arc::clone(entry), from: None }).collect();
    let quiet = is_quiet(state, now);
    let open = dense.iter().filter(|alive| alive.load.is_open()).count();
    let must = lot.len() >= MIN_LOT || !sparse.is_empty();
    let chosen = choose(sparse, lot, dense, open, quiet);
    if must || (quiet || open > OPEN_PACKS) && chosen.objects > 1 {
        gone.extend(chosen.packs);
        return Some(Step { members: chosen.members, drop: gone });
    }
    (!gone.is_empty()).then(|| Step { members: Vec::new(), drop: gone })
}

#[derive(Debug, Default)]
struct Chosen {
    members: Vec<Member>,
    packs: Vec<PackId>,
    load: Load,
    /// That hold these filters now.
    objects: usize,
}

impl Chosen {
    fn add(&mut self, members: Vec<Member>, pack: Option<PackId>) -> bool {
        let load = self.load.with(Load::of(&members));
        if !load.fits() {
            return false;
        }
        self.load = load;
        self.members.extend(members);
        self.packs.extend(pack);
        self.objects += 1;
        true
    }
}

fn choose(sparse: Vec<Alive>, lot: Vec<Member>, dense: Vec<Alive>, mut open: usize, quiet: bool) -> Chosen {
    let mut chosen = Chosen::default();
    for alive in sparse {
        if !chosen.add(alive.members, Some(alive.id)) {
            return chosen;
        }
    }
    for member in lot {
        if !chosen.add(vec![member], None) {
            return chosen;
        }
    }
    for alive in dense {
        let is_open = alive.load.is_open();
        let worth = alive.load.weight() <= chosen.load.weight().saturating_mul(WORTH_PART);
        if !(quiet || is_open && (open >= OPEN_PACKS || worth)) || !chosen.add(alive.members, Some(alive.id)) {
            break;
        }
        open -= usize::from(is_open);
    }
    chosen
}

fn is_quiet(state: &ManifestState, now: UnixNanos) -> bool {
    let made = |entry: &Arc<BlockEntry>| entry.id.made().unwrap_or(entry.received_max);
    state.blocks.values().map(made).max().is_some_and(|newest| newest <= now.saturating_sub(QUIET))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use spanhouse_common::id::PackId;

    use super::*;
    use crate::testing::{START, entry};

    /// A manifest that steps are made on, as commits would.
    #[derive(Clone, Debug, Default)]
    struct House {
        state: ManifestState,
        made: u64,
        packs: u64,
        /// Filters written into packs.
        written: u64,
    }

    impl House {
        fn block(&mut self, bytes: u64) -> BlockId {
            self.made += 1;
            let entry = BlockEntry { filter_bytes: bytes, ..entry(self.made) };
            self.state.blocks.insert(entry.id, Arc::new(entry.clone()));
            entry.id
        }

        fn blocks(&mut self, count: u64, bytes: u64) {
            for _ in 0..count {
                self.block(bytes);
            }
        }

        fn make(&mut self, step: &Step) {
            for id in &step.drop {
                assert!(self.state.packs.remove(id).is_some(), "{id} is not there");
            }
            if step.members.is_empty() {
                return;
            }
            self.packs += 1;
            self.written += step.members.len() as u64;
            let id = PackId::from_bytes(u128::from(self.packs).to_be_bytes());
            let mut end = 0;
            let filters = step.members.iter().map(|member| {
                let (offset, bytes) = (end, member.entry.filter_bytes as u32);
                end += bytes;
                PackedFilter { block: member.entry.id, offset, bytes }
            });
            let filters: Vec<PackedFilter> = filters.collect();
            let pack = FilterPack { id, size_bytes: u64::from(end) + 100, crc32c: 0, filters };
            assert_eq!(spanhouse_common::manifest::invariants::check_pack(&pack), Ok(()));
            self.state.packs.insert(id, Arc::new(pack));
        }

        /// Steps until none is due.
        fn settle(&mut self, now: UnixNanos) -> usize {
            for steps in 0..10_000 {
                let Some(step) = plan(&self.state, now, |_| false) else { return steps };
                self.make(&step);
            }
            panic!("no end of steps");
        }

        fn packed(&self) -> Vec<BlockId> {
            let mut blocks: Vec<BlockId> =
                self.state.packs.values().flat_map(|pack| pack.filters.iter().map(|filter| filter.block)).collect();
            blocks.sort();
            blocks
        }

        fn unpacked(&self) -> usize {
            let packed = self.packed();
            self.state.blocks.keys().filter(|id| packed.binary_search(id).is_err()).count()
        }

        fn remove_pack_blocks(&mut self, pack: usize, count: usize) {
            let filters = self.state.packs.values().nth(pack).unwrap().filters.clone();
            for filter in filters.iter().take(count) {
                self.state.blocks.remove(&filter.block);
            }
        }
    }

    /// All blocks were received at START.
    const BUSY: UnixNanos = START;
    fn later() -> UnixNanos {
        START.saturating_add(QUIET)
    }

    #[test]
    fn when_a_step_is_due() {
        let mut house = House::default();
        house.blocks(7, 100);
        house.block(MAX_FILTER_BYTES + 1);
        house.block(0);
        assert_eq!(plan(&house.state, BUSY, |_| false), None, "fewer than eight can be packed");
        let mut quiet = house.clone();
        assert_eq!((quiet.settle(later()), quiet.state.packs.len(), quiet.unpacked()), (1, 1, 2));

        let last = house.block(100);
        assert_eq!(plan(&house.state, BUSY, |id| id == last), None, "one is left out");
        assert_eq!((house.settle(BUSY), house.state.packs.len(), house.unpacked()), (1, 1, 2));
        assert_eq!((house.settle(BUSY), house.settle(later())), (0, 0));

        house.remove_pack_blocks(0, 4);
        assert_eq!(house.settle(BUSY), 0, "half of it is alive");
        house.remove_pack_blocks(0, 5);
        assert_eq!((house.settle(BUSY), house.packed().len()), (1, 3));
        house.remove_pack_blocks(0, 3);
        assert_eq!(plan(&house.state, BUSY, |_| false).unwrap().members, []);
        assert_eq!((house.settle(BUSY), house.state.packs.len()), (1, 0));
        // A block alone gains nothing by a pack of its own.
        house.block(100);
        assert_eq!(house.settle(later()), 0);
    }

    #[test]
    fn large_filters_fill_packs_and_the_oldest_go_first() {
        let mut house = House::default();
        house.blocks(20, MAX_FILTER_BYTES);
        let step = plan(&house.state, BUSY, |_| false).unwrap();
        let oldest: Vec<BlockId> = house.state.blocks.keys().take(16).copied().collect();
        assert_eq!(step.members.iter().map(|member| member.entry.id).collect::<Vec<_>>(), oldest);
        assert_eq!((house.settle(BUSY), house.unpacked()), (1, 4));
        house.blocks(1000, 10);
        house.settle(BUSY);
        assert!(house.unpacked() < MIN_LOT);
        assert!(house.state.packs.len() <= 6, "{}", house.state.packs.len());
    }

    /// What the figure of a look-up rests on: however the blocks arrive, filters of 200 are in two objects.
    #[test]
    fn two_hundred_blocks_take_two_packs() {
        for lot in 8..=200 {
            let mut house = House::default();
            while house.made < 200 {
                house.blocks(lot.min(200 - house.made), 15_000);
                house.settle(BUSY);
            }
            let packs = house.state.packs.len();
            assert!(packs <= 2 && house.unpacked() < MIN_LOT, "lots of {lot}: {packs} packs");
            house.settle(later());
            assert_eq!((house.state.packs.len(), house.unpacked()), (1, 0), "lots of {lot}, quiet");
        }
    }

    #[test]
    fn a_filter_is_copied_a_few_times() {
        for (bytes, per_filter) in [(1_000, 7), (65_000, 7), (200_000, 5)] {
            let mut house = House::default();
            for _ in 0..1024 / MIN_LOT {
                house.blocks(MIN_LOT as u64, bytes);
                house.settle(BUSY);
            }
            assert!(house.written <= per_filter * 1024, "{} for {} blocks of {bytes}", house.written, house.made);
            let full = (1024 / 192).max((1024 * bytes / (MAX_PACK_BYTES / 4 * 3)) as usize);
            assert!(house.state.packs.len() <= full + OPEN_PACKS, "{} packs", house.state.packs.len());
        }
    }

    /// Merges take the blocks away soon after they came.
    #[test]
    fn blocks_that_go_do_not_leave_packs_behind() {
        let mut house = House::default();
        for round in 0..200 {
            house.blocks(MIN_LOT as u64, 10_000);
            house.settle(BUSY);
            if round % 4 == 3 {
                let young: Vec<BlockId> = house.state.blocks.keys().rev().take(30).copied().collect();
                young.iter().for_each(|id| drop(house.state.blocks.remove(id)));
                house.settle(BUSY);
            }
        }
        assert!(house.written <= 6 * house.made, "{} for {}", house.written, house.made);
        assert!(house.state.packs.len() <= 4, "{} packs of {} blocks", house.state.packs.len(), house.state.blocks.len());
        let bytes: u64 = house.state.packs.values().map(|pack| pack.size_bytes).sum();
        let alive: u64 = house.state.blocks.values().map(|block| block.filter_bytes).sum();
        assert!(bytes <= 3 * alive, "{bytes} for {alive}");
    }

    fn any_bytes() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 1u64..2_000, 1u64..300_000, 900_000u64..1_200_000]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Whatever came and went: the steps end, and then nothing is due.
        #[test]
        fn steps_end_and_leave_order(
            rounds in vec((vec(any_bytes(), 0..60), vec(any::<prop::sample::Index>(), 0..40), any::<bool>()), 1..12),
        ) {
            let mut house = House::default();
            for (blocks, gone, quiet) in rounds {
                for bytes in blocks {
                    house.block(bytes);
                }
                for index in gone {
                    let ids: Vec<BlockId> = house.state.blocks.keys().copied().collect();
                    if !ids.is_empty() {
                        house.state.blocks.remove(index.get(&ids));
                    }
                }
                let (before, packs) = (house.unpacked(), house.state.packs.len());
                let now = if quiet { later() } else { BUSY };
                let steps = house.settle(now);
                prop_assert!(steps <= before + packs + 1, "{} steps", steps);
                prop_assert_eq!(house.settle(now), 0);

                let packed = house.packed();
                prop_assert!(packed.is_sorted_by(|a, b| a < b), "a block is in two packs");
                let waits = |entry: &&Arc<BlockEntry>| {
                    (1..=MAX_FILTER_BYTES).contains(&entry.filter_bytes) && packed.binary_search(&entry.id).is_err()
                };
                let waiting: Vec<Load> = house.state.blocks.values().filter(waits)
                    .map(|entry| Load { filters: 1, bytes: entry.filter_bytes }).collect();
                prop_assert!(waiting.len() < MIN_LOT);
                let mut loads = waiting;
                for pack in house.state.packs.values() {
                    let alive = |f: &&PackedFilter| house.state.blocks.contains_key(&f.block);
                    let bytes: u64 = pack.filters.iter().filter(alive).map(|f| u64::from(f.bytes)).sum();
                    let all: u64 = pack.filters.iter().map(|f| u64::from(f.bytes)).sum();
                    prop_assert!(bytes > 0 && bytes * 2 >= all);
                    loads.push(Load { filters: pack.filters.iter().filter(alive).count(), bytes });
                }
                loads.sort_by_key(|load| load.weight());
                if let ([a, b, ..], true) = (loads.as_slice(), quiet && !house.state.blocks.is_empty()) {
                    prop_assert!(!a.with(*b).fits(), "{:?} and {:?} could be one", a, b);
                }
            }
        }
    }
}
