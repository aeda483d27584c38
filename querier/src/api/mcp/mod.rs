//! The Model Context Protocol at `/api/mcp`: language models ask for traces and learn how to.
//!
//! Owns the protocol, which is JSON-RPC in single POST requests: no session, no stream. Does not own the tools ([`tools`]) or
//! what they tell ([`docs`]). Everything here only reads.

mod docs;
mod tools;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::error::ApiError;
use super::respond::response;
use super::tenants::tenants;
use super::{ApiDeps, text};

/// Requests hold a query and little else.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Versions of the protocol whose requests we understand, newest first.
const VERSIONS: [&str; 3] = ["2025-06-18", "2025-03-26", "2024-11-05"];

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;

/// What JSON-RPC answers instead of a result.
struct RpcError {
    code: i64,
    message: String,
}

impl RpcError {
    fn params(message: impl Into<String>) -> Self {
        Self { code: INVALID_PARAMS, message: message.into() }
    }
}

pub(crate) async fn mcp(
    State(deps): State<ApiDeps>,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let tenants = tenants(&headers, &deps.settings)?;
    match *request.method() {
        Method::POST => {}
        // There is no session to end; clients learn from this answer that the endpoint is there.
        Method::DELETE => return Ok(StatusCode::OK.into_response()),
        _ => {
            let allowed = [(header::ALLOW, "POST, DELETE")];
            return Ok((allowed, text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n")).into_response());
        }
    }
    let Ok(body) = axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES).await else {
        return Ok(text(StatusCode::PAYLOAD_TOO_LARGE, "http: request body too large\n"));
    };
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        let error = RpcError { code: PARSE_ERROR, message: "the body is not JSON".to_owned() };
        return Ok(answer(StatusCode::BAD_REQUEST, &Value::Null, Err(error)));
    };
    let (Some(method), id) = (message.get("method").and_then(Value::as_str), message.get("id")) else {
        // Answers to us are taken and forgotten: we ask nothing.
        if message.get("result").is_some() || message.get("error").is_some() {
            return Ok(StatusCode::ACCEPTED.into_response());
        }
        let error = RpcError { code: INVALID_REQUEST, message: "expected one JSON-RPC request".to_owned() };
        return Ok(answer(StatusCode::BAD_REQUEST, &Value::Null, Err(error)));
    };
    let Some(id) = id else { return Ok(StatusCode::ACCEPTED.into_response()) };
    let params = message.get("params").unwrap_or(&Value::Null);
    let result = match method {
        "initialize" => Ok(initialize(&deps, params)),
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({ "tools": tools::list() })),
        "tools/call" => tools::call(&deps, tenants, params).await,
        "resources/list" => Ok(json!({ "resources": docs::list() })),
        "resources/templates/list" => Ok(json!({ "resourceTemplates": [] })),
        "resources/read" => read_resource(&deps, params),
        other => Err(RpcError { code: METHOD_NOT_FOUND, message: format!("there is no method `{other}`") }),
    };
    Ok(answer(StatusCode::OK, id, result))
}

fn answer(status: StatusCode, id: &Value, result: Result<Value, RpcError>) -> Response {
    let body = match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(RpcError { code, message }) => {
            json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
        }
    };
    let mut response = response("application/json", body.to_string().into_bytes());
    *response.status_mut() = status;
    response
}

fn initialize(deps: &ApiDeps, params: &Value) -> Value {
    let asked = params.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
    let version = VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(VERSIONS[0]);
    json!({
        "protocolVersion": version,
        "capabilities": { "tools": {}, "resources": {} },
        "serverInfo": { "name": "spanhouse", "version": deps.status.build.version },
        "instructions": "Traces, searched with TraceQL. Look up attribute names and values before guessing them, and read \
                         docs-traceql before writing a query.",
    })
}

fn read_resource(deps: &ApiDeps, params: &Value) -> Result<Value, RpcError> {
    let uri = params.get("uri").and_then(Value::as_str).unwrap_or_default();
    let text = docs::by_uri(deps, uri).ok_or_else(|| RpcError::params(format!("there is no resource `{uri}`")))?;
    Ok(json!({ "contents": [{ "uri": uri, "mimeType": "text/markdown", "text": text }] }))
}

#[cfg(test)]
mod tests;
