//! Whose data a Jaeger client asks for.
//!
//! Jaeger names a tenant in `x-tenant`, everybody else here in `X-Scope-OrgID`: both are read, in HTTP headers and gRPC metadata. A request
//! has one tenant. Whatever two readers of the same headers could understand differently is refused; the same name twice is not.

use axum::http::HeaderMap;
use spanhouse_common::id::{TenantError, TenantId};

/// In the order in which they are looked for.
const HEADERS: [&str; 2] = ["x-scope-orgid", "x-tenant"];

/// Why a request has no tenant. The texts are Jaeger's where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantRefusal {
    /// Send the header. HTTP 401, gRPC `UNAUTHENTICATED`.
    #[error("missing tenant header")]
    Missing,
    /// Send one name. HTTP 401, gRPC `PERMISSION_DENIED`, as the next.
    #[error("extra tenant header")]
    Extra,
    /// Choose another name.
    #[error(transparent)]
    Invalid(TenantError),
}

impl TenantRefusal {
    /// The refusal of a gRPC call.
    pub fn to_grpc(&self) -> tonic::Status {
        match self {
            Self::Missing => tonic::Status::unauthenticated(self.to_string()),
            Self::Extra | Self::Invalid(_) => tonic::Status::permission_denied(self.to_string()),
        }
    }
}

/// The tenant of a request; the constant one while multi-tenancy is off, whatever the headers say.
pub fn tenant(headers: &HeaderMap, multitenancy: bool) -> Result<TenantId, TenantRefusal> {
    if !multitenancy {
        return Ok(TenantId::single());
    }
    let mut names = HEADERS.into_iter().flat_map(|header| headers.get_all(header));
    let name = names.next().ok_or(TenantRefusal::Missing)?;
    if names.any(|other| other != name) {
        return Err(TenantRefusal::Extra);
    }
    // Bytes that are no UTF-8 become U+FFFD, which no tenant may contain.
    String::from_utf8_lossy(name.as_bytes()).parse().map_err(|error| match error {
        TenantError::Empty => TenantRefusal::Missing,
        other => TenantRefusal::Invalid(other),
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn one_name_in_either_header() {
        let (ours, jaegers) = ("x-scope-orgid", "x-tenant");
        for (headers, expected) in [
            (&[(ours, &b"a"[..])][..], Ok("a")),
            (&[(jaegers, b"a")], Ok("a")),
            (&[(ours, b"a"), (jaegers, b"a")], Ok("a")),
            (&[(jaegers, b"a"), (jaegers, b"a")], Ok("a")),
            (&[], Err("missing tenant header")),
            (&[(jaegers, b"")], Err("missing tenant header")),
            (&[(ours, b"a"), (jaegers, b"b")], Err("extra tenant header")),
            (&[(jaegers, b"a"), (jaegers, b"b")], Err("extra tenant header")),
            (&[(jaegers, b"a|b")], Err("tenant ID 'a|b' contains unsupported character '|'")),
            (&[(jaegers, b"\xff")], Err("tenant ID '\u{fffd}' contains unsupported character '\u{fffd}'")),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, HeaderValue::from_bytes(value).unwrap());
            }
            assert_eq!(tenant(&map, false), Ok(TenantId::single()));
            let found = tenant(&map, true);
            assert_eq!(
                found.as_ref().map(TenantId::as_str).map_err(ToString::to_string),
                expected.map_err(str::to_owned),
                "{headers:?}"
            );
            let code = found.err().map(|refusal| refusal.to_grpc().code());
            let missing = expected == Err("missing tenant header");
            let denied = if missing { tonic::Code::Unauthenticated } else { tonic::Code::PermissionDenied };
            assert_eq!(code, expected.is_err().then_some(denied), "{headers:?}");
        }
    }
}
