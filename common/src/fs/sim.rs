//! A simulated disk for tests: deterministic by seed, loses at a power cut whatever was not made durable, and fails on command.
//!
//! Every file keeps the bytes a reader sees and the prefix that is durable; every directory keeps its names, its durable names
//! and the changes between the two. [`SimFs::power_cut`] returns the disk as it is after the power comes back: of a file's
//! unsynced tail, a random subset of blocks (512 B or 4 KiB) survives, the others read as zeros or garbage or are cut off; of
//! a directory's unsynced changes, each survives or not on its own. After a failed sync the bytes it covered never become
//! durable, as on Linux: a later sync of that file succeeds and does nothing.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Fs, FsFile, parent_of};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// Faults to inject. A count of `Some(0)` fails the next such call, once.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub fail_write_after: Option<u64>,
    pub fail_sync_after: Option<u64>,
    pub fail_sync_dir_after: Option<u64>,
    /// Bytes the disk holds; beyond it writes end with ENOSPC after a part was written.
    pub capacity: Option<u64>,
    /// Every change fails with EROFS.
    pub read_only: bool,
    /// The power goes after this many further changing calls: the next one and all after it fail and change nothing durable.
    pub power_off_after: Option<u64>,
}

#[derive(Clone, Debug)]
enum Node {
    File(u64),
    Dir,
}

#[derive(Clone, Debug)]
enum Change {
    Put(String, Node),
    Remove(String),
    Rename(String, String, Node),
}

#[derive(Debug, Default)]
struct Dir {
    names: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    pending: Vec<Change>,
}

#[derive(Debug, Default)]
struct FileState {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Bytes from here on may differ from `durable`.
    dirty_from: usize,
    /// A sync failed: nothing more of this file ever becomes durable.
    poisoned: bool,
}

#[derive(Debug)]
struct Disk {
    rng: StdRng,
    dirs: BTreeMap<PathBuf, Dir>,
    files: BTreeMap<u64, FileState>,
    next_inode: u64,
    faults: Faults,
    off: bool,
}

/// A handle on the simulated disk; clones share it.
#[derive(Clone, Debug)]
pub struct SimFs(Arc<Mutex<Disk>>);

impl SimFs {
    pub fn new(seed: u64) -> Self {
        let dirs = BTreeMap::from([(PathBuf::from("/"), Dir::default())]);
        let rng = StdRng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(Disk {
            rng,
            dirs,
            files: BTreeMap::new(),
            next_inode: 1,
            faults: Faults::default(),
            off: false,
        })))
    }

    /// Changes which faults are injected from now on.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().faults);
    }

    /// Whether [`Faults::power_off_after`] has struck.
    pub fn is_off(&self) -> bool {
        self.0.lock().off
    }

    /// The disk after the power went and came back. Handles on the old one see the old one.
    pub fn power_cut(&self) -> Self {
        let mut old = self.0.lock();
        let seed: u64 = old.rng.random();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut dirs = BTreeMap::new();
        let mut files = BTreeMap::new();
        let mut reach = vec![PathBuf::from("/")];
        while let Some(path) = reach.pop() {
            let Some(dir) = old.dirs.get(&path) else { continue };
            let mut names = dir.durable.clone();
            for change in &dir.pending {
                if rng.random() {
                    change.apply(&mut names);
                }
            }
            for (name, node) in &names {
                match node {
                    Node::Dir => reach.push(path.join(name)),
                    Node::File(inode) => {
                        if let Some(file) = old.files.get(inode) {
                            files.insert(*inode, file.after_power_cut(&mut rng));
                        }
                    }
                }
            }
            dirs.insert(path, Dir { durable: names.clone(), names, pending: Vec::new() });
        }
        let next_inode = old.next_inode;
        // A cut during recovery must be as random as the first.
        let faults = Faults { capacity: old.faults.capacity, ..Faults::default() };
        Self(Arc::new(Mutex::new(Disk { rng, dirs, files, next_inode, faults, off: false })))
    }

    /// The bytes of a file as a reader sees them.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let disk = self.0.lock();
        let inode = disk.inode(path)?;
        Ok(disk.files.get(&inode).map(|file| file.bytes.clone()).unwrap_or_default())
    }

    /// Puts `bytes` into a file, durably and past all faults: how tests damage a disk.
    pub fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        let inode = match disk.inode(path) {
            Ok(inode) => inode,
            Err(_) => disk.link_new_file(path)?,
        };
        disk.files.insert(
            inode,
            FileState { bytes: bytes.to_vec(), durable: bytes.to_vec(), dirty_from: bytes.len(), poisoned: false },
        );
        let (dir, _) = split(path)?;
        disk.dir(&dir)?.sync();
        Ok(())
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, Node>) {
        match self {
            Self::Put(name, node) => {
                names.insert(name.clone(), node.clone());
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), node.clone());
            }
        }
    }
}

impl Dir {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        self.durable = self.names.clone();
        self.pending.clear();
    }
}

