//! Hostile peers against the real binary: floods of HTTP/2 frames, header bombs, heads that never end. Meanwhile a client that
//! behaves is served, and memory stays where it was.
//!
//! Frames are written by hand: no client library sends what these do. Attackers come from another loopback address than the
//! client, as they would from another host, because connections are counted by address.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::harness::otlp::{PROTOBUF, new_id, request, trace};
use crate::harness::server::{Answer, Server, Setup};
use crate::harness::times;

/// An attack's length, the slowest answer a client may get meanwhile, and what the server's memory may grow by.
const PATIENCE: Duration = Duration::from_secs(5);
const GROWTH_KIB: u64 = 96 * 1024;

fn attack_time() -> Duration {
    Duration::from_secs(times("SPANHOUSE_ATTACK_SECONDS", 3) as u64)
}

/// Frame types and flags of RFC 9113.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127);
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

/// The head of a request by HPACK's static table.
fn head(method: u8, path: &str) -> Vec<u8> {
    let path = [&[0x04, path.len() as u8], path.as_bytes()].concat();
    [&[method, 0x86][..], &path, &literal("content-type", PROTOBUF.1)].concat()
}

const GET: u8 = 0x82;
const POST: u8 = 0x83;

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 0).into())?;
    timeout(PATIENCE, socket.connect(to)).await?
}

/// An HTTP/2 connection past its greeting.
async fn http2(to: SocketAddr) -> std::io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
    let (reader, mut writer) = connect(to).await?.into_split();
    writer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    writer.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    Ok((reader, writer))
}

/// What one connection sends: the start, then for each round (from 1) more. Whoever is closed comes back.
struct Attack {
    start: fn() -> Vec<u8>,
    round: fn(u32) -> Vec<u8>,
    /// Takes the server's answers, or lets them pile up.
    reads: bool,
}

impl Attack {
    async fn run(&self, to: SocketAddr, until: Instant) -> u64 {
        let mut sent = 0;
        while Instant::now() < until {
            let Ok((mut reader, mut writer)) = http2(to).await else { continue };
            let drain = self.reads.then(|| {
                tokio::spawn(async move {
                    let mut sink = vec![0; 64 * 1024];
                    while matches!(reader.read(&mut sink).await, Ok(1..)) {}
                })
            });
            let start = (self.start)();
            let mut alive = writer.write_all(&start).await.is_ok();
            for n in 1.. {
                let left = until.saturating_duration_since(Instant::now());
                if !alive || left.is_zero() {
                    break;
                }
                let bytes = (self.round)(n);
                alive = matches!(timeout(left, writer.write_all(&bytes)).await, Ok(Ok(())));
                sent += bytes.len() as u64;
            }
            if let Some(drain) = drain {
                drain.abort();
            }
        }
        sent
    }
}

fn rss_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

