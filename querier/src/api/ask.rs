//! Asks the engine, for every protocol alike, and makes its answers fit for clients.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::ApiDeps;
use super::error::ApiError;
use super::params::{Asker, TagNamesAsked};
use super::respond::{offload, search_bytes};
use crate::engine::answer::{
    AnswerAttribute, AnswerValue, QueryStats, SearchAnswer, SeriesAnswer, TagNamesAnswer, TagScope, TagValue,
    TagValuesAnswer,
};
use crate::engine::{MetricsRequest, Progress, Quiet, SearchFilter, SearchRequest, TagValuesRequest};
use crate::traceql::ast::{Attribute, Intrinsic, ParentScope, Scope};

/// The intrinsics that are told as tags, sorted.
const INTRINSICS: [&str; 25] = [
    "duration",
    "event:name",
    "event:timeSinceStart",
    "instrumentation:name",
    "instrumentation:version",
    "kind",
    "link:spanID",
    "link:traceID",
    "name",
    "rootName",
    "rootServiceName",
    "span:duration",
    "span:id",
    "span:kind",
    "span:name",
    "span:parentID",
    "span:status",
    "span:statusMessage",
    "status",
    "statusMessage",
    "trace:duration",
    "trace:id",
    "trace:rootName",
    "trace:rootService",
    "traceDuration",
];

const STATUS_WORDS: [&str; 3] = ["error", "ok", "unset"];
const KIND_WORDS: [&str; 6] = ["client", "consumer", "internal", "producer", "server", "unspecified"];

impl ApiDeps {
    pub(crate) fn asker(&self, tenants: Vec<spanhouse_common::id::TenantId>) -> Asker<'_> {
        Asker { tenants, settings: &self.settings, now: self.clock.now() }
    }
}

pub(crate) async fn search(
    deps: &ApiDeps,
    request: SearchRequest,
    progress: &dyn Progress<SearchAnswer>,
) -> Result<SearchAnswer, ApiError> {
    if let SearchFilter::TraceQl(query) = &request.filter
        && super::params::is_math(query)
    {
        return Err(ApiError::MathInSearch);
    }
    let mut answer = deps.engine.search(request, progress).await?;
    finish(deps, &mut answer.stats);
    if answer.stats.partial.is_some() {
        answer.stats.leave_a_job_open();
    }
    offload(search_bytes(&answer), move || {
        one_kind_per_key(&mut answer);
        answer
    })
    .await
}

pub(crate) async fn metrics(
    deps: &ApiDeps,
    request: MetricsRequest,
    progress: &dyn Progress<SeriesAnswer>,
) -> Result<SeriesAnswer, ApiError> {
    let mut answer = deps.engine.metrics(request, progress).await?;
    finish(deps, &mut answer.stats);
    Ok(answer)
}

/// Scopes with their tags, the intrinsics last.
pub(crate) async fn tag_names(deps: &ApiDeps, asked: TagNamesAsked) -> Result<TagNamesAnswer, ApiError> {
    let mut answer = match asked.stored {
        Some(request) => deps.engine.tag_names(request).await?,
        None => TagNamesAnswer::default(),
    };
    let mut left = deps.settings.max_tag_bytes;
    let mut is_cut = false;
    for scope in &mut answer.scopes {
        is_cut |= cut_texts(&mut scope.tags, String::as_str, &mut left);
    }
    answer.scopes.retain(|scope| !scope.tags.is_empty());
    if asked.intrinsics {
        let tags = INTRINSICS.into_iter().map(str::to_owned).collect();
        answer.scopes.push(TagScope { name: "intrinsic", tags });
    }
    finish_tags(deps, &mut answer.stats, is_cut);
    Ok(answer)
}

