//! The configuration of the process: one struct of sections, defaults < file < environment < flags.
//!
//! Owns defaults, what combinations are allowed, and the printed form. Does not own what a role does with its settings, and
//! reads no clock, no network and no environment: variables are handed in.
//!
//! A setting is added in three places that a test holds together: a struct member, its default, and a row in `fields`. The
//! table instead of derived deserialisation gives one set of errors for files, variables and flags, and prints what it reads.

mod fields;
mod load;
mod memory;
mod print;
#[cfg(test)]
mod tests;
mod units;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use spanhouse_common::id::TenantId;
use spanhouse_common::retention::{DEFAULT_RETENTION, SHORTEST_RETENTION};
use spanhouse_compactor::policy::MAX_FAN_IN;
use spanhouse_querier::api::ApiSettings;

pub use load::{ConfigError, FlagOverrides, Origin};
pub use memory::{MemoryShares, cgroup_limit};
pub use units::{Auto, ByteSize, Limit, LogFormat, Options, Port, Target};

/// Every variable with this prefix must be a setting: `SPANHOUSE_INGEST_MAX_BODY_BYTES` is `ingest.max_body_bytes`.
pub const VARIABLE_PREFIX: &str = "SPANHOUSE_";

/// Most periods that adaptive sampling reads back for a calculation: each is an object per process.
const MAX_AGGREGATION_BUCKETS: u64 = 100;

/// Everything that can be set. What each field means stands in `fields`, in `spanhouse config print` and in
/// `deploy/config/reference.md`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: IpAddr,
    pub target: Target,
    pub multitenancy_enabled: bool,
    pub http_api_prefix: String,
    pub max_tenants: u64,
    pub retention: Duration,
    pub shutdown: Duration,
    pub ports: PortsConfig,
    pub storage: StorageConfig,
    pub ingest: IngestConfig,
    pub wal: WalConfig,
    pub flush: FlushConfig,
    pub compaction: CompactionConfig,
    pub memory: MemoryConfig,
    pub query: QueryConfig,
    pub jaeger: JaegerConfig,
    pub mcp_server: McpConfig,
    pub deletion: DeletionConfig,
    pub sampling: SamplingConfig,
    pub zipkin: ZipkinConfig,
    pub log: LogConfig,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PortsConfig {
    pub otlp_grpc: Port,
    pub otlp_http: Port,
    pub http: Port,
    pub grpc_query: Port,
    pub jaeger: Port,
    pub jaeger_grpc_query: Port,
    pub jaeger_storage: Port,
    pub jaeger_thrift_http: Port,
    pub jaeger_grpc: Port,
    pub jaeger_compact: Port,
    pub jaeger_binary: Port,
    pub zipkin_compact: Port,
    pub zipkin: Port,
    pub sampling_http: Port,
    pub sampling_grpc: Port,
    pub max_connections_per_address: u64,
}

#[derive(Clone, PartialEq)]
pub struct StorageConfig {
    pub url: String,
    pub options: Options,
}

