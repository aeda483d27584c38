//! Strategies over gRPC: `jaeger.api_v2.SamplingManager`.
//!
//! Owns the message made from a strategy, and the routes. The port of its own also answers health checks by the service's name.

use std::sync::Arc;

use axum::Router;
use spanhouse_proto::jaeger::api_v2::{
    OperationSamplingStrategy, PerOperationSamplingStrategies, ProbabilisticSamplingStrategy, RateLimitingSamplingStrategy,
    SamplingStrategyParameters, SamplingStrategyResponse, SamplingStrategyType,
    sampling_manager_server::{SamplingManager, SamplingManagerServer},
};
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};

use super::Sampling;
use super::metrics::Asked;
use super::strategy::{Operations, Rate, Strategy};
use crate::receive::grpc::{health, unimplemented};

/// What health checks call the service.
pub const SERVICE_NAME: &str = spanhouse_proto::jaeger::api_v2::sampling_manager_server::SERVICE_NAME;

const METHOD_PATH: &str = "/jaeger.api_v2.SamplingManager/GetSamplingStrategy";
/// A request is the name of a service.
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// The service, to be merged with other services of a port.
pub fn routes(sampling: Arc<Sampling>) -> Router {
    let server = SamplingManagerServer::new(Service(sampling))
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    Router::new().route_service(METHOD_PATH, server)
}

/// Everything of the sampling port: [`routes`], health, and `UNIMPLEMENTED` for the rest.
pub async fn router(sampling: Arc<Sampling>) -> Router {
    routes(sampling).merge(health(&[SERVICE_NAME]).await).fallback(unimplemented)
}

struct Service(Arc<Sampling>);

#[async_trait::async_trait]
impl SamplingManager for Service {
    async fn get_sampling_strategy(
        &self,
        request: Request<SamplingStrategyParameters>,
    ) -> Result<Response<SamplingStrategyResponse>, Status> {
        self.0.metrics.asked(Asked::Grpc);
        Ok(Response::new(message(&self.0.strategy(&request.into_inner().service_name))))
    }
}

/// A strategy as protobuf.
pub fn message(strategy: &Strategy) -> SamplingStrategyResponse {
    let kind = if strategy.limits_rate() { SamplingStrategyType::RateLimiting } else { SamplingStrategyType::Probabilistic };
    let (probabilistic, rate_limiting) = match strategy.rate {
        Some(Rate::Probability(sampling_rate)) => (Some(ProbabilisticSamplingStrategy { sampling_rate }), None),
        Some(Rate::PerSecond(most)) => (None, Some(RateLimitingSamplingStrategy { max_traces_per_second: most })),
        None => (None, None),
    };
    SamplingStrategyResponse {
        strategy_type: kind.into(),
        probabilistic_sampling: probabilistic,
        rate_limiting_sampling: rate_limiting,
        operation_sampling: strategy.operations.as_ref().map(operations),
    }
}

