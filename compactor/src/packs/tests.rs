use object_store::PutPayload;
use spanhouse_common::block::filter_pack::read_directory;
use spanhouse_common::manifest::ManifestSettings;
use spanhouse_common::store::faults::{FaultConfig, FaultyStore};
use spanhouse_common::time::ManualClock;

use super::*;
use crate::testing::{AgedStore, HOUR, START, block_id, flush_with_sidecar, objects_of, put_block_with, sidecar};

struct House {
    clock: Arc<ManualClock>,
    weather: Arc<FaultyStore>,
    store: Arc<dyn ObjectStore>,
    manifest: ManifestStore,
    packer: Packer,
    flushed: u64,
}

impl House {
    async fn new() -> Self {
        let clock = ManualClock::at(START);
        let weather = Arc::new(FaultyStore::new(AgedStore::new(&clock) as _, FaultConfig::default(), 1));
        let store: Arc<dyn ObjectStore> = Arc::clone(&weather) as _;
        let manifest = open(&store, &clock).await;
        Self { clock, weather, store, manifest, packer: Packer::default(), flushed: 0 }
    }

    async fn flush(&mut self, blocks: std::ops::RangeInclusive<u64>) {
        for n in blocks {
            let id = block_id(n);
            put_block_with(self.store.as_ref(), &TenantId::single(), id, sidecar(id).into()).await;
            self.manifest.commit(flush_with_sidecar(n, START, 1, self.flushed)).await.unwrap();
            self.flushed += 1;
        }
    }

    async fn retire(&self, blocks: std::ops::RangeInclusive<u64>) {
        let remove = blocks.map(block_id).collect();
        self.manifest.commit(Change { remove, ..Change::default() }).await.unwrap();
    }

    async fn pack(&mut self) -> Packed {
        let mut packed = Packed::default();
        self.packer.pack(&self.store, &self.manifest, self.clock.as_ref(), &mut packed).await.unwrap();
        packed
    }

    /// Numbers of the blocks in packs, after a look at the packs' objects.
    async fn packed(&self) -> Vec<u64> {
        let state = self.manifest.current();
        let mut numbers = Vec::new();
        for pack in state.packs.values() {
            let key = TenantPaths::new(&TenantId::single()).filter_pack(pack.id);
            let object = self.store.get(&key).await.unwrap().bytes().await.unwrap();
            assert_eq!((pack.size_bytes, pack.crc32c), (object.len() as u64, crc32c::crc32c(&object)));
            assert_eq!(read_directory(&object).unwrap().filters, pack.filters);
            for filter in &pack.filters {
                assert_eq!(filter.slice(&object), Some(sidecar(filter.block)));
                numbers.extend((1..100).find(|n| block_id(*n) == filter.block));
            }
        }
        numbers.sort_unstable();
        numbers
    }

    /// Puts other bytes in an object's place.
    async fn spoil(&self, n: u64) {
        let [filter, _] = objects_of(&TenantId::single(), block_id(n));
        let mut bytes = sidecar(block_id(n)).to_vec();
        bytes[7] ^= 1;
        self.store.put(&filter, PutPayload::from(bytes)).await.unwrap();
    }
}

async fn open(store: &Arc<dyn ObjectStore>, clock: &Arc<ManualClock>) -> ManifestStore {
    let (tenant, settings) = (TenantId::single(), ManifestSettings::default());
    ManifestStore::open_or_create(Arc::clone(store), tenant, Arc::clone(clock) as _, settings).await.unwrap()
}

fn packed(packs: u64, filters: u64) -> Packed {
    Packed { packs, filters, unreadable: 0 }
}

#[tokio::test(start_paused = true)]
async fn filters_are_packed_and_packed_anew() {
    let mut house = House::new().await;
    house.flush(1..=7).await;
    assert_eq!(house.pack().await, Packed::default());
    house.flush(8..=10).await;
    assert_eq!(house.pack().await, packed(1, 10));
    assert_eq!(house.packed().await, (1..=10).collect::<Vec<_>>());
    let version = house.manifest.current().version;
    assert_eq!(house.pack().await, Packed::default());
    assert_eq!(house.manifest.current().version, version, "nothing to do costs no version");

    house.retire(1..=6).await;
    assert_eq!(house.pack().await, packed(1, 4));
    assert_eq!(house.packed().await, [7, 8, 9, 10]);
    house.retire(7..=10).await;
    assert_eq!(house.pack().await, Packed::default());
    assert!(house.manifest.current().packs.is_empty());
}

