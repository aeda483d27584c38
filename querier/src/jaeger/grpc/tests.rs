//! Calls over the routers, in memory: messages and their size, statuses, health and reflection.

use std::sync::Arc;

use axum::Router;
use futures::{StreamExt as _, stream};
use prost::Message as _;
use prost_types::Timestamp;
use spanhouse_common::budget::Share;
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::model::{Scope, Span, StoredSpan, Value};
use spanhouse_common::source::Snapshots;
use spanhouse_proto::jaeger_metrics::metrics_query_service_client::MetricsQueryServiceClient;
use spanhouse_proto::jaeger_metrics::{GetLatenciesRequest, GetMinStepDurationRequest, MetricsQueryBaseRequest};
use spanhouse_proto::jaeger_storage_v1::archive_span_reader_plugin_client::ArchiveSpanReaderPluginClient;
use spanhouse_proto::jaeger_storage_v1::plugin_capabilities_client::PluginCapabilitiesClient;
use spanhouse_proto::jaeger_storage_v1::span_reader_plugin_client::SpanReaderPluginClient;
use spanhouse_proto::jaeger_storage_v2::capabilities_client::CapabilitiesClient;
use spanhouse_proto::jaeger_storage_v2::dependency_reader_client::DependencyReaderClient;
use spanhouse_proto::jaeger_storage_v2::trace_reader_client::TraceReaderClient;
use spanhouse_proto::otlp_trace::TracesData;
use spanhouse_proto::{EncodedTraces, jaeger_storage_v1, jaeger_storage_v2, jaeger_v2, jaeger_v3};
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::{v1, v1alpha};

use super::*;
use crate::assemble::Trace;
use crate::jaeger::{Archive, JaegerDeps};
use crate::test_util::{FakeEngine, FakeSnapshots, FakeSource, attribute, resource, span, span_id, stored_by};

type V2 = jaeger_v2::query_service_client::QueryServiceClient<Router>;
type V3 = jaeger_v3::query_service_client::QueryServiceClient<Router>;

/// A second after the start of 2020.
const START: u64 = 1_577_836_801_000_000_000;
const YEAR_ONE: Option<Timestamp> = Some(Timestamp { seconds: -62_135_596_800, nanos: 0 });

/// The tenant `x` with its data, and what it keeps in its archive.
fn queries(spans: Vec<StoredSpan>, archived: Option<Vec<StoredSpan>>, multitenancy: bool) -> JaegerQueries {
    JaegerQueries::new(deps(spans, archived, multitenancy))
}

fn deps(spans: Vec<StoredSpan>, archived: Option<Vec<StoredSpan>>, multitenancy: bool) -> JaegerDeps {
    let tenant = if multitenancy { "x".parse().unwrap() } else { TenantId::single() };
    let archive = archived.is_some().then(|| Arc::new(FakeArchive) as Arc<dyn Archive>);
    let kept = vec![vec![FakeSource::live(archived.unwrap_or_default())]];
    let data = vec![(tenant.clone(), vec![vec![FakeSource::live(spans)]]), (FakeArchive.tenant_of(&tenant), kept)];
    let snapshots: Arc<dyn Snapshots> = FakeSnapshots::new(data);
    let mut deps = crate::jaeger::testing::deps(snapshots);
    deps.settings.multitenancy = multitenancy;
    deps.settings.max_trace_bytes = 64 << 20;
    JaegerDeps { archive, ..deps }
}

#[derive(Debug)]
struct FakeArchive;

#[async_trait::async_trait]
impl Archive for FakeArchive {
    fn tenant_of(&self, tenant: &TenantId) -> TenantId {
        format!("{tenant}-kept").parse().unwrap()
    }

    async fn archive(&self, tenant: &TenantId, trace: &Trace) -> Result<(), String> {
        if trace.spans().count() == 1 { Ok(()) } else { Err(format!("{tenant} has no room")) }
    }
}