impl FileState {
    fn sync(&mut self) {
        if !self.poisoned {
            let keep = self.dirty_from.min(self.durable.len()).min(self.bytes.len());
            self.durable.truncate(keep);
            self.durable.extend_from_slice(&self.bytes[keep..]);
            self.dirty_from = self.bytes.len();
        }
    }

    fn after_power_cut(&self, rng: &mut StdRng) -> Self {
        let mut bytes = self.durable.clone();
        let truncated = self.dirty_from < self.durable.len();
        if truncated && rng.random() {
            // The truncation reached the disk, what was appended after it did not.
            bytes.truncate(self.dirty_from);
        } else if !truncated && self.bytes.len() > self.durable.len() && rng.random_range(0..4) > 0 {
            let tail = &self.bytes[self.durable.len()..];
            let block = if rng.random() { 512 } else { 4096 };
            let kept = match rng.random_range(0..3) {
                0 => tail.len(),
                1 => rng.random_range(0..=tail.len()),
                _ => (rng.random_range(0..=tail.len()) / block) * block,
            };
            // Sectors are what a disk writes at once: the boundaries are those of the file, not of the tail.
            let mut at = self.durable.len();
            let end = self.durable.len() + kept;
            let lose_none = rng.random();
            while at < end {
                let stop = ((at / block + 1) * block).min(end);
                match if lose_none { 0 } else { rng.random_range(0..4) } {
                    0 | 1 => bytes.extend_from_slice(&self.bytes[at..stop]),
                    2 => bytes.resize(stop, 0),
                    _ => bytes.extend((at..stop).map(|_| rng.random::<u8>())),
                }
                at = stop;
            }
        }
        let dirty_from = bytes.len();
        Self { durable: bytes.clone(), bytes, dirty_from, poisoned: false }
    }
}

