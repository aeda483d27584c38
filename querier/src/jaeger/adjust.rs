//! What Jaeger mends in a trace before it shows it.
//!
//! Two steps, both on the stored form, before any wire form is made:
//! - [`sanitize`] names what has no name and gives every span a duration. A stock Jaeger does this before it stores; we store what
//!   was sent, so the query API does it to what it shows. A storage that stands behind a Jaeger must answer what was written: never there.
//! - [`adjust`] does what Jaeger's query service does unless it is asked for the raw trace: it splits ids that two sides of a call share,
//!   sorts, drops copies, moves spans of hosts whose clocks differ, and tidies some attributes.
//!
//! What is found is said on the span, in the list attribute [`WARNINGS_KEY`].
//!
//! Nothing here recurses over spans: a trace may be a chain of a million.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use spanhouse_common::id::SpanId;
use spanhouse_common::model::typed_json::{write_resource, write_scope};
use spanhouse_common::model::{Attribute, Resource, Scope, Span, Value};
use spanhouse_common::time::UnixNanos;

use super::model::{WARNINGS_KEY, parent_of, value_text};
use crate::api::go::duration_text;
use crate::assemble::{Trace, split_shared_ids};
use crate::otlp::encoded_span_len;

const SERVICE_NAME: &str = "service.name";

/// What the query API calls the service of spans that name none, or in its lists and summaries none that is a text.
pub const MISSING_SERVICE_NAME: &str = "missing-service-name";

/// That, and what it calls on the spans of a trace a name that is empty or no text.
pub const NAMELESS_SERVICES: [&str; 3] = [MISSING_SERVICE_NAME, "empty-service-name", "service-name-wrong-type"];

/// What the query API calls a span without a name.
pub const EMPTY_SPAN_NAME: &str = "empty-span-name";

/// Span attributes that speak of the process.
const LIBRARY_KEYS: [&str; 5] = [
    "telemetry.sdk.language",
    "telemetry.sdk.name",
    "telemetry.sdk.version",
    "telemetry.distro.name",
    "telemetry.distro.version",
];

/// What the query API calls the service of a resource: its name, or what says why it has none.
pub fn shown_service(resource: &Resource) -> &str {
    match resource.attributes.iter().find(|a| a.key == SERVICE_NAME).map(|a| &a.value) {
        None => MISSING_SERVICE_NAME,
        Some(Value::Str(name)) if name.is_empty() => NAMELESS_SERVICES[1],
        Some(Value::Str(name)) => name,
        Some(_) => NAMELESS_SERVICES[2],
    }
}

/// What the query API calls a span.
pub fn shown_operation(name: &str) -> &str {
    if name.is_empty() { EMPTY_SPAN_NAME } else { name }
}

/// Gives what has no name one, and spans that end no later than they start a nanosecond.
pub fn sanitize(trace: &mut Trace) {
    for group in &mut trace.groups {
        let name = shown_service(&group.resource);
        if group.resource.service_name() != Some(name) {
            let name = Value::Str(name.to_owned());
            let attributes = &mut Arc::make_mut(&mut group.resource).attributes;
            match attributes.iter_mut().find(|a| a.key == SERVICE_NAME) {
                Some(attribute) => attribute.value = name,
                None => attributes.push(Attribute { key: SERVICE_NAME.to_owned(), value: name }),
            }
        }
    }
    for span in trace.spans_mut() {
        if span.name.is_empty() {
            span.name = EMPTY_SPAN_NAME.to_owned();
        }
        if span.end_unix_nano <= span.start_unix_nano {
            let (was, end) = (span.end_unix_nano, span.start_unix_nano.saturating_add(1));
            span.end_unix_nano = end;
            let (was, end) = (go_time(was), go_time(end));
            warn(
                span,
                format!(
                    "Negative duration detected, sanitizing end timestamp. Original end timestamp: {was}, adjusted to: {end}"
                ),
            );
        }
    }
}

