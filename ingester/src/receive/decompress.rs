//! Decompression of a full body with a hard cap on what comes out.
//!
//! Owns: the codecs HTTP and gRPC clients use, the growth of the output buffer, and the refusal of bombs, truncation and
//! trailing garbage. Does not own: which codec a request names (the receivers read that), nor the memory lease.
//!
//! Memory: the output never has more capacity than the cap. zstd adds its window, at most the cap rounded up to a power
//! of two (and 8 MiB at least, which every decoder must support), touched only as far as output was produced.

use std::io::{ErrorKind, Read};

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

use crate::pipeline::Compression;

/// Output buffers start no larger than this unless the input itself is large.
const FIRST_CAPACITY: usize = 64 * 1024;
/// A size hint inside the data is believed up to this ratio; what really expands further grows step by step.
const BELIEVED_RATIO: usize = 16;
/// Windows up to 8 MiB must be decodable by anyone who speaks zstd over HTTP (RFC 9659).
const MIN_WINDOW_LOG: u32 = 23;
/// 128 MiB, zstd's own default limit.
const MAX_WINDOW_LOG: u32 = 27;

/// The chunk that begins every framed stream. No block begins so: it would copy from before its own start.
const SNAPPY_STREAM: &[u8] = b"\xff\x06\x00\x00sNaPpY";
/// A block says how long it is; of three bytes come 64 at the most.
const MAX_SNAPPY_RATIO: usize = 22;

/// Why a body could not be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// More would come out than allowed: the sender must make smaller batches.
    #[error("decompressed body exceeds the limit of {limit} bytes")]
    TooLarge { limit: usize },
    /// The bytes are not what the encoding says: the sender must not repeat them.
    #[error("{0}")]
    Malformed(String),
}

/// Returns the decompressed body, at most `max_decoded` bytes. Identity shares the input instead of copying it.
pub fn decompress(compression: Compression, body: &Bytes, max_decoded: usize) -> Result<Bytes, DecompressError> {
    // Snappy's streams say nothing of nothing.
    if !matches!(compression, Compression::Identity | Compression::Snappy) && body.is_empty() {
        return Err(DecompressError::Malformed("compressed body is empty".into()));
    }
    match compression {
        Compression::Identity if body.len() > max_decoded => Err(DecompressError::TooLarge { limit: max_decoded }),
        Compression::Identity => Ok(body.clone()),
        Compression::Gzip => gzip(body, max_decoded),
        Compression::Zstd => zstd(body, max_decoded),
        Compression::Deflate => deflate(body, max_decoded),
        Compression::Snappy => snappy(body, max_decoded),
    }
}

/// All members of the file, one after another; the decoder refuses bytes that start no member.
fn gzip(body: &[u8], max: usize) -> Result<Bytes, DecompressError> {
    // The last four bytes are the length of the last member, modulo 2^32.
    let hint = body.last_chunk::<4>().map_or(0, |tail| u32::from_le_bytes(*tail) as usize);
    let mut decoder = flate2::bufread::MultiGzDecoder::new(body);
    Output::new(body.len(), hint, max).fill(|space| read(&mut decoder, space, "gzip"))
}

/// All frames, skippable ones included; the decoder refuses bytes that start no frame.
fn zstd(body: &[u8], max: usize) -> Result<Bytes, DecompressError> {
    let malformed = |error: std::io::Error| DecompressError::Malformed(format!("zstd: {error}"));
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(malformed)?;
    decoder.window_log_max(window_log(max)).map_err(malformed)?;
    let hint = zstd::zstd_safe::get_frame_content_size(body).ok().flatten().unwrap_or(0);
    let hint = usize::try_from(hint).unwrap_or(usize::MAX);
    Output::new(body.len(), hint, max).fill(|space| read(&mut decoder, space, "zstd"))
}

fn window_log(max_decoded: usize) -> u32 {
    max_decoded.checked_next_power_of_two().map_or(MAX_WINDOW_LOG, usize::ilog2).clamp(MIN_WINDOW_LOG, MAX_WINDOW_LOG)
}

