//! Counts the sampled root spans of each operation, as requests are accepted.
//!
//! Owns what is counted and the bounds on it. A request is looked through before its spans go to the log and counted once they
//! are durable, so that a refused request that is sent again counts once. Costs a look at the shapes of a batch (the keys its
//! spans have) where nobody tags spans with their sampler, and nothing where adaptive sampling is off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use spanhouse_common::batch::{Attr, Shape, SpanBatch, ValueKind};
use spanhouse_common::id::SpanId;
use spanhouse_common::time::{Clock, UnixNanos};

use super::super::metrics::SamplingMetrics;

/// Operations of all services in one period; further ones are not learned.
pub const MAX_OPERATIONS: usize = 10_000;
/// Longest name of a service or operation that is learned, in bytes.
const MAX_NAME: usize = 256;
/// Probabilities kept of one operation and period: its clients have the last ones they were told.
const MAX_PROBABILITIES: usize = 32;

const SAMPLER_TYPE: &[u8] = b"sampler.type";
const SAMPLER_PARAM: &[u8] = b"sampler.param";

/// A probability to six decimals, which is how precisely two are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millionths(pub u32);

impl Millionths {
    pub fn of(probability: f64) -> Self {
        // Saturates; what is no number becomes 0.
        Self((probability * 1e6).round() as u32)
    }
}

/// What was seen of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Root spans sampled by probability.
    pub count: u64,
    /// What their clients sampled with.
    pub probabilities: BTreeSet<Millionths>,
}

/// What was seen in a period, by service and operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Throughput {
    pub services: BTreeMap<String, BTreeMap<String, Seen>>,
}

impl Throughput {
    /// Operations of all services.
    pub fn len(&self) -> usize {
        self.services.values().map(BTreeMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Adds what was seen elsewhere or later. Returns the spans of operations for which there is no more room.
    pub fn add(&mut self, other: Self) -> u64 {
        let mut room = MAX_OPERATIONS.saturating_sub(self.len());
        let mut passed_over = 0;
        for (service, operations) in other.services {
            for (operation, seen) in operations {
                let known = self.services.get_mut(&service).and_then(|operations| operations.get_mut(&operation));
                match known {
                    Some(known) => known.add(seen),
                    None if room > 0 => {
                        room -= 1;
                        self.services.entry(service.clone()).or_default().insert(operation, seen);
                    }
                    None => passed_over += seen.count.max(1),
                }
            }
        }
        passed_over
    }
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        for probability in other.probabilities {
            self.see(probability);
        }
    }

    fn see(&mut self, probability: Millionths) {
        if self.probabilities.len() < MAX_PROBABILITIES {
            self.probabilities.insert(probability);
        }
    }
}

/// Counts by period.
#[derive(Debug)]
pub struct Observer {
    clock: Arc<dyn Clock>,
    interval: Duration,
    periods: Mutex<BTreeMap<UnixNanos, Throughput>>,
    metrics: SamplingMetrics,
}

impl Observer {
    pub fn new(clock: Arc<dyn Clock>, interval: Duration, metrics: SamplingMetrics) -> Self {
        Self { clock, interval, periods: Mutex::default(), metrics }
    }

    /// Counts what [`look`] found in a request that is durable now.
    pub fn add(&self, seen: Throughput) {
        if seen.is_empty() {
            return;
        }
        let period = period_of(self.clock.now(), self.interval);
        let mut periods = self.periods.lock();
        let passed_over = periods.entry(period).or_default().add(seen);
        drop(periods);
        self.metrics.passed_over(passed_over);
    }

