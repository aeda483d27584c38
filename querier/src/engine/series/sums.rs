//! What a bucket of a series adds up to, for each function.

use super::super::value::Value;
use super::cells::Merge;

/// A sum that stays exact for whole numbers, and as exact as doubles allow (Neumaier) for others.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    whole: i128,
    float: f64,
    lost: f64,
    pub(crate) count: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, number: Number) {
        self.count += 1;
        match number {
            Number::Whole(value) => self.whole += i128::from(value),
            Number::Float(value) => self.add_float(value),
        }
    }

    fn add_float(&mut self, value: f64) {
        let sum = self.float + value;
        if !sum.is_finite() {
            // Nothing can be said of what is lost to an infinite sum.
            (self.float, self.lost) = (sum, 0.0);
            return;
        }
        self.lost += if self.float.abs() >= value.abs() { (self.float - sum) + value } else { (value - sum) + self.float };
        self.float = sum;
    }

    pub(crate) fn total(&self) -> f64 {
        self.whole as f64 + (self.float + self.lost)
    }
}

impl Merge for Sum {
    fn merge(&mut self, other: &Self) {
        self.whole += other.whole;
        self.count += other.count;
        self.add_float(other.float);
        self.lost += other.lost;
    }
}

/// The smallest and the largest of some numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extremes {
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Default for Extremes {
    fn default() -> Self {
        Self { min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Extremes {
    pub(crate) fn add(&mut self, value: f64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    pub(crate) fn is_none(&self) -> bool {
        self.min > self.max
    }
}

impl Merge for Extremes {
    fn merge(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

/// A number as it was stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Whole(i64),
    Float(f64),
}

impl Number {
    /// Of a value; durations in nanoseconds. NaN is no number.
    pub(crate) fn of(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Int(value) | Value::Duration(value) => Some(Self::Whole(value)),
            Value::Float(value) if !value.is_nan() => Some(Self::Float(value)),
            _ => None,
        }
    }

    pub(crate) fn float(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_stay_what_they_are() {
        let of = |values: &[f64]| {
            let mut sum = Sum::default();
            values.iter().for_each(|value| sum.add(Number::Float(*value)));
            sum
        };
        assert_eq!(of(&[1.0, f64::INFINITY, 2.0]).total(), f64::INFINITY);
        assert!(of(&[f64::INFINITY, f64::NEG_INFINITY]).total().is_nan());
        let mut merged = of(&[1.0]);
        merged.merge(&of(&[f64::NEG_INFINITY]));
        assert_eq!(merged.total(), f64::NEG_INFINITY);
        assert_eq!(of(&[1e100, 1.0, -1e100]).total(), 1.0);
    }
}
