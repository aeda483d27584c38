//! Files of a folder that an operator named, for pages.
//!
//! Owns which paths are inside and what a file is called in `Content-Type`. Reads, never lists. A path that leads outside, by its
//! own parts or by a link, is not there.

use std::path::Path;

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};

/// Larger files are none of a UI.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// A file to answer with.
#[derive(Debug)]
pub(crate) struct UiFile {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Vec<u8>,
}

impl IntoResponse for UiFile {
    fn into_response(self) -> Response {
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(self.content_type)),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        (headers, self.bytes).into_response()
    }
}

/// The file at `path` below `dir`, decoded as it stands in a URL; `None` if there is none.
pub(crate) async fn file(dir: &Path, path: &str) -> Option<UiFile> {
    let is_name = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', ':', '\0']);
    if !path.split('/').all(is_name) {
        return None;
    }
    let (dir, file) = (tokio::fs::canonicalize(dir).await.ok()?, tokio::fs::canonicalize(dir.join(path)).await.ok()?);
    let data = tokio::fs::metadata(&file).await.ok()?;
    if !file.starts_with(&dir) || !data.is_file() || data.len() > MAX_FILE_BYTES {
        return None;
    }
    let bytes = tokio::fs::read(&file).await.ok()?;
    Some(UiFile { content_type: content_type(path), bytes })
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, end)| end).unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "eot" => "application/vnd.ms-fontobject",
        "txt" => "text/plain; charset=utf-8",
        "webmanifest" => "application/manifest+json",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_inside_is_there() {
        let home = std::env::temp_dir().join(format!("spanhouse-ui-files-{}", std::process::id()));
        let dir = home.join("ui");
        std::fs::create_dir_all(dir.join("static")).unwrap();
        std::fs::write(home.join("secret.txt"), "s").unwrap();
        std::fs::write(dir.join("static/app.js"), "js").unwrap();
        std::fs::write(dir.join(".hidden"), "h").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(home.join("secret.txt"), dir.join("link.txt")).unwrap();
        let asset = file(&dir, "static/app.js").await.unwrap();
        assert_eq!((asset.content_type, asset.bytes.as_slice()), ("text/javascript; charset=utf-8", b"js".as_slice()));
        for path in [
            "",
            "static",
            "nothing.js",
            "../secret.txt",
            "static/../../secret.txt",
            ".hidden",
            "link.txt",
            "/etc/passwd",
            "a\0b",
        ] {
            assert!(file(&dir, path).await.is_none(), "{path:?}");
        }
        std::fs::remove_dir_all(home).unwrap();
    }
}
