//! What the HTTP receivers read from a request's head, and plain answers.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::status::Refusal;
use crate::pipeline::Compression;

/// The content type without its parameters; `None` if the header is missing or no text.
pub(crate) fn content_type(headers: &HeaderMap) -> Option<&str> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(kind.split(';').next().unwrap_or_default().trim())
}

/// At most one encoding: what is compressed twice is an attack or a mistake.
pub(crate) fn compression(headers: &HeaderMap) -> Result<Compression, Refusal> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return if headers.contains_key(header::CONTENT_ENCODING) {
            Err(Refusal::malformed("several Content-Encoding headers"))
        } else {
            Ok(Compression::Identity)
        };
    };
    let name = String::from_utf8_lossy(value.as_bytes());
    match name.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Compression::Identity),
        "gzip" | "x-gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        "deflate" | "zlib" => Ok(Compression::Deflate),
        "snappy" | "x-snappy-framed" => Ok(Compression::Snappy),
        _ => Err(Refusal::malformed(format!("unsupported Content-Encoding: {}", name.trim()))),
    }
}

/// An answer of plain text.
pub(crate) fn plain(code: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
