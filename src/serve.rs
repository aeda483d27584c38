//! The accept loop of every port: HTTP/1.1 and HTTP/2 without TLS in, an [`axum::Router`] behind.
//!
//! Owns: sockets, which protocol a connection speaks, limits on time and number, the orderly end. Does not own: routes, the
//! size and speed of bodies (the handlers'), TLS.
//!
//! Why not `axum::serve`: it has no timeouts, so that a client that sends half a header keeps a socket for good. hyper's own
//! header timeout needs a timer, starts after the protocol is known, and also ends idle connections. Here [`guard`] tells
//! waiting for the first bytes, reading a head and being idle apart. HTTP/2 connections prove that they live by pings.
//!
//! Order of a shutdown: the token is cancelled, the listener closes, idle connections close, requests in flight finish (HTTP/2
//! peers get GOAWAY), and what is still open after the drain time is dropped.

mod guard;
mod places;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::guard::{Guarded, Held, Phase};
use self::places::{Full, Place, Places};

/// hyper's read buffer for HTTP/1.1.
const MIN_BUFFER: usize = 64 * 1024;

/// What one port allows.
#[derive(Clone, Debug)]
pub struct ServeLimits {
    /// Connections at once. More are closed at once, so that their senders try elsewhere.
    pub max_connections: usize,
    /// Of these, connections of one address.
    pub max_connections_per_address: usize,
    /// From the first byte of a request to the end of its head; also from connecting to the first byte.
    pub header_timeout: Duration,
    /// Longest pause between two requests of an HTTP/1.1 connection.
    pub idle_timeout: Duration,
    /// Longest time a peer may take nothing of an answer.
    pub write_timeout: Duration,
    /// Bytes of all headers of a request, the URL among them; HTTP/1.1 allows 64 KiB at least.
    pub max_header_bytes: usize,
    /// Requests at once on one HTTP/2 connection.
    pub max_streams: u32,
    /// An HTTP/2 peer that says nothing for this long is pinged.
    pub ping_interval: Duration,
    /// A ping that is not answered for this long ends the connection.
    pub ping_timeout: Duration,
    /// How long requests in flight may take after the shutdown began.
    pub drain: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: 5_000,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(30),
            max_header_bytes: 16 * 1024,
            max_streams: 100,
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(20),
            drain: Duration::from_secs(30),
        }
    }
}

/// What a port counts.
#[derive(Clone, Debug, Default)]
pub struct ServeMetrics {
    pub open: Gauge,
    pub accepted: Counter,
    /// Closed at once because of [`ServeLimits::max_connections`] or the same for one address.
    pub refused: Counter,
}

impl ServeMetrics {
    /// Registers under `registry`, which carries the prefix and a label for the port.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connections_open", "Connections open now", self.open.clone());
        registry.register("connections_accepted", "Connections accepted", self.accepted.clone());
        registry.register("connections_refused", "Connections closed at once: too many", self.refused.clone());
    }
}

/// Serves `router` on `listener` until `shutdown`, then until every request ended or the drain time is over.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    limits: ServeLimits,
    metrics: ServeMetrics,
) {
    let places = Arc::new(Places::new(limits.max_connections, limits.max_connections_per_address));
    let limits = Arc::new(limits);
    let mut connections = JoinSet::new();
    let mut said = HashSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            // Joined as they end, so that the set holds only open connections.
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        metrics.accepted.inc();
        let place = match places.take(peer.ip()) {
            Ok(place) => place,
            Err(full) => {
                metrics.refused.inc();
                // Once each: what refuses one connection refuses thousands, and the metric counts them.
                if said.insert(full) {
                    say_refused(full, peer.ip(), &limits);
                }
                continue;
            }
        };
        let open = Open::new(metrics.open.clone(), place);
        connections.spawn(connection(stream, router.clone(), shutdown.clone(), Arc::clone(&limits), open));
    }
    drop(listener);
    let drained = timeout(limits.drain, async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    });
    if drained.await.is_err() {
        tracing::warn!(connections = connections.len(), "drain time is over: closing what is still open");
        connections.shutdown().await;
    }
}

/// Counts a connection while it lives.
struct Open {
    gauge: Gauge,
    _place: Place,
}

impl Open {
    fn new(gauge: Gauge, place: Place) -> Self {
        gauge.inc();
        Self { gauge, _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

fn say_refused(full: Full, address: std::net::IpAddr, limits: &ServeLimits) {
    match full {
        Full::All => tracing::warn!(limit = limits.max_connections, "connections refused: too many are open"),
        Full::Address => tracing::warn!(
            %address, limit = limits.max_connections_per_address,
            "connections refused: too many of one address are open; if it is a proxy, raise ports.max_connections_per_address"
        ),
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a request handler panicked; its connection is closed");
    }
}

/// Errors of one connection pass at once; a shortage of descriptors or memory needs time.
async fn pause_after(error: &std::io::Error) {
    let of_the_peer = [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused];
    if !of_the_peer.contains(&error.kind()) {
        tracing::warn!(%error, "cannot accept connections");
        sleep(Duration::from_millis(200)).await;
    }
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken, limits: Arc<ServeLimits>, _open: Open) {
    // Answers are written whole: waiting to fill packets only costs time. A socket that cannot is served all the same.
    let _: std::io::Result<()> = stream.set_nodelay(true);
    let head_due = Instant::now() + limits.header_timeout;
    let greeting = shutdown.run_until_cancelled(guard::greet(stream, head_due)).await;
    let Some(Ok((stream, start, is_http2))) = greeting else { return };
    let phase = Phase::new(is_http2);
    let io = TokioIo::new(Guarded::new(stream, start, phase.clone(), head_due, &limits));
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, busy) = (router.call(request), phase.busy());
        // The connection is busy until the last byte of the answer was taken.
        async move { answer.await.map(|answer| answer.map(|body| Held::new(body, busy))) }
    });
    let builder = builder(&limits, is_http2);
    let mut connection = pin!(builder.serve_connection(io, service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // The peer's doing, or a timeout: nobody can act on it.
        tracing::debug!(%error, "connection ended");
    }
}

fn builder(limits: &ServeLimits, is_http2: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The buffer bounds the head, and is also the largest piece of a body: smaller would slow bodies down.
    builder.http1().max_buf_size(limits.max_header_bytes.max(MIN_BUFFER)).header_read_timeout(None).timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(limits.max_header_bytes.min(u32::MAX as usize) as u32)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout);
    if is_http2 { builder.http2_only() } else { builder.http1_only() }
}

#[cfg(test)]
mod tests;
