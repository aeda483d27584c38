//! Bytes on their way through a merge: in memory while few, else in a file without a name, which goes with the process.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use spanhouse_common::block::merge::FileBytes;

/// Kept in memory up to here.
const IN_MEMORY: usize = 4 << 20;

/// Written to the file at once.
const CHUNK: usize = 1 << 20;

/// A growing sequence of bytes with its checksum.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    /// Everything, or what is not in the file yet.
    buffer: Vec<u8>,
    file: Option<File>,
    in_file: u64,
    crc32c: u32,
}

/// A finished spool.
pub(super) struct Spooled {
    pub(super) bytes: FileBytes,
    pub(super) crc32c: u32,
}

impl Spool {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, buffer: Vec::new(), file: None, in_file: 0, crc32c: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.in_file + self.buffer.len() as u64
    }

    /// Forgets what came after `length`; the checksum is then of no use.
    pub(super) fn truncate(&mut self, length: u64) -> io::Result<()> {
        if length >= self.in_file {
            self.buffer.truncate((length - self.in_file) as usize);
            return Ok(());
        }
        self.buffer.clear();
        if let Some(file) = &mut self.file {
            use std::io::{Seek, SeekFrom};
            file.set_len(length)?;
            file.seek(SeekFrom::Start(length))?;
        }
        self.in_file = length;
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<Spooled> {
        let crc32c = self.crc32c;
        if self.file.is_none() {
            return Ok(Spooled { bytes: FileBytes::Memory(self.buffer.into()), crc32c });
        }
        self.spill()?;
        let Some(file) = self.file else { return Err(io::ErrorKind::NotFound.into()) };
        Ok(Spooled { bytes: FileBytes::Local { file: Arc::new(file), offset: 0, length: self.in_file }, crc32c })
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            slot => {
                std::fs::create_dir_all(&self.dir)?;
                slot.insert(tempfile::tempfile_in(&self.dir)?)
            }
        };
        file.write_all(&self.buffer)?;
        self.in_file += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(2 * CHUNK);
        Ok(())
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        self.buffer.extend_from_slice(bytes);
        let most = if self.file.is_some() { CHUNK } else { IN_MEMORY };
        if self.buffer.len() > most {
            self.spill()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_whatever_its_size() {
        let dir = tempfile::tempdir().unwrap();
        for (size, cut) in [(0, 0), (1000, 10), (IN_MEMORY + 5, IN_MEMORY), (IN_MEMORY * 3 / 2, 7)] {
            let all: Vec<u8> = (0..size).map(|at| (at / 3 % 251) as u8).collect();
            let mut spool = Spool::new(dir.path().join("spool"));
            all.chunks(100_003).for_each(|part| spool.write_all(part).unwrap());
            assert_eq!(spool.len(), size as u64);
            spool.truncate(cut as u64).unwrap();
            spool.write_all(&all[cut..]).unwrap();
            let done = spool.finish().unwrap();
            assert_eq!(done.bytes.len(), size as u64);
            assert!(done.bytes.read(0..size as u64).unwrap() == all);
            let mut plain = Spool::new(dir.path().to_owned());
            plain.write_all(&all).unwrap();
            assert_eq!(plain.finish().unwrap().crc32c, crc32c::crc32c(&all));
        }
        let left = std::fs::read_dir(dir.path().join("spool")).unwrap().count();
        assert_eq!(left, 0, "files with names are left");
    }
}
