//! The overrides file: limits and retention for all tenants and for single ones.
//!
//! ```yaml
//! defaults:
//!   ingestion_rate_bytes: 30000000
//!   retention: 168h
//! overrides:
//!   team-a:
//!     ingestion_rate_bytes: null     # unlimited
//!     max_trace_bytes: 5000000
//! ```
//!
//! A tenant's key wins over `defaults`, which win over the configuration. A key that is not there inherits. A key nobody knows
//! is an error: a limit with a typing mistake must not silently be no limit. A shorter retention takes effect at the compactor's
//! next round, and what it retires does not come back.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use spanhouse_common::id::TenantId;
use spanhouse_common::retention::SHORTEST_RETENTION;
use spanhouse_common::units::parse_duration;

use super::limits::Limits;

/// A file of 100,000 tenants fits; anything larger is not an overrides file.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Why the overrides cannot be used. Fix the file; until then the old limits stay in force.
#[derive(Debug, thiserror::Error)]
pub enum OverridesError {
    #[error("cannot read overrides file {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("overrides are not YAML: {0}")]
    Syntax(String),
    #[error("overrides: unknown key `{at}`{}", nearest.as_ref().map(|n| format!(", did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey { at: String, nearest: Option<&'static str> },
    #[error("overrides: `{at}` must be {expected}")]
    BadValue { at: String, expected: &'static str },
    #[error("overrides: `{name}` cannot be a tenant: {reason}")]
    BadTenant { name: String, reason: String },
}

/// The limits of every tenant at one time.
#[derive(Clone, Debug)]
pub struct Overrides {
    defaults: Limits,
    tenants: HashMap<TenantId, Limits>,
    /// Where `retention` is set: in `defaults`, and for which tenants.
    retention_default: bool,
    retention_of: HashSet<TenantId>,
}

/// Where a value in force comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration of the process, or its defaults.
    Config,
    /// `defaults` of the overrides file.
    OverridesDefaults,
    /// The tenant's own section of it.
    OverridesTenant,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "config",
            Self::OverridesDefaults => "overrides defaults",
            Self::OverridesTenant => "overrides tenant",
        })
    }
}

impl Overrides {
    /// The same limits for everybody.
    pub fn only(defaults: Limits) -> Self {
        Self { defaults, tenants: HashMap::new(), retention_default: false, retention_of: HashSet::new() }
    }

    /// Reads the overrides at `path`; without one the limits are `base` for everybody.
    pub fn load(path: Option<&Path>, base: Limits) -> Result<Self, OverridesError> {
        path.map_or_else(|| Ok(Self::only(base)), |path| Self::parse(&read_file(path)?, base))
    }

    /// Reads the text of an overrides file; what it leaves out is as in `base`.
    pub fn parse(text: &str, base: Limits) -> Result<Self, OverridesError> {
        let root: Value = serde_saphyr::from_str(text).map_err(|error| OverridesError::Syntax(error.to_string()))?;
        let root = section(&root, "top level")?;
        for key in root.keys() {
            if !["defaults", "overrides"].contains(&key.as_str()) {
                return Err(unknown(key, key, &["defaults", "overrides"]));
            }
        }
        let mut parsed = Self::only(base);
        if let Some(defaults) = root.get("defaults") {
            let keys = section(defaults, "defaults")?;
            parsed.defaults = apply(base, keys, "defaults")?;
            parsed.retention_default = keys.contains_key(RETENTION);
        }
        let none = Map::new();
        let tenants = root.get("overrides").map_or(Ok(&none), |value| section(value, "overrides"))?;
        for (name, limits) in tenants {
            let tenant: TenantId = name.parse().map_err(|error: spanhouse_common::id::TenantError| {
                OverridesError::BadTenant { name: name.clone(), reason: error.to_string() }
            })?;
            let at = format!("overrides.{name}");
            let keys = section(limits, &at)?;
            if keys.contains_key(RETENTION) {
                parsed.retention_of.insert(tenant.clone());
            }
            parsed.tenants.insert(tenant, apply(parsed.defaults, keys, &at)?);
        }
        Ok(parsed)
    }

