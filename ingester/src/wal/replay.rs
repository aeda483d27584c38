//! Opening a WAL directory and reading it back.
//!
//! Owns: recovery of the identity, the order of replay, torn tails, quarantine. Does not own: what a record means, which
//! records a watermark covers (the callback skips them), limits (replay evaluates none).
//!
//! Memory: one record or one read chunk at a time. Nothing on disk is changed but `quarantine/` and `replay-progress`.

use std::collections::{HashMap, HashSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use spanhouse_common::fs::{Fs, write_atomic};
use spanhouse_common::id::{TenantId, WalPosition, WriterId};
use spanhouse_common::time::Clock;

use super::core::{CoreParts, WalCore};
use super::identity::{Found, Identity};
use super::metrics::WalMetrics;
use super::progress::Progress;
use super::record::RecordMeta;
use super::segment::{HEADER_BYTES, Item, SegmentHeader, SegmentId, SegmentReader};
use super::truncate::Segments;
use super::writer::Wal;
use super::{Publish, WalConfig};

const QUARANTINE: &str = "quarantine";

/// Why the directory could not be opened as a WAL.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Make the directory readable, and writable at the first start.
    #[error("cannot {doing} {}: {error}", .path.display())]
    Io { doing: &'static str, path: PathBuf, error: io::Error },
    /// Restore the `writer` file from a backup, or move the segments away and lose what is in them.
    #[error("{} is damaged or missing and no segment's header is intact: restore it, or move the segments away", .0.display())]
    IdentityLost(PathBuf),
    /// Somebody copied a segment here: move it back to where it belongs.
    #[error("segment {} belongs to writer {found}, this WAL to writer {expected}: move it away", .path.display())]
    Foreign { path: PathBuf, found: WriterId, expected: WriterId },
}

/// Why replay did not end. Everything is as it was; open again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError<E> {
    /// The disk does not give back what is on it: look at the disk.
    #[error("cannot read {} at replay: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    /// The callback said no.
    #[error(transparent)]
    Stopped(E),
}

/// A record as it was appended. The body is a slice of what was read at once, up to 256 KiB: copy it to keep it for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayedRecord {
    pub position: WalPosition,
    pub meta: RecordMeta,
    pub body: Bytes,
}

/// Bytes of a segment that are no record, with what was done about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub segment: PathBuf,
    pub range: Range<u64>,
    /// The copy; `None` if it could not be made, then the segment is kept.
    pub copy: Option<PathBuf>,
}

/// What replay found, for the log, `/status` and the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    pub segments: usize,
    pub records: u64,
    pub bytes: u64,
    /// Bytes after the last record of an epoch: a write that was cut short and never acknowledged.
    pub torn_bytes: u64,
    /// Damage elsewhere: records may be lost. Found again at each start until the segment goes.
    pub damage: Vec<Damage>,
    /// Records set aside now because they crashed replay twice.
    pub crashed: Vec<WalPosition>,
    /// Records left out because they were set aside earlier.
    pub skipped: u64,
}

/// A segment of an earlier epoch.
#[derive(Debug)]
struct Source {
    id: SegmentId,
    path: PathBuf,
    bytes: u64,
    header: Option<SegmentHeader>,
    /// Another file claims to be the same segment and has the right name.
    copy: bool,
}

/// A WAL that was opened and must be replayed before it takes records.
#[derive(Debug)]
pub struct Opened {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    config: WalConfig,
    clock: Arc<dyn Clock>,
    metrics: WalMetrics,
    identity: Identity,
    /// The identity was made by this start.
    is_new: bool,
    epoch: u64,
    sources: Vec<Source>,
}