/// Sends spans on new connections until the time is over, each of which must be taken soon. How many, and the most memory seen.
async fn behave(server: &Server, until: Instant) -> (u32, u64) {
    let (mut taken, mut peak) = (0, 0);
    while Instant::now() < until {
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        let body = request(trace(new_id(), 20)).encode_to_vec();
        let began = Instant::now();
        let answer = Answer::of(client.post(server.otlp_url()).header(PROTOBUF.0, PROTOBUF.1).body(body)).await;
        assert_eq!(answer.expect("an answer").status, 200, "after {:?}", began.elapsed());
        taken += 1;
        peak = peak.max(rss_kib(server));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (taken, peak)
}

/// Runs one attack from several connections on the OTLP port.
async fn withstand(name: &str, attack: &'static Attack) {
    // Nothing is expected in the log: a peer must not be able to fill a disk with it.
    let server = Setup::new().start().await;
    server.send(&request(trace(new_id(), 20))).await;
    let before = rss_kib(&server);
    let until = Instant::now() + attack_time();
    let mut attackers = JoinSet::new();
    let to = server.ports.otlp;
    for _ in 0..4 {
        attackers.spawn(attack.run(to, until));
    }
    let (taken, peak) = behave(&server, until).await;
    let sent: u64 = attackers.join_all().await.iter().sum();
    println!("{name}: {sent} bytes of attack, {taken} requests taken, memory {before} to {peak} KiB");
    assert!(sent > 0 && taken > 5, "{name}: {sent} bytes, {taken} requests");
    assert!(peak < before + GROWTH_KIB, "{name}: memory grew from {before} to {peak} KiB");
    assert_eq!(server.get("/ready").await.status, 200);
}

fn nothing() -> Vec<u8> {
    Vec::new()
}

/// Odd stream numbers, and never beyond 31 bits.
fn stream(n: u32) -> u32 {
    (2 * n + 1) & 0x7fff_ffff
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset() {
    static ATTACK: Attack = Attack {
        start: nothing,
        round: |n| {
            let open = frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &head(GET, "/v1/traces"));
            [open, frame(RST_STREAM, 0, stream(n), &[0, 0, 0, 8])].concat()
        },
        reads: true,
    };
    withstand("rapid reset", &ATTACK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn continuation_flood() {
    static ATTACK: Attack = Attack {
        start: || frame(HEADERS, 0, 1, &head(GET, "/v1/traces")),
        round: |n| frame(CONTINUATION, 0, 1, &literal(&format!("x-{n}"), &"y".repeat(100)).repeat(100)),
        reads: true,
    };
    withstand("continuation flood", &ATTACK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_continuation_flood() {
    static ATTACK: Attack = Attack {
        start: || frame(HEADERS, 0, 1, &head(GET, "/v1/traces")),
        round: |_| frame(CONTINUATION, 0, 1, &[]).repeat(100),
        reads: true,
    };
    withstand("empty continuation flood", &ATTACK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_flood() {
    static ATTACK: Attack = Attack {
        start: nothing,
        round: |n| frame(SETTINGS, 0, 0, &[&[0, 4][..], &(n & 0xffff).to_be_bytes()].concat()).repeat(100),
        reads: false,
    };
    withstand("settings flood", &ATTACK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ping_flood() {
    static ATTACK: Attack =
        Attack { start: nothing, round: |n| frame(PING, 0, 0, &u64::from(n).to_be_bytes()).repeat(100), reads: false };
    withstand("ping flood", &ATTACK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_data_frames() {
    static ATTACK: Attack = Attack {
        start: || frame(HEADERS, END_HEADERS, 1, &head(POST, "/v1/traces")),
        // One byte in a hundred frames: the others cost no window.
        round: |_| [frame(DATA, 0, 1, &[]).repeat(99), frame(DATA, 0, 1, &[0])].concat(),
        reads: true,
    };
    withstand("tiny data frames", &ATTACK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn header_bomb() {
    static ATTACK: Attack = Attack {
        start: nothing,
        // A header of 3,900 bytes goes into the dynamic table, then 12,000 references to it: 47 MB from 16 KB.
        round: |n| {
            let large = [&[0x40, 1, b'x', 0x7f, 0xbd, 0x1d][..], &vec![b'y'; 3900]].concat();
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                stream(n),
                &[head(GET, "/v1/traces"), large, vec![0xbe; 12_000]].concat(),
            )
        },
        reads: true,
    };
    withstand("header bomb", &ATTACK).await;
}

/// Heads that never end, and connections that say nothing: each address has a number of places, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn slowloris() {
    let limited = Setup::new().with("PORTS_MAX_CONNECTIONS_PER_ADDRESS", "256");
    let server = limited.expecting("connections refused").start().await;
    let before = rss_kib(&server);
    let until = Instant::now() + attack_time();
    let mut attackers = JoinSet::new();
    for n in 0..600 {
        let to = server.ports.otlp;
        attackers.spawn(async move {
            let Ok(mut stream) = connect(to).await else { return };
            let starts: [&[u8]; 3] = [
                b"",
                b"GET / HTTP/1.1\r\nhost: x\r\n",
                b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n",
            ];
            let mut alive = stream.write_all(starts[n % 3]).await.is_ok();
            while alive && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(200)).await;
                alive = n % 3 == 0 || stream.write_all(b"x").await.is_ok();
            }
        });
    }
    let (taken, peak) = behave(&server, until).await;
    let open = server.metric("spanhouse_server_connections_open").await;
    assert!(open <= Some(270.0), "{open:?} connections are open");
    attackers.join_all().await;
    println!("slowloris: {taken} requests taken, memory {before} to {peak} KiB");
    assert!(taken > 5 && peak < before + GROWTH_KIB, "{taken} requests, memory {before} to {peak} KiB");
    let refused = server.metric("spanhouse_server_connections_refused_total").await;
    assert!(refused >= Some(50.0), "{refused:?} of 600 connections of one address were refused");
    assert_eq!(server.get("/ready").await.status, 200);
}
