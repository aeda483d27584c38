//! One trace from pieces: what several sources hold of it is merged, grouped and ordered as Tempo's trace by id answers.
//!
//! Owns which spans an answer shows and in what order. Does not own where they come from nor how they are written.
//!
//! The result does not depend on the order in which sources answered. Steps:
//! 1. identical spans become one, wherever they lie: storage may not have removed them yet;
//! 2. of spans with one id and kind but different content, one source's survive (resends of a span with more in it); inside
//!    one source they stay, as Tempo shows them;
//! 3. an id shared by a SERVER and a CLIENT span (Zipkin) is split;
//! 4. everything is sorted.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use spanhouse_common::id::SpanId;
use spanhouse_common::model::typed_json::{write_resource, write_scope};
use spanhouse_common::model::{Attribute, Resource, Scope, Span, StoredSpan, Value};

use crate::otlp::encoded_span_len;

const KIND_SERVER: i32 = 2;
const KIND_CLIENT: i32 = 3;

/// What a resource without attributes is called: Grafana shows nothing of a trace whose resources have none.
const UNKNOWN_SERVICE: &str = "unknown_service";

/// A trace as answers show it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    pub groups: Vec<ResourceGroup>,
}

/// Spans of one resource.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceGroup {
    pub resource: Arc<Resource>,
    pub scopes: Vec<ScopeGroup>,
}

/// Spans of one scope.
#[derive(Debug, Clone, PartialEq)]
pub struct ScopeGroup {
    pub scope: Arc<Scope>,
    pub spans: Vec<Span>,
}

impl Trace {
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Bytes of its spans in protobuf.
    pub fn encoded_len(&self) -> usize {
        let mut scratch = Vec::new();
        self.spans().map(|span| encoded_span_len(span, &mut scratch)).sum()
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.groups.iter().flat_map(|g| &g.scopes).flat_map(|s| &s.spans)
    }

    pub(crate) fn spans_mut(&mut self) -> impl Iterator<Item = &mut Span> {
        self.groups.iter_mut().flat_map(|g| &mut g.scopes).flat_map(|s| &mut s.spans)
    }

    /// Keeps the earliest spans that fit into `limit` bytes of protobuf. False if all did.
    pub fn truncate(&mut self, limit: usize) -> bool {
        let mut scratch = Vec::new();
        let mut sizes: Vec<(SortKey, usize)> =
            self.spans().map(|span| (sort_key(span), encoded_span_len(span, &mut scratch))).collect();
        let total: usize = sizes.iter().map(|(_, size)| size).sum();
        if total <= limit {
            return false;
        }
        sizes.sort_unstable();
        let mut used = 0usize;
        let fitting = sizes.iter().take_while(|(_, size)| {
            used += size;
            used <= limit
        });
        // Counted, because several spans may have one key.
        let mut keep: HashMap<SortKey, usize> = HashMap::new();
        for (key, _) in fitting {
            *keep.entry(*key).or_default() += 1;
        }
        self.retain(|span| match keep.get_mut(&sort_key(span)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        });
        true
    }

    /// Drops spans, asked in the order of [`Trace::spans`], and groups without any.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Span) -> bool) {
        for scope in self.groups.iter_mut().flat_map(|g| &mut g.scopes) {
            scope.spans.retain(&mut keep);
        }
        self.drop_empty_groups();
    }

    pub(crate) fn drop_empty_groups(&mut self) {
        for group in &mut self.groups {
            group.scopes.retain(|scope| !scope.spans.is_empty());
        }
        self.groups.retain(|group| !group.scopes.is_empty());
    }
}

/// Makes one trace of what each source found, a piece per source.
pub fn assemble(pieces: Vec<Vec<StoredSpan>>) -> Trace {
    let mut owners = Owners::default();
    let spans = placed(pieces, &mut owners);
    let spans = one_source_per_id(without_identical(spans));
    let mut trace = owners.group(spans);
    // In the order of the answer, so that new ids are the same every time.
    sort(&mut trace);
    if split_shared_ids(&mut trace) {
        sort(&mut trace);
    }
    name_nameless(&mut trace);
    trace
}

/// Makes one trace of what each source found as it is stored: only what is identical becomes one, nothing is sorted or named.
pub fn gather(pieces: Vec<Vec<StoredSpan>>) -> Trace {
    let mut owners = Owners::default();
    let spans = placed(pieces, &mut owners);
    owners.group(without_identical(spans))
}

