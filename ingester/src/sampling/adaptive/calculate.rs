//! From what was seen to what is told: the calculation, a pure function.
//!
//! An operation's traces a second are a weighted mean over its newest periods. Its probability is moved by as much as these are
//! off the target, unless they are near it, or its clients do not sample by what they were told. A period moves an operation
//! once: one that has nothing new keeps its probability. The delay between telling and counting needs no model: until the new
//! probability is among those that clients report, nothing moves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spanhouse_common::time::UnixNanos;

use super::observer::{MAX_OPERATIONS, Millionths, Seen, Throughput};

/// Results after which an operation that is not seen any more is forgotten.
const MEMORY: u32 = 25;
/// Most a probability grows in one step: it doubles.
const MAX_GROWTH: f64 = 2.0;
/// Two probabilities nearer than this are one.
const EQUAL: f64 = 1e-10;

/// What the calculation aims at.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// Traces a second of each operation.
    pub samples_per_second: f64,
    /// How far off the target, as part of it, is near enough.
    pub delta_tolerance: f64,
    /// Periods whose mean is taken.
    pub calculation_buckets: u32,
    /// Where operations begin.
    pub initial_probability: f64,
    pub min_probability: f64,
}

/// The probabilities of one period.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// Start of the period for which they were calculated.
    pub period: UnixNanos,
    pub services: BTreeMap<String, BTreeMap<Arc<str>, Operation>>,
}

/// What is known of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    pub probability: f64,
    /// Start of the newest period it was seen in.
    pub seen: UnixNanos,
    /// Results since then.
    pub unseen_results: u32,
}

/// The probabilities of `period` from those before and from what was seen: `buckets` by start of their period, newest first,
/// each `interval` long.
pub fn calculate(
    targets: &Targets,
    interval: Duration,
    period: UnixNanos,
    buckets: &[(UnixNanos, Throughput)],
    before: &Learned,
) -> Learned {
    let mut learned = Learned { period, services: BTreeMap::new() };
    let mut room = MAX_OPERATIONS;
    let mut add = |service: &str, name: &Arc<str>, operation: Operation| {
        if room > 0 {
            room -= 1;
            learned.services.entry(service.to_owned()).or_default().insert(Arc::clone(name), operation);
        }
    };
    for (service, operations) in &before.services {
        for (name, old) in operations {
            if let Some(operation) = next(targets, interval, &appearances(buckets, service, name), Some(*old)) {
                add(service, name, operation);
            }
        }
    }
    let known = |service: &str, name: &str| before.services.get(service).is_some_and(|all| all.contains_key(name));
    let mut new: BTreeMap<&str, BTreeMap<&str, ()>> = BTreeMap::new();
    for (service, operations) in buckets.iter().flat_map(|(_, throughput)| &throughput.services) {
        for name in operations.keys().filter(|name| !known(service, name)) {
            new.entry(service).or_default().insert(name, ());
        }
    }
    for (service, names) in new {
        for name in names.into_keys() {
            if let Some(operation) = next(targets, interval, &appearances(buckets, service, name), None) {
                add(service, &name.into(), operation);
            }
        }
    }
    learned
}

/// Where an operation was seen, newest first.
fn appearances<'b>(buckets: &'b [(UnixNanos, Throughput)], service: &str, name: &str) -> Vec<(UnixNanos, &'b Seen)> {
    let seen = |(start, throughput): &'b (UnixNanos, Throughput)| {
        throughput.services.get(service).and_then(|all| all.get(name)).map(|seen| (*start, seen))
    };
    buckets.iter().filter_map(seen).collect()
}

fn next(
    targets: &Targets,
    interval: Duration,
    appearances: &[(UnixNanos, &Seen)],
    old: Option<Operation>,
) -> Option<Operation> {
    let fresh = appearances.first().filter(|(start, _)| old.is_none_or(|old| *start > old.seen));
    let Some((start, newest)) = fresh else {
        let old = old?;
        let unseen_results = old.unseen_results + 1;
        return (unseen_results <= MEMORY).then_some(Operation { unseen_results, ..old });
    };
    let probability = old.map_or(targets.initial_probability, |old| old.probability);
    let take = usize::try_from(targets.calculation_buckets).unwrap_or(usize::MAX);
    let rates: Vec<f64> =
        appearances.iter().take(take).map(|(_, seen)| seen.count as f64 / interval.as_secs_f64()).collect();
    let probability = moved(targets, weighted_mean(&rates), probability, newest);
    Some(Operation { probability, seen: *start, unseen_results: 0 })
}

