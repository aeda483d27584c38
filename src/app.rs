//! The composition root: builds the parts, plugs them together, stops them in order.
//!
//! Owns no algorithm. Start order: data directory and its lock, object store, manifests, ports, then the ingester (which
//! replays its WAL), the compactor and the querier. Until replay ends, the query port answers 503. Stop order: OTLP ports, the
//! compactor, the ingester (drain, flush, WAL), the query port last, so that metrics can be read to the end.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use spanhouse_common::budget::Share;
use spanhouse_common::deletion::Deletions;
use spanhouse_common::fs::{DataDirLock, RealFs};
use spanhouse_common::id::TenantId;
use spanhouse_common::manifest::Manifests;
use spanhouse_common::source::LiveReader;
use spanhouse_common::store::instrument::{InstrumentedStore, StoreMetrics};
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::store::{open, probe};
use spanhouse_common::telemetry::Telemetry;
use spanhouse_common::time::{Clock, SystemClock};
use spanhouse_compactor::policy::PolicyConfig;
use spanhouse_compactor::{Compactor, CompactorConfig, CompactorDeps, CompactorStatus};
use spanhouse_ingester::admission::metrics::AdmissionMetrics;
use spanhouse_ingester::admission::{Admission, limits::Limits, overrides::Overrides};
use spanhouse_ingester::flush::FlushConfig;
use spanhouse_ingester::live::CutPolicy;
use spanhouse_ingester::otlp::metrics::ReceiverMetrics;
use spanhouse_ingester::otlp::receiver::{Receiver, ReceiverDeps, ReceiverSettings};
use spanhouse_ingester::otlp::{grpc, http};
use spanhouse_ingester::wal::WalConfig;
use spanhouse_ingester::{Ingester, IngesterConfig, IngesterDeps, IngesterMetrics};
use spanhouse_querier::api::{ApiDeps, ApiSettings, BuildInfo, ServiceStatus, StatusDeps};
use spanhouse_querier::engine::Engine;
use spanhouse_querier::find_trace::QueryBounds;
use spanhouse_querier::metrics::QuerierMetrics;
use spanhouse_querier::sources::Sources;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::config::{Config, MemoryShares, Port, StorageLocation, cgroup_limit};
use crate::serve::{ServeLimits, ServeMetrics, serve};

/// Headers on the query port: Grafana puts whole queries into URLs.
const QUERY_HEADER_BYTES: usize = 256 * 1024;
/// Part of the query share that keeps file segments between queries.
const CACHE_PART: u64 = 3;

/// Opens the object store of a configuration.
pub fn open_store(config: &Config) -> Result<Arc<dyn object_store::ObjectStore>> {
    let url = match config.storage_location() {
        StorageLocation::Directory(path) => path.to_string_lossy().into_owned(),
        StorageLocation::Url(url) => url,
    };
    Ok(open(&url, &config.storage.options)?)
}

/// A port and what became of it.
#[derive(Clone, Debug)]
pub struct Bound {
    pub name: &'static str,
    pub wanted: SocketAddr,
    /// Where it listens; `None` if a default port was busy, or it is turned off.
    pub at: Option<SocketAddr>,
    pub off: bool,
}

impl Bound {
    /// What became of it, in words.
    pub fn state(&self) -> String {
        match self.at {
            Some(at) => format!("listening on {at}"),
            None if self.off => "turned off".to_owned(),
            None => format!("not listening: {} is in use", self.wanted),
        }
    }
}