/// Spans 1 to `count` of a trace of the service `shop`: the first is its parentless root, each a millisecond long.
fn trace(id: u8, count: u64, text: usize) -> Vec<StoredSpan> {
    let one = |n: u64| {
        let mut span = Span { trace_id: TraceId([id; 16]), name: format!("step {n}"), ..span(n, 2, START + n) };
        span.parent_span_id = (n > 1).then(|| span_id(1));
        span.end_unix_nano = span.start_unix_nano + 1_000_000;
        span.attributes = vec![attribute("text", Value::Str("x".repeat(text)))];
        stored_by(span, resource("shop"), Scope::default())
    };
    (1..=count).map(one).collect()
}

async fn query_port(spans: Vec<StoredSpan>) -> Router {
    query_router(&queries(spans, None, false)).await.unwrap()
}

async fn storage_port(spans: Vec<StoredSpan>) -> Router {
    storage_routes(&queries(spans, None, false)).await.unwrap()
}

async fn collect<M>(mut stream: Streaming<M>) -> Result<Vec<M>, Status> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

fn decoded(messages: &[EncodedTraces]) -> Vec<TracesData> {
    messages.iter().map(|message| TracesData::decode(&message.0[..]).unwrap()).collect()
}

fn otlp_spans(message: &TracesData) -> impl Iterator<Item = &spanhouse_proto::otlp_trace::Span> {
    message.resource_spans.iter().flat_map(|group| &group.scope_spans).flat_map(|scope| &scope.spans)
}

/// Fails unless every message is of one trace and no trace is resumed; returns the traces in their order.
fn contiguous(messages: &[Vec<Vec<u8>>]) -> Vec<Vec<u8>> {
    let mut traces: Vec<Vec<u8>> = Vec::new();
    for message in messages {
        assert!(!message.is_empty(), "an empty message");
        assert!(message.iter().all(|id| *id == message[0]), "two traces in a message");
        if traces.last() != Some(&message[0]) {
            assert!(!traces.contains(&message[0]), "a trace resumed");
            traces.push(message[0].clone());
        }
    }
    traces
}

/// A query for all that `shop` did, with times that Go leaves unset.
fn v2_query(search_depth: i32) -> jaeger_v2::FindTracesRequest {
    let query = jaeger_v2::TraceQueryParameters {
        service_name: "shop".into(),
        start_time_min: YEAR_ONE,
        start_time_max: YEAR_ONE,
        duration_min: Some(prost_types::Duration::default()),
        duration_max: Some(prost_types::Duration::default()),
        search_depth,
        ..Default::default()
    };
    jaeger_v2::FindTracesRequest { query: Some(query) }
}

fn storage_v2_query() -> jaeger_storage_v2::TraceQueryParameters {
    let bounds = v2_query(0).query.unwrap();
    jaeger_storage_v2::TraceQueryParameters {
        start_time_min: bounds.start_time_min,
        start_time_max: bounds.start_time_max,
        duration_min: bounds.duration_min,
        duration_max: bounds.duration_max,
        ..Default::default()
    }
}

