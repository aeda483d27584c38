//! More than the server can take of everything at once: senders without pause, heavy queries, merges, under a limit of memory that the
//! kernel enforces where this process may set one.
//!
//! What must hold: it is never killed, its memory stays below twice its budget (what a container of that budget's default has), it goes
//! on answering, and it refuses with a reason what it cannot take.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value as Json;

use crate::harness::server::Setup;

/// The budget of the server, in bytes; it may take twice that.
const BUDGET: u64 = 512 << 20;
const SECONDS: u64 = 15;
const SENDERS: u64 = 4;
const ASKERS: usize = 8;

/// A limit of memory around a process, where the kernel and our rights allow one.
struct Limited(PathBuf);

impl Limited {
    /// Of cgroup version 1, or version 2 with the memory controller handed down.
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("spanhouse-overload-{}", std::process::id());
        for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let group = Path::new(root).join(&name);
            if std::fs::create_dir(&group).is_err() {
                continue;
            }
            let limited = Self(group);
            if std::fs::write(limited.0.join(limit), bytes.to_string()).is_ok() {
                return Some(limited);
            }
        }
        None
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("the group takes the server");
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // Empty only once the server has ended; what is left over does no harm.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The most memory a process ever had, in bytes.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn sender(url: &str, seed: u64) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spanhouse"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SPANHOUSE_")) {
        command.env_remove(name);
    }
    let (seed, duration) = (seed.to_string(), format!("{SECONDS}s"));
    command.args(["loadgen", "--endpoint", url, "--seed", &seed, "--duration", &duration, "--connections", "16", "--json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a sender starts")
}

const QUERIES: [(&str, &str); 5] = [
    ("/api/metrics/query_range", "{} | quantile_over_time(duration, .5, .99) by (resource.service.name)"),
    ("/api/search", "{} ~ {}"),
    ("/api/metrics/query", "{} | compare({ status = error })"),
    ("/api/metrics/query_range", "{} | rate() by (span.user.id) | topk(10)"),
    ("/api/search", "{} >> { status = error }"),
];

#[tokio::test(flavor = "multi_thread")]
async fn everything_at_once_is_refused_before_memory_ends() {
    let setup = Setup::new()
        .with("MEMORY_TOTAL", "512MiB")
        .with("FLUSH_MAX_AGE", "2s")
        .with("FLUSH_CUT_SPANS", "20000")
        .with("COMPACTION_INTERVAL", "1s")
        .with("COMPACTION_FAN_IN", "8")
        .with("COMPACTION_QUERY_GRACE", "5s")
        // Full shares are what is tested, and are told.
        .expecting("memory")
        .expecting("overloaded")
        .expecting("too many");
    let mut server = setup.start().await;
    let pid = server.process.id();
    let limited = Limited::new(2 * BUDGET);
    if let Some(limited) = &limited {
        limited.add(pid);
    }
    let end = Instant::now() + Duration::from_secs(SECONDS);
    let senders: Vec<Child> = (0..SENDERS).map(|seed| sender(&format!("http://{}", server.ports.otlp), seed)).collect();
    let answers: Arc<Mutex<Vec<u16>>> = Arc::default();
    let mut askers = tokio::task::JoinSet::new();
    for asker in 0..ASKERS {
        let (answers, client, base) = (Arc::clone(&answers), server.client.clone(), server.query_url(""));
        askers.spawn(async move {
            for (path, query) in QUERIES.iter().cycle().skip(asker) {
                if Instant::now() >= end {
                    break;
                }
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
                let (start, stop) = ((now - 600).to_string(), (now + 5).to_string());
                let pairs = [("q", *query), ("limit", "1000"), ("start", &start), ("end", &stop)];
                let url = reqwest::Url::parse_with_params(&format!("{base}{path}"), pairs).expect("an address");
                // A server that is killed ends the connection: the test sees that at its end.
                if let Ok(answer) = client.get(url).send().await {
                    answers.lock().push(answer.status().as_u16());
                    let _ = answer.bytes().await;
                }
            }
        });
    }
    askers.join_all().await;
    let reports: Vec<Json> = senders
        .into_iter()
        .map(|sender| {
            let output = sender.wait_with_output().expect("a sender ends");
            serde_json::from_slice(&output.stdout).expect("a sender reports")
        })
        .collect();
    assert!(server.process.exited().is_none(), "the server was killed\n{}", server.process.log());
    let (peak, sum) = (peak(pid), |key: &str| reports.iter().filter_map(|report| report[key].as_u64()).sum::<u64>());
    let answers = std::mem::take(&mut *answers.lock());
    let of = |status: u16| answers.iter().filter(|answer| **answer == status).count();
    let text = format!(
        "peak {} MB, under a limit: {}, {} spans taken, {} retries, answers: {} whole, {} busy, {} of {}",
        peak >> 20,
        limited.is_some(),
        sum("spans"),
        sum("retries"),
        of(200),
        of(429),
        of(504),
        answers.len(),
    );
    eprintln!("{text}");
    assert!(peak < 2 * BUDGET, "{text}");
    assert_eq!(sum("lost_spans"), 0, "{text}");
    assert!(sum("spans") > 100_000 && of(200) > 0, "it did nothing: {text}");
    // A canary of the test itself: it must be more than the server takes.
    assert!(sum("retries") > 0, "nothing was refused, so it was no overload: {text}");
    let odd: Vec<u16> = answers.into_iter().filter(|status| ![200, 422, 429, 504].contains(status)).collect();
    assert!(odd.is_empty(), "{odd:?}: {text}");
    let merged = server.process.log().matches("merged blocks").count();
    assert!(merged > 0, "nothing was merged: {text}");
    drop(server);
}