/// HTTP's "deflate" is a zlib stream, but clients that send raw deflate under that name exist; the header tells them apart.
fn deflate(body: &[u8], max: usize) -> Result<Bytes, DecompressError> {
    let wrapped = matches!(body, [cmf, flags, ..]
        if cmf & 0x0f == 8 && cmf >> 4 <= 7 && (u16::from(*cmf) << 8 | u16::from(*flags)) % 31 == 0);
    let mut decoder = Decompress::new(wrapped);
    let mut ended = false;
    Output::new(body.len(), 0, max).fill(|space| {
        if ended {
            return Ok(0);
        }
        loop {
            let (read_before, written_before) = (decoder.total_in(), decoder.total_out());
            let rest = body.get(read_before as usize..).unwrap_or_default();
            let status = decoder
                .decompress(rest, space, FlushDecompress::None)
                .map_err(|error| DecompressError::Malformed(format!("deflate: {error}")))?;
            let written = (decoder.total_out() - written_before) as usize;
            ended = status == Status::StreamEnd;
            if ended && (decoder.total_in() as usize) < body.len() {
                return Err(DecompressError::Malformed("deflate: trailing bytes after the end of the stream".into()));
            }
            if ended || written > 0 {
                return Ok(written);
            }
            if decoder.total_in() == read_before {
                return Err(DecompressError::Malformed("deflate: the stream ends early".into()));
            }
        }
    })
}

/// HTTP's "snappy" is one block to some and a framed stream to others, and to gRPC it is framed: the first bytes tell them apart.
fn snappy(body: &[u8], max: usize) -> Result<Bytes, DecompressError> {
    if body.is_empty() || body.starts_with(SNAPPY_STREAM) {
        let mut decoder = snap::read::FrameDecoder::new(body);
        return Output::new(body.len(), 0, max).fill(|space| read(&mut decoder, space, "framed snappy"));
    }
    // They begin with `snappy:` themselves.
    let malformed = |error: snap::Error| DecompressError::Malformed(error.to_string());
    let length = snap::raw::decompress_len(body).map_err(malformed)?;
    if length > body.len().saturating_mul(MAX_SNAPPY_RATIO) {
        return Err(DecompressError::Malformed("snappy: the block is too short for what it says it holds".into()));
    }
    if length > max {
        return Err(DecompressError::TooLarge { limit: max });
    }
    let mut out = vec![0; length];
    snap::raw::Decoder::new().decompress(body, &mut out).map_err(malformed)?;
    Ok(out.into())
}

fn read(decoder: &mut impl Read, space: &mut [u8], codec: &str) -> Result<usize, DecompressError> {
    loop {
        match decoder.read(space) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(DecompressError::Malformed(format!("{codec}: the stream ends early")));
            }
            Err(error) => return Err(DecompressError::Malformed(format!("{codec}: {error}"))),
            Ok(read) => return Ok(read),
        }
    }
}

/// A buffer that grows by doubling and never past the cap.
struct Output {
    buffer: Vec<u8>,
    len: usize,
    max: usize,
}

impl Output {
    fn new(encoded: usize, hint: usize, max: usize) -> Self {
        let modest = encoded.saturating_mul(2).max(FIRST_CAPACITY);
        let believed = hint.min(encoded.saturating_mul(BELIEVED_RATIO));
        let capacity = if believed > 0 { believed } else { modest }.max(1).min(max);
        Self { buffer: vec![0; capacity], len: 0, max }
    }