#[tokio::test]
async fn traces_of_jaegers_model_go_in_small_chunks() {
    let all = [trace(1, 25, 0), trace(2, 3, 0), trace(3, 1, 0)].concat();
    let mut client = V2::new(query_port(all.clone()).await);
    let chunks = collect(client.find_traces(v2_query(0)).await.unwrap().into_inner()).await.unwrap();
    let ids: Vec<Vec<Vec<u8>>> =
        chunks.iter().map(|chunk| chunk.spans.iter().map(|span| span.trace_id.clone()).collect()).collect();
    assert_eq!(contiguous(&ids).len(), 3);
    assert!(ids.iter().all(|chunk| chunk.len() <= 10));
    let spans: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.spans).collect();
    assert_eq!(spans.len(), 29);
    for span in &spans {
        let process = span.process.as_ref().unwrap();
        assert_eq!((process.service_name.as_str(), span.process_id.as_str()), ("shop", ""));
        assert_eq!(span.duration, Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }));
    }
    let few = collect(client.find_traces(v2_query(1)).await.unwrap().into_inner()).await.unwrap();
    assert_eq!(few.iter().map(|chunk| chunk.spans.len()).sum::<usize>(), 25, "the newest, whole");

    let mut client = SpanReaderPluginClient::new(storage_port([all, trace(4, 2500, 0)].concat()).await);
    let request = jaeger_storage_v1::GetTraceRequest { trace_id: vec![4; 16], ..Default::default() };
    let chunks = collect(client.get_trace(request).await.unwrap().into_inner()).await.unwrap();
    assert_eq!(chunks.iter().map(|chunk| chunk.spans.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
    let start = chunks[0].spans.iter().map(|span| span.start_time.unwrap().nanos).min().unwrap();
    assert_eq!(start, 1, "nanoseconds");
}

#[tokio::test]
async fn large_traces_are_split_below_what_clients_take() {
    let all = [trace(1, 2500, 4000), trace(2, 1, 0)].concat();
    let mut storage = TraceReaderClient::new(storage_port(all.clone()).await);
    let ids = [[2; 16], [9; 16], [1; 16]];
    let params = |id: &[u8; 16]| jaeger_storage_v2::GetTraceParams {
        trace_id: id.to_vec(),
        start_time: YEAR_ONE,
        end_time: YEAR_ONE,
    };
    let request = jaeger_storage_v2::GetTracesRequest { query: ids.iter().map(params).collect() };
    let messages = collect(storage.get_traces(request).await.unwrap().into_inner()).await.unwrap();
    assert!(messages.len() >= 4 && messages.iter().all(|message| message.encoded_len() < 4 << 20), "{}", messages.len());
    let ids: Vec<Vec<Vec<u8>>> =
        decoded(&messages).iter().map(|one| otlp_spans(one).map(|span| span.trace_id.clone()).collect()).collect();
    assert_eq!(contiguous(&ids), [vec![2; 16], vec![1; 16]], "in the order asked for");
    assert_eq!(ids.iter().map(Vec::len).sum::<usize>(), 2501);

    let mut v3 = V3::new(query_port(all.clone()).await);
    let request = jaeger_v3::GetTraceRequest { trace_id: "01".repeat(16), raw_traces: true, ..Default::default() };
    let messages = collect(v3.get_trace(request).await.unwrap().into_inner()).await.unwrap();
    assert!(messages.len() >= 3 && messages.iter().all(|message| message.encoded_len() < 4 << 20));
    let mut v2 = V2::new(query_port(trace(1, 30, 1 << 20)).await);
    let request = jaeger_v2::GetTraceRequest { trace_id: vec![1; 16], ..Default::default() };
    let chunks = collect(v2.get_trace(request).await.unwrap().into_inner()).await.unwrap();
    assert!(chunks.iter().all(|chunk| chunk.encoded_len() < 4 << 20));
    assert_eq!(chunks.iter().map(|chunk| chunk.spans.len()).sum::<usize>(), 30);
}

#[tokio::test]
async fn storage_answers_what_was_written_and_queries_what_jaeger_shows() {
    let mut stored = trace(1, 1, 0).remove(0);
    stored.span.name.clear();
    stored.span.attributes = vec![attribute("b", Value::Int(1)), attribute("a", Value::Int(2))];
    // A field of a future version.
    stored.span.unknown = vec![0xa0, 0x06, 7];
    let mut storage = TraceReaderClient::new(storage_port(vec![stored.clone()]).await);
    let request = jaeger_storage_v2::FindTracesRequest { query: Some(storage_v2_query()) };
    let messages = collect(storage.find_traces(request).await.unwrap().into_inner()).await.unwrap();
    assert!(messages[0].0.windows(3).any(|bytes| bytes == stored.span.unknown));
    let keys =
        |span: &spanhouse_proto::otlp_trace::Span| span.attributes.iter().map(|pair| pair.key.clone()).collect::<Vec<_>>();
    let messages = decoded(&messages);
    let span = otlp_spans(&messages[0]).next().unwrap();
    assert_eq!((span.name.as_str(), keys(span)), ("", vec!["b".to_owned(), "a".to_owned()]));

    let mut v3 = V3::new(query_port(vec![stored]).await);
    for (raw_traces, expected) in [(false, ["a", "b"]), (true, ["b", "a"])] {
        let request = jaeger_v3::GetTraceRequest { trace_id: "01".repeat(16), raw_traces, ..Default::default() };
        let messages = decoded(&collect(v3.get_trace(request).await.unwrap().into_inner()).await.unwrap());
        let span = otlp_spans(&messages[0]).next().unwrap();
        assert_eq!((span.name.as_str(), keys(span)), ("empty-span-name", expected.map(str::to_owned).to_vec()));
    }
}

#[tokio::test]
async fn names_summaries_and_dependencies() {
    let mut all = trace(1, 2, 0);
    all[0].span.kind = 0;
    all[1].resource = Arc::new(resource("stock"));
    all[1].span.status_code = 2;
    let queries = queries(all, None, false);
    let (port, storage) = (query_router(&queries).await.unwrap(), storage_routes(&queries).await.unwrap());
    let mut v2 = V2::new(port.clone());
    let services = v2.get_services(jaeger_v2::GetServicesRequest {}).await.unwrap().into_inner().services;
    assert_eq!(services, ["shop", "stock"]);
    for (service, kind, expected) in [
        ("shop", "", &[("step 1", "")][..]),
        ("stock", "server", &[("step 2", "server")]),
        ("stock", "client", &[]),
        ("stock", "what", &[]),
        ("nobody", "", &[]),
    ] {
        let request = jaeger_v2::GetOperationsRequest { service: service.into(), span_kind: kind.into() };
        let answer = v2.get_operations(request).await.unwrap().into_inner();
        let found: Vec<_> = answer.operations.iter().map(|one| (one.name.as_str(), one.span_kind.as_str())).collect();
        assert_eq!(found, expected, "{service} {kind}");
        assert_eq!(answer.operation_names, expected.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>());
    }

    let mut reader = TraceReaderClient::new(storage.clone());
    let request = jaeger_storage_v2::FindTraceSummariesRequest { query: Some(storage_v2_query()) };
    let messages = collect(reader.find_trace_summaries(request).await.unwrap().into_inner()).await.unwrap();
    let summary = &messages[0].summaries[0];
    assert_eq!((summary.trace_id.as_slice(), summary.span_count, summary.error_span_count), (&[1; 16][..], 2, 1));
    assert_eq!((summary.root_service_name.as_str(), summary.root_operation_name.as_str()), ("shop", "step 1"));
    let names: Vec<_> = summary.services.iter().map(|one| (one.name.as_str(), one.span_count)).collect();
    assert_eq!((names, summary.orphan_span_count), (vec![("shop", 1), ("stock", 1)], 0));
    let request = jaeger_storage_v2::FindTraceIDsRequest { query: Some(storage_v2_query()) };
    let ids = reader.find_trace_i_ds(request).await.unwrap().into_inner().trace_ids;
    assert_eq!(ids.len(), 1);
    assert_eq!(ids[0].start, Some(Timestamp { seconds: (START / 1_000_000_000) as i64, nanos: 1 }));
    let request = jaeger_storage_v1::FindTraceIDsRequest { query: Some(Default::default()) };
    let ids = SpanReaderPluginClient::new(storage.clone()).find_trace_i_ds(request).await.unwrap().into_inner();
    assert_eq!(ids.trace_ids, [vec![1; 16]]);

    let at = |seconds| Some(Timestamp { seconds: (START / 1_000_000_000) as i64 + seconds, nanos: 0 });
    let request = jaeger_storage_v2::GetDependenciesRequest { start_time: at(-10), end_time: at(10) };
    let mut reader = DependencyReaderClient::new(storage);
    let edges = reader.get_dependencies(request).await.unwrap().into_inner().dependencies;
    let edges: Vec<_> = edges.iter().map(|one| (one.parent.as_str(), one.child.as_str(), one.call_count)).collect();
    assert_eq!(edges, [("shop", "stock", 1)]);

    let mut metrics = MetricsQueryServiceClient::new(port);
    let least = metrics.get_min_step_duration(GetMinStepDurationRequest {}).await.unwrap().into_inner();
    assert_eq!(least.min_step, Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }));
    let base = MetricsQueryBaseRequest { service_names: vec!["stock".into()], end_time: at(60), ..Default::default() };
    let request = GetLatenciesRequest { base_request: Some(base), quantile: 0.95 };
    let family = metrics.get_latencies(request).await.unwrap().into_inner().metrics.unwrap();
    assert_eq!((family.name.as_str(), family.metrics.len()), ("service_latencies", 1));
}

