//! Clients of every interface that serves Jaeger's searches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use futures::stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use prost_types::{Duration, Timestamp};
use serde_json::Value as Json;
use spanhouse_proto::jaeger_storage_v1::WriteSpanRequest;
use spanhouse_proto::jaeger_storage_v1::archive_span_reader_plugin_client::ArchiveSpanReaderPluginClient;
use spanhouse_proto::jaeger_storage_v1::archive_span_writer_plugin_client::ArchiveSpanWriterPluginClient;
use spanhouse_proto::jaeger_storage_v1::span_reader_plugin_client::SpanReaderPluginClient;
use spanhouse_proto::jaeger_storage_v1::span_writer_plugin_client::SpanWriterPluginClient;
use spanhouse_proto::jaeger_storage_v1::streaming_span_writer_plugin_client::StreamingSpanWriterPluginClient;
use spanhouse_proto::jaeger_storage_v2::dependency_reader_client::DependencyReaderClient;
use spanhouse_proto::jaeger_storage_v2::trace_reader_client::TraceReaderClient;
use spanhouse_proto::jaeger_storage_v2::{AnyValue, KeyValue};
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_service::trace_service_client::TraceServiceClient;
use spanhouse_proto::otlp_trace::{ResourceSpans, TracesData};
use spanhouse_proto::{EncodedTraces, jaeger_storage_v1, jaeger_storage_v2, jaeger_v2, jaeger_v3};
use tokio::net::TcpStream;
use tonic::{Code, Streaming};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use super::data::{Case, value_text};
use crate::harness::ask::path;
use crate::harness::otlp::{now, span_id};
use crate::harness::server::{Answer, Server};

/// What clients take at once unless told otherwise.
const CLIENT_LIMIT: usize = 4 << 20;

type Channel = BoxCloneSyncService<http::Request<tonic::body::Body>, http::Response<hyper::body::Incoming>, hyper::Error>;

/// A connection as any client of gRPC makes it.
async fn connect(port: SocketAddr) -> Channel {
    let io = TokioIo::new(TcpStream::connect(port).await.expect("a connection"));
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    tokio::spawn(connection);
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| sender.clone().send_request(request));
    let origin: http::Uri = format!("http://{port}").parse().expect("a URI");
    BoxCloneSyncService::new(service.map_request(move |mut request: http::Request<tonic::body::Body>| {
        let path = request.uri().path_and_query().expect("a path").clone();
        let mut parts = origin.clone().into_parts();
        parts.path_and_query = Some(path);
        *request.uri_mut() = http::Uri::from_parts(parts).expect("a URI");
        request
    }))
}

/// Connections to the three ports.
pub(super) struct Jaeger {
    http: reqwest::Client,
    ui: SocketAddr,
    query: Channel,
    storage: Channel,
}

/// Ids and starts of spans.
type Spans = BTreeMap<u128, Vec<(Vec<u8>, u64)>>;

pub(super) fn by_trace(groups: &[ResourceSpans]) -> Spans {
    let mut all = Spans::new();
    for span in groups.iter().flat_map(|group| &group.scope_spans).flat_map(|scope| &scope.spans) {
        all.entry(trace_id(&span.trace_id)).or_default().push((span.span_id.clone(), span.start_time_unix_nano));
    }
    all
}

fn trace_id(bytes: &[u8]) -> u128 {
    u128::from_be_bytes(bytes.try_into().expect("16 bytes"))
}

pub(super) fn timestamp(nanos: u64) -> Option<Timestamp> {
    Some(Timestamp { seconds: (nanos / 1_000_000_000) as i64, nanos: (nanos % 1_000_000_000) as i32 })
}

fn duration(nanos: u64) -> Option<Duration> {
    Some(Duration { seconds: (nanos / 1_000_000_000) as i64, nanos: (nanos % 1_000_000_000) as i32 })
}

fn tags(case: &Case) -> BTreeMap<String, String> {
    case.attributes.iter().map(|pair| (pair.key.clone(), value_text(pair))).collect()
}

/// A span in Jaeger's model, as its older writers send it.
pub(super) fn jaeger_span(trace: u128, n: u64) -> jaeger_v2::Span {
    let process = jaeger_v2::Process { service_name: "shop".into(), tags: Vec::new() };
    jaeger_v2::Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: span_id(n),
        operation_name: format!("step {n}"),
        start_time: timestamp(now()),
        duration: duration(n),
        process: Some(process),
        ..Default::default()
    }
}

