//! Whose request it is, from `X-Scope-OrgID` in HTTP headers or gRPC metadata.
//!
//! Ingest takes exactly one tenant. Anything that two readers of the same headers could understand differently (a repeated
//! header, several names in one) is refused, so that no proxy in front can be talked past.

use http::{HeaderMap, StatusCode};
use spanhouse_common::id::{TenantError, TenantId};
use tonic::Code;

use super::metrics::Outcome;
use super::status::Refusal;

/// The header, as HTTP/2 writes it.
pub const TENANT_HEADER: &str = "x-scope-orgid";

/// What Jaeger and its clients call it.
pub const JAEGER_TENANT_HEADER: &str = "x-tenant";

/// Which headers may name the tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantHeaders {
    /// [`TENANT_HEADER`] only.
    Own,
    /// That, or [`JAEGER_TENANT_HEADER`]: what clients of Jaeger send already.
    Jaeger,
}

/// Why a request has no tenant. The texts are Tempo's, and Jaeger's on its ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantRefusal {
    /// Send the header.
    #[error("no org id")]
    Missing,
    /// Send one of the two headers.
    #[error("missing tenant header")]
    MissingForJaeger,
    /// Send one name in one header.
    #[error("multiple org IDs present")]
    Several,
    /// Choose another name.
    #[error(transparent)]
    Invalid(TenantError),
}

/// The tenant of a request; the constant one while multi-tenancy is off, whatever the headers say.
pub fn tenant(headers: &HeaderMap, multitenancy: bool, from: TenantHeaders) -> Result<TenantId, TenantRefusal> {
    if !multitenancy {
        return Ok(TenantId::single());
    }
    let missing = || match from {
        TenantHeaders::Own => TenantRefusal::Missing,
        TenantHeaders::Jaeger => TenantRefusal::MissingForJaeger,
    };
    let jaeger = (from == TenantHeaders::Jaeger).then(|| headers.get_all(JAEGER_TENANT_HEADER));
    let mut values = headers.get_all(TENANT_HEADER).iter().chain(jaeger.iter().flatten());
    let Some(value) = values.next() else { return Err(missing()) };
    if values.next().is_some() {
        return Err(TenantRefusal::Several);
    }
    // Bytes that are no UTF-8 become U+FFFD, which no tenant may contain.
    let name = String::from_utf8_lossy(value.as_bytes());
    if name.contains('|') {
        return Err(TenantRefusal::Several);
    }
    name.parse().map_err(|error| match error {
        TenantError::Empty => missing(),
        other => TenantRefusal::Invalid(other),
    })
}

impl From<TenantRefusal> for Refusal {
    fn from(refusal: TenantRefusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            // Over HTTP the reference answers 503 with code 14; over gRPC the code says what is missing.
            TenantRefusal::Missing => Self {
                body_code: Code::Unavailable,
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unauthenticated, Outcome::BadTenant, message)
            },
            TenantRefusal::MissingForJaeger => {
                Self::new(StatusCode::UNAUTHORIZED, Code::Unauthenticated, Outcome::BadTenant, message)
            }
            TenantRefusal::Several | TenantRefusal::Invalid(_) => {
                Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, Outcome::BadTenant, message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn find(values: &[&[u8]]) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TENANT_HEADER, HeaderValue::from_bytes(value).unwrap());
        }
        assert_eq!(tenant(&headers, false, TenantHeaders::Own), Ok(TenantId::single()));
        tenant(&headers, true, TenantHeaders::Own).map(|t| t.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn one_valid_name_or_a_reason() {
        let long = "a".repeat(151);
        for (values, expected) in [
            (&[&b"team-a"[..]][..], Ok("team-a")),
            (&[], Err("no org id")),
            (&[b""], Err("no org id")),
            (&[b"a", b"b"], Err("multiple org IDs present")),
            (&[b"a", b"a"], Err("multiple org IDs present")),
            (&[b"a|b"], Err("multiple org IDs present")),
            (&[b"a|"], Err("multiple org IDs present")),
            (&[b"a, b"], Err("tenant ID 'a, b' contains unsupported character ','")),
            (&[b"a/b"], Err("tenant ID 'a/b' contains unsupported character '/'")),
            (&[b".."], Err("tenant ID is '.' or '..'")),
            (&[long.as_bytes()], Err("tenant ID is too long: max 150 characters")),
            (&[b"\xff"], Err("tenant ID '\u{fffd}' contains unsupported character '\u{fffd}'")),
        ] {
            assert_eq!(find(values), expected.map(str::to_owned).map_err(str::to_owned), "{values:?}");
        }
    }

    #[test]
    fn clients_of_jaeger_may_use_their_own_header() {
        for (own, jaegers, expected) in [
            (None, Some("a"), Ok("a")),
            (Some("a"), None, Ok("a")),
            (Some("a"), Some("b"), Err("multiple org IDs present")),
            (None, None, Err("missing tenant header")),
            (None, Some(""), Err("missing tenant header")),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(TENANT_HEADER, own), (JAEGER_TENANT_HEADER, jaegers)] {
                value.map(|value| headers.insert(name, value.parse().unwrap()));
            }
            let found = tenant(&headers, true, TenantHeaders::Jaeger).map(|t| t.to_string()).map_err(|e| e.to_string());
            assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned), "{headers:?}");
        }
    }
}