    /// Takes what was counted in periods that start before `before`, oldest first.
    pub fn take_before(&self, before: UnixNanos) -> Vec<(UnixNanos, Throughput)> {
        let mut periods = self.periods.lock();
        let rest = periods.split_off(&before);
        std::mem::replace(&mut *periods, rest).into_iter().collect()
    }
}

/// The start of the period that `time` lies in.
pub(super) fn period_of(time: UnixNanos, interval: Duration) -> UnixNanos {
    let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
    UnixNanos(time.0 - time.0 % interval)
}

/// What a batch says of sampling: its root spans that carry type and parameter of their sampler. `probabilistic` counts;
/// `lowerbound`, a span kept only because its operation had none for a while, makes the operation known.
pub fn look(batch: &SpanBatch) -> Throughput {
    let mut found = Throughput::default();
    let Some(tagged) = tagged(batch) else { return found };
    let mut operations = 0;
    for (at, row) in batch.rows.iter().enumerate() {
        if row.parent_span_id != SpanId::default() || !tagged[row.attrs.shape.index()] {
            continue;
        }
        let attributes = batch.attrs_of(at);
        let attribute = |key| attributes.iter().find(|attr| batch.strings.get(attr.key) == key);
        let (Some(kind), Some(param)) = (attribute(SAMPLER_TYPE), attribute(SAMPLER_PARAM)) else { continue };
        let counts = match kind.kind {
            ValueKind::Str if batch.strings.get(kind.sym()) == b"probabilistic" => 1,
            ValueKind::Str if batch.strings.get(kind.sym()) == b"lowerbound" => 0,
            _ => continue,
        };
        let Some(param) = number(batch, param) else { continue };
        let service = batch.strings.text(batch.resources[row.resource as usize].service_name);
        let operation = batch.strings.text(row.name);
        if service.len() > MAX_NAME || operation.len() > MAX_NAME || operations > MAX_OPERATIONS {
            continue;
        }
        if !found.services.contains_key(service) {
            found.services.insert(service.to_owned(), BTreeMap::new());
        }
        let Some(of_service) = found.services.get_mut(service) else { continue };
        if !of_service.contains_key(operation) {
            of_service.insert(operation.to_owned(), Seen::default());
            operations += 1;
        }
        if let Some(seen) = of_service.get_mut(operation) {
            seen.count += counts;
            seen.see(Millionths::of(param));
        }
    }
    found
}

/// By shape, whether it has both keys; `None` if no shape has.
fn tagged(batch: &SpanBatch) -> Option<Vec<bool>> {
    batch.shapes.iter().find(|(_, node)| batch.strings.get(node.key) == SAMPLER_TYPE)?;
    let mut has = vec![(false, false); batch.shapes.len()];
    for (Shape(at), node) in batch.shapes.iter() {
        let key = batch.strings.get(node.key);
        let (kind, param) = has[node.before.index()];
        has[at as usize] = (kind || key == SAMPLER_TYPE, param || key == SAMPLER_PARAM);
    }
    has.iter().any(|(kind, param)| *kind && *param).then(|| has.iter().map(|(kind, param)| *kind && *param).collect())
}

/// A number however its client wrote it.
fn number(batch: &SpanBatch, attr: &Attr) -> Option<f64> {
    let number = match attr.kind {
        ValueKind::Str => batch.strings.text(attr.sym()).parse().ok()?,
        ValueKind::Int => attr.bits as i64 as f64,
        ValueKind::Double => f64::from_bits(attr.bits),
        ValueKind::Bool | ValueKind::Json => return None,
    };
    (0.0..=1.0).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use spanhouse_common::time::ManualClock;
    use spanhouse_proto::otlp_common::{AnyValue, KeyValue, any_value::Value};
    use spanhouse_proto::otlp_resource::Resource;
    use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
    use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span};

    use super::*;
    use crate::otlp::walk::{WalkOptions, Walker};

