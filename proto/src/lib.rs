//! Wire messages and service stubs: OTLP, the Tempo API, Jaeger, Zipkin and gRPC statuses.
//!
//! Owns the schemas in `schema/` and the Rust made from them. Knows no domain type, does no IO, converts nothing.
//!
//! The generated code is committed, so building needs neither protoc nor a build script. After a change in `schema/`:
//! `UPDATE_GENERATED=1 cargo test -p spanhouse-proto`. Without the variable that test fails on any difference.

pub use opentelemetry::proto::{
    collector::trace::v1 as otlp_service, common::v1 as otlp_common, resource::v1 as otlp_resource, trace::v1 as otlp_trace,
};

mod encoded;

pub use encoded::EncodedTraces;
pub use jaeger::{
    api_v2 as jaeger_v2, api_v2::metrics as jaeger_metrics, api_v3 as jaeger_v3, expression::v1 as jaeger_expression,
    storage::v1 as jaeger_storage_v1, storage::v2 as jaeger_storage_v2,
};

/// Every schema as an encoded `FileDescriptorSet`, for gRPC's server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");

// Generated code names its neighbours by relative path, so the modules mirror the packages.

/// OTLP.
#[allow(clippy::clone_on_ref_ptr, reason = "generated")]
pub mod opentelemetry {
    pub mod proto {
        pub mod common {
            pub mod v1 {
                include!("generated/opentelemetry.proto.common.v1.rs");
            }
        }
        pub mod resource {
            pub mod v1 {
                include!("generated/opentelemetry.proto.resource.v1.rs");
            }
        }
        pub mod trace {
            pub mod v1 {
                include!("generated/opentelemetry.proto.trace.v1.rs");
            }
        }
        pub mod collector {
            pub mod trace {
                pub mod v1 {
                    include!("generated/opentelemetry.proto.collector.trace.v1.rs");
                }
            }
        }
    }
}

/// The error model of gRPC and its details.
pub mod google {
    pub mod rpc {
        include!("generated/google.rpc.rs");
    }
}

/// The Tempo API. Its trace has the wire form of OTLP's `TracesData` and is built from OTLP's types.
#[allow(clippy::clone_on_ref_ptr, reason = "generated")]
pub mod tempopb {
    include!("generated/tempopb.rs");
}

/// Jaeger: its span model, its query services, and the services of a storage that stands behind it.
#[allow(clippy::clone_on_ref_ptr, reason = "generated")]
pub mod jaeger {
    pub mod api_v2 {
        include!("generated/jaeger.api_v2.rs");
        pub mod metrics {
            include!("generated/jaeger.api_v2.metrics.rs");
        }
    }
    pub mod api_v3 {
        include!("generated/jaeger.api_v3.rs");
    }
    pub mod expression {
        pub mod v1 {
            include!("generated/jaeger.expression.v1.rs");
        }
    }
    pub mod storage {
        pub mod v1 {
            include!("generated/jaeger.storage.v1.rs");
        }
        pub mod v2 {
            include!("generated/jaeger.storage.v2.rs");
        }
    }
}

/// Zipkin's spans as protobuf.
pub mod zipkin {
    include!("generated/zipkin.proto3.rs");
}
