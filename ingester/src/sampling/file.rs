//! The strategy file: what services are told, written by hand.
//!
//! ```json
//! {"default_strategy": {"type": "probabilistic", "param": 0.5,
//!                       "operation_strategies": [{"operation": "/health", "type": "probabilistic", "param": 0}]},
//!  "service_strategies": [{"service": "shop", "type": "ratelimiting", "param": 5}]}
//! ```
//!
//! Owns the rules of the file and how a service's own entries and the default go together. Does not own reading and watching
//! it ([`super::watch`]). A file that is no JSON of this form is an error; what a client could not use in it is replaced, and
//! the replacement is told as a warning: one bad entry must not keep all others from taking effect.
//!
//! Own entries and the default's are put together when a service asks, not when the file is read: services without operations
//! of their own have all those of the default, and their product would be as large as the file squared.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::strategy::{Operation, Operations, Rate, Strategy};

/// Most warnings kept of one file; the rest is counted.
const MAX_WARNINGS: usize = 20;
/// Longest name or word quoted in a warning, in characters.
const MAX_QUOTED: usize = 80;

/// Why a file cannot be used. Until it is mended, what was read before stays in force.
#[derive(Debug, thiserror::Error)]
#[error("not a strategy file: {0}")]
pub struct BadFile(String);

/// What every service is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Strategies {
    default_probability: f64,
    default: Strategy,
    services: HashMap<String, Own>,
}

/// What the file says of one service.
#[derive(Clone, Debug, PartialEq)]
struct Own {
    rate: Rate,
    operations: Option<Arc<[Operation]>>,
}

/// What was replaced or passed over, in words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Warnings {
    pub texts: Vec<String>,
    /// How many there were, those not kept included.
    pub total: usize,
}

impl Warnings {
    fn add(&mut self, text: String) {
        self.total += 1;
        if self.texts.len() < MAX_WARNINGS {
            self.texts.push(text);
        }
    }
}

#[derive(Deserialize)]
struct FileForm {
    default_strategy: Option<EntryForm>,
    service_strategies: Option<Vec<EntryForm>>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// An entry for all, for a service or for an operation.
#[derive(Deserialize)]
struct EntryForm {
    service: Option<String>,
    operation: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    param: Option<f64>,
    operation_strategies: Option<Vec<EntryForm>>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

impl Strategies {
    /// Everybody samples with this probability.
    pub fn only(default_probability: f64) -> Self {
        let default = Strategy { rate: Some(Rate::Probability(default_probability)), operations: None };
        Self { default_probability, default, services: HashMap::new() }
    }

    /// Reads a file. `default_probability` stands where the file says nothing a client could use.
    pub fn parse(bytes: &[u8], default_probability: f64) -> Result<(Self, Warnings), BadFile> {
        let file: Option<FileForm> = serde_json::from_slice(bytes).map_err(|error| BadFile(error.to_string()))?;
        let mut reading = Reading { default_probability, warnings: Warnings::default() };
        let mut strategies = Self::only(default_probability);
        let Some(file) = file else { return Ok((strategies, reading.warnings)) };
        reading.unknown_keys("the top level", &file.unknown);
        if let Some(entry) = file.default_strategy {
            let own = reading.own("the default strategy", entry);
            let operations = own.operations.map(|list| operations(own.rate, default_probability, list));
            strategies.default = Strategy { rate: Some(own.rate), operations };
        }
        for mut entry in file.service_strategies.into_iter().flatten() {
            let name = entry.service.take().unwrap_or_default();
            let own = reading.own(&format!("service `{}`", quoted(&name)), entry);
            // The later of two wins.
            strategies.services.insert(name, own);
        }
        Ok((strategies, reading.warnings))
    }

    /// What `service` is told; one that is not listed is told the default.
    pub fn of(&self, service: &str) -> Strategy {
        let Some(own) = self.services.get(service) else { return self.default.clone() };
        let operations = match (&own.operations, &self.default.operations) {
            (None, None) => None,
            (None, Some(default)) => {
                let default_probability = probability(own.rate).unwrap_or(default.default_probability);
                Some(Operations { default_probability, ..default.clone() })
            }
            (Some(list), None) => Some(operations(own.rate, self.default_probability, Arc::clone(list))),
            (Some(list), Some(default)) => {
                let named: HashSet<&str> = list.iter().map(|operation| &*operation.name).collect();
                let missing = default.list.iter().filter(|operation| !named.contains(&*operation.name));
                let all = list.iter().chain(missing).cloned().collect();
                Some(operations(own.rate, self.default_probability, all))
            }
        };
        Strategy { rate: Some(own.rate), operations }
    }

