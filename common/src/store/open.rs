//! Opens a store from its URL.
//!
//! Owns the choice of implementation, its retry limits and the prefix. Does not own credentials: they come from the
//! environment, as each cloud's own tools read them, or from the `options` of the configuration.

use std::collections::BTreeMap;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};
use url::Url;

/// Retries of one request before the error surfaces. The WAL holds the data meanwhile.
const MAX_RETRIES: usize = 10;

/// Longest time retries of one request may take; below the five minutes credentials are sure to live.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);

/// Settings passed through to the store, by object_store's key names (`aws_region`, `aws_endpoint`, ...). They win over the
/// environment.
pub type OpenOptions = BTreeMap<String, String>;

/// Why a store could not be opened. Each text ends in the user's next move.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "`{url}` is not a store: use s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, memory: or a local path"
    )]
    Unrecognised { url: String },
    #[error("the prefix of `{url}` cannot be part of an object's key: take out empty, `.` and `..` parts")]
    BadPrefix {
        url: String,
        #[source]
        source: object_store::path::Error,
    },
    #[error("`{key}` is not an option of {store} stores: correct its spelling or remove it")]
    UnknownOption { store: &'static str, key: String },
    #[error(
        "the {store} store `{url}` is not fully configured: set what is missing in the environment or in the store's options"
    )]
    Config {
        store: &'static str,
        url: String,
        #[source]
        source: object_store::Error,
    },
    #[error("the directory {} cannot be used: make it writable for this user or name another", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Opens the store `url` names. Nothing is read or written, but a local directory is created.
///
/// `memory:` lives and ends with the returned handle.
pub fn open(url: &str, options: &OpenOptions) -> Result<Arc<dyn ObjectStore>, OpenError> {
    if url == "memory:" || url == "memory://" || url == "memory:///" {
        return Ok(Arc::new(InMemory::new()));
    }
    // A path is what has no scheme. One letter before the colon is a Windows drive.
    let scheme = url.split_once(':').map(|(scheme, _)| scheme).filter(|s| s.len() > 1 && !s.contains(['/', '.']));
    let Some(scheme) = scheme else {
        if url.is_empty() {
            return Err(OpenError::Unrecognised { url: url.to_owned() });
        }
        return open_directory(FsPath::new(url));
    };
    let parsed = Url::parse(url).map_err(|_| OpenError::Unrecognised { url: url.to_owned() })?;
    let mut bare = parsed.clone();
    // The builders read the bucket only; a path would make some of them refuse.
    bare.set_path("");
    match scheme {
        "file" => {
            let path = parsed.to_file_path().map_err(|()| OpenError::Unrecognised { url: url.to_owned() })?;
            open_directory(&path)
        }
        "s3" | "s3a" => {
            let mut builder = AmazonS3Builder::from_env().with_url(bare.as_str()).with_retry(retry());
            for (key, value) in options {
                builder = builder.with_config(parse_key("s3", key)?, value);
            }
            prefixed(builder.build().map_err(|source| config_error("s3", url, source))?, &parsed)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_url(bare.as_str()).with_retry(retry());
            for (key, value) in options {
                builder = builder.with_config(parse_key("gs", key)?, value);
            }
            prefixed(builder.build().map_err(|source| config_error("gs", url, source))?, &parsed)
        }
        "az" | "azure" | "abfs" | "abfss" => {
            let mut builder = MicrosoftAzureBuilder::from_env().with_url(bare.as_str()).with_retry(retry());
            for (key, value) in options {
                builder = builder.with_config(parse_key("az", key)?, value);
            }
            prefixed(builder.build().map_err(|source| config_error("az", url, source))?, &parsed)
        }
        _ => Err(OpenError::Unrecognised { url: url.to_owned() }),
    }
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: MAX_RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() }
}

fn parse_key<K: std::str::FromStr>(store: &'static str, key: &str) -> Result<K, OpenError> {
    key.to_ascii_lowercase().parse().map_err(|_| OpenError::UnknownOption { store, key: key.to_owned() })
}

fn config_error(store: &'static str, url: &str, source: object_store::Error) -> OpenError {
    OpenError::Config { store, url: url.to_owned(), source }
}

fn prefixed(store: impl ObjectStore, url: &Url) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let prefix = Path::from_url_path(url.path()).map_err(|source| OpenError::BadPrefix { url: url.to_string(), source })?;
    if prefix.as_ref().is_empty() { Ok(Arc::new(store)) } else { Ok(Arc::new(PrefixStore::new(store, prefix))) }
}

fn open_directory(path: &FsPath) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let bad = |source| OpenError::Directory { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(bad)?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|source| bad(std::io::Error::other(source)))?;
    // Off by default in object_store, and a committed block has been lost to a power cut without it.
    Ok(Arc::new(store.with_fsync(true)))
}

#[cfg(test)]
mod tests {
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;

    fn check(url: &str) -> String {
        match open(url, &OpenOptions::new()) {
            Ok(store) => store.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn urls_choose_the_store() {
        assert_eq!(check("memory:"), "InMemory");
        assert!(check("ftp://x/y").starts_with("`ftp://x/y` is not a store: use s3://"));
        assert!(check("").contains("is not a store"));
        assert!(check("s3://").contains("s3"));
    }

    #[test]
    fn options_and_prefix_reach_the_builder() {
        let mut options = OpenOptions::new();
        options.insert("aws_region".into(), "eu-west-1".into());
        let store = open("s3://bucket/some/prefix", &options).unwrap();
        assert_eq!(store.to_string(), "PrefixObjectStore(some/prefix)");
        options.insert("aws_regoin".into(), "eu-west-1".into());
        let error = open("s3://bucket", &options).unwrap_err().to_string();
        assert_eq!(error, "`aws_regoin` is not an option of s3 stores: correct its spelling or remove it");
    }

    #[tokio::test]
    async fn local_paths_and_file_urls_are_the_same_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let by_path = open(path.to_str().unwrap(), &OpenOptions::new()).unwrap();
        by_path.put(&Path::from("x"), PutPayload::from_static(b"1")).await.unwrap();
        let by_url = open(&format!("file://{}", path.display()), &OpenOptions::new()).unwrap();
        assert_eq!(by_url.get(&Path::from("x")).await.unwrap().bytes().await.unwrap().as_ref(), b"1");
        std::fs::write(dir.path().join("file"), b"").unwrap();
        let error = open(dir.path().join("file").to_str().unwrap(), &OpenOptions::new()).unwrap_err();
        assert!(matches!(error, OpenError::Directory { .. }));
    }
}
