//! Links between services, for Zipkin's page of dependencies.
//!
//! Between services that send spans they come from parents and children. What sends none (a database, a broker) is known by name from
//! the spans of those that call it. A service's spans under its own are no calls to Zipkin, so links of a service to itself are left out.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use spanhouse_common::id::TenantId;
use spanhouse_common::time::TimeRange;

use super::ZipkinError;
use super::query::{binary, scoped};
use crate::engine::answer::{AnswerValue, Series};
use crate::engine::{Grid, MetricsRequest, Quiet};
use crate::jaeger::{Answer, JaegerQueries};
use crate::traceql::ast::{
    Attribute, BinaryOp, FieldExpr, Intrinsic, Kind, MetricsExpr, MetricsFunction, MetricsQuery, Pipeline, PipelineExpr,
    Query, Root, Scope, SpansetExpr, Stage, Static,
};

/// Calls of one service to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceLink {
    pub(super) parent: String,
    pub(super) child: String,
    pub(super) calls: u64,
    pub(super) errors: u64,
}

/// Links of a time, sorted by parent and child.
pub(super) async fn links(
    queries: &JaegerQueries,
    tenants: &[TenantId],
    range: TimeRange,
) -> Result<Answer<Vec<ServiceLink>>, ZipkinError> {
    let (edges, services, peers) = tokio::join!(
        queries.dependencies(tenants, range),
        queries.services(tenants),
        peers(queries, tenants.to_vec(), range)
    );
    let (edges, services, peers) = (edges?, services?, peers?);
    let senders: HashSet<String> = services.found.iter().map(|name| name.to_lowercase()).collect();
    let mut links: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    let mut add = |parent: String, child: String, calls: u64, errors: u64| {
        let link = links.entry((parent, child)).or_default();
        *link = (link.0.saturating_add(calls), link.1.saturating_add(errors));
    };
    for edge in edges.found.into_iter().filter(|edge| edge.parent != edge.child) {
        add(edge.parent, edge.child, edge.calls, edge.errors);
    }
    for peer in peers.found.iter().filter_map(Peer::of).filter(|peer| !senders.contains(&peer.name.to_lowercase())) {
        let errors = if peer.failed { peer.calls } else { 0 };
        let (service, name) = (peer.service.to_owned(), peer.name.to_owned());
        match peer.kind {
            "client" | "producer" => add(service, name, peer.calls, errors),
            _ => add(name, service, peer.calls, errors),
        }
    }
    let link = |((parent, child), (calls, errors))| ServiceLink { parent, child, calls, errors };
    let partial = edges.partial.or(services.partial).or(peers.partial);
    Ok(Answer { found: links.into_iter().map(link).collect(), partial })
}

/// Calls by service, name of the other side, kind and status.
async fn peers(
    queries: &JaegerQueries,
    tenants: Vec<TenantId>,
    range: TimeRange,
) -> Result<Answer<Vec<Series>>, ZipkinError> {
    let by = vec![
        scoped(Scope::Resource, "service.name"),
        scoped(Scope::Span, "peer.service"),
        Attribute::Intrinsic(Intrinsic::Kind),
        Attribute::Intrinsic(Intrinsic::Status),
    ];
    let exists = |attribute: &Attribute| FieldExpr::Exists {
        inner: Box::new(FieldExpr::Attribute(attribute.clone())),
        negated: false,
    };
    let named = binary(BinaryOp::And, exists(&by[0]), exists(&by[1]));
    let not = |kind| {
        let kind = FieldExpr::Static(Static::Kind(kind));
        binary(BinaryOp::NotEqual, FieldExpr::Attribute(Attribute::Intrinsic(Intrinsic::Kind)), kind)
    };
    let remote =
        [Kind::Unspecified, Kind::Internal].map(not).into_iter().fold(named, |all, one| binary(BinaryOp::And, all, one));
    let stages = vec![Stage::Spanset(SpansetExpr::Filter(remote))];
    let spans = PipelineExpr::Pipeline(Pipeline { stages });
    let query = MetricsExpr::Query(MetricsQuery { spans, function: MetricsFunction::CountOverTime, by });
    // The first instant of a bucket is not in it.
    let (start, end) = (range.min.0.saturating_sub(1), range.max.0);
    let request = MetricsRequest {
        tenants,
        query: Arc::new(Query { root: Root::Metrics(query), hints: Vec::new() }),
        grid: Grid { start, end, step: end.saturating_sub(start).max(1), instant: true },
        exemplars: 0,
        max_series: 0,
        window: None,
    };
    let answer = queries.deps().engine.metrics(request, &Quiet).await?;
    Ok(Answer { found: answer.series, partial: answer.stats.partial })
}

struct Peer<'a> {
    service: &'a str,
    name: &'a str,
    kind: &'a str,
    failed: bool,
    calls: u64,
}

impl<'a> Peer<'a> {
    fn of(series: &'a Series) -> Option<Self> {
        let label = |end: &str| {
            let label = series.labels.iter().find(|label| label.key.ends_with(end));
            match &label?.value {
                AnswerValue::Str(text) if !text.is_empty() => Some(&**text),
                _ => None,
            }
        };
        Some(Self {
            service: label("service.name")?,
            name: label("peer.service")?,
            kind: label("kind")?,
            failed: label("status") == Some("error"),
            calls: series.samples.iter().map(|sample| sample.value as u64).sum(),
        })
    }
}