/// Opens the WAL in `dir`, making it if need be. The caller holds the data directory's lock.
pub fn open(
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    config: WalConfig,
    clock: Arc<dyn Clock>,
    metrics: WalMetrics,
) -> Result<Opened, OpenError> {
    let failed = |doing, path: &Path| {
        let path = path.to_path_buf();
        move |error| OpenError::Io { doing, path, error }
    };
    fs.create_dir_all(&dir).map_err(failed("make WAL directory", &dir))?;
    let mut sources = Vec::new();
    let mut last_epoch = 0;
    for name in fs.list(&dir).map_err(failed("list WAL directory", &dir))? {
        let Some(named) = SegmentId::from_file_name(&name) else { continue };
        let path = dir.join(name);
        let file = fs.open_read(&path).map_err(failed("open", &path))?;
        let bytes = file.len().map_err(failed("read", &path))?;
        let mut head = [0; HEADER_BYTES];
        let read = file.read_at(0, &mut head).map_err(failed("read", &path))?;
        let header = SegmentHeader::decode(&head[..read]);
        // The header knows better: a file may have been renamed.
        let id = header.map_or(named, |header| header.id);
        last_epoch = last_epoch.max(id.epoch).max(named.epoch);
        sources.push((id != named, Source { id, path, bytes, header, copy: false }));
    }
    // Of two files that claim to be one segment the one with the right name comes first.
    sources.sort_by_key(|(renamed, source)| (source.id, *renamed));
    let mut sources: Vec<Source> = sources.into_iter().map(|(_, source)| source).collect();
    for at in 1..sources.len() {
        sources[at].copy = sources[at - 1].id == sources[at].id;
    }

    let path = dir.join(super::identity::FILE_NAME);
    let found = Identity::load(&*fs, &dir).map_err(failed("read", &path))?;
    let (identity, is_new) = match (found, sources.iter().find_map(|source| source.header)) {
        (Found::Intact(identity), _) => (identity, false),
        (_, None) if !sources.is_empty() => return Err(OpenError::IdentityLost(path)),
        (found, header) => {
            let mut identity = Identity::generate();
            if let Some(header) = header {
                identity.writer = header.writer;
                identity.epoch = last_epoch;
            }
            if header.is_some() || matches!(found, Found::Damaged) {
                tracing::warn!(path = %path.display(), writer = %identity.writer, "the WAL's writer file was damaged or missing and is made anew");
            }
            identity.save(&*fs, &dir).map_err(failed("write", &path))?;
            (identity, header.is_none())
        }
    };
    for source in &sources {
        if let Some(found) = source.header.map(|header| header.writer).filter(|writer| *writer != identity.writer) {
            return Err(OpenError::Foreign { path: source.path.clone(), found, expected: identity.writer });
        }
    }
    let epoch = identity.epoch.max(last_epoch) + 1;
    Ok(Opened { fs, dir, config, clock, metrics, identity, is_new, epoch, sources })
}

impl Opened {
    /// Who writes here: the name under which watermarks are kept.
    pub fn writer_id(&self) -> WriterId {
        self.identity.writer
    }

    /// Whether nobody can have written under this writer's id before.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The epoch of the records this process will append.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes that will be read by replay: it should take less than 10 s per GiB.
    pub fn bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.bytes).sum()
    }

    /// Hands every record to `record`, in order of epoch and sequence, each at most once. Only inside a damaged segment, whose
    /// pages may have changed places, is the order that of the file.
    pub fn replay<E>(
        self,
        mut record: impl FnMut(ReplayedRecord) -> Result<(), E>,
    ) -> Result<(Replayed, ReplayReport), ReplayError<E>> {
        let Self { fs, dir, config, clock, metrics, identity, is_new: _, epoch, sources } = self;
        let segments = Arc::new(Segments::new(Arc::clone(&fs), metrics.clone()));
        let mut report = ReplayReport { segments: sources.len(), ..ReplayReport::default() };
        let has_records = sources.iter().any(|source| source.bytes > HEADER_BYTES as u64);
        let (progress, suspects) = if has_records {
            let (progress, suspects) = Progress::begin(&fs, &dir);
            (Some(progress), suspects)
        } else {
            (None, HashSet::new())
        };
        let skip = quarantined_records(&*fs, &dir);
        let mut run = Run {
            fs: &*fs,
            dir: &dir,
            identity: &identity,
            metrics: &metrics,
            report: &mut report,
            progress,
            suspects,
            skip,
        };
        let mut replayed = Ok(());
        for (at, source) in sources.iter().enumerate() {
            let last_of_epoch = sources.get(at + 1).is_none_or(|after| after.id.epoch != source.id.epoch);
            match run.segment(source, last_of_epoch, &mut record) {
                Ok(SegmentEnd { tenants, pinned }) if !source.copy => {
                    segments.replayed(source.id, source.path.clone(), source.bytes, tenants, pinned);
                }
                Ok(SegmentEnd { pinned, .. }) => {
                    if !pinned {
                        // The copy is in quarantine; the next start finds it again if this fails.
                        let _ = fs.remove_file(&source.path);
                    }
                }
                Err(error) => {
                    replayed = Err(error);
                    break;
                }
            }
        }
        if let Some(progress) = run.progress.take() {
            progress.end();
        }
        replayed?;
        metrics.torn_bytes.inc_by(report.torn_bytes);
        Ok((Replayed { fs, dir, config, clock, metrics, identity, epoch, segments }, report))
    }
}

