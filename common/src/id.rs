//! Identifiers: parse, print, order. A value of these types is valid by construction.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::time::UnixNanos;

/// Longest tenant name in bytes, as in Tempo.
pub const MAX_TENANT_BYTES: usize = 150;

/// Why a tenant name was refused. The texts are Tempo's: clients show them verbatim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    #[error("no org id")]
    Empty,
    #[error("tenant ID is too long: max {MAX_TENANT_BYTES} characters")]
    TooLong,
    #[error("tenant ID is '.' or '..'")]
    DotName,
    #[error("tenant ID '{name}' contains unsupported character '{character}'")]
    BadCharacter { name: String, character: char },
}

/// Name of a tenant: 1 to 150 bytes of `[a-zA-Z0-9!\-_.*'()]`, never `.` or `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// The tenant of every request while multi-tenancy is off.
    pub fn single() -> Self {
        Self(Arc::from("single-tenant"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantId {
    type Err = TenantError;

    fn from_str(name: &str) -> Result<Self, TenantError> {
        if name.is_empty() {
            return Err(TenantError::Empty);
        }
        let bad = |c: &char| !(c.is_ascii_alphanumeric() || "!-_.*'()".contains(*c));
        if let Some(character) = name.chars().find(bad) {
            return Err(TenantError::BadCharacter { name: name.chars().take(MAX_TENANT_BYTES).collect(), character });
        }
        if name.len() > MAX_TENANT_BYTES {
            return Err(TenantError::TooLong);
        }
        if name == "." || name == ".." {
            return Err(TenantError::DotName);
        }
        Ok(Self(Arc::from(name)))
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({})", self.0)
    }
}

impl Serialize for TenantId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TenantId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// Why text is not a trace id. The texts are Tempo's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceIdError {
    #[error("trace IDs can only contain hex characters: invalid character '{character}' at position {position}")]
    NotHex { character: char, position: usize },
    #[error("trace IDs can't be larger than 128 bits")]
    TooLong,
    #[error("trace IDs can't be empty")]
    Empty,
}

/// 16 bytes that name a trace, compared as big-endian bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TraceId(pub [u8; 16]);

impl TraceId {
    /// Whether the id is usable: the W3C forbids all zeros.
    pub fn is_valid(self) -> bool {
        self.0 != [0; 16]
    }
}

impl FromStr for TraceId {
    type Err = TraceIdError;

    /// Reads 1 to 32 hex digits of either case, padded with zeros on the left.
    fn from_str(text: &str) -> Result<Self, TraceIdError> {
        if let Some((at, character)) = text.chars().enumerate().find(|(_, c)| !c.is_ascii_hexdigit()) {
            return Err(TraceIdError::NotHex { character, position: at + 1 });
        }
        if text.is_empty() {
            return Err(TraceIdError::Empty);
        }
        if text.len() > 32 {
            return Err(TraceIdError::TooLong);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| TraceIdError::TooLong)?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// 8 bytes that name a span inside a trace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SpanId(pub [u8; 8]);

impl SpanId {
    /// Whether the id is usable: the W3C forbids all zeros.
    pub fn is_valid(self) -> bool {
        self.0 != [0; 8]
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id: UUID version 7, so ids sort by the time they were made.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// When it was made, to the millisecond: a UUID of version 7 holds that. `None` for any other id.
            pub fn made(&self) -> Option<UnixNanos> {
                let millis = self.as_bytes()[..6].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
                (self.0.get_version_num() == 7).then(|| UnixNanos(millis.saturating_mul(1_000_000)))
            }

            /// The 16 bytes of the id, for use in checksums and tests.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Ok(Self(Uuid::try_parse(text)?))
            }
        }
    };
}

uuid_id! {
    /// Name of a block. Every attempt to write a block takes a new one, so an object name is never used twice.
    BlockId
}

uuid_id! {
    /// Name of a pack of trace-id filters. Every attempt to write a pack takes a new one.
    PackId
}

uuid_id! {
    /// Name of a writer: one data directory with a WAL. Made at the directory's first start and kept in it.
    WriterId
}

/// A place in one writer's WAL. Each process start opens a new epoch; sequences count records from 1 within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct WalPosition {
    pub epoch: u64,
    pub sequence: u64,
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_ids_of_any_width_and_case() {
        let id: TraceId = "aBc".parse().unwrap();
        assert_eq!(id.to_string(), "00000000000000000000000000000abc");
        assert_eq!("".parse::<TraceId>(), Err(TraceIdError::Empty));
        let err = "12x4".parse::<TraceId>().unwrap_err().to_string();
        assert_eq!(err, "trace IDs can only contain hex characters: invalid character 'x' at position 3");
        assert_eq!("0".repeat(33).parse::<TraceId>(), Err(TraceIdError::TooLong));
        assert_eq!("f".repeat(32).parse::<TraceId>().unwrap().0, [0xff; 16]);
    }

    #[test]
    fn tenants_as_tempo_validates_them() {
        for good in ["a", "A.b", "single-tenant", "a!-_.*'()", "..."] {
            assert_eq!(good.parse::<TenantId>().unwrap().as_str(), good);
        }
        let text = |name: &str| name.parse::<TenantId>().unwrap_err().to_string();
        assert_eq!(text(""), "no org id");
        assert_eq!(text("."), "tenant ID is '.' or '..'");
        assert_eq!(text("a/b"), "tenant ID 'a/b' contains unsupported character '/'");
        assert_eq!(text(&"a".repeat(151)), "tenant ID is too long: max 150 characters");
    }
}
