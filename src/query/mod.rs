//! `spanhouse query`: searches, traces, tags and metrics of a running server, for people at a terminal.
//!
//! Owns the options, the requests and what is printed. Knows the server only through its public API, so that it asks Tempo
//! as well. Does not own the query language: the server judges queries, and its words are passed on.
//!
//! `client` asks, `json` reads answers leniently, `text` is how values, times and colours look; each command has a file.

mod client;
mod json;
mod metrics;
mod search;
mod tags;
mod text;
mod trace;

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

pub(crate) use client::query_string;
use client::{Answer, Client};
pub(crate) use json::{parse as parse_answer, why_partial};
pub use text::Screen;

/// What is asked of whom.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    spanhouse query search '{ status = error }'                       traces with a failed span\n  \
    spanhouse query search '{ resource.service.name = \"cart\" && duration > 1s }' --since 6h --spans\n  \
    spanhouse query trace 2f3e0cee77ae5dc9c17ade3689eb2e54            one trace, as a waterfall\n  \
    spanhouse query tags --scope resource                             what can be asked for\n  \
    spanhouse query values span.http.route --q '{ status = error }'   and with which values\n  \
    spanhouse query metrics '{ kind = server } | rate() by (resource.service.name)'\n  \
    spanhouse query metrics '{} | quantile_over_time(duration, .99)' --instant\n\n\
    A query stands in single quotes, so that the shell leaves its double quotes alone.")]
pub struct Options {
    #[command(flatten)]
    pub server: ServerOptions,
    #[command(subcommand)]
    pub what: What,
}

