//! One process per data directory: an advisory lock the kernel drops when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Why the data directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Stop the other process, or give this one its own directory.
    #[error("data directory {} is in use by another process: stop it, or start this one with another directory", .0.display())]
    Held(PathBuf),
    /// Make the directory writable for this user.
    #[error("cannot lock data directory {}: {error}", .dir.display())]
    Io { dir: PathBuf, error: io::Error },
}

/// Holds the data directory until dropped. The file stays: removing it would let two processes lock two files of one name.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

impl DataDirLock {
    /// Takes the lock on `<dir>/lock`, making both if need be, or says who is in the way. Never waits.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let io = |error| LockError::Io { dir: dir.to_path_buf(), error };
        std::fs::create_dir_all(dir).map_err(io)?;
        let path = dir.join("lock");
        // On a read-only disk an existing file can still be locked, so that queries are served from it.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .or_else(|error| if error.kind() == io::ErrorKind::ReadOnlyFilesystem { File::open(&path) } else { Err(error) })
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held(dir.to_path_buf())),
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fs_lock_is_exclusive_and_ends_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let held = DataDirLock::acquire(&data).unwrap();
        assert!(matches!(DataDirLock::acquire(&data), Err(LockError::Held(_))));
        drop(held);
        DataDirLock::acquire(&data).unwrap();
    }
}
