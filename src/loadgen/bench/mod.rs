//! `spanhouse bench`: how long a server takes for queries of each kind over what `spanhouse loadgen` sent.
//!
//! Owns the options, the order of a run and what it measures: from the request to the last byte, on one connection that stays
//! open. Knows the server only through its public API. `shapes` says what is asked, `table` what is printed.

mod shapes;
mod table;

use std::time::Instant;

use clap::Args;
use serde_json::Value as Json;

use self::shapes::{Asked, Corpus, shapes};
use super::client::{Client, Endpoint, Style};
use super::{Compression, LoadgenError, Protocol};
use crate::query::{query_string, why_partial};

pub use table::{Measured, Report};

/// Measures the latency of queries of each kind over the traces of `spanhouse loadgen`: searches, structure, aggregates, tags and
/// metrics. Looks at the hour before the newest trace, wherever that is in the last week. Exits with 1 if a query was refused or
/// its answer is not complete.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    spanhouse loadgen --count 1000000 --wait-flush    something to ask about\n  \
    spanhouse bench                                   each query ten times\n  \
    spanhouse bench --only rate --repeat 50 --json    some of them, for a program")]
pub struct Options {
    /// Where the server answers queries
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:3200")]
    pub url: String,
    /// Sent as X-Scope-OrgID
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// How often each query is asked
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,
    /// Only queries whose line in the table contains this
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Client(#[from] LoadgenError),
    #[error("{url} answers {status} to `{query}`: {text}")]
    Refused { url: String, query: String, status: u16, text: String },
    #[error("{url} has no traces of the last week: send some with `spanhouse loadgen --count 100000`")]
    Empty { url: String },
    #[error("{url} does not answer as Tempo does to `{query}`: {reason}; --url must name the port for queries")]
    Answer { url: String, query: String, reason: String },
    #[error(
        "{url} has no traces of `spanhouse loadgen` in the hour before its newest trace: send some, or name their tenant"
    )]
    NotOurs { url: String },
    #[error("no query contains `{0}`")]
    Nothing(String),
}

/// Runs to the end.
pub async fn run(options: &Options) -> Result<Report, BenchError> {
    let style = Style { protocol: Protocol::OtlpHttp, compression: Compression::None, tenant: options.tenant.clone() };
    let mut client = Client::new(Endpoint::parse(&options.url, 3200)?, style);
    let corpus = look_around(options, &mut client).await?;
    let mut queries = Vec::new();
    for shape in shapes(&corpus) {
        if options.only.as_ref().is_none_or(|text| shape.shown.contains(text.as_str())) {
            queries.push(measure(options, &mut client, &shape).await?);
        }
    }
    match &options.only {
        Some(text) if queries.is_empty() => Err(BenchError::Nothing(text.clone())),
        _ => Ok(Report { start: corpus.start, end: corpus.end, repeat: options.repeat, queries }),
    }
}

/// Finds the time range and the users to ask about.
async fn look_around(options: &Options, client: &mut Client) -> Result<Corpus, BenchError> {
    let mut ask = async |query: &str, path: String| {
        let got = client.get(&path, "application/json").await?;
        if !got.status.is_success() {
            let text = String::from_utf8_lossy(&got.body).trim().to_owned();
            return Err(BenchError::Refused {
                url: options.url.clone(),
                query: query.to_owned(),
                status: got.status.as_u16(),
                text,
            });
        }
        parse(&options.url, query, &got.body)
    };
    let pairs = [("q", "{}".to_owned()), ("limit", "1".to_owned()), ("since", "168h".to_owned())];
    let newest = ask("{}", format!("/api/search?{}", query_string(&pairs))).await?;
    let (start, end) = shapes::range_of(&newest).ok_or_else(|| BenchError::Empty { url: options.url.clone() })?;
    let mut corpus = Corpus { start, end, frequent: String::new(), rare: String::new() };
    for (rank, user) in [("topk", &mut corpus.frequent), ("bottomk", &mut corpus.rare)] {
        let query = format!("{{ span.user.id != nil }} | count_over_time() by (span.user.id) | {rank}(1)");
        let pairs = [("q", query.clone()), ("start", start.to_string()), ("end", end.to_string())];
        let answer = ask(&query, format!("/api/metrics/query?{}", query_string(&pairs))).await?;
        *user = shapes::user_of(&answer).ok_or_else(|| BenchError::NotOurs { url: options.url.clone() })?.to_owned();
    }
    Ok(corpus)
}

/// An answer that is no JSON object is no answer, however good its status.
fn parse(url: &str, query: &str, body: &[u8]) -> Result<Json, BenchError> {
    let fail = |reason| BenchError::Answer { url: url.to_owned(), query: query.to_owned(), reason };
    crate::query::parse_answer(body).map_err(fail)
}

async fn measure(options: &Options, client: &mut Client, shape: &Asked) -> Result<Measured, BenchError> {
    let mut millis = Vec::with_capacity(options.repeat as usize);
    let (mut results, mut complaint) = (0, None);
    for _ in 0..options.repeat {
        let begun = Instant::now();
        let got = client.get(&shape.path, "application/json").await?;
        millis.push(begun.elapsed().as_secs_f64() * 1e3);
        if got.status.is_success() {
            let answer = parse(&options.url, &shape.shown, &got.body)?;
            results = shape.results.count(&answer);
            if let Some(why) = why_partial(&got.headers, &answer) {
                complaint = Some(format!("partial: {why}"));
            }
        } else {
            complaint = Some(format!("HTTP {}", got.status.as_u16()));
            // It would be refused again.
            break;
        }
    }
    Ok(Measured::new(shape.shown.clone(), results, complaint, millis))
}