/// What each question is refused with.
#[tokio::test]
async fn refusals() {
    let (port, storage) = (query_port(Vec::new()).await, storage_port(Vec::new()).await);
    let (mut v2, mut v3) = (V2::new(port.clone()), V3::new(port.clone()));
    let said = |status: Status| (status.code(), status.message().to_owned());
    let invalid = |text: &str| (Code::InvalidArgument, text.to_owned());
    let missing = (Code::NotFound, "trace not found".to_owned());

    let by_id = |id: &[u8]| jaeger_v2::GetTraceRequest { trace_id: id.to_vec(), ..Default::default() };
    let status = said(v2.get_trace(by_id(&[1; 16])).await.unwrap_err());
    assert_eq!(status, missing);
    for id in [&[][..], &[0; 16]] {
        let status = said(v2.get_trace(by_id(id)).await.unwrap_err());
        assert_eq!(status, invalid("uninitialized TraceID is not allowed"));
    }
    assert_eq!(said(v2.find_traces(jaeger_v2::FindTracesRequest::default()).await.unwrap_err()), invalid("missing query"));
    let never = jaeger_v2::GetDependenciesRequest { start_time: YEAR_ONE, end_time: None };
    let status = said(v2.get_dependencies(never).await.unwrap_err());
    assert_eq!(status, invalid("StartTime and EndTime must be initialized."));
    let archive = jaeger_v2::ArchiveTraceRequest { trace_id: vec![1; 16], ..Default::default() };
    let status = said(v2.archive_trace(archive).await.unwrap_err());
    assert_eq!(status, (Code::Internal, "failed to archive trace: archive span storage was not configured".to_owned()));
    let none = collect(v2.find_traces(v2_query(0)).await.unwrap().into_inner()).await.unwrap();
    assert!(none.is_empty(), "nothing found is no failure");

    let by_id = |id: &str| jaeger_v3::GetTraceRequest { trace_id: id.into(), ..Default::default() };
    assert_eq!(said(v3.get_trace(by_id("a1")).await.unwrap_err()), missing);
    assert_eq!(v3.get_trace(by_id("what")).await.unwrap_err().code(), Code::InvalidArgument);
    let query = Some(jaeger_v3::TraceQueryParameters::default());
    let status = said(v3.find_traces(jaeger_v3::FindTracesRequest { query }).await.unwrap_err());
    assert_eq!(status, invalid("start time min and max are required parameters"));

    let mut reader = SpanReaderPluginClient::new(storage.clone());
    let by_id = jaeger_storage_v1::GetTraceRequest { trace_id: vec![1; 16], ..Default::default() };
    assert_eq!(said(reader.get_trace(by_id.clone()).await.unwrap_err()), missing);
    let status = said(ArchiveSpanReaderPluginClient::new(storage.clone()).get_archive_trace(by_id).await.unwrap_err());
    assert_eq!(status, (Code::Unimplemented, "archive span storage was not configured".to_owned()));
    let mut reader = TraceReaderClient::new(storage);
    // A filter stands alone, and is looked at.
    let filter = |op: &str| Some(spanhouse_proto::jaeger_expression::Call { op: op.into(), args: Vec::new() });
    let both =
        jaeger_storage_v2::TraceQueryParameters { service_name: "shop".into(), filter: filter("and"), ..storage_v2_query() };
    let status = said(reader.find_traces(jaeger_storage_v2::FindTracesRequest { query: Some(both) }).await.unwrap_err());
    assert!(status.0 == Code::InvalidArgument && status.1.starts_with("a filter stands in place of"), "{status:?}");
    let odd = jaeger_storage_v2::TraceQueryParameters { filter: filter("what"), ..storage_v2_query() };
    let status = said(reader.find_traces(jaeger_storage_v2::FindTracesRequest { query: Some(odd) }).await.unwrap_err());
    assert_eq!(status, invalid("malformed filter: unknown operator `what`"));
    let query = vec![jaeger_storage_v2::GetTraceParams { trace_id: vec![1; 16], ..Default::default() }];
    let request = jaeger_storage_v2::GetTracesRequest { query };
    let none = collect(reader.get_traces(request).await.unwrap().into_inner()).await.unwrap();
    assert!(none.is_empty(), "in version 2 a trace that is not there is no failure");

    let mut metrics = MetricsQueryServiceClient::new(port);
    let nobody = GetLatenciesRequest { base_request: None, quantile: 0.5 };
    let status = said(metrics.get_latencies(nobody).await.unwrap_err());
    assert_eq!(status, invalid("please provide at least one service name"));
}

