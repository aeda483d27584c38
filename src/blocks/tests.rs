//! Ten blocks with different columns and column types, in a local store: listed, inspected, damaged, rebuilt, and read by the
//! engines users have.

mod model;
mod readers;

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::filter_pack::encode_pack;
use spanhouse_common::block::{BlockInput, BlockOrigin, WriterOptions, window_of, write_block};
use spanhouse_common::fs::DataDirLock;
use spanhouse_common::id::{BlockId, PackId, TenantId};
use spanhouse_common::manifest::{Change, FilterPack, Manifests, Window};
use spanhouse_common::store::paths::BlockObject;
use spanhouse_common::store::{self, TenantPaths, TenantRegistry};
use spanhouse_common::time::{SystemClock, UnixNanos};
use spanhouse_compactor::packs::{Packed, Packer};

use super::{BlocksCommand, BlocksDeps, run, verify};

const START: u64 = 1_700_000_000_000_000_000;

/// A store on disk with ten blocks.
struct World {
    dir: tempfile::TempDir,
    batches: Vec<Arc<SpanBatch>>,
    ids: Vec<BlockId>,
}

impl World {
    async fn new() -> Self {
        let mut world = Self { dir: tempfile::tempdir().unwrap(), batches: Vec::new(), ids: Vec::new() };
        let deps = world.deps().await;
        for number in 0..10 {
            let batch = Arc::new(model::batch(number));
            // Small row groups in one block, so that more than one is read somewhere.
            let rows = if number == 4 { 50 } else { WriterOptions::default().row_group_rows };
            let id = commit(&deps, vec![Arc::clone(&batch)], rows, Vec::new()).await;
            world.ids.push(id);
            world.batches.push(batch);
        }
        world
    }

    async fn deps(&self) -> BlocksDeps {
        let store_url = self.dir.path().join("store").display().to_string();
        let store = store::open(&store_url, &store::OpenOptions::new()).unwrap();
        let clock = SystemClock::shared();
        let tenants = TenantRegistry::open(Arc::clone(&store), Arc::clone(&clock), 100).await.unwrap();
        let manifests = Arc::new(Manifests::new(store, Arc::clone(&clock), tenants));
        BlocksDeps { manifests, store_url, data_dir: self.dir.path().to_path_buf(), clock }
    }

    async fn text(&self, command: BlocksCommand) -> String {
        let mut out = Vec::new();
        run(command, &self.deps().await, &mut out).await.unwrap();
        String::from_utf8(out).unwrap()
    }

    fn path(&self, id: BlockId, object: BlockObject) -> PathBuf {
        let key = TenantPaths::new(&TenantId::single()).block(id, object);
        self.dir.path().join("store").join(key.as_ref())
    }

    fn lose_manifest(&self) {
        let root = self.dir.path().join("store").join(TenantPaths::new(&TenantId::single()).root().as_ref());
        for part in ["manifest", "checkpoints"] {
            let part: PathBuf = root.join(part);
            if part.exists() {
                std::fs::remove_dir_all(part).unwrap();
            }
        }
    }

    /// Ids by `ls --json`.
    async fn listed(&self) -> Vec<String> {
        let json = self.text(BlocksCommand::Ls { tenant: None, json: true, sql: false }).await;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let blocks = json[0]["blocks"].as_array().unwrap();
        blocks.iter().map(|block| block["id"].as_str().unwrap().to_owned()).collect()
    }

    fn id_texts(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.ids.iter().map(ToString::to_string).collect();
        ids.sort();
        ids
    }
}

