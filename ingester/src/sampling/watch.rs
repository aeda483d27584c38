//! Where the strategy file is, reading it, and following it while the process runs.
//!
//! Owns the place (a path or an http(s) URL), the bounds on reading it, and which strategies are in force. A file that cannot
//! be read or used leaves what was in force, is told once and counted. Content is compared and not times: mounted
//! configuration changes by symlink. Nothing is written.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::file::{BadFile, Strategies};
use super::metrics::SamplingMetrics;

/// A file of some hundred thousand operations fits; anything larger is not a strategy file.
const MAX_FILE_BYTES: usize = 8 << 20;
/// How long a URL may take to answer whole.
const URL_TIMEOUT: Duration = Duration::from_secs(1);
/// What a URL means that says it is not there for the moment.
const NOTHING: &[u8] = b"null";

/// Where a strategy file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    File(PathBuf),
    /// http or https.
    Url(String),
}

impl Location {
    /// A URL if it starts like one, else a path.
    pub fn new(text: &str) -> Self {
        let is = |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        if is("http://") || is("https://") { Self::Url(text.to_owned()) } else { Self::File(PathBuf::from(text)) }
    }
}

/// Without what may be a password.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let host = rest[..end].rsplit('@').next().unwrap_or_default();
                let path = rest[end..].split(['?', '#']).next().unwrap_or_default();
                write!(f, "{scheme}://{host}{path}")
            }
        }
    }
}

/// Why a strategy file is not in force.
#[derive(Debug, thiserror::Error)]
pub enum StrategyFileError {
    #[error("cannot read the sampling strategies at {at}: {source}")]
    Io { at: Location, source: std::io::Error },
    #[error("cannot read the sampling strategies at {at}: {why}")]
    Http { at: Location, why: String },
    #[error("cannot use the sampling strategies at {at}: {source}")]
    Bad { at: Location, source: BadFile },
}

/// The strategies in force, and where they come from.
#[derive(Debug)]
pub struct StrategyFile {
    location: Option<Location>,
    client: Option<reqwest::Client>,
    default_probability: f64,
    current: ArcSwap<Strategies>,
    last: Mutex<Last>,
    metrics: SamplingMetrics,
}

/// What the last look found.
#[derive(Debug, Default)]
struct Last {
    bytes: Option<Vec<u8>>,
    /// Set while the file cannot be used, so that the same fault is told once.
    fault: Option<String>,
}

impl StrategyFile {
    /// Reads the file for the first time; without a location everybody is told `default_probability`. A file that cannot be
    /// used is an error then: there is nothing older to go on with. A URL is not, for its server may start after this one.
    pub async fn open(
        location: Option<Location>,
        default_probability: f64,
        metrics: SamplingMetrics,
    ) -> Result<Self, StrategyFileError> {
        let client = match &location {
            Some(at @ Location::Url(_)) => {
                let built = reqwest::Client::builder().timeout(URL_TIMEOUT).build();
                Some(built.map_err(|error| StrategyFileError::Http { at: at.clone(), why: told(error) })?)
            }
            _ => None,
        };
        let file = Self {
            location,
            client,
            default_probability,
            current: ArcSwap::from_pointee(Strategies::only(default_probability)),
            last: Mutex::default(),
            metrics,
        };
        match file.reload().await {
            Err(error) if file.client.is_none() => Err(error),
            _ => Ok(file),
        }
    }

    /// The strategies in force.
    pub fn current(&self) -> Arc<Strategies> {
        self.current.load_full()
    }

