//! The bytes of an input: a file that was brought here whole, in memory or on the local disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

/// A finished block file that can be read anywhere at once, without the network.
#[derive(Clone, Debug)]
pub enum FileBytes {
    Memory(Bytes),
    /// A stretch of a local file, which nobody changes any more.
    Local {
        file: Arc<File>,
        offset: u64,
        length: u64,
    },
}

impl FileBytes {
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Local { length, .. } => *length,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of it; empty where it reaches beyond the end.
    #[must_use]
    pub fn slice(&self, from: u64, bytes: u64) -> Self {
        let fits = from.checked_add(bytes).is_some_and(|end| end <= self.len());
        match self {
            Self::Memory(_) if !fits => Self::Memory(Bytes::new()),
            Self::Memory(all) => Self::Memory(all.slice(from as usize..(from + bytes) as usize)),
            Self::Local { file, offset, .. } => {
                let length = if fits { bytes } else { 0 };
                Self::Local { file: Arc::clone(file), offset: offset + from, length }
            }
        }
    }

    /// The bytes of a range; an error of kind `UnexpectedEof` beyond the end.
    pub fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > self.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match self {
            Self::Memory(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Self::Local { file, offset, .. } => {
                let mut out = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut out, offset + range.start)?;
                Ok(out.into())
            }
        }
    }
}