/// One replay under way.
struct Run<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    identity: &'a Identity,
    metrics: &'a WalMetrics,
    report: &'a mut ReplayReport,
    progress: Option<Progress>,
    suspects: HashSet<WalPosition>,
    skip: HashSet<WalPosition>,
}

struct SegmentEnd {
    tenants: HashMap<TenantId, u64>,
    /// Something in the segment is nowhere else and nobody will ask for it: keep the file.
    pinned: bool,
}

impl Run<'_> {
    fn segment<E>(
        &mut self,
        source: &Source,
        last_of_epoch: bool,
        record: &mut impl FnMut(ReplayedRecord) -> Result<(), E>,
    ) -> Result<SegmentEnd, ReplayError<E>> {
        let failed = |error| ReplayError::Io { path: source.path.clone(), error };
        let mut end = SegmentEnd { tenants: HashMap::new(), pinned: false };
        if last_of_epoch {
            self.settle(&source.path);
        }
        let salt = source.header.map_or_else(|| self.identity.secret.salt(source.id), |header| header.salt);
        let file = self.fs.open_read(&source.path).map_err(failed)?;
        let header_bytes = HEADER_BYTES as u64;
        // Of a damaged header nobody knows where it ends.
        let from = if source.header.is_some() { header_bytes } else { 0 };
        let mut reader = SegmentReader::new(file, from, salt, source.id.epoch).map_err(failed)?;
        if source.copy {
            end.pinned = !self.damage(source, &reader, 0..source.bytes);
            return Ok(end);
        }
        if source.header.is_none() && source.bytes <= header_bytes {
            // A crash while it was made: nothing was ever written behind the header.
            self.report.torn_bytes += source.bytes;
            return Ok(end);
        }
        loop {
            match reader.next().map_err(failed)? {
                Item::Record { position, meta, frame, body } => {
                    if self.skip.contains(&position) {
                        self.report.skipped += 1;
                        continue;
                    }
                    if self.suspects.contains(&position) {
                        end.pinned |= !self.set_aside(position, &frame);
                        continue;
                    }
                    if let Some(progress) = &mut self.progress {
                        progress.about_to(position);
                    }
                    let highest = end.tenants.entry(meta.tenant.clone()).or_default();
                    *highest = position.sequence.max(*highest);
                    self.report.records += 1;
                    self.report.bytes += frame.len() as u64;
                    drop(frame);
                    record(ReplayedRecord { position, meta, body }).map_err(ReplayError::Stopped)?;
                    self.metrics.replayed_records.inc();
                }
                Item::Damage(range) => end.pinned |= !self.damage(source, &reader, range),
                Item::Tail(range) => {
                    // With records behind it a header was synced: it can be damaged but not torn.
                    if last_of_epoch && source.header.is_some() {
                        self.report.torn_bytes += range.end - range.start;
                    } else if !range.is_empty() {
                        // The writer went on in another segment, so it had synced this one, or a sync of it failed.
                        end.pinned |= !self.damage(source, &reader, range);
                    }
                    return Ok(end);
                }
            }
        }
    }

    /// After a kill the last records may be in memory only: what replay shows must not vanish at a power cut after it. Without
    /// success nothing acknowledged is at risk, so errors (a read-only disk) do not matter.
    fn settle(&self, path: &Path) {
        if let Err(error) = self.fs.open_append(path).and_then(|mut file| file.sync_data()) {
            tracing::warn!(path = %path.display(), %error, "cannot sync a WAL segment before its replay");
        }
    }

    /// Copies a damaged range to quarantine and tells. Whether there is a copy.
    fn damage(&mut self, source: &Source, reader: &SegmentReader, range: Range<u64>) -> bool {
        let stem = source.path.file_stem().unwrap_or_default().to_string_lossy();
        let target = self.dir.join(QUARANTINE).join(format!("{stem}-{:016x}.bad", range.start));
        let copied = self.copy_range(reader, range.clone(), &target);
        if let Err(error) = &copied {
            tracing::warn!(%error, copy = %target.display(), "cannot set damaged WAL bytes aside; the segment is kept");
        }
        tracing::error!(
            segment = %source.path.display(), from = range.start, to = range.end,
            "damaged bytes in the WAL: no record in this range, acknowledged or not, is replayed"
        );
        self.metrics.quarantined_bytes.inc_by(range.end - range.start);
        let copy = copied.is_ok().then_some(target);
        let has_copy = copy.is_some();
        self.report.damage.push(Damage { segment: source.path.clone(), range, copy });
        has_copy
    }

    fn copy_range(&self, reader: &SegmentReader, range: Range<u64>, target: &Path) -> io::Result<()> {
        let dir = self.dir.join(QUARANTINE);
        self.fs.create_dir_all(&dir)?;
        match self.fs.open_read(target) {
            // An earlier start made it.
            Ok(made) if made.len()? == range.end - range.start => return Ok(()),
            Ok(_) => self.fs.remove_file(target)?,
            Err(_) => {}
        }
        let mut file = self.fs.create(target)?;
        let copied = reader
            .copy(range, |chunk| file.append(&mut [IoSlice::new(chunk)]))
            .and_then(|()| file.sync_data())
            .and_then(|()| self.fs.sync_dir(&dir));
        if copied.is_err() {
            let _ = self.fs.remove_file(target);
        }
        copied
    }

    /// Puts a record that crashed replay twice into quarantine. Whether that worked; it is left out in any case.
    fn set_aside(&mut self, position: WalPosition, frame: &Bytes) -> bool {
        let dir = self.dir.join(QUARANTINE);
        let target = dir.join(record_file_name(position));
        let saved = self.fs.create_dir_all(&dir).and_then(|()| write_atomic(self.fs, &target, frame));
        tracing::error!(%position, copy = %target.display(), "a WAL record crashed replay twice and is set aside");
        if let Err(error) = &saved {
            tracing::warn!(%error, "cannot write the copy; the segment is kept");
        }
        self.metrics.quarantined_records.inc();
        self.report.crashed.push(position);
        saved.is_ok()
    }
}