#[tokio::test]
async fn tenants_are_named_as_jaeger_does() {
    let router = query_router(&queries(trace(1, 1, 0), None, true)).await.unwrap();
    let mut client = V2::new(router);
    let mut ask = async |headers: &[(&'static str, &'static str)]| {
        let mut request = Request::new(jaeger_v2::GetServicesRequest {});
        for (name, value) in headers {
            request.metadata_mut().append(*name, value.parse().unwrap());
        }
        let answer = client.get_services(request).await;
        answer.map(|answer| answer.into_inner().services).map_err(|status| (status.code(), status.message().to_owned()))
    };
    assert_eq!(ask(&[("x-tenant", "x")]).await, Ok(vec!["shop".to_owned()]));
    assert_eq!(ask(&[("x-scope-orgid", "x")]).await, Ok(vec!["shop".to_owned()]));
    assert_eq!(ask(&[("x-tenant", "y")]).await, Ok(Vec::new()));
    assert_eq!(ask(&[]).await, Err((Code::Unauthenticated, "missing tenant header".to_owned())));
    let two = ask(&[("x-tenant", "x"), ("x-tenant", "y")]).await;
    assert_eq!(two, Err((Code::PermissionDenied, "extra tenant header".to_owned())));
}

/// What a storage can do, it is asked before anybody's data is.
#[tokio::test]
async fn capabilities_are_told_to_nobody_in_particular() {
    for multitenancy in [false, true] {
        let storage = storage_routes(&queries(Vec::new(), None, multitenancy)).await.unwrap();
        let mut capabilities = PluginCapabilitiesClient::new(storage.clone());
        let can = capabilities.capabilities(jaeger_storage_v1::CapabilitiesRequest {}).await.unwrap().into_inner();
        assert!(!can.streaming_span_writer, "streams of Jaeger lose spans");
        let mut capabilities = jaeger_storage_v2::capabilities_client::CapabilitiesClient::new(storage);
        let can = capabilities.get_capabilities(jaeger_storage_v2::GetCapabilitiesRequest {}).await.unwrap().into_inner();
        assert!(can.search.unwrap().without_service_name);
    }
}

