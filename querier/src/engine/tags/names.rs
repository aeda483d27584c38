//! Names of tags, by scope.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use spanhouse_common::block::{KeySummary, Summary};
use spanhouse_common::columns::{Fixed, HiddenNames, List, Owner, Part, Rows, Values};
use spanhouse_common::model::{Attribute, typed_json};
use spanhouse_common::source::SourceError;

use super::super::answer::{TagNamesAnswer, TagScope};
use super::super::run::Running;
use super::super::{EngineError, TagNamesRequest};
use super::scan::{Read, Scan};
use super::{Gathered, mark_cut};
use crate::traceql::ast;

/// Whose attributes, in the order of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Span,
    Resource,
    Event,
    Link,
    Instrumentation,
}

const ALL: [Of; 5] = [Of::Span, Of::Resource, Of::Event, Of::Link, Of::Instrumentation];

impl Of {
    fn name(self) -> &'static str {
        match self {
            Self::Span => "span",
            Self::Resource => "resource",
            Self::Event => "event",
            Self::Link => "link",
            Self::Instrumentation => "instrumentation",
        }
    }

    fn is_in(self, scope: Option<ast::Scope>) -> bool {
        match scope {
            None | Some(ast::Scope::None | ast::Scope::Parent(_)) => true,
            Some(ast::Scope::Span) => self == Self::Span,
            Some(ast::Scope::Resource) => self == Self::Resource,
            Some(ast::Scope::Event) => self == Self::Event,
            Some(ast::Scope::Link) => self == Self::Link,
            Some(ast::Scope::Instrumentation) => self == Self::Instrumentation,
        }
    }

    fn hidden(self, names: &HiddenNames) -> &BTreeSet<String> {
        match self {
            Self::Span => &names.span,
            Self::Resource => &names.resource,
            Self::Event => &names.event,
            Self::Link => &names.link,
            Self::Instrumentation => &names.scope,
        }
    }

    fn listed(self, summary: &Summary) -> &[KeySummary] {
        match self {
            Self::Span => &summary.span,
            Self::Resource => &summary.resource,
            Self::Event => &summary.event,
            Self::Link => &summary.link,
            Self::Instrumentation => &summary.scope,
        }
    }
}

type Names = Gathered<(Of, String)>;

fn add(names: &mut Names, of: Of, key: &str) {
    names.add((of, key.to_owned()), key.len());
}

/// Bytes of names that are kept of live parts, about: of those asked for last. A part has the same names for ever.
const KEPT_BYTES: usize = 1 << 20;

/// The names in live parts, which have no summary: looking for them takes a look at every span's resource.
#[derive(Debug, Default)]
pub(crate) struct KeptNames(Mutex<Vec<(u64, Arc<Names>)>>);

impl KeptNames {
    /// All names of a part.
    fn of(&self, part: &dyn Part) -> Result<(Arc<Names>, u64), EngineError> {
        let key = part.identity();
        {
            let mut kept = self.0.lock();
            if let Some(at) = kept.iter().position(|(known, _)| *known == key) {
                let found = kept.remove(at);
                let names = Arc::clone(&found.1);
                kept.push(found);
                return Ok((names, 0));
            }
        }
        let names = Mutex::new(Names::new(0, KEPT_BYTES));
        let spans = all_names(part, &ALL, &names)?;
        let names = Arc::new(names.into_inner());
        let size = |names: &Names| names.bytes + 64 * names.all.len();
        let mut kept = self.0.lock();
        let mut sum = size(&names) + kept.iter().map(|(_, names)| size(names)).sum::<usize>();
        while sum > KEPT_BYTES && !kept.is_empty() {
            sum -= size(&kept.remove(0).1);
        }
        if sum <= KEPT_BYTES && !names.over {
            kept.push((key, Arc::clone(&names)));
        }
        Ok((names, spans))
    }
}

