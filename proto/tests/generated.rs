//! Holds the committed code to the schemas, and the wire to what clients expect.

use std::path::Path;
use std::{env, fs};

use prost::Message as _;
use spanhouse_proto::{otlp_trace, tempopb};

const SCHEMAS: [&str; 16] = [
    "jaeger_collector.proto",
    "jaeger_expression.proto",
    "jaeger_metrics.proto",
    "jaeger_model.proto",
    "jaeger_query.proto",
    "jaeger_query_v3.proto",
    "jaeger_sampling.proto",
    "jaeger_storage_v1.proto",
    "jaeger_storage_v2.proto",
    "otlp_common.proto",
    "otlp_resource.proto",
    "otlp_trace.proto",
    "otlp_trace_service.proto",
    "rpc_status.proto",
    "tempo.proto",
    "zipkin.proto",
];

const GENERATED: [&str; 13] = [
    "google.rpc.rs",
    "jaeger.api_v2.metrics.rs",
    "jaeger.api_v2.rs",
    "jaeger.api_v3.rs",
    "jaeger.expression.v1.rs",
    "jaeger.storage.v1.rs",
    "jaeger.storage.v2.rs",
    "opentelemetry.proto.collector.trace.v1.rs",
    "opentelemetry.proto.common.v1.rs",
    "opentelemetry.proto.resource.v1.rs",
    "opentelemetry.proto.trace.v1.rs",
    "tempopb.rs",
    "zipkin.proto3.rs",
];

const DESCRIPTORS: &str = "descriptors.bin";

#[test]
fn generated_code_is_what_the_schemas_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    fs::create_dir_all(&fresh).unwrap();
    let mut descriptors = protox::compile(SCHEMAS, [root.join("schema")]).unwrap();
    // Jaeger's services answer with traces, which are passed on as bytes; everybody else reads them.
    for (dir, traces) in [(&fresh, None), (&fresh.join("jaeger"), Some("crate::EncodedTraces"))] {
        fs::create_dir_all(dir).unwrap();
        let mut config = prost_build::Config::new();
        // Sorted maps: equal messages have equal bytes.
        config.btree_map(["."]);
        if let Some(traces) = traces {
            config.extern_path(".opentelemetry.proto.trace.v1.TracesData", traces);
        }
        tonic_prost_build::configure()
            .out_dir(dir)
            .build_transport(false)
            .compile_fds_with_config(descriptors.clone(), config)
            .unwrap();
    }
    // Reflection needs the messages, not where in a file each stands.
    descriptors.file.iter_mut().for_each(|file| file.source_code_info = None);
    fs::write(fresh.join(DESCRIPTORS), descriptors.encode_to_vec()).unwrap();

    let update = env::var_os("UPDATE_GENERATED").is_some();
    for name in GENERATED.into_iter().chain([DESCRIPTORS]) {
        let from = if name.starts_with("jaeger.") { fresh.join("jaeger") } else { fresh.clone() };
        let new = fs::read(from.join(name)).unwrap();
        let committed = root.join("src/generated").join(name);
        if update {
            fs::write(&committed, &new).unwrap();
        }
        let old = fs::read(&committed).unwrap_or_default();
        assert!(old == new, "src/generated/{name} differs from schema/: run with UPDATE_GENERATED=1");
    }
}

#[test]
fn service_paths_are_those_clients_call() {
    use spanhouse_proto::{jaeger_metrics, jaeger_storage_v1, jaeger_storage_v2, jaeger_v2, jaeger_v3, otlp_service};
    let names = [
        (otlp_service::trace_service_server::SERVICE_NAME, "opentelemetry.proto.collector.trace.v1.TraceService"),
        (tempopb::streaming_querier_server::SERVICE_NAME, "tempopb.StreamingQuerier"),
        (jaeger_v2::query_service_server::SERVICE_NAME, "jaeger.api_v2.QueryService"),
        (jaeger_v2::collector_service_server::SERVICE_NAME, "jaeger.api_v2.CollectorService"),
        (jaeger_v2::sampling_manager_server::SERVICE_NAME, "jaeger.api_v2.SamplingManager"),
        (jaeger_metrics::metrics_query_service_server::SERVICE_NAME, "jaeger.api_v2.metrics.MetricsQueryService"),
        (jaeger_v3::query_service_server::SERVICE_NAME, "jaeger.api_v3.QueryService"),
        (jaeger_storage_v1::span_writer_plugin_server::SERVICE_NAME, "jaeger.storage.v1.SpanWriterPlugin"),
        (
            jaeger_storage_v1::streaming_span_writer_plugin_server::SERVICE_NAME,
            "jaeger.storage.v1.StreamingSpanWriterPlugin",
        ),
        (jaeger_storage_v1::span_reader_plugin_server::SERVICE_NAME, "jaeger.storage.v1.SpanReaderPlugin"),
        (jaeger_storage_v1::archive_span_writer_plugin_server::SERVICE_NAME, "jaeger.storage.v1.ArchiveSpanWriterPlugin"),
        (jaeger_storage_v1::archive_span_reader_plugin_server::SERVICE_NAME, "jaeger.storage.v1.ArchiveSpanReaderPlugin"),
        (jaeger_storage_v1::dependencies_reader_plugin_server::SERVICE_NAME, "jaeger.storage.v1.DependenciesReaderPlugin"),
        (jaeger_storage_v1::plugin_capabilities_server::SERVICE_NAME, "jaeger.storage.v1.PluginCapabilities"),
        (jaeger_storage_v2::trace_reader_server::SERVICE_NAME, "jaeger.storage.v2.TraceReader"),
        (jaeger_storage_v2::dependency_reader_server::SERVICE_NAME, "jaeger.storage.v2.DependencyReader"),
        (jaeger_storage_v2::capabilities_server::SERVICE_NAME, "jaeger.storage.v2.Capabilities"),
    ];
    for (ours, clients) in names {
        assert_eq!(ours, clients);
    }
}

