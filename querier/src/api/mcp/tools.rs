//! The tools: what each takes, and the endpoint's own code that answers it.
//!
//! Failures of a query are results that say so, as the protocol wants it: the model reads them and tries again.

use serde_json::{Map, Value, json};
use spanhouse_common::id::TenantId;

use super::{RpcError, docs};
use crate::api::error::ApiError;
use crate::api::params::{Params, Where};
use crate::api::respond::Form;
use crate::api::trace::answer_v2;
use crate::api::{ApiDeps, ask, go, language};
use crate::find_trace::TraceQuery;
use crate::json::answers;
use crate::traceql::ast::Root;

const SECOND: u64 = go::SECOND as u64;
const HOUR: u64 = 3600 * SECOND;

/// A tool and its arguments: name, whether it must be there, what it is.
struct Tool {
    name: &'static str,
    purpose: &'static str,
    arguments: &'static [(&'static str, bool, &'static str)],
}

const QUERY: (&str, bool, &str) = ("query", true, "TraceQL; see docs-traceql");
const START: (&str, bool, &str) = ("start", false, "RFC 3339; an hour before the end if left out");
const END: (&str, bool, &str) = ("end", false, "RFC 3339; now if left out");

const TOOLS: [Tool; 8] = [
    Tool {
        name: "traceql-search",
        purpose: "Finds traces with a TraceQL query and shows the spans that match",
        arguments: &[QUERY, START, END],
    },
    Tool {
        name: "traceql-metrics-instant",
        purpose: "Measures a TraceQL metrics query over a time range: one value a series",
        arguments: &[QUERY, START, END],
    },
    Tool {
        name: "traceql-metrics-range",
        purpose: "Measures a TraceQL metrics query over time: a value for each step",
        arguments: &[QUERY, START, END],
    },
    Tool {
        name: "get-trace",
        purpose: "Shows a whole trace, grouped by service",
        arguments: &[("trace_id", true, "up to 32 hex digits")],
    },
    Tool {
        name: "get-attribute-names",
        purpose: "Lists the attributes that spans of the last minutes have",
        arguments: &[("scope", false, "span, resource, event, link, instrumentation or intrinsic; all if left out")],
    },
    Tool {
        name: "get-attribute-values",
        purpose: "Lists the values of an attribute",
        arguments: &[
            ("name", true, "with its scope, as in resource.service.name"),
            ("filter-query", false, "only spans of this TraceQL selection, as in { status = error }"),
        ],
    },
    Tool {
        name: "docs-traceql",
        purpose: "Explains TraceQL",
        arguments: &[("name", true, "basic, aggregates, structural or metrics")],
    },
    Tool {
        name: "docs-config",
        purpose: "Explains the configuration of the server",
        arguments: &[("name", true, "overview or reference")],
    },
];

pub(super) fn list() -> Value {
    let describe = |tool: &Tool| {
        let properties: Map<String, Value> = tool
            .arguments
            .iter()
            .map(|(name, _, what)| ((*name).to_owned(), json!({ "type": "string", "description": what })))
            .collect();
        let required: Vec<&str> =
            tool.arguments.iter().filter(|(_, required, _)| *required).map(|(name, ..)| *name).collect();
        json!({
            "name": tool.name,
            "description": tool.purpose,
            "inputSchema": { "type": "object", "properties": properties, "required": required },
            "annotations": { "readOnlyHint": true, "destructiveHint": false, "idempotentHint": true, "openWorldHint": false },
        })
    };
    TOOLS.iter().map(describe).collect()
}

pub(super) async fn call(deps: &ApiDeps, tenants: Vec<TenantId>, params: &Value) -> Result<Value, RpcError> {
    let name = params.get("name").and_then(Value::as_str).unwrap_or_default();
    let tool =
        TOOLS.iter().find(|tool| tool.name == name).ok_or_else(|| RpcError::params(format!("there is no tool `{name}`")))?;
    let given = params.get("arguments");
    let argument = |name: &str| given.and_then(|given| given.get(name)).and_then(Value::as_str).unwrap_or_default();
    for (name, ..) in tool.arguments.iter().filter(|(_, required, _)| *required) {
        if argument(name).is_empty() {
            return Ok(result(Err(format!("argument `{name}` is missing"))));
        }
    }
    let told = match name {
        "docs-traceql" => page(docs::traceql(deps, argument("name")), argument("name")),
        "docs-config" => page(docs::config(deps, argument("name")), argument("name")),
        "get-trace" => get_trace(deps, tenants, argument("trace_id")).await,
        "get-attribute-names" => names(deps, tenants, argument("scope")).await,
        "get-attribute-values" => values(deps, tenants, argument("name"), argument("filter-query")).await,
        "traceql-search" => search(deps, tenants, argument("query"), argument("start"), argument("end")).await,
        _ => {
            let is_instant = name == "traceql-metrics-instant";
            metrics(deps, tenants, is_instant, argument("query"), argument("start"), argument("end")).await
        }
    };
    Ok(result(told))
}

/// What a tool answers, and why that is not all.
type Told = Result<(String, Option<String>), String>;