/// A time as Go prints it: `2026-01-02 03:04:05.6 +0000 UTC`.
fn go_time(unix_nanos: u64) -> String {
    let seconds = UnixNanos(unix_nanos).to_string();
    let seconds = seconds.trim_end_matches('Z').replace('T', " ");
    match unix_nanos % 1_000_000_000 {
        0 => format!("{seconds} +0000 UTC"),
        nanos => format!("{seconds}.{} +0000 UTC", format!("{nanos:09}").trim_end_matches('0')),
    }
}

/// Mends a trace as Jaeger's query service does, in its order. Times are moved by `max_skew` at most; zero moves none and says what it would.
pub fn adjust(trace: &mut Trace, max_skew: Duration) {
    split_shared_ids(trace);
    sort_collections(trace);
    drop_copies(trace);
    correct_skew(trace, max_skew);
    write_addresses(trace);
    move_library_attributes(trace);
    remove_empty_links(trace);
}

/// Appends a warning to a span.
pub fn warn(span: &mut Span, text: String) {
    let text = Value::Str(text);
    match span.attributes.iter_mut().find(|a| a.key == WARNINGS_KEY) {
        Some(Attribute { value: Value::Array(texts), .. }) => texts.push(text),
        Some(Attribute { value, .. }) => *value = Value::Array(vec![std::mem::replace(value, Value::Empty), text]),
        None => span.attributes.push(Attribute { key: WARNINGS_KEY.to_owned(), value: Value::Array(vec![text]) }),
    }
}

fn sort_collections(trace: &mut Trace) {
    let by_key = |attributes: &mut Vec<Attribute>| attributes.sort_by(|a, b| a.key.cmp(&b.key));
    let is_sorted = |attributes: &[Attribute]| attributes.is_sorted_by(|a, b| a.key <= b.key);
    for group in &mut trace.groups {
        if !is_sorted(&group.resource.attributes) {
            by_key(&mut Arc::make_mut(&mut group.resource).attributes);
        }
        for scope in &mut group.scopes {
            if !is_sorted(&scope.scope.attributes) {
                by_key(&mut Arc::make_mut(&mut scope.scope).attributes);
            }
        }
    }
    for span in trace.spans_mut() {
        by_key(&mut span.attributes);
        span.events.sort_by(|a, b| a.name.cmp(&b.name));
        span.events.iter_mut().for_each(|event| by_key(&mut event.attributes));
        span.links.iter_mut().for_each(|link| by_key(&mut link.attributes));
    }
}

/// Of spans that are the same to the byte, with the same resource and scope, the first stays.
fn drop_copies(trace: &mut Trace) {
    let mut ids = HashSet::new();
    let repeated: HashSet<SpanId> = trace.spans().map(|s| s.span_id).filter(|id| !ids.insert(*id)).collect();
    if repeated.is_empty() {
        return;
    }
    let mut owners: HashMap<String, usize> = HashMap::new();
    let mut seen: HashSet<(usize, Vec<u8>)> = HashSet::new();
    for group in &mut trace.groups {
        for scope in &mut group.scopes {
            let next = owners.len();
            let owner = *owners.entry(owner_text(&group.resource, &scope.scope)).or_insert(next);
            scope.spans.retain(|span| {
                let mut bytes = Vec::new();
                !repeated.contains(&span.span_id) || {
                    encoded_span_len(span, &mut bytes);
                    seen.insert((owner, bytes))
                }
            });
        }
    }
    trace.drop_empty_groups();
}

/// The same for owners of the same content, however they were grouped.
fn owner_text(resource: &Arc<Resource>, scope: &Arc<Scope>) -> String {
    let mut text = String::new();
    write_resource(&Resource { ordinal: 0, ..Resource::clone(resource) }, &mut text);
    text.push('\n');
    write_scope(&Scope { ordinal: 0, ..Scope::clone(scope) }, &mut text);
    text
}