fn placed(pieces: Vec<Vec<StoredSpan>>, owners: &mut Owners) -> Vec<Placed> {
    let mut spans = Vec::with_capacity(pieces.iter().map(Vec::len).sum());
    for (piece, stored) in pieces.into_iter().enumerate() {
        for StoredSpan { span, resource, scope, .. } in stored {
            let (group, content) = owners.of(&resource, &scope);
            spans.push(Placed { span, piece, group, content });
        }
    }
    spans
}

/// A span, the source it came from, and whose it is.
struct Placed {
    span: Span,
    piece: usize,
    /// Resource and scope as grouped in the request.
    group: Owner,
    /// Resource and scope by content alone: a resend may be grouped otherwise.
    content: Owner,
}

/// Numbers of a resource and a scope in [`Owners`].
type Owner = (usize, usize);

/// Every resource and scope met so far, numbered by content.
#[derive(Default)]
struct Owners {
    resources: Vec<Arc<Resource>>,
    scopes: Vec<Arc<Scope>>,
    by_text: HashMap<String, usize>,
    /// Spans share their owners: each is put into text once. The pointer stays valid, `kept` holds the owner.
    by_pointer: HashMap<(usize, usize), (Owner, Owner)>,
    kept: Vec<(Arc<Resource>, Arc<Scope>)>,
}

impl Owners {
    fn of(&mut self, resource: &Arc<Resource>, scope: &Arc<Scope>) -> (Owner, Owner) {
        let pointers = (Arc::as_ptr(resource).addr(), Arc::as_ptr(scope).addr());
        if let Some(known) = self.by_pointer.get(&pointers) {
            return *known;
        }
        let group = (self.resource(resource), self.scope(scope));
        let mut content = group;
        if resource.ordinal != 0 {
            content.0 = self.resource(&Arc::new(Resource { ordinal: 0, ..Resource::clone(resource) }));
        }
        if scope.ordinal != 0 {
            content.1 = self.scope(&Arc::new(Scope { ordinal: 0, ..Scope::clone(scope) }));
        }
        self.kept.push((Arc::clone(resource), Arc::clone(scope)));
        self.by_pointer.insert(pointers, (group, content));
        (group, content)
    }

    fn resource(&mut self, resource: &Arc<Resource>) -> usize {
        // The prefix keeps a resource apart from a scope of the same text.
        let mut text = String::from("r");
        write_resource(resource, &mut text);
        *self.by_text.entry(text).or_insert_with(|| {
            self.resources.push(Arc::clone(resource));
            self.resources.len() - 1
        })
    }

    fn scope(&mut self, scope: &Arc<Scope>) -> usize {
        let mut text = String::from("s");
        write_scope(scope, &mut text);
        *self.by_text.entry(text).or_insert_with(|| {
            self.scopes.push(Arc::clone(scope));
            self.scopes.len() - 1
        })
    }

    fn group(self, spans: Vec<Placed>) -> Trace {
        let mut trace = Trace::default();
        let mut groups: HashMap<usize, usize> = HashMap::new();
        let mut scopes: HashMap<Owner, usize> = HashMap::new();
        for Placed { span, group, .. } in spans {
            let at = *groups.entry(group.0).or_insert_with(|| {
                trace.groups.push(ResourceGroup { resource: Arc::clone(&self.resources[group.0]), scopes: Vec::new() });
                trace.groups.len() - 1
            });
            let in_group = &mut trace.groups[at].scopes;
            let at = *scopes.entry(group).or_insert_with(|| {
                in_group.push(ScopeGroup { scope: Arc::clone(&self.scopes[group.1]), spans: Vec::new() });
                in_group.len() - 1
            });
            in_group[at].spans.push(span);
        }
        trace
    }
}

type SpanKey = (SpanId, i32);

fn span_key(span: &Span) -> SpanKey {
    (span.span_id, span.kind)
}

fn repeated_keys(spans: &[Placed]) -> HashSet<SpanKey> {
    let mut seen = HashSet::with_capacity(spans.len());
    spans.iter().map(|s| span_key(&s.span)).filter(|key| !seen.insert(*key)).collect()
}

fn without_identical(mut spans: Vec<Placed>) -> Vec<Placed> {
    let repeated = repeated_keys(&spans);
    if repeated.is_empty() {
        return spans;
    }
    // Bytes are compared, not values: by values a NaN differs from itself.
    let mut seen: HashSet<(usize, usize, Vec<u8>)> = HashSet::new();
    spans.retain(|s| {
        if !repeated.contains(&span_key(&s.span)) {
            return true;
        }
        let mut bytes = Vec::new();
        encoded_span_len(&s.span, &mut bytes);
        seen.insert((s.content.0, s.content.1, bytes))
    });
    spans
}

