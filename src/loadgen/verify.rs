//! After sending: waiting for the flush, and reading every trace back.
//!
//! Owns the comparison of what was sent with what is found. Does not own sending.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use super::LoadgenError;
use super::client::{Client, Endpoint, Got, Style};
use super::generate::TraceRecord;
use super::report::{Histogram, Verified};
use super::rng::Ids;
use super::wire::scan_messages;

/// The gauge of spans that are in no block yet.
const LIVE_SPANS: &str = "spanhouse_ingester_live_spans";
const FLUSH_PATIENCE: Duration = Duration::from_secs(180);
/// An acknowledged span is visible within a second; more is a finding, but not a reason to stop looking.
const FRESHNESS: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Polls the server's metrics until no span is live; returns the seconds it took.
pub(super) async fn wait_for_flush(query: &Endpoint, style: &Style) -> Result<f64, LoadgenError> {
    let mut client = Client::new(query.clone(), style.clone());
    let begun = Instant::now();
    loop {
        let Got { status, body, .. } = client.get("/metrics", "text/plain").await?;
        let live = live_spans(&String::from_utf8_lossy(&body));
        match live {
            None => {
                return Err(LoadgenError::Flush(format!(
                    "{status} without the gauge {LIVE_SPANS} from {}/metrics",
                    query.authority
                )));
            }
            Some(0.0) => return Ok(begun.elapsed().as_secs_f64()),
            Some(live) if begun.elapsed() > FLUSH_PATIENCE => {
                return Err(LoadgenError::Flush(format!("{live} spans are still live after {FLUSH_PATIENCE:?}")));
            }
            Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The gauge summed over its labels.
fn live_spans(metrics: &str) -> Option<f64> {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(LIVE_SPANS)).filter(|rest| rest.starts_with(['{', ' ']));
    lines
        .map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
        .try_fold(None, |sum: Option<f64>, value| Some(Some(sum.unwrap_or(0.0) + value?)))?
}

/// Reads all traces over `connections` connections.
pub(super) async fn read_back(
    query: &Endpoint,
    style: &Style,
    connections: u32,
    traces: Vec<TraceRecord>,
    ids: Ids,
) -> Result<Verified, LoadgenError> {
    let bar = ProgressBar::new(traces.len() as u64);
    if let Ok(template) =
        ProgressStyle::with_template("{elapsed} {wide_bar} {human_pos} of {human_len} traces read back, {per_sec}")
    {
        bar.set_style(template);
    }
    let begun = Instant::now();
    let (traces, next) = (Arc::new(traces), Arc::new(AtomicUsize::new(0)));
    let mut readers = JoinSet::new();
    for _ in 0..connections {
        let mut client = Client::new(query.clone(), style.clone());
        let (traces, next, bar) = (Arc::clone(&traces), Arc::clone(&next), bar.clone());
        readers.spawn(async move {
            let mut found = Verified::default();
            let mut latency = Histogram::new();
            let deadline = begun + FRESHNESS;
            while let Some(record) = traces.get(next.fetch_add(1, Relaxed)) {
                check(&mut client, record, ids, deadline, &mut found, &mut latency).await?;
                bar.inc(1);
            }
            Ok::<_, LoadgenError>((found, latency))
        });
    }
    let mut total = Verified { traces: traces.len() as u64, ..Verified::default() };
    let mut latency = Histogram::new();
    while let Some(reader) = readers.join_next().await {
        let (found, times) = reader??;
        total.whole_traces += found.whole_traces;
        total.missing_spans += found.missing_spans;
        total.surplus_spans += found.surplus_spans;
        total.example = total.example.or(found.example);
        latency.merge(&times);
    }
    bar.finish_and_clear();
    total.seconds = begun.elapsed().as_secs_f64();
    total.latency_ms = latency.latency();
    Ok(total)
}

/// Reads one trace; until `deadline` again and again if spans are missing.
async fn check(
    client: &mut Client,
    record: &TraceRecord,
    ids: Ids,
    deadline: Instant,
    found: &mut Verified,
    latency: &mut Histogram,
) -> Result<(), LoadgenError> {
    let mut expected: Vec<u64> = (0..u64::from(record.spans)).map(|n| ids.span(record.first_span + n)).collect();
    expected.sort_unstable();
    let id = u128::from_be_bytes(record.id);
    let path = format!("/api/v2/traces/{id:032x}");
    loop {
        let begun = Instant::now();
        let answer = client.get(&path, "application/protobuf").await;
        let again = Instant::now() < deadline;
        let (missing, surplus, note) = match answer {
            Ok(Got { status, body, .. }) if status.is_success() => {
                latency.record(begun.elapsed());
                match span_ids(&body) {
                    Some(mut got) => {
                        got.sort_unstable();
                        let (missing, surplus) = difference(&expected, &got);
                        (missing, surplus, String::new())
                    }
                    None => (expected.len() as u64, 0, ", the answer is not protobuf".to_owned()),
                }
            }
            Ok(Got { status, .. }) => (expected.len() as u64, 0, format!(", HTTP {}", status.as_u16())),
            Err(e) if again => (expected.len() as u64, 0, e.to_string()),
            Err(e) => return Err(e),
        };
        if missing == 0 && surplus == 0 {
            found.whole_traces += 1;
            return Ok(());
        }
        if missing > 0 && again {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        found.missing_spans += missing;
        found.surplus_spans += surplus;
        found.example.get_or_insert_with(|| {
            format!("trace {id:032x}: {missing} of {} spans missing, {surplus} too many{note}", expected.len())
        });
        return Ok(());
    }
}

/// Span ids in a TraceByIDResponse: trace = 1, resource_spans = 1, scope_spans = 2, spans = 2, span_id = 2.
fn span_ids(body: &[u8]) -> Option<Vec<u64>> {
    let mut ids = Vec::new();
    scan_messages(body, 1, &mut |trace| {
        scan_messages(trace, 1, &mut |resource_spans| {
            scan_messages(resource_spans, 2, &mut |scope_spans| {
                scan_messages(scope_spans, 2, &mut |span| {
                    scan_messages(span, 2, &mut |id| {
                        ids.push(u64::from_be_bytes(id.try_into().ok()?));
                        Some(())
                    })
                })
            })
        })
    })?;
    Some(ids)
}

/// How many of `expected` are not in `got`, and the other way round, counting repetitions; both sorted.
fn difference(expected: &[u64], got: &[u64]) -> (u64, u64) {
    let (mut i, mut j, mut common) = (0, 0, 0);
    while let (Some(a), Some(b)) = (expected.get(i), got.get(j)) {
        match a.cmp(b) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                (i, j) = (i + 1, j + 1);
                common += 1;
            }
        }
    }
    (expected.len() as u64 - common, got.len() as u64 - common)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_surplus_are_counted() {
        assert_eq!(difference(&[1, 2, 3], &[1, 2, 3]), (0, 0));
        assert_eq!(difference(&[1, 2, 3], &[2, 2, 4]), (2, 2));
        assert_eq!(difference(&[1], &[]), (1, 0));
    }

    #[test]
    fn the_gauge_is_summed_over_labels() {
        let text = "# TYPE spanhouse_ingester_live_spans gauge\nspanhouse_ingester_live_spans{tenant=\"a\"} 3\nspanhouse_ingester_live_spans{tenant=\"b\"} 4\nspanhouse_ingester_live_spans_max 9\n";
        assert_eq!(live_spans(text), Some(7.0));
        assert_eq!(live_spans("spanhouse_ingester_live_spans 0\n"), Some(0.0));
        assert_eq!(live_spans("other 1\n"), None);
    }
}
