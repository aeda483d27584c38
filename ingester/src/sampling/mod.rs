//! Remote sampling: clients ask which traces to keep, and the process tells them.
//!
//! Strategies come from a file that is followed while running ([`watch`], [`file`]), or are learned from the spans that arrive
//! ([`adaptive`]). [`strategy`] is the one form both give; [`http`] and [`grpc`] write it.
//!
//! Does not own: ports and their servers, spans. Knows no tenants: clients ask before they belong to one, so that strategies are
//! the process's. Nothing a client asks for makes anything grow.

pub mod adaptive;
pub mod file;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod strategy;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use spanhouse_common::time::Clock;
use tokio_util::sync::CancellationToken;

use self::adaptive::{Adaptive, AdaptiveConfig, Observer};
use self::metrics::SamplingMetrics;
use self::strategy::Strategy;
use self::watch::{Location, StrategyFile, StrategyFileError};

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct SamplingConfig {
    /// `None`: everybody is told `default_probability`.
    pub strategies: Option<Location>,
    /// How often the file is looked at. Zero: once.
    pub reload_interval: Duration,
    /// Where the file says nothing a client could use.
    pub default_probability: f64,
    /// Writes types as numbers on the bare path `/`, as agents of version 1 did.
    pub legacy_enums: bool,
    /// Learns instead of reading a file.
    pub adaptive: Option<AdaptiveConfig>,
}

/// Tells services how to sample.
#[derive(Debug)]
pub struct Sampling {
    provider: Provider,
    reload_interval: Duration,
    legacy_enums: bool,
    metrics: SamplingMetrics,
}

#[derive(Debug)]
enum Provider {
    File(Arc<StrategyFile>),
    Adaptive(Arc<Adaptive>),
}

impl Sampling {
    /// Reads what is to be told. `store` is where processes share what they learn.
    pub async fn open(
        config: SamplingConfig,
        store: Arc<dyn ObjectStore>,
        clock: Arc<dyn Clock>,
        metrics: SamplingMetrics,
    ) -> Result<Self, StrategyFileError> {
        let provider = match config.adaptive {
            Some(adaptive) => Provider::Adaptive(Arc::new(Adaptive::open(adaptive, store, clock, metrics.clone()).await)),
            None => {
                let file = StrategyFile::open(config.strategies, config.default_probability, metrics.clone()).await?;
                Provider::File(Arc::new(file))
            }
        };
        let SamplingConfig { reload_interval, legacy_enums, .. } = config;
        Ok(Self { provider, reload_interval, legacy_enums, metrics })
    }

    /// What `service` is told now.
    pub fn strategy(&self, service: &str) -> Strategy {
        match &self.provider {
            Provider::File(file) => file.current().of(service),
            Provider::Adaptive(adaptive) => adaptive.strategy(service),
        }
    }

    /// What must see accepted spans, if anything is learned from them.
    pub fn observer(&self) -> Option<Arc<Observer>> {
        match &self.provider {
            Provider::File(_) => None,
            Provider::Adaptive(adaptive) => Some(adaptive.observer()),
        }
    }

    /// Follows the file, or learns, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        match &self.provider {
            Provider::File(file) => Arc::clone(file).watch(self.reload_interval, stop).await,
            Provider::Adaptive(adaptive) => adaptive.run(stop).await,
        }
    }
}

#[cfg(test)]
mod testing {
    use object_store::memory::InMemory;
    use spanhouse_common::time::{ManualClock, UnixNanos};

    use super::*;

    /// What a process with this file tells.
    pub(super) async fn sampling(file: &str, legacy_enums: bool) -> Arc<Sampling> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("strategies.json");
        std::fs::write(&path, file).unwrap();
        let config = SamplingConfig {
            strategies: Some(Location::File(path)),
            reload_interval: Duration::ZERO,
            default_probability: 0.001,
            legacy_enums,
            adaptive: None,
        };
        let clock = ManualClock::at(UnixNanos(0));
        Arc::new(Sampling::open(config, Arc::new(InMemory::new()), clock, SamplingMetrics::default()).await.unwrap())
    }
}