/// Options hold credentials: logs and panics show their names only.
impl std::fmt::Debug for StorageConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StorageConfig")
            .field("url", &print::mask_url(&self.url))
            .field("options", &self.options.keys())
            .finish()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct IngestConfig {
    pub max_body_bytes: ByteSize,
    pub max_decoded_bytes: ByteSize,
    pub overrides_file: Option<PathBuf>,
    pub rate_limit_bytes: Limit,
    pub burst_size_bytes: Limit,
    pub max_trace_bytes: Limit,
    pub max_attribute_bytes: Limit,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WalConfig {
    pub dir: String,
    pub segment_bytes: ByteSize,
    pub max_bytes: ByteSize,
    pub linger: Duration,
    pub group_bytes: ByteSize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlushConfig {
    pub max_age: Duration,
    pub cut_spans: u64,
    pub cut_bytes: ByteSize,
    pub window: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompactionConfig {
    pub enabled: bool,
    pub interval: Duration,
    pub fan_in: u64,
    pub target_bytes: ByteSize,
    pub target_spans: u64,
    pub slack: Duration,
    pub query_grace: Duration,
    pub sweep_grace: Duration,
    pub sweep_interval: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryConfig {
    pub total: Auto,
    pub ingest: Auto,
    pub query: Auto,
    pub per_query: Auto,
    pub compaction: Auto,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryConfig {
    pub deadline: Duration,
    pub max_trace_bytes: Limit,
    pub max_expression_bytes: ByteSize,
    pub end_cutoff: Duration,
    pub default_search_range: Duration,
    pub max_search_range: Duration,
    pub default_limit: u64,
    pub max_limit: u64,
    pub default_spans_per_set: u64,
    pub max_spans_per_set: u64,
    pub max_metrics_range: Duration,
    pub max_metrics_intervals: u64,
    pub max_exemplars: u64,
    pub max_series: u64,
    pub max_tag_bytes: ByteSize,
    pub multi_tenant_queries_enabled: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct JaegerConfig {
    pub base_path: String,
    pub ui_dir: Option<PathBuf>,
    pub ui_config_file: Option<PathBuf>,
    pub max_clock_skew_adjust: Duration,
    pub archive: Option<String>,
}

impl JaegerConfig {
    /// What the tenants of archives are called besides their own names; `None` if archiving is off.
    pub fn archive_suffix(&self) -> Option<&str> {
        self.archive.as_deref()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct McpConfig {
    pub enabled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeletionConfig {
    pub enabled: bool,
}

#[derive(Clone, PartialEq)]
pub struct SamplingConfig {
    pub strategies_file: Option<String>,
    pub reload_interval: Duration,
    pub default_probability: f64,
    pub legacy_enums: bool,
    pub adaptive: bool,
    pub target_samples_per_second: f64,
    pub delta_tolerance: f64,
    pub aggregation_buckets: u64,
    pub calculation_buckets: u64,
    pub calculation_interval: Duration,
    pub calculation_delay: Duration,
    pub initial_sampling_probability: f64,
    pub min_sampling_probability: f64,
    pub min_samples_per_second: f64,
    pub leader_lease_refresh_interval: Duration,
    pub follower_lease_refresh_interval: Duration,
}

/// A URL may hold a password: logs and panics show it masked.
impl std::fmt::Debug for SamplingConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = self.strategies_file.as_deref().map(print::mask_url);
        f.debug_struct("SamplingConfig")
            .field("strategies_file", &file)
            .field("adaptive", &self.adaptive)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ZipkinConfig {
    pub ui_dir: Option<PathBuf>,
    pub autocomplete_keys: String,
    pub lookback: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    pub level: String,
    pub format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        let port = |number| Port { number: Some(number), explicit: false };
        let api = ApiSettings::default();
        Self {
            data_dir: PathBuf::from("./data"),
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            target: Target::All,
            multitenancy_enabled: false,
            http_api_prefix: String::new(),
            max_tenants: 10_000,
            retention: DEFAULT_RETENTION,
            shutdown: Duration::from_secs(30),
            ports: PortsConfig {
                otlp_grpc: port(4317),
                otlp_http: port(4318),
                http: port(3200),
                grpc_query: port(9095),
                jaeger: port(16686),
                jaeger_grpc_query: port(16685),
                jaeger_storage: port(17271),
                jaeger_thrift_http: port(14268),
                jaeger_grpc: port(14250),
                jaeger_compact: port(6831),
                jaeger_binary: port(6832),
                zipkin_compact: port(5775),
                zipkin: port(9411),
                sampling_http: port(5778),
                sampling_grpc: port(5779),
                max_connections_per_address: 5_000,
            },
            storage: StorageConfig { url: "auto".into(), options: Options::new() },
            ingest: IngestConfig {
                max_body_bytes: ByteSize::mib(20),
                max_decoded_bytes: ByteSize::mib(64),
                overrides_file: None,
                rate_limit_bytes: Limit(None),
                burst_size_bytes: Limit(None),
                max_trace_bytes: Limit(Some(ByteSize(100_000_000))),
                max_attribute_bytes: Limit(None),
            },
            wal: WalConfig {
                dir: "auto".into(),
                segment_bytes: ByteSize::mib(64),
                max_bytes: ByteSize::gib(4),
                linger: Duration::from_millis(2),
                group_bytes: ByteSize::mib(1),
            },
            compaction: CompactionConfig {
                enabled: true,
                interval: Duration::from_secs(60),
                fan_in: 32,
                target_bytes: ByteSize::mib(1024),
                target_spans: 24_000_000,
                slack: Duration::from_secs(30 * 60),
                query_grace: Duration::from_secs(15 * 60),
                sweep_grace: Duration::from_secs(24 * 3600),
                sweep_interval: Duration::from_secs(3600),
            },
            flush: FlushConfig {
                max_age: Duration::from_secs(30),
                cut_spans: 350_000,
                cut_bytes: ByteSize::mib(96),
                window: Duration::from_hours(1),
            },
            memory: MemoryConfig {
                total: Auto(None),
                ingest: Auto(None),
                query: Auto(None),
                per_query: Auto(None),
                compaction: Auto(None),
            },
            query: QueryConfig {
                deadline: api.bounds.deadline,
                max_trace_bytes: Limit(None),
                max_expression_bytes: ByteSize(api.max_expression_bytes as u64),
                end_cutoff: api.end_cutoff,
                default_search_range: api.default_search_range,
                max_search_range: api.max_search_range,
                default_limit: api.default_limit.into(),
                max_limit: api.max_limit.into(),
                default_spans_per_set: api.default_spans_per_set.into(),
                max_spans_per_set: api.max_spans_per_set.into(),
                max_metrics_range: api.max_metrics_range,
                max_metrics_intervals: api.max_intervals,
                max_exemplars: api.max_exemplars.into(),
                max_series: api.max_series.into(),
                max_tag_bytes: ByteSize(api.max_tag_bytes as u64),
                multi_tenant_queries_enabled: api.multi_tenant_queries,
            },
            jaeger: JaegerConfig {
                base_path: String::new(),
                ui_dir: None,
                ui_config_file: None,
                max_clock_skew_adjust: Duration::ZERO,
                archive: None,
            },
            mcp_server: McpConfig { enabled: api.mcp },
            deletion: DeletionConfig { enabled: false },
            sampling: SamplingConfig {
                strategies_file: None,
                reload_interval: Duration::from_secs(10),
                default_probability: 0.001,
                legacy_enums: false,
                adaptive: false,
                target_samples_per_second: 1.0,
                delta_tolerance: 0.3,
                aggregation_buckets: 10,
                calculation_buckets: 1,
                calculation_interval: Duration::from_mins(1),
                calculation_delay: Duration::from_mins(2),
                initial_sampling_probability: 0.001,
                min_sampling_probability: 1e-5,
                min_samples_per_second: 1.0 / 60.0,
                leader_lease_refresh_interval: Duration::from_secs(5),
                follower_lease_refresh_interval: Duration::from_secs(60),
            },
            zipkin: ZipkinConfig { ui_dir: None, autocomplete_keys: "auto".into(), lookback: Duration::from_hours(24) },
            log: LogConfig { level: "info".into(), format: LogFormat::Text },
        }
    }
}

/// Where blocks go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageLocation {
    Directory(PathBuf),
    /// A URL for object_store.
    Url(String),
}

impl Config {
    pub fn wal_dir(&self) -> PathBuf {
        if self.wal.dir == "auto" { self.data_dir.join("wal") } else { PathBuf::from(&self.wal.dir) }
    }

    /// Where merges keep their inputs and output while they run: files without a name, which go with the process.
    pub fn spool_dir(&self) -> PathBuf {
        self.data_dir.join("spool")
    }

    pub fn storage_location(&self) -> StorageLocation {
        let url = &self.storage.url;
        match url.strip_prefix("file://") {
            _ if url == "auto" => StorageLocation::Directory(self.data_dir.join("blocks")),
            Some(path) => StorageLocation::Directory(PathBuf::from(path)),
            None if url.contains("://") => StorageLocation::Url(url.clone()),
            None => StorageLocation::Directory(PathBuf::from(url)),
        }
    }

    /// Checks what a single value cannot show. Errors name the field and the limit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check =
            |ok: bool, key: &'static str, message: String| if ok { Ok(()) } else { Err(ConfigError::invalid(key, message)) };
        let second = Duration::from_secs(1);
        if let Some((scheme, _)) = self.storage.url.split_once("://") {
            let known = ["file", "s3", "s3a", "gs", "az", "adl", "abfs", "abfss", "azure", "memory"];
            let text = format!("`{scheme}://` is not a store; expected a directory, s3://, gs:// or az://");
            check(known.contains(&scheme), "storage.url", text)?;
        }
        let is_plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        };
        for (key, path) in [("http_api_prefix", &self.http_api_prefix), ("jaeger.base_path", &self.jaeger.base_path)] {
            let text = format!(
                "`{path}` is no path as in /tempo: a slash before each part, none at the end, letters, digits and -._~"
            );
            let is_path = path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_plain));
            check(path.is_empty() || is_path, key, text)?;
        }
        if let Some(suffix) = self.jaeger.archive_suffix() {
            let names_tenants = !suffix.is_empty() && format!("a{suffix}").parse::<TenantId>().is_ok();
            let text = format!("`{suffix}` is neither none nor the end of a tenant's name, as in -archive");
            check(names_tenants, "jaeger.archive", text)?;
        }
        check(self.max_tenants > 0, "max_tenants", "must be at least 1".into())?;
        let per_address = self.ports.max_connections_per_address;
        check(per_address > 0, "ports.max_connections_per_address", "must be at least 1".into())?;
        check(self.retention >= SHORTEST_RETENTION, "retention", "must be at least 1h".into())?;
        check(self.flush.max_age >= second, "flush.max_age", "must be at least 1s".into())?;
        check(self.flush.cut_spans >= 1_000, "flush.cut_spans", "must be at least 1000".into())?;
        let windows = [Duration::from_mins(15), Duration::from_hours(1), Duration::from_hours(6), Duration::from_hours(24)];
        let compaction = &self.compaction;
        check(compaction.interval >= second, "compaction.interval", "must be at least 1s".into())?;
        // A commit is tried for a while; a query reads for a while.
        check(
            compaction.sweep_grace >= compaction.query_grace,
            "compaction.sweep_grace",
            "must not be below query_grace".into(),
        )?;
        check(windows.contains(&self.flush.window), "flush.window", "must be 15m, 1h, 6h or 24h".into())?;
        let fan_in = MAX_FAN_IN as u64;
        check(
            (2..=fan_in).contains(&compaction.fan_in),
            "compaction.fan_in",
            format!("{} is not between 2 and {fan_in}", compaction.fan_in),
        )?;
        let (spans, most) = (compaction.target_spans, u64::from(u32::MAX));
        let text = format!("{spans} is not between 1000 and {most}, the most one block can have");
        check((1_000..=most).contains(&spans), "compaction.target_spans", text)?;
        check(compaction.target_bytes >= ByteSize::mib(1), "compaction.target_bytes", "must be at least 1MiB".into())?;
        let (body, decoded) = (self.ingest.max_body_bytes, self.ingest.max_decoded_bytes);
        check(body.0 > 0, "ingest.max_body_bytes", "must be more than 0".into())?;
        check(
            decoded >= body,
            "ingest.max_decoded_bytes",
            format!("{decoded} is less than ingest.max_body_bytes ({body})"),
        )?;
        // A burst smaller than a body would refuse that body for ever.
        if let (Some(burst), Some(_)) = (self.ingest.burst_size_bytes.0, self.ingest.rate_limit_bytes.0) {
            let text = format!("{burst} is less than ingest.max_body_bytes ({body}): such a body could never be taken");
            check(burst >= body, "ingest.burst_size_bytes", text)?;
        }
        let (segment, wal) = (self.wal.segment_bytes, self.wal.max_bytes);
        check(segment >= ByteSize::mib(1), "wal.segment_bytes", "must be at least 1MiB".into())?;
        check(
            wal.0 >= segment.0.saturating_mul(2),
            "wal.max_bytes",
            format!("{wal} is less than two segments of {segment}"),
        )?;
        check(self.wal.linger <= second, "wal.linger", "must be at most 1s: every acknowledgement waits for it".into())?;
        check(!self.query.deadline.is_zero(), "query.deadline", "must be more than 0".into())?;
        let query = &self.query;
        for (key, default, most) in [
            ("query.default_limit", query.default_limit, query.max_limit),
            ("query.default_spans_per_set", query.default_spans_per_set, query.max_spans_per_set),
        ] {
            check(
                (1..=most).contains(&default),
                key,
                format!("{default} is not between 1 and the largest allowed, {most}"),
            )?;
        }
        let longest = spanhouse_querier::traceql::MAX_QUERY_BYTES;
        check(
            (1..=longest).contains(&query.max_expression_bytes.as_usize()),
            "query.max_expression_bytes",
            format!("{} is not between 1 and {longest}, the longest query there is", query.max_expression_bytes),
        )?;
        check(query.max_tag_bytes.0 > 0, "query.max_tag_bytes", "must be more than 0".into())?;
        check(query.max_metrics_intervals > 0, "query.max_metrics_intervals", "must be at least 1".into())?;
        let ports = [
            ("ports.otlp_grpc", self.ports.otlp_grpc),
            ("ports.otlp_http", self.ports.otlp_http),
            ("ports.http", self.ports.http),
            ("ports.grpc_query", self.ports.grpc_query),
            ("ports.jaeger", self.ports.jaeger),
            ("ports.jaeger_grpc_query", self.ports.jaeger_grpc_query),
            ("ports.jaeger_storage", self.ports.jaeger_storage),
            ("ports.jaeger_thrift_http", self.ports.jaeger_thrift_http),
            ("ports.jaeger_grpc", self.ports.jaeger_grpc),
            ("ports.jaeger_compact", self.ports.jaeger_compact),
            ("ports.jaeger_binary", self.ports.jaeger_binary),
            ("ports.zipkin_compact", self.ports.zipkin_compact),
            ("ports.zipkin", self.ports.zipkin),
            ("ports.sampling_http", self.ports.sampling_http),
            ("ports.sampling_grpc", self.ports.sampling_grpc),
        ];
        for (i, (key, port)) in ports.iter().enumerate() {
            let Some(number) = port.number.filter(|number| *number != 0) else { continue };
            let twin = ports[..i].iter().find(|(_, other)| other.number == Some(number));
            check(twin.is_none(), key, format!("{number} is also {}", twin.map_or("", |(key, _)| key)))?;
        }
        self.sampling.validate()?;
        // Only a total that was set: the cgroup may be another where the server runs.
        self.memory.shares(None).map(drop)
    }
}

impl SamplingConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let check =
            |ok: bool, key: &'static str, message: String| if ok { Ok(()) } else { Err(ConfigError::invalid(key, message)) };
        for (key, value) in [
            ("sampling.default_probability", self.default_probability),
            ("sampling.initial_sampling_probability", self.initial_sampling_probability),
            ("sampling.min_sampling_probability", self.min_sampling_probability),
        ] {
            check((0.0..=1.0).contains(&value), key, format!("{value} is not between 0 and 1"))?;
        }
        for (key, value) in [
            ("sampling.target_samples_per_second", self.target_samples_per_second),
            ("sampling.initial_sampling_probability", self.initial_sampling_probability),
        ] {
            check(value > 0.0, key, "must be more than 0".into())?;
        }
        for (key, value) in [
            ("sampling.delta_tolerance", self.delta_tolerance),
            ("sampling.min_samples_per_second", self.min_samples_per_second),
        ] {
            check(value >= 0.0, key, "must not be below 0".into())?;
        }
        let most = MAX_AGGREGATION_BUCKETS;
        let (aggregated, calculated) = (self.aggregation_buckets, self.calculation_buckets);
        let text = format!("{aggregated} is not between 1 and {most}");
        check((1..=most).contains(&aggregated), "sampling.aggregation_buckets", text)?;
        let text = format!("{calculated} is not between 1 and aggregation_buckets ({aggregated})");
        check((1..=aggregated).contains(&calculated), "sampling.calculation_buckets", text)?;
        let second = Duration::from_secs(1);
        let (interval, day) = (self.calculation_interval, Duration::from_hours(24));
        check((second..=day).contains(&interval), "sampling.calculation_interval", "must be 1s to 24h".into())?;
        check(self.calculation_delay <= day, "sampling.calculation_delay", "must be at most 24h".into())?;
        let both = self.adaptive && self.strategies_file.is_some();
        check(!both, "sampling.adaptive", "learns what sampling.strategies_file says: set one of them".into())
    }
}