/// Every message of a stream of traces. Fails unless each is of one trace, none resumes a trace, and all are as small as they must be.
async fn traces(mut stream: Streaming<EncodedTraces>) -> Vec<ResourceSpans> {
    let (mut all, mut seen, mut last) = (Vec::new(), BTreeSet::new(), None);
    while let Some(message) = stream.message().await.expect("a message") {
        assert!(message.encoded_len() < CLIENT_LIMIT, "{} bytes", message.encoded_len());
        let data = TracesData::decode(&message.0[..]).expect("traces");
        let ids: Vec<u128> = by_trace(&data.resource_spans).into_keys().collect();
        let [id] = ids[..] else { panic!("a message of {} traces", ids.len()) };
        assert!(last == Some(id) || seen.insert(id), "{id:032x} resumed");
        last = Some(id);
        all.extend(data.resource_spans);
    }
    all
}

/// The same of Jaeger's model: number of spans by trace.
fn counted(chunks: Vec<Vec<jaeger_v2::Span>>, most: usize) -> BTreeMap<u128, usize> {
    let (mut all, mut last) = (BTreeMap::new(), None);
    for chunk in chunks {
        assert!(!chunk.is_empty() && chunk.len() <= most, "{} spans", chunk.len());
        let id = trace_id(&chunk[0].trace_id);
        for span in &chunk {
            assert_eq!(trace_id(&span.trace_id), id, "a message of two traces");
            assert!(
                span.process.as_ref().is_some_and(|process| !process.service_name.is_empty()) && span.process_id.is_empty()
            );
        }
        assert!(last == Some(id) || !all.contains_key(&id), "{id:032x} resumed");
        last = Some(id);
        *all.entry(id).or_default() += chunk.len();
    }
    all
}

async fn messages<M>(mut stream: Streaming<M>) -> Vec<M> {
    let mut all = Vec::new();
    while let Some(message) = stream.message().await.expect("a message") {
        all.push(message);
    }
    all
}

fn of_trace(id: u128) -> jaeger_storage_v1::GetTraceRequest {
    jaeger_storage_v1::GetTraceRequest { trace_id: id.to_be_bytes().to_vec(), ..Default::default() }
}