pub(crate) async fn names(
    mut running: Running,
    request: &TagNamesRequest,
    kept: &Arc<KeptNames>,
) -> Result<TagNamesAnswer, EngineError> {
    let wanted: Vec<Of> = ALL.into_iter().filter(|of| of.is_in(request.scope)).collect();
    // Every name a job finds spares the others from looking for it.
    let found = Arc::new(Mutex::new(Names::new(0, request.max_bytes)));
    match &request.filter {
        None => {
            let opened = Arc::clone(&running.opened);
            for (summary, hiding) in opened.summaries.iter().zip(&opened.hiding) {
                if hiding.is_empty() {
                    for of in &wanted {
                        of.listed(summary).iter().for_each(|key| add(&mut found.lock(), *of, &key.key));
                    }
                }
            }
            let live = opened.parts.iter().zip(&opened.summary_of).filter(|(_, summary)| summary.is_none());
            let jobs: Vec<_> = live
                .map(|(part, _)| {
                    let (part, found, wanted) = (Arc::clone(part), Arc::clone(&found), wanted.clone());
                    let kept = Arc::clone(kept);
                    move || {
                        let (names, spans) = kept.of(&*part)?;
                        if names.over {
                            return all_names(&*part, &wanted, &found);
                        }
                        let mut found = found.lock();
                        let wanted = names.all.iter().filter(|(of, _)| wanted.contains(of));
                        wanted.for_each(|(of, key)| add(&mut found, *of, key));
                        Ok(spans)
                    }
                })
                .collect();
            running
                .jobs(jobs, |stats, spans| {
                    stats.inspected_spans += spans;
                    Ok(())
                })
                .await?;
            if opened.hiding.iter().any(|hiding| !hiding.is_empty()) {
                names_beside_hidden(&mut running, &wanted, &found).await?;
            }
        }
        Some(filter) => {
            let (scan, _) = Scan::new(&running, Some(filter), &[])?;
            let into = Arc::clone(&found);
            scan.run(&mut running, |_| true, move |_, view, rows| names_on(view.part, rows, &wanted, &into)).await?;
        }
    }
    let mut found = found.lock();
    running.budget.keep(found.bytes)?;
    let mut stats = running.stats.clone();
    if found.over {
        mark_cut(&mut stats, request.max_bytes, "tag names");
    }
    let mut scopes: Vec<TagScope> = Vec::new();
    for (of, tag) in std::mem::take(&mut found.all) {
        match scopes.last_mut() {
            Some(scope) if scope.name == of.name() => scope.tags.push(tag),
            _ => scopes.push(TagScope { name: of.name(), tags: vec![tag] }),
        }
    }
    if request.limit > 0 {
        scopes.iter_mut().for_each(|scope| scope.tags.truncate(request.limit));
    }
    Ok(TagNamesAnswer { scopes, stats })
}

/// The names in blocks of which deleted traces are left out: those the summary lists and no deleted trace has, and of the others
/// those that are found on rows.
async fn names_beside_hidden(running: &mut Running, wanted: &[Of], found: &Arc<Mutex<Names>>) -> Result<(), EngineError> {
    let (opened, wanted) = (Arc::clone(&running.opened), wanted.to_vec());
    let listed = {
        let (opened, found, wanted) = (Arc::clone(&opened), Arc::clone(found), wanted.clone());
        move || {
            for (summary, hiding) in opened.summaries.iter().zip(&opened.hiding).filter(|(_, hiding)| !hiding.is_empty()) {
                let hidden = hiding.iter().map(|part| part.hidden_names()).collect::<Result<Vec<_>, _>>()?;
                let is_theirs = |of: Of, key: &str| {
                    hidden.iter().any(|hidden| hidden.as_ref().is_none_or(|all| of.hidden(all).contains(key)))
                };
                let mut found = found.lock();
                for of in &wanted {
                    let sure = of.listed(summary).iter().filter(|key| !is_theirs(*of, &key.key));
                    sure.for_each(|key| add(&mut found, *of, &key.key));
                }
            }
            Ok(())
        }
    };
    running.alone(listed).await?;
    let is_read: Vec<bool> =
        opened.summary_of.iter().map(|of| of.is_some_and(|summary| !opened.hiding[summary].is_empty())).collect();
    let (scan, _) = Scan::new(running, None, &[])?;
    let into = Arc::clone(found);
    scan.run(running, |part| is_read[part], move |_, view, rows| names_on(view.part, rows, &wanted, &into)).await
}

