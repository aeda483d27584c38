//! From the configuration to what each role is told.
//!
//! Owns no default: these are the configuration's and the roles' own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use spanhouse_common::telemetry::Telemetry;
use spanhouse_common::time::Clock;
use spanhouse_compactor::CompactorConfig;
use spanhouse_compactor::policy::PolicyConfig;
use spanhouse_ingester::IngesterConfig;
use spanhouse_ingester::admission::metrics::AdmissionMetrics;
use spanhouse_ingester::admission::{Admission, limits::Limits, overrides::Overrides};
use spanhouse_ingester::flush::FlushConfig;
use spanhouse_ingester::live::CutPolicy;
use spanhouse_ingester::receive::receiver::ReceiverSettings;
use spanhouse_ingester::wal::WalConfig;
use spanhouse_querier::api::{ApiDeps, ApiSettings};
use spanhouse_querier::find_trace::QueryBounds;
use spanhouse_querier::jaeger::http::UiSettings;
use spanhouse_querier::jaeger::{Archive, JaegerDeps, JaegerQueries, JaegerSettings};
use spanhouse_querier::zipkin::{AutocompleteKeys, ZipkinDeps, ZipkinSettings};

use crate::config::{Config, MemoryShares};

/// The limits of every tenant that the overrides file says nothing of.
fn base_limits(config: &Config) -> Limits {
    let ingest = &config.ingest;
    Limits {
        ingestion_rate_bytes: ingest.rate_limit_bytes.0.map(|bytes| bytes.0),
        ingestion_burst_bytes: ingest.burst_size_bytes.0.map(|bytes| bytes.0),
        max_trace_bytes: ingest.max_trace_bytes.0.map_or(u64::MAX, |bytes| bytes.0),
        max_attribute_bytes: ingest.max_attribute_bytes.0.map(|bytes| bytes.0),
        retention: config.retention,
    }
}

/// The limits and retention of every tenant as they are in the overrides file now. For commands, which do not watch it.
pub fn overrides(config: &Config) -> Result<Overrides> {
    Ok(Overrides::load(config.ingest.overrides_file.as_deref(), base_limits(config))?)
}

pub(super) fn admission(config: &Config, clock: &Arc<dyn Clock>, telemetry: &Telemetry) -> Result<Arc<Admission>> {
    let metrics = telemetry.register("admission", AdmissionMetrics::new);
    Ok(Arc::new(Admission::new(config.ingest.overrides_file.clone(), base_limits(config), Arc::clone(clock), metrics)?))
}

pub(super) fn ingester_config(config: &Config, shares: &MemoryShares) -> IngesterConfig {
    let flush = &config.flush;
    IngesterConfig {
        wal_dir: config.wal_dir(),
        wal: WalConfig {
            segment_bytes: config.wal.segment_bytes.0,
            max_bytes: config.wal.max_bytes.0,
            group_bytes: config.wal.group_bytes.0,
            linger: config.wal.linger,
            ..WalConfig::default()
        },
        cut: CutPolicy {
            max_age: flush.max_age,
            max_spans: usize::try_from(flush.cut_spans).unwrap_or(usize::MAX),
            // What is being flushed and what arrives meanwhile must both fit, with the encoder beside them.
            max_bytes: flush.cut_bytes.as_usize().min(shares.ingest.as_usize() / 3),
        },
        flush: FlushConfig { window_seconds: flush.window.as_secs(), writer: Default::default() },
        max_decoded_bytes: config.ingest.max_decoded_bytes.as_usize(),
    }
}

/// Which blocks are merged, and when.
pub fn policy_config(config: &Config) -> PolicyConfig {
    let compaction = &config.compaction;
    PolicyConfig {
        fan_in: usize::try_from(compaction.fan_in).unwrap_or(usize::MAX),
        target_bytes: compaction.target_bytes.0,
        target_spans: compaction.target_spans,
        slack: compaction.slack,
    }
}