async fn commit(deps: &BlocksDeps, batches: Vec<Arc<SpanBatch>>, row_group_rows: usize, replaces: Vec<BlockId>) -> BlockId {
    let tenant = TenantId::single();
    let origin = BlockOrigin {
        id: BlockId::generate(),
        tenant: tenant.clone(),
        created: UnixNanos(START),
        window: Some(Window { ..window_of(UnixNanos(START), 86_400) }),
        level: u8::from(!replaces.is_empty()),
        wal: Vec::new(),
        inputs: replaces.clone(),
        replaces: replaces.clone(),
    };
    let rows = vec![None; batches.len()];
    let options = WriterOptions { row_group_rows, ..WriterOptions::default() };
    let block = write_block(&BlockInput { batches, rows }, origin, options).unwrap();
    let manifest = deps.manifests.for_writing(&tenant).await.unwrap();
    let (id, paths) = (block.meta.origin.id, TenantPaths::new(&tenant));
    let store: &dyn ObjectStore = deps.manifests.store().as_ref();
    store.put(&paths.block(id, BlockObject::Filter), PutPayload::from(block.filter.clone())).await.unwrap();
    store.put(&paths.block(id, BlockObject::Spans), PutPayload::from(block.parquet.clone())).await.unwrap();
    let entry = block.meta.entry_of(&block.parquet, block.tail_bytes, block.filter.len() as u64);
    manifest.commit(Change { add: vec![entry], remove: replaces, ..Change::default() }).await.unwrap();
    id
}

