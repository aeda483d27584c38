//! Names and values of attributes, one a line, as they stand in a query.

use serde_json::Value;

use super::json::{list, text};
use super::text::clean;

/// Names with their scopes.
pub(super) fn show_names(body: &Value, when: &str) -> String {
    let mut scopes: Vec<&Value> = list(body, "scopes").iter().collect();
    // The order of answers is not told; intrinsics are the same everywhere.
    scopes.sort_by_key(|scope| match text(scope, "name") {
        "resource" => 0,
        "span" => 1,
        "intrinsic" => 9,
        _ => 2,
    });
    let mut out = String::new();
    for scope in scopes {
        let name = text(scope, "name");
        for tag in list(scope, "tags").iter().filter_map(Value::as_str) {
            let tag = if name == "intrinsic" { clean(tag) } else { format!("{}.{}", clean(name), attribute(tag)) };
            out.push_str(&format!("{tag}\n"));
        }
    }
    if out.is_empty() {
        return format!("No attributes {when}: is anything sent? `spanhouse loadgen` sends something to look at.\n");
    }
    out
}

/// A name, in quotes if the language needs them.
fn attribute(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@' | '#' | '$' | '%');
    if !name.is_empty() && name.chars().all(is_plain) { name.to_owned() } else { quoted(name) }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", clean(&text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// Values as literals.
pub(super) fn show_values(body: &Value, limit: u32, when: &str) -> String {
    let values = list(body, "tagValues");
    if values.is_empty() {
        return format!("No values {when}; `spanhouse query tags` lists which attributes there are.\n");
    }
    let mut out = String::new();
    for value in values {
        let word = text(value, "value");
        let literal = if text(value, "type") == "string" { quoted(word) } else { clean(word) };
        out.push_str(&format!("{literal}\n"));
    }
    if limit > 0 && values.len() as u64 >= u64::from(limit) {
        out.push_str(&format!("{limit} values, as many as were asked for: --limit shows more.\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_values_stand_as_in_a_query() {
        let body = json!({ "scopes": [
            { "name": "intrinsic", "tags": ["duration", "span:name"] },
            { "name": "span", "tags": ["http.route", "a b"] },
            { "name": "resource", "tags": ["service.name"] },
        ] });
        assert_eq!(show_names(&body, ""), "resource.service.name\nspan.http.route\nspan.\"a b\"\nduration\nspan:name\n");
        let body = json!({ "tagValues": [
            { "type": "string", "value": "say \"hi\"\n" }, { "type": "string" }, { "type": "int", "value": "200" },
            { "type": "keyword", "value": "error" },
        ] });
        assert_eq!(show_values(&body, 0, ""), "\"say \\\"hi\\\"\\n\"\n\"\"\n200\nerror\n");
        assert!(show_values(&body, 4, "").ends_with("4 values, as many as were asked for: --limit shows more.\n"));
        assert!(show_values(&json!({}), 4, "in the last 1h").starts_with("No values in the last 1h"));
        assert!(show_names(&json!({ "scopes": [] }), "in the last 1h").starts_with("No attributes in the last 1h"));
    }
}