pub(super) fn compactor_config(config: &Config) -> CompactorConfig {
    let compaction = &config.compaction;
    CompactorConfig {
        merge: compaction.enabled,
        policy: policy_config(config),
        interval: compaction.interval,
        sweep_interval: compaction.sweep_interval,
        query_grace: compaction.query_grace,
        sweep_grace: compaction.sweep_grace,
        ..CompactorConfig::default()
    }
}

pub(super) fn api_settings(config: &Config, shares: &MemoryShares) -> ApiSettings {
    let query = &config.query;
    let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    ApiSettings {
        multitenancy: config.multitenancy_enabled,
        max_trace_bytes: query.max_trace_bytes.0.map_or(ApiSettings::default().max_trace_bytes, |b| b.as_usize()),
        bounds: QueryBounds {
            deadline: query.deadline,
            memory_bytes: shares.per_query.as_usize(),
            patience: QueryBounds::default().patience.min(Duration::from_secs(5)),
        },
        multi_tenant_queries: query.multi_tenant_queries_enabled,
        max_expression_bytes: query.max_expression_bytes.as_usize(),
        end_cutoff: query.end_cutoff,
        default_search_range: query.default_search_range,
        max_search_range: query.max_search_range,
        default_limit: count(query.default_limit),
        max_limit: count(query.max_limit),
        default_spans_per_set: count(query.default_spans_per_set),
        max_spans_per_set: count(query.max_spans_per_set),
        max_metrics_range: query.max_metrics_range,
        max_intervals: query.max_metrics_intervals,
        max_exemplars: count(query.max_exemplars),
        max_series: count(query.max_series),
        max_tag_bytes: query.max_tag_bytes.as_usize(),
        mcp: config.mcp_server.enabled,
    }
}

/// What Jaeger's protocols and Zipkin's ask; they stand on the same engine, memory and metrics as Tempo's.
pub(super) fn jaeger_queries(config: &Config, api: &ApiDeps, archive: Option<Arc<dyn Archive>>) -> JaegerQueries {
    JaegerQueries::new(JaegerDeps {
        snapshots: Arc::clone(&api.snapshots),
        engine: Arc::clone(&api.engine),
        clock: Arc::clone(&api.clock),
        memory: api.memory.clone(),
        metrics: api.metrics.clone(),
        settings: JaegerSettings {
            multitenancy: api.settings.multitenancy,
            bounds: api.settings.bounds,
            max_trace_bytes: api.settings.max_trace_bytes,
            max_limit: usize::try_from(api.settings.max_limit).unwrap_or(usize::MAX),
            max_clock_skew_adjust: config.jaeger.max_clock_skew_adjust,
        },
        archive,
    })
}

pub(super) fn jaeger_ui(config: &Config) -> UiSettings {
    UiSettings {
        dir: config.jaeger.ui_dir.clone(),
        config_file: config.jaeger.ui_config_file.clone(),
        version: format!("v{}", env!("CARGO_PKG_VERSION")),
    }
}

pub(super) fn zipkin_deps(config: &Config, api: &ApiDeps, queries: JaegerQueries) -> ZipkinDeps {
    let keys = config.zipkin.autocomplete_keys.as_str();
    let list = || keys.split(',').map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned).collect();
    ZipkinDeps {
        queries,
        settings: ZipkinSettings {
            ui_dir: config.zipkin.ui_dir.clone(),
            autocomplete_keys: if keys == "auto" { AutocompleteKeys::OfSpans } else { AutocompleteKeys::These(list()) },
            lookback: config.zipkin.lookback,
        },
        version: api.status.build.version.clone(),
        ready: Arc::clone(&api.status.ready),
    }
}

pub(super) fn receiver_settings(config: &Config) -> ReceiverSettings {
    ReceiverSettings {
        multitenancy: config.multitenancy_enabled,
        max_body_bytes: config.ingest.max_body_bytes.as_usize(),
        max_grpc_message_bytes: config.ingest.max_decoded_bytes.as_usize(),
        max_decoded_bytes: config.ingest.max_decoded_bytes.as_usize(),
        ..ReceiverSettings::default()
    }
}