    /// Calls `next` with free space until it returns 0.
    fn fill(mut self, mut next: impl FnMut(&mut [u8]) -> Result<usize, DecompressError>) -> Result<Bytes, DecompressError> {
        loop {
            if self.len == self.buffer.len() {
                // Full: is this the end? Ask with a small buffer before growing.
                let mut probe = [0; 256];
                let more = next(&mut probe)?;
                if more == 0 {
                    break;
                }
                if self.len + more > self.max {
                    return Err(DecompressError::TooLarge { limit: self.max });
                }
                let wanted = self.buffer.len().saturating_mul(2).max(self.len + more).min(self.max);
                self.buffer.reserve_exact(wanted - self.buffer.len());
                self.buffer.resize(wanted, 0);
                self.buffer[self.len..self.len + more].copy_from_slice(&probe[..more]);
                self.len += more;
                continue;
            }
            match next(&mut self.buffer[self.len..])? {
                0 => break,
                read => self.len += read,
            }
        }
        self.buffer.truncate(self.len);
        Ok(Bytes::from(self.buffer))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MAX: usize = 1 << 20;

    fn gz(data: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        writer.write_all(data).unwrap();
        writer.finish().unwrap()
    }

    fn zlib(data: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        writer.write_all(data).unwrap();
        writer.finish().unwrap()
    }

    fn raw_deflate(data: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        writer.write_all(data).unwrap();
        writer.finish().unwrap()
    }

    fn zst(data: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(data, 3).unwrap()
    }

    fn framed(data: &[u8]) -> Vec<u8> {
        let mut writer = snap::write::FrameEncoder::new(Vec::new());
        writer.write_all(data).unwrap();
        writer.into_inner().unwrap()
    }

    fn block(data: &[u8]) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(data).unwrap()
    }

    type Encode = fn(&[u8]) -> Vec<u8>;

    /// Every codec with a name for the failure message.
    fn codecs() -> [(&'static str, Compression, Encode); 6] {
        [
            ("gzip", Compression::Gzip, gz),
            ("zlib", Compression::Deflate, zlib),
            ("raw deflate", Compression::Deflate, raw_deflate),
            ("zstd", Compression::Zstd, zst),
            ("framed snappy", Compression::Snappy, framed),
            ("snappy block", Compression::Snappy, block),
        ]
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(len)
        .collect()
    }

    fn run(compression: Compression, body: &[u8], max: usize) -> Result<Bytes, DecompressError> {
        decompress(compression, &Bytes::copy_from_slice(body), max)
    }

    #[test]
    fn round_trips_at_every_size_up_to_the_cap() {
        for (name, compression, encode) in codecs() {
            for len in [0, 1, 255, 256, 257, 65_535, 65_536, 65_537, 200_000, MAX] {
                for data in [noise(len), vec![b'a'; len]] {
                    let out = run(compression, &encode(&data), MAX).unwrap();
                    assert!(out == data, "{name} of {len} bytes");
                }
            }
        }
    }

    #[test]
    fn one_byte_over_the_cap_is_too_large() {
        for (name, compression, encode) in codecs() {
            for data in [noise(MAX + 1), vec![0; MAX + 1]] {
                assert_eq!(run(compression, &encode(&data), MAX), Err(DecompressError::TooLarge { limit: MAX }), "{name}");
            }
        }
    }

    #[test]
    fn bombs_stop_at_the_cap() {
        let zeros = vec![0; 64 << 20];
        for (name, compression, encode) in codecs() {
            let bomb = encode(&zeros);
            // Snappy never makes more of a byte than this.
            let ratio = if compression == Compression::Snappy { 20 } else { 1000 };
            assert!(bomb.len() < zeros.len() / ratio + 4096, "{name} is a bomb");
            assert_eq!(run(compression, &bomb, MAX), Err(DecompressError::TooLarge { limit: MAX }), "{name}");
        }
        // Many members are a bomb as well.
        let members = gz(&zeros[..MAX / 4]).repeat(8);
        assert_eq!(run(Compression::Gzip, &members, MAX), Err(DecompressError::TooLarge { limit: MAX }));
    }

    #[test]
    fn several_members_and_frames_are_one_body() {
        let parts = [gz(b"one "), gz(b""), gz(b"two")].concat();
        assert_eq!(run(Compression::Gzip, &parts, MAX).unwrap(), "one two");
        let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &5_u32.to_le_bytes(), b"notes"].concat();
        let frames = [skippable.clone(), zst(b"one "), skippable.clone(), zst(b"two"), skippable].concat();
        assert_eq!(run(Compression::Zstd, &frames, MAX).unwrap(), "one two");
    }