fn operations(operations: &Operations) -> PerOperationSamplingStrategies {
    let list = operations.list.iter().map(|operation| OperationSamplingStrategy {
        operation: operation.name.to_string(),
        probabilistic_sampling: Some(ProbabilisticSamplingStrategy { sampling_rate: operation.probability }),
    });
    PerOperationSamplingStrategies {
        default_sampling_probability: operations.default_probability,
        default_lower_bound_traces_per_second: operations.lower_bound,
        per_operation_strategies: list.collect(),
        default_upper_bound_traces_per_second: operations.upper_bound,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use proptest::prelude::{Just, any, prop, prop_assert_eq, prop_oneof, proptest};
    use proptest::strategy::Strategy as Generator;
    use prost::Message as _;
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;
    use crate::sampling::strategy::{Enums, Operation};
    use crate::sampling::testing;

    /// What the JSON must be, from the message and not from the strategy.
    fn json_of(message: &SamplingStrategyResponse) -> Value {
        let mut out = serde_json::Map::new();
        let kind = SamplingStrategyType::try_from(message.strategy_type).unwrap();
        out.insert("strategyType".into(), kind.as_str_name().into());
        if let Some(part) = &message.probabilistic_sampling {
            out.insert("probabilisticSampling".into(), json!({ "samplingRate": part.sampling_rate }));
        }
        if let Some(part) = &message.rate_limiting_sampling {
            let most = f64::from(part.max_traces_per_second);
            out.insert("rateLimitingSampling".into(), json!({ "maxTracesPerSecond": most }));
        }
        if let Some(part) = &message.operation_sampling {
            let list = part.per_operation_strategies.iter();
            let list: Vec<Value> = list
                .map(|o| {
                    let rate = o.probabilistic_sampling.unwrap().sampling_rate;
                    json!({ "operation": o.operation, "probabilisticSampling": { "samplingRate": rate } })
                })
                .collect();
            out.insert(
                "operationSampling".into(),
                json!({
                    "defaultSamplingProbability": part.default_sampling_probability,
                    "defaultLowerBoundTracesPerSecond": part.default_lower_bound_traces_per_second,
                    "perOperationStrategies": list,
                    "defaultUpperBoundTracesPerSecond": part.default_upper_bound_traces_per_second,
                }),
            );
        }
        out.into()
    }

    fn as_doubles(value: &Value) -> Value {
        match value {
            Value::Number(number) => Value::from(number.as_f64().unwrap()),
            Value::Array(all) => all.iter().map(as_doubles).collect(),
            Value::Object(all) => all.iter().map(|(key, value)| (key.clone(), as_doubles(value))).collect(),
            other => other.clone(),
        }
    }

    fn number() -> impl Generator<Value = f64> {
        prop_oneof![0.0..=1.0, Just(0.0), Just(1.0), 1e-12..1e-5, 0.0..1e25]
    }

    fn strategies() -> impl Generator<Value = Strategy> {
        let rate = prop_oneof![
            Just(None),
            number().prop_map(|p| Some(Rate::Probability(p))),
            any::<i32>().prop_map(|most| Some(Rate::PerSecond(most)))
        ];
        let operation =
            (any::<String>(), number()).prop_map(|(name, probability)| Operation { name: name.into(), probability });
        let operations = (number(), number(), number(), prop::collection::vec(operation, 0..5));
        let operations = operations.prop_map(|(default_probability, lower_bound, upper_bound, list)| Operations {
            default_probability,
            lower_bound,
            upper_bound,
            list: list.into(),
        });
        (rate, prop::option::of(operations)).prop_map(|(rate, operations)| Strategy { rate, operations })
    }

    proptest! {
        #[test]
        fn protobuf_and_json_say_the_same(strategy in strategies()) {
            // Through bytes, as a client gets it.
            let sent = message(&strategy).encode_to_vec();
            let received = SamplingStrategyResponse::decode(&*sent).unwrap();
            let json: Value = serde_json::from_str(&strategy.to_json(Enums::Names)).unwrap();
            prop_assert_eq!(as_doubles(&json), as_doubles(&json_of(&received)));
        }
    }

    async fn call(router: Router, path: &str, message: Vec<u8>) -> (Vec<u8>, Option<String>) {
        let mut frame = vec![0];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(message);
        let request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
        let response = router.oneshot(request.body(Body::new(Full::new(Bytes::from(frame)))).unwrap()).await.unwrap();
        let status = |headers: &http::HeaderMap| headers.get("grpc-status").map(|s| s.to_str().unwrap().to_owned());
        let early = status(response.headers());
        let body = response.into_body().collect().await.unwrap();
        let late = body.trailers().and_then(status);
        (body.to_bytes().to_vec(), early.or(late))
    }

    #[tokio::test]
    async fn calls_and_health_are_answered_by_name() {
        let file = r#"{"service_strategies":[{"service":"a","type":"probabilistic","param":0.25}]}"#;
        let router = router(testing::sampling(file, false).await).await;
        for (service, rate) in [("a", 0.25), ("b", 0.001), ("", 0.001)] {
            let request = SamplingStrategyParameters { service_name: service.into() }.encode_to_vec();
            let (body, status) = call(router.clone(), METHOD_PATH, request).await;
            assert_eq!(status.as_deref(), Some("0"));
            let answer = SamplingStrategyResponse::decode(&body[5..]).unwrap();
            assert_eq!(answer.probabilistic_sampling, Some(ProbabilisticSamplingStrategy { sampling_rate: rate }));
        }
        let check = "/grpc.health.v1.Health/Check";
        let named = |name: &str| {
            let mut request = vec![0x0a, name.len() as u8];
            request.extend(name.as_bytes());
            request
        };
        let (body, status) = call(router.clone(), check, named("jaeger.api_v2.SamplingManager")).await;
        assert_eq!((&body[5..], status.as_deref()), (&[8, 1][..], Some("0")), "serving");
        assert_eq!(call(router.clone(), check, Vec::new()).await.1.as_deref(), Some("0"), "the whole server");
        assert_eq!(call(router.clone(), check, named("x")).await.1.as_deref(), Some("5"), "not found");
        assert_eq!(call(router.clone(), "/x.Y/Z", Vec::new()).await.1.as_deref(), Some("12"), "unimplemented");
        let large = SamplingStrategyParameters { service_name: "x".repeat(MAX_REQUEST_BYTES) }.encode_to_vec();
        assert_eq!(call(router, METHOD_PATH, large).await.1.as_deref(), Some("11"), "out of range");
    }
}