/// Names of all scopes but the intrinsics, sorted, each once.
pub(crate) fn flat_names(answer: &TagNamesAnswer, only_intrinsics: bool) -> Vec<&str> {
    let wanted = answer.scopes.iter().filter(|scope| (scope.name == "intrinsic") == only_intrinsics);
    let mut names: Vec<&str> = wanted.flat_map(|scope| &scope.tags).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Typed values. What a language has words for, or what nobody picks from a list, is answered without looking at data. `name` is the
/// tag as it was asked for: of two names of one thing Tempo lists values for one.
pub(crate) async fn tag_values(
    deps: &ApiDeps,
    name: &str,
    mut request: TagValuesRequest,
) -> Result<TagValuesAnswer, ApiError> {
    use Intrinsic as I;
    let words = |words: &[&str]| {
        let keyword = |word: &&str| TagValue { kind: "keyword", text: (*word).to_owned() };
        let mut answer = TagValuesAnswer { values: words.iter().map(keyword).collect(), ..TagValuesAnswer::default() };
        set_jobs(&mut answer.stats);
        Ok(answer)
    };
    match &mut request.attribute {
        Attribute::Intrinsic(I::Status) => return words(&STATUS_WORDS),
        Attribute::Intrinsic(I::Kind) => return words(&KIND_WORDS),
        Attribute::Intrinsic(I::TraceDuration) if name != "trace:duration" => return words(&[]),
        Attribute::Intrinsic(
            I::Duration | I::SpanId | I::TraceId | I::ParentId | I::LinkTraceId | I::LinkSpanId | I::Parent,
        ) => return words(&[]),
        Attribute::Scoped { scope, .. } => {
            if let Scope::Parent(of) = *scope {
                *scope = match of {
                    ParentScope::None => Scope::None,
                    ParentScope::Span => Scope::Span,
                    ParentScope::Resource => Scope::Resource,
                };
            }
        }
        // The others have no text.
        _ => {}
    }
    let mut answer = deps.engine.tag_values(request).await?;
    let is_cut = cut_texts(&mut answer.values, |value| &value.text, &mut { deps.settings.max_tag_bytes });
    finish_tags(deps, &mut answer.stats, is_cut);
    Ok(answer)
}

/// What the first version of the API calls a tag.
#[derive(Debug, PartialEq)]
pub(crate) enum PlainTag {
    Attribute(Attribute),
    /// An attribute of span, resource or instrumentation scope.
    Anywhere(Arc<str>),
    Words(&'static [&'static str]),
}

impl PlainTag {
    pub(crate) fn of(name: &str) -> Self {
        let intrinsic = |intrinsic| Self::Attribute(Attribute::Intrinsic(intrinsic));
        match name {
            "name" => intrinsic(Intrinsic::Name),
            "rootName" | "root.name" => intrinsic(Intrinsic::RootName),
            "rootServiceName" | "root.service.name" => intrinsic(Intrinsic::RootService),
            "service.name" => Self::Attribute(Attribute::Scoped { scope: Scope::Resource, name: name.into() }),
            "trace:id" | "span:id" => Self::Words(&[]),
            "status.code" => Self::Words(&STATUS_WORDS),
            "error" => Self::Words(&["true"]),
            _ => Self::Anywhere(name.into()),
        }
    }

    /// What the data is asked first, if at all.
    pub(crate) fn attribute(&self) -> Attribute {
        match self {
            Self::Attribute(attribute) => attribute.clone(),
            Self::Anywhere(name) => Attribute::Scoped { scope: Scope::None, name: Arc::clone(name) },
            Self::Words(_) => Attribute::Scoped { scope: Scope::None, name: "".into() },
        }
    }
}

/// Values as plain text, sorted, each once.
pub(crate) async fn plain_values(
    deps: &ApiDeps,
    tag: PlainTag,
    request: TagValuesRequest,
) -> Result<(Vec<String>, QueryStats), ApiError> {
    let limit = request.limit;
    let (mut texts, mut stats) = match tag {
        PlainTag::Words(words) => {
            let mut stats = QueryStats::default();
            set_jobs(&mut stats);
            (words.iter().map(|word| (*word).to_owned()).collect(), stats)
        }
        PlainTag::Attribute(_) => {
            let answer = tag_values(deps, "", request).await?;
            (texts_of(answer.values), answer.stats)
        }
        PlainTag::Anywhere(name) => {
            let attribute = Attribute::Scoped { scope: Scope::Instrumentation, name };
            let of_scope = TagValuesRequest { attribute, ..request.clone() };
            let (first, second) = futures::try_join!(tag_values(deps, "", request), tag_values(deps, "", of_scope))?;
            let mut texts = texts_of(first.values);
            texts.extend(texts_of(second.values));
            (texts, sum(first.stats, second.stats))
        }
    };
    texts.sort_unstable();
    texts.dedup();
    if limit > 0 {
        texts.truncate(limit);
    }
    // Each of several answers may be as long as one may be.
    let is_cut = cut_texts(&mut texts, String::as_str, &mut { deps.settings.max_tag_bytes });
    mark_cut(deps, &mut stats, is_cut);
    Ok((texts, stats))
}

fn texts_of(values: Vec<TagValue>) -> Vec<String> {
    values.into_iter().map(|value| value.text).collect()
}

fn sum(a: QueryStats, b: QueryStats) -> QueryStats {
    QueryStats {
        inspected_traces: a.inspected_traces.saturating_add(b.inspected_traces),
        inspected_bytes: a.inspected_bytes.saturating_add(b.inspected_bytes),
        inspected_spans: a.inspected_spans.saturating_add(b.inspected_spans),
        total_blocks: a.total_blocks.max(b.total_blocks),
        total_block_bytes: a.total_block_bytes.max(b.total_block_bytes),
        completed_jobs: a.completed_jobs.saturating_add(b.completed_jobs),
        total_jobs: a.total_jobs.saturating_add(b.total_jobs),
        partial: a.partial.or(b.partial),
    }
}