/// Not every answer has a place to say that something is missing, so that is a text of its own.
fn result(told: Told) -> Value {
    let is_error = told.is_err();
    let (text, partial) = told.unwrap_or_else(|text| (text, None));
    let texts = [Some(text), partial.map(|why| format!("This answer is not complete: {why}"))];
    let content: Vec<Value> = texts.into_iter().flatten().map(|text| json!({ "type": "text", "text": text })).collect();
    json!({ "content": content, "isError": is_error })
}

fn page(text: Option<String>, name: &str) -> Told {
    text.map(|text| (text, None)).ok_or_else(|| format!("there is no page `{name}`"))
}

fn say(error: ApiError) -> String {
    error.log();
    error.to_string().trim_end().to_owned()
}

/// Start and end in whole seconds.
fn range(deps: &ApiDeps, start: &str, end: &str) -> Result<(u64, u64), String> {
    let time = |name: &str, text: &str, default: u64| match text {
        "" => Ok(default),
        text => go::parse_time(text).map_err(|_| format!("argument `{name}` is not a time, as in 2026-01-02T15:04:05Z")),
    };
    let end = time("end", end, deps.clock.now().0)?;
    let start = time("start", start, end.saturating_sub(HOUR))?;
    Ok((start / SECOND, end.div_ceil(SECOND)))
}

fn ranged(deps: &ApiDeps, query: &str, start: &str, end: &str) -> Result<Params, String> {
    let (start, end) = range(deps, start, end)?;
    let pair = |name: &str, value: String| (name.to_owned(), value);
    Ok(Params::new(vec![pair("q", query.to_owned()), pair("start", start.to_string()), pair("end", end.to_string())]))
}

/// Whether `query` makes series; an error of the language comes with a hint where to learn it.
fn is_metrics(query: &str) -> Result<bool, String> {
    let query = language::search_query(query)
        .map_err(|error| format!("query parse error. Consult TraceQL docs tools: {}", say(error)))?;
    Ok(matches!(query.root, Root::Metrics(_)))
}

async fn search(deps: &ApiDeps, tenants: Vec<TenantId>, query: &str, start: &str, end: &str) -> Told {
    if is_metrics(query)? {
        return Err("this query makes series: use traceql-metrics-instant or traceql-metrics-range".to_owned());
    }
    let request = ranged(deps, query, start, end)?.search(deps.asker(tenants)).map_err(say)?;
    let answer = ask::search(deps, request, ask::QUIET).await.map_err(say)?;
    let text = answers::search(&answer);
    Ok((text, answer.stats.partial))
}

async fn metrics(deps: &ApiDeps, tenants: Vec<TenantId>, is_instant: bool, query: &str, start: &str, end: &str) -> Told {
    if !is_metrics(query)? {
        return Err("this query selects spans: use traceql-search, or add a function such as | rate()".to_owned());
    }
    let params = ranged(deps, query, start, end)?;
    let asker = deps.asker(tenants);
    let asked = params.query_instant(&asker);
    let request = if is_instant {
        asked.and_then(|asked| asked.instant_request(asker))
    } else {
        asked.and_then(|asked| asked.range_request(asker))
    };
    let answer = ask::metrics(deps, request.map_err(say)?, ask::QUIET).await.map_err(say)?;
    let text = if is_instant { answers::query_instant(&answer) } else { answers::query_range(&answer) };
    Ok((text, answer.stats.partial))
}

async fn get_trace(deps: &ApiDeps, tenants: Vec<TenantId>, id: &str) -> Told {
    let id = id.parse().map_err(|error: spanhouse_common::id::TraceIdError| error.to_string())?;
    let Where { hint, sources } = Params::new(Vec::new()).where_to_look().map_err(say)?;
    let query = TraceQuery { tenants, id, hint, sources };
    let (_, body, partial) = answer_v2(deps, query, None, Form::Llm).await.map_err(say)?;
    if body == b"{}" {
        return Err(match partial {
            None => format!("there is no trace {id}"),
            Some(why) => format!("nothing of trace {id} could be read: {why}"),
        });
    }
    Ok((String::from_utf8(body).map_err(|_| say(ApiError::Broken))?, partial))
}

async fn names(deps: &ApiDeps, tenants: Vec<TenantId>, scope: &str) -> Told {
    let params = Params::new(vec![("scope".to_owned(), scope.to_owned())]);
    let asked = params.tag_names(true, deps.asker(tenants)).map_err(say)?;
    let answer = ask::tag_names(deps, asked).await.map_err(say)?;
    Ok((answers::tag_names_v2(&answer), answer.stats.partial))
}

async fn values(deps: &ApiDeps, tenants: Vec<TenantId>, name: &str, filter: &str) -> Told {
    let params = Params::new(vec![("q".to_owned(), filter.to_owned())]);
    let attribute = language::tag(name).map_err(say)?;
    let request = params.tag_values(attribute, true, deps.asker(tenants)).map_err(say)?;
    let answer = ask::tag_values(deps, name, request).await.map_err(say)?;
    Ok((answers::tag_values_llm(&answer), answer.stats.partial))
}