    /// Reads the file again. True if other strategies are in force now; on an error the old ones stay, and it is counted and
    /// logged.
    pub async fn reload(&self) -> Result<bool, StrategyFileError> {
        let result = self.read().await;
        let mut last = self.last.lock();
        match &result {
            Ok(_) => {
                if last.fault.take().is_some() {
                    tracing::info!("sampling strategies can be read again");
                }
                self.metrics.reload_succeeded();
            }
            Err(error) => {
                let text = error.to_string();
                self.metrics.reload_failed();
                if last.fault.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, "sampling strategies not loaded: the old ones stay in force");
                    last.fault = Some(text);
                }
            }
        }
        result
    }

    /// Reloads at this interval until `stop`; never if it is zero.
    pub async fn watch(self: Arc<Self>, interval: Duration, stop: CancellationToken) {
        if self.location.is_none() || interval.is_zero() {
            return;
        }
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            // Faults are counted and logged inside.
            if stop.run_until_cancelled(self.reload()).await.is_none() {
                return;
            }
        }
    }

    async fn read(&self) -> Result<bool, StrategyFileError> {
        let Some(at) = &self.location else { return Ok(false) };
        let bytes = match at {
            Location::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || read_file(&path)).await;
                let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
                read.map_err(|source| StrategyFileError::Io { at: at.clone(), source })?
            }
            Location::Url(url) => {
                let read = self.fetch(url).await;
                read.map_err(|why| StrategyFileError::Http { at: at.clone(), why })?
            }
        };
        if self.last.lock().bytes.as_ref() == Some(&bytes) {
            return Ok(false);
        }
        let (strategies, warnings) = Strategies::parse(&bytes, self.default_probability)
            .map_err(|source| StrategyFileError::Bad { at: at.clone(), source })?;
        for warning in &warnings.texts {
            tracing::warn!("sampling strategies: {warning}");
        }
        if warnings.total > warnings.texts.len() {
            tracing::warn!(more = warnings.total - warnings.texts.len(), "sampling strategies: more of the kind");
        }
        tracing::info!(at = %at, services = strategies.services(), "sampling strategies loaded");
        self.current.store(Arc::new(strategies));
        self.last.lock().bytes = Some(bytes);
        Ok(true)
    }

    async fn fetch(&self, url: &str) -> Result<Vec<u8>, String> {
        let Some(client) = &self.client else { return Err("there is no client for URLs".into()) };
        let mut response = client.get(url).send().await.map_err(told)?;
        if response.status() == reqwest::StatusCode::SERVICE_UNAVAILABLE {
            return Ok(NOTHING.to_vec());
        }
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("status {}", response.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(told)? {
            if bytes.len() + chunk.len() > MAX_FILE_BYTES {
                return Err(format!("larger than {MAX_FILE_BYTES} bytes"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// What a client says and why, without the URL, which may hold a password.
fn told(error: reqwest::Error) -> String {
    use std::error::Error as _;
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn read_file(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(std::io::Error::other(format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::sampling::strategy::{Rate, Strategy};

    fn probability(file: &StrategyFile) -> Option<Rate> {
        let Strategy { rate, .. } = file.current().of("any");
        rate
    }

    fn text(probability: f64) -> String {
        format!(r#"{{"default_strategy":{{"type":"probabilistic","param":{probability}}}}}"#)
    }

    async fn open(location: Location) -> Result<StrategyFile, StrategyFileError> {
        StrategyFile::open(Some(location), 0.001, SamplingMetrics::default()).await
    }

    #[tokio::test]
    async fn a_changed_file_takes_effect_and_a_broken_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("strategies.json");
        let at = || Location::new(path.to_str().unwrap());
        let missing = open(at()).await.unwrap_err().to_string();
        assert!(missing.contains("strategies.json"), "{missing}");
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(open(at()).await.unwrap_err(), StrategyFileError::Bad { .. }));

        std::fs::write(&path, text(0.5)).unwrap();
        let file = open(at()).await.unwrap();
        let half = Some(Rate::Probability(0.5));
        assert_eq!(probability(&file), half);
        assert!(!file.reload().await.unwrap(), "unchanged");

        std::fs::write(&path, "{").unwrap();
        file.reload().await.unwrap_err();
        file.reload().await.unwrap_err();
        assert_eq!((probability(&file), file.metrics.failed_reloads(), file.metrics.is_stale()), (half, 2, true));
        std::fs::write(&path, text(0.5)).unwrap();
        assert!(!file.reload().await.unwrap(), "back to what it was");
        assert!(!file.metrics.is_stale());

        std::fs::write(&path, text(0.25)).unwrap();
        assert!(file.reload().await.unwrap());
        std::fs::remove_file(&path).unwrap();
        file.reload().await.unwrap_err();
        assert_eq!(probability(&file), Some(Rate::Probability(0.25)));
        std::fs::write(&path, vec![b' '; MAX_FILE_BYTES + 1]).unwrap();
        assert!(file.reload().await.unwrap_err().to_string().contains("larger than"));
        std::fs::write(&path, "null").unwrap();
        assert!(file.reload().await.unwrap());
        assert_eq!(probability(&file), Some(Rate::Probability(0.001)));
    }

    #[tokio::test]
    async fn a_url_is_followed_by_its_own_rules() {
        let answer = Arc::new(Mutex::new((StatusCode::NOT_FOUND, String::new(), Duration::ZERO)));
        let served = Arc::clone(&answer);
        let app = axum::Router::new().fallback(move || {
            let (status, body, pause) = served.lock().clone();
            async move {
                tokio::time::sleep(pause).await;
                (status, body)
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let io = |stream| hyper_util::rt::TokioIo::new(stream);
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(app.clone());
                tokio::spawn(async move {
                    hyper::server::conn::http1::Builder::new().serve_connection(io(stream), service).await
                });
            }
        });
        let set = |status, body: String, pause| *answer.lock() = (status, body, pause);
        // Its server may start later.
        let file = open(Location::new(&format!("http://user:word@{address}/strategies?token=word"))).await.unwrap();
        assert_eq!(probability(&file), Some(Rate::Probability(0.001)));
        let error = file.reload().await.unwrap_err().to_string();
        assert!(error.contains("404") && error.contains("/strategies") && !error.contains("word"), "{error}");

        set(StatusCode::OK, text(0.5), Duration::ZERO);
        assert!(file.reload().await.unwrap());
        let half = Some(Rate::Probability(0.5));
        for (status, body, pause) in [
            (StatusCode::INTERNAL_SERVER_ERROR, text(0.1), Duration::ZERO),
            (StatusCode::CREATED, text(0.1), Duration::ZERO),
            (StatusCode::OK, "{".into(), Duration::ZERO),
            (StatusCode::OK, " ".repeat(MAX_FILE_BYTES + 1), Duration::ZERO),
            (StatusCode::OK, text(0.1), URL_TIMEOUT * 2),
        ] {
            set(status, body, pause);
            let error = file.reload().await.unwrap_err().to_string();
            assert!(!error.contains("word"), "{error}");
            assert_eq!(probability(&file), half, "{error}");
        }
        set(StatusCode::SERVICE_UNAVAILABLE, "{".into(), Duration::ZERO);
        assert!(file.reload().await.unwrap());
        assert_eq!(probability(&file), Some(Rate::Probability(0.001)));
        assert!(!file.reload().await.unwrap());
    }

    #[test]
    fn locations_are_told_apart_and_shown_without_passwords() {
        for (text, shown) in [
            ("/etc/strategies.json", "/etc/strategies.json"),
            ("httpd.json", "httpd.json"),
            ("https://a:b@host:80/x?token=1", "https://host:80/x"),
            ("HTTP://host", "HTTP://host"),
        ] {
            let location = Location::new(text);
            assert_eq!(location.to_string(), shown);
            assert_eq!(matches!(location, Location::Url(_)), text.to_lowercase().contains("://"), "{text}");
        }
    }
}
