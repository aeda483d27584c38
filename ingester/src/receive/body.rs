//! Reads a request body into one piece of memory that was taken from the budget first.
//!
//! Owns: the cap on encoded bytes, the growth of the lease with what really arrived, the end of stalled bodies.
//! Does not own: decompression, or any limit on decoded bytes.
//!
//! A declared length is not paid for in advance: a thousand clients that announce 20 MiB and send nothing would take the whole
//! budget. The lease doubles with the data instead, and never exceeds what was declared.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use spanhouse_common::budget::{Lease, Share, ShareFull};
use tokio::time::{Instant, timeout_at};

use super::buffers::BufferPool;

/// First lease of a body of unknown length.
const FIRST_STEP: usize = 64 * 1024;

/// A protocol that writes the length into the body does so within this many bytes.
const LENGTH_WITHIN: usize = 16;

/// What a body may cost.
#[derive(Clone, Debug)]
pub struct BodyLimits {
    /// Encoded bytes.
    pub max_bytes: usize,
    /// Longest wait for the next piece.
    pub idle: Duration,
    /// Longest time for all pieces: ends senders of one byte per idle time.
    pub total: Duration,
    /// Longest wait for memory before the sender is told to come back later.
    pub patience: Duration,
}

impl BodyLimits {
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, idle: Duration::from_secs(30), total: Duration::from_secs(300), patience: Duration::from_secs(1) }
    }
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Send smaller batches.
    #[error("encoded body exceeds the limit of {limit} bytes")]
    TooLarge { limit: usize },
    /// The sender stopped.
    #[error("no data for {} seconds in the middle of the body", after.as_secs())]
    Stalled { after: Duration },
    /// The sender is too slow, whether it means to or not.
    #[error("the body was not complete after {} seconds", after.as_secs())]
    TooSlow { after: Duration },
    /// The connection ended first, or the framing is wrong.
    #[error("the body could not be read: {0}")]
    Broken(String),
    /// Send again later.
    #[error(transparent)]
    NoMemory(#[from] ShareFull),
}

/// A whole body and the budget it occupies. Keep it until nobody uses the bytes any more.
#[derive(Debug)]
pub struct LeasedBody {
    pub bytes: Bytes,
    leases: Vec<Lease>,
}

impl LeasedBody {
    /// Bytes taken from the share.
    pub fn leased(&self) -> usize {
        self.leases.iter().map(Lease::bytes).sum()
    }
}

/// Reads `body` to its end. `declared` may find the full length in the first bytes, where the protocol writes it there.
pub async fn read<B>(
    body: B,
    declared: impl Fn(&[u8]) -> Option<usize>,
    limits: &BodyLimits,
    share: &Share,
    buffers: &BufferPool,
) -> Result<LeasedBody, BodyError>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let max = limits.max_bytes;
    let too_large = || BodyError::TooLarge { limit: max };
    let mut body = pin!(body);
    let announced = body.size_hint();
    if announced.lower() > max as u64 {
        return Err(too_large());
    }
    let mut length = announced.exact().map(|exact| exact as usize);
    let mut checked = false;
    let mut whole = Growing { leases: Vec::new(), leased: 0, first: Bytes::new(), rest: Vec::new(), buffers };
    let end = Instant::now() + limits.total;
    loop {
        let idle_end = Instant::now() + limits.idle;
        let frame = match timeout_at(idle_end.min(end), body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(BodyError::Broken(error.to_string())),
            Err(_) if idle_end < end => return Err(BodyError::Stalled { after: limits.idle }),
            Err(_) => return Err(BodyError::TooSlow { after: limits.total }),
        };
        let Ok(data) = frame.into_data() else { continue };
        if data.is_empty() {
            continue;
        }
        let total = whole.len() + data.len();
        if total > max {
            return Err(too_large());
        }
        if !checked && let Some(inside) = whole.declared(&data, &declared) {
            if inside > max {
                return Err(too_large());
            }
            length = length.or(Some(inside));
            checked = true;
        }
        // A body longer than declared is the caller's to refuse; here it only costs more.
        whole.lease(total, length.unwrap_or(max).max(total), limits.patience, share).await?;
        whole.push(data);
    }
    Ok(LeasedBody { bytes: whole.finish(), leases: whole.leases })
}

/// What arrived so far. A body of one piece is passed on as it is; a second piece makes it a copy.
struct Growing<'p> {
    leases: Vec<Lease>,
    leased: usize,
    first: Bytes,
    rest: Vec<u8>,
    buffers: &'p BufferPool,
}