/// A running process.
pub struct App {
    config: Config,
    ports: Vec<Bound>,
    ingester: Ingester,
    compactor: Compactor,
    stop_ingest: CancellationToken,
    stop_query: CancellationToken,
    /// Servers, and the reader of the overrides file: what ends first.
    ingest_servers: Vec<JoinHandle<()>>,
    query_servers: Vec<JoinHandle<()>>,
    _lock: DataDirLock,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// What answers on the query port before and after the start is complete.
type LateRouter = Arc<OnceLock<Router>>;

impl App {
    /// Starts everything and returns when it is ready.
    pub async fn start(config: Config) -> Result<Self> {
        let shares = config.memory.shares(cgroup_limit())?;
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("cannot make the data directory {}", config.data_dir.display()))?;
        let lock = DataDirLock::acquire(&config.data_dir)?;
        let clock: Arc<dyn Clock> = SystemClock::shared();
        let telemetry = Arc::new(Telemetry::new());
        let store = open_store(&config)?;
        if matches!(config.storage_location(), StorageLocation::Url(_)) {
            probe::probe(&store).await?;
        }
        let store = Arc::new(InstrumentedStore::new(store, StoreMetrics::new(&telemetry)));
        let max_tenants = usize::try_from(config.max_tenants).unwrap_or(usize::MAX);
        let tenants = TenantRegistry::open(Arc::clone(&store) as _, Arc::clone(&clock), max_tenants).await?;
        let manifests = Arc::new(Manifests::new(store, Arc::clone(&clock), tenants));

        let (grpc_listener, grpc_port) = bind("OTLP/gRPC", &config, config.ports.otlp_grpc).await?;
        let (http_listener, http_port) = bind("OTLP/HTTP", &config, config.ports.otlp_http).await?;
        let (query_listener, query_port) = bind("Tempo API", &config, config.ports.http).await?;
        let (grpc_query_listener, grpc_query_port) = bind("Tempo gRPC", &config, config.ports.grpc_query).await?;
        let ports = vec![grpc_port, http_port, query_port, grpc_query_port];

        let (stop_ingest, stop_query) = (CancellationToken::new(), CancellationToken::new());
        let (late, late_grpc) = (LateRouter::default(), LateRouter::default());
        let mut query_servers = Vec::new();
        for (listener, late, name) in [(query_listener, &late, "tempo"), (grpc_query_listener, &late_grpc, "tempo_grpc")] {
            if let Some(listener) = listener {
                let limits = ServeLimits { max_header_bytes: QUERY_HEADER_BYTES, ..limits(&config) };
                let metrics = port_metrics(&telemetry, name);
                query_servers.push(tokio::spawn(serve(listener, late_router(late), stop_query.clone(), limits, metrics)));
            }
        }

        let memory = Share::new("ingest", shares.ingest.as_usize());
        let ingester_metrics = telemetry.register("ingester", IngesterMetrics::register);
        let admission = admission(&config, &clock, &telemetry)?;
        let limits_text = limits_of(&admission);
        let retention = admission.retention();
        let watch_overrides = tokio::spawn(Arc::clone(&admission).watch(stop_ingest.clone()));
        let deps = IngesterDeps {
            fs: Arc::new(RealFs),
            clock: Arc::clone(&clock),
            manifests: Arc::clone(&manifests),
            admission,
            memory: memory.clone(),
        };
        let ingester = spanhouse_ingester::start(ingester_config(&config, &shares), deps, ingester_metrics).await?;

        let compactor_config = compactor_config(&config);
        let compactor_deps = CompactorDeps {
            manifests: Arc::clone(&manifests),
            clock: Arc::clone(&clock),
            retention,
            memory: Share::new("compaction", shares.compaction.as_usize()),
            spool_dir: config.spool_dir(),
        };
        let compactor = telemetry
            .register("compactor", |registry| spanhouse_compactor::start(compactor_config, compactor_deps, registry));