    /// Services with entries of their own.
    pub fn services(&self) -> usize {
        self.services.len()
    }
}

fn probability(rate: Rate) -> Option<f64> {
    match rate {
        Rate::Probability(probability) => Some(probability),
        Rate::PerSecond(_) => None,
    }
}

/// Operations of a strategy that lists some: the rest samples as the strategy does, if that is a probability.
fn operations(rate: Rate, default_probability: f64, list: Arc<[Operation]>) -> Operations {
    let default_probability = probability(rate).unwrap_or(default_probability);
    Operations { default_probability, lower_bound: 0.0, upper_bound: 0.0, list }
}

fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

/// A file being read.
struct Reading {
    default_probability: f64,
    warnings: Warnings,
}

impl Reading {
    fn own(&mut self, of: &str, mut entry: EntryForm) -> Own {
        self.unknown_keys(of, &entry.unknown);
        let listed = entry.operation_strategies.take().filter(|list| !list.is_empty());
        let rate = self.rate(of, &entry);
        let operations = listed.map(|list| list.into_iter().filter_map(|entry| self.operation(of, entry)).collect());
        Own { rate, operations }
    }

    fn rate(&mut self, of: &str, entry: &EntryForm) -> Rate {
        match entry.kind.as_deref().unwrap_or_default() {
            "probabilistic" => Rate::Probability(self.probability(of, entry.param)),
            // Towards zero, and to the nearest that 32 bits hold.
            "ratelimiting" => Rate::PerSecond(entry.param.unwrap_or_default() as i32),
            other => {
                let (other, instead) = (quoted(other), self.default_probability);
                self.warnings.add(format!("{of}: there is no type `{other}`, so the probability is {instead}"));
                Rate::Probability(instead)
            }
        }
    }

    fn operation(&mut self, of: &str, entry: EntryForm) -> Option<Operation> {
        let name = entry.operation.unwrap_or_default();
        let of = format!("operation `{}` of {of}", quoted(&name));
        self.unknown_keys(&of, &entry.unknown);
        match entry.kind.as_deref().unwrap_or_default() {
            "probabilistic" => Some(Operation { name: name.into(), probability: self.probability(&of, entry.param) }),
            other => {
                let other = quoted(other);
                self.warnings.add(format!("{of} is passed over: operations can be `probabilistic`, not `{other}`"));
                None
            }
        }
    }

    /// Clients refuse a whole answer for a probability outside of 0 to 1, or read it as they like.
    fn probability(&mut self, of: &str, param: Option<f64>) -> f64 {
        let param = param.unwrap_or_default();
        if !(0.0..=1.0).contains(&param) {
            self.warnings.add(format!("{of}: {param} is no probability, so the nearest is taken"));
        }
        param.clamp(0.0, 1.0)
    }

