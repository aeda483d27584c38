//! The writer thread with real senders, on the real disk.

use spanhouse_common::fs::{Fs, RealFs};
use spanhouse_common::time::SystemClock;

use super::*;

fn open_real(dir: &Path) -> Opened {
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    open(fs, dir.join("wal"), WalConfig::default(), SystemClock::shared(), WalMetrics::default()).unwrap()
}

fn replay_real(dir: &Path) -> (Vec<ReplayedRecord>, Replayed) {
    let mut records = Vec::new();
    let replayed = open_real(dir).replay(|record| {
        records.push(record);
        Ok::<_, std::convert::Infallible>(())
    });
    (records, replayed.unwrap().0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_on_the_real_disk_keeps_what_concurrent_senders_were_told() {
    let dir = tempfile::tempdir().unwrap();
    let published = Published::default();
    let wal = replay_real(dir.path()).1.start(published.clone()).unwrap();
    let senders: Vec<_> = (0..100)
        .map(|id| {
            let wal = wal.clone();
            tokio::spawn(async move { (wal.append(numbered(id, 500 * id as usize), id).await, id) })
        })
        .collect();
    let mut acked = Vec::new();
    for sender in senders {
        let (answer, id) = sender.await.unwrap();
        acked.push((answer.unwrap(), id));
    }
    acked.sort_unstable();
    assert_eq!(*published.0.lock(), acked, "published in order, each once");
    assert!(wal.is_ready() && wal.bytes() > 2_000_000);
    wal.close().await;
    assert!(!wal.is_ready());
    assert_eq!(wal.append(numbered(1, 1), 1).await, Err(WalError::Closed));
    drop(wal);

    let (records, replayed) = replay_real(dir.path());
    let positions: Vec<(WalPosition, u64)> = records.iter().map(|r| (r.position, id_of(&r.body).unwrap())).collect();
    assert_eq!(positions, acked);
    assert!(records.iter().all(|r| r.meta == numbered(id_of(&r.body).unwrap(), 0).meta));

    // Released records take their segments along.
    let wal = replayed.start(Published::default()).unwrap();
    for n in 0..5 {
        wal.release(&tenant(n), acked[99].0);
    }
    wal.append(numbered(0, 1), 0).await.unwrap();
    assert_eq!(wal.segments(), 1);
    wal.close().await;
    assert_eq!(replay_real(dir.path()).0.len(), 1);
}

#[tokio::test]
async fn wal_append_dropped_by_its_sender_is_still_written_and_published() {
    let dir = tempfile::tempdir().unwrap();
    let published = Published::default();
    let wal = replay_real(dir.path()).1.start(published.clone()).unwrap();
    for id in 0..20 {
        let append = wal.append(numbered(id, 100), id);
        // Polled once, to the queue; then the client goes away.
        assert!(futures::FutureExt::now_or_never(append).is_none());
    }
    wal.close().await;
    assert_eq!(published.0.lock().len(), 20);
    assert_eq!(ids(&replay_real(dir.path()).0), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn wal_gets_ready_again_without_traffic() {
    let fs = SimFs::new(1);
    replay_all(&fs, &small(), &ManualClock::at(UnixNanos::from_seconds(1)));
    fs.set_faults(|faults| faults.read_only = true);
    let opened = open(Arc::new(fs.clone()), dir(), small(), SystemClock::shared(), WalMetrics::default()).unwrap();
    let wal = opened.replay(|_| Ok::<_, std::convert::Infallible>(())).unwrap().0.start(Published::default()).unwrap();
    assert!(matches!(wal.append(numbered(1, 1), 1).await, Err(WalError::Failed { .. })));
    assert!(!wal.is_ready());
    fs.set_faults(|faults| faults.read_only = false);
    tokio::time::timeout(Duration::from_secs(30), async {
        while !wal.is_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    wal.append(numbered(2, 1), 2).await.unwrap();
    wal.close().await;
}

struct Panics;

impl Publish<u64> for Panics {
    fn publish(&self, _: WalPosition, _: &RecordMeta, _: u64) {
        panic!("planted");
    }
}

#[tokio::test]
async fn wal_whose_publisher_panics_is_closed_and_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let wal = replay_real(dir.path()).1.start(Panics).unwrap();
    assert_eq!(wal.append(numbered(1, 1), 1).await, Err(WalError::Closed));
    assert_eq!(wal.append(numbered(2, 1), 2).await, Err(WalError::Closed));
    assert!(!wal.is_ready());
    // Not acknowledged, yet durable: the next replay has it.
    assert_eq!(ids(&replay_real(dir.path()).0), [1]);
}

#[test]
fn wal_metrics_are_named_for_what_they_count() {
    let mut registry = prometheus_client::registry::Registry::with_prefix("spanhouse_ingester");
    WalMetrics::default().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for name in [
        "wal_records_total",
        "wal_written_bytes_total",
        "wal_sync_seconds_count",
        "wal_size_bytes",
        "wal_sync_failures_total",
    ] {
        assert!(text.contains(&format!("spanhouse_ingester_{name} ")), "{name} in\n{text}");
    }
}
