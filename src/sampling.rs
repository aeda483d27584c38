//! Sampling as the settings say: turns them into what the ingester's part takes. Owns nothing else.

use std::sync::Arc;

use anyhow::Result;
use object_store::ObjectStore;
use spanhouse_common::telemetry::Telemetry;
use spanhouse_common::time::Clock;
use spanhouse_ingester::sampling::adaptive::{AdaptiveConfig, calculate::Targets};
use spanhouse_ingester::sampling::metrics::SamplingMetrics;
use spanhouse_ingester::sampling::watch::Location;
use spanhouse_ingester::sampling::{Sampling, SamplingConfig};

use crate::config;

/// What clients are told to sample, from a file or learned.
pub async fn open(
    sampling: &config::SamplingConfig,
    store: Arc<dyn ObjectStore>,
    clock: &Arc<dyn Clock>,
    telemetry: &Telemetry,
) -> Result<Sampling> {
    let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let adaptive = AdaptiveConfig {
        targets: Targets {
            samples_per_second: sampling.target_samples_per_second,
            delta_tolerance: sampling.delta_tolerance,
            calculation_buckets: count(sampling.calculation_buckets),
            initial_probability: sampling.initial_sampling_probability,
            min_probability: sampling.min_sampling_probability,
        },
        calculation_interval: sampling.calculation_interval,
        aggregation_buckets: count(sampling.aggregation_buckets),
        calculation_delay: sampling.calculation_delay,
        min_samples_per_second: sampling.min_samples_per_second,
        leader_patience: sampling.leader_lease_refresh_interval,
        reload_interval: sampling.follower_lease_refresh_interval,
    };
    let settings = SamplingConfig {
        strategies: sampling.strategies_file.as_deref().map(Location::new),
        reload_interval: sampling.reload_interval,
        default_probability: sampling.default_probability,
        legacy_enums: sampling.legacy_enums,
        adaptive: sampling.adaptive.then_some(adaptive),
    };
    let metrics = telemetry.register("sampling", SamplingMetrics::register);
    Ok(Sampling::open(settings, store, Arc::clone(clock), metrics).await?)
}