        let live: Arc<dyn LiveReader> = ingester.live();
        let cache_bytes = shares.query.0 / CACHE_PART;
        let deletions = config.deletion.enabled.then(|| Deletions::new(Arc::clone(&manifests), Arc::clone(&clock)));
        let snapshots = Arc::new(Sources::new(live, manifests, Arc::clone(&clock), cache_bytes));
        telemetry.register("querier", |registry| snapshots.filter_metrics().register(registry));
        let query_memory = Share::new("query", (shares.query.0 - cache_bytes) as usize);
        let settings = api_settings(&config, &shares);
        let engine = Engine::new(Arc::clone(&snapshots) as _, query_memory.clone(), settings.bounds);
        let api = ApiDeps {
            snapshots,
            engine: Arc::new(engine),
            clock: Arc::clone(&clock),
            memory: query_memory,
            metrics: telemetry.register("querier", QuerierMetrics::register),
            settings,
            prefix: config.http_api_prefix.as_str().into(),
            status: status(&config, &shares, &ports, &ingester, limits_text, compactor.status(), &telemetry),
            deletions,
        };
        let grpc = spanhouse_querier::api::grpc_router(&api);
        if late_grpc.set(grpc).is_err() || late.set(spanhouse_querier::api::router(api)).is_err() {
            bail!("the query ports were set up twice");
        }

        let receiver = Receiver::new(
            ReceiverDeps {
                ingest: ingester.pipeline(),
                memory,
                clock,
                metrics: telemetry.register("receiver", ReceiverMetrics::new),
            },
            ReceiverSettings {
                multitenancy: config.multitenancy_enabled,
                max_body_bytes: config.ingest.max_body_bytes.as_usize(),
                max_grpc_message_bytes: config.ingest.max_decoded_bytes.as_usize(),
                ..ReceiverSettings::default()
            },
        );
        let mut ingest_servers = vec![watch_overrides];
        for (listener, router, name) in [
            (grpc_listener, grpc::router(receiver.clone()), "otlp_grpc"),
            (http_listener, http::router(receiver), "otlp_http"),
        ] {
            if let Some(listener) = listener {
                let metrics = port_metrics(&telemetry, name);
                ingest_servers.push(tokio::spawn(serve(listener, router, stop_ingest.clone(), limits(&config), metrics)));
            }
        }
        Ok(Self { config, ports, ingester, compactor, stop_ingest, stop_query, ingest_servers, query_servers, _lock: lock })
    }