    pub fn limits(&self, tenant: &TenantId) -> Limits {
        self.tenants.get(tenant).copied().unwrap_or(self.defaults)
    }

    /// Which section the retention of a tenant comes from.
    pub fn retention_source(&self, tenant: &TenantId) -> Source {
        match (self.retention_of.contains(tenant), self.retention_default) {
            (true, _) => Source::OverridesTenant,
            (false, true) => Source::OverridesDefaults,
            (false, false) => Source::Config,
        }
    }

    /// The limits of every tenant that has none of its own.
    pub fn defaults(&self) -> Limits {
        self.defaults
    }

    /// Tenants with limits of their own, and these, by name.
    pub fn named(&self) -> Vec<(&TenantId, &Limits)> {
        let mut named: Vec<_> = self.tenants.iter().collect();
        named.sort_unstable_by_key(|(tenant, _)| *tenant);
        named
    }

    /// Tenants with limits of their own.
    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }
}

/// Reads the file, but never more than an overrides file can have.
pub(super) fn read_file(path: &Path) -> Result<String, OverridesError> {
    let failed = |source| OverridesError::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(failed(std::io::Error::other(format!("larger than {MAX_FILE_BYTES} bytes"))));
    }
    Ok(text)
}

/// A mapping; nothing at all is an empty one.
fn section<'a>(value: &'a Value, at: &str) -> Result<&'a Map<String, Value>, OverridesError> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(&EMPTY),
        _ => Err(OverridesError::BadValue { at: at.to_owned(), expected: "a mapping" }),
    }
}

const RETENTION: &str = "retention";

const KEYS: &[&str] =
    &["ingestion_rate_bytes", "ingestion_burst_bytes", "max_trace_bytes", "max_attribute_bytes", RETENTION];

fn apply(mut limits: Limits, keys: &Map<String, Value>, at: &str) -> Result<Limits, OverridesError> {
    for (key, value) in keys {
        let at = format!("{at}.{key}");
        match key.as_str() {
            "ingestion_rate_bytes" => limits.ingestion_rate_bytes = bytes(value, at)?,
            "ingestion_burst_bytes" => limits.ingestion_burst_bytes = bytes(value, at)?,
            "max_trace_bytes" => limits.max_trace_bytes = bytes(value, at)?.unwrap_or(u64::MAX),
            "max_attribute_bytes" => limits.max_attribute_bytes = bytes(value, at)?,
            RETENTION => limits.retention = retention(value, at)?,
            _ => return Err(unknown(key, &at, KEYS)),
        }
    }
    Ok(limits)
}

/// A number of bytes; null lifts the limit. Zero is refused: elsewhere it means "unlimited", here one would expect "nothing".
fn bytes(value: &Value, at: String) -> Result<Option<u64>, OverridesError> {
    match (value, value.as_u64()) {
        (Value::Null, _) => Ok(None),
        (_, Some(bytes)) if bytes > 0 => Ok(Some(bytes)),
        _ => Err(OverridesError::BadValue { at, expected: "a positive number of bytes, or null for no limit" }),
    }
}

/// A duration. Null is refused: elsewhere it lifts a limit, and nobody should keep spans for ever by a slip.
fn retention(value: &Value, at: String) -> Result<Duration, OverridesError> {
    let duration = value.as_str().and_then(|text| parse_duration(text).ok()).filter(|d| *d >= SHORTEST_RETENTION);
    duration.ok_or(OverridesError::BadValue { at, expected: "a duration of at least 1h, as in 336h" })
}

