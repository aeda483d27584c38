//! Fields of requests: times, durations, ids, words and values, with what Go's clients send for "not set".

use prost_types::{Duration, Timestamp};
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::model::Value;
use spanhouse_common::time::{TimeRange, UnixNanos};
use spanhouse_proto::jaeger_expression::Call;
use spanhouse_proto::jaeger_storage_v2::{AnyValue, any_value};
use tonic::Status;

use super::call::{NOT_FOUND, refused};
use crate::jaeger::TraceSearch;
use crate::jaeger::filter::condition;
use crate::jaeger::model::{kind_word, value_text};

/// Seconds of the year 1, Go's time that was never set. It arrives as a message that is there.
const GO_ZERO_SECONDS: i64 = -62_135_596_800;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// Traces that a search without a limit finds.
const DEFAULT_LIMIT: usize = 100;

/// Nanoseconds since 1970. `None` if the time is not set, in any of the ways in which clients leave it out. Times that do not fit
/// become the nearest that does.
pub(super) fn time(time: Option<Timestamp>) -> Option<u64> {
    let time = time.filter(|time| time.seconds != GO_ZERO_SECONDS && (time.seconds, time.nanos) != (0, 0))?;
    Some(nanos(time.seconds, time.nanos).clamp(0, u64::MAX.into()) as u64)
}

/// Nanoseconds; `None` for zero, which is "not set", and for less.
pub(super) fn duration(duration: Option<Duration>) -> Option<u64> {
    let duration = duration?;
    let nanos = nanos(duration.seconds, duration.nanos);
    (nanos > 0).then(|| nanos.min(u64::MAX.into()) as u64)
}

fn nanos(seconds: i64, nanos: i32) -> i128 {
    i128::from(seconds) * NANOS_PER_SECOND + i128::from(nanos)
}

pub(super) fn timestamp(nanos: u64) -> Timestamp {
    let second = NANOS_PER_SECOND as u64;
    Timestamp { seconds: (nanos / second) as i64, nanos: (nanos % second) as i32 }
}

/// Where to look for a trace; `None` for everywhere. Only a help to find it sooner, so what makes no sense is ignored.
pub(super) fn hint(start: Option<Timestamp>, end: Option<Timestamp>) -> Option<TimeRange> {
    let (start, end) = (time(start), time(end));
    let range = TimeRange { min: UnixNanos(start.unwrap_or(0)), max: UnixNanos(end.unwrap_or(u64::MAX)) };
    ((start.is_some() || end.is_some()) && range.min <= range.max).then_some(range)
}

/// A trace id of 16 bytes, or of the 8 that older clients send.
pub(super) fn trace_id(bytes: &[u8]) -> Result<TraceId, Status> {
    let mut id = [0; 16];
    match bytes.len() {
        16 => id.copy_from_slice(bytes),
        8 => id[8..].copy_from_slice(bytes),
        0 => {}
        other => return Err(Status::invalid_argument(format!("a trace ID has 16 bytes, this one has {other}"))),
    }
    let id = TraceId(id);
    if id.is_valid() { Ok(id) } else { Err(Status::invalid_argument("uninitialized TraceID is not allowed")) }
}

pub(super) fn not_found() -> Status {
    Status::not_found(NOT_FOUND)
}

/// The window of a question about dependencies.
pub(super) fn window(start: Option<Timestamp>, end: Option<Timestamp>) -> Result<TimeRange, Status> {
    let (Some(start), Some(end)) = (time(start), time(end)) else {
        return Err(Status::invalid_argument("StartTime and EndTime must be initialized."));
    };
    if end < start {
        return Err(Status::invalid_argument("EndTime must not be before StartTime"));
    }
    Ok(TimeRange { min: UnixNanos(start), max: UnixNanos(end) })
}

/// What a word says about the kind of operations.
pub(super) enum Kind {
    Any,
    /// OTLP's number.
    Only(i32),
    /// A word nobody knows: nothing is of that kind.
    Nothing,
}

pub(super) fn kind(word: &str) -> Kind {
    if word.is_empty() {
        return Kind::Any;
    }
    (1..=5).find(|kind| kind_word(*kind).eq_ignore_ascii_case(word)).map_or(Kind::Nothing, Kind::Only)
}

/// The fields that every version of the protocol has for a search.
pub(super) struct SearchFields {
    pub(super) service: String,
    pub(super) operation: String,
    pub(super) tags: Vec<(String, String)>,
    pub(super) start_min: Option<Timestamp>,
    pub(super) start_max: Option<Timestamp>,
    pub(super) duration_min: Option<Duration>,
    pub(super) duration_max: Option<Duration>,
    pub(super) limit: i32,
    /// In place of service, operation, tags and durations.
    pub(super) filter: Option<Call>,
}

