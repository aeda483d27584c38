//! The composition root: builds the parts, plugs them together, stops them in order.
//!
//! Owns no algorithm. Start order: data directory and its lock, object store, manifests, ports, then the ingester (which
//! replays its WAL), the compactor and the querier. Until replay ends, the query port answers 503. Stop order: OTLP ports, the
//! compactor, the ingester (drain, flush, WAL), the query port last, so that metrics can be read to the end.

mod ports;
mod settings;
mod status;

use std::sync::Arc;

use anyhow::{Context, Result};
use spanhouse_common::budget::Share;
use spanhouse_common::deletion::Deletions;
use spanhouse_common::fs::{DataDirLock, RealFs};
use spanhouse_common::manifest::Manifests;
use spanhouse_common::source::LiveReader;
use spanhouse_common::store::instrument::{InstrumentedStore, StoreMetrics};
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::store::{open, probe};
use spanhouse_common::telemetry::Telemetry;
use spanhouse_common::time::{Clock, SystemClock};
use spanhouse_compactor::{Compactor, CompactorDeps};
use spanhouse_ingester::jaeger::storage_v1::ArchiveTenant;
use spanhouse_ingester::otlp::{grpc, http};
use spanhouse_ingester::receive::grpc::{health, unimplemented};
use spanhouse_ingester::receive::metrics::ReceiverMetrics;
use spanhouse_ingester::receive::receiver::{Receiver, ReceiverDeps};
use spanhouse_ingester::receive::tenant::TenantTexts;
use spanhouse_ingester::sampling;
use spanhouse_ingester::{Ingester, IngesterDeps, IngesterMetrics, jaeger, zipkin};
use spanhouse_querier::api::ApiDeps;
use spanhouse_querier::engine::Engine;
use spanhouse_querier::jaeger::http::HttpDeps;
use spanhouse_querier::jaeger::{Archive, grpc as jaeger_grpc};
use spanhouse_querier::metrics::QuerierMetrics;
use spanhouse_querier::sources::Sources;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::ports::{Api, LateRouter, Ports};
use self::settings::{
    admission, api_settings, compactor_config, ingester_config, jaeger_queries, jaeger_ui, receiver_settings, zipkin_deps,
};
use self::status::{limits_of, status};
use crate::archive::Archiving;
use crate::config::{Config, StorageLocation, cgroup_limit};

pub use self::ports::Bound;
pub(crate) use self::ports::help as ports_help;
pub use self::settings::{overrides, policy_config};

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
        let manifests = Arc::new(Manifests::new(Arc::clone(&store) as _, Arc::clone(&clock), tenants));
        let sampling = Arc::new(crate::sampling::open(&config.sampling, store, &clock, &telemetry).await?);

        let jaeger_ui = jaeger_ui(&config);
        jaeger_ui.check().await.context("Jaeger UI cannot be served (jaeger.ui_dir, jaeger.ui_config_file)")?;
        let mut ports = Ports::bind(&config).await?;
        let (stop_ingest, stop_query) = (CancellationToken::new(), CancellationToken::new());
        let late: [LateRouter; 4] = Default::default();
        let mut query_servers = Vec::new();
        for (api, late) in [Api::Tempo, Api::TempoGrpc, Api::Jaeger, Api::JaegerGrpc].into_iter().zip(&late) {
            query_servers.extend(ports.serve(api, late.router(), &stop_query, &telemetry));
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
            observer: sampling.observer(),
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
        let archive = config
            .jaeger
            .archive_suffix()
            .map(|suffix| Arc::new(Archiving::new(suffix, ingester.pipeline(), memory.clone())) as Arc<dyn Archive>);
        let api = ApiDeps {
            snapshots,
            engine: Arc::new(engine),
            clock: Arc::clone(&clock),
            memory: query_memory,
            metrics: telemetry.register("querier", QuerierMetrics::register),
            settings,
            prefix: config.http_api_prefix.as_str().into(),
            status: status(&config, &shares, &ports.listed, &ingester, limits_text, compactor.status(), &telemetry),
            deletions,
        };
        let queries = jaeger_queries(&config, &api, archive);
        let jaeger_http = HttpDeps {
            queries: queries.clone(),
            base_path: config.jaeger.base_path.as_str().into(),
            ui: Arc::new(jaeger_ui),
        };
        let zipkin_queries = spanhouse_querier::zipkin::router(zipkin_deps(&config, &api, queries.clone()));
        let tempo_grpc = spanhouse_querier::api::grpc_router(&api);
        let [tempo, grpc_only, jaeger_http_late, jaeger_grpc_late] = &late;
        jaeger_http_late.set(spanhouse_querier::jaeger::http::router(jaeger_http))?;
        jaeger_grpc_late.set(jaeger_grpc::query_router(&queries).await?)?;
        grpc_only.set(tempo_grpc)?;
        tempo.set(spanhouse_querier::api::router(api))?;

        let receiver = Receiver::new(
            ReceiverDeps {
                ingest: ingester.pipeline(),
                memory,
                clock,
                metrics: telemetry.register("receiver", ReceiverMetrics::new),
            },
            receiver_settings(&config),
        );
        let archive = queries.deps().archive.clone();
        let archive = archive.map(|archive| -> ArchiveTenant { Arc::new(move |tenant| archive.tenant_of(tenant)) });
        let jaeger_storage = jaeger_grpc::storage_routes(&queries)
            .await?
            .merge(grpc::routes(receiver.clone(), TenantTexts::Jaeger))
            .merge(jaeger::storage_v1::routes(receiver.clone(), archive))
            .fallback(unimplemented);
        let thrift = jaeger::http::routes(receiver.clone()).merge(sampling::http::routes(Arc::clone(&sampling)));
        let collector = jaeger::grpc::routes(receiver.clone())
            .merge(sampling::grpc::routes(Arc::clone(&sampling)))
            .merge(health(&[jaeger::grpc::SERVICE_NAME, sampling::grpc::SERVICE_NAME]).await);
        let mut ingest_servers = vec![watch_overrides];
        for (api, router) in [
            (Api::OtlpGrpc, grpc::router(receiver.clone())),
            (Api::OtlpHttp, http::router(receiver.clone())),
            (Api::JaegerThrift, thrift),
            (Api::JaegerCollector, collector.fallback(unimplemented)),
            (Api::Zipkin, zipkin::http::router(receiver.clone(), zipkin_queries)),
            (Api::JaegerStorage, jaeger_storage),
            (Api::SamplingHttp, sampling::http::router(Arc::clone(&sampling))),
            (Api::SamplingGrpc, sampling::grpc::router(Arc::clone(&sampling)).await),
        ] {
            ingest_servers.extend(ports.serve(api, router, &stop_ingest, &telemetry));
        }
        for (socket, protocol) in std::mem::take(&mut ports.agents) {
            let stop = stop_ingest.clone();
            ingest_servers.push(tokio::spawn(jaeger::agent::serve(receiver.clone(), socket, protocol, stop)));
        }
        // Ends after the receivers: until then there is something to learn from.
        query_servers.push(tokio::spawn(sampling.run(stop_query.clone())));
        let ports = ports.listed;
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