fn split(path: &Path) -> io::Result<(PathBuf, String)> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok((parent_of(path), name.to_owned()))
}

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// Whether this call is the one to fail.
fn strikes(counter: &mut Option<u64>) -> bool {
    match counter {
        Some(0) => {
            *counter = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

impl Disk {
    /// Before every change: the power and the mount.
    fn changing(&mut self) -> io::Result<()> {
        if self.off || strikes(&mut self.faults.power_off_after) {
            self.off = true;
            return Err(os(EIO));
        }
        if self.faults.read_only { Err(os(EROFS)) } else { Ok(()) }
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn inode(&self, path: &Path) -> io::Result<u64> {
        let (dir, name) = split(path)?;
        match self.dirs.get(&dir).and_then(|dir| dir.names.get(&name)) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn link_new_file(&mut self, path: &Path) -> io::Result<u64> {
        let (parent, name) = split(path)?;
        let inode = self.next_inode;
        let dir = self.dir(&parent)?;
        if dir.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        dir.change(Change::Put(name, Node::File(inode)));
        self.next_inode += 1;
        self.files.insert(inode, FileState::default());
        Ok(inode)
    }

    /// Bytes of the files that still have a name.
    fn used(&self) -> u64 {
        let nodes = self.dirs.values().flat_map(|dir| dir.names.values());
        nodes
            .map(|node| if let Node::File(inode) = node { self.files.get(inode).map_or(0, |f| f.bytes.len()) } else { 0 })
            .sum::<usize>() as u64
    }
}

impl Fs for SimFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let mut disk = self.0.lock();
        disk.changing()?;
        let inode = disk.link_new_file(path)?;
        Ok(Box::new(SimFile { disk: Arc::clone(&self.0), inode, writable: true }))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let disk = self.0.lock();
        if disk.faults.read_only {
            return Err(os(EROFS));
        }
        Ok(Box::new(SimFile { disk: Arc::clone(&self.0), inode: disk.inode(path)?, writable: true }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let inode = self.0.lock().inode(path)?;
        Ok(Box::new(SimFile { disk: Arc::clone(&self.0), inode, writable: false }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        Ok(self.0.lock().dir(dir)?.names.keys().cloned().collect())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.inode(path)?;
        disk.changing()?;
        let (parent, name) = split(path)?;
        disk.dir(&parent)?.change(Change::Remove(name));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.changing()?;
        let node = Node::File(disk.inode(from)?);
        let ((parent, from), (other, to)) = (split(from)?, split(to)?);
        if parent != other {
            return Err(io::ErrorKind::Unsupported.into());
        }
        disk.dir(&parent)?.change(Change::Rename(from, to, node));
        Ok(())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<PathBuf> = {
            let disk = self.0.lock();
            dir.ancestors().filter(|path| !disk.dirs.contains_key(*path)).map(Path::to_path_buf).collect()
        };
        for path in missing.into_iter().rev() {
            let (parent, name) = split(&path)?;
            {
                let mut disk = self.0.lock();
                disk.changing()?;
                disk.dir(&parent)?.change(Change::Put(name, Node::Dir));
                disk.dirs.insert(path, Dir::default());
            }
            self.sync_dir(&parent)?;
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.changing()?;
        if strikes(&mut disk.faults.fail_sync_dir_after) {
            return Err(os(EIO));
        }
        disk.dir(dir)?.sync();
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
    writable: bool,
}

impl SimFile {
    fn with<T>(&self, call: impl FnOnce(&mut FileState) -> T) -> T {
        call(self.disk.lock().files.entry(self.inode).or_default())
    }
}

impl FsFile for SimFile {
    fn append(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let mut disk = self.disk.lock();
        let powered = disk.changing();
        if powered.is_err() && !disk.off {
            return powered;
        }
        let room = disk.faults.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used()));
        let failed = powered.is_err() || strikes(&mut disk.faults.fail_write_after);
        let (fits, error) = if failed {
            (disk.rng.random_range(0..=bytes.len()), Some(os(EIO)))
        } else if (bytes.len() as u64) > room {
            (room as usize, Some(os(ENOSPC)))
        } else {
            (bytes.len(), None)
        };
        disk.files.entry(self.inode).or_default().bytes.extend_from_slice(&bytes[..fits]);
        error.map_or(Ok(()), Err)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.with(|file| {
            let rest = file.bytes.get(offset as usize..).unwrap_or_default();
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        }))
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.changing()?;
        let fails = strikes(&mut disk.faults.fail_sync_after);
        let file = disk.files.entry(self.inode).or_default();
        if fails {
            file.poisoned = true;
            return Err(os(EIO));
        }
        file.sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|file| file.bytes.len() as u64))
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.disk.lock().changing()?;
        self.with(|file| {
            file.bytes.resize(len as usize, 0);
            file.dirty_from = file.dirty_from.min(len as usize);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(file: &mut dyn FsFile, bytes: &[u8]) -> io::Result<()> {
        file.append(&mut [IoSlice::new(bytes)])
    }

    #[test]
    fn fs_sim_power_cut_keeps_what_was_synced_and_sometimes_loses_the_rest() {
        let (mut lost_name, mut lost_tail, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let fs = SimFs::new(seed);
            fs.create_dir_all(Path::new("/d")).unwrap();
            let mut kept = fs.create(Path::new("/d/kept")).unwrap();
            append(&mut *kept, &[1; 700]).unwrap();
            kept.sync_data().unwrap();
            fs.sync_dir(Path::new("/d")).unwrap();
            append(&mut *kept, &[2; 9000]).unwrap();
            let mut unnamed = fs.create(Path::new("/d/unnamed")).unwrap();
            append(&mut *unnamed, b"synced").unwrap();
            unnamed.sync_data().unwrap();

            let after = fs.power_cut();
            let bytes = after.read(Path::new("/d/kept")).unwrap();
            assert_eq!(bytes[..700], [1; 700]);
            lost_tail += usize::from(bytes.len() == 700);
            torn += usize::from(bytes[700..].iter().any(|b| *b != 2));
            match after.read(Path::new("/d/unnamed")) {
                Ok(bytes) => assert_eq!(bytes, b"synced"),
                Err(_) => lost_name += 1,
            }
            let again = { SimFs::new(seed).power_cut() };
            assert_eq!(again.list(Path::new("/")).unwrap(), [] as [&str; 0]);
        }
        assert!(lost_name > 50 && lost_tail > 30 && torn > 30, "{lost_name} {lost_tail} {torn}");
    }

    #[test]
    fn fs_sim_bytes_of_a_failed_sync_never_become_durable() {
        for seed in 0..50 {
            let fs = SimFs::new(seed);
            let mut file = fs.create(Path::new("/f")).unwrap();
            fs.sync_dir(Path::new("/")).unwrap();
            fs.set_faults(|faults| faults.fail_sync_after = Some(0));
            append(&mut *file, b"gone").unwrap();
            assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(EIO));
            file.sync_data().unwrap();
            if fs.power_cut().read(Path::new("/f")).unwrap().is_empty() {
                return;
            }
        }
        panic!("the lying second sync was never caught");
    }

    #[test]
    fn fs_sim_injects_full_and_read_only_disks() {
        let fs = SimFs::new(7);
        fs.set_faults(|faults| faults.capacity = Some(10));
        let mut file = fs.create(Path::new("/f")).unwrap();
        assert_eq!(append(&mut *file, &[0; 11]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 10);
        fs.remove_file(Path::new("/f")).unwrap();
        let mut file = fs.create(Path::new("/g")).unwrap();
        append(&mut *file, &[0; 9]).unwrap();
        fs.set_faults(|faults| faults.read_only = true);
        assert_eq!(append(&mut *file, &[0; 1]).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(fs.create(Path::new("/h")).is_err() && fs.open_append(Path::new("/g")).is_err());
        assert_eq!(fs.read(Path::new("/g")).unwrap().len(), 9);
    }

    #[test]
    fn fs_sim_power_off_in_the_middle_of_a_sequence() {
        let fs = SimFs::new(3);
        fs.set_faults(|faults| faults.power_off_after = Some(1));
        let mut file = fs.create(Path::new("/f")).unwrap();
        assert!(append(&mut *file, b"x").is_err() && fs.is_off());
        assert!(file.sync_data().is_err() && fs.sync_dir(Path::new("/")).is_err());
    }
}
