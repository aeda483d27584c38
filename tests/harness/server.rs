//! The server as a process: started on free ports, watched, killed, restarted on the same data.
//!
//! Every line it logs is kept. A WARN or ERROR that the test did not announce, or a panic, fails the test: what an operator
//! would be told must be meant.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spanhouse_common::fail_points;
use tempfile::TempDir;

use super::{SOON, eventually};

/// Ports of a server unless a test sets them: any free one, or none where few tests ask.
const PORTS: [(&str, &str); 15] = [
    ("OTLP_GRPC", "0"),
    ("OTLP_HTTP", "0"),
    ("HTTP", "0"),
    ("GRPC_QUERY", "0"),
    ("JAEGER", "off"),
    ("JAEGER_GRPC_QUERY", "off"),
    ("JAEGER_STORAGE", "off"),
    ("JAEGER_THRIFT_HTTP", "off"),
    ("JAEGER_GRPC", "off"),
    ("JAEGER_COMPACT", "off"),
    ("JAEGER_BINARY", "off"),
    ("ZIPKIN_COMPACT", "off"),
    ("ZIPKIN", "off"),
    ("SAMPLING_HTTP", "off"),
    ("SAMPLING_GRPC", "off"),
];

/// What to start, as often as wanted: clones share the data directory.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    home: Arc<TempDir>,
    data_dir: PathBuf,
    variables: Vec<(String, String)>,
    expected: Vec<&'static str>,
}

impl Setup {
    /// A server with a new data directory.
    pub(crate) fn new() -> Self {
        let home = Arc::new(TempDir::new().expect("a temporary directory"));
        let data_dir = home.path().join("data");
        Self { home, data_dir, variables: Vec::new(), expected: Vec::new() }
    }

    /// Sets a setting by its variable without the prefix: `("FLUSH_MAX_AGE", "1s")`.
    #[must_use]
    pub(crate) fn with(mut self, setting: &str, value: &str) -> Self {
        self.variables.push((format!("SPANHOUSE_{setting}"), value.to_owned()));
        self
    }

    /// Everything becomes blocks as fast as the settings allow.
    #[must_use]
    pub(crate) fn flushing_often(self) -> Self {
        self.with("FLUSH_MAX_AGE", "1s").with("FLUSH_CUT_SPANS", "1000").with("WAL_SEGMENT_BYTES", "1MiB")
    }

    /// Allows WARN and ERROR lines that contain `text`.
    #[must_use]
    pub(crate) fn expecting(mut self, text: &'static str) -> Self {
        self.expected.push(text);
        self
    }

    #[must_use]
    pub(crate) fn at(mut self, data_dir: &Path) -> Self {
        self.data_dir = data_dir.to_owned();
        self
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A directory beside the data, for files of the test.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// The binary with the settings and the data of this setup.
    fn binary(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanhouse"));
        // Variables of the test run would be unknown settings, which are errors.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SPANHOUSE_")) {
            command.env_remove(name);
        }
        command.env("SPANHOUSE_DATA_DIR", &self.data_dir).envs(self.variables.iter().cloned());
        command
    }

    /// Runs a command on the data of this setup, beside its server if that runs.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        self.binary().args(arguments).stdin(Stdio::null()).output().expect("the command runs")
    }

    /// What a command says that succeeds.
    pub(crate) fn said(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error} {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Starts the process and returns at once.
    pub(crate) fn spawn(&self) -> Process {
        let mut command = self.binary();
        let set = |port: &str| self.variables.iter().any(|(name, _)| name == &format!("SPANHOUSE_PORTS_{port}"));
        for (port, value) in PORTS.into_iter().filter(|(port, _)| !set(port)) {
            command.env(format!("SPANHOUSE_PORTS_{port}"), value);
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the server starts");
        let (out, log) = (Lines::read(child.stdout.take()), Lines::read(child.stderr.take()));
        Process { child, out, log, expected: self.expected.clone(), checked: false, _home: Arc::clone(&self.home) }
    }

    /// Starts the server and returns when it is ready.
    pub(crate) async fn start(&self) -> Server {
        let server = self.start_unready().await;
        eventually("ready", async || server.get("/ready").await.status.eq(&200).then_some(())).await;
        server
    }

    /// Lets the server die when it reaches a fail point for the n-th time.
    #[must_use]
    pub(crate) fn dying_at(mut self, point: &str, nth: usize) -> Self {
        self.variables.push((fail_points::VARIABLE.to_owned(), format!("{point}:{nth}")));
        self
    }

    /// Starts a server that may die; `None` if it does before it listens.
    pub(crate) async fn start_dying(&self) -> Option<Server> {
        let mut process = self.spawn();
        loop {
            if let Some(ports) = process.ports() {
                return Some(Server { process, ports, client: client() });
            }
            if process.exited().is_some() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the server and returns when it listens, whether it takes spans or not.
    pub(crate) async fn start_unready(&self) -> Server {
        let mut process = self.spawn();
        let ports = eventually("the start-up text", async || {
            if let Some(status) = process.exited() {
                panic!("the server ended at start: {status}\n{}", process.log());
            }
            process.ports()
        })
        .await;
        Server { process, ports, client: client() }
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(SOON).build().expect("a client")
}

/// Where a server listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) grpc: SocketAddr,
    pub(crate) otlp: SocketAddr,
    pub(crate) query: SocketAddr,
    pub(crate) query_grpc: SocketAddr,
}

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn read(stream: Option<impl Read + Send + 'static>) -> Self {
        let lines = Self::default();
        let (to, stream) = (lines.clone(), stream.expect("a pipe"));
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                to.0.lock().push(line);
            }
        });
        lines
    }
}

