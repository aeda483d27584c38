//! Values of a tag.
//!
//! Owns what a summary knows of a tag's values. A limit ends the work early, so which values are left out is not said; a
//! filter always needs rows.

use std::sync::Arc;

use parking_lot::Mutex;
use spanhouse_common::block::{KeySummary, Summary};
use spanhouse_common::source::SourceError;

use super::super::answer::{TagValue, TagValuesAnswer};
use super::super::run::Running;
use super::super::value::Value;
use super::super::{EngineError, TagValuesRequest};
use super::distinct::{self, Found, add};
use super::scan::{Read, Scan};
use super::{Gathered, mark_cut};
use crate::traceql::ast::{Attribute, Intrinsic, ParentScope, Scope};

pub(crate) async fn values(mut running: Running, request: &TagValuesRequest) -> Result<TagValuesAnswer, EngineError> {
    let mut found = Found::new(request.limit, request.max_bytes);
    let attributes = read_for(&request.attribute);
    let (scan, ids) = Scan::new(&running, request.filter.as_deref(), &attributes)?;
    // By summary, what it does not tell.
    let mut open: Vec<Vec<usize>> = Vec::new();
    for (summary, hiding) in running.opened.summaries.iter().zip(&running.opened.hiding) {
        let mut left = Vec::new();
        for (attribute, id) in attributes.iter().zip(&ids) {
            // It may know a value of a deleted trace only.
            if request.filter.is_some() || !hiding.is_empty() || !summarised(summary, attribute, &mut found)? {
                left.push(*id);
            }
        }
        open.push(left);
    }
    let by_part: Vec<Vec<usize>> =
        running.opened.summary_of.iter().map(|of| of.map_or_else(|| ids.clone(), |summary| open[summary].clone())).collect();
    let is_read: Vec<bool> = by_part.iter().map(|ids| !ids.is_empty() && !found.is_enough()).collect();
    let (limit, max_bytes, budget) = (request.limit, request.max_bytes, running.budget.clone());
    let found = Arc::new(Mutex::new(found));
    let into = Arc::clone(&found);
    let by_part = Arc::new(by_part);
    scan.run(
        &mut running,
        |part| is_read[part],
        move |slice, view, rows| {
            let ids = slice.number.map_or(&ids, |number| &by_part[number]);
            let mut here: Found = Gathered::new(limit, max_bytes);
            let mut bytes = 0;
            for id in ids {
                bytes += distinct::read(view, rows, *id, &mut here)?;
            }
            let mut all = into.lock();
            all.merge(here, |value: &TagValue| value.text.len(), &budget)?;
            Ok(Read { bytes, enough: all.is_enough() })
        },
    )
    .await?;
    let mut found = found.lock();
    let mut stats = running.stats.clone();
    if found.over {
        mark_cut(&mut stats, request.max_bytes, "values");
    }
    Ok(TagValuesAnswer { values: std::mem::take(&mut found.all).into_iter().collect(), stats })
}

/// What must be read for an attribute; nothing for what is never listed.
fn read_for(attribute: &Attribute) -> Vec<Attribute> {
    let scoped = |scope, name: &Arc<str>| Attribute::Scoped { scope, name: Arc::clone(name) };
    match attribute {
        Attribute::Scoped { scope: Scope::None | Scope::Parent(ParentScope::None), name } => {
            vec![scoped(Scope::Span, name), scoped(Scope::Resource, name)]
        }
        Attribute::Scoped { scope: Scope::Parent(ParentScope::Span), name } => vec![scoped(Scope::Span, name)],
        Attribute::Scoped { scope: Scope::Parent(ParentScope::Resource), name } => vec![scoped(Scope::Resource, name)],
        // As many as there are spans.
        Attribute::Intrinsic(
            Intrinsic::SpanId
            | Intrinsic::ParentId
            | Intrinsic::TraceId
            | Intrinsic::LinkTraceId
            | Intrinsic::LinkSpanId
            | Intrinsic::Duration
            | Intrinsic::Parent,
        ) => Vec::new(),
        other => vec![other.clone()],
    }
}

/// Adds what a summary knows of an attribute's values. False if that is not all, and rows must be read.
fn summarised(summary: &Summary, attribute: &Attribute, out: &mut Found) -> Result<bool, SourceError> {
    let texts =
        |all: &mut dyn Iterator<Item = &str>, out: &mut Found| all.for_each(|text| add(Value::Str(text.as_bytes()), out));
    let (keys, name) = match attribute {
        Attribute::Intrinsic(Intrinsic::Name) if !summary.operations_cut => {
            texts(&mut summary.operations.iter().map(|operation| operation.name.as_str()), out);
            return Ok(true);
        }
        Attribute::Scoped { scope, name } if *scope == Scope::Resource && &**name == "service.name" => {
            // Also tells whether some span has no service, except one that is rarer than all listed ones.
            texts(&mut summary.operations.iter().map(|operation| operation.service.as_str()), out);
            if !summary.operations_cut {
                return Ok(true);
            }
            (&summary.resource, name)
        }
        Attribute::Scoped { scope, name } => match scope {
            Scope::Span => (&summary.span, name),
            Scope::Resource => (&summary.resource, name),
            Scope::Event => (&summary.event, name),
            Scope::Link => (&summary.link, name),
            Scope::Instrumentation => (&summary.scope, name),
            Scope::None | Scope::Parent(_) => return Ok(false),
        },
        _ => return Ok(false),
    };
    // A key that is not listed is not in the block.
    let Some(key) = keys.iter().find(|key| *key.key == **name) else { return Ok(true) };
    if !is_complete(key) {
        return Ok(false);
    }
    // A service's name is a text.
    let is_service = *attribute == Attribute::Scoped { scope: Scope::Resource, name: "service.name".into() };
    for json in key.values.iter().filter(|json| !is_service || json.starts_with('"')) {
        add(distinct::json_cell(json.as_bytes())?.value(), out);
    }
    Ok(true)
}

fn is_complete(key: &KeySummary) -> bool {
    !key.cut && (!key.values.is_empty() || key.counts.iter().all(|count| *count == 0))
}
