//! A store that remembers what was asked of it: for tests that hold the number of requests down.
//!
//! Owns the record. A ranged read of several ranges counts as one request each: real stores may join some, never split one.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use parking_lot::Mutex;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Get,
    Head,
    Put,
    List,
    Delete,
    Copy,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub asked: Asked,
    /// A listing's prefix, if it has one.
    pub key: Path,
    /// That came back or were sent; 0 for a request that failed.
    pub bytes: u64,
}

/// The wrapper.
#[derive(Debug)]
pub struct CountingStore {
    inner: Arc<dyn ObjectStore>,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl CountingStore {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { inner, seen: Arc::default() })
    }

    /// What was asked since the last call, in order.
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.seen.lock())
    }

    fn note(&self, asked: Asked, key: &Path, bytes: u64) {
        self.seen.lock().push(Request { asked, key: key.clone(), bytes });
    }
}

impl fmt::Display for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counting({})", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for CountingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.note(Asked::Put, location, payload.content_length() as u64);
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.note(Asked::Put, location, 0);
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let asked = if options.head { Asked::Head } else { Asked::Get };
        let result = self.inner.get_opts(location, options).await;
        let read = |found: &GetResult| found.range.end.saturating_sub(found.range.start);
        let bytes = result.as_ref().map_or(0, |found| if asked == Asked::Head { 0 } else { read(found) });
        self.note(asked, location, bytes);
        result
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let result = self.inner.get_ranges(location, ranges).await;
        for at in 0..ranges.len() {
            let bytes = result.as_ref().ok().and_then(|parts| parts.get(at)).map_or(0, |part| part.len() as u64);
            self.note(Asked::Get, location, bytes);
        }
        result
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let seen = Arc::clone(&self.seen);
        let note = move |result: &Result<Path>| {
            let key = result.as_ref().map_or_else(|_| Path::default(), Path::clone);
            seen.lock().push(Request { asked: Asked::Delete, key, bytes: 0 });
        };
        self.inner.delete_stream(locations).inspect(note).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.note(Asked::List, prefix.unwrap_or(&Path::default()), 0);
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.note(Asked::List, prefix.unwrap_or(&Path::default()), 0);
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.note(Asked::List, prefix.unwrap_or(&Path::default()), 0);
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.note(Asked::Copy, to, 0);
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.note(Asked::Copy, to, 0);
        self.inner.rename_opts(from, to, options).await
    }
}