#[derive(Clone, Debug, Args)]
pub struct ServerOptions {
    /// Where the server answers queries
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:3200", global = true)]
    pub url: String,
    /// Sent as X-Scope-OrgID
    #[arg(long, value_name = "NAME", global = true)]
    pub tenant: Option<String>,
    /// Print the server's JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// Find the newest traces that match a TraceQL query
    #[command(after_help = "Examples:\n  \
        spanhouse query search '{}'    whatever came last\n  \
        spanhouse query search '{ name = \"GET /cart\" && span.http.status_code >= 500 }' --spans\n  \
        spanhouse query search '{ status = error } >> { kind = client }' --start 2026-01-31T09:00:00Z \\\n      \
            --end 2026-01-31T10:00:00Z\n  \
        spanhouse query search '{} | count() > 100' --limit 5 --json | jq .traces")]
    Search {
        /// TraceQL
        #[arg(default_value = "{}")]
        query: String,
        #[command(flatten)]
        time: TimeOptions,
        /// Traces, at most
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u32,
        /// Spans shown of each trace, at most
        #[arg(long, value_name = "N", default_value_t = 3)]
        spss: u32,
        /// Show the spans that match, with what the query reads of them
        #[arg(long)]
        spans: bool,
    },
    /// Draw one trace as a waterfall
    Trace {
        /// In hex, as `search` prints it
        id: String,
    },
    /// List the names of attributes
    Tags {
        /// Of these only
        #[arg(long, value_enum)]
        scope: Option<TagScope>,
        /// Only those on spans that match, as in '{ status = error }'
        #[arg(long, value_name = "FILTER")]
        q: Option<String>,
        #[command(flatten)]
        time: TimeOptions,
    },
    /// List the values of an attribute, ready to stand in a query
    #[command(after_help = "Examples:\n  \
        spanhouse query values resource.service.name\n  \
        spanhouse query values span.http.route --q '{ resource.service.name = \"cart\" }'\n  \
        spanhouse query values name")]
    Values {
        /// As in a query: span.http.route, resource.service.name, name
        tag: String,
        /// Only those on spans that match
        #[arg(long, value_name = "FILTER")]
        q: Option<String>,
        #[command(flatten)]
        time: TimeOptions,
        /// Values, at most; 0 for all
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        limit: u32,
    },
    /// Compute series of a TraceQL metrics query and draw them
    #[command(after_help = "Examples:\n  \
        spanhouse query metrics '{ status = error } | rate() by (resource.service.name)'\n  \
        spanhouse query metrics '{} | quantile_over_time(duration, .5, .99)' --since 6h --step 5m\n  \
        spanhouse query metrics '{} | count_over_time() by (span.http.route) | topk(5)' --instant")]
    Metrics {
        /// A TraceQL metrics query
        query: String,
        #[command(flatten)]
        time: TimeOptions,
        /// Time between samples, as in 15s [default: as fits the range]
        #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "instant")]
        step: Option<Duration>,
        /// One value for the whole time
        #[arg(long)]
        instant: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TagScope {
    Span,
    Resource,
    Event,
    Link,
    Instrumentation,
    Intrinsic,
}

/// When.
#[derive(Clone, Debug, Args)]
pub struct TimeOptions {
    /// Up to now, as in 30m or 2h [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["start", "end"])]
    pub since: Option<Duration>,
    /// As in 2026-01-31T09:00:00Z, or seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = text::parse_time, requires = "end")]
    pub start: Option<u64>,
    /// Where the time from --start on ends
    #[arg(long, value_name = "TIME", value_parser = text::parse_time, requires = "start")]
    pub end: Option<u64>,
}

fn duration(text: &str) -> Result<Duration, String> {
    spanhouse_common::units::parse_duration(text)
}

impl TimeOptions {
    /// Without bounds the server's clock says when now is: it stamped the spans' neighbours.
    fn params(&self) -> Vec<(&'static str, String)> {
        match (self.start, self.end) {
            (Some(start), Some(end)) => vec![("start", start.to_string()), ("end", end.to_string())],
            _ => vec![("since", format!("{}s", self.since.map_or(3600, |since| since.as_secs().max(1))))],
        }
    }

    /// For messages.
    fn words(&self) -> String {
        match (self.start, self.end) {
            (Some(_), Some(_)) => "between these times".into(),
            _ => {
                format!("in the last {}", text::duration(self.since.unwrap_or(Duration::from_secs(3600)).as_nanos() as u64))
            }
        }
    }
}

/// Why there is nothing to print. The text ends in what to do next.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("`{url}` is not the address of a server, as in http://127.0.0.1:3200: {reason}")]
    Url { url: String, reason: String },
    #[error(
        "no answer from {authority}: {reason}; is the server running there? `spanhouse` starts one, --url names another"
    )]
    Connect { authority: String, reason: String },
    #[error("{text} (HTTP {status}); {next}")]
    Refused { status: u16, text: String, next: &'static str },
    #[error(
        "{url} does not answer as Tempo does: {reason}; --url must name the port for queries, 3200 unless configured otherwise"
    )]
    Answer { url: String, reason: String },
    #[error("nothing is stored of trace {id}; `spanhouse query search` lists traces, --tenant names another tenant")]
    NoTrace { id: String },
    #[error(
        "nothing of trace {id} could be read, which does not mean that there is none: {why}; the server's log says more"
    )]
    NoneReadable { id: String, why: String },
    #[error("`{id}` is no trace id: give up to 32 hexadecimal digits, as `spanhouse query search` prints them")]
    TraceId { id: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Asks, and prints the answer to `out`. A reader that has seen enough is no error. `aside` takes what must not stand between the
/// server's JSON: that it is not all.
pub async fn run(options: &Options, screen: Screen, out: &mut impl Write, aside: &mut impl Write) -> Result<(), QueryError> {
    let client = Client::new(&options.server.url, options.server.tenant.clone())?;
    let answer = client.get(&path(&options.what)?).await?;
    let text = if options.server.json {
        let body = serde_json::from_slice(&answer.body).unwrap_or_default();
        if let Some(why) = why_partial(&answer.headers, &body) {
            aside.write_all(not_whole(&text::clean(&why)).as_bytes())?;
        }
        let mut text = String::from_utf8_lossy(&answer.body).into_owned();
        text.push('\n');
        text
    } else {
        let body = json::parse(&answer.body).map_err(|reason| client.answer_error(reason))?;
        show(&options.what, &answer, &body, screen)?
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

fn not_whole(why: &str) -> String {
    format!("Not the whole answer: {why}\n")
}

/// What to ask for.
fn path(what: &What) -> Result<String, QueryError> {
    let with = |path: &str, mut params: Vec<(&'static str, String)>, time: &TimeOptions| {
        params.extend(time.params());
        format!("{path}?{}", query_string(&params))
    };
    let filter = |q: &Option<String>| q.iter().map(|q| ("q", q.clone())).collect::<Vec<_>>();
    Ok(match what {
        What::Search { query, time, limit, spss, .. } => {
            let params = vec![("q", query.clone()), ("limit", limit.to_string()), ("spss", spss.to_string())];
            with("/api/search", params, time)
        }
        What::Trace { id } => {
            let digits = id.trim();
            if digits.is_empty() || digits.len() > 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(QueryError::TraceId { id: id.clone() });
            }
            format!("/api/v2/traces/{digits}")
        }
        What::Tags { scope, q, time } => {
            let mut params = filter(q);
            params.extend(scope.and_then(|scope| Some(("scope", scope.to_possible_value()?.get_name().to_owned()))));
            with("/api/v2/search/tags", params, time)
        }
        What::Values { tag, q, time, limit } => {
            let mut params = filter(q);
            params.push(("limit", limit.to_string()));
            with(&format!("/api/v2/search/tag/{}/values", client::percent(tag)), params, time)
        }
        What::Metrics { query, time, step, instant } => {
            let mut params = vec![("q", query.clone())];
            params.extend(step.map(|step| ("step", step.as_secs_f64().to_string())));
            with(if *instant { "/api/metrics/query" } else { "/api/metrics/query_range" }, params, time)
        }
    })
}

/// An answer as text.
fn show(what: &What, answer: &Answer, body: &serde_json::Value, screen: Screen) -> Result<String, QueryError> {
    let partial = why_partial(&answer.headers, body).map(|why| text::clean(&why));
    let mut text = match what {
        What::Search { limit, spans, time, .. } => search::show(body, *limit, *spans, &time.words()),
        What::Trace { id } => {
            let id = id.trim().to_owned();
            match (trace::show(body, &id, screen), partial.clone()) {
                (Some(text), _) => text,
                (None, None) => return Err(QueryError::NoTrace { id }),
                (None, Some(why)) => return Err(QueryError::NoneReadable { id, why }),
            }
        }
        What::Tags { time, .. } => tags::show_names(body, &time.words()),
        What::Values { time, limit, .. } => tags::show_values(body, *limit, &time.words()),
        What::Metrics { instant: true, time, .. } => metrics::show_instant(body, &time.words()),
        What::Metrics { time, .. } => metrics::show(body, &time.words(), screen),
    };
    if let Some(why) = partial {
        text.push_str(&screen.red(&not_whole(&why)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TIME: TimeOptions = TimeOptions { since: None, start: None, end: None };

    #[test]
    fn requests_are_those_of_the_api() {
        let check = |what: What, expected: &str| assert_eq!(path(&what).unwrap(), expected);
        let bounds = TimeOptions { since: None, start: Some(10), end: Some(20) };
        let query = "{ name = \"a b\" }".to_owned();
        let search = What::Search { query, time: bounds, limit: 20, spss: 3, spans: true };
        check(search, "/api/search?q=%7B%20name%20%3D%20%22a%20b%22%20%7D&limit=20&spss=3&start=10&end=20");
        check(What::Trace { id: "2F".into() }, "/api/v2/traces/2F");
        assert!(path(&What::Trace { id: "../x".into() }).is_err());
        let tags = What::Tags { scope: Some(TagScope::Span), q: None, time: TIME };
        check(tags, "/api/v2/search/tags?scope=span&since=3600s");
        let values = What::Values { tag: "span.http/route".into(), q: Some("{}".into()), time: TIME, limit: 5 };
        check(values, "/api/v2/search/tag/span.http%2Froute/values?q=%7B%7D&limit=5&since=3600s");
        let step = Some(Duration::from_millis(1500));
        let metrics = What::Metrics { query: "x".into(), time: TIME, step, instant: false };
        check(metrics, "/api/metrics/query_range?q=x&step=1.5&since=3600s");
        let metrics = What::Metrics { query: "x".into(), time: TIME, step: None, instant: true };
        check(metrics, "/api/metrics/query?q=x&since=3600s");
    }

    #[test]
    fn an_answer_that_is_not_whole_says_so() {
        let what = What::Search { query: "{}".into(), time: TIME, limit: 20, spss: 3, spans: false };
        let whole = Answer { body: Vec::new().into(), headers: http::HeaderMap::new() };
        let body = |completed: u32| json!({ "traces": [], "metrics": { "completedJobs": completed, "totalJobs": 3 } });
        let text = show(&what, &whole, &body(3), Screen::plain(80)).unwrap();
        assert_eq!(
            text,
            "No trace matches in the last 1h. A longer --since or fewer conditions may find some; \
                          `spanhouse query tags` lists what can be asked for.\n"
        );
        let text = show(&what, &whole, &body(2), Screen::plain(80)).unwrap();
        assert!(text.ends_with("Not the whole answer: 2 of 3 jobs are done\n"), "{text}");
        let mut partial = whole;
        partial.headers.insert("x-spanhouse-partial", "block 1 is damaged".parse().unwrap());
        let text = show(&what, &partial, &body(3), Screen::plain(80)).unwrap();
        assert!(text.ends_with("Not the whole answer: block 1 is damaged\n"), "{text}");
    }

    #[test]
    fn a_trace_that_could_not_be_read_is_not_absent() {
        let what = What::Trace { id: "2f".into() };
        let mut answer = Answer { body: Vec::new().into(), headers: http::HeaderMap::new() };
        let error = show(&what, &answer, &json!({}), Screen::plain(80)).unwrap_err().to_string();
        assert!(error.starts_with("nothing is stored of trace 2f; "), "{error}");
        answer.headers.insert("x-spanhouse-partial", "block 1 is damaged".parse().unwrap());
        let error = show(&what, &answer, &json!({}), Screen::plain(80)).unwrap_err().to_string();
        assert!(error.contains("could be read") && error.contains(": block 1 is damaged;"), "{error}");
    }
}
