//! Asking queries, and bringing their answers into a form that can be compared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::server::{Answer, Server};

/// Why an answer is not complete.
pub(crate) const PARTIAL: &str = "x-spanhouse-partial";

/// A path with parameters.
pub(crate) fn path(endpoint: &str, parameters: &[(&str, &str)]) -> String {
    let url = reqwest::Url::parse_with_params("http://server/", parameters).expect("a URL");
    format!("{endpoint}?{}", url.query().unwrap_or_default())
}

impl Server {
    /// GET with parameters, whatever comes back.
    pub(crate) async fn ask(&self, endpoint: &str, parameters: &[(&str, &str)]) -> Answer {
        self.get(&path(endpoint, parameters)).await
    }

    /// A complete answer.
    pub(crate) async fn whole(&self, endpoint: &str, parameters: &[(&str, &str)]) -> Json {
        let answer = self.ask(endpoint, parameters).await;
        assert_eq!(answer.status, 200, "{parameters:?}: {}", answer.text());
        assert_eq!(answer.header(PARTIAL), None, "{parameters:?}");
        let json: Json = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(json["metrics"]["completedJobs"], json["metrics"]["totalJobs"], "{parameters:?}");
        assert!(json["metrics"]["totalJobs"].as_u64() > Some(0) && json.get("status").is_none(), "{parameters:?}: {json}");
        json
    }

    /// The traces of a complete search.
    pub(crate) async fn search(&self, query: &str, more: &[(&str, &str)]) -> Vec<Json> {
        let mut parameters = vec![("q", query)];
        parameters.extend(more);
        list(&self.whole("/api/search", &parameters).await["traces"]).to_vec()
    }

    /// The series of a complete metrics query.
    pub(crate) async fn series(&self, endpoint: &str, query: &str, more: &[(&str, &str)]) -> Vec<Json> {
        let mut parameters = vec![("q", query)];
        parameters.extend(more);
        let answer = self.whole(&format!("/api/metrics/{endpoint}"), &parameters).await;
        answer.get("series").map_or_else(Vec::new, |series| list(series).to_vec())
    }
}

/// The items of an array.
pub(crate) fn list(json: &Json) -> &[Json] {
    json.as_array().unwrap_or_else(|| panic!("no list: {json}"))
}

/// A number, also one written as text; absent is zero.
pub(crate) fn number(json: &Json) -> f64 {
    match json {
        Json::Null => 0.0,
        Json::String(text) => text.parse().unwrap_or_else(|e| panic!("{text}: {e}")),
        other => other.as_f64().unwrap_or_else(|| panic!("no number: {other}")),
    }
}

/// The sum of all samples of some series.
pub(crate) fn sum(series: &[Json]) -> f64 {
    series.iter().flat_map(|one| list(&one["samples"])).map(|sample| number(&sample["value"])).sum()
}

/// What all span sets matched.
pub(crate) fn matched(traces: &[Json]) -> f64 {
    traces.iter().flat_map(|trace| list(&trace["spanSets"])).map(|set| number(&set["matched"])).sum()
}

/// Ids of the traces, in the order of the answer.
pub(crate) fn ids(traces: &[Json]) -> Vec<u128> {
    let id = |trace: &Json| u128::from_str_radix(trace["traceID"].as_str().expect("an id"), 16).expect("hex");
    traces.iter().map(id).collect()
}

/// The value of an attribute or label, without its type.
pub(crate) fn value<'a>(attributes: &'a Json, key: &str) -> Option<&'a Json> {
    let found = attributes.as_array()?.iter().find(|attribute| attribute["key"] == key)?;
    found["value"].as_object()?.values().next()
}

/// Ids of the traces that exemplars name.
pub(crate) fn exemplified(series: &[Json]) -> BTreeSet<u128> {
    let exemplars = series.iter().filter_map(|one| one.get("exemplars")).flat_map(list);
    let id = |exemplar: &Json| value(&exemplar["labels"], "trace:id").and_then(Json::as_str).expect("a trace").to_owned();
    exemplars.map(|exemplar| u128::from_str_radix(&id(exemplar), 16).expect("hex")).collect()
}

/// Series by their labels, with samples by time. Exemplars are a choice and left out.
pub(crate) fn by_labels(series: &[Json]) -> BTreeMap<String, BTreeMap<i64, f64>> {
    let samples = |one: &Json| match one.get("samples") {
        Some(samples) => {
            list(samples).iter().map(|sample| (number(&sample["timestampMs"]) as i64, number(&sample["value"]))).collect()
        }
        None => BTreeMap::from([(0, number(&one["value"]))]),
    };
    let all: BTreeMap<_, _> = series.iter().map(|one| (one["labels"].to_string(), samples(one))).collect();
    assert_eq!(all.len(), series.len(), "labels twice: {series:?}");
    all
}

/// Fails where two answers differ by more than the order of additions can explain.
pub(crate) fn expect_same_series(what: &str, found: &[Json], expected: &[Json]) {
    let (found, expected) = (by_labels(found), by_labels(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "series of {what}");
    for (labels, samples) in &found {
        let others = &expected[labels];
        assert_eq!(samples.keys().collect::<Vec<_>>(), others.keys().collect::<Vec<_>>(), "times of {labels} of {what}");
        for (time, value) in samples {
            let other = others[time];
            assert!((value - other).abs() <= 1e-9 * other.abs(), "{value}, not {other}, at {time} of {labels} of {what}");
        }
    }
}
