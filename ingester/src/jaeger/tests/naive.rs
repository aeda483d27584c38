//! The mapping as plainly as it can be said, on JSON: lists are searched, nothing is streamed.

use serde_json::{Map, Value as Json, json};

use super::encode::{id, list, number, text};
use crate::otlp::dump::{hex, put};

/// What the batch must become, as `dump` prints it.
pub(super) fn otlp(batch: &Json, proto: bool) -> Json {
    let mut groups: Vec<(Json, Option<Json>, Vec<Json>)> = Vec::new();
    for of in list(batch, "spans") {
        let process = if proto && !of["process"].is_null() { &of["process"] } else { &batch["process"] };
        if let Some((scope, span)) = span(of, proto) {
            let resource = resource(process);
            match groups.iter_mut().find(|group| group.0 == resource && group.1 == scope) {
                Some(group) => group.2.push(span),
                None => groups.push((resource, scope, vec![span])),
            }
        }
    }
    // Scopes of one resource stand together, where the resource came first.
    let mut sorted: Vec<&(Json, Option<Json>, Vec<Json>)> = Vec::new();
    for group in &groups {
        if !sorted.iter().any(|known| std::ptr::eq(*known, group)) {
            sorted.extend(groups.iter().filter(|other| other.0 == group.0));
        }
    }
    let print = |(resource, scope, spans): &(Json, Option<Json>, Vec<Json>)| {
        let mut group = Map::new();
        put(&mut group, "resource", resource.clone());
        put(&mut group, "scope", scope.clone().unwrap_or_default());
        put(&mut group, "spans", spans.clone().into());
        Json::Object(group)
    };
    sorted.into_iter().map(print).collect()
}

fn value(tag: &Json) -> Json {
    match tag[1].as_str() {
        Some("binary") => json!({ "bytes": tag[2] }),
        Some(_) => tag[2].clone(),
        None => json!(format!("<Unknown Jaeger TagType \"{}\">", tag[1])),
    }
}

fn resource(process: &Json) -> Json {
    let service = text(process, "serviceName");
    if service == "OTLPResourceNoServiceName" {
        return json!([]);
    }
    let mut attributes: Vec<(String, Json)> = Vec::new();
    if !service.is_empty() {
        attributes.push(("service.name".into(), service.into()));
    }
    let has = |name: &str| list(process, "tags").iter().any(|tag| tag[0] == name);
    let mut last: Vec<&Json> = Vec::new();
    for tag in list(process, "tags") {
        match last.iter_mut().find(|known| known[0] == tag[0]) {
            Some(known) => *known = tag,
            None => last.push(tag),
        }
    }
    for tag in last {
        let (key, value) = match tag[0].as_str().unwrap() {
            "hostname" if !has("host.name") => ("host.name", value(tag)),
            "jaeger.version" if tag[1] == "string" => {
                ("opencensus.exporterversion", format!("Jaeger-{}", tag[2].as_str().unwrap()).into())
            }
            key => (key, value(tag)),
        };
        match attributes.iter_mut().find(|(known, _)| key == "service.name" && known == key) {
            Some(known) => known.1 = value,
            None => attributes.push((key.into(), value)),
        }
    }
    attributes.iter().map(|(key, value)| json!([key, value])).collect()
}

fn http_code(code: i64, kind: u64) -> u64 {
    let fine = (100..=399).contains(&code) || (400..=499).contains(&code) && kind == 2;
    if fine { 0 } else { 2 }
}

