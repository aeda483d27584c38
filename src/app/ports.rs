//! The ports of the process: which there are, binding them, and serving what answers behind each.
//!
//! Owns names, numbers' meaning and what a busy port means. Does not own routes, nor how a connection is served ([`crate::serve`]).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use spanhouse_common::telemetry::Telemetry;
use spanhouse_ingester::jaeger;
use spanhouse_ingester::receive::metrics::Protocol;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::config::{Config, Port, PortsConfig};
use crate::serve::{ServeLimits, ServeMetrics, serve};

/// Headers on the query ports: Grafana puts whole queries into URLs.
const QUERY_HEADER_BYTES: usize = 256 * 1024;

/// What a connection can ask for, by port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Api {
    OtlpGrpc,
    OtlpHttp,
    Tempo,
    TempoGrpc,
    Jaeger,
    JaegerGrpc,
    JaegerStorage,
    JaegerThrift,
    JaegerCollector,
    Zipkin,
    SamplingHttp,
    SamplingGrpc,
}

/// Where the number of a port is set: the path of the setting, and what it says.
type Setting = fn(&PortsConfig) -> (&'static str, Port);

macro_rules! port {
    ($name:ident) => {
        |ports| (concat!("ports.", stringify!($name)), ports.$name)
    };
}

/// A row: its name as people read it, its name in metrics, its setting.
type Row = (Api, &'static str, &'static str, Setting);

/// In the order in which the start-up text lists them.
const APIS: [Row; 12] = [
    (Api::OtlpGrpc, "OTLP/gRPC", "otlp_grpc", port!(otlp_grpc)),
    (Api::OtlpHttp, "OTLP/HTTP", "otlp_http", port!(otlp_http)),
    (Api::Tempo, "Tempo API", "tempo", port!(http)),
    (Api::TempoGrpc, "Tempo gRPC", "tempo_grpc", port!(grpc_query)),
    (Api::Jaeger, "Jaeger API", "jaeger", port!(jaeger)),
    (Api::JaegerGrpc, "Jaeger gRPC", "jaeger_grpc_query", port!(jaeger_grpc_query)),
    (Api::JaegerStorage, "Jaeger storage", "jaeger_storage", port!(jaeger_storage)),
    (Api::JaegerThrift, "Jaeger/Thrift", "jaeger_thrift_http", port!(jaeger_thrift_http)),
    (Api::JaegerCollector, "Jaeger/gRPC", "jaeger_grpc", port!(jaeger_grpc)),
    (Api::Zipkin, "Zipkin API", "zipkin", port!(zipkin)),
    (Api::SamplingHttp, "Sampling/HTTP", "sampling_http", port!(sampling_http)),
    (Api::SamplingGrpc, "Sampling/gRPC", "sampling_grpc", port!(sampling_grpc)),
];

/// The same of those that take packets.
const AGENTS: [(Protocol, &str, Setting); 3] = [
    (Protocol::JaegerCompactUdp, "Jaeger/compact", port!(jaeger_compact)),
    (Protocol::JaegerBinaryUdp, "Jaeger/binary", port!(jaeger_binary)),
    (Protocol::ZipkinCompactUdp, "Zipkin/compact", port!(zipkin_compact)),
];

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

/// All ports, bound: connections wait until somebody serves them.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) listed: Vec<Bound>,
    listeners: HashMap<Api, TcpListener>,
    pub(super) agents: Vec<(UdpSocket, Protocol)>,
    limits: ServeLimits,
}

/// The ports as they are unless set otherwise, for the help text.
pub(crate) fn help() -> String {
    let ports = Config::default().ports;
    let tcp = APIS.iter().map(|(_, name, _, setting)| (name, "", setting));
    let udp = AGENTS.iter().map(|(_, name, setting)| (name, "/udp", setting));
    let mut out = String::from("Ports, and the setting of each:\n");
    for (name, packets, setting) in tcp.chain(udp) {
        let (path, port) = setting(&ports);
        let number = port.number.map_or_else(|| "off".to_owned(), |number| format!("{number}{packets}"));
        let _ = writeln!(out, "  {number:<9} {name:<15} {path}");
    }
    out.push_str(
        "  A number in its place moves a port, 0 takes any that is free, and off turns it off: SPANHOUSE_PORTS_ZIPKIN=off.\n  \
         Another program on one of these numbers is no error: that API is not served, which the start and /status say.",
    );
    out
}

impl Ports {
    pub(super) async fn bind(config: &Config) -> Result<Self> {
        let (mut listed, mut listeners, mut agents) = (Vec::new(), HashMap::new(), Vec::new());
        for (api, name, _, port) in APIS {
            let (listener, port) = bind(name, config, port(&config.ports).1).await?;
            listeners.extend(listener.map(|listener| (api, listener)));
            listed.push(port);
        }
        for (protocol, name, port) in AGENTS {
            let (socket, port) = bind_udp(name, config, port(&config.ports).1)?;
            agents.extend(socket.map(|socket| (socket, protocol)));
            listed.push(port);
        }
        Ok(Self { listed, listeners, agents, limits: limits(config) })
    }