#[tokio::test]
async fn an_archive_is_read_and_written() {
    let queries = queries([trace(1, 1, 0), trace(2, 2, 0)].concat(), Some(trace(3, 1, 0)), false);
    let (port, storage) = (query_router(&queries).await.unwrap(), storage_routes(&queries).await.unwrap());
    let mut v2 = V2::new(port);
    let mut archive = async |id: u8| {
        let request = jaeger_v2::ArchiveTraceRequest { trace_id: vec![id; 16], ..Default::default() };
        v2.archive_trace(request).await.map_err(|status| status.code()).err()
    };
    assert_eq!([archive(1).await, archive(2).await, archive(9).await], [None, Some(Code::Internal), Some(Code::NotFound)]);
    let request = |id: u8| jaeger_storage_v1::GetTraceRequest { trace_id: vec![id; 16], ..Default::default() };
    let mut reader = ArchiveSpanReaderPluginClient::new(storage.clone());
    let chunks = collect(reader.get_archive_trace(request(3)).await.unwrap().into_inner()).await.unwrap();
    assert_eq!(chunks[0].spans.len(), 1);
    assert_eq!(reader.get_archive_trace(request(1)).await.unwrap_err().code(), Code::NotFound);
    let mut capabilities = PluginCapabilitiesClient::new(storage);
    let can = capabilities.capabilities(jaeger_storage_v1::CapabilitiesRequest {}).await.unwrap().into_inner();
    assert!(can.archive_span_reader && can.archive_span_writer && !can.streaming_span_writer);
}

