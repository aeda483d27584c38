//! Disks that fail, fill up or are read-only (R05 to R07), and records that crash replay.

use std::panic::{AssertUnwindSafe, catch_unwind};

use spanhouse_common::fs::Fs;
use spanhouse_common::fs::sim::{Faults, SimFs};

use super::*;

fn clock() -> Arc<ManualClock> {
    ManualClock::at(UnixNanos::from_seconds(1))
}

fn is_ready(core: &WalCore) -> bool {
    core.ready().load(std::sync::atomic::Ordering::SeqCst)
}

/// Breaks the disk for one group and expects the WAL to refuse it, seal the segment, wait, and go on in a new one.
fn fails_once(fault: impl Fn(&mut Faults)) -> (SimFs, WalError) {
    let (fs, clock, published) = (SimFs::new(1), clock(), Published::default());
    let (_, _, mut core) = replay_all(&fs, &small(), &clock);
    let first = commit(&mut core, vec![numbered(1, 50)], &published);
    let sealed = segment_files(&fs);
    fs.set_faults(&fault);
    let refused = commit(&mut core, vec![numbered(2, 50), numbered(3, 50)], &published);
    let why = refused[0].clone().unwrap_err();
    assert_eq!(refused[1], Err(why.clone()));
    assert!(!is_ready(&core));
    let len = fs.read(&sealed[0]).unwrap().len();
    // While the backoff runs, no new file is tried.
    assert_eq!(commit(&mut core, vec![numbered(4, 50)], &published), [Err(why.clone())]);
    assert_eq!(segment_files(&fs), sealed);
    fs.set_faults(|faults| *faults = Faults::default());
    clock.advance(Duration::from_secs(1));
    core.try_recover();
    assert!(is_ready(&core));
    let last = commit(&mut core, vec![numbered(5, 50)], &published);
    assert_eq!(segment_files(&fs).len(), 2);
    assert_eq!(fs.read(&sealed[0]).unwrap().len(), len, "a sealed segment is not written to");
    // The sequences of the failed group are not used again.
    let sequence = |answer: &Result<WalPosition, WalError>| answer.clone().unwrap().sequence;
    assert_eq!((sequence(&first[0]), sequence(&last[0])), (1, 4));
    let seen: Vec<u64> = published.0.lock().iter().map(|(_, id)| *id).collect();
    assert_eq!(seen, [1, 5]);
    drop(core);
    let after = fs.power_cut();
    let replayed = ids(&replay_all(&after, &small(), &clock).0);
    assert!(replayed.contains(&1) && replayed.contains(&5) && !replayed.contains(&4), "{replayed:?}");
    (fs, why)
}

#[test]
fn wal_failed_sync_acknowledges_nothing_and_seals_the_segment() {
    let (_, why) = fails_once(|faults| faults.fail_sync_after = Some(0));
    assert!(matches!(&why, WalError::Failed { why } if why.contains("cannot sync the WAL")), "{why}");
    assert!(why.is_retryable());
}

#[test]
fn wal_failed_write_acknowledges_nothing_and_seals_the_segment() {
    let (_, why) = fails_once(|faults| faults.fail_write_after = Some(0));
    assert!(matches!(why, WalError::Failed { .. }));
}

#[test]
fn wal_full_disk_is_said_and_left_behind_when_space_returns() {
    let (_, why) = fails_once(|faults| faults.capacity = Some(300));
    assert_eq!(why, WalError::Full);
}

#[test]
fn wal_read_only_disk_refuses_and_recovers() {
    let (_, why) = fails_once(|faults| faults.read_only = true);
    assert!(matches!(why, WalError::Failed { .. }));
}

#[test]
fn wal_failed_directory_sync_keeps_the_segment_out_of_use() {
    let (fs, clock, published) = (SimFs::new(1), clock(), Published::default());
    let (_, _, mut core) = replay_all(&fs, &small(), &clock);
    // The first sync of the directory is that of the epoch.
    fs.set_faults(|faults| faults.fail_sync_dir_after = Some(1));
    assert!(commit(&mut core, vec![numbered(1, 10)], &published)[0].is_err());
    assert_eq!(segment_files(&fs), [] as [&Path; 0]);
    clock.advance(Duration::from_secs(1));
    assert!(commit(&mut core, vec![numbered(2, 10)], &published)[0].is_ok());
    let name = segment_files(&fs)[0].to_string_lossy().into_owned();
    assert!(name.ends_with("-00000001.wal"), "{name}");
}

#[test]
fn wal_starts_and_replays_on_full_and_read_only_disks() {
    let faults: [fn(&mut Faults); 2] = [|faults| faults.capacity = Some(0), |faults| faults.read_only = true];
    for fault in faults {
        let (fs, clock, published) = (SimFs::new(1), clock(), Published::default());
        let (_, _, mut core) = replay_all(&fs, &small(), &clock);
        commit(&mut core, vec![numbered(1, 10), numbered(2, 10)], &published);
        drop(core);
        fs.set_faults(fault);
        let (records, _, mut core) = replay_all(&fs, &small(), &clock);
        assert_eq!(ids(&records), [1, 2]);
        core.try_recover();
        assert!(!is_ready(&core) && commit(&mut core, vec![numbered(3, 10)], &published)[0].is_err());
        fs.set_faults(|faults| *faults = Faults::default());
        clock.advance(Duration::from_secs(2));
        assert!(commit(&mut core, vec![numbered(3, 10)], &published)[0].is_ok());
    }
}

