//! Kill -9 and SIGTERM under load: what was acknowledged is there afterwards, and nothing is there twice.
//!
//! The oracle is what the driver noted: a piece of a trace counts as acknowledged when its answer arrived whole with 200 and
//! nothing refused. A piece without an answer may be there or not, but never something that was not sent. That nothing is
//! *stored* twice cannot be seen through the API, which merges a trace by id, so at the end the rows of all blocks are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use futures::StreamExt;
use prost::Message;
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use spanhouse_common::id::TenantId;
use spanhouse_common::manifest::Manifests;
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::time::SystemClock;
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_trace::Span;
use tokio::task::JoinSet;

use crate::harness::otlp::{PROTOBUF, attribute, new_id, request, response, span, trace};
use crate::harness::query::{expect_same_spans, spans};
use crate::harness::server::{Answer, Server, Setup};
use crate::harness::{SOON, times};

const SENDERS: usize = 6;

/// Spans of one trace by their number.
pub(crate) type Numbers = BTreeSet<u64>;

/// What was sent and what of it was acknowledged, by trace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    pub(crate) sent: BTreeMap<u128, Numbers>,
    pub(crate) acked: BTreeMap<u128, Numbers>,
}

impl Book {
    fn note(to: &mut BTreeMap<u128, Numbers>, pieces: &[(u128, Vec<u64>)]) {
        for (trace, numbers) in pieces {
            to.entry(*trace).or_default().extend(numbers);
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (trace, numbers) in other.sent {
            self.sent.entry(trace).or_default().extend(numbers);
        }
        for (trace, numbers) in other.acked {
            self.acked.entry(trace).or_default().extend(numbers);
        }
    }

    pub(crate) fn acked_spans(&self) -> usize {
        self.acked.values().map(BTreeSet::len).sum()
    }
}

/// Senders that go on until the server does not answer or `stop` is set.
pub(crate) struct Driver {
    senders: JoinSet<Book>,
    stop: Arc<AtomicBool>,
}

impl Driver {
    /// With `believe_everything`, what got no answer counts as acknowledged too: a lie the check must find.
    pub(crate) fn start(server: &Server, believe_everything: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut senders = JoinSet::new();
        for _ in 0..SENDERS {
            let (client, url, stop) = (server.client.clone(), server.otlp_url(), Arc::clone(&stop));
            let mut random = SmallRng::from_rng(&mut rand::rng());
            senders.spawn(async move {
                let mut book = Book::default();
                let mut open: Vec<(u128, u64)> = Vec::new();
                while !stop.load(SeqCst) {
                    let pieces = next_pieces(&mut random, &mut open);
                    let spans = pieces.iter().flat_map(|(trace, numbers)| numbers.iter().map(|n| heavy(*trace, *n)));
                    let body = request(spans.collect()).encode_to_vec();
                    Book::note(&mut book.sent, &pieces);
                    let answer = Answer::of(client.post(&url).header(PROTOBUF.0, PROTOBUF.1).body(body)).await;
                    let accepted = answer.as_ref().is_ok_and(is_whole_success);
                    if accepted || believe_everything {
                        Book::note(&mut book.acked, &pieces);
                    }
                    match answer {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(refused) => assert!(matches!(refused.status, 429 | 503), "{}", refused.text()),
                        Err(_) => return book,
                    }
                }
                book
            });
        }
        Self { senders, stop }
    }