/// Keeps what fits into the bytes that are left. True if not all did.
fn cut_texts<T>(items: &mut Vec<T>, text: impl Fn(&T) -> &str, left: &mut usize) -> bool {
    let fitting = items.iter().take_while(|item| match left.checked_sub(text(item).len()) {
        Some(rest) => {
            *left = rest;
            true
        }
        None => false,
    });
    let fitting = fitting.count();
    let is_cut = fitting < items.len();
    if is_cut {
        *left = 0;
        items.truncate(fitting);
    }
    is_cut
}

fn finish_tags(deps: &ApiDeps, stats: &mut QueryStats, is_cut: bool) {
    mark_cut(deps, stats, is_cut);
    finish(deps, stats);
}

fn mark_cut(deps: &ApiDeps, stats: &mut QueryStats, is_cut: bool) {
    if is_cut && stats.partial.is_none() {
        let limit = deps.settings.max_tag_bytes;
        stats.partial = Some(format!("names and values of more than {limit} bytes are cut"));
    }
    if stats.partial.is_some() {
        stats.leave_a_job_open();
    }
}

fn finish(deps: &ApiDeps, stats: &mut QueryStats) {
    set_jobs(stats);
    if stats.partial.is_some() {
        deps.metrics.partial("query");
    }
}

/// A query of nothing is one job that is done: progress is shown as a quotient.
pub(crate) fn set_jobs(stats: &mut QueryStats) {
    if stats.total_jobs == 0 {
        (stats.completed_jobs, stats.total_jobs) = (1, 1);
    }
}

/// Grafana makes a typed column of each key and fails on a value of another type. Where an answer has texts and others under
/// one key, all become texts. Numbers that are none have no form in its tables and always become texts.
fn one_kind_per_key(answer: &mut SearchAnswer) {
    const NUMBER: u8 = 1;
    const TEXT: u8 = 2;
    const BOOL: u8 = 4;
    const ARRAY: u8 = 8;
    let mut kinds: HashMap<Arc<str>, u8> = HashMap::new();
    each_attribute(answer, |attribute| {
        if let AnswerValue::Float(value) = attribute.value
            && !value.is_finite()
        {
            attribute.value = AnswerValue::Str(plain_text(&attribute.value).into());
        }
        let kind = match attribute.value {
            AnswerValue::Int(_) | AnswerValue::Float(_) => NUMBER,
            AnswerValue::Str(_) => TEXT,
            AnswerValue::Bool(_) => BOOL,
            AnswerValue::Array(_) => ARRAY,
        };
        match kinds.get_mut(&attribute.key) {
            Some(seen) => *seen |= kind,
            None => {
                kinds.insert(Arc::clone(&attribute.key), kind);
            }
        }
    });
    kinds.retain(|_, seen| seen.count_ones() > 1);
    if kinds.is_empty() {
        return;
    }
    each_attribute(answer, |attribute| {
        if kinds.contains_key(&attribute.key) && !matches!(attribute.value, AnswerValue::Str(_)) {
            attribute.value = AnswerValue::Str(plain_text(&attribute.value).into());
        }
    });
}

fn each_attribute(answer: &mut SearchAnswer, mut visit: impl FnMut(&mut AnswerAttribute)) {
    for set in answer.traces.iter_mut().flat_map(|trace| &mut trace.span_sets) {
        set.attributes.iter_mut().for_each(&mut visit);
        set.spans.iter_mut().flat_map(|span| &mut span.attributes).for_each(&mut visit);
    }
}

fn plain_text(value: &AnswerValue) -> String {
    match value {
        AnswerValue::Str(text) => text.to_string(),
        AnswerValue::Int(value) => value.to_string(),
        AnswerValue::Bool(value) => value.to_string(),
        AnswerValue::Float(value) if value.is_nan() => "NaN".to_owned(),
        AnswerValue::Float(value) if value.is_infinite() => if *value > 0.0 { "+Inf" } else { "-Inf" }.to_owned(),
        AnswerValue::Float(value) => {
            let mut out = String::new();
            crate::json::push_f64(*value, &mut out);
            out
        }
        AnswerValue::Array(values) => {
            let mut out = String::from("[");
            for (nth, value) in values.iter().enumerate() {
                let _ = write!(out, "{}{}", if nth == 0 { "" } else { ", " }, plain_text(value));
            }
            out.push(']');
            out
        }
    }
}

/// For callers that want no news.
pub(crate) const QUIET: &Quiet = &Quiet;