/// A span among others: which host it ran on, and its place in the list of all.
struct Node {
    host: usize,
    parent: Option<usize>,
}

/// Number of the host in [`Hosts`] that is nobody's: spans of it never share a clock.
const UNKNOWN_HOST: usize = 0;

/// Moves spans so that children do not start before their parents only because of their hosts' clocks.
///
/// Walks down from the roots. What lies on a cycle is under no root and stays as it is.
fn correct_skew(trace: &mut Trace, max_skew: Duration) {
    let hosts = hosts_of_spans(trace);
    let mut spans: Vec<&mut Span> = trace.spans_mut().collect();
    let mut by_id: HashMap<SpanId, usize> = HashMap::with_capacity(spans.len());
    for (at, span) in spans.iter_mut().enumerate() {
        if *by_id.entry(span.span_id).or_insert(at) != at {
            warn(span, "duplicate span IDs; skipping clock skew adjustment".to_owned());
        }
    }
    let mut nodes = Vec::with_capacity(spans.len());
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
    let mut stack: Vec<(usize, Skew)> = Vec::new();
    for (at, span) in spans.iter_mut().enumerate() {
        let host = hosts[at];
        let mut node = Node { host, parent: None };
        if by_id.get(&span.span_id) == Some(&at) {
            let parent = parent_of(span);
            node.parent = parent.and_then(|id| by_id.get(&id).copied());
            match (parent, node.parent) {
                (_, Some(parent)) => children[parent].push(at),
                (Some(parent), None) => {
                    let parent = u64::from_be_bytes(parent.0);
                    let text = format!("parent span ID={parent:016x} is not in the trace; skipping clock skew adjustment");
                    warn(span, text);
                    stack.push((at, Skew { host, delta: 0 }));
                }
                (None, None) => stack.push((at, Skew { host, delta: 0 })),
            }
        }
        nodes.push(node);
    }
    while let Some((at, mut skew)) = stack.pop() {
        let node = &nodes[at];
        if let Some(parent) = node.parent.filter(|_| node.host != skew.host || node.host == UNKNOWN_HOST) {
            // The parent has its final times.
            skew = Skew { host: node.host, delta: skew_of(spans[at], spans[parent]) };
        }
        shift(spans[at], skew.delta, max_skew);
        stack.extend(children[at].iter().map(|child| (*child, skew)));
    }
}

/// By how much the clock of a host differs, in nanoseconds.
#[derive(Clone, Copy)]
struct Skew {
    host: usize,
    delta: i64,
}

/// The host of each span, in the order of the spans.
fn hosts_of_spans(trace: &Trace) -> Vec<usize> {
    let mut numbers: HashMap<&str, usize> = HashMap::from([("", UNKNOWN_HOST)]);
    let mut hosts = Vec::new();
    for group in &trace.groups {
        let next = numbers.len();
        let host = *numbers.entry(host_of(&group.resource)).or_insert(next);
        hosts.extend(group.scopes.iter().flat_map(|scope| &scope.spans).map(|_| host));
    }
    hosts
}

/// What names the host: the first of these that is there at all, even if its value is of no use.
fn host_of(resource: &Resource) -> &str {
    let value = |key: &str| resource.attributes.iter().find(|a| a.key == key).map(|a| &a.value);
    if let Some(id) = value("host.id") {
        return text_or_empty(id);
    }
    match value("host.ip") {
        Some(Value::Str(address)) => return address,
        Some(Value::Array(addresses)) if !addresses.is_empty() => return text_or_empty(&addresses[0]),
        _ => {}
    }
    value("host.name").map(text_or_empty).unwrap_or_default()
}

fn text_or_empty(value: &Value) -> &str {
    match value {
        Value::Str(text) => text,
        _ => "",
    }
}