    fn attribute(key: &str, value: Value) -> KeyValue {
        KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn text(value: &str) -> Value {
        Value::StringValue(value.into())
    }

    fn span(id: u8, name: &str, root: bool, attributes: Vec<KeyValue>) -> Span {
        let parent_span_id = if root { Vec::new() } else { vec![9; 8] };
        Span {
            trace_id: vec![1; 16],
            span_id: vec![id; 8],
            parent_span_id,
            name: name.into(),
            attributes,
            ..Span::default()
        }
    }

    fn batch(service: &str, spans: Vec<Span>) -> SpanBatch {
        let resource = Resource { attributes: vec![attribute("service.name", text(service))], ..Resource::default() };
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }];
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        Walker::default().walk(&body, WalkOptions::default()).unwrap().batch
    }

    fn sampled(kind: &str, param: Value) -> Vec<KeyValue> {
        vec![attribute("first", text("x")), attribute("sampler.type", text(kind)), attribute("sampler.param", param)]
    }

    #[test]
    fn root_spans_that_name_their_sampler_count() {
        let all = vec![
            span(1, "a", true, sampled("probabilistic", Value::DoubleValue(0.5))),
            span(2, "a", true, sampled("probabilistic", text("0.25"))),
            span(3, "a", true, sampled("lowerbound", Value::DoubleValue(0.125))),
            span(4, "a", false, sampled("probabilistic", Value::DoubleValue(0.75))),
            span(5, "b", true, sampled("lowerbound", Value::IntValue(1))),
            span(6, "c", true, sampled("const", Value::BoolValue(true))),
            span(7, "d", true, sampled("probabilistic", Value::DoubleValue(2.0))),
            span(8, "e", true, sampled("probabilistic", text("much"))),
            span(9, "f", true, vec![attribute("sampler.type", text("probabilistic"))]),
            span(10, "g", true, vec![attribute("sampler.param", Value::DoubleValue(0.5))]),
            span(11, "h", true, sampled("ratelimiting", Value::DoubleValue(1.0))),
            span(12, &"n".repeat(MAX_NAME + 1), true, sampled("probabilistic", Value::DoubleValue(0.5))),
            span(13, "i", true, Vec::new()),
        ];
        let found = look(&batch("shop", all));
        let seen = |count, probabilities: &[u32]| Seen {
            count,
            probabilities: probabilities.iter().map(|p| Millionths(*p)).collect(),
        };
        let expected = [("a".to_owned(), seen(2, &[125_000, 250_000, 500_000])), ("b".to_owned(), seen(0, &[1_000_000]))];
        assert_eq!(found.services, [("shop".to_owned(), expected.into())].into());
        assert!(look(&batch("shop", vec![span(1, "a", true, Vec::new())])).is_empty());
    }

    #[test]
    fn counts_fall_into_their_period() {
        let clock = ManualClock::at(UnixNanos::from_seconds(119));
        let observer = Observer::new(Arc::clone(&clock) as _, Duration::from_secs(60), SamplingMetrics::default());
        let one = || look(&batch("shop", vec![span(1, "a", true, sampled("probabilistic", Value::DoubleValue(0.5)))]));
        observer.add(one());
        clock.advance(Duration::from_secs(1));
        observer.add(one());
        observer.add(one());
        let count = |periods: &[(UnixNanos, Throughput)]| -> Vec<(u64, u64)> {
            periods.iter().map(|(start, t)| (start.as_seconds(), t.services["shop"]["a"].count)).collect()
        };
        assert_eq!(count(&observer.take_before(UnixNanos::from_seconds(120))), [(60, 1)]);
        assert_eq!(count(&observer.take_before(UnixNanos(u64::MAX))), [(120, 2)]);
        assert!(observer.take_before(UnixNanos(u64::MAX)).is_empty());
    }

    #[test]
    fn operations_and_probabilities_are_bounded() {
        let one = |name: String, probability| {
            let seen = Seen { count: 1, probabilities: [Millionths(probability)].into() };
            Throughput { services: [("shop".to_owned(), [(name, seen)].into())].into() }
        };
        let mut all = Throughput::default();
        let passed_over: u64 = (0..MAX_OPERATIONS + 5).map(|n| all.add(one(format!("o{n}"), 1))).sum();
        assert_eq!((all.len(), passed_over), (MAX_OPERATIONS, 5));
        for probability in 0..100 {
            assert_eq!(all.add(one("o1".into(), probability)), 0);
        }
        let seen = &all.services["shop"]["o1"];
        assert_eq!((seen.count, seen.probabilities.len()), (101, MAX_PROBABILITIES));
    }
}
