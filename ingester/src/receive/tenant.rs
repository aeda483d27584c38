//! Whose request it is, from `X-Scope-OrgID` or, as Jaeger's clients name it, `x-tenant`, in HTTP headers or gRPC metadata.
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

/// Whose answers a port gives to requests without a tenant, or with several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantTexts {
    Tempo,
    Jaeger,
}

/// Why a request has no tenant. The texts are Tempo's, and Jaeger's on its ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantRefusal {
    /// Send the header.
    #[error("no org id")]
    Missing,
    #[error("missing tenant header")]
    MissingForJaeger,
    /// Send one name in one header.
    #[error("multiple org IDs present")]
    Several,
    #[error("extra tenant header")]
    SeveralForJaeger,
    /// Choose another name.
    #[error(transparent)]
    Invalid(TenantError),
}

/// The tenant of a request; the constant one while multi-tenancy is off, whatever the headers say.
pub fn tenant(headers: &HeaderMap, multitenancy: bool, texts: TenantTexts) -> Result<TenantId, TenantRefusal> {
    if !multitenancy {
        return Ok(TenantId::single());
    }
    let (missing, several) = match texts {
        TenantTexts::Tempo => (TenantRefusal::Missing, TenantRefusal::Several),
        TenantTexts::Jaeger => (TenantRefusal::MissingForJaeger, TenantRefusal::SeveralForJaeger),
    };
    let mut values = [TENANT_HEADER, JAEGER_TENANT_HEADER].into_iter().flat_map(|header| headers.get_all(header));
    let Some(value) = values.next() else { return Err(missing) };
    if values.next().is_some() {
        return Err(several);
    }
    // Bytes that are no UTF-8 become U+FFFD, which no tenant may contain.
    let name = String::from_utf8_lossy(value.as_bytes());
    if name.contains('|') {
        return Err(several);
    }
    name.parse().map_err(|error| match error {
        TenantError::Empty => missing,
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
            TenantRefusal::SeveralForJaeger => {
                Self::new(StatusCode::UNAUTHORIZED, Code::PermissionDenied, Outcome::BadTenant, message)
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
        assert_eq!(tenant(&headers, false, TenantTexts::Tempo), Ok(TenantId::single()));
        tenant(&headers, true, TenantTexts::Tempo).map(|t| t.to_string()).map_err(|e| e.to_string())
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
        let (missing, several) =
            (("no org id", "missing tenant header"), ("multiple org IDs present", "extra tenant header"));
        for (own, jaegers, expected) in [
            (None, Some("a"), Ok("a")),
            (Some("a"), None, Ok("a")),
            (Some("a"), Some("b"), Err(several)),
            (None, Some("a|b"), Err(several)),
            (None, None, Err(missing)),
            (None, Some(""), Err(missing)),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(TENANT_HEADER, own), (JAEGER_TENANT_HEADER, jaegers)] {
                value.map(|value| headers.insert(name, value.parse().unwrap()));
            }
            let found = |texts| tenant(&headers, true, texts).map(|t| t.to_string()).map_err(|e| e.to_string());
            let expected = |text: fn((&str, &str)) -> String| expected.map(str::to_owned).map_err(text);
            assert_eq!(found(TenantTexts::Tempo), expected(|texts| texts.0.to_owned()), "{headers:?}");
            assert_eq!(found(TenantTexts::Jaeger), expected(|texts| texts.1.to_owned()), "{headers:?}");
        }
    }
}