fn skew_of(child: &Span, parent: &Span) -> i64 {
    let (parent_start, parent_end) = (i128::from(parent.start_unix_nano), i128::from(parent.end_unix_nano));
    let (child_start, child_end) = (i128::from(child.start_unix_nano), i128::from(child.end_unix_nano));
    let (parent_duration, child_duration) = (parent_end - parent_start, child_end - child_start);
    let delta = if child_duration > parent_duration {
        // The parent did not wait for it, or gave up: all that is sure is that it did not start first.
        (parent_start - child_start).max(0)
    } else if child_start >= parent_start && child_end <= parent_end {
        0
    } else {
        // As long on the way there as on the way back.
        parent_start + (parent_duration - child_duration) / 2 - child_start
    };
    delta.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

fn shift(span: &mut Span, delta: i64, max_skew: Duration) {
    if delta == 0 {
        return;
    }
    if u128::from(delta.unsigned_abs()) > max_skew.as_nanos() {
        let delta = duration_text(delta);
        return if max_skew.is_zero() {
            warn(span, format!("clock skew adjustment disabled; not applying calculated delta of {delta}"));
        } else {
            let most = duration_text(i64::try_from(max_skew.as_nanos()).unwrap_or(i64::MAX));
            warn(
                span,
                format!("max clock skew adjustment delta of {most} exceeded; not applying calculated delta of {delta}"),
            );
        };
    }
    span.start_unix_nano = span.start_unix_nano.saturating_add_signed(delta);
    span.end_unix_nano = span.end_unix_nano.saturating_add_signed(delta);
    for event in &mut span.events {
        event.time_unix_nano = event.time_unix_nano.saturating_add_signed(delta);
    }
    warn(span, format!("This span's timestamps were adjusted by {}", duration_text(delta)));
}

/// IPv4 addresses that are numbers become texts.
fn write_addresses(trace: &mut Trace) {
    let is_number =
        |a: &Attribute| matches!(a.key.as_str(), "ip" | "peer.ipv4") && matches!(a.value, Value::Int(_) | Value::Double(_));
    let write = |attributes: &mut [Attribute]| {
        for attribute in attributes.iter_mut().filter(|a| is_number(a)) {
            let number = match attribute.value {
                Value::Int(number) => number as u32,
                Value::Double(number) => number as i64 as u32,
                _ => continue,
            };
            attribute.value = Value::Str(std::net::Ipv4Addr::from_bits(number).to_string());
        }
    };
    for group in trace.groups.iter_mut().filter(|g| g.resource.attributes.iter().any(is_number)) {
        write(&mut Arc::make_mut(&mut group.resource).attributes);
    }
    trace.spans_mut().for_each(|span| write(&mut span.attributes));
}

/// What spans say of the library that made them belongs to the resource, unless that says otherwise.
fn move_library_attributes(trace: &mut Trace) {
    for group in &mut trace.groups {
        let resource = &mut group.resource;
        for span in group.scopes.iter_mut().flat_map(|scope| &mut scope.spans) {
            let mut at = 0;
            let mut conflicts = Vec::new();
            while let Some(attribute) = span.attributes.get(at) {
                if !LIBRARY_KEYS.contains(&attribute.key.as_str()) {
                    at += 1;
                    continue;
                }
                match resource.attributes.iter().find(|a| a.key == attribute.key) {
                    Some(known) if value_text(&known.value) != value_text(&attribute.value) => {
                        conflicts.push(attribute.key.clone());
                        at += 1;
                    }
                    Some(_) => drop(span.attributes.remove(at)),
                    None => Arc::make_mut(resource).attributes.push(span.attributes.remove(at)),
                }
            }
            for key in conflicts {
                warn(span, format!("conflicting values between Span and Resource for attribute {key}"));
            }
        }
    }
}

fn remove_empty_links(trace: &mut Trace) {
    for span in trace.spans_mut() {
        let before = span.links.len();
        span.links.retain(|link| link.trace_id.iter().any(|byte| *byte != 0));
        for _ in span.links.len()..before {
            warn(span, "Invalid span link removed".to_owned());
        }
    }
}

#[cfg(test)]
mod tests;