fn record_file_name(position: WalPosition) -> String {
    format!("{:016x}-{:016x}.record", position.epoch, position.sequence)
}

/// Positions of the records that were set aside. None if the directory cannot be read: then the record crashes replay again
/// and is found again.
fn quarantined_records(fs: &dyn Fs, dir: &Path) -> HashSet<WalPosition> {
    let parse = |name: &String| {
        let (epoch, sequence) = name.strip_suffix(".record")?.split_once('-')?;
        Some(WalPosition { epoch: u64::from_str_radix(epoch, 16).ok()?, sequence: u64::from_str_radix(sequence, 16).ok()? })
    };
    fs.list(&dir.join(QUARANTINE)).unwrap_or_default().iter().filter_map(parse).collect()
}

/// A WAL that was replayed and can take records.
#[derive(Debug)]
pub struct Replayed {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    config: WalConfig,
    clock: Arc<dyn Clock>,
    metrics: WalMetrics,
    identity: Identity,
    epoch: u64,
    segments: Arc<Segments>,
}

impl Replayed {
    pub fn writer_id(&self) -> WriterId {
        self.identity.writer
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Makes the epoch higher than one known from elsewhere. Call it with the highest epoch of this writer's watermarks: a data
    /// directory restored from a backup would otherwise use positions again that the manifest calls committed.
    pub fn raise_epoch(&mut self, above: u64) {
        self.epoch = self.epoch.max(above.saturating_add(1));
    }

    /// Starts the writer thread. Fails only if the system gives no thread; a disk that cannot be written shows in
    /// [`Wal::is_ready`].
    pub fn start<P: Send + 'static>(self, publish: impl Publish<P> + 'static) -> io::Result<Wal<P>> {
        let (writer, epoch, config) = (self.identity.writer, self.epoch, self.config.clone());
        Wal::spawn(self.into_core(), writer, epoch, &config, publish)
    }

    pub(super) fn into_core(self) -> WalCore {
        let Self { fs, dir, config, clock, metrics, identity, epoch, segments } = self;
        // Replayed segments without a single record.
        segments.sweep();
        WalCore::new(CoreParts { fs, dir, config, clock, metrics, segments, identity, epoch })
    }
}
