//! Sending: one thread generates at the pace of the run, connections take requests as they become free.
//!
//! Owns pace, retries and counting. Does not own what is sent or what an answer means.
//!
//! The queue between them is short, so that memory is bounded and a slow server slows the generator instead of growing a backlog.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::client::{Answer, Client, Endpoint, Style};
use super::generate::{Body, Generator, Settings, TraceRecord};
use super::report::{Histogram, Summary};
use super::rng::Ids;
use super::translate::translate;
use super::{Compression, LoadgenError, Options, Protocol};

/// What a shop sends per second while nobody asked for a rate: decides how the spans of a fast run lie in time.
const NATURAL_RATE: f64 = 20_000.0;
/// The same for runs of unknown length, whose times must not run ahead of the clock.
const NATURAL_RATE_OPEN_END: f64 = 500_000.0;
const DEFAULT_RATE: u64 = 1_000;
/// The same over UDP, where nothing slows a sender that is too fast.
const UDP_RATE: u64 = 20_000;
/// As long as an SDK's batch processor waits at most; shorter, because people are watching.
const MAX_WAIT_NS: u64 = 1_000_000_000;
/// A request is given up when it was retried for this long.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Driven {
    pub summary: Summary,
    pub traces: Vec<TraceRecord>,
    pub ids: Ids,
}

/// A request ready to be sent.
struct Ready {
    bytes: Bytes,
    plain_bytes: u64,
    spans: u32,
    /// Since the start of the run; used if there is a rate.
    due: Duration,
}

/// What one connection counted.
struct Tally {
    requests: u64,
    spans: u64,
    bytes: u64,
    sent_bytes: u64,
    retries: u64,
    refused: u64,
    lost: u64,
    complaint: Option<String>,
    latency: Histogram,
}

/// So many connections any server takes.
const FEW: u32 = 64;

pub(super) async fn send(options: &Options) -> Result<Driven, LoadgenError> {
    let port = options.protocol.port();
    let default = format!("http://127.0.0.1:{port}");
    let endpoint = Endpoint::parse(options.endpoint.as_deref().unwrap_or(&default), port)?;
    let style = Style { protocol: options.protocol, compression: options.compression, tenant: options.tenant.clone() };
    let mut clients = Vec::new();
    for _ in 0..options.connections {
        let mut client = Client::new(endpoint.clone(), style.clone());
        client.connect().await?;
        clients.push(client);
    }
    if options.connections > FEW {
        // A server that has a limit closes what is beyond it; the news takes a moment.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let closed = clients.iter().filter(|client| client.is_closed()).count();
        if closed > 0 {
            return Err(LoadgenError::Closed { authority: endpoint.authority, closed, connections: options.connections });
        }
    }

    let stop = Arc::new(AtomicBool::new(false));
    let (queue, ready) = mpsc::channel(2 * options.connections as usize);
    let mut source = Source::new(options, Arc::clone(&stop));
    let paced = source.paced;
    let mut prebuilt = Vec::new();
    if options.prebuilt {
        let built = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            source.run(&mut |ready| {
                all.push(ready);
                true
            })?;
            Ok::<_, LoadgenError>((source, all))
        });
        (source, prebuilt) = built.await??;
    }

    let begun = Instant::now();
    let generator = tokio::task::spawn_blocking(move || {
        let mut push = |ready: Ready| {
            if paced {
                std::thread::sleep((begun + ready.due).saturating_duration_since(Instant::now()));
            }
            queue.blocking_send(ready).is_ok()
        };
        if prebuilt.is_empty() {
            source.run(&mut push)?
        } else {
            prebuilt.into_iter().all(&mut push);
        }
        Ok::<_, LoadgenError>(source)
    });
    let interrupt = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.store(true, Relaxed);
            }
        }
    });
    let bar = progress_bar(options);
    let ready = Arc::new(Mutex::new(ready));
    let mut workers = JoinSet::new();
    for client in clients {
        workers.spawn(work(client, Arc::clone(&ready), bar.clone()));
    }
    drop(ready);
    let mut summary = Summary::default();
    let mut latency = Histogram::new();
    while let Some(tally) = workers.join_next().await {
        let tally = tally?;
        summary.requests += tally.requests;
        summary.spans += tally.spans;
        summary.bytes += tally.bytes;
        summary.bytes_on_the_wire += tally.sent_bytes;
        summary.retries += tally.retries;
        summary.refused_spans += tally.refused;
        summary.lost_spans += tally.lost;
        summary.complaint = summary.complaint.or(tally.complaint);
        latency.merge(&tally.latency);
    }
    let source = generator.await??;
    interrupt.abort();
    bar.finish_and_clear();
    summary.seconds = begun.elapsed().as_secs_f64();
    summary.spans_per_second = summary.spans as f64 / summary.seconds.max(1e-9);
    summary.ack_ms = latency.latency();
    summary.traces = source.generator.traces.len() as u64;
    Ok(Driven { summary, ids: source.generator.ids(), traces: source.generator.traces })
}

/// Generates, frames and compresses.
struct Source {
    generator: Generator,
    protocol: Protocol,
    compression: Compression,
    count: u64,
    duration: Option<Duration>,
    /// Whether the virtual clock follows the real one.
    paced: bool,
    stop: Arc<AtomicBool>,
}