#[tokio::test(start_paused = true)]
async fn filters_that_cannot_be_read_do_not_stop_the_others() {
    let mut house = House::new().await;
    house.flush(1..=12).await;
    house.spoil(5).await;
    let [filter, _] = objects_of(&TenantId::single(), block_id(3));
    house.store.delete(&filter).await.unwrap();
    assert_eq!(house.pack().await, Packed { packs: 1, filters: 10, unreadable: 2 });
    assert_eq!(house.packed().await, [1, 2, 4, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(house.pack().await, Packed::default());

    // Put back, they are tried again after a while: the tenant is quiet by then.
    house.store.put(&filter, sidecar(block_id(3)).into()).await.unwrap();
    house.clock.advance(6 * HOUR);
    assert_eq!(house.pack().await, Packed { packs: 1, filters: 11, unreadable: 1 });
    assert_eq!(house.packed().await, [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]);
}

#[tokio::test(start_paused = true)]
async fn a_spoiled_pack_is_made_again_from_the_blocks() {
    let mut house = House::new().await;
    house.flush(1..=10).await;
    house.pack().await;
    let paths = TenantPaths::new(&TenantId::single());
    let id = *house.manifest.current().packs.keys().next().unwrap();
    let object = house.store.get(&paths.filter_pack(id)).await.unwrap().bytes().await.unwrap();
    // A wrong byte in the filter of block 9, which is alive.
    let at = house.manifest.current().packs[&id].filters[8].offset as usize + 20;
    let mut bad = object.to_vec();
    bad[at] ^= 1;
    house.store.put(&paths.filter_pack(id), bad.into()).await.unwrap();
    house.retire(1..=6).await;
    assert_eq!(house.pack().await, packed(1, 4));
    assert_eq!(house.packed().await, [7, 8, 9, 10]);
    // Gone altogether.
    let id = *house.manifest.current().packs.keys().next().unwrap();
    house.store.delete(&paths.filter_pack(id)).await.unwrap();
    house.retire(7..=9).await;
    assert_eq!(house.pack().await, Packed { packs: 1, filters: 1, unreadable: 1 });
    assert_eq!(house.packed().await, [10]);
}

#[tokio::test(start_paused = true)]
async fn of_two_that_pack_the_same_one_gives_way() {
    let mut house = House::new().await;
    house.flush(1..=10).await;
    let other = open(&house.store, &house.clock).await;
    assert_eq!(house.pack().await, packed(1, 10));
    assert!(other.current().packs.is_empty(), "it has not heard yet");
    let mut told = Packed::default();
    Packer::default().pack(&house.store, &other, house.clock.as_ref(), &mut told).await.unwrap();
    assert_eq!((told, other.current().packs.len()), (Packed::default(), 1));
    assert_eq!(house.manifest.refresh().await.unwrap(), other.current());
    let paths = TenantPaths::new(&TenantId::single());
    let objects: Vec<_> = house.store.list(Some(&paths.filter_packs())).collect().await;
    assert_eq!(objects.len(), 2, "the object put for nothing waits for the sweeper");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_ends_the_step_and_not_the_packing() {
    let mut house = House::new().await;
    house.flush(1..=20).await;
    house.weather.set(FaultConfig { error_before: 1.0, ..FaultConfig::default() });
    let mut done = Packed::default();
    let failed = house.packer.pack(&house.store, &house.manifest, house.clock.as_ref(), &mut done).await;
    assert!(matches!(failed, Err(PackError::Read(SourceError::Unreadable { .. }))), "{failed:?}");
    house.weather.set(FaultConfig::default());
    assert_eq!(house.pack().await, packed(1, 19));
    house.clock.advance(HOUR);
    assert_eq!(house.pack().await, packed(1, 20));
}
