//! Strategies over HTTP, as agents and collectors of Jaeger answer.
//!
//! Owns routes and answers. Clients ask by GET with one `service`; the port of its own answers on every path and for every
//! method, because every generation of clients has a path of its own.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::routing::get;
use http::{HeaderValue, Response, StatusCode, header};

use super::Sampling;
use super::metrics::Asked;
use super::strategy::Enums;

/// Where collectors answer, beside the spans they take.
pub const SAMPLING_PATH: &str = "/api/sampling";

/// Agents were asked for restrictions of baggage too; there are none.
const BAGGAGE_PATH: &str = "/baggageRestrictions";
const ONE_SERVICE: &str = "'service' parameter must be provided once\n";

/// The route beside the receivers of the Thrift port.
pub fn routes(sampling: Arc<Sampling>) -> Router {
    Router::new().route(SAMPLING_PATH, get(answer)).with_state(sampling)
}

/// Everything of the sampling port.
pub fn router(sampling: Arc<Sampling>) -> Router {
    Router::new().fallback(answer).with_state(sampling)
}

async fn answer(State(sampling): State<Arc<Sampling>>, request: Request) -> Response<Body> {
    let path = request.uri().path();
    if path.strip_suffix('/').unwrap_or(path) == BAGGAGE_PATH {
        return json("[]".to_owned());
    }
    let enums = if path == "/" && sampling.legacy_enums { Enums::Numbers } else { Enums::Names };
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).map(|Query(pairs)| pairs).unwrap_or_default();
    let mut services = pairs.iter().filter(|(name, _)| name == "service").map(|(_, service)| service);
    let (Some(service), None) = (services.next(), services.next()) else { return refusal() };
    sampling.metrics.asked(Asked::Http);
    json(sampling.strategy(service).to_json(enums))
}

fn json(text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refusal() -> Response<Body> {
    let mut response = Response::new(Body::from(ONE_SERVICE));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::sampling::testing;

    const FILE: &str = r#"{"service_strategies":[{"service":"a b","type":"ratelimiting","param":40000}]}"#;

    async fn ask(router: Router, method: &str, uri: &str) -> (u16, String, String) {
        let request = http::Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let kind = response.headers().get(header::CONTENT_TYPE).map_or("", |v| v.to_str().unwrap()).to_owned();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn every_path_answers_and_only_one_service_is_right() {
        let names = r#"{"strategyType":"RATE_LIMITING","rateLimitingSampling":{"maxTracesPerSecond":40000}}"#;
        let numbers = r#"{"strategyType":1,"rateLimitingSampling":{"maxTracesPerSecond":32767}}"#;
        let default = r#"{"strategyType":"PROBABILISTIC","probabilisticSampling":{"samplingRate":0.001}}"#;
        for legacy in [false, true] {
            let router = router(testing::sampling(FILE, legacy).await);
            for (method, uri, status, body) in [
                ("GET", "/sampling?service=a%20b", 200, names),
                ("GET", "/sampling/?service=a+b&x=1", 200, names),
                ("POST", "/api/sampling?service=a%20b", 200, names),
                ("DELETE", "/any/path?service=other", 200, default),
                ("GET", "/?service=a%20b", 200, if legacy { numbers } else { names }),
                ("GET", "/sampling?service=", 200, default),
                ("GET", "/sampling?service=%ff", 200, default),
                ("GET", "/sampling", 400, ONE_SERVICE),
                ("GET", "/", 400, ONE_SERVICE),
                ("GET", "/sampling?Service=a", 400, ONE_SERVICE),
                ("GET", "/sampling?service=a&service=a", 400, ONE_SERVICE),
                ("GET", "/baggageRestrictions?service=a", 200, "[]"),
            ] {
                let kind = if status == 200 { "application/json" } else { "text/plain; charset=utf-8" };
                let found = ask(router.clone(), method, uri).await;
                assert_eq!(found, (status, kind.to_owned(), body.to_owned()), "{method} {uri}");
            }
        }
    }

    #[tokio::test]
    async fn beside_receivers_only_its_own_path_is_taken() {
        let router = routes(testing::sampling(FILE, true).await);
        assert_eq!(ask(router.clone(), "GET", "/api/sampling?service=a%20b").await.0, 200);
        assert_eq!(ask(router.clone(), "POST", "/api/sampling?service=a").await.0, 405);
        assert_eq!(ask(router, "GET", "/api/traces?service=a").await.0, 404);
    }
}