fn flip(path: &FsPath, at: impl Fn(usize) -> usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn lists_inspects_and_adds_up() {
    let world = World::new().await;
    let table = world.text(BlocksCommand::Ls { tenant: None, json: false, sql: false }).await;
    assert_eq!(table.lines().count(), 12, "{table}");
    assert!(world.ids.iter().all(|id| table.contains(&id.to_string())), "{table}");
    assert!(table.contains("2023-11-14T00:00:00Z+24h"), "{table}");
    let spans: usize = world.batches.iter().map(|batch| batch.len()).sum();
    assert!(table.lines().last().unwrap().starts_with(&format!("10 blocks, {spans} spans, ")), "{table}");
    assert_eq!(world.listed().await, world.id_texts());

    let id = world.ids[0];
    let text = world.text(BlocksCommand::Inspect { tenant: None, id, json: false }).await;
    for part in
        ["span.http.route", "RLE_DICTIONARY", "DELTA_BINARY_PACKED", "\"service-0\"", "http.status_code", "GET /shop"]
    {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let json = world.text(BlocksCommand::Inspect { tenant: None, id, json: true }).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["entry"]["rows"], world.batches[0].len() as u64);
    assert_eq!(json["meta"]["id"], id.to_string());
    let missing = BlocksCommand::Inspect { tenant: None, id: BlockId::generate(), json: true };
    assert!(run(missing, &world.deps().await, &mut Vec::new()).await.is_err());

    let json = world.text(BlocksCommand::Columns { tenant: None, json: true }).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let columns = json["columns"].as_array().unwrap();
    let sum: u64 = columns.iter().map(|column| column["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["bytes"], sum);
    assert!(columns.iter().any(|column| column["column"] == "span.user.id" && column["filter_bytes"].as_u64() > Some(0)));
    assert!(world.text(BlocksCommand::Columns { tenant: None, json: false }).await.contains("trace_id"));

    let other: TenantId = "other".parse().unwrap();
    let (deps, mut out) = (world.deps().await, Vec::new());
    let error = run(BlocksCommand::Ls { tenant: Some(other), json: false, sql: false }, &deps, &mut out).await.unwrap_err();
    assert!(error.to_string().contains("no tenant `other`"));
}

#[tokio::test]
async fn verify_finds_what_was_changed() {
    let world = World::new().await;
    let report = verify::verify(&world.deps().await, None).await.unwrap();
    assert!(report.faults.is_empty(), "{:#?}", report.faults);
    assert_eq!((report.blocks, report.tenants), (10, 1));

    // A page, the footer, the filter, the end of a file, a whole object: one fault in each of five blocks.
    flip(&world.path(world.ids[0], BlockObject::Spans), |len| len / 3);
    flip(&world.path(world.ids[1], BlockObject::Spans), |len| len - 20);
    flip(&world.path(world.ids[2], BlockObject::Filter), |len| len / 2);
    let cut = world.path(world.ids[5], BlockObject::Spans);
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
    std::fs::remove_file(world.path(world.ids[6], BlockObject::Spans)).unwrap();
    // A sound filter of another block hides this one's traces.
    std::fs::copy(world.path(world.ids[8], BlockObject::Filter), world.path(world.ids[7], BlockObject::Filter)).unwrap();
    let report = verify::verify(&world.deps().await, None).await.unwrap();
    let of = |at: usize| {
        let name = format!("block {}", world.ids[at]);
        report.faults.iter().find(|f| f.what == name).map(|f| f.findings.join("\n")).unwrap_or_default()
    };
    assert!(of(0).contains("checksum"), "{}", of(0));
    assert!(of(1).contains("cannot be read"), "{}", of(1));
    assert!(of(2).contains("trace-id filter: checksum"), "{}", of(2));
    assert!(of(5).contains("bytes long"), "{}", of(5));
    assert!(of(6).contains("is missing"), "{}", of(6));
    assert!(of(7).contains("the filter hides trace"), "{}", of(7));
    assert_eq!(report.faults.len(), 6, "{:#?}", report.faults);
    let text = world.text(BlocksCommand::Verify { tenant: None, json: false }).await;
    assert!(text.contains("6 damaged"), "{text}");
}

/// Packs the filters of all blocks as the compactor does.
async fn pack(deps: &BlocksDeps) -> FilterPack {
    let manifest = deps.manifests.for_writing(&TenantId::single()).await.unwrap();
    let (mut packer, mut done) = (Packer::default(), Packed::default());
    packer.pack(deps.manifests.store(), &manifest, deps.clock.as_ref(), &mut done).await.unwrap();
    let packs: Vec<_> = manifest.current().packs.values().cloned().collect();
    assert_eq!(packs.len(), 1);
    FilterPack::clone(&packs[0])
}

#[tokio::test]
async fn packs_of_filters_are_listed_and_verified() {
    let world = World::new().await;
    let deps = world.deps().await;
    let before = world.text(BlocksCommand::Ls { tenant: None, json: false, sql: false }).await;
    assert!(!before.contains("pack"), "{before}");
    let pack = pack(&deps).await;
    let table = world.text(BlocksCommand::Ls { tenant: None, json: false, sql: false }).await;
    assert!(table.contains("10 blocks, 1 filter pack, "), "{table}");
    let json = world.text(BlocksCommand::Ls { tenant: None, json: true, sql: false }).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let listed = &json[0]["filter_packs"][0];
    assert_eq!((&listed["size_bytes"], &listed["alive"]), (&pack.size_bytes.into(), &10.into()), "{listed}");
    let inspect = BlocksCommand::Inspect { tenant: None, id: world.ids[0], json: false };
    assert!(world.text(inspect).await.contains(&pack.id.to_string()));
    let findings = async || {
        let report = verify::verify(&world.deps().await, None).await.unwrap();
        assert_eq!((report.blocks, report.filter_packs), (10, 1));
        let name = format!("filter pack {}", pack.id);
        assert!(report.faults.iter().all(|fault| fault.what == name), "{:#?}", report.faults);
        report.faults.into_iter().flat_map(|fault| fault.findings).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(findings().await, "");

    let store = deps.manifests.store();
    let key = TenantPaths::new(&TenantId::single()).filter_pack(pack.id);
    let good = store.get(&key).await.unwrap().bytes().await.unwrap();
    let file = world.dir.path().join("store").join(key.as_ref());
    flip(&file, |_| pack.filters[3].offset as usize + 9);
    let found = findings().await;
    assert!(found.contains("checksum is not the one") && found.contains("is not the block's own"), "{found}");
    assert_eq!(found.lines().count(), 2, "{found}");
    std::fs::write(&file, &good).unwrap();
    flip(&file, |len| len - 30);
    assert!(findings().await.contains("checksum of its directory"));
    std::fs::write(&file, &good[..good.len() - 1]).unwrap();
    assert!(findings().await.contains("bytes long, the manifest says"));
    std::fs::remove_file(&file).unwrap();
    assert!(findings().await.contains("is missing"));

    // Sound in itself and in the manifest, but one block has another's filter.
    let mut filters = Vec::new();
    for id in &world.ids {
        let own = TenantPaths::new(&TenantId::single()).block(*id, BlockObject::Filter);
        filters.push((*id, store.get(&own).await.unwrap().bytes().await.unwrap()));
    }
    filters[4].1 = filters[5].1.clone();
    let (wrong, object) = encode_pack(&TenantId::single(), PackId::generate(), &filters).unwrap();
    store.put(&TenantPaths::new(&TenantId::single()).filter_pack(wrong.id), object.into()).await.unwrap();
    let manifest = deps.manifests.for_writing(&TenantId::single()).await.unwrap();
    let swap = Change { remove_packs: vec![pack.id], add_packs: vec![wrong], ..Change::default() };
    manifest.commit(swap).await.unwrap();
    let report = verify::verify(&world.deps().await, None).await.unwrap();
    let expected = format!("the filter of block {} is not the block's own", world.ids[4]);
    assert_eq!(report.faults.len(), 1, "{:#?}", report.faults);
    assert_eq!(report.faults[0].findings, [expected]);

    // A manifest that is made again has no packs, and needs none.
    world.lose_manifest();
    world.text(BlocksCommand::RebuildManifest { tenant: None, json: false }).await;
    let report = verify::verify(&world.deps().await, None).await.unwrap();
    assert_eq!((report.faults.len(), report.filter_packs), (0, 0));
}

#[tokio::test]
async fn a_flipped_byte_is_found_wherever_it_is() {
    let world = World::new().await;
    let path = world.path(world.ids[9], BlockObject::Spans);
    let good = std::fs::read(&path).unwrap();
    for step in 0..25 {
        flip(&path, |len| step * (len - 1) / 24);
        let report = verify::verify(&world.deps().await, None).await.unwrap();
        assert_eq!(report.faults.len(), 1, "step {step}");
        std::fs::write(&path, &good).unwrap();
    }
}

#[tokio::test]
async fn a_lost_manifest_comes_back_without_what_was_replaced() {
    let mut world = World::new().await;
    let merged = vec![Arc::clone(&world.batches[0]), Arc::clone(&world.batches[1])];
    let replaces = vec![world.ids[0], world.ids[1]];
    let id = commit(&world.deps().await, merged, 100_000, replaces).await;
    let inputs: Vec<BlockId> = world.ids.drain(..2).collect();
    world.ids.push(id);
    let before = world.text(BlocksCommand::Ls { tenant: None, json: true, sql: false }).await;
    assert_eq!(world.listed().await, world.id_texts());

    world.lose_manifest();
    let deps = world.deps().await;
    let ls = run(BlocksCommand::Ls { tenant: None, json: false, sql: false }, &deps, &mut Vec::new()).await;
    assert!(ls.unwrap_err().to_string().contains("rebuild-manifest"));
    let rebuild = || BlocksCommand::RebuildManifest { tenant: None, json: false };
    let held = DataDirLock::acquire(world.dir.path()).unwrap();
    let refused = run(rebuild(), &deps, &mut Vec::new()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("in use by another process"), "{refused:#}");
    drop(held);

    std::fs::remove_file(world.path(world.ids[3], BlockObject::Filter)).unwrap();
    let text = world.text(rebuild()).await;
    assert!(text.contains(&format!("made again: the trace-id filter of block {}", world.ids[3])), "{text}");
    assert!(inputs.iter().all(|id| text.contains(&format!("left out: block {id}"))), "{text}");
    let blocks = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap()[0]["blocks"].clone();
    let after = world.text(BlocksCommand::Ls { tenant: None, json: true, sql: false }).await;
    assert_eq!(blocks(&before), blocks(&after));
    let report = verify::verify(&world.deps().await, None).await.unwrap();
    assert!(report.faults.is_empty(), "{:#?}", report.faults);

    // Without the merged block its inputs are what is left of those spans.
    world.lose_manifest();
    flip(&world.path(id, BlockObject::Spans), |len| len - 20);
    let text = world.text(rebuild()).await;
    assert!(text.contains(&format!("skipped: block {id} cannot be read")), "{text}");
    world.ids.pop();
    world.ids.extend(inputs);
    assert_eq!(world.listed().await, world.id_texts());
}
