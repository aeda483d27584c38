//! Parameters of a URL, as Jaeger's clients write them.
//!
//! Owns reading single values, with the texts of refusals. Of a parameter given several times the first counts, unless it may be
//! repeated; an empty one counts as absent.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query};
use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use spanhouse_common::id::TraceId;
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::error::Refusal;
use crate::api::go;

/// The parameters of a URL as they come.
pub(super) type Pairs = Query<Vec<(String, String)>>;

/// A segment of a path.
pub(super) type Segment = Result<Path<String>, PathRejection>;

/// Traces a search returns unless it asks for another number.
pub(super) const DEFAULT_LIMIT: usize = 100;

const NANOS_PER_MICRO: u64 = 1_000;
pub(super) const NANOS_PER_MILLI: u64 = 1_000_000;

/// As microseconds these are moments of the year 1973; who sends less means milliseconds.
const LEAST_MICROS: u64 = 100_000_000_000_000;

#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn new(Query(pairs): Pairs) -> Self {
        Self(pairs)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let first = self.0.iter().find(|(key, _)| key == name)?;
        Some(first.1.as_str()).filter(|value| !value.is_empty())
    }

    /// The first of several spellings that has a value, and the value.
    pub(super) fn any<'a>(&'a self, names: &[&'a str]) -> Option<(&'a str, &'a str)> {
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    /// Every value of a parameter, empty ones left out.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Whether the answer is to be indented: anything but `false`.
    pub(super) fn pretty(&self) -> bool {
        self.get("prettyPrint").is_some_and(|value| value != "false")
    }

    pub(super) fn bool(&self, name: &str) -> Result<bool, Refusal> {
        self.get(name).map_or(Ok(false), |text| go::parse_bool(text).map_err(|why| Refusal::parameter(name, why)))
    }

    pub(super) fn int(&self, name: &str) -> Result<Option<i64>, Refusal> {
        let parse = |text| go::parse_int::<i64>(text, "ParseInt").map_err(|why| Refusal::parameter(name, why));
        self.get(name).map(parse).transpose()
    }

    /// A number of milliseconds, not negative.
    pub(super) fn millis(&self, name: &str) -> Result<Option<i64>, Refusal> {
        match self.int(name)? {
            Some(number) if number < 0 => Err(Refusal::parameter(name, format!("{number} is negative"))),
            number => Ok(number),
        }
    }

    /// A moment in microseconds since 1970, as nanoseconds.
    pub(super) fn micros(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let nanos = |micros: i64| u64::try_from(micros).unwrap_or(0).saturating_mul(NANOS_PER_MICRO);
        Ok(self.int(name)?.map(nanos))
    }

    /// `start` and `end` of a request that names its traces: where to look first. Grafana sends milliseconds here.
    pub(super) fn hint(&self) -> Result<Option<TimeRange>, Refusal> {
        let moment = |name| {
            let nanos = |number: i64| match u64::try_from(number).unwrap_or(0) {
                millis @ 0..LEAST_MICROS => millis.saturating_mul(NANOS_PER_MILLI),
                micros => micros.saturating_mul(NANOS_PER_MICRO),
            };
            Ok::<_, Refusal>(self.int(name)?.map(nanos))
        };
        Ok(hint(moment("start")?, moment("end")?))
    }
}

/// Where a trace is said to lie.
pub(super) fn hint(start: Option<u64>, end: Option<u64>) -> Option<TimeRange> {
    let (min, max) = (start.unwrap_or(0), end.unwrap_or(u64::MAX));
    let is_said = start.is_some() || end.is_some();
    (is_said && min <= max).then_some(TimeRange { min: UnixNanos(min), max: UnixNanos(max) })
}

/// Reads a trace id: 1 to 32 hex digits of either case, or what newer clients send, base64 of 8 or 16 bytes.
pub(super) fn trace_id(text: &str) -> Result<TraceId, String> {
    const LONGEST_BASE64: usize = 24;
    let error = match text.parse() {
        Ok(id) => return Ok(id),
        Err(error) => error,
    };
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let bytes = [&STANDARD, &URL_SAFE].into_iter().filter(|_| text.len() <= LONGEST_BASE64).find_map(|alphabet| {
        let bytes = GeneralPurpose::new(alphabet, config).decode(text).ok()?;
        matches!(bytes.len(), 8 | 16).then_some(bytes)
    });
    let bytes = bytes.ok_or_else(|| format!("invalid trace ID {text:?}: {error}"))?;
    let mut id = [0; 16];
    id[16 - bytes.len()..].copy_from_slice(&bytes);
    Ok(TraceId(id))
}

/// The trace id in a path.
pub(super) fn trace_id_of(segment: Segment) -> Result<TraceId, String> {
    let Path(text) = segment.map_err(|error| error.body_text())?;
    trace_id(&text)
}

/// A JSON object of texts, as the clients' tag boxes send it; `null` is an empty one. Of a repeated key the last counts.
pub(super) fn json_texts(text: &str) -> Result<Vec<(String, String)>, String> {
    let object: Option<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    let pair = |(key, value)| match value {
        serde_json::Value::String(value) => Ok((key, value)),
        other => Err(format!("the value of {key:?} is {other}, which is not a string")),
    };
    object.unwrap_or_default().into_iter().map(pair).collect()
}

/// Adds a tag, in place of one of the same key.
pub(super) fn put_tag(tags: &mut Vec<(String, String)>, key: String, value: String) {
    match tags.iter_mut().find(|(known, _)| *known == key) {
        Some(tag) => tag.1 = value,
        None => tags.push((key, value)),
    }
}

/// A bound on durations in nanoseconds; zero and less is none.
pub(super) fn bound(nanos: i64) -> Option<u64> {
    u64::try_from(nanos).ok().filter(|nanos| *nanos > 0)
}

/// OTLP's number of a kind by Jaeger's word for it.
pub(super) fn kind(word: &str) -> Option<i32> {
    const WORDS: [&str; 6] = ["unspecified", "internal", "server", "client", "producer", "consumer"];
    WORDS.iter().position(|known| *known == word).map(|at| at as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_ids() {
        let id = |text: &str| trace_id(text).map(|id| id.to_string());
        assert_eq!(id("A1").unwrap(), "000000000000000000000000000000a1");
        assert_eq!(id("0123456789abcdefFEDCBA9876543210").unwrap(), "0123456789abcdeffedcba9876543210");
        for text in ["AAECAwQFBgcICQoLDA0ODw==", "AAECAwQFBgcICQoLDA0ODw"] {
            assert_eq!(id(text).unwrap(), "000102030405060708090a0b0c0d0e0f");
        }
        assert_eq!(id("-_-_-_-_-_8").unwrap(), "0000000000000000fbffbffbffbffbff");
        assert_eq!(id("+/+/+/+/+/8=").unwrap(), "0000000000000000fbffbffbffbffbff");
        for bad in ["", "xyz", "000000000000000000000000000000001", "AAECAwQFBgcICQoLDA0ODxA=", "AAAA"] {
            // Four digits of A are hex.
            assert_eq!(id(bad).is_err(), bad != "AAAA", "{bad}");
        }
    }

    #[test]
    fn hints_take_both_units() {
        let at = |text: &str| Params::new(Query(vec![("start".into(), text.into())])).hint().unwrap().unwrap().min.0;
        assert_eq!(at("1700000000000000"), 1_700_000_000_000_000_000);
        assert_eq!(at("1700000000000"), 1_700_000_000_000_000_000);
        assert_eq!(hint(None, None), None);
        assert_eq!(hint(Some(u64::MAX), Some(0)), None);
    }
}
