//! Values as people write them: `64MiB`, `10m`, `unlimited`, `auto`.
//!
//! Owns reading and writing of single settings. Does not own which settings exist or what they mean.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use spanhouse_common::units::{parse_duration, scaled, show_duration};

/// A setting that is written as one word: the same in the file, in the environment and on the command line.
pub(super) trait Value: Sized {
    /// The error says what was expected, not which field: the caller knows that.
    fn parse(text: &str) -> Result<Self, String>;
    /// The shortest text that `parse` reads back as the same value.
    fn show(&self) -> String;
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Units from large to small, so that `show` finds the largest that divides; powers of two first because they are ours.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl ByteSize {
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// For lengths of buffers; saturates where `usize` is narrower.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = SIZES.iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size));
        let (name, size) = unit.copied().unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / size)
    }
}

impl Value for ByteSize {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is not a size: expected a number with a unit, as in 64MiB, 20MB or 4096");
        let (number, unit) = split_number(text).ok_or_else(expected)?;
        let scale = match unit {
            "" => 1,
            "K" | "M" | "G" | "T" => {
                return Err(format!("`{text}`: write {unit}iB (powers of 1024) or {unit}B (powers of 1000)"));
            }
            _ => {
                SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, size)| *size).ok_or_else(expected)?
            }
        };
        scaled(number, scale).map(Self).ok_or_else(expected)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for Duration {
    fn parse(text: &str) -> Result<Self, String> {
        parse_duration(text)
    }

    fn show(&self) -> String {
        show_duration(*self)
    }
}

/// Splits `1.5GiB` into `1.5` and `GiB`.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (end > 0).then(|| (&text[..end], text[end..].trim()))
}

/// A bound that may be absent: written `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<ByteSize>);

impl Value for Limit {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "unlimited" => Ok(Self(None)),
            _ => ByteSize::parse(text).map(|size| Self(Some(size))).map_err(|e| format!("{e}, or `unlimited`")),
        }
    }

    fn show(&self) -> String {
        self.0.map_or_else(|| "unlimited".into(), |size| size.show())
    }
}

/// A size the process works out for itself unless told: written `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auto(pub Option<ByteSize>);

impl Value for Auto {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(None)),
            _ => ByteSize::parse(text).map(|size| Self(Some(size))).map_err(|e| format!("{e}, or `auto`")),
        }
    }

    fn show(&self) -> String {
        self.0.map_or_else(|| "auto".into(), |size| size.show())
    }
}

/// A listening port. A busy port is an error if somebody asked for it, and a warning if it is only our default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// 0 lets the system choose a free one; `None`, written `off`, serves nothing.
    pub number: Option<u16>,
    /// Set by a file, a variable or a flag, even if to the default's number.
    pub explicit: bool,
}

impl Value for Port {
    fn parse(text: &str) -> Result<Self, String> {
        // YAML takes the word for a boolean.
        if text == "off" || text == "false" {
            return Ok(Self { number: None, explicit: true });
        }
        let number = text.parse().map_err(|_| format!("`{text}` is not a port: expected 0 to 65535, or off"))?;
        Ok(Self { number: Some(number), explicit: true })
    }

    fn show(&self) -> String {
        self.number.map_or_else(|| "off".to_owned(), |number| number.to_string())
    }
}

/// Which roles this process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    All,
}

impl Value for Target {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => Err(format!("target `{text}` does not exist; the targets of this version are: all")),
        }
    }

    fn show(&self) -> String {
        "all".into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Value for LogFormat {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is not a log format: expected text or json")),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Json => "json".into(),
        }
    }
}

impl Value for bool {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is neither true nor false"))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u64 {
    fn parse(text: &str) -> Result<Self, String> {
        text.replace('_', "").parse().map_err(|_| format!("`{text}` is not a whole number"))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for f64 {
    fn parse(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| format!("`{text}` is not a number, as in 0.5"))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for IpAddr {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "localhost" => Ok(Self::V4(Ipv4Addr::LOCALHOST)),
            _ => text.parse().map_err(|_| {
                format!("`{text}` is not an IP address, as in 127.0.0.1, 0.0.0.0 or ::1 (ports are set under `ports`)")
            }),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("an empty path".into()) } else { Ok(Self::from(text)) }
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

/// `none` stands for a setting that is not there.
impl<T: Value> Value for Option<T> {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(None) } else { T::parse(text).map(Some) }
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "none".into(), T::show)
    }
}

/// Free-form options handed on as they are, for what differs between object stores.
pub type Options = BTreeMap<String, String>;

/// Whether an option's value must never be printed.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["secret", "password", "token", "access_key", "account_key", "sas", "credential", "private"]
        .iter()
        .any(|word| name.contains(word))
        && !name.ends_with("access_key_id")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Value + PartialEq + fmt::Debug>(text: &str, value: T, shown: &str) {
        assert_eq!(T::parse(text).as_ref(), Ok(&value), "{text}");
        assert_eq!(value.show(), shown);
        assert_eq!(T::parse(shown), Ok(value), "{shown} reads back");
    }

    #[test]
    fn sizes_and_durations_read_and_print() {
        check("64MiB", ByteSize::mib(64), "64MiB");
        check("100MB", ByteSize(100_000_000), "100MB");
        check("4096", ByteSize(4096), "4KiB");
        check("1.5gib", ByteSize(3 << 29), "1536MiB");
        check("0", ByteSize(0), "0B");
        check("unlimited", Limit(None), "unlimited");
        check("1e-5", 1e-5, "0.00001");
        check("0.016666666666666666", 1.0 / 60.0, "0.016666666666666666");
        assert!(f64::parse("NaN").is_err() && f64::parse("inf").is_err() && f64::parse("").is_err());
        check("14d", Duration::from_secs(14 * 86400), "336h");
        for bad in ["", "x", "12q", "1.2.3MB", "99999999999TiB", "5M"] {
            assert!(ByteSize::parse(bad).is_err(), "{bad}");
        }
        assert!(Target::parse("querier").unwrap_err().contains("are: all"));
    }

    #[test]
    fn secrets_are_known_by_name() {
        assert!(is_secret("aws_secret_access_key") && is_secret("azure_storage_sas_key") && is_secret("session_token"));
        assert!(!is_secret("aws_access_key_id") && !is_secret("region") && !is_secret("allow_http"));
    }
}