impl Source {
    fn new(options: &Options, stop: Arc<AtomicBool>) -> Self {
        let open_end = options.count.is_none() && options.duration.is_none();
        let udp = options.protocol.is_udp().then_some(UDP_RATE);
        let rate = options.rate.or(open_end.then_some(DEFAULT_RATE)).or(udp).map(|rate| rate as f64);
        let natural = if options.count.is_some() { NATURAL_RATE } else { NATURAL_RATE_OPEN_END };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        // A fast run of known size tells of the time up to now; a paced one happens now.
        let past = match (rate, options.count) {
            (None, Some(count)) => (count as f64 / natural * 1e9) as u64,
            _ => 0,
        };
        let settings = Settings {
            seed: options.seed,
            batch: options.batch,
            spans_per_second: rate.unwrap_or(natural),
            start_ns: now.saturating_sub(past),
            max_wait_ns: rate.map(|_| MAX_WAIT_NS),
        };
        Self {
            generator: Generator::new(settings),
            protocol: options.protocol,
            compression: options.compression,
            count: options.count.unwrap_or(u64::MAX),
            duration: options.duration,
            paced: rate.is_some(),
            stop,
        }
    }

    /// Until the run is over or `push` says that nobody listens.
    fn run(&mut self, push: &mut dyn FnMut(Ready) -> bool) -> Result<(), LoadgenError> {
        let begun = Instant::now();
        let mut bodies = Vec::new();
        loop {
            let elapsed = if self.paced { Duration::from_nanos(self.generator.elapsed_ns()) } else { begun.elapsed() };
            let over = self.duration.is_some_and(|duration| elapsed >= duration) || self.stop.load(Relaxed);
            if over || self.generator.spans >= self.count {
                break;
            }
            self.generator.step(self.count, &mut bodies);
            for body in bodies.drain(..) {
                if !self.pack(body, push)? {
                    return Ok(());
                }
            }
        }
        self.generator.finish(&mut bodies);
        for body in bodies {
            if !self.pack(body, push)? {
                break;
            }
        }
        Ok(())
    }

    /// Translates, compresses and frames one body; false if `push` says that nobody listens.
    fn pack(&self, body: Body, push: &mut dyn FnMut(Ready) -> bool) -> Result<bool, LoadgenError> {
        let bodies = translate(self.protocol, body.bytes)?;
        let due = Duration::from_nanos(self.generator.elapsed_ns());
        // Several only for packets, of which none says how many spans it has: the last stands for all.
        let last = bodies.len().saturating_sub(1);
        for (at, plain) in bodies.into_iter().enumerate() {
            let plain_bytes = plain.len() as u64;
            let bytes = self.frame(self.compress(plain)?);
            let spans = if at == last { body.spans } else { 0 };
            if !push(Ready { bytes: bytes.into(), plain_bytes, spans, due }) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn compress(&self, plain: Vec<u8>) -> Result<Vec<u8>, LoadgenError> {
        Ok(match self.compression {
            _ if self.protocol.is_udp() => plain,
            Compression::None => plain,
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&plain)?;
                encoder.finish()?
            }
            Compression::Zstd => zstd::bulk::compress(&plain, 1)?,
        })
    }

    fn frame(&self, bytes: Vec<u8>) -> Vec<u8> {
        if !self.protocol.is_grpc() {
            return bytes;
        }
        let mut framed = Vec::with_capacity(bytes.len() + 5);
        framed.push(u8::from(self.compression != Compression::None));
        framed.extend((bytes.len() as u32).to_be_bytes());
        framed.extend(bytes);
        framed
    }
}

/// One connection: takes a request, sends it until it is taken or given up.
async fn work(mut client: Client, queue: Arc<Mutex<mpsc::Receiver<Ready>>>, bar: ProgressBar) -> Tally {
    let mut tally = Tally {
        requests: 0,
        spans: 0,
        bytes: 0,
        sent_bytes: 0,
        retries: 0,
        refused: 0,
        lost: 0,
        complaint: None,
        latency: Histogram::new(),
    };
    loop {
        let next = queue.lock().await.recv().await;
        let Some(request) = next else { return tally };
        let begun = Instant::now();
        let mut backoff = Duration::from_millis(50);
        loop {
            let (after, message) = match client.export(request.bytes.clone()).await {
                Ok(Answer::Accepted { refused, message }) => {
                    tally.requests += 1;
                    tally.spans += u64::from(request.spans).saturating_sub(refused);
                    tally.refused += refused;
                    tally.bytes += request.plain_bytes;
                    tally.sent_bytes += request.bytes.len() as u64;
                    tally.latency.record(begun.elapsed());
                    if refused > 0 {
                        tally.complaint.get_or_insert(message);
                    }
                    bar.inc(u64::from(request.spans));
                    break;
                }
                Ok(Answer::Rejected { message }) => {
                    tally.lost += u64::from(request.spans);
                    tally.complaint.get_or_insert(message);
                    break;
                }
                Ok(Answer::Retry { after, message }) => (after, message),
                Err(e) => (None, e.to_string()),
            };
            tally.complaint.get_or_insert(message);
            if begun.elapsed() > PATIENCE {
                tally.lost += u64::from(request.spans);
                break;
            }
            tally.retries += 1;
            tokio::time::sleep(after.unwrap_or(backoff)).await;
            backoff = (backoff * 2).min(Duration::from_secs(5));
        }
    }
}

/// Shown on a terminal only, on stderr.
fn progress_bar(options: &Options) -> ProgressBar {
    let style = |template: &str| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    match options.count {
        Some(count) => {
            let bar = ProgressBar::new(count);
            bar.with_style(style("{elapsed} {wide_bar} {human_pos} of {human_len} spans, {per_sec}"))
        }
        None => ProgressBar::new_spinner().with_style(style("{elapsed} {spinner} {human_pos} spans, {per_sec}")),
    }
}
