//! `spanhouse loadgen`: the traffic of a shop, by rate or by count, measured and read back.
//!
//! Owns the options and the order of a run: generate, send, wait for the flush, read the server's use, read traces back. Knows the
//! server only through its public APIs, so that it measures any server that speaks OTLP, Jaeger's protocols or Zipkin's and answers
//! as Tempo does.
//!
//! `shop` and `flows` say what happens, `template` how it looks, `generate` when, `translate` in which words; `client` sends, `drive` decides when to send
//! and to retry, `verify` reads back, `report` adds up. `bench` asks queries about what was sent: a command of its own.

pub mod bench;
mod client;
mod drive;
#[cfg(test)]
mod end_to_end;
mod flows;
mod generate;
mod report;
mod rng;
mod shop;
mod template;
#[cfg(test)]
mod tests;
mod translate;
mod verify;
mod wire;

use std::time::Duration;

use clap::{Args, ValueEnum};

pub use report::{Latency, ServerUse, Summary, Verified};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    #[value(alias = "http")]
    OtlpHttp,
    #[value(alias = "grpc")]
    OtlpGrpc,
    JaegerThriftHttp,
    JaegerCompactUdp,
    JaegerBinaryUdp,
    JaegerGrpc,
    ZipkinJson,
    ZipkinProto,
    /// Zipkin's first model in Thrift
    ZipkinThrift,
    ZipkinV1Json,
}

impl Protocol {
    /// The port where it is spoken.
    fn port(self) -> u16 {
        match self {
            Self::OtlpHttp => 4318,
            Self::OtlpGrpc => 4317,
            Self::JaegerThriftHttp => 14268,
            Self::JaegerCompactUdp => 6831,
            Self::JaegerBinaryUdp => 6832,
            Self::JaegerGrpc => 14250,
            Self::ZipkinJson | Self::ZipkinProto | Self::ZipkinThrift | Self::ZipkinV1Json => 9411,
        }
    }

    /// Path of its requests, and their content type; empty over UDP.
    fn request(self) -> (&'static str, &'static str) {
        match self {
            Self::OtlpHttp => ("/v1/traces", "application/x-protobuf"),
            Self::OtlpGrpc => ("/opentelemetry.proto.collector.trace.v1.TraceService/Export", "application/grpc"),
            Self::JaegerThriftHttp => ("/api/traces?format=jaeger.thrift", "application/x-thrift"),
            Self::JaegerCompactUdp | Self::JaegerBinaryUdp => ("", ""),
            Self::JaegerGrpc => ("/jaeger.api_v2.CollectorService/PostSpans", "application/grpc"),
            Self::ZipkinJson => ("/api/v2/spans", "application/json"),
            Self::ZipkinProto => ("/api/v2/spans", "application/x-protobuf"),
            Self::ZipkinThrift => ("/api/v1/spans", "application/x-thrift"),
            Self::ZipkinV1Json => ("/api/v1/spans", "application/json"),
        }
    }

    fn is_grpc(self) -> bool {
        matches!(self, Self::OtlpGrpc | Self::JaegerGrpc)
    }

    fn is_udp(self) -> bool {
        matches!(self, Self::JaegerCompactUdp | Self::JaegerBinaryUdp)
    }