    fn unknown_keys(&mut self, of: &str, keys: &BTreeMap<String, IgnoredAny>) {
        for key in keys.keys() {
            self.warnings.add(format!("{of}: `{}` means nothing here", quoted(key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::strategy::Enums;

    /// One file per case: a strategy file, and what services are told by it.
    #[test]
    fn cases() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sampling/cases");
        let mut seen = 0;
        for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let text = std::fs::read_to_string(&path).unwrap();
            let case: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let file = case["file"].to_string();
            let (strategies, warnings) = Strategies::parse(file.as_bytes(), 0.001).unwrap();
            let warned: Vec<&str> = case["warnings"].as_array().into_iter().flatten().filter_map(|w| w.as_str()).collect();
            assert_eq!(warnings.texts, warned, "{}", path.display());
            for (service, expected) in case["told"].as_object().unwrap() {
                let told: serde_json::Value = serde_json::from_str(&strategies.of(service).to_json(Enums::Names)).unwrap();
                // Numbers by their value: 0 in the case is 0.0 as well.
                assert_eq!(as_doubles(&told), as_doubles(expected), "{} {service}", path.display());
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen} expectations");
    }

    fn as_doubles(value: &serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::Number(number) => Value::from(number.as_f64().unwrap()),
            Value::Array(all) => all.iter().map(as_doubles).collect(),
            Value::Object(all) => all.iter().map(|(key, value)| (key.clone(), as_doubles(value))).collect(),
            other => other.clone(),
        }
    }

    #[test]
    fn what_is_no_strategy_file_is_refused() {
        for text in [
            "",
            "[]",
            "{",
            "3",
            "{} {}",
            r#"{"service_strategies":{}}"#,
            r#"{"service_strategies":[null]}"#,
            r#"{"default_strategy":{"type":"probabilistic","param":"0.5"}}"#,
            r#"{"default_strategy":{"type":1}}"#,
        ] {
            let error = Strategies::parse(text.as_bytes(), 0.001).unwrap_err();
            assert!(error.to_string().starts_with("not a strategy file: "), "{text}: {error}");
        }
        let deep = format!("{}1{}", "{\"operation_strategies\":[".repeat(100_000), "]}".repeat(100_000));
        let deep = format!("{{\"service_strategies\":[{deep}]}}");
        assert!(Strategies::parse(deep.as_bytes(), 0.001).is_err());
    }

    #[test]
    fn services_times_operations_is_not_kept() {
        let operation = |n| format!(r#"{{"operation":"o{n}","type":"probabilistic","param":0.5}}"#);
        let operations: Vec<String> = (0..5_000).map(operation).collect();
        let services: Vec<String> = (0..20_000).map(|n| format!(r#"{{"service":"s{n}","type":"ratelimiting"}}"#)).collect();
        let file = format!(
            r#"{{"default_strategy":{{"type":"probabilistic","param":1,"operation_strategies":[{}]}},"service_strategies":[{}]}}"#,
            operations.join(","),
            services.join(",")
        );
        let (strategies, warnings) = Strategies::parse(file.as_bytes(), 0.001).unwrap();
        assert_eq!((strategies.services(), warnings.total), (20_000, 0));
        let told = |service| strategies.of(service).operations.unwrap().list;
        assert_eq!(told("s7").len(), 5_000);
        assert!(Arc::ptr_eq(&told("s7"), &told("nobody")), "shared, not copied");
    }

    #[test]
    fn warnings_are_bounded() {
        let entries: Vec<String> = (0..100).map(|n| format!(r#"{{"service":"s{n}","type":"x"}}"#)).collect();
        let file = format!(r#"{{"service_strategies":[{}]}}"#, entries.join(","));
        let (_, warnings) = Strategies::parse(file.as_bytes(), 0.001).unwrap();
        assert_eq!((warnings.texts.len(), warnings.total), (MAX_WARNINGS, 100));
    }

    use proptest::prelude::{Just, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use proptest::strategy::Strategy as Generator;
    use serde_json::{Value, json};

    /// An entry with whatever a file may have in it.
    fn entry(of: &'static str, operations: bool) -> proptest::strategy::BoxedStrategy<Value> {
        let kind = prop::sample::select(vec!["probabilistic", "ratelimiting", "const", ""]);
        let list = if operations {
            prop::collection::vec(entry("operation", false), 0..4).boxed()
        } else {
            Just(Vec::new()).boxed()
        };
        let param = prop_oneof![0.0..=1.0, -10.0..1e12];
        let parts = (prop::sample::select(vec!["a", "b", "c"]), kind, param, list);
        let entry = parts.prop_map(
            move |(name, kind, param, list)| json!({ of: name, "type": kind, "param": param, "operation_strategies": list }),
        );
        entry.boxed()
    }

    proptest! {
        #[test]
        fn what_is_told_is_what_the_file_says(
            default in entry("service", true),
            services in prop::collection::vec(entry("service", true), 0..4),
        ) {
            let file = json!({ "default_strategy": default, "service_strategies": services }).to_string();
            let (strategies, _) = Strategies::parse(file.as_bytes(), 0.001).unwrap();
            // Names of the operations an entry makes known, in order.
            let known = |entry: &Value| -> Vec<String> {
                let list = entry["operation_strategies"].as_array().into_iter().flatten();
                list.filter(|o| o["type"] == "probabilistic").map(|o| o["operation"].as_str().unwrap().to_owned()).collect()
            };
            for service in ["a", "b", "c", "d"] {
                let own = services.iter().rev().find(|entry| entry["service"] == service);
                let entry = own.unwrap_or(&default);
                let told = strategies.of(service);
                prop_assert_eq!(told.limits_rate(), entry["type"] == "ratelimiting");
                let mut names = known(entry);
                let listed = |entry: &Value| entry["operation_strategies"].as_array().is_some_and(|list| !list.is_empty());
                let own_names = names.clone();
                if own.is_some() {
                    names.extend(known(&default).into_iter().filter(|name| !own_names.contains(name)));
                }
                prop_assert_eq!(told.operations.is_some(), listed(entry) || listed(&default));
                let list = told.operations.as_ref().map(|operations| operations.list.to_vec()).unwrap_or_default();
                prop_assert_eq!(list.iter().map(|o| o.name.to_string()).collect::<Vec<_>>(), names);
                let rates = list.iter().map(|o| o.probability);
                let rates = rates.chain(told.operations.iter().map(|o| o.default_probability));
                prop_assert!(rates.chain(told.rate.and_then(probability)).all(|p| (0.0..=1.0).contains(&p)));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), text in r#"[\[\]{}:,"a-z0-9_]{0,64}"#) {
            drop((Strategies::parse(&bytes, 0.5), Strategies::parse(text.as_bytes(), 0.5)));
        }
    }
}
