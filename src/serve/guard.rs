//! One connection's bytes with a clock on them: the greeting, the head of a request, the pause between two, a stalled reader.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::task::AtomicWaker;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};

use super::ServeLimits;

/// What an HTTP/2 client that knows its server sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is sure which protocol the client speaks. Returns what was read, and whether it is HTTP/2.
pub(super) async fn greet<S: AsyncRead + Unpin>(mut stream: S, due: Instant) -> io::Result<(S, Bytes, bool)> {
    let mut start = [0; PREFACE.len()];
    let mut len = 0;
    loop {
        match timeout_at(due, stream.read(&mut start[len..])).await?? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => len += read,
        }
        let is_http2 = len == PREFACE.len() && start == *PREFACE;
        if is_http2 || !PREFACE.starts_with(&start[..len]) {
            return Ok((stream, Bytes::copy_from_slice(&start[..len]), is_http2));
        }
    }
}

const HEAD: u32 = 0;
const BUSY: u32 = 1;
const IDLE: u32 = 2;

/// What an HTTP/1.1 connection is doing. HTTP/2 is always busy here: requests overlap, and pings find the dead.
#[derive(Clone, Debug)]
pub(super) struct Phase(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    /// The number of changes so far times four, plus the phase: two idle times in a row are not one.
    turn: AtomicU32,
    /// hyper does not read again on its own when an answer ends, but the clock of the next phase starts with a read.
    reader: AtomicWaker,
}

impl Phase {
    pub(super) fn new(is_http2: bool) -> Self {
        Self((!is_http2).then(|| Arc::new(Shared { turn: AtomicU32::new(HEAD), reader: AtomicWaker::new() })))
    }

    /// A request's head is complete. Busy until the answer is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.set(BUSY);
        Busy(self.clone())
    }

    fn turn(&self) -> u32 {
        self.0.as_ref().map_or(BUSY, |shared| shared.turn.load(SeqCst))
    }

    fn is(&self, phase: u32) -> bool {
        self.turn() % 4 == phase
    }

    fn set(&self, to: u32) {
        if let Some(shared) = &self.0 {
            // Only the connection's own task changes phases.
            shared.turn.store((shared.turn.load(SeqCst) / 4).wrapping_add(1) << 2 | to, SeqCst);
        }
    }

    fn wake_on_change(&self, waker: &Waker) {
        if let Some(shared) = &self.0 {
            shared.reader.register(waker);
        }
    }
}

/// Makes the connection idle again on drop.
#[derive(Debug)]
pub(super) struct Busy(Phase);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(IDLE);
        if let Some(shared) = &self.0.0 {
            shared.reader.wake();
        }
    }
}

/// An answer's body that keeps its connection busy.
#[derive(Debug)]
pub(super) struct Held {
    body: Body,
    _busy: Busy,
}

impl Held {
    pub(super) fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that fails with `TimedOut` when its peer is too slow for what the connection is doing.
pub(super) struct Guarded<S = TcpStream> {
    stream: S,
    /// Read during the greeting, not yet handed on.
    start: Bytes,
    phase: Phase,
    /// The running clock of a read and the turn of the phase it was set for.
    reading: Option<(u32, Pin<Box<Sleep>>)>,
    /// The running clock of a write that waits for its peer.
    writing: Option<Pin<Box<Sleep>>>,
    header_timeout: Duration,
    idle_timeout: Duration,
    write_timeout: Duration,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, start: Bytes, phase: Phase, head_due: Instant, limits: &ServeLimits) -> Self {
        Self {
            stream,
            start,
            phase,
            reading: Some((HEAD, Box::pin(sleep_until(head_due)))),
            writing: None,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            write_timeout: limits.write_timeout,
        }
    }

    /// Fails once the phase has lasted too long. One clock per phase: single bytes do not set it back.
    fn poll_read_clock(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.phase.wake_on_change(cx.waker());
        let turn = self.phase.turn();
        let allowed = match turn % 4 {
            HEAD => self.header_timeout,
            IDLE => self.idle_timeout,
            _ => {
                self.reading = None;
                return Poll::Pending;
            }
        };
        if self.reading.as_ref().is_none_or(|(of, _)| *of != turn) {
            self.reading = Some((turn, Box::pin(sleep(allowed))));
        }
        match &mut self.reading {
            Some((_, clock)) => clock.as_mut().poll(cx).map(|()| ErrorKind::TimedOut.into()),
            None => Poll::Pending,
        }
    }

    /// Passes a write on, and fails if it has waited too long.
    fn poll_write_clock<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.writing = None;
            return write;
        }
        let clock = self.writing.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        clock.as_mut().poll(cx).map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.start.is_empty() {
            let some = self.start.len().min(buf.remaining());
            buf.put_slice(&self.start.split_to(some));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            if buf.filled().len() > before && self.phase.is(IDLE) {
                self.phase.set(HEAD);
            }
            return Poll::Ready(read);
        }
        Poll::Ready(Err(ready!(self.poll_read_clock(cx))))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.poll_write_clock(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.poll_write_clock(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let write = Pin::new(&mut self.stream).poll_flush(cx);
        self.poll_write_clock(cx, write)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let write = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.poll_write_clock(cx, write)
    }
}
