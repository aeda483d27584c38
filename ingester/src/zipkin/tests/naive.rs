//! The mappings as plainly as they can be said, on JSON: lists are searched, nothing is streamed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};

use super::encode::{id, list, number, text};
use crate::otlp::dump::{hex, put};

type Group = (Json, Option<Json>, Vec<Json>);

fn print(groups: Vec<Group>) -> Json {
    let mut resources: Vec<Json> = Vec::new();
    for (resource, ..) in &groups {
        if !resources.contains(resource) {
            resources.push(resource.clone());
        }
    }
    // Scopes of one resource stand together.
    let ordered = resources.iter().flat_map(|resource| groups.iter().filter(move |group| group.0 == *resource));
    let print = |(resource, scope, spans): &Group| {
        let mut group = Map::new();
        put(&mut group, "resource", resource.clone());
        put(&mut group, "scope", scope.clone().unwrap_or_default());
        put(&mut group, "spans", spans.clone().into());
        Json::Object(group)
    };
    ordered.map(print).collect()
}

fn add(groups: &mut Vec<Group>, resource: Json, scope: Option<Json>, span: Json) {
    match groups.iter_mut().find(|group| group.0 == resource && group.1 == scope) {
        Some(group) => group.2.push(span),
        None => groups.push((resource, scope, vec![span])),
    }
}

fn of_resource(key: &str) -> bool {
    let families = [
        "service.",
        "host.",
        "k8s.",
        "cloud.",
        "aws.",
        "container.",
        "os.",
        "process.",
        "device.",
        "faas.",
        "webengine.",
        "telemetry.sdk.",
        "opencensus.",
        "deployment.environment.",
    ];
    key == "deployment.environment" || families.iter().any(|family| key.starts_with(family))
}

/// `{json}|number` as attributes and number.
fn decorated(text: &str) -> Option<(Json, u64)> {
    let (attributes, dropped) = text.rsplit_once('|')?;
    let attributes: Json = serde_json::from_str(attributes).ok()?;
    let pairs = attributes.as_object()?.iter().map(|(key, value)| json!([key, value])).collect();
    Some((pairs, dropped.trim().parse().ok()?))
}

fn event(annotation: &Json) -> Json {
    let whole = text(annotation, "value");
    let mut event = Map::new();
    put(&mut event, "time", (number(annotation, "timestamp") * 1_000).into());
    put(&mut event, "name", whole.split('|').next().unwrap().into());
    if let Some((_, rest)) = whole.split_once('|') {
        match decorated(rest) {
            Some((attributes, dropped)) => {
                put(&mut event, "attributes", attributes);
                put(&mut event, "dropped", dropped.into());
            }
            None => put(&mut event, "attributes", json!([["otel.zipkin.annotation", whole]])),
        }
    }
    event.into()
}

fn link(text: &str) -> Option<Json> {
    let parts: Vec<&str> = text.splitn(4, '|').collect();
    let [trace, span, state, rest] = parts[..] else { return None };
    let (attributes, dropped) = decorated(rest)?;
    let ids = json!({ "t": trace, "s": span });
    let mut link = Map::new();
    put(&mut link, "trace", hex(&id::<16>(&ids, "t")).into());
    put(&mut link, "span", hex(&id::<8>(&ids, "s")).into());
    put(&mut link, "state", state.into());
    put(&mut link, "attributes", attributes);
    put(&mut link, "dropped", dropped.into());
    Some(link.into())
}

