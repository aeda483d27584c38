//! Real senders that speak Jaeger and Zipkin: each of their libraries on its own port, and the load generator by every protocol.
//!
//! A script sends and prints what must come back, made of what the library itself put on the wire; here every trace is read back,
//! live and then from blocks, and compared span by span.

use std::process::Command;

use serde_json::Value as Json;

use crate::clients::{expect_back, here, output};
use crate::harness::server::{Answer, Server, Setup};
use crate::harness::tools;

/// A server with every port of Jaeger's and Zipkin's clients.
async fn server(setup: Setup) -> Server {
    let ports = ["JAEGER_THRIFT_HTTP", "JAEGER_GRPC", "JAEGER_COMPACT", "JAEGER_BINARY", "ZIPKIN_COMPACT", "ZIPKIN"];
    let setup = ports.into_iter().fold(setup, |setup, port| setup.with(&format!("PORTS_{port}"), "0"));
    setup.with("FLUSH_MAX_AGE", "1s").start().await
}

/// Packets are not acknowledged: waits until all that a script sent has arrived, then compares.
async fn compare(server: &Server, printed: &str, services: &[&str]) {
    let sent: Vec<Json> = serde_json::from_str(printed).expect("the script prints JSON");
    server.until_metric("spanhouse_ingester_spans_received_total", |spans| spans >= sent.len() as f64).await;
    expect_back(server, printed, services).await;
}

