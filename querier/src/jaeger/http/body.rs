//! Reading a request body: bounded in time, in bytes as sent and in bytes unpacked, with its memory taken from what all queries share.

use std::io::Read as _;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_ENCODING;
use axum::http::{HeaderMap, StatusCode};
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use futures::StreamExt as _;
use spanhouse_common::budget::Lease;

use super::error::Refusal;
use crate::jaeger::JaegerDeps;

/// Of a body as sent, and of the same unpacked.
pub(super) const MAX_BODY_BYTES: usize = 20 << 20;

/// From the first byte to the last.
const MAX_BODY_TIME: Duration = Duration::from_secs(60);

/// Memory is taken in pieces of this size at least.
const STEP: usize = 64 * 1024;

/// 8 MiB, which every decoder must take, is the largest window of zstd that is taken.
const MAX_WINDOW_LOG: u32 = 23;

/// A body, and the memory it takes.
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    pub(super) leases: Vec<Lease>,
}

/// Reads and unpacks a body.
pub(super) async fn read(deps: &JaegerDeps, headers: &HeaderMap, body: Body) -> Result<Held, Refusal> {
    let sent = tokio::time::timeout(MAX_BODY_TIME, whole(deps, body)).await;
    let sent =
        sent.unwrap_or_else(|_| Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body was not complete in time")))?;
    let coding =
        headers.get(CONTENT_ENCODING).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase());
    let coding = coding.unwrap_or_default();
    if matches!(coding.as_str(), "" | "identity") {
        return Ok(sent);
    }
    let lease = take(deps, MAX_BODY_BYTES).await?;
    let unpack = move || {
        let bytes = unpacked(&coding, &sent.bytes)?;
        drop(sent);
        Ok(Held { leases: vec![shrunk(lease, bytes.len())], bytes })
    };
    tokio::task::spawn_blocking(unpack).await.unwrap_or_else(|_| Err(Refusal::broken()))
}

fn shrunk(mut lease: Lease, bytes: usize) -> Lease {
    lease.resize(bytes);
    lease
}

async fn whole(deps: &JaegerDeps, body: Body) -> Result<Held, Refusal> {
    let mut held = Held { bytes: Vec::new(), leases: Vec::new() };
    let mut leased = 0;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| Refusal::bad(format!("the body could not be read: {error}")))?;
        let needed = held.bytes.len() + piece.len();
        if needed > MAX_BODY_BYTES {
            return Err(too_large());
        }
        if needed > leased {
            // Doubled, as the buffer is.
            let more = needed.max(STEP).max(leased);
            held.leases.push(take(deps, more).await?);
            leased += more;
        }
        held.bytes.extend_from_slice(&piece);
    }
    Ok(held)
}

/// Memory for a request, or a refusal to try again later.
pub(super) async fn take(deps: &JaegerDeps, bytes: usize) -> Result<Lease, Refusal> {
    let bounds = deps.settings.bounds;
    if bytes > bounds.memory_bytes.min(deps.memory.limit()) {
        return Err(Refusal::too_large("the body", bounds.memory_bytes));
    }
    let lease = deps.memory.take(bytes, bounds.patience).await;
    lease.map_err(|_| Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too many outstanding requests"))
}

fn too_large() -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {MAX_BODY_BYTES} bytes: send less at once"))
}

fn unpacked(coding: &str, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let limit = MAX_BODY_BYTES as u64 + 1;
    let mut out = Vec::new();
    let read = match coding {
        "gzip" | "x-gzip" => MultiGzDecoder::new(bytes).take(limit).read_to_end(&mut out),
        // By the standard a zlib stream; some clients send it bare.
        "deflate" | "zlib" if is_zlib(bytes) => ZlibDecoder::new(bytes).take(limit).read_to_end(&mut out),
        "deflate" | "zlib" => DeflateDecoder::new(bytes).take(limit).read_to_end(&mut out),
        "zstd" => zstd::stream::read::Decoder::with_buffer(bytes).and_then(|mut decoder| {
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            decoder.take(limit).read_to_end(&mut out)
        }),
        other => return Err(Refusal::bad(format!("unsupported Content-Encoding: {other}"))),
    };
    read.map_err(|error| Refusal::bad(format!("the body is no {coding}: {error}")))?;
    if out.len() > MAX_BODY_BYTES { Err(too_large()) } else { Ok(out) }
}

fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [method, flags, ..]
        if method & 0x0f == 8 && method >> 4 <= 7 && (u16::from(*method) << 8 | u16::from(*flags)).is_multiple_of(31))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    #[test]
    fn every_coding_is_unpacked_and_bounded() {
        let pack = |coding: &str, plain: &[u8]| match coding {
            "gzip" => {
                let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
                packer.write_all(plain).unwrap();
                packer.finish().unwrap()
            }
            "zlib" => {
                let mut packer = ZlibEncoder::new(Vec::new(), Compression::fast());
                packer.write_all(plain).unwrap();
                packer.finish().unwrap()
            }
            "deflate" => {
                let mut packer = DeflateEncoder::new(Vec::new(), Compression::fast());
                packer.write_all(plain).unwrap();
                packer.finish().unwrap()
            }
            _ => zstd::encode_all(plain, 1).unwrap(),
        };
        for coding in ["gzip", "zlib", "deflate", "zstd"] {
            assert_eq!(unpacked(coding, &pack(coding, b"some text")).unwrap(), b"some text", "{coding}");
            let bomb = pack(coding, &vec![0; MAX_BODY_BYTES + 1]);
            assert_eq!(unpacked(coding, &bomb).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE, "{coding}");
            assert_eq!(unpacked(coding, b"\x00garbage").unwrap_err().status, StatusCode::BAD_REQUEST, "{coding}");
        }
        assert_eq!(unpacked("snappy", b"").unwrap_err().message, "unsupported Content-Encoding: snappy");
    }
}