    pub(crate) async fn book(self) -> Book {
        self.stop.store(true, SeqCst);
        let mut book = Book::default();
        for part in self.senders.join_all().await {
            book.merge(part);
        }
        book
    }
}

fn is_whole_success(answer: &Answer) -> bool {
    answer.status == 200 && response(answer).partial_success.unwrap_or_default().rejected_spans == 0
}

/// Pieces of a few traces, new ones and ones begun before: traces meet in requests, and spread over requests and segments.
fn next_pieces(random: &mut impl Rng, open: &mut Vec<(u128, u64)>) -> Vec<(u128, Vec<u64>)> {
    if open.len() < 8 {
        open.push((new_id(), 1));
    }
    let mut pieces = Vec::new();
    for _ in 0..random.random_range(1..=4) {
        if open.is_empty() {
            break;
        }
        let at = random.random_range(0..open.len());
        let (trace, next) = open.swap_remove(at);
        let count = random.random_range(1..=12);
        pieces.push((trace, (next..next + count).collect()));
        if next < 40 {
            open.push((trace, next + count));
        }
        // A trace twice in one request would be fine, but then pieces would not be what a sender sends.
        if pieces.len() > open.len() {
            break;
        }
    }
    pieces
}

/// A span that fills segments: the smallest has 1 MiB, and kills must meet their removal.
fn heavy(trace: u128, n: u64) -> Span {
    let mut span = span(trace, n);
    if n.is_multiple_of(2) {
        let stack = (0..40).map(|line| format!("at module{}.call{}(file:{line})\n", n * line % 97, trace as u32)).collect();
        span.attributes.push(attribute("exception.stacktrace", Value::StringValue(stack)));
    }
    span
}

/// What is not as the book says.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) lost: Vec<String>,
    twice: Vec<String>,
    invented: Vec<String>,
    /// Distinct spans found.
    pub(crate) found: usize,
}

impl Verdict {
    pub(crate) fn expect_clean(&self, when: &str) {
        assert!(
            self.lost.is_empty() && self.twice.is_empty() && self.invented.is_empty(),
            "{when}: lost {:?}, twice {:?}, never sent {:?}",
            self.lost,
            self.twice,
            self.invented
        );
    }
}

/// Reads every trace of the book back.
pub(crate) async fn check(server: &Server, book: &Book) -> Verdict {
    let nothing = Numbers::new();
    let mut reads = futures::stream::iter(&book.sent)
        .map(|(trace, sent)| async move {
            let answer = server.trace(*trace).await;
            let ids: Vec<u64> = spans(&answer)
                .map(|span| u64::from_be_bytes(span.span_id.as_slice().try_into().expect("8 bytes")))
                .collect();
            (*trace, sent, ids)
        })
        .buffer_unordered(8);
    let mut verdict = Verdict::default();
    while let Some((trace, sent, ids)) = reads.next().await {
        let found: Numbers = ids.iter().copied().collect();
        verdict.found += found.len();
        if found.len() != ids.len() {
            verdict.twice.push(format!("{trace:032x}"));
        }
        let lost: Vec<u64> = book.acked.get(&trace).unwrap_or(&nothing).difference(&found).copied().collect();
        if !lost.is_empty() {
            verdict.lost.push(format!("{trace:032x} {lost:?}"));
        }
        if !found.is_subset(sent) {
            verdict.invented.push(format!("{trace:032x}"));
        }
    }
    verdict
}

/// Rows of all blocks the manifest names.
pub(crate) async fn rows_in_blocks(data_dir: &Path) -> u64 {
    let url = data_dir.join("blocks").to_string_lossy().into_owned();
    let store = spanhouse_common::store::open(&url, &Default::default()).expect("the store opens");
    let clock = SystemClock::shared();
    let tenants = TenantRegistry::open(Arc::clone(&store), Arc::clone(&clock) as _, 10).await.expect("tenants");
    let manifests = Manifests::new(store, clock, tenants);
    let manifest = manifests.for_reading(&TenantId::single()).await.expect("a manifest").expect("a tenant");
    manifest.current().blocks.values().map(|block| block.rows).sum()
}

fn wal_bytes(data_dir: &Path) -> u64 {
    let files = std::fs::read_dir(data_dir.join("wal")).expect("the WAL's directory");
    files.map(|file| file.and_then(|f| f.metadata()).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 })).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let cycles = times("SPANHOUSE_KILL_CYCLES", 20);
    let setup = Setup::new().flushing_often();
    let mut random = SmallRng::from_rng(&mut rand::rng());
    let mut all = Book::default();
    let mut server = setup.start().await;
    for cycle in 0..cycles {
        let driver = Driver::start(&server, false);
        tokio::time::sleep(Duration::from_millis(random.random_range(50..=800))).await;
        server.kill();
        let book = driver.book().await;
        if cycle % 3 == 2 {
            // A crash during the start must not cost anything either.
            let mut process = setup.spawn();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..=150))).await;
            process.kill();
        }
        server = setup.start().await;
        check(&server, &book).await.expect_clean(&format!("cycle {cycle}"));
        all.merge(book);
    }
    assert!(all.acked_spans() > cycles * 50, "the driver sent next to nothing: {} spans", all.acked_spans());
    let verdict = check(&server, &all).await;
    verdict.expect_clean("at the end");
    server.terminate(Duration::from_secs(35)).await;
    assert_eq!(rows_in_blocks(setup.data_dir()).await, verdict.found as u64, "spans are stored twice");
}