fn span(of: &Json, proto: bool) -> Option<(Option<Json>, Json)> {
    if *of == json!({}) {
        return None;
    }
    let mut tags: Vec<&Json> = list(of, "tags").iter().collect();
    // The last of a key that decides something is the only one.
    for key in [
        "error",
        "otel.status_description",
        "otel.scope.name",
        "otel.scope.version",
        "otel.library.name",
        "otel.library.version",
    ] {
        let strings_only = key != "error";
        let counts = |tag: &Json| tag[0] == key && (!strings_only || tag[1] == "string");
        while tags.iter().filter(|tag| counts(tag)).count() > 1 {
            let first = tags.iter().position(|tag| counts(tag)).unwrap();
            tags.remove(first);
        }
    }
    let last = |tags: &[&Json], key: &str| tags.iter().rev().find(|tag| tag[0] == key).map(|tag| (*tag).clone());
    let last_text = |tags: &[&Json], key: &str| {
        tags.iter().rev().find(|tag| tag[0] == key && tag[1] == "string").map(|tag| tag[2].as_str().unwrap().to_owned())
    };
    let remove = |tags: &mut Vec<&Json>, key: &str| tags.retain(|tag| tag[0] != key);
    let remove_text = |tags: &mut Vec<&Json>, key: &str| tags.retain(|tag| tag[0] != key || tag[1] != "string");

    let kind = match last(&tags, "span.kind").as_ref().and_then(|tag| tag[2].as_str()) {
        Some("internal") => 1,
        Some("server") => 2,
        Some("client") => 3,
        _ => 0,
    };
    remove(&mut tags, "span.kind");
    let mut state = String::new();
    if proto {
        state = last_text(&tags, "w3c.tracestate").unwrap_or_default();
        remove_text(&mut tags, "w3c.tracestate");
    }

    let status_code = last(&tags, "otel.status_code");
    remove(&mut tags, "otel.status_code");
    let description = last_text(&tags, "otel.status_description");
    let http_message = last_text(&tags, "http.status_message").unwrap_or_default();
    let (mut code, mut message) = (0, String::new());
    if last(&tags, "error").is_some_and(|tag| tag[1] == "bool" && tag[2] == true) {
        remove(&mut tags, "error");
        remove_text(&mut tags, "otel.status_description");
        (code, message) = (2, description.unwrap_or(http_message));
    } else if let Some(tag) = status_code {
        remove_text(&mut tags, "otel.status_description");
        let word = if tag[1] == "string" { tag[2].as_str().unwrap().to_lowercase() } else { String::new() };
        code = ["unset", "ok", "error"].iter().position(|known| **known == word).unwrap_or_default() as u64;
        message = description.unwrap_or_default();
    } else if let Some(tag) = last(&tags, "http.status_code") {
        let number = match tag[1].as_str() {
            Some("int64") => tag[2].as_i64(),
            Some("string") => tag[2].as_str().unwrap().trim().parse().ok(),
            _ => None,
        };
        code = number.map_or(0, |number| http_code(number, kind));
        message = if code == 0 { String::new() } else { http_message };
    }

    let family = |tags: &[&Json], word: &str| {
        let text = |part: &str| last_text(tags, &format!("otel.{word}.{part}")).unwrap_or_default();
        json!([text("name"), text("version")])
    };
    let families = ["scope", "library"].map(|word| family(&tags, word));
    let scope = families.iter().find(|family| family[0] != "").cloned();
    for (word, said) in ["scope", "library"].iter().zip(&families) {
        if scope.as_ref() == Some(said) {
            remove_text(&mut tags, &format!("otel.{word}.name"));
            remove_text(&mut tags, &format!("otel.{word}.version"));
        }
    }

    let trace = id::<16>(of, "traceID");
    let mut references: Vec<([u8; 16], [u8; 8], bool)> = Vec::new();
    let mut parent = id::<8>(of, "parentSpanID");
    if proto && parent != [0; 8] {
        references.push((trace, parent, false));
        parent = [0; 8];
    }
    references
        .extend(list(of, "references").iter().map(|r| (id(r, "traceID"), id(r, "spanID"), r["refType"] == "FOLLOWS_FROM")));
    for follows in [false, true] {
        let found = references.iter().find(|r| r.0 == trace && r.2 == follows);
        if parent == [0; 8] {
            parent = found.map_or([0; 8], |found| found.1);
        }
    }
    references.retain(|(_, span, follows)| *follows || *span != parent);
    let link = |(trace, span, follows): &([u8; 16], [u8; 8], bool)| {
        let word = if *follows { "follows_from" } else { "child_of" };
        json!({ "trace": hex(trace), "span": hex(span), "attributes": [["opentracing.ref_type", word]] })
    };

    let event = |log: &Json| {
        let mut fields: Vec<&Json> = list(log, "fields").iter().collect();
        let at = fields.iter().position(|field| field[0] == "event" && field[1] == "string");
        let name = at.map(|at| fields.remove(at)[2].clone()).unwrap_or_default();
        let mut event = Map::new();
        put(&mut event, "time", (number(log, "timestamp") * 1_000).into());
        put(&mut event, "name", name);
        put(&mut event, "attributes", fields.iter().map(|field| json!([field[0], value(field)])).collect());
        Json::Object(event)
    };

    let mut attributes: Vec<Json> = tags.iter().map(|tag| json!([tag[0], value(tag)])).collect();
    if proto && !list(of, "warnings").is_empty() {
        attributes.push(json!(["@jaeger@warnings", of["warnings"]]));
    }
    let start = number(of, "startTime") as u64 * 1_000;
    let mut span = Map::new();
    span.insert("trace".into(), hex(&trace).into());
    span.insert("span".into(), hex(&id::<8>(of, "spanID")).into());
    if parent != [0; 8] {
        span.insert("parent".into(), hex(&parent).into());
    }
    put(&mut span, "state", state.into());
    put(&mut span, "name", text(of, "operationName").into());
    put(&mut span, "kind", kind.into());
    put(&mut span, "start", start.into());
    put(&mut span, "end", (start + number(of, "duration") as u64 * 1_000).into());
    put(&mut span, "flags", (number(of, "flags") & 1).into());
    put(&mut span, "attributes", attributes.into());
    put(&mut span, "events", list(of, "logs").iter().map(event).collect());
    put(&mut span, "links", references.iter().map(link).collect());
    if code != 0 || !message.is_empty() {
        span.insert("status".into(), json!([code, message]));
    }
    Some((scope, span.into()))
}
