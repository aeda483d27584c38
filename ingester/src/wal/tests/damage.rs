//! Torn tails and damage in the middle (R08, R09): intact records stay, nothing wrong comes out, the bad bytes are set aside.
//!
//! `SPANHOUSE_WAL_MUTATIONS` sets the number of random mutations.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use spanhouse_common::fs::Fs;
use spanhouse_common::fs::sim::SimFs;

use super::super::segment::HEADER_BYTES;
use super::*;

fn clock() -> Arc<ManualClock> {
    ManualClock::at(UnixNanos::from_seconds(1))
}

/// Where a record lies.
#[derive(Clone, Debug)]
struct Place {
    id: u64,
    file: usize,
    range: Range<usize>,
}

/// A WAL of two epochs, three segments and one, and where each record lies.
fn sample(records: u64, len: usize) -> (SimFs, Vec<PathBuf>, Vec<Place>) {
    let fs = SimFs::new(5);
    let config = WalConfig { segment_bytes: 4096, ..small() };
    let mut places = Vec::new();
    for epoch in 0..2 {
        let (_, _, mut core) = replay_all(&fs, &config, &clock());
        for id in records * epoch..records * (epoch + 1) {
            let record = numbered(id, len + id as usize % 60);
            let answers = commit(&mut core, vec![record], &Published::default());
            assert!(answers[0].is_ok());
            let files = segment_files(&fs);
            let file = files.len() - 1;
            let end = fs.read(&files[file]).unwrap().len();
            let start = match places.last() {
                Some(Place { file: last, range, .. }) if *last == file => range.end,
                _ => HEADER_BYTES,
            };
            places.push(Place { id, file, range: start..end });
        }
    }
    (fs.clone(), segment_files(&fs), places)
}

/// A disk with the same identity and these segment files.
fn disk(from: &SimFs, files: &[(PathBuf, Vec<u8>)]) -> SimFs {
    let fs = SimFs::new(9);
    fs.create_dir_all(&dir()).unwrap();
    copy_file(from, &fs, &dir().join("writer"));
    for (path, bytes) in files {
        fs.overwrite(path, bytes).unwrap();
    }
    fs
}

#[test]
fn wal_tail_torn_at_every_byte_keeps_exactly_the_intact_records() {
    let (from, files, places) = sample(12, 40);
    let last = files.len() - 1;
    let bytes: Vec<Vec<u8>> = files.iter().map(|path| from.read(path).unwrap()).collect();
    for cut in 0..=bytes[last].len() {
        let torn: Vec<(PathBuf, Vec<u8>)> = files
            .iter()
            .cloned()
            .zip(bytes.iter().enumerate().map(|(at, b)| b[..if at == last { cut } else { b.len() }].to_vec()))
            .collect();
        let fs = disk(&from, &torn);
        let (records, report, mut core) = replay_all(&fs, &small(), &clock());
        let intact: Vec<&Place> = places.iter().filter(|place| place.file != last || place.range.end <= cut).collect();
        assert_eq!(ids(&records), intact.iter().map(|place| place.id).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!(report.damage, []);
        let kept = intact.last().filter(|place| place.file == last).map_or(HEADER_BYTES, |place| place.range.end);
        assert_eq!(report.torn_bytes as usize, if cut < HEADER_BYTES { cut } else { cut - kept });
        assert!(commit(&mut core, vec![numbered(999, 10)], &Published::default())[0].is_ok());
    }
}

/// Changes the files at random; returns which records it touched.
fn mutate(rng: &mut StdRng, files: &mut Vec<(PathBuf, Vec<u8>)>, places: &[Place]) -> Vec<u64> {
    let file = rng.random_range(0..files.len());
    let bytes = &mut files[file].1;
    let at = rng.random_range(0..bytes.len());
    let len = rng.random_range(1..=(bytes.len() - at).min(700));
    let touched: Range<usize> = match rng.random_range(0..11) {
        0 | 1 => {
            bytes[at] ^= 1 << rng.random_range(0..8);
            at..at + 1
        }
        2 => {
            let page = at / 512 * 512..(at / 512 * 512 + 512).min(bytes.len());
            bytes[page.clone()].fill(0);
            page
        }
        3 => {
            let noise: Vec<u8> = (0..len).map(|_| rng.random()).collect();
            bytes[at..at + len].copy_from_slice(&noise);
            at..at + len
        }
        4 => {
            bytes.drain(at..at + len);
            at..at + len
        }
        5 => {
            let noise: Vec<u8> = (0..len).map(|_| rng.random()).collect();
            bytes.splice(at..at, noise);
            // Between two records nothing is touched.
            if places.iter().any(|p| p.file == file && (p.range.start == at || p.range.end == at)) {
                at..at
            } else {
                at..at + 1
            }
        }
        6 => {
            // Two pages swapped: every record in either is touched.
            let pages = bytes.len() / 512;
            let (a, b) = (rng.random_range(0..pages) * 512, rng.random_range(0..pages) * 512);
            for n in 0..512 {
                bytes.swap(a + n, b + n);
            }
            let hit =
                |p: &&Place| p.file == file && a != b && [a, b].iter().any(|s| p.range.start < s + 512 && *s < p.range.end);
            return places.iter().filter(hit).map(|p| p.id).collect();
        }
        7 => {
            bytes.truncate(at);
            at..usize::MAX
        }
        8 => {
            files.remove(file);
            0..usize::MAX
        }
        9 => {
            // The same segment under a second name.
            let copy = (dir().join(format!("0000000000000001-{:08x}.wal", 77)), bytes.clone());
            files.push(copy);
            0..0
        }
        _ => {
            let other = rng.random_range(0..files.len());
            let name = files[file].0.clone();
            files[file].0 = std::mem::replace(&mut files[other].0, name);
            0..0
        }
    };
    let hit = |p: &&Place| p.file == file && p.range.start < touched.end && touched.start < p.range.end;
    places.iter().filter(hit).map(|place| place.id).collect()
}

#[test]
fn wal_damage_costs_no_more_than_the_records_it_touches() {
    let (from, paths, places) = sample(60, 150);
    assert!(paths.len() >= 4);
    let sent = |id: u64| numbered(id, 150 + id as usize % 60);
    for seed in 0..env_count("SPANHOUSE_WAL_MUTATIONS", 1000) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut files: Vec<(PathBuf, Vec<u8>)> = paths.iter().map(|path| (path.clone(), from.read(path).unwrap())).collect();
        let touched = mutate(&mut rng, &mut files, &places);
        let fs = disk(&from, &files);
        let (records, report, core) = replay_all(&fs, &small(), &clock());
        let mut positions: Vec<WalPosition> = records.iter().map(|record| record.position).collect();
        assert!(!report.damage.is_empty() || positions.is_sorted(), "seed {seed}");
        positions.sort_unstable();
        assert!(positions.windows(2).all(|pair| pair[0] < pair[1]), "seed {seed}: a record came out twice");
        for record in &records {
            let sent = sent(id_of(&record.body).unwrap());
            assert_eq!((&record.meta, &record.body), (&sent.meta, &sent.body), "seed {seed}");
        }
        let found = ids(&records);
        let lost: Vec<u64> = places.iter().map(|p| p.id).filter(|id| !found.contains(id) && !touched.contains(id)).collect();
        assert_eq!(lost, [] as [u64; 0], "seed {seed}: lost but not touched");
        for damage in &report.damage {
            let copy = fs.read(damage.copy.as_ref().unwrap()).unwrap();
            assert_eq!(copy.len() as u64, damage.range.end - damage.range.start, "seed {seed}");
        }
        // The next start finds the same, and new epochs do not collide with what is there.
        drop(core);
        let (again, second, mut core) = replay_all(&fs, &small(), &clock());
        assert_eq!((again, second.records), (records, report.records), "seed {seed}");
        assert!(commit(&mut core, vec![sent(1000)], &Published::default())[0].is_ok());
    }
}

