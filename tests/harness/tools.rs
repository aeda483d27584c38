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
    let dir = installed("SPANHOUSE_TEST_NODE_DIR", "node");
    if !works(Command::new("node").arg("--version")) {
        return Err("there is no node".into());
    }
    let package = |name: &str| dir.join("node_modules/@opentelemetry").join(name).is_dir();
    let needed = ["sdk-trace-node", "exporter-trace-otlp-proto", "exporter-trace-otlp-http", "exporter-trace-otlp-grpc"];
    match needed.into_iter().find(|name| !package(name)) {
        None => Ok(dir),
        Some(missing) => Err(format!("{} has no @opentelemetry/{missing}", dir.display())),
    }
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