/// The names of a part that keeps count of its keys. Tells how many spans it has.
fn all_names(part: &dyn Part, wanted: &[Of], found: &Mutex<Names>) -> Result<u64, EngineError> {
    let rows = Rows::Range(0, part.rows());
    for of in wanted {
        match of {
            Of::Span | Of::Event | Of::Link => {
                let keys = part.keys(owner(*of))?;
                let mut found = found.lock();
                keys.iter().for_each(|(key, _)| add(&mut found, *of, key));
            }
            Of::Resource | Of::Instrumentation => {
                texts_names(part, rows, *of, found)?;
            }
        }
    }
    Ok(u64::from(part.rows()))
}

fn owner(of: Of) -> Owner {
    match of {
        Of::Event => Owner::Event,
        Of::Link => Owner::Link,
        _ => Owner::Span,
    }
}

/// The names on some rows, as far as they are not found yet.
fn names_on(part: &dyn Part, rows: Rows<'_>, wanted: &[Of], found: &Mutex<Names>) -> Result<Read, EngineError> {
    let mut bytes = 0;
    for of in wanted {
        let list = match of {
            Of::Resource | Of::Instrumentation => {
                bytes += texts_names(part, rows, *of, found)?;
                continue;
            }
            Of::Span => None,
            Of::Event => Some(List::Events),
            Of::Link => Some(List::Links),
        };
        if let Some(list) = list
            && part.items(list, rows)?.slots.is_empty()
        {
            continue;
        }
        for (key, _) in part.keys(owner(*of))? {
            if found.lock().all.contains(&(*of, key.clone())) {
                continue;
            }
            let columns = match list {
                None => part.attribute(&key, rows)?,
                Some(list) => part.item_attribute(list, &key, rows)?,
            };
            bytes += columns.iter().map(|column| column.heap_bytes() as u64).sum::<u64>();
            if columns.iter().any(|column| !column.is_empty()) {
                add(&mut found.lock(), *of, &key);
            }
        }
    }
    Ok(Read { bytes, enough: found.lock().over })
}

/// The names in the resources or scopes of some rows. Tells how much was read.
fn texts_names(part: &dyn Part, rows: Rows<'_>, of: Of, found: &Mutex<Names>) -> Result<u64, SourceError> {
    let which = if of == Of::Resource { Fixed::Resource } else { Fixed::Scope };
    let column = part.column(which, rows)?;
    let mut seen: HashMap<&[u8], (), foldhash::fast::RandomState> = HashMap::default();
    match &column.values {
        Values::Codes(codes, texts) => {
            let mut is_seen = vec![false; texts.len()];
            codes.iter().for_each(|code| is_seen[*code as usize] = true);
            let codes = (0..).zip(is_seen).filter(|(_, is_seen)| *is_seen);
            seen.extend(codes.filter_map(|(code, _)| Some((texts.get(code)?, ()))));
        }
        values => seen.extend((0..values.len()).filter_map(|at| Some((values.text(at)?, ())))),
    }
    for text in seen.into_keys() {
        let bad = |why: String| SourceError::Damaged { what: part.name(), why };
        let text = std::str::from_utf8(text).map_err(|e| bad(e.to_string()))?;
        let attributes: Vec<Attribute> = if of == Of::Resource {
            typed_json::parse_resource(text).map_err(|e| bad(e.to_string()))?.attributes
        } else {
            typed_json::parse_scope(text).map_err(|e| bad(e.to_string()))?.attributes
        };
        let mut found = found.lock();
        attributes.iter().for_each(|attribute| add(&mut found, of, &attribute.key));
    }
    Ok(column.heap_bytes() as u64)
}