    /// Serves a port until `stop`; nothing if it is not listening.
    pub(super) fn serve(
        &mut self,
        api: Api,
        router: Router,
        stop: &CancellationToken,
        telemetry: &Telemetry,
    ) -> Option<JoinHandle<()>> {
        let listener = self.listeners.remove(&api)?;
        let is_query = matches!(api, Api::Tempo | Api::TempoGrpc | Api::Jaeger | Api::JaegerGrpc | Api::Zipkin);
        let mut limits = self.limits.clone();
        if is_query {
            limits.max_header_bytes = QUERY_HEADER_BYTES;
        }
        let name = APIS.into_iter().find(|(known, ..)| *known == api).map_or("", |(_, _, name, _)| name);
        Some(tokio::spawn(serve(listener, router, stop.clone(), limits, port_metrics(telemetry, name))))
    }
}

/// Binds a port. One that the user chose must be free; a default one may be taken by another program.
async fn bind(name: &'static str, config: &Config, port: Port) -> Result<(Option<TcpListener>, Bound)> {
    let Some(number) = port.number else { return Ok((None, turned_off(name, config))) };
    let wanted = SocketAddr::new(config.listen, number);
    bound(name, port, wanted, TcpListener::bind(wanted).await, TcpListener::local_addr)
}

/// The same for packets, which carry no tenant: while there are several, nobody listens to them.
fn bind_udp(name: &'static str, config: &Config, port: Port) -> Result<(Option<UdpSocket>, Bound)> {
    let Some(number) = port.number else { return Ok((None, turned_off(name, config))) };
    if config.multitenancy_enabled {
        tracing::info!(api = name, "packets carry no tenant: this port is off while multitenancy is on");
        return Ok((None, turned_off(name, config)));
    }
    let wanted = SocketAddr::new(config.listen, number);
    bound(name, port, wanted, jaeger::agent::bind(wanted), UdpSocket::local_addr)
}

fn turned_off(name: &'static str, config: &Config) -> Bound {
    Bound { name, wanted: SocketAddr::new(config.listen, 0), at: None, off: true }
}

/// What became of a port.
fn bound<S>(
    name: &'static str,
    port: Port,
    wanted: SocketAddr,
    socket: std::io::Result<S>,
    at: impl Fn(&S) -> std::io::Result<SocketAddr>,
) -> Result<(Option<S>, Bound)> {
    match socket {
        Ok(socket) => {
            let at = at(&socket)?;
            Ok((Some(socket), Bound { name, wanted, at: Some(at), off: false }))
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

/// What answers on a query port: 503 until the start is complete, then the real routes.
#[derive(Clone, Debug, Default)]
pub(super) struct LateRouter(Arc<OnceLock<Router>>);

impl LateRouter {
    /// From now on `router` answers. Once.
    pub(super) fn set(&self, router: Router) -> Result<()> {
        if self.0.set(router).is_err() {
            bail!("a query port was set up twice");
        }
        Ok(())
    }

    pub(super) fn router(&self) -> Router {
        let late = Arc::clone(&self.0);
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
}

fn starting() -> Response {
    let body = "Some services are not Running:\nStarting: 1\n";
    (StatusCode::SERVICE_UNAVAILABLE, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::FlagOverrides;

    #[test]
    fn the_help_text_lists_every_port_there_is() {
        let help = crate::cli::Cli::command().render_long_help().to_string();
        let config = Config::default().to_yaml(None);
        let settings = config.split_once("\nports:\n").expect("ports").1.lines().take_while(|line| line.starts_with("  "));
        let settings = settings.filter_map(|line| line.trim().split_once(": ")).filter(|(name, _)| !name.starts_with('#'));
        let mut count = 0;
        for (name, number) in settings.filter(|(name, _)| *name != "max_connections_per_address") {
            count += 1;
            let path = format!("ports.{name}");
            let line =
                help.lines().find(|line| line.ends_with(&format!(" {path}"))).unwrap_or_else(|| panic!("{path}: {help}"));
            assert!(line.trim_start().starts_with(number), "{line}");
            let variable = format!("SPANHOUSE_PORTS_{}", name.to_ascii_uppercase());
            let moved = Config::load(None, [(variable, "12345".to_owned())], FlagOverrides::default()).unwrap().ports;
            let row = APIS.iter().map(|row| row.3).chain(AGENTS.iter().map(|row| row.2)).find(|of| of(&moved).0 == path);
            assert_eq!(row.map(|of| of(&moved).1.number), Some(Some(12345)), "{path}");
        }
        assert_eq!(count, APIS.len() + AGENTS.len());
        assert!(
            help.contains("9411      Zipkin API      ports.zipkin\n") && help.contains("6831/udp  Jaeger/compact"),
            "{help}"
        );
    }
}
