use object_store::ObjectStore;
use object_store::memory::InMemory;
use spanhouse_common::batch::Row;
use spanhouse_common::id::{SpanId, TraceId, WriterId};
use spanhouse_common::manifest::Window;
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::time::{ManualClock, UnixNanos};

use super::*;
use crate::live::CutPolicy;

fn at(epoch: u64, sequence: u64) -> WalPosition {
    WalPosition { epoch, sequence }
}

fn batch(n: u8) -> SpanBatch {
    let mut batch = SpanBatch::default();
    let text = batch.strings.push(b"{}");
    batch.resources.push(spanhouse_common::batch::ResourceEntry { json: text, service_name: Default::default() });
    batch.scopes.push(text);
    batch.rows.push(Row { trace_id: TraceId([n; 16]), span_id: SpanId([n; 8]), start: 5, end: 6, ..Row::default() });
    batch
}

struct House {
    live: Arc<Live>,
    manifests: Arc<Manifests>,
    flusher: Flusher,
}

async fn house() -> House {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let clock: Arc<dyn Clock> = ManualClock::at(UnixNanos(1_000_000));
    let tenants = TenantRegistry::open(Arc::clone(&store), Arc::clone(&clock), 10).await.unwrap();
    let manifests = Arc::new(Manifests::new(store, Arc::clone(&clock), tenants));
    let policy = CutPolicy { max_age: Duration::ZERO, max_spans: 1000, max_bytes: 1 << 20 };
    let live = Arc::new(Live::new(WriterId::generate(), Arc::clone(&clock), policy));
    let config = FlushConfig { window_seconds: 3600, writer: Default::default() };
    let metrics = FlushMetrics::register(&mut prometheus_client::registry::Registry::default());
    let day = Duration::from_secs(86_400);
    let retention = Retention::by(move |tenant| if tenant.as_str() == "short" { Duration::from_nanos(1) } else { day });
    let flusher = Flusher::new(Arc::clone(&live), Arc::clone(&manifests), clock, config, retention, metrics);
    House { live, manifests, flusher }
}

#[tokio::test]
async fn what_blocks_hold_already_stops_its_tenant_and_no_other() {
    let House { live, manifests, flusher } = house().await;
    let (copied, fine): (TenantId, TenantId) = ("copied".parse().unwrap(), "fine".parse().unwrap());
    // Another process on a copy of the data directory was here before.
    let moved = WalRange { writer: live.writer(), from: WalPosition::default(), to: at(3, 9) };
    let change = Change { watermarks: vec![moved], ..Change::default() };
    manifests.for_writing(&copied).await.unwrap().commit(change).await.unwrap();
    live.publish(&copied, at(3, 9), batch(1), None);
    live.publish(&fine, at(3, 10), batch(2), None);
    let mut cuts = live.cut(true, false);
    cuts.sort_by(|a, b| a.tenant.cmp(&b.tenant));
    assert_eq!(flusher.flush(&cuts[0]).await, Err(Stopped));
    assert_eq!(flusher.flush(&cuts[1]).await, Ok(at(3, 10)));
    let stopped = flusher.stopped().all();
    assert!(stopped.len() == 1 && stopped[0].0 == copied && stopped[0].1.contains("up to 3:9"), "{stopped:?}");
    assert!(flusher.stopped().why(&fine).is_none());
    assert_eq!(flusher.metrics.stopped_tenants.get(), 1);
    // Live as before, and not cut again.
    assert_eq!((live.snapshot(&copied).batches.len(), live.snapshot(&fine).batches.len()), (1, 0));
    assert!(live.cut(true, false).is_empty());
}

/// As after a commit whose outcome was unknown for so long that the manifest forgot the attempt.
#[tokio::test]
async fn a_commit_that_succeeded_unnoticed_is_found() {
    let House { live, manifests, flusher } = house().await;
    let tenant = TenantId::single();
    live.publish(&tenant, at(1, 1), batch(1), None);
    let cut = live.cut(true, false).remove(0);
    let wal = WalRange { writer: live.writer(), from: WalPosition::default(), to: cut.to };
    let blocks = flusher.build(&cut, wal).await.unwrap();
    let entry =
        |Built { block, .. }: &Built| block.meta.entry_of(&block.parquet, block.tail_bytes, block.filter.len() as u64);
    let change = Change { add: blocks.iter().map(entry).collect(), watermarks: vec![wal], ..Change::default() };
    let version = manifests.for_writing(&tenant).await.unwrap().commit(change).await.unwrap().version;
    let again = flusher.attempt(&cut, &mut Some(BuiltCut { blocks, wal, at: Duration::ZERO })).await;
    assert_eq!(again.unwrap(), version);
    // Blocks of another attempt are not those: whoever committed them, these spans may not be dropped for it.
    let blocks = flusher.build(&cut, wal).await.unwrap();
    let other = flusher.attempt(&cut, &mut Some(BuiltCut { blocks, wal, at: Duration::ZERO })).await.unwrap_err();
    assert_eq!(other.outlook(), Outlook::Hopeless);
}

#[tokio::test]
async fn a_restart_ends_a_stop_and_a_success_only_that_of_a_repair() {
    let stopped = StoppedTenants::default();
    let [a, b]: [TenantId; 2] = ["a".parse().unwrap(), "b".parse().unwrap()];
    stopped.stop(&a, Until::Repaired, "damage".into());
    stopped.stop(&b, Until::Restart, "a bug".into());
    stopped.stop(&b, Until::Repaired, "damage".into());
    stopped.repaired(&a);
    stopped.repaired(&b);
    assert_eq!(stopped.all(), [(b, "a bug".into())]);
    assert!(stopped.why(&a).is_none());
}

#[test]
fn only_what_may_pass_is_tried_again() {
    let io = || object_store::Error::Generic { store: "test", source: "down".into() };
    let commit = |error| FlushError::Commit(error).outlook();
    assert_eq!(FlushError::Put { path: Path::from("a"), source: io() }.outlook(), Outlook::TryAgain);
    assert_eq!(commit(CommitError::Unknown { version: 1, source: Arc::new(io()) }), Outlook::TryAgain);
    assert_eq!(commit(CommitError::Contended { tries: 1 }), Outlook::TryAgain);
    let lost = spanhouse_common::manifest::Damage::Lost { tenant: TenantId::single() };
    assert_eq!(commit(CommitError::Unreadable(lost.into())), Outlook::Repair);
    assert_eq!(commit(CommitError::Conflict(Violation::BlockExists { id: BlockId::generate() })), Outlook::Hopeless);
    assert_eq!(FlushError::Build("panicked".into()).outlook(), Outlook::Hopeless);
}

#[tokio::test]
async fn what_is_an_outlier_depends_on_the_retention_of_the_tenant() {
    let House { live, manifests, flusher } = house().await;
    let [short, long]: [TenantId; 2] = ["short", "long"].map(|name| name.parse().unwrap());
    live.publish(&short, at(3, 1), batch(1), None);
    live.publish(&long, at(3, 2), batch(2), None);
    for cut in live.cut(true, false) {
        flusher.flush(&cut).await.unwrap();
    }
    for (tenant, expected) in [(short, None), (long, Some(Window { start: 0, length: 3600 }))] {
        let state = manifests.for_reading(&tenant).await.unwrap().unwrap().current();
        let windows: Vec<_> = state.blocks.values().map(|block| block.window).collect();
        assert_eq!(windows, [expected], "{tenant}");
    }
}