    #[test]
    fn trailing_garbage_truncation_and_noise_are_malformed() {
        for (name, compression, encode) in codecs() {
            let good = encode(&noise(10_000));
            for tail in [&b"garbage that is no header"[..], b"x"] {
                let bad = [&good, tail].concat();
                assert!(matches!(run(compression, &bad, MAX), Err(DecompressError::Malformed(_))), "{name} with a tail");
            }
            for cut in [1, 2, 9, 5_000, good.len() - 1] {
                let bad = &good[..good.len() - cut];
                assert!(matches!(run(compression, bad, MAX), Err(DecompressError::Malformed(_))), "{name} cut by {cut}");
            }
            if compression != Compression::Snappy {
                assert!(matches!(run(compression, b"", MAX), Err(DecompressError::Malformed(_))), "{name} empty");
            }
            assert!(matches!(run(compression, &[0xff; 64], MAX), Err(DecompressError::Malformed(_))), "{name} noise");
        }
    }

    #[test]
    fn a_lying_size_hint_costs_nothing() {
        let mut body = gz(b"short");
        let at = body.len() - 4;
        body[at..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Output::new(body.len(), usize::MAX, usize::MAX).buffer.capacity() <= FIRST_CAPACITY);
        assert!(matches!(run(Compression::Gzip, &body, MAX), Err(DecompressError::Malformed(_))));
    }

    /// As written by other programs: the reference implementation's framing of a text, and a block with a copy.
    #[test]
    fn snappy_is_what_others_write() {
        let stream = [SNAPPY_STREAM, b"\x01\x09\x00\x00\xbb\x1f\x1c\x19Wikip"].concat();
        assert!(matches!(run(Compression::Snappy, &stream, MAX), Err(DecompressError::Malformed(_))), "a wrong sum");
        let mut good = SNAPPY_STREAM.to_vec();
        let sum = crc32c::crc32c(b"Wikip").rotate_right(15).wrapping_add(0xa282_ead8);
        // Padding, a chunk to be skipped, and an uncompressed one.
        good.extend_from_slice(b"\xfe\x02\x00\x00\x00\x00\x80\x01\x00\x00x\x01\x09\x00\x00");
        good.extend_from_slice(&sum.to_le_bytes());
        good.extend_from_slice(b"Wikip");
        assert_eq!(run(Compression::Snappy, &good, MAX).unwrap(), "Wikip");
        // "Wikipedia" and a copy of four bytes from nine back.
        let block = b"\x0d\x20Wikipedia\x01\x09";
        assert_eq!(run(Compression::Snappy, block, MAX).unwrap(), "WikipediaWiki");
        // Says 4 GiB, or a little more than it can hold.
        for lie in [&b"\xff\xff\xff\xff\x0f\x00a"[..], b"\x80\x02\x00a"] {
            assert!(matches!(run(Compression::Snappy, lie, usize::MAX), Err(DecompressError::Malformed(_))));
        }
    }

    #[test]
    fn zstd_windows_beyond_the_cap_are_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(MAX_WINDOW_LOG).unwrap();
        encoder.write_all(b"small, but asks for a window of 128 MiB").unwrap();
        let body = encoder.finish().unwrap();
        assert!(matches!(run(Compression::Zstd, &body, MAX), Err(DecompressError::Malformed(_))));
        assert_eq!((window_log(1), window_log(64 << 20), window_log(usize::MAX)), (23, 26, 27));
    }

    #[test]
    fn identity_shares_the_body() {
        let body = Bytes::from_static(b"as it is");
        let out = decompress(Compression::Identity, &body, 8).unwrap();
        assert_eq!(out.as_ptr(), body.as_ptr());
        assert_eq!(decompress(Compression::Identity, &body, 7), Err(DecompressError::TooLarge { limit: 7 }));
    }
}