/// Spans of today's model, as `dump` prints what they become. Tags are in the order of their keys, as the encoders write them.
pub(super) fn v2(spans: &Json) -> Json {
    let mut groups = Vec::new();
    for of in spans.as_array().unwrap() {
        let empty = Map::new();
        let tags = of["tags"].as_object().unwrap_or(&empty);
        let tag = |key: &str| tags.get(key).map(|value| value.as_str().unwrap());
        let has_status = tag("otel.status_code").is_some();
        let no_kind = text(of, "kind").is_empty();
        let is_link = |key: &str| {
            let number = key.strip_prefix("otlp.link.").and_then(|n| n.parse::<u8>().ok());
            number.is_some_and(|number| number <= 127 && link(tag(key).unwrap()).is_some())
        };

        let mut attributes = Vec::new();
        let of_endpoint = |endpoint: &Json, service: Option<&str>, ip: &str, port: &str| {
            let mut out = Vec::new();
            if let Some(service) = service.filter(|_| !text(endpoint, "serviceName").is_empty()) {
                out.push(json!([service, text(endpoint, "serviceName")]));
            }
            if let Some(address) = ["ipv6", "ipv4"].map(|key| text(endpoint, key)).into_iter().find(|a| !a.is_empty()) {
                out.push(json!([ip, address]));
            }
            if number(endpoint, "port") != 0 {
                out.push(json!([port, number(endpoint, "port")]));
            }
            out
        };
        let plain_tags = tags.iter().filter(|(key, value)| match key.as_str() {
            "error" => *value != "true",
            "otel.status_code" | "w3c.tracestate" | "otel.library.name" | "otel.library.version" => false,
            "otlp.service.name.source" => false,
            "span.kind" => !no_kind,
            "otel.status_description" => !has_status,
            key => !is_link(key) && !of_resource(key),
        });
        let (mut odd_links, plain_tags): (Vec<Json>, Vec<Json>) = plain_tags
            .map(|(key, value)| json!([key, value]))
            .partition(|pair| ["otlp.link.0", "otlp.link.127"].contains(&pair[0].as_str().unwrap()));
        let local = of_endpoint(&of["localEndpoint"], None, "net.host.ip", "net.host.port");
        let remote = of_endpoint(&of["remoteEndpoint"], Some("peer.service"), "net.peer.ip", "net.peer.port");
        attributes.extend(local);
        attributes.extend(remote);
        attributes.extend(plain_tags);
        attributes.append(&mut odd_links);
        let start = number(of, "timestamp") * 1_000;
        if start == 0 {
            attributes.push(json!(["otel.zipkin.absentField.startTime", true]));
        }

        let kind = match text(of, "kind") {
            "SERVER" => 2,
            "CLIENT" => 3,
            "PRODUCER" => 4,
            "CONSUMER" => 5,
            _ => u64::from(tag("span.kind") == Some("internal")),
        };
        let code =
            match tag("otel.status_code").unwrap_or_default().trim_start_matches("STATUS_CODE_").to_lowercase().as_str() {
                _ if tag("error").is_some() => 2,
                "ok" => 1,
                "error" => 2,
                _ => 0,
            };
        let message = if has_status { tag("otel.status_description").unwrap_or_default() } else { "" };
        let parent = text(of, "parentId");
        let mut span = Map::new();
        span.insert("trace".into(), hex(&id::<16>(of, "traceId")).into());
        span.insert("span".into(), text(of, "id").into());
        put(&mut span, "parent", if parent == text(of, "id") { "" } else { parent }.into());
        put(&mut span, "state", tag("w3c.tracestate").unwrap_or_default().into());
        put(&mut span, "name", text(of, "name").into());
        put(&mut span, "kind", kind.into());
        put(&mut span, "start", start.into());
        put(&mut span, "end", (start + number(of, "duration") * 1_000).into());
        put(&mut span, "events", list(of, "annotations").iter().map(event).collect());
        put(&mut span, "links", ["otlp.link.0", "otlp.link.127"].iter().filter_map(|key| link(tag(key)?)).collect());
        if code != 0 || !message.is_empty() {
            span.insert("status".into(), json!([code, message]));
        }
        // Attributes come in the order of the fields, which differs between forms.
        span.insert("attributes".into(), attributes.into());

        let service_key = tag("otlp.service.name.source").filter(|key| !key.is_empty()).unwrap_or("service.name");
        let service = text(&of["localEndpoint"], "serviceName");
        let lifted = tags.iter().filter(|(key, _)| of_resource(key) && !is_link(key));
        let lifted: Vec<Json> = lifted.map(|(key, value)| json!([key, value])).collect();
        let mut resource = Vec::new();
        if !service.is_empty() && !lifted.iter().any(|pair| pair[0] == service_key) {
            resource.push(json!([service_key, service]));
        }
        resource.extend(lifted);
        let library = tag("otel.library.name").filter(|name| !name.is_empty());
        let scope = library.map(|name| json!([name, tag("otel.library.version").unwrap_or_default()]));
        add(&mut groups, resource.into(), scope, span.into());
    }
    sorted_attributes(print(groups))
}

/// Orders the attributes of spans, of which only the multitude is compared.
pub(super) fn sorted_attributes(mut groups: Json) -> Json {
    for group in groups.as_array_mut().into_iter().flatten() {
        for span in group["spans"].as_array_mut().into_iter().flatten() {
            let mut attributes = span["attributes"].as_array().cloned().unwrap_or_default();
            attributes.sort_by_key(Json::to_string);
            span.as_object_mut().unwrap().remove("attributes");
            put(span.as_object_mut().unwrap(), "attributes", attributes.into());
        }
    }
    groups
}

