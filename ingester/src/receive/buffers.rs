//! Buffers for request bodies, used again from request to request.
//!
//! Bodies of hundreds of kilobytes come and go a thousand times a second; fresh memory for each costs the kernel more (finding
//! and clearing pages) than reading the body does. Owns a few buffers that are free now. Does not own the lease of who uses one.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Free buffers kept, and the largest that is: what an idle process holds for this is their product.
const MAX_FREE: usize = 8;
const MAX_CAPACITY: usize = 1 << 20;

/// Lends buffers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct BufferPool(Arc<Mutex<Vec<Vec<u8>>>>);

impl BufferPool {
    /// An empty buffer, with room for `capacity` bytes at least.
    pub(crate) fn take(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.0.lock().pop().unwrap_or_default();
        buffer.reserve(capacity);
        buffer
    }

    /// The buffer's bytes; it comes back here when the last reader of them is gone.
    pub(crate) fn freeze(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, pool: self.clone() })
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: BufferPool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() > MAX_CAPACITY {
            return;
        }
        buffer.clear();
        let mut free = self.pool.0.lock();
        if free.len() < MAX_FREE {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_its_last_reader_unless_it_is_large() {
        let pool = BufferPool::default();
        let mut buffer = pool.take(100);
        buffer.extend_from_slice(b"body");
        let at = buffer.as_ptr();
        let whole = pool.freeze(buffer);
        let part = whole.slice(1..);
        drop(whole);
        assert_eq!(part, "ody");
        assert!(pool.0.lock().is_empty());
        drop(part);
        let again = pool.take(10);
        assert_eq!((again.as_ptr(), again.len()), (at, 0));
        drop(pool.freeze(Vec::with_capacity(MAX_CAPACITY + 1)));
        assert!(pool.0.lock().is_empty());
    }
}
