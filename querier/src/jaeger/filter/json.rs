//! The JSON form of a filter, as the HTTP API takes it.

use serde::Deserialize;
use spanhouse_proto::jaeger_expression::expression::Term;
use spanhouse_proto::jaeger_expression::{
    AttributeReference, Call, Expression, FieldReference, List, NestedReference, Scalar,
};

use super::super::JaegerError;

#[derive(Deserialize)]
struct CallJson {
    #[serde(default)]
    op: String,
    #[serde(default)]
    args: Vec<ExpressionJson>,
}

/// One of these is there.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ExpressionJson {
    Attr(Reference),
    Field(Reference),
    Nested(Reference),
    Scalar(ScalarJson),
    List(ListJson),
    Call(CallJson),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reference {
    key: String,
    name: String,
    level: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ScalarJson {
    value: String,
    r#type: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListJson {
    values: Vec<String>,
    r#type: String,
}

/// Reads a call. Unknown members mean nothing; deep text is refused before it is a tree.
pub fn from_json(text: &str) -> Result<Call, JaegerError> {
    let json: CallJson =
        serde_json::from_str(text).map_err(|error| JaegerError::Invalid(format!("malformed filter: {error}")))?;
    Ok(call(json))
}

fn call(json: CallJson) -> Call {
    let args = json.args.into_iter().map(|arg| Expression { term: Some(term(arg)) });
    Call { op: json.op, args: args.collect() }
}

fn term(json: ExpressionJson) -> Term {
    match json {
        ExpressionJson::Attr(Reference { key, level, .. }) => Term::Attr(AttributeReference { key, level }),
        ExpressionJson::Field(Reference { name, level, .. }) => Term::Field(FieldReference { name, level }),
        ExpressionJson::Nested(Reference { level, .. }) => Term::Nested(NestedReference { level }),
        ExpressionJson::Scalar(ScalarJson { value, r#type }) => Term::Scalar(Scalar { value, r#type }),
        ExpressionJson::List(ListJson { values, r#type }) => Term::List(List { values, r#type }),
        ExpressionJson::Call(json) => Term::Call(call(json)),
    }
}