/// The mean of rates, newest first. The n-th from the oldest weighs n⁴.
fn weighted_mean(rates: &[f64]) -> f64 {
    let weights = (1..=rates.len()).rev().map(|n| (n as f64).powi(4));
    let (sum, total) =
        rates.iter().zip(weights).fold((0.0, 0.0), |(sum, total), (rate, weight)| (sum + rate * weight, total + weight));
    if total > 0.0 { sum / total } else { 0.0 }
}

/// Where a probability goes that yields `rate` traces a second.
fn moved(targets: &Targets, rate: f64, probability: f64, newest: &Seen) -> f64 {
    let target = targets.samples_per_second;
    // What clients begin with counts as in use: they may have no traffic yet that shows it.
    let in_use = (probability - targets.initial_probability).abs() < EQUAL
        || newest.probabilities.contains(&Millionths::of(probability));
    if ((rate - target) / target).abs() < targets.delta_tolerance || !in_use {
        return probability;
    }
    let factor = if rate > 0.0 { (target / rate).min(MAX_GROWTH) } else { MAX_GROWTH };
    (probability * factor).min(1.0).max(targets.min_probability).min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const TARGETS: Targets = Targets {
        samples_per_second: 1.0,
        delta_tolerance: 0.3,
        calculation_buckets: 1,
        initial_probability: 0.001,
        min_probability: 1e-5,
    };

    fn seen(count: u64, probabilities: &[f64]) -> Seen {
        Seen { count, probabilities: probabilities.iter().map(|p| Millionths::of(*p)).collect() }
    }

    fn bucket(minute: u64, operations: &[(&str, Seen)]) -> (UnixNanos, Throughput) {
        let operations = operations.iter().map(|(name, seen)| ((*name).to_owned(), seen.clone())).collect();
        (UnixNanos::from_seconds(minute * 60), Throughput { services: [("shop".to_owned(), operations)].into() })
    }

    fn known(probability: f64, minute: u64) -> Learned {
        let operation = Operation { probability, seen: UnixNanos::from_seconds(minute * 60), unseen_results: 0 };
        Learned { period: UnixNanos(0), services: [("shop".to_owned(), [("pay".into(), operation)].into())].into() }
    }

    fn probability(targets: &Targets, buckets: &[(UnixNanos, Throughput)], before: &Learned) -> Option<f64> {
        let learned = calculate(targets, MINUTE, UnixNanos(7), buckets, before);
        assert_eq!(learned.period, UnixNanos(7));
        learned.services.get("shop").and_then(|all| all.get("pay")).map(|operation| operation.probability)
    }

    fn near(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-12)
    }

    /// One bucket with so many traces in its minute, sampled with these; the probability before and after.
    #[test]
    fn one_step() {
        for (what, count, observed, before, after) in [
            ("too many: down at once, however far", 600, 0.5, 0.5, 0.05),
            ("too few: up, at most to the double", 6, 0.1, 0.1, 0.2),
            ("too few, by less than the half", 40, 0.1, 0.1, 0.15),
            ("near enough from above", 77, 0.1, 0.1, 0.1),
            ("near enough from below", 43, 0.1, 0.1, 0.1),
            ("just not near enough", 80, 0.1, 0.1, 0.075),
            ("none at all: the double", 0, 0.1, 0.1, 0.2),
            ("never above 1", 6, 0.8, 0.8, 1.0),
            ("never below the least", 60_000_000, 0.01, 0.01, 1e-5),
            ("clients that sample otherwise are left alone", 600, 0.25, 0.5, 0.5),
            ("compared to six decimals", 600, 0.500_000_4, 0.5, 0.05),
            ("one in a million off is another", 600, 0.500_001, 0.5, 0.5),
            ("the initial one is always in use", 600, 0.25, 0.001, 0.0001),
        ] {
            let found = probability(&TARGETS, &[bucket(5, &[("pay", seen(count, &[observed]))])], &known(before, 4));
            assert!(near(found, after), "{what}: {found:?}, not {after}");
        }
    }

    #[test]
    fn a_new_operation_begins_at_the_initial_probability() {
        let buckets = |count| [bucket(5, &[("pay", seen(count, &[0.7]))])];
        assert!(near(probability(&TARGETS, &buckets(120), &Learned::default()), 0.0005));
        assert!(near(probability(&TARGETS, &buckets(60), &Learned::default()), 0.001));
        assert!(near(probability(&TARGETS, &buckets(0), &Learned::default()), 0.002));
    }

    #[test]
    fn newer_periods_weigh_more() {
        let targets = Targets { calculation_buckets: 3, ..TARGETS };
        let one = |minute, count| bucket(minute, &[("pay", seen(count, &[0.5]))]);
        // 1, 16 and 81 of 98, from the oldest.
        let mean = (600.0 * 1.0 + 1200.0 * 16.0 + 2400.0 * 81.0) / 98.0 / 60.0;
        let buckets = [one(9, 2400), one(8, 1200), one(7, 600), one(6, 1_000_000)];
        assert!(near(probability(&targets, &buckets, &known(0.5, 8)), 0.5 / mean));
        // Periods without it have no say, and the rest weighs as if they were not there.
        let gap = [one(9, 2400), bucket(8, &[("cart", seen(1, &[0.5]))]), one(7, 600)];
        let mean = (600.0 * 1.0 + 2400.0 * 16.0) / 17.0 / 60.0;
        assert!(near(probability(&targets, &gap, &known(0.5, 8)), 0.5 / mean));
    }

    #[test]
    fn a_period_moves_an_operation_once() {
        let buckets = [bucket(5, &[("pay", seen(600, &[0.5, 0.05]))])];
        let first = calculate(&TARGETS, MINUTE, UnixNanos(1), &buckets, &known(0.5, 4));
        let second = calculate(&TARGETS, MINUTE, UnixNanos(2), &buckets, &first);
        assert!(near(Some(first.services["shop"]["pay"].probability), 0.05));
        assert_eq!(second.services["shop"]["pay"], Operation { unseen_results: 1, ..first.services["shop"]["pay"] });
    }

    #[test]
    fn what_is_not_seen_is_remembered_for_a_while() {
        let mut learned = known(0.25, 5);
        for result in 1..=MEMORY {
            learned = calculate(&TARGETS, MINUTE, UnixNanos(result.into()), &[], &learned);
            assert_eq!(learned.services["shop"]["pay"].probability, 0.25);
        }
        // Seen again, it goes on from there.
        let back = [bucket(40, &[("pay", seen(120, &[0.25]))])];
        assert!(near(probability(&TARGETS, &back, &learned), 0.125));
        let forgotten = calculate(&TARGETS, MINUTE, UnixNanos(99), &[], &learned);
        assert!(forgotten.services.is_empty());
    }

    #[test]
    fn operations_are_bounded_and_those_known_stay() {
        let names: Vec<String> = (0..MAX_OPERATIONS + 10).map(|n| format!("a{n}")).collect();
        let operations: Vec<(&str, Seen)> = names.iter().map(|name| (name.as_str(), seen(1, &[0.5]))).collect();
        let learned = calculate(&TARGETS, MINUTE, UnixNanos(1), &[bucket(5, &operations)], &known(0.5, 4));
        assert_eq!(learned.services["shop"].len(), MAX_OPERATIONS);
        assert!(learned.services["shop"].contains_key("pay"));
    }

    proptest! {
        #[test]
        fn a_probability_stays_one(
            rates in prop::collection::vec(0_u64..1 << 50, 1..12),
            before in 1e-5..=1.0,
            target in 1e-3..1e6,
            buckets in 1_u32..12,
        ) {
            let targets = Targets { samples_per_second: target, calculation_buckets: buckets, ..TARGETS };
            let all: Vec<_> =
                rates.iter().enumerate().map(|(at, count)| bucket(100 - at as u64, &[("pay", seen(*count, &[before]))])).collect();
            let after = probability(&targets, &all, &known(before, 5)).unwrap();
            prop_assert!((1e-5..=1.0).contains(&after) && after <= before * 2.0, "{}", after);
            let read: Learned = serde_json::from_str(&serde_json::to_string(&known(after, 5)).unwrap()).unwrap();
            prop_assert_eq!(read, known(after, 5));
        }
    }
}