#[test]
fn wal_cap_refuses_until_records_are_released() {
    let (fs, clock, published) = (SimFs::new(1), clock(), Published::default());
    let config = WalConfig { max_bytes: 40 * 1024, ..small() };
    let (_, _, mut core) = replay_all(&fs, &config, &clock);
    let mut last = WalPosition::default();
    let refused = loop {
        match commit(&mut core, vec![numbered(5, 3000)], &published).remove(0) {
            Ok(position) => last = position,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, WalError::Capped { limit: 40 * 1024 });
    assert!(is_ready(&core) && core.segments().total_bytes() <= 40 * 1024);
    core.segments().release(&tenant(0), last);
    assert!(commit(&mut core, vec![numbered(5, 3000)], &published)[0].is_ok());
    let large = commit(&mut core, vec![numbered(5, 20_000), numbered(6, 10)], &published);
    assert!(matches!(large[0], Err(WalError::TooLarge { .. })) && large[1].is_ok());
}

#[test]
fn wal_of_an_idle_server_ends_empty() {
    let (fs, clock, published) = (SimFs::new(1), clock(), Published::default());
    let (_, _, mut core) = replay_all(&fs, &small(), &clock);
    commit(&mut core, vec![numbered(0, 10), numbered(1, 10)], &published);
    let upto = |sequence| WalPosition { epoch: 1, sequence };
    core.segments().release(&tenant(0), upto(2));
    clock.advance(Duration::from_secs(60));
    core.rotate_if_idle();
    assert_eq!(segment_files(&fs).len(), 1, "tenant 1 still needs it");
    core.segments().release(&tenant(1), upto(2));
    core.rotate_if_idle();
    assert_eq!((segment_files(&fs).len(), core.segments().total_bytes()), (0, 0));
    assert!(is_ready(&core));
    // The epoch is not used again although no file shows it.
    drop(core);
    assert_eq!(open_at(&fs, &small(), &clock).unwrap().epoch(), 2);
    let restored = open_at(&fs, &small(), &clock).unwrap();
    assert!(!restored.is_new());
    let (mut restored, _) = restored.replay(|_| Ok::<_, std::convert::Infallible>(())).unwrap();
    restored.raise_epoch(41);
    assert_eq!(restored.epoch(), 42);
}

/// Replays with a callback that crashes the process at `bad`.
fn crashing_replay(fs: &SimFs, bad: u64) -> Option<(Vec<u64>, ReplayReport)> {
    let mut seen = Vec::new();
    let opened = open_at(fs, &small(), &clock()).unwrap();
    let run = catch_unwind(AssertUnwindSafe(|| {
        opened.replay(|record| {
            let id = id_of(&record.body).unwrap();
            assert_ne!(id, bad, "boom");
            seen.push(id);
            Ok::<_, std::convert::Infallible>(())
        })
    }));
    run.ok().map(|done| (seen, done.unwrap().1))
}

#[test]
fn wal_record_that_crashes_replay_is_set_aside() {
    let (fs, clock, published) = (SimFs::new(1), clock(), Published::default());
    let (_, _, mut core) = replay_all(&fs, &small(), &clock);
    commit(&mut core, (0..10).map(|id| numbered(id, 10)).collect(), &published);
    drop(core);
    // One crash with no trace, two with the record in hand.
    assert!((0..3).all(|_| crashing_replay(&fs, 6).is_none()));
    let (seen, report) = crashing_replay(&fs, 6).unwrap();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 7, 8, 9]);
    assert_eq!(report.crashed, [WalPosition { epoch: 1, sequence: 7 }]);
    let (seen, report) = crashing_replay(&fs, 6).unwrap();
    assert_eq!((seen.len(), report.skipped, report.crashed.len()), (9, 1, 0));
    assert_eq!(fs.list(&dir().join("quarantine")).unwrap(), ["0000000000000001-0000000000000007.record"]);
}

#[test]
fn wal_replay_that_was_stopped_is_no_crash() {
    let (fs, clock, published) = (SimFs::new(1), clock(), Published::default());
    let (_, _, mut core) = replay_all(&fs, &small(), &clock);
    commit(&mut core, vec![numbered(0, 10), numbered(1, 10)], &published);
    drop(core);
    for _ in 0..4 {
        let stopped = open_at(&fs, &small(), &clock).unwrap().replay(|_| Err("stop"));
        assert!(matches!(stopped, Err(ReplayError::Stopped("stop"))));
    }
    assert_eq!(ids(&replay_all(&fs, &small(), &clock).0), [0, 1]);
}