#[test]
fn descriptors_name_every_service_and_message() {
    let set = prost_types::FileDescriptorSet::decode(spanhouse_proto::DESCRIPTORS).unwrap();
    let packages: Vec<_> = set.file.iter().map(|file| file.package()).collect();
    for package in ["jaeger.api_v2", "jaeger.api_v3", "jaeger.storage.v2", "opentelemetry.proto.trace.v1", "google.protobuf"]
    {
        assert!(packages.contains(&package), "{package} of {packages:?}");
    }
}

/// One message of each protocol with every field set whose number is easily confused, against bytes written by hand.
#[test]
fn jaeger_and_zipkin_messages_have_the_bytes_of_their_protocols() {
    use prost_types::{Duration, Timestamp};
    use spanhouse_proto::{jaeger_expression, jaeger_metrics, jaeger_storage_v2, jaeger_v2, jaeger_v3, zipkin};

    let span = jaeger_v2::Span {
        trace_id: vec![1],
        span_id: vec![2],
        operation_name: "o".into(),
        references: vec![jaeger_v2::SpanRef { ref_type: 1, ..Default::default() }],
        flags: 5,
        start_time: Some(Timestamp { seconds: 6, nanos: 0 }),
        duration: Some(Duration { seconds: 0, nanos: 7 }),
        tags: vec![jaeger_v2::KeyValue {
            v_type: jaeger_v2::ValueType::Binary as i32,
            v_binary: vec![8],
            ..Default::default()
        }],
        logs: vec![jaeger_v2::Log { timestamp: None, fields: vec![] }],
        process: Some(jaeger_v2::Process { service_name: "s".into(), tags: vec![] }),
        process_id: "p".into(),
        warnings: vec!["w".into()],
    };
    let bytes = "0a0101 120102 1a016f 22021801 2805 32020806 3a021007 42051004 3a0108 4a00 52030a0173 5a0170 620177";
    assert_eq!(hex(&span.encode_to_vec()), bytes.replace(' ', ""));

    // What Go sends for a time and a duration that were never set.
    let query = jaeger_storage_v2::TraceQueryParameters {
        start_time_min: Some(Timestamp { seconds: -62_135_596_800, nanos: 0 }),
        duration_min: Some(Duration::default()),
        search_depth: 3,
        filter: Some(jaeger_expression::Call { op: "or".into(), args: vec![] }),
        ..Default::default()
    };
    assert_eq!(hex(&query.encode_to_vec()), "220b088092b8c398feffffff01 3200 4003 4a040a026f72".replace(' ', ""));

    let summary = jaeger_v3::TraceSummary {
        min_start_time_unix_nano: 1,
        max_end_time_unix_nano: 2,
        span_count: 3,
        error_span_count: 4,
        orphan_span_count: 5,
        services: vec![Default::default()],
        ..Default::default()
    };
    assert_eq!(hex(&summary.encode_to_vec()), "210100000000000000 290200000000000000 3003 3804 4005 4a00".replace(' ', ""));

    let point = jaeger_metrics::MetricPoint {
        value: Some(jaeger_metrics::metric_point::Value::GaugeValue(jaeger_metrics::GaugeValue {
            value: Some(jaeger_metrics::gauge_value::Value::DoubleValue(0.0)),
        })),
        timestamp: Some(Timestamp::default()),
    };
    assert_eq!(hex(&point.encode_to_vec()), "1209 090000000000000000 4200".replace(' ', ""), "a zero is there");

    let span = zipkin::Span { timestamp: 1, duration: 300, debug: true, shared: true, ..Default::default() };
    assert_eq!(hex(&span.encode_to_vec()), "310100000000000000 38ac02 6001 6801".replace(' ', ""));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn encoded_traces_are_the_bytes_of_the_message() {
    use spanhouse_proto::EncodedTraces;
    let group = |url: &str| otlp_trace::ResourceSpans { schema_url: url.into(), ..Default::default() };
    let bytes = otlp_trace::TracesData { resource_spans: vec![group("a"), group("b")] }.encode_to_vec();
    // A field that nobody knows is dropped on the way in, as everywhere.
    let with_unknown = [&bytes[..], &[0x10, 7]].concat();
    let decoded = EncodedTraces::decode(&with_unknown[..]).unwrap();
    assert_eq!(decoded, EncodedTraces(bytes.clone()));
    assert_eq!((decoded.encode_to_vec(), decoded.encoded_len()), (bytes.clone(), bytes.len()));
    for cut in [1, 2, bytes.len() - 1] {
        assert!(EncodedTraces::decode(&bytes[..cut]).is_err(), "{cut}");
    }
}

#[test]
fn a_trace_has_the_bytes_of_otlp() {
    let resource_spans = vec![otlp_trace::ResourceSpans { resource: Some(Default::default()), ..Default::default() }];
    let trace = tempopb::Trace { resource_spans: resource_spans.clone() }.encode_to_vec();
    assert_eq!(trace, otlp_trace::TracesData { resource_spans }.encode_to_vec());
    assert_eq!(trace, [0x0a, 2, 0x0a, 0], "an empty resource is physically there");
}