#[tokio::test]
async fn ports_say_what_they_serve() {
    let (port, storage) = (query_port(Vec::new()).await, storage_port(Vec::new()).await);
    for (router, names) in [
        (
            &port,
            &["", "jaeger.api_v2.QueryService", "jaeger.api_v3.QueryService", "jaeger.api_v2.metrics.MetricsQueryService"][..],
        ),
        (
            &storage,
            &[
                "",
                "jaeger.storage.v2.TraceReader",
                "jaeger.storage.v2.DependencyReader",
                "jaeger.storage.v2.TraceWriter",
                "jaeger.storage.v2.Capabilities",
            ],
        ),
    ] {
        let mut health = HealthClient::new(router.clone());
        for name in names {
            let answer = health.check(HealthCheckRequest { service: (*name).to_owned() }).await.unwrap().into_inner();
            assert_eq!(answer.status, 1, "{name}");
        }
        let nobody = health.check(HealthCheckRequest { service: "nobody".into() }).await.unwrap_err();
        assert_eq!(nobody.code(), Code::NotFound);
    }
    let mut capabilities = CapabilitiesClient::new(storage.clone());
    let can = capabilities.get_capabilities(jaeger_storage_v2::GetCapabilitiesRequest {}).await.unwrap().into_inner();
    let search = can.search.unwrap();
    assert!(search.without_service_name && search.same_span_conjunction);
    let filter = search.filter.unwrap();
    assert!(filter.levels.contains(&"event".to_owned()) && filter.operators.contains(&"not_in".to_owned()));

    let asked = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("jaeger.storage.v2.TraceReader".into()),
    ];
    let requests = asked.map(|asked| v1::ServerReflectionRequest { host: String::new(), message_request: Some(asked) });
    let mut reflection = ServerReflectionClient::new(storage.clone());
    let answers = reflection.server_reflection_info(stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    let MessageResponse::ListServicesResponse(list) = &answers[0] else { panic!("{answers:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["jaeger.storage.v1.SpanReaderPlugin", "jaeger.storage.v2.TraceReader", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    assert!(!names.contains(&"jaeger.api_v2.QueryService") && !names.contains(&"jaeger.storage.v2.TraceWriter"));
    let MessageResponse::FileDescriptorResponse(files) = &answers[1] else { panic!("{answers:?}") };
    let file = prost_types::FileDescriptorProto::decode(&files.file_descriptor_proto[0][..]).unwrap();
    assert_eq!(file.package(), "jaeger.storage.v2");
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut older = v1alpha::server_reflection_client::ServerReflectionClient::new(port);
    let answers = older.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
    let answers: Vec<_> = answers.collect().await;
    assert!(answers.len() == 1 && answers[0].is_ok());
}

/// A query that fails in the middle says so, whatever was sent before.
#[tokio::test]
async fn a_failure_ends_a_stream() {
    let whole = |id: u8| crate::jaeger::WholeTrace {
        trace_id: TraceId([id; 16]),
        trace: crate::assemble::gather(vec![trace(id, 1, 0)]),
        partial: None,
        lease: Share::new("test", 1000).count(1),
    };
    let error = || crate::jaeger::JaegerError::Invalid("what".into());
    let traces = stream::iter([Ok(whole(1)), Err(error()), Ok(whole(2))]).boxed();
    let messages: Vec<_> = super::messages::messages(traces, "trying", super::messages::stored()).collect().await;
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[1].as_ref().unwrap_err().message(), "what");
    // What is missing is told in a trailer of a good end.
    let partial = crate::jaeger::WholeTrace { partial: Some("lost".into()), ..whole(1) };
    let traces = stream::iter([Ok(partial), Ok(whole(2))]).boxed();
    let messages: Vec<_> = super::messages::messages(traces, "trying", super::messages::stored()).collect().await;
    let end = messages[2].as_ref().unwrap_err();
    assert_eq!((messages.len(), end.code()), (3, Code::Ok));
    assert_eq!(end.metadata().get("x-spanhouse-partial").unwrap(), "lost");
}

/// Where a message has no place for it, in the metadata.
#[tokio::test]
async fn what_is_missing_is_told_in_metadata() {
    fn told<M>(answer: Result<tonic::Response<M>, Status>) -> String {
        let metadata = answer.unwrap().metadata().clone();
        metadata.get("x-spanhouse-partial").map(|why| why.to_str().unwrap().to_owned()).unwrap_or_default()
    }
    async fn ended<M>(answer: Result<tonic::Response<Streaming<M>>, Status>) -> String {
        let mut stream = answer.unwrap().into_inner();
        while stream.message().await.unwrap().is_some() {}
        let trailers = stream.trailers().await.unwrap().unwrap_or_default();
        trailers.get("x-spanhouse-partial").map(|why| why.to_str().unwrap().to_owned()).unwrap_or_default()
    }
    let [start_time, end_time] = [1, 2].map(|seconds| Some(Timestamp { seconds, nanos: 0 }));
    let engine = Arc::new(FakeEngine::partial("a block is lost"));
    let queries = JaegerQueries::new(JaegerDeps { engine, ..deps(Vec::new(), None, false) });
    let (port, storage) = (query_router(&queries).await.unwrap(), storage_routes(&queries).await.unwrap());
    let mut client = V2::new(port.clone());
    let mut all = vec![
        told(client.get_services(jaeger_v2::GetServicesRequest::default()).await),
        told(client.get_operations(jaeger_v2::GetOperationsRequest::default()).await),
        told(client.get_dependencies(jaeger_v2::GetDependenciesRequest { start_time, end_time }).await),
        ended(client.find_traces(v2_query(0)).await).await,
    ];
    let mut client = V3::new(port.clone());
    all.push(told(client.get_services(jaeger_v3::GetServicesRequest::default()).await));
    all.push(told(client.get_operations(jaeger_v3::GetOperationsRequest::default()).await));
    let base = MetricsQueryBaseRequest { service_names: vec!["shop".into()], ..Default::default() };
    let request = GetLatenciesRequest { base_request: Some(base), quantile: 0.5 };
    all.push(told(MetricsQueryServiceClient::new(port).get_latencies(request).await));
    let mut client = SpanReaderPluginClient::new(storage.clone());
    all.push(told(client.get_services(jaeger_storage_v1::GetServicesRequest::default()).await));
    let mut client = TraceReaderClient::new(storage.clone());
    all.push(told(client.get_services(jaeger_storage_v2::GetServicesRequest::default()).await));
    let request = jaeger_storage_v2::FindTraceIDsRequest { query: Some(storage_v2_query()) };
    all.push(told(client.find_trace_i_ds(request).await));
    let request = jaeger_storage_v2::FindTraceSummariesRequest { query: Some(storage_v2_query()) };
    all.push(ended(client.find_trace_summaries(request).await).await);
    let mut client = DependencyReaderClient::new(storage);
    all.push(told(client.get_dependencies(jaeger_storage_v2::GetDependenciesRequest { start_time, end_time }).await));
    assert_eq!(all, vec!["a block is lost"; 12]);
}

/// Not to be mistaken for a client's fault.
#[test]
fn resources_are_told_apart_from_refusals() {
    use crate::engine::EngineError;
    use crate::find_trace::FindError;
    use crate::jaeger::JaegerError;
    for (error, code) in [
        (JaegerError::Engine(EngineError::Busy), Code::ResourceExhausted),
        (JaegerError::Engine(EngineError::OverBudget("x".into())), Code::ResourceExhausted),
        (JaegerError::Engine(EngineError::Deadline), Code::DeadlineExceeded),
        (JaegerError::Find(FindError::Deadline), Code::DeadlineExceeded),
        (JaegerError::Engine(EngineError::Evaluation("x".into())), Code::Internal),
        (JaegerError::NoArchive, Code::Internal),
        (JaegerError::Invalid("x".repeat(9000)), Code::InvalidArgument),
    ] {
        let status = super::call::refused("trying", &error);
        assert!(status.code() == code && status.message().len() < 2100, "{error:?}: {status:?}");
    }
}