#[test]
fn wal_damage_cannot_bring_out_a_record_hidden_in_a_body() {
    // Tenant 1 sends, as a body, the bytes of a whole segment of this WAL's format, valid but for the secret.
    let (other, paths, _) = sample(5, 50);
    let fs = SimFs::new(1);
    let (_, _, mut core) = replay_all(&fs, &small(), &clock());
    let mut hostile = numbered(1, 0);
    hostile.body = [&1u64.to_le_bytes()[..], &other.read(&paths[0]).unwrap()[HEADER_BYTES..]].concat().into();
    for record in [numbered(0, 10), hostile, numbered(2, 10)] {
        assert!(commit(&mut core, vec![record], &Published::default())[0].is_ok());
    }
    let path = segment_files(&fs).remove(0);
    let mut bytes = fs.read(&path).unwrap();
    let first = super::super::record::frame_len(&bytes[HEADER_BYTES..], core_salt(&bytes)).unwrap();
    bytes[HEADER_BYTES + first + 20] ^= 1;
    fs.overwrite(&path, &bytes).unwrap();
    let (records, report, _) = replay_all(&fs, &small(), &clock());
    assert_eq!(ids(&records), [0, 2]);
    assert_eq!(report.damage.len(), 1);
}

fn core_salt(segment: &[u8]) -> super::super::record::Salt {
    super::super::segment::SegmentHeader::decode(segment).unwrap().salt
}

#[test]
fn wal_identity_lost_is_recovered_from_the_segments() {
    let (from, paths, places) = sample(10, 50);
    let writer = open_at(&from, &small(), &clock()).unwrap().writer_id();
    let files: Vec<_> = paths.iter().map(|path| (path.clone(), from.read(path).unwrap())).collect();
    for damage in [Some(&b"rubbish"[..]), None] {
        let fs = disk(&from, &files);
        match damage {
            Some(bytes) => fs.overwrite(&dir().join("writer"), bytes).unwrap(),
            None => fs.remove_file(&dir().join("writer")).unwrap(),
        }
        let opened = open_at(&fs, &small(), &clock()).unwrap();
        assert_eq!((opened.writer_id(), opened.epoch()), (writer, 3));
        let (records, report, mut core) = replay_all(&fs, &small(), &clock());
        assert_eq!((records.len(), report.damage.len()), (places.len(), 0));
        assert!(commit(&mut core, vec![numbered(99, 10)], &Published::default())[0].is_ok());
        assert_eq!(replay_all(&fs, &small(), &clock()).0.len(), places.len() + 1);
    }
    let fs = disk(&from, &[(paths[0].clone(), vec![0; 200])]);
    fs.overwrite(&dir().join("writer"), b"rubbish").unwrap();
    assert!(matches!(open_at(&fs, &small(), &clock()), Err(OpenError::IdentityLost(_))));
    let fs = disk(&sample(1, 1).0, &files);
    assert!(matches!(open_at(&fs, &small(), &clock()), Err(OpenError::Foreign { .. })));
}