/// A running process. Dropping it kills it and checks its log.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    out: Lines,
    log: Lines,
    expected: Vec<&'static str>,
    checked: bool,
    _home: Arc<TempDir>,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the state of the server")
    }

    pub(crate) fn log(&self) -> String {
        self.log.0.lock().join("\n")
    }

    fn ports(&self) -> Option<Ports> {
        Some(Ports {
            grpc: self.port("OTLP/gRPC")?,
            otlp: self.port("OTLP/HTTP")?,
            query: self.port("Tempo API")?,
            query_grpc: self.port("Tempo gRPC")?,
        })
    }

    /// The address of a port by the name it is listed under, if it is turned on.
    pub(crate) fn port(&self, name: &str) -> Option<SocketAddr> {
        let out = self.out.0.lock();
        let address = out.iter().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' '))?;
        Some(address.trim().parse().unwrap_or_else(|e| panic!("{name}{address}: {e}")))
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("the server ends");
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not end within {within:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn check_log(&mut self) {
        self.checked = true;
        let log = self.log.0.lock();
        let loud = |line: &&String| line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("panicked at");
        let unlisted = |line: &&String| !self.expected.iter().any(|text| line.contains(text));
        let bad: Vec<&String> = log.iter().filter(loud).filter(unlisted).collect();
        assert!(bad.is_empty(), "unexpected lines in the log: {bad:#?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of the server:\n{}", self.log());
        } else if !self.checked {
            self.check_log();
        }
    }
}

/// A server that is ready.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) ports: Ports,
    pub(crate) client: reqwest::Client,
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) async fn of(request: reqwest::RequestBuilder) -> reqwest::Result<Self> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Self { status, headers, body: response.bytes().await?.to_vec() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Server {
    pub(crate) fn otlp_url(&self) -> String {
        format!("http://{}/v1/traces", self.ports.otlp)
    }

    pub(crate) fn query_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.ports.query)
    }

    /// The address of a port that the test turned on, by the name it is listed under.
    pub(crate) fn port(&self, name: &str) -> SocketAddr {
        self.process.port(name).unwrap_or_else(|| panic!("{name} is turned off"))
    }

    /// GET on the query port.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.client.get(self.query_url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request).await.unwrap_or_else(|e| panic!("GET {path}: {e:?}"))
    }

    /// The sum of a metric over its labels; `None` if it has no samples.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").await.text();
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next().unwrap_or_default().parse::<f64>().ok()).flatten()
        };
        let values: Vec<f64> = text.lines().filter_map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Waits until a metric satisfies `check`.
    pub(crate) async fn until_metric(&self, name: &str, check: impl Fn(f64) -> bool) {
        eventually(name, async || self.metric(name).await.filter(|value| check(*value))).await;
    }

    /// Waits until `spans` spans in all were flushed and nothing is live. The gauge alone lags behind what was just sent.
    pub(crate) async fn until_flushed(&self, spans: usize) {
        self.until_metric("spanhouse_ingester_flushed_spans_total", |flushed| flushed >= spans as f64).await;
        self.until_metric("spanhouse_ingester_live_spans", |live| live == 0.0).await;
    }

    /// `kill -9`, with the log checked.
    pub(crate) fn kill(mut self) {
        self.process.kill();
        self.process.check_log();
    }

    /// SIGTERM, and the time until it ended well.
    pub(crate) async fn terminate(mut self, within: Duration) -> Duration {
        let began = Instant::now();
        signal(self.process.id(), "TERM");
        let status = self.process.ended(within).await;
        assert!(status.success(), "{status}\n{}", self.process.log());
        self.process.check_log();
        began.elapsed()
    }
}

/// Sends a signal by name.
pub(crate) fn signal(process: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status().expect("kill runs");
    assert!(status.success(), "kill -{name}: {status}");
}