impl Growing<'_> {
    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    /// The length that the first bytes of the body declare once `next` is there.
    fn declared(&self, next: &[u8], declared: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
        let head: Vec<u8> = self.first.iter().chain(&self.rest).chain(next).take(LENGTH_WITHIN).copied().collect();
        declared(&head)
    }

    async fn lease(&mut self, total: usize, most: usize, patience: Duration, share: &Share) -> Result<(), ShareFull> {
        if total <= self.leased {
            return Ok(());
        }
        let target = total.max(self.leased * 2).max(FIRST_STEP).min(most);
        let lease = share.take(target - self.leased, patience).await?;
        self.leases.push(lease);
        self.leased = target;
        Ok(())
    }

    fn push(&mut self, data: Bytes) {
        if self.len() == 0 {
            self.first = data;
            return;
        }
        if self.rest.is_empty() {
            self.rest = self.buffers.take(self.leased);
            self.rest.extend_from_slice(&std::mem::take(&mut self.first));
        } else if self.rest.capacity() - self.rest.len() < data.len() {
            // Grow with the lease, so that both always say the same.
            self.rest.reserve_exact(self.leased - self.rest.len());
        }
        self.rest.extend_from_slice(&data);
    }

    fn finish(&mut self) -> Bytes {
        if self.rest.is_empty() {
            std::mem::take(&mut self.first)
        } else {
            self.buffers.freeze(std::mem::take(&mut self.rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn pieces(pieces: Vec<&'static [u8]>) -> impl Body<Data = Bytes, Error = std::io::Error> {
        StreamBody::new(stream::iter(pieces.into_iter().map(|p| Ok(Frame::data(Bytes::from_static(p))))))
    }

    /// Limits a test need not wait for.
    fn quick() -> BodyLimits {
        let millis = Duration::from_millis;
        BodyLimits { max_bytes: 10_000, idle: millis(150), total: millis(400), patience: millis(10) }
    }

    fn none(_: &[u8]) -> Option<usize> {
        None
    }

    #[tokio::test]
    async fn one_piece_is_not_copied_and_pays_for_itself() {
        let share = Share::new("test", 1 << 20);
        let data = Bytes::from_static(b"whole");
        let body = read(Full::new(data.clone()), none, &BodyLimits::new(10), &share, &BufferPool::default()).await.unwrap();
        assert_eq!((body.bytes.as_ptr(), body.leased(), share.used()), (data.as_ptr(), 5, 5));
        drop(body);
        assert_eq!(share.used(), 0);
    }

    #[tokio::test]
    async fn pieces_join_and_the_lease_grows_by_doubling() {
        static PIECE: [u8; 50_000] = [7; 50_000];
        let share = Share::new("test", 1 << 20);
        let body =
            read(pieces(vec![&PIECE; 5]), none, &BodyLimits::new(1 << 20), &share, &BufferPool::default()).await.unwrap();
        assert_eq!((body.bytes.len(), body.leased()), (250_000, 256 << 10));
        assert!(body.bytes.iter().all(|b| *b == 7));
    }

    #[tokio::test]
    async fn the_cap_holds_with_and_without_a_length() {
        let share = Share::new("test", 1 << 20);
        let limits = BodyLimits::new(4);
        for expected in [
            read(Full::new(Bytes::from_static(b"12345")), none, &limits, &share, &BufferPool::default()).await.unwrap_err(),
            read(pieces(vec![b"123", b"45"]), none, &limits, &share, &BufferPool::default()).await.unwrap_err(),
            read(pieces(vec![b"1", b"2"]), |_| Some(5), &limits, &share, &BufferPool::default()).await.unwrap_err(),
        ] {
            assert!(matches!(expected, BodyError::TooLarge { limit: 4 }), "{expected}");
        }
        let good = read(pieces(vec![b"12", b"", b"34"]), none, &limits, &share, &BufferPool::default()).await.unwrap();
        assert_eq!((&good.bytes[..], good.leased()), (&b"1234"[..], 4));
    }

    #[tokio::test]
    async fn a_full_budget_refuses() {
        let share = Share::new("test", 100);
        let taken = share.try_take(90).unwrap();
        let error =
            read(Full::new(Bytes::from(vec![0; 20])), none, &quick(), &share, &BufferPool::default()).await.unwrap_err();
        assert!(matches!(error, BodyError::NoMemory(_)), "{error}");
        drop(taken);
        assert_eq!(share.used(), 0);
    }

    #[tokio::test]
    async fn stalled_and_trickling_bodies_end() {
        let share = Share::new("test", 1 << 20);
        let limits = quick();
        let first = stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x")))]);
        let stalls = StreamBody::new(first.chain(stream::pending()));
        let error = read(stalls, none, &limits, &share, &BufferPool::default()).await.unwrap_err();
        assert!(matches!(error, BodyError::Stalled { .. }), "{error}");

        let trickle = stream::repeat(()).then(|()| async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x")))
        });
        let error = read(StreamBody::new(trickle), none, &limits, &share, &BufferPool::default()).await.unwrap_err();
        assert!(matches!(error, BodyError::TooSlow { .. }), "{error}");
        assert_eq!(share.used(), 0);
    }

    #[tokio::test]
    async fn a_broken_body_is_an_error() {
        let share = Share::new("test", 1 << 20);
        let broken = stream::iter([Err::<Frame<Bytes>, _>(std::io::Error::other("reset"))]);
        let error =
            read(StreamBody::new(broken), none, &BodyLimits::new(10), &share, &BufferPool::default()).await.unwrap_err();
        assert_eq!(error.to_string(), "the body could not be read: reset");
    }
}