/// Spans of the first model.
pub(super) fn v1(spans: &Json, now: Option<u64>) -> Json {
    let mut groups = Vec::new();
    for of in spans.as_array().unwrap() {
        let annotations = list(of, "annotations");
        let binary = list(of, "binaryAnnotations");
        let core = |annotation: &&Json| ["cs", "cr", "ss", "sr", "ms", "mr"].contains(&text(annotation, "value"));
        let kind = match annotations.iter().find(core).map_or("", |annotation| text(annotation, "value")) {
            "cs" | "cr" => 3,
            "ss" | "sr" => 2,
            "ms" => 4,
            "mr" => 5,
            _ => 0_u64,
        };
        let events = annotations.iter().filter(|a| !(core(a) || text(a, "value").is_empty() && number(a, "timestamp") == 0));
        let events = events.map(|annotation| {
            let mut event = Map::new();
            put(&mut event, "time", (number(annotation, "timestamp") * 1_000).into());
            put(&mut event, "name", text(annotation, "value").into());
            Json::Object(event)
        });
        let times: Vec<u64> = annotations.iter().map(|a| number(a, "timestamp")).filter(|time| *time != 0).collect();

        let value = |annotation: &Json| match annotation["type"].as_i64() {
            Some(1) | Some(7) => {
                let raw = text(annotation, "value");
                let bytes = if annotation["type"] == 1 {
                    (0..raw.len() / 2).map(|at| u8::from_str_radix(&raw[2 * at..2 * at + 2], 16).unwrap()).collect()
                } else {
                    raw.as_bytes().to_vec()
                };
                json!(STANDARD.encode(bytes))
            }
            _ => annotation["value"].clone(),
        };
        let last = |keys: &[&str]| binary.iter().rev().find(|a| keys.contains(&text(a, "key")));
        let words = |annotation: &Json| match value(annotation) {
            Json::String(text) => text,
            Json::Number(number) if number.is_f64() => number.as_f64().unwrap().to_string(),
            other => other.to_string(),
        };
        let integer = |annotation: &Json| match value(annotation) {
            Json::Number(number) => number.as_i64(),
            Json::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let message = |keys: &[&str]| last(keys).map(words).unwrap_or_default();
        let census = last(&["census.status_code"]).and_then(integer);
        let otel = last(&["otel.status_code"]).map(|a| {
            let word = words(a).to_lowercase();
            integer(a).unwrap_or(match word.as_str() {
                "ok" => 1,
                "error" => 2,
                _ => 0,
            })
        });
        let http = last(&["http.status_code"]).and_then(integer);
        let census_texts = ["census.status_description", "opencensus.status_description"];
        let (code, mut status_message) = if let Some(code) = census {
            (if code == 0 { 1 } else { 2 }, message(&census_texts))
        } else if let Some(code) = otel {
            (if (1..=2).contains(&code) { code as u64 } else { 0 }, message(&["otel.status_description"]))
        } else if last(&["error"]).is_some() {
            (2, String::new())
        } else {
            match http {
                None | Some(100..=399) => (0, String::new()),
                Some(400..=499) if kind == 2 => (0, String::new()),
                Some(_) => (2, message(&["http.status_message"])),
            }
        };
        if code == 2 && status_message.is_empty() {
            let text = last(&["error"]).map(words).unwrap_or_default();
            status_message = if text == "true" || text == "false" { String::new() } else { text };
        }
        let mut attributes: Vec<Json> = Vec::new();
        for annotation in binary {
            let key = match text(annotation, "key") {
                "census.status_code" | "otel.status_code" | "error" => continue,
                key if census_texts.contains(&key) => {
                    if census.is_some() || !std::ptr::eq(annotation, last(&census_texts).unwrap()) {
                        continue;
                    }
                    key
                }
                "otel.status_description" => {
                    if otel.is_some() || !std::ptr::eq(annotation, last(&["otel.status_description"]).unwrap()) {
                        continue;
                    }
                    "otel.status_description"
                }
                "lc" => "component",
                key => key,
            };
            attributes.push(json!([key, value(annotation)]));
        }

        let duration = number(of, "duration") * 1_000;
        let (start, end) = match (number(of, "timestamp"), times.is_empty(), now) {
            (0, false, _) => (times.iter().min().unwrap() * 1_000, times.iter().max().unwrap() * 1_000),
            (0, true, Some(now)) => {
                attributes.push(json!(["otel.zipkin.absentField.startTime", true]));
                (now, now + duration)
            }
            (timestamp, ..) => (timestamp * 1_000, timestamp * 1_000 + duration),
        };
        let named = |annotation: &&Json| !text(&annotation["endpoint"], "serviceName").is_empty();
        let host = annotations.iter().filter(core).find(named).or_else(|| binary.iter().rev().find(named));
        let mut resource = Vec::new();
        match host.map(|annotation| &annotation["endpoint"]) {
            Some(endpoint) => {
                resource.push(json!(["service.name", text(endpoint, "serviceName")]));
                for key in ["ipv4", "ipv6"] {
                    if !text(endpoint, key).is_empty() {
                        resource.push(json!([key, text(endpoint, key)]));
                    }
                }
                if number(endpoint, "port") != 0 {
                    resource.push(json!(["port", number(endpoint, "port").to_string()]));
                }
            }
            None => {
                let component = last(&["lc"]).map(words).filter(|text| !text.is_empty());
                resource.push(json!(["service.name", component.unwrap_or_else(|| "unknown-service".into())]));
            }
        }
        let mut span = Map::new();
        span.insert("trace".into(), hex(&id::<16>(of, "traceId")).into());
        span.insert("span".into(), text(of, "id").into());
        put(&mut span, "parent", text(of, "parentId").into());
        put(&mut span, "name", text(of, "name").into());
        put(&mut span, "kind", kind.into());
        put(&mut span, "start", start.into());
        put(&mut span, "end", end.into());
        span.insert("attributes".into(), attributes.into());
        put(&mut span, "events", events.collect());
        if code != 0 || !status_message.is_empty() {
            span.insert("status".into(), json!([code, status_message]));
        }
        add(&mut groups, resource.into(), None, span.into());
    }
    sorted_attributes(print(groups))
}
