//! The summary in a block's footer: which attributes it has, their values where few, and its services and operations.
//!
//! Answers tag and service questions without reading spans, and prunes blocks that cannot match. Complete, or marked as cut.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::batch::ValueKind;
use crate::caps::{MAX_SUMMARY_VALUE_BYTES, MAX_SUMMARY_VALUES};
use crate::model::{Attribute, Value, typed_json};

/// Most operations listed before the list is cut.
const MAX_OPERATIONS: usize = 1000;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub span: Vec<KeySummary>,
    pub event: Vec<KeySummary>,
    pub link: Vec<KeySummary>,
    pub resource: Vec<KeySummary>,
    pub scope: Vec<KeySummary>,
    pub operations: Vec<Operation>,
    /// The block has operations that are not listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub operations_cut: bool,
}

/// One attribute key of one scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySummary {
    pub key: String,
    /// Occurrences by kind of value: string, int, double, bool, other. For resources and scopes, counted per distinct one.
    pub counts: [u32; 5],
    /// Distinct values as typed JSON, unordered. Empty if cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// There are too many values, or too long ones, to list.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// What a service does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Operation {
    pub service: String,
    pub name: String,
    pub kind: i32,
    pub spans: u64,
}

/// Collects values of one key until there are too many.
#[derive(Debug, Default)]
pub(crate) struct ValueSet {
    values: std::collections::BTreeSet<String>,
    pub(crate) cut: bool,
    /// Occurrences that these are the values of.
    pub(crate) stored: u32,
}

impl ValueSet {
    pub(crate) fn add(&mut self, value: String) {
        if self.cut {
            return;
        }
        if value.len() > MAX_SUMMARY_VALUE_BYTES {
            self.cut();
            return;
        }
        self.values.insert(value);
        if self.values.len() > MAX_SUMMARY_VALUES {
            self.cut();
        }
    }

    pub(crate) fn cut(&mut self) {
        self.cut = true;
        self.values.clear();
    }

    pub(crate) fn into_summary(self, key: String, counts: [u32; 5]) -> KeySummary {
        KeySummary { key, counts, values: self.values.into_iter().collect(), cut: self.cut }
    }
}

/// Summarises the attributes of distinct resources or scopes.
#[derive(Debug, Default)]
pub(crate) struct AttributeCollector(BTreeMap<String, ([u32; 5], ValueSet)>);

impl AttributeCollector {
    pub(crate) fn add(&mut self, attributes: &[Attribute]) {
        for attribute in attributes {
            let (counts, values) = self.0.entry(attribute.key.clone()).or_default();
            counts[kind_of(&attribute.value) as usize] += 1;
            let mut text = String::new();
            typed_json::write_value(&attribute.value, &mut text);
            values.add(text);
        }
    }

    pub(crate) fn finish(self) -> Vec<KeySummary> {
        self.0.into_iter().map(|(key, (counts, values))| values.into_summary(key, counts)).collect()
    }
}

fn kind_of(value: &Value) -> ValueKind {
    match value {
        Value::Str(_) => ValueKind::Str,
        Value::Int(_) => ValueKind::Int,
        Value::Double(_) => ValueKind::Double,
        Value::Bool(_) => ValueKind::Bool,
        _ => ValueKind::Json,
    }
}

/// Counts operations by symbols of service and name.
#[derive(Debug, Default)]
pub(crate) struct OperationCounter(HashMap<(u32, u32, i32), u64, foldhash::fast::RandomState>);

impl OperationCounter {
    pub(crate) fn add(&mut self, service: u32, name: u32, kind: i32) {
        *self.0.entry((service, name, kind)).or_default() += 1;
    }

    /// The operations, most spans first, and whether some were left out.
    pub(crate) fn finish<'a>(self, text: impl Fn(u32) -> &'a str) -> (Vec<Operation>, bool) {
        let mut all: Vec<Operation> = self
            .0
            .into_iter()
            .map(|((service, name, kind), spans)| Operation {
                service: text(service).to_owned(),
                name: text(name).to_owned(),
                kind,
                spans,
            })
            .collect();
        let cut = rank(&mut all);
        (all, cut)
    }
}

/// Puts operations in order, most spans first, and leaves out those beyond the bound. Whether there were some.
pub(crate) fn rank(operations: &mut Vec<Operation>) -> bool {
    operations.sort_unstable_by(|a, b| b.spans.cmp(&a.spans).then_with(|| a.cmp(b)));
    let cut = operations.len() > MAX_OPERATIONS;
    operations.truncate(MAX_OPERATIONS);
    cut
}