fn unknown(key: &str, at: &str, known: &[&'static str]) -> OverridesError {
    let nearest = known.iter().map(|known| (distance(key, known), *known)).min();
    // Beyond half of its letters a word is another word.
    let nearest = nearest.filter(|(distance, known)| *distance <= known.len() / 2).map(|(_, known)| known);
    OverridesError::UnknownKey { at: at.to_owned(), nearest }
}

/// Insertions, deletions and replacements that make `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    // A key longer than any word would only cost time.
    let a: Vec<char> = a.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, y) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, x) in a.iter().enumerate() {
            let replaced = diagonal + usize::from(*x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str, tenant: &str) -> Limits {
        Overrides::parse(text, Limits::default()).unwrap().limits(&tenant.parse().unwrap())
    }

    #[test]
    fn tenants_inherit_from_defaults_and_these_from_the_configuration() {
        let text = "
defaults:
  ingestion_rate_bytes: 30000000
  max_attribute_bytes: 2048
overrides:
  team-a:
    ingestion_rate_bytes: null
    max_trace_bytes: 5000000
  team-b: {ingestion_burst_bytes: 7}
  team-c:
";
        let base = Limits { ingestion_rate_bytes: Some(30_000_000), max_attribute_bytes: Some(2048), ..Limits::default() };
        assert_eq!(limits(text, "other"), base);
        assert_eq!(limits(text, "team-a"), Limits { ingestion_rate_bytes: None, max_trace_bytes: 5_000_000, ..base });
        assert_eq!(limits(text, "team-b"), Limits { ingestion_burst_bytes: Some(7), ..base });
        assert_eq!(limits(text, "team-c"), base);
    }

    #[test]
    fn retention_is_inherited_and_its_source_known() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let tenants = "overrides: {own: {retention: 30d}, other: {max_trace_bytes: 1}, none: }";
        for (defaults, by_default) in [
            ("", (hours(336), Source::Config)),
            ("defaults: {max_trace_bytes: 1}\n", (hours(336), Source::Config)),
            ("defaults: {retention: 1h30m}\n", (Duration::from_secs(5400), Source::OverridesDefaults)),
        ] {
            let overrides = Overrides::parse(&format!("{defaults}{tenants}"), Limits::default()).unwrap();
            for (tenant, expected) in [
                ("own", (hours(720), Source::OverridesTenant)),
                ("other", by_default),
                ("none", by_default),
                ("nobody", by_default),
            ] {
                let tenant = tenant.parse().unwrap();
                let found = (overrides.limits(&tenant).retention, overrides.retention_source(&tenant));
                assert_eq!(found, expected, "{tenant} {defaults}");
            }
        }
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        for text in ["", "# only a comment\n", "{}", "overrides:\n", "defaults: {}\noverrides: {}"] {
            assert_eq!(limits(text, "a"), Limits::default(), "{text:?}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("override: {}", "overrides: unknown key `override`, did you mean `overrides`?"),
            (
                "overrides: {a: {ingestion_rate_byts: 1}}",
                "overrides: unknown key `overrides.a.ingestion_rate_byts`, did you mean `ingestion_rate_bytes`?",
            ),
            ("defaults: {sampling: 1}", "overrides: unknown key `defaults.sampling`"),
            ("overrides: {a: {retentoin: 1h}}", "overrides: unknown key `overrides.a.retentoin`, did you mean `retention`?"),
            ("defaults: {retention: 14}", "overrides: `defaults.retention` must be a duration of at least 1h, as in 336h"),
            ("defaults: {retention: 59m}", "overrides: `defaults.retention` must be a duration of at least 1h, as in 336h"),
            (
                "overrides: {a: {retention: null}}",
                "overrides: `overrides.a.retention` must be a duration of at least 1h, as in 336h",
            ),
            (
                "defaults: {max_trace_bytes: 5MB}",
                "overrides: `defaults.max_trace_bytes` must be a positive number of bytes, or null for no limit",
            ),
            (
                "defaults: {max_trace_bytes: 0}",
                "overrides: `defaults.max_trace_bytes` must be a positive number of bytes, or null for no limit",
            ),
            ("- a", "overrides: `top level` must be a mapping"),
            ("overrides: [a]", "overrides: `overrides` must be a mapping"),
            (
                "overrides: {a/b: {}}",
                "overrides: `a/b` cannot be a tenant: tenant ID 'a/b' contains unsupported character '/'",
            ),
        ] {
            assert_eq!(Overrides::parse(text, Limits::default()).unwrap_err().to_string(), expected, "{text}");
        }
        for text in ["overrides: {a: {}, a: {}}", "overrides: {"] {
            let error = Overrides::parse(text, Limits::default()).unwrap_err();
            assert!(matches!(error, OverridesError::Syntax(_)), "{text}: {error}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
