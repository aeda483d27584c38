//! The process's memory budget, divided into shares. Whoever buffers takes bytes from a share first and gives them back when
//! the buffer is gone, so that pressure ends in a refusal with a reason and never in an out-of-memory kill.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::Notify;

/// A bounded number of bytes, lent out as [`Lease`]s.
#[derive(Clone)]
pub struct Share(Arc<Inner>);

struct Inner {
    name: &'static str,
    limit: usize,
    used: AtomicUsize,
    returned: Notify,
}

/// The share has no room. Retry after some of it was given back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("memory share `{share}` is full: {used} of {limit} bytes in use, {wanted} more wanted")]
pub struct ShareFull {
    pub share: &'static str,
    pub limit: usize,
    pub used: usize,
    pub wanted: usize,
}

impl Share {
    pub fn new(name: &'static str, limit: usize) -> Self {
        Self(Arc::new(Inner { name, limit, used: AtomicUsize::new(0), returned: Notify::new() }))
    }

    pub fn limit(&self) -> usize {
        self.0.limit
    }

    pub fn used(&self) -> usize {
        self.0.used.load(SeqCst)
    }

    /// Takes `bytes` at once or says why not. A request larger than the whole share never succeeds.
    pub fn try_take(&self, bytes: usize) -> Result<Lease, ShareFull> {
        let inner = &self.0;
        let taken =
            inner.used.fetch_update(SeqCst, SeqCst, |used| used.checked_add(bytes).filter(|total| *total <= inner.limit));
        match taken {
            Ok(_) => Ok(Lease { share: self.clone(), bytes }),
            Err(used) => Err(ShareFull { share: inner.name, limit: inner.limit, used, wanted: bytes }),
        }
    }

    /// Counts what is in memory already. Never refused: it may take the share over its limit, so that others wait.
    pub fn count(&self, bytes: usize) -> Lease {
        self.0.used.fetch_add(bytes, SeqCst);
        Lease { share: self.clone(), bytes }
    }

    /// Takes `bytes`, waiting up to `patience` for others to give some back.
    pub async fn take(&self, bytes: usize, patience: Duration) -> Result<Lease, ShareFull> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let returned = self.0.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();
            match self.try_take(bytes) {
                Ok(lease) => return Ok(lease),
                Err(full) if bytes > self.0.limit => return Err(full),
                Err(full) => {
                    if tokio::time::timeout_at(deadline, returned).await.is_err() {
                        return self.try_take(bytes).map_err(|_| full);
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share({}: {} of {})", self.0.name, self.used(), self.0.limit)
    }
}

/// Bytes taken from a share; given back on drop.
#[derive(Debug)]
pub struct Lease {
    share: Share,
    bytes: usize,
}

impl Lease {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Of which it is a part.
    pub fn share(&self) -> &Share {
        &self.share
    }

    /// One lease of `bytes` in place of several; `None` if there were none.
    pub fn join(parts: impl IntoIterator<Item = Self>, bytes: usize) -> Option<Self> {
        let mut parts = parts.into_iter();
        let mut first = parts.next()?;
        // The parts go only after the whole is counted, so that nobody takes the room in between.
        let rest: Vec<Self> = parts.collect();
        first.resize(bytes);
        drop(rest);
        Some(first)
    }

    /// Changes the size to what is really in use. Growing is never refused: the memory is already there.
    pub fn resize(&mut self, bytes: usize) {
        let used = &self.share.0.used;
        if bytes >= self.bytes {
            used.fetch_add(bytes - self.bytes, SeqCst);
        } else {
            used.fetch_sub(self.bytes - bytes, SeqCst);
            self.share.0.returned.notify_waiters();
        }
        self.bytes = bytes;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_share_refuses_then_lends_again() {
        let share = Share::new("test", 100);
        let lease = share.try_take(80).unwrap();
        let full = share.try_take(21).unwrap_err();
        assert_eq!((full.used, full.wanted), (80, 21));
        let waiter = tokio::spawn({
            let share = share.clone();
            async move { share.take(50, Duration::from_secs(5)).await.map(|l| l.bytes()) }
        });
        tokio::task::yield_now().await;
        drop(lease);
        assert_eq!(waiter.await.unwrap(), Ok(50));
        assert_eq!(share.used(), 0);
        assert!(share.take(101, Duration::from_secs(60)).await.is_err());
    }
}