    fn is_otlp(self) -> bool {
        matches!(self, Self::OtlpHttp | Self::OtlpGrpc)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// As in Content-Encoding and grpc-encoding; empty for none.
    fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Sends the traffic of a shop of 22 services: HTTP, gRPC, SQL, messaging, failures with stack traces, long jobs. Without
/// --rate, --count and --duration it sends 1,000 spans/s until Ctrl-C; with --count or --duration alone, as fast as the server
/// takes them. Packets are not acknowledged: over UDP it sends 20,000 spans/s unless told otherwise, and only --verify says what
/// arrived. Exits with 1 if a span was refused, lost, or not found again.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    spanhouse loadgen                                    a shop to look at, until Ctrl-C\n  \
    spanhouse loadgen --rate 5000 --duration 10m         a steady load\n  \
    spanhouse loadgen --count 100000 --verify            send, then read every trace back\n  \
    spanhouse loadgen --count 1000000 --prebuilt --server-pid $(pgrep -xo spanhouse) --wait-flush\n                                                       \
    spans per CPU-second of the server, from request to block")]
pub struct Options {
    /// Where spans are received [default: 127.0.0.1 and the protocol's port]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// What is spoken; Zipkin's forms have no types of values and no links, so these are sent as text and left out
    #[arg(long, value_enum, default_value = "otlp-http")]
    pub protocol: Protocol,
    /// Of requests; packets are never compressed
    #[arg(long, value_enum, default_value = "none")]
    pub compression: Compression,
    /// Spans per second
    #[arg(long, value_name = "SPANS", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub rate: Option<u64>,
    /// Spans to send; the last trace is completed
    #[arg(long, value_name = "SPANS")]
    pub count: Option<u64>,
    /// How long to send, as in 30s or 10m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Spans per request, at most; each request holds spans of one service instance
    #[arg(long, value_name = "SPANS", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub batch: u32,
    /// Connections, each with one request at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Sent as X-Scope-OrgID; packets have none
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// The same seed gives the same spans, apart from the time they start at
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Generate all requests before the clock starts: figures of the server alone; needs --count and memory for it (350 MB per
    /// million spans)
    #[arg(long, requires = "count")]
    pub prebuilt: bool,
    /// Afterwards read every trace back and compare its span ids, which every protocol carries whole
    #[arg(long)]
    pub verify: bool,
    /// Where traces are read and metrics are found
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:3200")]
    pub query: String,
    /// Process whose CPU time and peak memory are reported
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Wait until the server holds no live spans, so that its CPU time includes writing blocks
    #[arg(long)]
    pub wait_flush: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    spanhouse_common::units::parse_duration(text)
}

#[derive(Debug, thiserror::Error)]
pub enum LoadgenError {
    #[error("`{url}` is not an endpoint, as in http://127.0.0.1:4318: {reason}")]
    Endpoint { url: String, reason: String },
    #[error("no connection to {authority}: {reason}; is the server running?")]
    Connect { authority: String, reason: String },
    /// The server is well: it has a limit.
    #[error(
        "{authority} closed {closed} of {connections} connections at once: use fewer --connections, or raise \
         ports.max_connections_per_address of the server"
    )]
    Closed { authority: String, closed: usize, connections: u32 },
    #[error("cannot read the use of process {pid}: {reason}")]
    Process { pid: u32, reason: String },
    #[error("cannot wait for the flush: {0}")]
    Flush(String),
    #[error("generated spans are not OTLP: {0}")]
    Translate(#[from] prost::DecodeError),
    #[error("compression failed: {0}")]
    Compress(#[from] std::io::Error),
    #[error("a task of the load generator died: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Runs to the end. Best on a runtime with one thread, which leaves the other cores to the server.
pub async fn run(options: &Options) -> Result<Summary, LoadgenError> {
    let query = client::Endpoint::parse(&options.query, 3200)?;
    let style =
        client::Style { protocol: Protocol::OtlpHttp, compression: Compression::None, tenant: options.tenant.clone() };
    let before = options.server_pid.map(report::ProcessUse::read).transpose()?;
    let driven = drive::send(options).await?;
    let mut summary = driven.summary;
    if options.wait_flush {
        summary.flush_wait_seconds = Some(verify::wait_for_flush(&query, &style).await?);
    }
    if let (Some(pid), Some(before)) = (options.server_pid, before) {
        let after = report::ProcessUse::read(pid)?;
        let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        let spans_per_cpu_second = summary.spans as f64 / cpu_seconds.max(0.01);
        summary.server = Some(ServerUse { cpu_seconds, spans_per_cpu_second, peak_memory_bytes: after.peak_bytes });
    }
    if options.verify {
        summary.verified = Some(verify::read_back(&query, &style, options.connections, driven.traces, driven.ids).await?);
    }
    Ok(summary)
}
