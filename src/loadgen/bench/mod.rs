//! `spanhouse bench`: how long a server takes for queries of each kind over what `spanhouse loadgen` sent.
//!
//! Owns the options, the order of a run and what it measures: from the request to the last byte, on one connection that stays
//! open. Knows the server only through its public API. `shapes` says what is asked, `table` what is printed.

mod shapes;
mod table;

use std::time::Instant;

use clap::Args;
use serde_json::Value as Json;

use self::shapes::{Asked, Corpus, Port, jaeger_shapes, shapes};
use super::client::{Client, Endpoint, Style};
use super::{Compression, LoadgenError, Protocol};
use crate::query::{query_string, why_partial};

pub use table::{Measured, Report};

/// Measures the latency of queries of each kind over the traces of `spanhouse loadgen`: searches, structure, aggregates, tags and
/// metrics, and what Jaeger UI asks for. Looks at the hour before the newest trace, wherever that is in the last week. Exits with 1 if a query was refused or
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
    /// Where it answers Jaeger's queries [default: port 16686 of --url's host, if that answers]
    #[arg(long, value_name = "URL")]
    pub jaeger_url: Option<String>,
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
    #[error(
        "{url} does not answer `{query}` as it should: {reason}; --url must name the port for queries, --jaeger-url that for \
Jaeger's"
    )]
    Answer { url: String, query: String, reason: String },
    #[error(
        "{url} has no traces of `spanhouse loadgen` in the hour before its newest trace: send some, or name their tenant"
    )]
    NotOurs { url: String },
    #[error("no query contains `{0}`")]
    Nothing(String),
}

/// The port of Jaeger's queries, unless it is named.
const JAEGER_PORT: u16 = 16686;

/// Traces asked for by id, at most.
const IDS: usize = 200;

/// Runs to the end.
pub async fn run(options: &Options) -> Result<Report, BenchError> {
    let style = Style { protocol: Protocol::OtlpHttp, compression: Compression::None, tenant: options.tenant.clone() };
    let endpoint = Endpoint::parse(&options.url, 3200)?;
    let jaeger_endpoint = jaeger_endpoint(options, &endpoint)?;
    let jaeger_url = format!("http://{}", jaeger_endpoint.authority);
    let mut jaeger = Client::new(jaeger_endpoint.clone(), style.clone());
    let mut client = Client::new(endpoint, style.clone());
    let corpus = look_around(options, &mut client).await?;
    let mut asked = shapes(&corpus);
    // A server may have turned this port off; one that is named must answer. The look at it is a connection of its own: the server
    // closes one that asks nothing while the other queries are measured.
    if options.jaeger_url.is_some() || Client::new(jaeger_endpoint, style).connect().await.is_ok() {
        asked.extend(jaeger_shapes(&corpus));
    }
    let mut queries = Vec::new();
    for shape in asked {
        if options.only.as_ref().is_none_or(|text| shape.shown.contains(text.as_str())) {
            let (client, url) = match shape.port {
                Port::Queries => (&mut client, &options.url),
                Port::Jaeger => (&mut jaeger, &jaeger_url),
            };
            queries.push(measure(options.repeat, client, url, &shape).await?);
        }
    }
    match &options.only {
        Some(text) if queries.is_empty() => Err(BenchError::Nothing(text.clone())),
        _ => Ok(Report { start: corpus.start, end: corpus.end, repeat: options.repeat, queries }),
    }
}

fn jaeger_endpoint(options: &Options, queries: &Endpoint) -> Result<Endpoint, LoadgenError> {
    match &options.jaeger_url {
        Some(url) => Endpoint::parse(url, JAEGER_PORT),
        None => {
            let host = queries.authority.rsplit_once(':').map_or(&*queries.authority, |(host, _)| host);
            Ok(Endpoint { authority: format!("{host}:{JAEGER_PORT}") })
        }
    }
}

/// Finds the time range, the users and the traces to ask about.
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
    let pairs = [("q", "{}".to_owned()), ("limit", IDS.to_string()), ("start", start.to_string()), ("end", end.to_string())];
    let traces = shapes::ids_of(&ask("{}", format!("/api/search?{}", query_string(&pairs))).await?);
    let mut corpus = Corpus { start, end, frequent: String::new(), rare: String::new(), traces };
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

async fn measure(repeat: u32, client: &mut Client, url: &str, shape: &Asked) -> Result<Measured, BenchError> {
    let mut millis = Vec::with_capacity(repeat as usize);
    let (mut results, mut complaint) = (0, None);
    for path in shape.paths.iter().cycle().take(repeat as usize) {
        let begun = Instant::now();
        let got = client.get(path, "application/json").await?;
        millis.push(begun.elapsed().as_secs_f64() * 1e3);
        if got.status.is_success() {
            let answer = parse(url, &shape.shown, &got.body)?;
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