/// The check above must be able to fail: a driver that believes what nobody told it must be found out.
#[tokio::test(flavor = "multi_thread")]
async fn the_kill_test_sees_a_loss() {
    let setup = Setup::new().flushing_often();
    for _ in 0..20 {
        let server = setup.start().await;
        let driver = Driver::start(&server, true);
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.kill();
        let book = driver.book().await;
        let server = setup.start().await;
        if !check(&server, &book).await.lost.is_empty() {
            return;
        }
    }
    panic!("20 kills, and no unacknowledged request was missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_in_time_and_leaves_everything_in_blocks() {
    let cycles = times("SPANHOUSE_KILL_CYCLES", 20).div_ceil(10);
    let setup = Setup::new();
    let mut all = Book::default();
    for cycle in 0..cycles {
        let server = setup.start().await;
        let driver = Driver::start(&server, false);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let took = server.terminate(Duration::from_secs(35)).await;
        let book = driver.book().await;
        assert!(took < Duration::from_secs(30), "the grace time is 30 s, it took {took:?}");
        // Headers of segments may stay.
        assert!(wal_bytes(setup.data_dir()) < 64 * 1024, "{} bytes left in the WAL", wal_bytes(setup.data_dir()));
        let server = setup.start().await;
        let replayed = server.metric("spanhouse_ingester_replayed_spans_total").await;
        assert_eq!(replayed, Some(0.0), "cycle {cycle}: spans came from the WAL");
        check(&server, &book).await.expect_clean(&format!("cycle {cycle}"));
        all.merge(book);
        server.terminate(Duration::from_secs(35)).await;
    }
    let server = setup.start().await;
    let verdict = check(&server, &all).await;
    verdict.expect_clean("at the end");
    assert_eq!(rows_in_blocks(setup.data_dir()).await, verdict.found as u64, "spans are stored twice");
}

/// Copies a directory of plain files.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for file in std::fs::read_dir(from).expect("a directory").map(|file| file.expect("an entry")) {
        if file.file_type().expect("a type").is_file() {
            std::fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
        }
    }
}

/// A WAL restored from a backup must not use positions again that the manifest, which is newer, calls covered: replay would
/// take what was acknowledged under them for spans that blocks hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_wal_from_a_backup_loses_nothing_that_comes_after() {
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1s").with("MULTITENANCY_ENABLED", "true");
    let wal = setup.data_dir().join("wal");
    let backup = setup.home().join("backup");
    let server = setup.start().await;
    let mut sent = Vec::new();
    let mut send = async |server: &Server, tenant: &'static str| {
        let id = new_id();
        let whole = trace(id, 20);
        let headers = [PROTOBUF, ("x-scope-orgid", tenant)];
        let answer = server.post(&headers, request(whole.clone()).encode_to_vec()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        sent.push((tenant, id, whole));
    };
    send(&server, "early").await;
    server.until_flushed(20).await;
    server.terminate(SOON).await;
    copy_dir(&wal, &backup);

    // Two more starts, of which the backup knows nothing, with more records than will come after it.
    for _ in 0..2 {
        let server = setup.start().await;
        for _ in 0..8 {
            send(&server, "late").await;
        }
        server.terminate(SOON).await;
    }
    std::fs::remove_dir_all(&wal).expect("the WAL goes");
    copy_dir(&backup, &wal);

    // What comes now stays in the WAL. The restored WAL holds nothing of the tenant that has the highest watermark.
    let patient = setup.with("FLUSH_MAX_AGE", "1h");
    let server = patient.start().await;
    for tenant in ["late", "early", "new"] {
        send(&server, tenant).await;
    }
    server.kill();
    let server = patient.start().await;
    for (tenant, id, whole) in &sent {
        let found = server.trace_as(*id, &[("x-scope-orgid", tenant)]).await;
        expect_same_spans(spans(&found), whole);
    }
    server.terminate(SOON).await;
}
