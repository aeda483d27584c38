//! Tests that need more than cargo: one named set. Without the tool they print what did not run; where
//! `SPANHOUSE_TEST_REQUIRE_TOOLS=1`, as in `.ci/run`, that is a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells that a test did not run, or fails where every test must.
pub(crate) fn not_run(test: &str, why: &str) {
    assert!(!required(), "{test} must run here: {why}");
    // Past the capture of the test harness, or nobody would see it.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("not run: {test}: {why}\n").as_bytes());
}

/// Tells that a test did not run because it needs something that no package client brings, such as a built UI.
pub(crate) fn not_asked(test: &str, why: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("not run: {test}: {why}\n").as_bytes());
}

pub(crate) fn required() -> bool {
    std::env::var("SPANHOUSE_TEST_REQUIRE_TOOLS").is_ok_and(|value| value == "1")
}

fn installed(variable: &str, below: &str) -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools").join(below);
    std::env::var_os(variable).map_or_else(default, PathBuf::from)
}

fn works(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// A Python that has the OpenTelemetry SDK with both exporters.
pub(crate) fn python() -> Result<PathBuf, String> {
    let python = installed("SPANHOUSE_TEST_PYTHON", "venv/bin/python");
    let import = "import opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.grpc.trace_exporter, \
                  opentelemetry.exporter.otlp.proto.http.trace_exporter";
    let found = works(Command::new(&python).args(["-c", import]));
    found.then(|| python.clone()).ok_or_else(|| format!("{} has no OpenTelemetry SDK", python.display()))
}

/// A directory with `node_modules` that has the OpenTelemetry SDK with its three exporters, and a Node to run it.
pub(crate) fn node() -> Result<PathBuf, String> {
    let exporters = ["proto", "http", "grpc"].map(|kind| format!("@opentelemetry/exporter-trace-otlp-{kind}"));
    let [proto, http, grpc] = exporters.each_ref().map(String::as_str);
    node_with(installed("SPANHOUSE_TEST_NODE_DIR", "node"), &["@opentelemetry/sdk-trace-node", proto, http, grpc])
}

fn node_with(dir: PathBuf, packages: &[&str]) -> Result<PathBuf, String> {
    if !works(Command::new("node").arg("--version")) {
        return Err("there is no node".into());
    }
    match packages.iter().find(|name| !dir.join("node_modules").join(name).is_dir()) {
        None => Ok(dir),
        Some(missing) => Err(format!("{} has no {missing}", dir.display())),
    }
}

/// A Python that has the clients of Jaeger.
pub(crate) fn jaeger_python() -> Result<PathBuf, String> {
    let python = installed("SPANHOUSE_TEST_JAEGER_PYTHON", "venv-jaeger/bin/python");
    let import = "import jaeger_client, opentelemetry.exporter.jaeger.thrift, opentelemetry.exporter.jaeger.proto.grpc";
    let found = works(Command::new(&python).args(["-c", import]));
    found.then(|| python.clone()).ok_or_else(|| format!("{} has no clients of Jaeger", python.display()))
}

/// A Python that has the clients of Zipkin.
pub(crate) fn zipkin_python() -> Result<PathBuf, String> {
    let python = installed("SPANHOUSE_TEST_ZIPKIN_PYTHON", "venv-zipkin/bin/python");
    let found = works(Command::new(&python).args(["-c", "import py_zipkin.thrift, opentelemetry.exporter.zipkin.json"]));
    found.then(|| python.clone()).ok_or_else(|| format!("{} has no clients of Zipkin", python.display()))
}

/// A directory with `node_modules` that has the clients of Jaeger and Zipkin, and a Node to run them.
pub(crate) fn jaeger_node() -> Result<PathBuf, String> {
    let needed = [
        "jaeger-client",
        "zipkin",
        "zipkin-transport-http",
        "@opentelemetry/exporter-jaeger",
        "@opentelemetry/exporter-zipkin",
        "@opentelemetry/sampler-jaeger-remote",
    ];
    node_with(installed("SPANHOUSE_TEST_JAEGER_NODE_DIR", "node-jaeger"), &needed)
}

/// A directory whose `node_modules` has puppeteer-core, which drives a Chromium.
pub(crate) fn browser() -> Result<PathBuf, String> {
    node_with(installed("SPANHOUSE_TEST_BROWSER_DIR", "browser"), &["puppeteer-core"])
}

/// Whether this process may mount and trace.
pub(crate) fn root() -> Result<(), String> {
    let id = Command::new("id").arg("-u").output().map_err(|e| e.to_string())?;
    if id.stdout == b"0\n" { Ok(()) } else { Err("only root may mount file systems".into()) }
}

/// Whether `strace` can attach to another process.
pub(crate) fn strace() -> Result<(), String> {
    if works(Command::new("strace").arg("--version")) { Ok(()) } else { Err("there is no strace".into()) }
}

/// SeaweedFS, an S3 server.
pub(crate) fn weed() -> Result<PathBuf, String> {
    let weed = installed("SPANHOUSE_TEST_PYTHON", "venv/bin/python").with_file_name("weed");
    if works(Command::new(&weed).arg("version")) { Ok(weed) } else { Err(format!("there is no {}", weed.display())) }
}

/// What a page shows once its scripts have run, in lower case: the body, as Chromium has it. `profile` is a folder of its own.
pub(crate) fn page(url: &str, profile: &Path) -> String {
    let output = Command::new("chromium")
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(url)
        .output()
        .expect("chromium runs");
    let shown = String::from_utf8_lossy(&output.stdout).to_lowercase();
    shown.split("<body").nth(1).unwrap_or_default().to_owned()
}
