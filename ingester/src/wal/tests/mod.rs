//! Tests of the WAL as a whole, on a simulated disk but for the smoke test. Each file is one kind of trouble.

mod damage;
mod faults;
mod power_cut;
mod thread;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use spanhouse_common::fs::sim::SimFs;
use spanhouse_common::id::{TenantId, WalPosition};
use spanhouse_common::time::{ManualClock, UnixNanos};
use tokio::sync::oneshot;

use super::core::{Append, WalCore};
use super::*;
use crate::pipeline::{Compression, Encoding};

/// Publishes into a list.
#[derive(Clone, Debug, Default)]
struct Published(Arc<Mutex<Vec<(WalPosition, u64)>>>);

impl Publish<u64> for Published {
    fn publish(&self, position: WalPosition, _: &RecordMeta, payload: u64) {
        self.0.lock().push((position, payload));
    }
}

fn dir() -> PathBuf {
    PathBuf::from("/data/wal")
}

fn tenant(n: u64) -> TenantId {
    format!("tenant-{n}").parse().unwrap()
}

/// A record whose content follows from its id.
fn numbered(id: u64, len: usize) -> NewRecord {
    let mut body = id.to_le_bytes().to_vec();
    body.extend((0..len).map(|at| (id.wrapping_mul(31) as usize + at * at / 3) as u8));
    let encoding = if id.is_multiple_of(2) { Encoding::OtlpProto } else { Encoding::OtlpJson };
    let compression =
        [Compression::Identity, Compression::Gzip, Compression::Zstd, Compression::Deflate, Compression::Snappy]
            [id as usize % 5];
    let refused = (0..id as u32 % 5).map(|n| n * 200).collect();
    let meta = RecordMeta { tenant: tenant(id % 5), received: UnixNanos(1000 + id), encoding, compression, refused };
    NewRecord { meta, body: body.into() }
}

fn id_of(body: &Bytes) -> Option<u64> {
    Some(u64::from_le_bytes(body.get(..8)?.try_into().ok()?))
}

fn small() -> WalConfig {
    WalConfig { segment_bytes: 16 * 1024, idle_rotate: Duration::from_secs(5), ..WalConfig::default() }
}

fn open_at(fs: &SimFs, config: &WalConfig, clock: &Arc<ManualClock>) -> Result<Opened, OpenError> {
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
    open(Arc::new(fs.clone()), dir(), config.clone(), clock, WalMetrics::default())
}

/// All records of the WAL, and the core that goes on after them.
fn replay_all(fs: &SimFs, config: &WalConfig, clock: &Arc<ManualClock>) -> (Vec<ReplayedRecord>, ReplayReport, WalCore) {
    let mut records = Vec::new();
    let (replayed, report) = open_at(fs, config, clock)
        .unwrap()
        .replay(|record| {
            records.push(record);
            Ok::<_, std::convert::Infallible>(())
        })
        .unwrap();
    (records, report, replayed.into_core())
}

/// Commits one group and returns the answers in order.
fn commit(core: &mut WalCore, records: Vec<NewRecord>, publish: &Published) -> Vec<Result<WalPosition, WalError>> {
    let (mut group, mut answers) = (Vec::new(), Vec::new());
    for record in records {
        let (reply, answer) = oneshot::channel();
        let payload = id_of(&record.body).unwrap();
        group.push(Append { record, payload, reply });
        answers.push(answer);
    }
    core.commit(group, publish);
    answers.into_iter().map(|mut answer| answer.try_recv().expect("every append is answered")).collect()
}

fn ids(records: &[ReplayedRecord]) -> Vec<u64> {
    records.iter().map(|record| id_of(&record.body).unwrap()).collect()
}

fn segment_files(fs: &SimFs) -> Vec<PathBuf> {
    use spanhouse_common::fs::Fs;
    fs.list(&dir()).unwrap().into_iter().filter(|name| name.ends_with(".wal")).map(|name| dir().join(name)).collect()
}

fn copy_file(from: &SimFs, to: &SimFs, path: &Path) {
    to.overwrite(path, &from.read(path).unwrap()).unwrap();
}

use spanhouse_common::time::Clock;

fn env_count(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}