/// How a stream ends, or that it does not begin.
async fn code<M>(stream: Result<tonic::Response<Streaming<M>>, tonic::Status>) -> Code {
    let read = async {
        let mut stream = stream?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    read.await.map_or_else(|status| status.code(), |()| Code::Ok)
}

impl Jaeger {
    pub(super) async fn of(server: &Server) -> Self {
        let port = |name: &str| server.port(name);
        Self {
            http: server.client.clone(),
            ui: port("Jaeger API"),
            query: connect(port("Jaeger gRPC")).await,
            storage: connect(port("Jaeger storage")).await,
        }
    }

    pub(super) fn trace_reader(&self) -> TraceReaderClient<Channel> {
        TraceReaderClient::new(self.storage.clone())
    }

    pub(super) fn span_reader(&self) -> SpanReaderPluginClient<Channel> {
        SpanReaderPluginClient::new(self.storage.clone())
    }

    pub(super) fn dependency_reader(&self) -> DependencyReaderClient<Channel> {
        DependencyReaderClient::new(self.storage.clone())
    }

    fn query_v3(&self) -> jaeger_v3::query_service_client::QueryServiceClient<Channel> {
        jaeger_v3::query_service_client::QueryServiceClient::new(self.query.clone())
    }

    pub(super) async fn export(&self, resource_spans: Vec<ResourceSpans>) {
        let mut client = TraceServiceClient::new(self.storage.clone());
        let answer = client.export(ExportTraceServiceRequest { resource_spans }).await.expect("an answer").into_inner();
        assert_eq!(answer.partial_success.unwrap_or_default().rejected_spans, 0);
    }

    pub(super) async fn write_v1(&self, span: jaeger_v2::Span) {
        let mut client = SpanWriterPluginClient::new(self.storage.clone());
        client.write_span(WriteSpanRequest { span: Some(span) }).await.expect("an answer");
    }

    pub(super) async fn write_stream_v1(&self, spans: Vec<jaeger_v2::Span>) {
        let mut client = StreamingSpanWriterPluginClient::new(self.storage.clone());
        let requests = stream::iter(spans.into_iter().map(|span| WriteSpanRequest { span: Some(span) }));
        client.write_span_stream(requests).await.expect("an answer");
    }

    /// Into the archive, by the writer that is for it.
    pub(super) async fn write_archive_v1(&self, span: jaeger_v2::Span) {
        let mut client = ArchiveSpanWriterPluginClient::new(self.storage.clone());
        client.write_archive_span(WriteSpanRequest { span: Some(span) }).await.expect("an answer");
    }

    /// The status of archiving a trace by the HTTP API.
    pub(super) async fn archive(&self, id: u128) -> u16 {
        let request = self.http.post(format!("http://{}/api/archive/{id:x}", self.ui));
        Answer::of(request).await.expect("an answer").status
    }

    /// Traces by id over storage v2.
    pub(super) async fn traces(&self, ids: &[u128]) -> Vec<ResourceSpans> {
        let param =
            |id: &u128| jaeger_storage_v2::GetTraceParams { trace_id: id.to_be_bytes().to_vec(), ..Default::default() };
        let request = jaeger_storage_v2::GetTracesRequest { query: ids.iter().map(param).collect() };
        traces(self.trace_reader().get_traces(request).await.expect("a stream").into_inner()).await
    }

    pub(super) async fn trace_v3(&self, request: jaeger_v3::GetTraceRequest) -> Vec<ResourceSpans> {
        traces(self.query_v3().get_trace(request).await.expect("a stream").into_inner()).await
    }

    pub(super) async fn trace_v1(&self, id: u128) -> BTreeMap<u128, usize> {
        let chunks = messages(self.span_reader().get_trace(of_trace(id)).await.expect("a stream").into_inner()).await;
        counted(chunks.into_iter().map(|chunk| chunk.spans).collect(), 1000)
    }

    /// As [`Self::trace_v1`], by the reader of the archive.
    pub(super) async fn archived_v1(&self, id: u128) -> BTreeMap<u128, usize> {
        let mut client = ArchiveSpanReaderPluginClient::new(self.storage.clone());
        let chunks = messages(client.get_archive_trace(of_trace(id)).await.expect("a stream").into_inner()).await;
        counted(chunks.into_iter().map(|chunk| chunk.spans).collect(), 1000)
    }

    pub(super) async fn archived_v1_code(&self, id: u128) -> Code {
        code(ArchiveSpanReaderPluginClient::new(self.storage.clone()).get_archive_trace(of_trace(id)).await).await
    }

    fn v2_query(case: &Case) -> jaeger_storage_v2::TraceQueryParameters {
        use spanhouse_proto::jaeger_storage_v2::any_value::Value as Storage;
        use spanhouse_proto::otlp_common::any_value::Value;
        let attribute = |pair: &spanhouse_proto::otlp_common::KeyValue| {
            // Typed, as programs may send them; the text of other kinds.
            let value = match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(Value::IntValue(value)) => Storage::IntValue(*value),
                Some(Value::BoolValue(value)) => Storage::BoolValue(*value),
                Some(Value::DoubleValue(value)) => Storage::DoubleValue(*value),
                _ => Storage::StringValue(value_text(pair)),
            };
            KeyValue { key: pair.key.clone(), value: Some(AnyValue { value: Some(value) }) }
        };
        jaeger_storage_v2::TraceQueryParameters {
            service_name: case.service.clone(),
            operation_name: case.operation.clone(),
            attributes: case.attributes.iter().map(attribute).collect(),
            start_time_min: timestamp(case.start_min),
            start_time_max: timestamp(case.start_max),
            duration_min: duration(case.duration_min),
            duration_max: duration(case.duration_max),
            search_depth: case.limit,
            filter: None,
        }
    }

    pub(super) async fn storage_v2(&self, case: &Case) -> Vec<ResourceSpans> {
        self.find_v2(Self::v2_query(case)).await
    }

    pub(super) async fn find_v2(&self, query: jaeger_storage_v2::TraceQueryParameters) -> Vec<ResourceSpans> {
        let request = jaeger_storage_v2::FindTracesRequest { query: Some(query) };
        traces(self.trace_reader().find_traces(request).await.expect("a stream").into_inner()).await
    }

    pub(super) async fn ids_v2(&self, case: &Case) -> BTreeSet<u128> {
        let request = jaeger_storage_v2::FindTraceIDsRequest { query: Some(Self::v2_query(case)) };
        let found = self.trace_reader().find_trace_i_ds(request).await.expect("ids").into_inner();
        found.trace_ids.iter().map(|found| trace_id(&found.trace_id)).collect()
    }

    /// Over storage v2 and api_v3, which must say the same: number of spans by trace.
    pub(super) async fn summaries(&self, case: &Case) -> BTreeMap<u128, usize> {
        let request = jaeger_storage_v2::FindTraceSummariesRequest { query: Some(Self::v2_query(case)) };
        let storage = messages(self.trace_reader().find_trace_summaries(request).await.expect("a stream").into_inner());
        let storage: BTreeMap<u128, usize> = storage
            .await
            .into_iter()
            .flat_map(|message| message.summaries)
            .inspect(|one| assert!(!one.services.is_empty() && one.min_start_time_unix_nano > 0))
            .map(|one| (trace_id(&one.trace_id), one.span_count as usize))
            .collect();
        let request = jaeger_v3::FindTraceSummariesRequest { query: Some(Self::v3_query(case)) };
        let query = messages(self.query_v3().find_trace_summaries(request).await.expect("a stream").into_inner()).await;
        let query: BTreeMap<u128, usize> = query
            .into_iter()
            .flat_map(|message| message.summaries)
            .map(|one| (u128::from_str_radix(&one.trace_id, 16).expect("hex"), one.span_count as usize))
            .collect();
        assert_eq!(storage, query, "{}", case.caption);
        storage
    }

    fn v1_query(case: &Case) -> jaeger_storage_v1::TraceQueryParameters {
        jaeger_storage_v1::TraceQueryParameters {
            service_name: case.service.clone(),
            operation_name: case.operation.clone(),
            tags: tags(case),
            start_time_min: timestamp(case.start_min),
            start_time_max: timestamp(case.start_max),
            duration_min: duration(case.duration_min),
            duration_max: duration(case.duration_max),
            num_traces: case.limit,
        }
    }

    pub(super) async fn storage_v1(&self, case: &Case) -> BTreeMap<u128, usize> {
        let request = jaeger_storage_v1::FindTracesRequest { query: Some(Self::v1_query(case)) };
        let chunks = messages(self.span_reader().find_traces(request).await.expect("a stream").into_inner()).await;
        counted(chunks.into_iter().map(|chunk| chunk.spans).collect(), 1000)
    }

    pub(super) async fn ids_v1(&self, case: &Case) -> BTreeSet<u128> {
        let request = jaeger_storage_v1::FindTraceIDsRequest { query: Some(Self::v1_query(case)) };
        let found = self.span_reader().find_trace_i_ds(request).await.expect("ids").into_inner();
        found.trace_ids.iter().map(|id| trace_id(id)).collect()
    }

    fn v3_query(case: &Case) -> jaeger_v3::TraceQueryParameters {
        jaeger_v3::TraceQueryParameters {
            service_name: case.service.clone(),
            operation_name: case.operation.clone(),
            attributes: tags(case),
            start_time_min: timestamp(case.start_min),
            start_time_max: timestamp(case.start_max),
            duration_min: duration(case.duration_min),
            duration_max: duration(case.duration_max),
            search_depth: case.limit,
            raw_traces: true,
            filter: None,
        }
    }

    pub(super) async fn api_v3(&self, case: &Case) -> Vec<ResourceSpans> {
        let request = jaeger_v3::FindTracesRequest { query: Some(Self::v3_query(case)) };
        traces(self.query_v3().find_traces(request).await.expect("a stream").into_inner()).await
    }

    pub(super) async fn api_v2(&self, case: &Case) -> BTreeMap<u128, usize> {
        let query = jaeger_v2::TraceQueryParameters {
            service_name: case.service.clone(),
            operation_name: case.operation.clone(),
            tags: tags(case),
            start_time_min: timestamp(case.start_min),
            start_time_max: timestamp(case.start_max),
            duration_min: duration(case.duration_min),
            duration_max: duration(case.duration_max),
            search_depth: case.limit,
            raw_traces: false,
        };
        let mut client = jaeger_v2::query_service_client::QueryServiceClient::new(self.query.clone());
        let request = jaeger_v2::FindTracesRequest { query: Some(query) };
        let chunks = messages(client.find_traces(request).await.expect("a stream").into_inner()).await;
        counted(chunks.into_iter().map(|chunk| chunk.spans).collect(), 10)
    }

    async fn get(&self, path: &str) -> Answer {
        let request = self.http.get(format!("http://{}{path}", self.ui));
        Answer::of(request).await.unwrap_or_else(|error| panic!("GET {path}: {error:?}"))
    }

    async fn json(&self, path: &str) -> Json {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// Over `/api/traces`.
    pub(super) async fn http(&self, case: &Case) -> BTreeMap<u128, usize> {
        let (start, end) = ((case.start_min / 1000).to_string(), (case.start_max / 1000).to_string());
        let (min, max) = (format!("{}ns", case.duration_min), format!("{}ns", case.duration_max));
        let (limit, tags) = (case.limit.to_string(), serde_json::to_string(&tags(case)).expect("JSON"));
        let mut asked = vec![("service", &*case.service), ("start", &start), ("end", &end), ("limit", &limit)];
        let more = [
            ("operation", &*case.operation, !case.operation.is_empty()),
            ("minDuration", &min, case.duration_min > 0),
            ("maxDuration", &max, case.duration_max > 0),
            ("tags", &tags, !case.attributes.is_empty()),
        ];
        asked.extend(more.into_iter().filter(|(_, _, set)| *set).map(|(name, value, _)| (name, value)));
        let answer = self.json(&path("/api/traces", &asked)).await;
        answer["data"].as_array().expect("traces").iter().map(legacy).collect()
    }

    /// Over `/api/v3/traces`.
    pub(super) async fn http_v3(&self, case: &Case) -> BTreeMap<u128, usize> {
        let (start, end) = (rfc3339(case.start_min), rfc3339(case.start_max));
        let (min, max) = (format!("{}ns", case.duration_min), format!("{}ns", case.duration_max));
        let (limit, tags) = (case.limit.to_string(), serde_json::to_string(&tags(case)).expect("JSON"));
        let mut asked = vec![("query.startTimeMin", &*start), ("query.startTimeMax", &*end), ("query.searchDepth", &*limit)];
        let more = [
            ("query.serviceName", &*case.service, !case.service.is_empty()),
            ("query.operationName", &*case.operation, !case.operation.is_empty()),
            ("query.durationMin", &min, case.duration_min > 0),
            ("query.durationMax", &max, case.duration_max > 0),
            ("query.attributes", &tags, !case.attributes.is_empty()),
        ];
        asked.extend(more.into_iter().filter(|(_, _, set)| *set).map(|(name, value, _)| (name, value)));
        let answer = self.json(&path("/api/v3/traces", &asked)).await;
        let list = |json: &Json| json.as_array().cloned().unwrap_or_default();
        let groups = list(&answer["result"]["resourceSpans"]);
        let scopes = groups.iter().flat_map(|group| list(&group["scopeSpans"]));
        let mut counts = BTreeMap::new();
        for span in scopes.flat_map(|scope| list(&scope["spans"])) {
            *counts.entry(hex_id(&span["traceId"])).or_default() += 1;
        }
        counts
    }

    pub(super) async fn trace_http(&self, id: u128) -> BTreeMap<u128, usize> {
        let answer = self.json(&format!("/api/traces/{id:x}")).await;
        answer["data"].as_array().expect("traces").iter().map(legacy).collect()
    }
}

fn hex_id(json: &Json) -> u128 {
    u128::from_str_radix(json.as_str().expect("an id"), 16).expect("hex")
}

fn legacy(trace: &Json) -> (u128, usize) {
    (hex_id(&trace["traceID"]), trace["spans"].as_array().expect("spans").len())
}

/// A time as text, to the nanosecond.
fn rfc3339(nanos: u64) -> String {
    let (days, within) = (nanos / 86_400_000_000_000, nanos % 86_400_000_000_000);
    // Days since 1970 as a date of the Gregorian calendar, counted in eras of 400 years from a first of March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, year) = (if month < 10 { month + 3 } else { month - 9 }, era * 400 + year);
    let year = if month <= 2 { year + 1 } else { year };
    let (seconds, fraction) = (within / 1_000_000_000, within % 1_000_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

#[test]
fn times_as_text() {
    for (nanos, text) in [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1_485_449_191_639_875_000, "2017-01-26T16:46:31.639875000Z"),
        (1_582_934_400_000_000_001, "2020-02-29T00:00:00.000000001Z"),
        (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
    ] {
        assert_eq!(rfc3339(nanos), text);
    }
}
