//! Remote sampling: real clients ask a running server and obey, a changed file reaches them, and probabilities are learned.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_trace::Span;

use crate::harness::eventually;
use crate::harness::otlp::{attribute, new_id, now, request};
use crate::harness::server::{Answer, Server, Setup};
use crate::harness::tools;

/// A script of `tests/tools` that tells how a client samples.
struct Sampler {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Sampler {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the script starts");
        let (to, from) = (child.stdin.take().expect("a pipe"), BufReader::new(child.stdout.take().expect("a pipe")));
        Self { child, to, from }
    }

    /// Waits until the client samples like this: service, operation, `all` or `none`.
    fn expect(&mut self, expected: &Json) {
        writeln!(self.to, "{expected}").expect("the script reads");
        let mut line = String::new();
        self.from.read_line(&mut line).expect("the script answers");
        let found: Json = serde_json::from_str(&line).unwrap_or_else(|e| panic!("`{line}`: {e}"));
        assert_eq!(&found, expected);
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools").join(name)
}

fn setup(file: &Json) -> Setup {
    let setup = Setup::new().with("PORTS_SAMPLING_HTTP", "0").with("PORTS_SAMPLING_GRPC", "0");
    let setup = setup.with("SAMPLING_RELOAD_INTERVAL", "100ms");
    write(&setup, file);
    let path = setup.home().join("strategies.json");
    setup.with("SAMPLING_STRATEGIES_FILE", path.to_str().expect("text"))
}

/// Puts a new file in the place of the old one, as editors and mounts do.
fn write(setup: &Setup, file: &Json) {
    let next = setup.home().join("strategies.next");
    std::fs::write(&next, file.to_string()).expect("the file is written");
    std::fs::rename(next, setup.home().join("strategies.json")).expect("it takes its place");
}

async fn ask(server: &Server, service: &str) -> Json {
    let url = format!("http://{}/sampling?service={service}", server.port("Sampling/HTTP"));
    let answer = Answer::of(server.client.get(url)).await.expect("an answer");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// One operation is kept, the other is not, and so is a service; then all of it the other way round.
async fn obeys(start: impl FnOnce(&str) -> Sampler) {
    let rate = |p: u8| if p == 1 { "all" } else { "none" };
    let file = |yes: u8, no: u8| {
        let operation = |name: &str, p: u8| json!({ "operation": name, "type": "probabilistic", "param": p });
        json!({
            "default_strategy": { "type": "probabilistic", "param": no },
            "service_strategies": [
                { "service": "shop", "type": "probabilistic", "param": yes,
                  "operation_strategies": [operation("/pay", yes), operation("/health", no)] },
                { "service": "a bü", "type": "probabilistic", "param": yes },
            ],
        })
    };
    let told = |yes: u8, no: u8| {
        json!({
            "shop": { "/pay": rate(yes), "/health": rate(no) },
            "a bü": { "x": rate(yes) },
            "unknown": { "x": rate(no) },
        })
    };
    let setup = setup(&file(1, 0));
    let server = setup.start().await;
    let mut client = start(&server.port("Sampling/HTTP").to_string());
    for (yes, no) in [(1, 0), (0, 1)] {
        write(&setup, &file(yes, no));
        client.expect(&told(yes, no));
        // Jaeger's clients keep what they once made of an operation that is not listed: only a new one shows the rest.
        client.expect(&json!({ "shop": { (format!("/else{yes}")): rate(yes) } }));
    }
    server.until_metric("spanhouse_sampling_requests_total", |asked| asked >= 6.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_jaeger_client_obeys() {
    match tools::jaeger_python() {
        Ok(python) => obeys(|port| Sampler::start(Command::new(python).arg(script("sample.py")).arg(port))).await,
        Err(why) => tools::not_run("the_python_jaeger_client_obeys", &why),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_clients_obey() {
    let dir = match tools::jaeger_node() {
        Ok(dir) => dir,
        Err(why) => return tools::not_run("the_node_clients_obey", &why),
    };
    for client in ["jaeger-client", "opentelemetry"] {
        let start = |port: &str| {
            Sampler::start(Command::new("node").current_dir(&dir).arg(script("sample.mjs")).args([client, port]))
        };
        obeys(start).await;
    }
}

/// A gRPC client without generated code: bytes in, bytes out.
const GRPC: &str = r#"
import grpc, sys
channel = grpc.insecure_channel(sys.argv[1])
health = "/grpc.health.v1.Health/Check"
calls = [
    ("/jaeger.api_v2.SamplingManager/GetSamplingStrategy", b"\x0a\x04shop"),
    (health, b"\x0a\x1djaeger.api_v2.SamplingManager"),
    (health, b""),
]
if sys.argv[2] == "collector":
    calls.append((health, b"\x0a\x1ejaeger.api_v2.CollectorService"))
for path, request in calls:
    call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    print(call(request, timeout=10).hex())
"#;

#[tokio::test(flavor = "multi_thread")]
async fn grpc_clients_are_told_the_same() {
    let python = match tools::python() {
        Ok(python) => python,
        Err(why) => return tools::not_run("grpc_clients_are_told_the_same", &why),
    };
    let file = json!({ "service_strategies": [{ "service": "shop", "type": "ratelimiting", "param": 5 }] });
    let server = setup(&file).with("PORTS_JAEGER_GRPC", "0").with("PORTS_JAEGER_THRIFT_HTTP", "0").start().await;
    // RATE_LIMITING with 5 a second; SERVING. Beside the spans it takes, the collector's port answers too.
    for (port, which, healthy) in [("Sampling/gRPC", "sampling", 2), ("Jaeger/gRPC", "collector", 3)] {
        let port = server.port(port).to_string();
        let output = Command::new(&python).args(["-c", GRPC, &port, which]).output().expect("python runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("08011a020805\n{}", "0801\n".repeat(healthy)));
    }
    let collector = format!("http://{}/api/sampling?service=shop", server.port("Jaeger/Thrift"));
    let collector = Answer::of(server.client.get(collector)).await.expect("an answer");
    let told = r#"{"strategyType":"RATE_LIMITING","rateLimitingSampling":{"maxTracesPerSecond":5}}"#;
    assert_eq!(collector.text(), told);
    assert_eq!(ask(&server, "shop").await, serde_json::from_str::<Json>(told).expect("JSON"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing() {
    let probability = |p: f64| json!({ "default_strategy": { "type": "probabilistic", "param": p } });
    let setup = setup(&probability(0.5)).expecting("sampling strategies not loaded");
    let server = setup.start().await;
    let told = |p: f64| json!({ "strategyType": "PROBABILISTIC", "probabilisticSampling": { "samplingRate": p } });
    assert_eq!(ask(&server, "any").await, told(0.5));
    write(&setup, &json!([]));
    server.until_metric("spanhouse_sampling_reload_failures_total", |failures| failures >= 2.0).await;
    assert_eq!(ask(&server, "any").await, told(0.5));
    let warnings = server.process.log().matches("sampling strategies not loaded").count();
    assert_eq!(warnings, 1, "told once");
    write(&setup, &probability(0.25));
    eventually("the mended file", async || (ask(&server, "any").await == told(0.25)).then_some(())).await;
}

/// The root span of a trace that a client sampled with `probability`.
fn sampled_root(probability: f64) -> Span {
    let start = now();
    Span {
        trace_id: new_id().to_be_bytes().to_vec(),
        span_id: vec![1; 8],
        name: "/pay".into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1_000,
        attributes: vec![
            attribute("sampler.type", Value::StringValue("probabilistic".into())),
            attribute("sampler.param", Value::DoubleValue(probability)),
        ],
        ..Span::default()
    }
}

/// A server that learns within seconds, from a probability of 0.5 to 10 traces a second.
fn learning() -> Setup {
    let settings = [
        ("ADAPTIVE", "true"),
        ("CALCULATION_INTERVAL", "1s"),
        ("CALCULATION_DELAY", "1s"),
        ("LEADER_LEASE_REFRESH_INTERVAL", "100ms"),
        ("INITIAL_SAMPLING_PROBABILITY", "0.5"),
        ("TARGET_SAMPLES_PER_SECOND", "10"),
    ];
    let setup = Setup::new().with("PORTS_SAMPLING_HTTP", "0");
    settings.iter().fold(setup, |setup, (name, value)| setup.with(&format!("SAMPLING_{name}"), value))
}

/// What was learned of the one operation `/pay`.
async fn learned(server: &Server, service: &str) -> Option<f64> {
    let told = ask(server, service).await;
    let operations = &told["operationSampling"];
    assert_eq!(
        (told["strategyType"].as_str(), operations["defaultSamplingProbability"].as_f64()),
        (Some("PROBABILISTIC"), Some(0.5))
    );
    let first = &operations["perOperationStrategies"][0];
    (first["operation"] == "/pay").then(|| first["probabilisticSampling"]["samplingRate"].as_f64().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jaeger_client_is_learned_from() {
    let python = match tools::jaeger_python() {
        Ok(python) => python,
        Err(why) => return tools::not_run("a_jaeger_client_is_learned_from", &why),
    };
    let server = learning().with("PORTS_JAEGER_COMPACT", "0").start().await;
    let (ask_at, send_to) = (server.port("Sampling/HTTP").to_string(), server.port("Jaeger/compact").to_string());
    let _client = Sampler::start(Command::new(python).arg(script("learn.py")).args([ask_at, send_to]));
    eventually("less than a fifth is sampled", async || learned(&server, "shop").await.filter(|p| *p < 0.1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probabilities_are_learned_from_what_arrives_and_kept() {
    let setup = learning();
    let server = setup.start().await;
    assert_eq!(learned(&server, "shop").await, None);
    // 2,000 traces a second, sampled as told: 10 of them wanted, so about 0.005.
    let began = Instant::now();
    let (mut probability, mut traces, mut sent) = (0.5, 0.0, 0);
    let mut last = began;
    while !(0.002..0.02).contains(&probability) {
        assert!(began.elapsed() < Duration::from_secs(90), "still at {probability}");
        traces += 2_000.0 * last.elapsed().as_secs_f64() * probability;
        last = Instant::now();
        let spans: Vec<Span> = (sent..traces as usize).map(|_| sampled_root(probability)).collect();
        sent += spans.len();
        server.send(&request(spans)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        probability = learned(&server, "shop").await.unwrap_or(probability);
    }
    assert_eq!(learned(&server, "other").await, None);
    server.terminate(Duration::from_secs(20)).await;
    // The next one begins where this one ended, give or take what was under way.
    let server = setup.start().await;
    let again = learned(&server, "shop").await.expect("it was kept");
    assert!(again < 0.1, "{again}");
}
