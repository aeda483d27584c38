//! A sampling strategy as a client is told it, and its JSON.
//!
//! Owns the one form every protocol is written from, so that all say the same, and the JSON to the byte. Does not own where a
//! strategy comes from.

use std::fmt::Write as _;
use std::sync::Arc;

/// What one service is told. Clients that are told of operations use these and nothing else.
#[derive(Clone, Debug, PartialEq)]
pub struct Strategy {
    /// `None`: only the operations count.
    pub rate: Option<Rate>,
    pub operations: Option<Operations>,
}

/// How traces of a service are sampled, whatever their operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Part of the traces that are kept, 0 to 1.
    Probability(f64),
    /// Most traces a second.
    PerSecond(i32),
}

/// How traces are sampled by the operation that starts them.
#[derive(Clone, Debug, PartialEq)]
pub struct Operations {
    /// Of operations that are not listed, 0 to 1.
    pub default_probability: f64,
    /// Traces a second of each operation that are kept in any case.
    pub lower_bound: f64,
    /// Traces a second of each operation beyond which none is kept; 0 for no such bound.
    pub upper_bound: f64,
    pub list: Arc<[Operation]>,
}

/// One operation and its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    pub name: Arc<str>,
    pub probability: f64,
}

/// How the type of a strategy is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enums {
    Names,
    /// As agents of version 1 wrote it. Rates are 16 bits wide in that form.
    Numbers,
}

impl Strategy {
    /// Whether clients are told that it limits a rate. A strategy of operations alone counts as probabilistic.
    pub fn limits_rate(&self) -> bool {
        matches!(self.rate, Some(Rate::PerSecond(_)))
    }

    /// The answer's text. The type is always there, parts that do not exist are not, and zeros in parts that do are.
    pub fn to_json(&self, enums: Enums) -> String {
        let kind = match (enums, self.limits_rate()) {
            (Enums::Names, false) => "\"PROBABILISTIC\"",
            (Enums::Names, true) => "\"RATE_LIMITING\"",
            (Enums::Numbers, false) => "0",
            (Enums::Numbers, true) => "1",
        };
        let mut out = format!("{{\"strategyType\":{kind}");
        match self.rate {
            Some(Rate::Probability(probability)) => {
                out.push_str(",\"probabilisticSampling\":");
                push_probability(&mut out, probability);
            }
            Some(Rate::PerSecond(most)) => {
                let most = if enums == Enums::Numbers { most.clamp(i16::MIN.into(), i16::MAX.into()) } else { most };
                let _ = write!(out, ",\"rateLimitingSampling\":{{\"maxTracesPerSecond\":{most}}}");
            }
            None => {}
        }
        if let Some(operations) = &self.operations {
            out.push_str(",\"operationSampling\":{\"defaultSamplingProbability\":");
            push_number(&mut out, operations.default_probability);
            out.push_str(",\"defaultLowerBoundTracesPerSecond\":");
            push_number(&mut out, operations.lower_bound);
            out.push_str(",\"perOperationStrategies\":[");
            for (at, operation) in operations.list.iter().enumerate() {
                out.push_str(if at > 0 { ",{\"operation\":" } else { "{\"operation\":" });
                out.push_str(&serde_json::Value::from(&*operation.name).to_string());
                out.push_str(",\"probabilisticSampling\":");
                push_probability(&mut out, operation.probability);
                out.push('}');
            }
            out.push_str("],\"defaultUpperBoundTracesPerSecond\":");
            push_number(&mut out, operations.upper_bound);
            out.push('}');
        }
        out.push('}');
        out
    }
}

fn push_probability(out: &mut String, probability: f64) {
    out.push_str("{\"samplingRate\":");
    push_number(out, probability);
    out.push('}');
}

/// A number as Go writes it: no `.0`, an exponent only far from 1. What is no number is written as 0, since JSON has none.
fn push_number(out: &mut String, number: f64) {
    let size = number.abs();
    // Writing to a string cannot fail.
    let _ = match () {
        () if !number.is_finite() => write!(out, "0"),
        () if size >= 1e21 => write!(out, "{}", format!("{number:e}").replace('e', "e+")),
        () if size != 0.0 && size < 1e-6 => write!(out, "{number:e}"),
        () => write!(out, "{number}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations() -> Operations {
        let list = [("foo", 0.42), ("say \"hi\"\n", 0.0)];
        let list = list.map(|(name, probability)| Operation { name: name.into(), probability });
        Operations { default_probability: 0.42, lower_bound: 2.0, upper_bound: 11.2, list: list.into() }
    }

    #[test]
    fn answers_to_the_byte() {
        let probability = |p| Strategy { rate: Some(Rate::Probability(p)), operations: None };
        let limit = |most| Strategy { rate: Some(Rate::PerSecond(most)), operations: None };
        let by_operation = Strategy { rate: None, operations: Some(operations()) };
        let empty = Operations { list: Arc::new([]), lower_bound: 0.0, upper_bound: 0.0, ..operations() };
        let both = Strategy { rate: Some(Rate::PerSecond(5)), operations: Some(empty) };
        for (strategy, enums, expected) in [
            (
                probability(0.42),
                Enums::Names,
                r#"{"strategyType":"PROBABILISTIC","probabilisticSampling":{"samplingRate":0.42}}"#,
            ),
            (probability(0.0), Enums::Numbers, r#"{"strategyType":0,"probabilisticSampling":{"samplingRate":0}}"#),
            (
                limit(42),
                Enums::Names,
                r#"{"strategyType":"RATE_LIMITING","rateLimitingSampling":{"maxTracesPerSecond":42}}"#,
            ),
            (limit(40_000), Enums::Numbers, r#"{"strategyType":1,"rateLimitingSampling":{"maxTracesPerSecond":32767}}"#),
            (
                limit(40_000),
                Enums::Names,
                r#"{"strategyType":"RATE_LIMITING","rateLimitingSampling":{"maxTracesPerSecond":40000}}"#,
            ),
            (
                by_operation,
                Enums::Names,
                r#"{"strategyType":"PROBABILISTIC","operationSampling":{"defaultSamplingProbability":0.42,"defaultLowerBoundTracesPerSecond":2,"perOperationStrategies":[{"operation":"foo","probabilisticSampling":{"samplingRate":0.42}},{"operation":"say \"hi\"\n","probabilisticSampling":{"samplingRate":0}}],"defaultUpperBoundTracesPerSecond":11.2}}"#,
            ),
            (
                both,
                Enums::Names,
                r#"{"strategyType":"RATE_LIMITING","rateLimitingSampling":{"maxTracesPerSecond":5},"operationSampling":{"defaultSamplingProbability":0.42,"defaultLowerBoundTracesPerSecond":0,"perOperationStrategies":[],"defaultUpperBoundTracesPerSecond":0}}"#,
            ),
        ] {
            assert_eq!(strategy.to_json(enums), expected);
        }
    }

    #[test]
    fn numbers_as_go_writes_them() {
        for (number, expected) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.00001, "0.00001"),
            (0.000001, "0.000001"),
            (0.00000012, "1.2e-7"),
            (1.0 / 60.0, "0.016666666666666666"),
            (2e9, "2000000000"),
            (1e21, "1e+21"),
            (f64::NAN, "0"),
        ] {
            let mut out = String::new();
            push_number(&mut out, number);
            assert_eq!(out, expected);
        }
    }
}