/// For each id and kind, keeps the spans of the source that holds the most complete one.
fn one_source_per_id(mut spans: Vec<Placed>) -> Vec<Placed> {
    let repeated = repeated_keys(&spans);
    if repeated.is_empty() {
        return spans;
    }
    // Between equals the bytes decide, not the order of the sources; only the owners can differ then, and the first stays.
    type Rank = (u64, usize, Vec<u8>);
    let mut best: HashMap<SpanKey, (Rank, usize)> = HashMap::new();
    for s in spans.iter().filter(|s| repeated.contains(&span_key(&s.span))) {
        let mut bytes = Vec::new();
        let size = encoded_span_len(&s.span, &mut bytes);
        let rank = (s.span.end_unix_nano, size, bytes);
        match best.get_mut(&span_key(&s.span)) {
            Some((best_rank, _)) if rank <= *best_rank => {}
            Some(entry) => *entry = (rank, s.piece),
            None => {
                best.insert(span_key(&s.span), (rank, s.piece));
            }
        }
    }
    spans.retain(|s| best.get(&span_key(&s.span)).is_none_or(|(_, piece)| *piece == s.piece));
    spans
}

/// Zipkin gives both sides of a call one id. The SERVER side gets a new one, the first unused number, under the CLIENT's, and takes the
/// children along. False if no id was shared.
pub(crate) fn split_shared_ids(trace: &mut Trace) -> bool {
    let of_kind = |kind| trace.spans().filter(move |s| s.kind == kind).map(|s| s.span_id).collect::<BTreeSet<_>>();
    let shared: BTreeSet<SpanId> = of_kind(KIND_SERVER).intersection(&of_kind(KIND_CLIENT)).copied().collect();
    if shared.is_empty() {
        return false;
    }
    let used: HashSet<SpanId> = trace.spans().map(|s| s.span_id).collect();
    let mut unused = (1u64..).map(|n| SpanId(n.to_be_bytes())).filter(|id| !used.contains(id));
    let mut new_ids: HashMap<SpanId, SpanId> = HashMap::new();
    for span in trace.spans_mut().filter(|s| s.kind == KIND_SERVER && shared.contains(&s.span_id)) {
        let Some(new_id) = unused.next() else { return true };
        new_ids.entry(span.span_id).or_insert(new_id);
        span.parent_span_id = Some(span.span_id);
        span.span_id = new_id;
    }
    let renamed: HashSet<SpanId> = trace.spans().map(|s| s.span_id).filter(|id| !used.contains(id)).collect();
    for span in trace.spans_mut().filter(|s| !renamed.contains(&s.span_id)) {
        if let Some(new_parent) = span.parent_span_id.and_then(|parent| new_ids.get(&parent)) {
            span.parent_span_id = Some(*new_parent);
        }
    }
    true
}

/// Start, id, and to be the same every time: kind, end.
type SortKey = (u64, SpanId, i32, u64);

fn sort_key(span: &Span) -> SortKey {
    (span.start_unix_nano, span.span_id, span.kind, span.end_unix_nano)
}

fn sort(trace: &mut Trace) {
    for span in trace.spans_mut() {
        span.events.sort_by(|a, b| (a.time_unix_nano, &a.name).cmp(&(b.time_unix_nano, &b.name)));
        span.links.sort_by(|a, b| (&a.trace_id, &a.span_id).cmp(&(&b.trace_id, &b.span_id)));
    }
    let first = |spans: &[Span]| spans.first().map(sort_key);
    for group in &mut trace.groups {
        for scope in &mut group.scopes {
            scope.spans.sort_by_key(sort_key);
        }
        group.scopes.sort_by_key(|scope| first(&scope.spans));
    }
    let first = |group: &ResourceGroup| group.scopes.first().and_then(|s| s.spans.first()).map(sort_key);
    trace.groups.sort_by_key(first);
}

fn name_nameless(trace: &mut Trace) {
    for group in trace.groups.iter_mut().filter(|g| g.resource.attributes.is_empty()) {
        let name = Attribute { key: "service.name".into(), value: Value::Str(UNKNOWN_SERVICE.into()) };
        Arc::make_mut(&mut group.resource).attributes.push(name);
    }
}

#[cfg(test)]
mod tests;
