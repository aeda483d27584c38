//! Jaeger UI as it was built: its page with what the server knows put in, and its files.
//!
//! Owns which files are read and how they are sent. The page and the configuration are read anew for every request, so that both may be
//! replaced while the server runs; files are sent in pieces. A built UI may have its files packed (`x.js.gz`, without `x.js`):
//! clients that take gzip get them as they are.
//!
//! No path of a request leads out of the directory: its parts are plain names, and what they lead to must lie inside after links are followed.

mod page;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use flate2::read::GzDecoder;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

use super::HttpDeps;
use crate::api::respond::accepts_gzip;

/// Largest file that is unpacked for clients that do not take it packed; also the largest page and configuration.
const MAX_UNPACKED_BYTES: u64 = 64 << 20;

/// Files are read in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;

/// Names of most files change with their content. The others may be old for this long.
const FILE_AGE: HeaderValue = HeaderValue::from_static("public, max-age=3600");
const PAGE_AGE: HeaderValue = HeaderValue::from_static("no-cache");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// Which UI is served.
#[derive(Debug, Clone, Default)]
pub struct UiSettings {
    /// Directory with `index.html` and `static/`; `None` for no UI.
    pub dir: Option<PathBuf>,
    /// Configuration of the UI: `.json`, or `.js` that defines `UIConfig`.
    pub config_file: Option<PathBuf>,
    /// Version of this program, which the UI shows.
    pub version: String,
}

/// Why a UI cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum UiError {
    #[error("{} is not readable: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{} is not JSON: {error}", path.display())]
    NotJson { path: PathBuf, error: serde_json::Error },
    #[error("{} is neither .json nor .js", path.display())]
    UnknownForm { path: PathBuf },
}

impl UiSettings {
    /// Reads what a page needs, so that a wrong path is known at the start and not at the first visit.
    pub async fn check(&self) -> Result<(), UiError> {
        if let Some(dir) = &self.dir {
            index(dir).await?;
        }
        page::config(self.config_file.as_deref()).await.map(drop)
    }
}

/// The page, whatever its path: it routes by itself.
pub(super) async fn page(deps: &HttpDeps) -> Response {
    let capabilities = page::Capabilities { archive: deps.queries.deps().archive.is_some() };
    let html = match &deps.ui.dir {
        None => Ok(page::without_ui(&deps.base_path)),
        Some(dir) => with_ui(dir, &deps.ui, &deps.base_path, capabilities).await,
    };
    match html {
        Ok(html) => ([(CONTENT_TYPE, HTML), (CACHE_CONTROL, PAGE_AGE)], html).into_response(),
        Err(error) => {
            tracing::warn!(%error, "Jaeger UI cannot be served");
            // Where files lie is the operator's to know.
            let text = "Jaeger UI cannot be served: the log says why\n";
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, super::TEXT)], text).into_response()
        }
    }
}

async fn with_ui(dir: &Path, ui: &UiSettings, base: &str, capabilities: page::Capabilities) -> Result<String, UiError> {
    let index = index(dir).await?;
    let config = page::config(ui.config_file.as_deref()).await?;
    Ok(page::filled(&index, &config, &ui.version, base, capabilities))
}

async fn index(dir: &Path) -> Result<String, UiError> {
    let plain = dir.join("index.html");
    let packed = dir.join("index.html.gz");
    if tokio::fs::try_exists(&packed).await.unwrap_or(false) && !tokio::fs::try_exists(&plain).await.unwrap_or(false) {
        return read_text(&packed, true).await;
    }
    read_text(&plain, false).await
}

/// A small file as text, unpacked if it is packed.
async fn read_text(path: &Path, packed: bool) -> Result<String, UiError> {
    let unreadable = |error| UiError::Unreadable { path: path.to_owned(), error };
    let bytes = read_bounded(path).await.map_err(unreadable)?;
    let bytes = if packed { unpacked(bytes).await.map_err(unreadable)? } else { bytes };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).await?.take(MAX_UNPACKED_BYTES).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

async fn unpacked(packed: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let unpack = move || {
        let mut bytes = Vec::new();
        GzDecoder::new(packed.as_slice()).take(MAX_UNPACKED_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    tokio::task::spawn_blocking(unpack).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// A file below `static`; `None` if there is none.
pub(super) async fn file(ui: &UiSettings, name: &str, headers: &HeaderMap) -> Option<Response> {
    let dir = ui.dir.as_ref()?.join("static");
    let name = relative(name)?;
    let kind = content_type(&name);
    let packed = inside(&dir, &format!("{name}.gz")).await;
    if let Some(path) = packed.as_ref().filter(|_| accepts_gzip(headers)) {
        let mut response = streamed(path, kind).await?;
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        return Some(response);
    }
    if let Some(path) = inside(&dir, &name).await {
        return streamed(&path, kind).await;
    }
    let bytes = unpacked(read_bounded(&packed?).await.ok()?).await.ok()?;
    Some(([(CONTENT_TYPE, HeaderValue::from_static(kind)), (CACHE_CONTROL, FILE_AGE)], bytes).into_response())
}

/// The path that a request's text names: parts that are plain names, or nothing.
fn relative(text: &str) -> Option<String> {
    let parts: Option<Vec<String>> = text.split('/').map(percent_decoded).collect();
    let parts = parts?;
    // Hidden files are no part of a UI, and a part may hold no separator of any system.
    let is_plain = |part: &String| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', '\0', ':']);
    parts.iter().all(is_plain).then(|| parts.join("/"))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        bytes.push((digit(0)? * 16 + digit(1)?) as u8);
        rest = after.get(2..)?;
    }
    String::from_utf8(bytes).ok()
}

/// Where a name leads with all links followed, if that is a file inside the directory.
async fn inside(dir: &Path, name: &str) -> Option<PathBuf> {
    let root = tokio::fs::canonicalize(dir).await.ok()?;
    let path = tokio::fs::canonicalize(root.join(name)).await.ok()?;
    let is_file = tokio::fs::metadata(&path).await.ok()?.is_file();
    (is_file && path.starts_with(&root)).then_some(path)
}

async fn streamed(path: &Path, kind: &'static str) -> Option<Response> {
    let file = File::open(path).await.ok()?;
    let length = file.metadata().await.ok()?.len();
    // No more than was announced, should the file grow meanwhile.
    let pieces = futures::stream::try_unfold(file.take(length), async |mut file| {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = file.read_buf(&mut piece).await?;
        Ok::<_, std::io::Error>((read > 0).then_some((piece, file)))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CONTENT_LENGTH, HeaderValue::from(length)),
        (CACHE_CONTROL, FILE_AGE),
    ];
    Some((headers, Body::from_stream(pieces)).into_response())
}

fn content_type(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    match ending.as_str() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "txt" | "md" => "text/plain; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "eot" => "application/vnd.ms-fontobject",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_paths() {
        for (text, path) in [("a.js", "a.js"), ("media/x%20y.svg", "media/x y.svg"), ("a..b/c", "a..b/c")] {
            assert_eq!(relative(text).as_deref(), Some(path));
        }
        let bad = [
            "",
            "/",
            "a/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            "%2e%2e/a",
            "a%2f..%2fb",
            "a\\b",
            "%5c..%5ca",
            "a%00",
            "%",
            "%2",
            "%zz",
            "%ff",
            ".git/config",
            "./a",
            "c:%5cx",
            "a//b",
        ];
        for text in bad {
            assert_eq!(relative(text), None, "{text}");
        }
    }
}
