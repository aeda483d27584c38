//! The `replay-progress` file: finds the record that makes replay crash.
//!
//! A first attempt writes only that it started. If a start finds that an attempt did not end, its own attempt is careful:
//! before a record is handed out, its position is appended. A record that was in hand at the end of two careful attempts has
//! crashed replay twice and is a suspect; one is not enough, or a second kill -9 during a long replay could cost an innocent
//! record its place.
//!
//! Crash story: this is about crashes of the process, which keep what was written without any sync; a power cut may lose
//! entries, and then one more crash is needed. Errors of this file are logged and otherwise ignored: a full disk must not
//! keep replay from running.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spanhouse_common::fs::{Fs, FsFile, read_small, write_atomic};
use spanhouse_common::id::WalPosition;

use super::record::{u32_at, u64_at};

pub(super) const FILE_NAME: &str = "replay-progress";
const ENTRY_BYTES: usize = 24;
const STARTED: u32 = 1;
const IN_HAND: u32 = 2;
const ENDED: u32 = 3;
/// Entries of one attempt before it starts over: bounds the file.
const MAX_GROWTH_BYTES: u64 = 1024 * 1024;
/// Attempts remembered.
const MAX_ATTEMPTS: usize = 16;
const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Progress {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    /// Present in careful mode.
    file: Option<Box<dyn FsFile>>,
    base_bytes: u64,
    written_bytes: u64,
}

impl Progress {
    /// Notes that an attempt starts. Returns the records that crashed replay twice.
    pub(super) fn begin(fs: &Arc<dyn Fs>, dir: &Path) -> (Self, HashSet<WalPosition>) {
        let path = dir.join(FILE_NAME);
        let mut attempts = match read_small(&**fs, &path, MAX_FILE_BYTES) {
            Ok(bytes) => parse(&bytes.unwrap_or_default()),
            Err(error) => {
                tracing::warn!(%error, "cannot read the replay progress; a record that crashes replay is found later");
                Vec::new()
            }
        };
        attempts.drain(..attempts.len().saturating_sub(MAX_ATTEMPTS - 1));
        let suspects = suspects(&attempts);
        let careful = !attempts.is_empty();
        attempts.push(None);
        let mut bytes = Vec::new();
        for attempt in &attempts {
            bytes.extend_from_slice(&entry(STARTED, WalPosition::default()));
            bytes.extend(attempt.iter().flat_map(|position| entry(IN_HAND, *position)));
        }
        let written = write_atomic(&**fs, &path, &bytes);
        let file = written.and_then(|()| if careful { fs.open_append(&path).map(Some) } else { Ok(None) });
        let file = file.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot write the replay progress; a record that crashes replay would not be found");
            None
        });
        (Self { fs: Arc::clone(fs), path, file, base_bytes: bytes.len() as u64, written_bytes: 0 }, suspects)
    }

    /// The record at `position` is handed out next.
    pub(super) fn about_to(&mut self, position: WalPosition) {
        let Some(file) = &mut self.file else { return };
        let mut write = || -> io::Result<()> {
            if self.written_bytes >= MAX_GROWTH_BYTES {
                file.truncate(self.base_bytes)?;
                self.written_bytes = 0;
            }
            file.append(&mut [IoSlice::new(&entry(IN_HAND, position))])?;
            self.written_bytes += ENTRY_BYTES as u64;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "cannot write the replay progress");
            self.file = None;
        }
    }

    /// The attempt ended without a crash, well or not.
    pub(super) fn end(mut self) {
        // If the file cannot be removed, or comes back at a power cut, the last record must not pass for a suspect: hence the
        // entry, and hence the sync of the directory.
        let said = self
            .file
            .as_mut()
            .map_or(Ok(()), |file| file.append(&mut [IoSlice::new(&entry(ENDED, WalPosition::default()))]));
        let dir = self.path.parent().unwrap_or(Path::new("."));
        if let Err(error) = said.and(self.fs.remove_file(&self.path)).and_then(|()| self.fs.sync_dir(dir)) {
            tracing::warn!(%error, "cannot remove the replay progress; the next replay is slower than it need be");
        }
    }
}

fn entry(kind: u32, position: WalPosition) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    out[4..8].copy_from_slice(&kind.to_le_bytes());
    out[8..16].copy_from_slice(&position.epoch.to_le_bytes());
    out[16..].copy_from_slice(&position.sequence.to_le_bytes());
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Per attempt, the record it had in hand last. Stops at the first entry that is not intact.
fn parse(bytes: &[u8]) -> Vec<Option<WalPosition>> {
    let mut attempts: Vec<Option<WalPosition>> = Vec::new();
    for raw in bytes.chunks_exact(ENTRY_BYTES) {
        let intact = u32_at(raw, 0) == Some(crc32c::crc32c(&raw[4..]));
        let position = u64_at(raw, 8).zip(u64_at(raw, 16)).map(|(epoch, sequence)| WalPosition { epoch, sequence });
        match (intact, u32_at(raw, 4), attempts.last_mut()) {
            (true, Some(STARTED), _) => attempts.push(None),
            (true, Some(IN_HAND), Some(last)) => *last = position,
            (true, Some(ENDED), Some(last)) => *last = None,
            _ => break,
        }
    }
    attempts
}

fn suspects(attempts: &[Option<WalPosition>]) -> HashSet<WalPosition> {
    let mut once = HashSet::new();
    attempts.iter().flatten().filter(|position| !once.insert(**position)).copied().collect()
}

#[cfg(test)]
mod tests {
    use spanhouse_common::fs::sim::SimFs;

    use super::*;

    #[test]
    fn wal_progress_suspects_what_two_careful_attempts_ended_in() {
        let fs: Arc<dyn Fs> = Arc::new(SimFs::new(1));
        let at = |sequence| WalPosition { epoch: 1, sequence };
        let attempt = |crash_at: u64| {
            let (mut progress, suspects) = Progress::begin(&fs, Path::new("/"));
            (1..=crash_at).for_each(|sequence| progress.about_to(at(sequence)));
            suspects
        };
        assert_eq!(attempt(7), HashSet::new());
        assert_eq!(attempt(7), HashSet::new());
        assert_eq!(attempt(3), HashSet::new());
        // Only now has 7 been seen in hand twice: the first attempt wrote no positions.
        assert_eq!(attempt(7), HashSet::new());
        let (progress, suspects) = Progress::begin(&fs, Path::new("/"));
        assert_eq!(suspects, HashSet::from([at(7)]));
        progress.end();
        assert_eq!(attempt(7), HashSet::new());
    }

    #[test]
    fn wal_progress_that_cannot_be_removed_makes_no_suspects() {
        let fs = SimFs::new(1);
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        for _ in 0..5 {
            let (mut progress, suspects) = Progress::begin(&shared, Path::new("/"));
            assert_eq!(suspects, HashSet::new());
            progress.about_to(WalPosition { epoch: 1, sequence: 9 });
            let left = fs.read(Path::new("/replay-progress")).unwrap();
            progress.end();
            // As if the removal were undone after the last entry had reached the disk.
            let ended = entry(ENDED, WalPosition::default());
            fs.overwrite(Path::new("/replay-progress"), &[&left[..], &ended].concat()).unwrap();
        }
    }
}