    pub fn ports(&self) -> &[Bound] {
        &self.ports
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn ingester(&self) -> &Ingester {
        &self.ingester
    }

    /// Stops in order. True if everything is in blocks; otherwise the rest is in the WAL and comes back at the next start.
    pub async fn stop(self) -> bool {
        let grace = self.config.shutdown;
        let began = tokio::time::Instant::now();
        self.stop_ingest.cancel();
        for server in self.ingest_servers {
            join(server).await;
        }
        self.compactor.stop().await;
        let left = grace.saturating_sub(began.elapsed());
        let flushed = self.ingester.stop(left).await;
        self.stop_query.cancel();
        for server in self.query_servers {
            join(server).await;
        }
        flushed
    }
}

async fn join(server: JoinHandle<()>) {
    if let Err(error) = server.await {
        tracing::error!(error = %error, "a server task failed");
    }
}

/// Binds a port. One that the user chose must be free; a default one may be taken by another program.
async fn bind(name: &'static str, config: &Config, port: Port) -> Result<(Option<TcpListener>, Bound)> {
    let wanted = SocketAddr::new(config.listen, port.number.unwrap_or_default());
    if port.number.is_none() {
        return Ok((None, Bound { name, wanted, at: None, off: true }));
    }
    match TcpListener::bind(wanted).await {
        Ok(listener) => {
            let at = listener.local_addr()?;
            Ok((Some(listener), Bound { name, wanted, at: Some(at), off: false }))
        }
        Err(error) if !port.explicit && error.kind() == std::io::ErrorKind::AddrInUse => {
            tracing::warn!(api = name, port = %wanted, "port is in use: this API is not served; set the port to use another");
            Ok((None, Bound { name, wanted, at: None, off: false }))
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {wanted} for {name}")),
    }
}

fn limits(config: &Config) -> ServeLimits {
    let per_address = usize::try_from(config.ports.max_connections_per_address).unwrap_or(usize::MAX);
    ServeLimits { drain: config.shutdown / 2, max_connections_per_address: per_address, ..ServeLimits::default() }
}

fn port_metrics(telemetry: &Telemetry, port: &'static str) -> ServeMetrics {
    let metrics = ServeMetrics::default();
    telemetry.register("server", |registry| {
        metrics.register(registry.sub_registry_with_label(("port".into(), port.into())));
    });
    metrics
}

/// Answers 503 until the real router is there.
fn late_router(late: &LateRouter) -> Router {
    let late = Arc::clone(late);
    Router::new().fallback(move |request: Request| {
        let router = late.get().cloned();
        async move {
            match router {
                Some(router) => match router.oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                },
                None => starting(),
            }
        }
    })
}

fn starting() -> Response {
    let body = "Some services are not Running:\nStarting: 1\n";
    (StatusCode::SERVICE_UNAVAILABLE, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

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

fn admission(config: &Config, clock: &Arc<dyn Clock>, telemetry: &Telemetry) -> Result<Arc<Admission>> {
    let metrics = telemetry.register("admission", AdmissionMetrics::new);
    Ok(Arc::new(Admission::new(config.ingest.overrides_file.clone(), base_limits(config), Arc::clone(clock), metrics)?))
}

fn ingester_config(config: &Config, shares: &MemoryShares) -> IngesterConfig {
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

fn compactor_config(config: &Config) -> CompactorConfig {
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

fn api_settings(config: &Config, shares: &MemoryShares) -> ApiSettings {
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

/// Writes the limits in force, of everybody or of one tenant, as YAML.
type LimitsText = Arc<dyn Fn(Option<&TenantId>) -> String + Send + Sync>;

fn limits_of(admission: &Arc<Admission>) -> LimitsText {
    let admission = Arc::clone(admission);
    let write = |limits: &Limits, indent: &str| {
        let fields = serde_json::to_value(limits).unwrap_or_default();
        let lines = fields.as_object().into_iter().flatten().map(|(name, value)| format!("{indent}{name}: {value}\n"));
        lines.collect::<String>()
    };
    Arc::new(move |tenant| {
        if let Some(tenant) = tenant {
            return write(&admission.limits(tenant), "");
        }
        let overrides = admission.overrides();
        let mut text = format!("defaults:\n{}", write(&overrides.defaults(), "  "));
        if overrides.tenants() > 0 {
            text.push_str("overrides:\n");
        }
        for (tenant, limits) in overrides.named() {
            text.push_str(&format!("  \"{tenant}\":\n{}", write(limits, "    ")));
        }
        text
    })
}

fn status(
    config: &Config,
    shares: &MemoryShares,
    ports: &[Bound],
    ingester: &Ingester,
    limits: LimitsText,
    compactor: CompactorStatus,
    telemetry: &Arc<Telemetry>,
) -> StatusDeps {
    let yaml = config.to_yaml(Some(shares));
    let (ports, telemetry) = (ports.to_vec(), Arc::clone(telemetry));
    let ready = ingester.readiness();
    let state = ingester.readiness();
    StatusDeps {
        build: BuildInfo { version: env!("CARGO_PKG_VERSION").into(), ..BuildInfo::default() },
        ready: Arc::new(move || ready.check()),
        config: Arc::new(move || yaml.clone()),
        services: Arc::new(move || {
            let ingester = state.check().map_or_else(|why| why, |()| "Running".to_owned());
            let mut all = vec![ServiceStatus { name: "ingester".into(), state: ingester }];
            let stopped = state.stopped_tenants().into_iter();
            all.extend(stopped.map(|(tenant, why)| ServiceStatus {
                name: format!("flush of tenant {tenant}"),
                state: format!("Stopped: {why}"),
            }));
            all.push(ServiceStatus { name: "querier".into(), state: "Running".into() });
            all.extend(ports.iter().map(|port| ServiceStatus { name: port.name.into(), state: port.state() }));
            all
        }),
        limits,
        compactor: Arc::new(move || compactor.text()),
        metrics: Arc::new(move || telemetry.encode()),
    }
}
