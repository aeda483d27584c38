//! Holds the committed code to the schemas, and the wire to what clients expect.

use std::path::Path;
use std::{env, fs};

use prost::Message as _;
use spanhouse_proto::{otlp_trace, tempopb};

const SCHEMAS: [&str; 6] = [
    "otlp_common.proto",
    "otlp_resource.proto",
    "otlp_trace.proto",
    "otlp_trace_service.proto",
    "rpc_status.proto",
    "tempo.proto",
];

const GENERATED: [&str; 6] = [
    "google.rpc.rs",
    "opentelemetry.proto.collector.trace.v1.rs",
    "opentelemetry.proto.common.v1.rs",
    "opentelemetry.proto.resource.v1.rs",
    "opentelemetry.proto.trace.v1.rs",
    "tempopb.rs",
];

#[test]
fn generated_code_is_what_the_schemas_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    fs::create_dir_all(&fresh).unwrap();
    let descriptors = protox::compile(SCHEMAS, [root.join("schema")]).unwrap();
    let mut config = prost_build::Config::new();
    // Sorted maps: equal messages have equal bytes.
    config.btree_map(["."]);
    tonic_prost_build::configure()
        .out_dir(&fresh)
        .build_transport(false)
        .compile_fds_with_config(descriptors, config)
        .unwrap();

    let update = env::var_os("UPDATE_GENERATED").is_some();
    for name in GENERATED {
        let new = fs::read_to_string(fresh.join(name)).unwrap();
        let committed = root.join("src/generated").join(name);
        if update {
            fs::write(&committed, &new).unwrap();
        }
        let old = fs::read_to_string(&committed).unwrap_or_default();
        assert!(old == new, "src/generated/{name} differs from schema/: run with UPDATE_GENERATED=1");
    }
}

#[test]
fn service_paths_are_those_clients_call() {
    use spanhouse_proto::otlp_service::trace_service_server;
    use spanhouse_proto::tempopb::streaming_querier_server;
    assert_eq!(trace_service_server::SERVICE_NAME, "opentelemetry.proto.collector.trace.v1.TraceService");
    assert_eq!(streaming_querier_server::SERVICE_NAME, "tempopb.StreamingQuerier");
}

#[test]
fn a_trace_has_the_bytes_of_otlp() {
    let resource_spans = vec![otlp_trace::ResourceSpans { resource: Some(Default::default()), ..Default::default() }];
    let trace = tempopb::Trace { resource_spans: resource_spans.clone() }.encode_to_vec();
    assert_eq!(trace, otlp_trace::TracesData { resource_spans }.encode_to_vec());
    assert_eq!(trace, [0x0a, 2, 0x0a, 0], "an empty resource is physically there");
}