impl SearchFields {
    pub(super) fn search(self, tenant: TenantId) -> Result<TraceSearch, Status> {
        let is_plain = self.service.is_empty()
            && self.operation.is_empty()
            && self.tags.is_empty()
            && duration(self.duration_min).or(duration(self.duration_max)).is_none();
        if self.filter.is_some() && !is_plain {
            let text = "a filter stands in place of service name, operation name, attributes and durations";
            return Err(Status::invalid_argument(text));
        }
        let filter = self.filter.as_ref().map(condition).transpose().map_err(|error| refused("filter", &error))?;
        let named = |name: String| Some(name).filter(|name| !name.is_empty());
        Ok(TraceSearch {
            tenants: vec![tenant],
            service: named(self.service),
            operation: named(self.operation),
            tags: self.tags,
            start_min: time(self.start_min),
            start_max: time(self.start_max),
            duration_min: duration(self.duration_min),
            duration_max: duration(self.duration_max),
            limit: usize::try_from(self.limit).ok().filter(|limit| *limit > 0).unwrap_or(DEFAULT_LIMIT),
            filter,
        })
    }
}

/// The text form of a value, by which attributes are compared whatever their type. The value is no deeper than a message may be.
pub(super) fn text(value: Option<AnyValue>) -> String {
    value_text(&model_value(value)).into_owned()
}

fn model_value(value: Option<AnyValue>) -> Value {
    match value.and_then(|value| value.value) {
        None => Value::Empty,
        Some(any_value::Value::StringValue(text)) => Value::Str(text),
        Some(any_value::Value::BoolValue(value)) => Value::Bool(value),
        Some(any_value::Value::IntValue(value)) => Value::Int(value),
        Some(any_value::Value::DoubleValue(value)) => Value::Double(value),
        Some(any_value::Value::BytesValue(bytes)) => Value::Bytes(bytes),
        Some(any_value::Value::ArrayValue(array)) => {
            Value::Array(array.values.into_iter().map(|value| model_value(Some(value))).collect())
        }
        Some(any_value::Value::KvlistValue(list)) => {
            Value::Map(list.values.into_iter().map(|pair| (pair.key, model_value(pair.value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_were_never_set() {
        let at = |seconds, nanos| Some(Timestamp { seconds, nanos });
        for (given, expected) in [
            (None, None),
            (at(0, 0), None),
            (at(GO_ZERO_SECONDS, 0), None),
            (at(0, 1), Some(1)),
            (at(1, 2), Some(1_000_000_002)),
            (at(-5, 0), Some(0)),
            (at(i64::MAX, i32::MAX), Some(u64::MAX)),
            (at(i64::MIN, i32::MIN), Some(0)),
        ] {
            assert_eq!(time(given), expected, "{given:?}");
        }
        let long = |seconds, nanos| Some(Duration { seconds, nanos });
        for (given, expected) in [
            (None, None),
            (long(0, 0), None),
            (long(0, -1), None),
            (long(0, 1), Some(1)),
            (long(1, 500_000_000), Some(1_500_000_000)),
            (long(i64::MAX, 0), Some(u64::MAX)),
            (long(i64::MIN, i32::MIN), None),
        ] {
            assert_eq!(duration(given), expected, "{given:?}");
        }
        let all = |range: Option<TimeRange>| range.map(|range| (range.min.0, range.max.0));
        assert_eq!(all(hint(None, at(GO_ZERO_SECONDS, 0))), None);
        assert_eq!(all(hint(at(1, 0), None)), Some((1_000_000_000, u64::MAX)));
        assert_eq!(all(hint(at(2, 0), at(1, 0))), None, "no help");
        assert!(window(at(1, 0), None).is_err() && window(at(2, 0), at(1, 0)).is_err());
        assert_eq!(timestamp(1_000_000_002), Timestamp { seconds: 1, nanos: 2 });
    }

    #[test]
    fn ids_of_either_width() {
        assert_eq!(trace_id(&[7; 16]).unwrap(), TraceId([7; 16]));
        assert_eq!(trace_id(&[0, 0, 0, 0, 0, 0, 1, 2]).unwrap().to_string(), format!("{:032x}", 258));
        for bad in [&[][..], &[0; 16], &[0; 8], &[1; 15], &[1; 17], &[1]] {
            assert_eq!(trace_id(bad).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn kinds_by_word() {
        let number = |word| match kind(word) {
            Kind::Any => -1,
            Kind::Only(kind) => kind,
            Kind::Nothing => -2,
        };
        let words = ["", "internal", "server", "client", "producer", "Consumer", "what"];
        assert_eq!(words.map(number), [-1, 1, 2, 3, 4, 5, -2]);
    }

    #[test]
    fn values_are_compared_as_text() {
        let of = |value| text(Some(AnyValue { value: Some(value) }));
        assert_eq!(of(any_value::Value::IntValue(123)), "123");
        assert_eq!(of(any_value::Value::DoubleValue(72.5)), "72.5");
        assert_eq!(of(any_value::Value::BoolValue(true)), "true");
        assert_eq!(of(any_value::Value::BytesValue(vec![0, 0, 0x30, 0x39])), "AAAwOQ==");
        assert_eq!(text(None), "");
    }
}
