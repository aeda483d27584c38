//! The file system behind a small trait, so that power cuts and failing disks can be simulated.
//!
//! Owns: the [`Fs`] and [`FsFile`] traits, the machine's file system ([`RealFs`]), the data directory's lock
//! ([`DataDirLock`]), and for tests a simulated disk (`sim`). Does not own: what is in the files, nor when to sync them.
//!
//! Crash story. Three things are durable, and only by three calls: the bytes of a file after [`FsFile::sync_data`], the
//! names in a directory after [`Fs::sync_dir`] of that directory, and nothing else. A file whose bytes were synced but whose
//! directory was not can be gone after a power cut; a rename that was not synced can be undone. [`write_atomic`] is the
//! recipe for small files that are replaced as a whole.

mod lock;
mod real;
#[cfg(any(test, feature = "test-util"))]
pub mod sim;

use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

pub use lock::{DataDirLock, LockError};
pub use real::RealFs;

/// The calls of a file system that code with durability promises may use. Blocking: never call it on an async worker.
pub trait Fs: Send + Sync + fmt::Debug {
    /// Makes a new file for appending. Fails with `AlreadyExists` rather than touch an old one.
    fn create(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;

    /// Opens an existing file for appending and reading.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;

    /// Opens an existing file for reading only.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;

    /// Names of the files and directories in `dir`, sorted; names that are not UTF-8 are left out, we never make any.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Replaces `to` atomically. Both must be in one directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes `dir` and its missing parents, each durable in its parent before this returns.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Writes go to its end.
pub trait FsFile: Send + fmt::Debug {
    /// Writes all of `parts` in order at the end. After an error any part of them may be in the file.
    fn append(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Reads at `offset` until `buf` is full or the file ends; returns how many bytes.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Makes the bytes durable (`fdatasync`). An error is final: the kernel may have dropped the pages and marked them
    /// clean, so a second call can succeed over lost data.
    fn sync_data(&mut self) -> io::Result<()>;

    fn len(&self) -> io::Result<u64>;

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file to `len` bytes.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// Replaces `path` by `bytes` so that after a crash at any point it holds either its old content or all of the new one:
/// temporary file, sync, rename, sync of the directory. A leftover temporary file of an earlier crash is replaced.
pub fn write_atomic(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    match fs.remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs.create(&temporary)?;
    let written = file.append(&mut [IoSlice::new(bytes)]).and_then(|()| file.sync_data());
    drop(file);
    if let Err(error) = written.and_then(|()| fs.rename(&temporary, path)) {
        // On a full disk the half-written file would keep space nobody accounts for. The first error is the one to tell.
        let _ = fs.remove_file(&temporary);
        return Err(error);
    }
    fs.sync_dir(&parent_of(path))
}

/// The whole content of a small file, or `None` if there is no such file. Longer than `limit` bytes is `InvalidData`.
pub fn read_small(fs: &dyn Fs, path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match fs.open_read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.len()?;
    if len > limit as u64 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} has {len} bytes, at most {limit} expected", path.display()),
        ));
    }
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// The directory that holds the name of `path`.
fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::sim::SimFs;
    use super::*;

    /// What every implementation of the trait must do.
    fn contract(fs: &dyn Fs, root: &Path) {
        let dir = root.join("a/b");
        fs.create_dir_all(&dir).unwrap();
        fs.create_dir_all(&dir).unwrap();
        let path = dir.join("one");
        assert_eq!(fs.open_read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut file = fs.create(&path).unwrap();
        assert!(file.is_empty().unwrap());
        file.append(&mut [IoSlice::new(b"hello "), IoSlice::new(b""), IoSlice::new(b"world")]).unwrap();
        file.sync_data().unwrap();
        assert_eq!(fs.create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(file.len().unwrap(), 11);
        let mut buf = [0; 8];
        assert_eq!(file.read_at(6, &mut buf).unwrap(), 5);
        assert_eq!(&buf[..5], b"world");
        assert_eq!(file.read_at(11, &mut buf).unwrap(), 0);
        file.truncate(5).unwrap();
        file.append(&mut [IoSlice::new(b"!")]).unwrap();
        drop(file);
        let mut again = fs.open_append(&path).unwrap();
        again.append(&mut [IoSlice::new(b"?")]).unwrap();
        assert_eq!(read_small(fs, &path, 100).unwrap().unwrap(), b"hello!?");
        assert_eq!(read_small(fs, &path, 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(fs.open_read(&path).unwrap().append(&mut [IoSlice::new(b"no")]).is_err());

        write_atomic(fs, &dir.join("two"), b"2").unwrap();
        write_atomic(fs, &dir.join("two"), b"22").unwrap();
        assert_eq!(fs.list(&dir).unwrap(), ["one", "two"]);
        assert_eq!(fs.list(root).unwrap(), ["a"]);
        fs.rename(&dir.join("one"), &dir.join("two")).unwrap();
        fs.sync_dir(&dir).unwrap();
        assert_eq!(read_small(fs, &dir.join("two"), 100).unwrap().unwrap(), b"hello!?");
        fs.remove_file(&dir.join("two")).unwrap();
        assert_eq!(fs.remove_file(&dir.join("two")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(fs.list(&dir).unwrap(), [] as [&str; 0]);
        assert_eq!(fs.list(&root.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn fs_contract_of_the_real_disk() {
        let dir = tempfile::tempdir().unwrap();
        contract(&RealFs, dir.path());
    }

    #[test]
    fn fs_contract_of_the_simulated_disk() {
        contract(&SimFs::new(1), Path::new("/data"));
    }
}
