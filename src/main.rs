//! Arguments, telemetry, build, wait, drain, exit code.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;
use spanhouse::allocator;
use spanhouse::app::{App, open_store, overrides, policy_config};
use spanhouse::blocks::{self, BlocksDeps};
use spanhouse::cli::{self, Cli, Command, ConfigCommand, ServerArgs};
use spanhouse::compact::{self, CompactSettings};
use spanhouse::config::{Config, LogFormat, StorageLocation, cgroup_limit};
use spanhouse::delete;
use spanhouse::loadgen;
use spanhouse::query;
use spanhouse::tenants;
use spanhouse_common::manifest::Manifests;
use spanhouse_common::retention::Retention;
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::time::SystemClock;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Requests allocate on one thread and are freed on another, which the system allocator handles badly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What runs long or holds much.
    if matches!(cli.command, None | Some(Command::Compact(_))) {
        allocator::give_back_soon();
    }
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match cli.command {
        None => {
            let config = load(&cli.server)?;
            start_logging(&config)?;
            runtime()?.block_on(serve(config))
        }
        Some(Command::Config(ConfigCommand::Print)) => {
            let config = load(&cli.server)?;
            let shares = config.memory.shares(cgroup_limit())?;
            std::io::stdout().write_all(config.to_yaml(Some(&shares)).as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Loadgen(options)) => {
            // One thread: it must leave the machine to the server it measures.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let summary = runtime.block_on(loadgen::run(&options))?;
            let text = if options.json { summary.to_json() } else { summary.to_string() };
            writeln!(std::io::stdout(), "{text}")?;
            Ok(if summary.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Command::Bench(options)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let report = runtime.block_on(loadgen::bench::run(&options))?;
            let text = if options.json { report.to_json() } else { report.to_string() };
            writeln!(std::io::stdout(), "{text}")?;
            Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Command::Query(options)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(query::run(
                &options,
                query::Screen::of_stdout(),
                &mut std::io::stdout(),
                &mut std::io::stderr(),
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Compact(command)) => {
            let config = load(&cli.server)?;
            start_logging(&config)?;
            runtime()?.block_on(compact_by_hand(command, &config))
        }
        Some(Command::Tenants(scope)) => {
            let config = load(&cli.server)?;
            start_logging(&config)?;
            runtime()?.block_on(list_tenants(scope, &config))
        }
        Some(Command::Blocks(command)) => {
            let config = load(&cli.server)?;
            start_logging(&config)?;
            runtime()?.block_on(look_at_blocks(command, &config))
        }
        Some(Command::Delete(command)) => {
            let config = load(&cli.server)?;
            start_logging(&config)?;
            runtime()?.block_on(async {
                let deps = store_deps(&config).await?;
                delete::run(command, &deps, &mut delete::AtTerminal, &mut std::io::stdout()).await
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn compact_by_hand(command: cli::CompactCommand, config: &Config) -> Result<ExitCode> {
    let overrides = overrides(config)?;
    let settings = CompactSettings {
        policy: policy_config(config),
        retention: Retention::by(move |tenant| overrides.limits(tenant).retention),
        memory_bytes: config.memory.shares(cgroup_limit())?.compaction.as_usize(),
        spool_dir: config.spool_dir(),
    };
    compact::run(command.resolve()?, &store_deps(config).await?, &settings, &mut std::io::stdout()).await
}

async fn look_at_blocks(command: cli::BlocksCommand, config: &Config) -> Result<ExitCode> {
    blocks::run(command.resolve()?, &store_deps(config).await?, &mut std::io::stdout()).await
}

async fn list_tenants(scope: cli::BlocksScope, config: &Config) -> Result<ExitCode> {
    let tenant = scope.tenant.map(|name| name.parse()).transpose()?;
    let deps = store_deps(config).await?;
    tenants::run(&deps, &overrides(config)?, tenant.as_ref(), scope.json, &mut std::io::stdout()).await?;
    Ok(ExitCode::SUCCESS)
}

/// What commands need that work on the store itself.
async fn store_deps(config: &Config) -> Result<BlocksDeps> {
    let clock = SystemClock::shared();
    let store = open_store(config)?;
    let max_tenants = usize::try_from(config.max_tenants).unwrap_or(usize::MAX);
    let tenants = TenantRegistry::open(Arc::clone(&store), Arc::clone(&clock), max_tenants).await?;
    Ok(BlocksDeps {
        manifests: Arc::new(Manifests::new(store, Arc::clone(&clock), tenants)),
        store_url: match config.storage_location() {
            StorageLocation::Directory(path) => path.to_string_lossy().into_owned(),
            StorageLocation::Url(url) => url,
        },
        data_dir: config.data_dir.clone(),
        clock,
    })
}

fn load(args: &ServerArgs) -> Result<Config> {
    Ok(Config::load(args.config.as_deref(), std::env::vars(), args.overrides())?)
}

fn start_logging(config: &Config) -> Result<()> {
    let mut filter = EnvFilter::try_new(&config.log.level)?;
    if !config.log.level.contains("h2") {
        // A peer can make the HTTP/2 library warn as often as it likes: thousands of lines a second.
        filter = filter.add_directive("h2=error".parse()?);
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
    }
    Ok(())
}

async fn serve(config: Config) -> Result<ExitCode> {
    // Installed first: a signal during the start must not kill without a word.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let app = tokio::select! {
        app = App::start(config) => app?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    greet(&app)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(grace_seconds = app.config().shutdown.as_secs(), "stopping: draining and flushing");
    let stop = app.stop();
    tokio::select! {
        flushed = stop => {
            if flushed {
                tracing::info!("stopped: everything is in blocks");
            } else {
                tracing::warn!("stopped: what is not in blocks is in the WAL and comes back at the next start");
            }
            Ok(ExitCode::SUCCESS)
        }
        _ = terminate.recv() => Ok(ExitCode::FAILURE),
        _ = interrupt.recv() => Ok(ExitCode::FAILURE),
    }
}

/// The start-up text: what listens where, and what to try next.
fn greet(app: &App) -> Result<()> {
    let config = app.config();
    let mut out = std::io::stdout().lock();
    writeln!(out, "spanhouse {} is ready. Data in {}.", env!("CARGO_PKG_VERSION"), config.data_dir.display())?;
    writeln!(out)?;
    let width = app.ports().iter().map(|port| port.name.len()).max().unwrap_or_default();
    for port in app.ports() {
        match port.at {
            Some(at) => writeln!(out, "  {:<width$} {at}", port.name)?,
            None if port.off => {}
            None => writeln!(out, "  {:<width$} not served: {} is in use", port.name, port.wanted)?,
        }
    }
    let replayed = app.ingester().replayed();
    if replayed.records > 0 {
        writeln!(out, "\nReplayed {} spans from the write-ahead log.", replayed.spans)?;
    }
    if !config.listen.is_loopback() {
        tracing::warn!(listen = %config.listen, "reachable from other machines and there is no authentication: put a proxy in front");
    }
    writeln!(out, "\nTry next:")?;
    writeln!(out, "  spanhouse loadgen --count 10000 --verify    send a shop's traffic and read it back")?;
    writeln!(out, "  spanhouse blocks ls                         see what is stored")?;
    if let Some(at) = app.ports().iter().find(|p| p.name == "Tempo API").and_then(|p| p.at) {
        writeln!(out, "  Grafana: add a Tempo data source with URL http://{at}")?;
    }
    if let Some(at) = app.ports().iter().find(|p| p.name == "Jaeger API").and_then(|p| p.at) {
        writeln!(out, "  Jaeger UI: open http://{at}{}/", config.jaeger.base_path)?;
    }
    out.flush()?;
    Ok(())
}
