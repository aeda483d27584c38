//! Services and their operations, in the old API.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use spanhouse_common::id::TenantId;

use super::HttpDeps;
use super::answer::{envelope, respond};
use super::error::{Legacy, Refusal};
use super::params::{Pairs, Params, Segment, kind};
use crate::jaeger::model::kind_word;
use crate::jaeger::{Answer, JaegerError, Operation};
use crate::json::{Object, push_str};

pub(super) async fn services(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, Legacy> {
    let tenants = deps.tenants(&headers)?;
    let Answer { found, partial } = deps.queries.shown_services(&tenants).await?;
    let data = list(&found, |name, out| push_str(name, out));
    Ok(respond(envelope(&data, found.len(), &[]), Params::new(pairs).pretty(), partial).await?)
}

pub(super) async fn operations_of(
    State(deps): State<HttpDeps>,
    service: Segment,
    pairs: Pairs,
    headers: HeaderMap,
) -> Result<Response, Legacy> {
    let tenants = deps.tenants(&headers)?;
    let Path(service) = service.map_err(|error| Refusal::parameter("service", error.body_text()))?;
    let Answer { found, partial } = operations_by_segment(&deps, &tenants, &service).await?;
    let mut names: Vec<String> = found.into_iter().map(|operation| operation.name).collect();
    // Sorted by name already; a name has several kinds.
    names.dedup();
    let data = list(&names, |name, out| push_str(name, out));
    Ok(respond(envelope(&data, names.len(), &[]), Params::new(pairs).pretty(), partial).await?)
}

/// Jaeger decodes the segment a second time, as a query. A name that has a plus or a percent sign is found as it is, too.
async fn operations_by_segment(
    deps: &HttpDeps,
    tenants: &[TenantId],
    service: &str,
) -> Result<Answer<Vec<Operation>>, JaegerError> {
    let twice = decoded_again(service);
    if let Some(twice) = &twice {
        let operations = deps.queries.shown_operations(tenants, twice, None).await?;
        if !operations.found.is_empty() || twice == service {
            return Ok(operations);
        }
    }
    deps.queries.shown_operations(tenants, service, None).await
}

/// `None` if the text is no part of a query.
fn decoded_again(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
                rest = after.get(2..)?;
                (digit(0)? * 16 + digit(1)?) as u8
            }
            other => *other,
        });
    }
    String::from_utf8(bytes).ok()
}

pub(super) async fn operations(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, Legacy> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let service = params.get("service").ok_or_else(|| Refusal::bad("parameter 'service' is required"))?;
    let Answer { found, partial } = operations_of_kind(&deps, &tenants, service, params.get("spanKind")).await?;
    let data = list(&found, |operation, out| write_operation(operation, "", out));
    Ok(respond(envelope(&data, found.len(), &[]), params.pretty(), partial).await?)
}

/// Of a kind that is none there are no operations.
pub(super) async fn operations_of_kind(
    deps: &HttpDeps,
    tenants: &[TenantId],
    service: &str,
    word: Option<&str>,
) -> Result<Answer<Vec<Operation>>, JaegerError> {
    match word.map(kind) {
        Some(None) => Ok(Answer::default()),
        number => deps.queries.shown_operations(tenants, service, number.flatten()).await,
    }
}

/// `unspecified` is what the unspecified kind is called.
pub(super) fn write_operation(operation: &Operation, unspecified: &str, out: &mut String) {
    let word = kind_word(operation.kind);
    let mut object = Object::open(out);
    push_str(&operation.name, object.member("name"));
    push_str(if word.is_empty() { unspecified } else { word }, object.member("spanKind"));
    object.close();
}

pub(super) fn list<T>(items: &[T], write: impl Fn(&T, &mut String)) -> String {
    let mut out = String::from("[");
    for (nth, item) in items.iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        write(item, &mut out);
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_decoded_a_second_time() {
        let cases = [
            ("a", Some("a")),
            ("a+b", Some("a b")),
            ("a%20b", Some("a b")),
            ("a%2Fb", Some("a/b")),
            ("%c3%a9", Some("é")),
            ("100%", None),
            ("%2", None),
            ("%zz", None),
            ("%ff", None),
            ("é%é", None),
        ];
        for (text, expected) in cases {
            assert_eq!(decoded_again(text).as_deref(), expected, "{text}");
        }
    }
}