fn thrift_url(server: &Server) -> String {
    format!("http://{}/api/traces?format=jaeger.thrift", server.port("Jaeger/Thrift"))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_jaeger_in_python() {
    let python = match tools::jaeger_python() {
        Ok(python) => python,
        Err(why) => return tools::not_run("clients_of_jaeger_in_python", &why),
    };
    let server = server(Setup::new()).await;
    let agent = server.port("Jaeger/compact");
    let (grpc, nobody) = (server.port("Jaeger/gRPC").to_string(), "1".to_owned());
    let arguments = [thrift_url(&server), agent.ip().to_string(), agent.port().to_string(), grpc, nobody];
    let printed = output(Command::new(python).arg(here("tests/tools/jaeger_in.py")).args(arguments));
    let services = ["jaeger-thrift-http", "jaeger-thrift-udp", "jaeger-proto-grpc", "jaeger-client-python"];
    compare(&server, &printed, &services).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_zipkin_in_python() {
    let python = match tools::zipkin_python() {
        Ok(python) => python,
        Err(why) => return tools::not_run("clients_of_zipkin_in_python", &why),
    };
    let server = server(Setup::new()).await;
    let at = server.port("Zipkin API");
    let arguments = [at.ip().to_string(), at.port().to_string()];
    let printed = output(Command::new(python).arg(here("tests/tools/zipkin_in.py")).args(arguments));
    let services = [
        "py-zipkin-v1_thrift",
        "py-zipkin-v1_json",
        "py-zipkin-v2_json",
        "py-zipkin-v2_proto3",
        "otel-zipkin-v1",
        "otel-zipkin-v2",
    ];
    compare(&server, &printed, &services).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_both_in_node() {
    let dir = match tools::jaeger_node() {
        Ok(dir) => dir,
        Err(why) => return tools::not_run("clients_of_both_in_node", &why),
    };
    let server = server(Setup::new()).await;
    let agent = server.port("Jaeger/binary");
    let zipkin = format!("http://{}", server.port("Zipkin API"));
    // The binary port, so that both are used: Node's clients write compact on any, and any port takes both.
    let arguments = [thrift_url(&server), agent.ip().to_string(), agent.port().to_string(), zipkin];
    let mut command = Command::new("node");
    // Buffers are made as they were when these libraries were written.
    command.arg("--no-deprecation").current_dir(dir).arg(here("tests/tools/jaeger_in.mjs")).args(arguments);
    let printed = output(&mut command);
    let services = [
        "jaeger-client-node-udp",
        "jaeger-client-node-http",
        "otel-jaeger-node-http",
        "otel-jaeger-node-udp",
        "otel-zipkin-node",
        "zipkin-js",
    ];
    compare(&server, &printed, &services).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_generator_by_every_protocol() {
    let setup = Setup::new();
    let server = server(setup.clone()).await;
    let query = format!("http://{}", server.ports.query);
    for (seed, (protocol, port)) in [
        ("jaeger-thrift-http", "Jaeger/Thrift"),
        ("jaeger-compact-udp", "Jaeger/compact"),
        ("jaeger-binary-udp", "Jaeger/binary"),
        ("jaeger-grpc", "Jaeger/gRPC"),
        ("zipkin-json", "Zipkin API"),
        ("zipkin-proto", "Zipkin API"),
        ("zipkin-thrift", "Zipkin API"),
        ("zipkin-v1-json", "Zipkin API"),
    ]
    .into_iter()
    .enumerate()
    {
        let (endpoint, seed) = (format!("http://{}", server.port(port)), (seed + 1).to_string());
        // Packets at a rate that no buffer of a kernel minds.
        let rate: &[&str] = if protocol.ends_with("udp") { &["--rate", "5000"] } else { &[] };
        let gzip: &[&str] = if protocol.ends_with("udp") { &[] } else { &["--compression", "gzip"] };
        let fixed = ["loadgen", "--protocol", protocol, "--endpoint", &endpoint, "--query", &query];
        let rest = ["--count", "3000", "--batch", "300", "--seed", &seed, "--verify", "--json"];
        let said = setup.said(&[&fixed[..], &rest, rate, gzip].concat());
        let summary: Json = serde_json::from_str(&said).expect("JSON");
        let verified = &summary["verified"];
        assert!(summary["spans"].as_u64() >= Some(3_000) && verified["missing_spans"] == 0, "{protocol}: {said}");
    }
    // A trace by a protocol of each family, as another protocol would have brought it.
    let metric =
        |protocol: &str| format!("spanhouse_receiver_requests_total{{protocol=\"{protocol}\",outcome=\"Accepted\"}}");
    let metrics = server.get("/metrics").await.text();
    for protocol in ["JaegerThriftHttp", "JaegerGrpc", "JaegerCompactUdp", "JaegerBinaryUdp", "ZipkinJson", "ZipkinV1Thrift"]
    {
        assert!(metrics.contains(&metric(protocol)), "{protocol} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_listed_and_off_where_packets_have_no_tenant() {
    let server = server(Setup::new()).await;
    let status = server.get("/status/services").await.text();
    for name in ["Jaeger/Thrift", "Jaeger/gRPC", "Jaeger/compact", "Jaeger/binary", "Zipkin/compact", "Zipkin API"] {
        assert!(status.contains(name), "{name} in {status}");
    }
    drop(server);

    let server = self::server(Setup::new().with("MULTITENANCY_ENABLED", "true")).await;
    let status = server.get("/status/services").await.text();
    let line = status.lines().find(|line| line.contains("Jaeger/compact")).expect("a line for the port");
    assert!(line.contains("turned off"), "{line}");
    let span = r#"[{"traceId":"00000000000000aa","id":"00000000000000bb","name":"n","timestamp":1700000000000000}]"#;
    let url = format!("http://{}/api/v2/spans", server.port("Zipkin API"));
    let send = |tenant: Option<&'static str>| {
        let request = server.client.post(&url).body(span);
        Answer::of(tenant.into_iter().fold(request, |request, name| request.header("x-tenant", name)))
    };
    assert_eq!(send(None).await.expect("an answer").status, 401);
    assert_eq!(send(Some("team-a")).await.expect("an answer").status, 202);
    let found = server.get_with("/api/v2/traces/aa", &[("x-scope-orgid", "team-a")]).await;
    assert_eq!(found.status, 200, "{}", found.text());
}
