//! Search: the newest traces that have what a query looks for.
//!
//! Two steps. Every slice tells its newest candidates as row numbers; of all candidates the newest are then read out. What lies
//! in several parts is joined before it is judged, so an answer does not depend on where spans lie.

use std::collections::HashMap;
use std::sync::Arc;

use spanhouse_common::block::flag;
use spanhouse_common::columns::{Fixed, Part, Rows, Values};
use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::time::TimeRange;

use super::answer::{AnswerAttribute, AnswerValue, SearchAnswer, ServiceStats, SpanResult, SpanSetResult, TraceResult};
use super::bits::Bits;
use super::budget::Budget;
use super::filter::PartView;
use super::pipeline::{Evaluator, SetAttributes, Sets};
use super::plan::{SpansPlan, compile};
use super::run::{Running, Slice, newest_first};
use super::shared::Shared;
use super::structure::root_rows;
use super::tag_search::{self, TagPlan};
use super::value::Cell;
use super::{EngineError, Progress, SearchFilter, SearchRequest};
use crate::traceql::ast::{MetricsExpr, PipelineExpr, Root};

/// Traces read out by one job.
const READ_TRACES: usize = 2048;

const STATUS_ERROR: i32 = 2;

/// A trace that matches, as rows.
#[derive(Debug)]
struct Candidate {
    start: u64,
    id: TraceId,
    duration: u64,
    part: Arc<dyn Part>,
    trace: u32,
    sets: Vec<FoundSet>,
}

#[derive(Debug)]
struct FoundSet {
    /// The first ones.
    rows: Vec<u32>,
    matched: u32,
    attributes: SetAttributes,
}

/// What a slice found.
struct Found {
    candidates: Vec<Candidate>,
    /// Shared traces that may match.
    hits: Vec<u32>,
    traces: u32,
    spans: u64,
    bytes: u64,
}

/// What is looked for.
#[derive(Debug)]
enum Looking {
    Spans(SpansPlan),
    Tags(TagPlan),
}

/// What every job of a search knows.
#[derive(Debug)]
struct Search {
    looking: Looking,
    range: Option<TimeRange>,
    limit: usize,
    spans_per_set: usize,
    shared: Arc<Shared>,
    budget: Budget,
}

/// The spans a query is about; of a metrics query, those it measures.
pub(crate) fn spans_of(root: &Root) -> Result<&PipelineExpr, EngineError> {
    let mut expr = match root {
        Root::Spans(spans) => return Ok(spans),
        Root::Metrics(expr) => expr,
    };
    loop {
        expr = match expr {
            MetricsExpr::Query(query) => return Ok(&query.spans),
            MetricsExpr::Stage { input, .. } => input,
            MetricsExpr::Math { .. } | MetricsExpr::ScalarMath { .. } => {
                return Err(EngineError::Evaluation("math expressions not supported".into()));
            }
        };
    }
}

pub(crate) async fn search(
    mut running: Running,
    request: &SearchRequest,
    progress: &dyn Progress<SearchAnswer>,
) -> Result<SearchAnswer, EngineError> {
    let looking = match &request.filter {
        SearchFilter::TraceQl(query) => Looking::Spans(compile(spans_of(&query.root)?, |_| Ok(()))?.0),
        SearchFilter::Tags(tags) => Looking::Tags(TagPlan::new(tags)),
    };
    let search = Arc::new(Search {
        looking,
        range: request.range,
        limit: request.limit,
        spans_per_set: request.spans_per_set,
        shared: Arc::clone(&running.shared),
        budget: running.budget.clone(),
    });
    let mut slices = running.slices();
    // Newest first: when enough is found that nothing older can displace, the rest need not be read.
    slices.sort_by_key(|slice| std::cmp::Reverse(slice.newest()));
    let mut collected = Collected { limit: request.limit, progress, candidates: Vec::new(), hits: Vec::new() };
    let mut joined = Bits::none(search.shared.len());
    let mut slices = slices.into_iter().peekable();
    let mut wave_slices = FIRST_WAVE_SLICES;
    while let Some(next) = slices.peek() {
        if collected.are_newer_than(next.newest()) {
            break;
        }
        let wave: Vec<_> = slices
            .by_ref()
            .take(running.threads() * wave_slices)
            .map(|slice| {
                let search = Arc::clone(&search);
                move || search.slice(&slice)
            })
            .collect();
        wave_slices = (wave_slices * 2).min(WAVE_SLICES);
        running.jobs(wave, |stats, found| collected.take(stats, found)).await?;
        let mut hits = std::mem::take(&mut collected.hits);
        hits.retain(|trace| !joined.get(*trace as usize));
        hits.iter().for_each(|trace| joined.set(*trace as usize));
        let work = Arc::clone(&search);
        let jobs = running.merged(hits, move |slice| work.slice(&slice));
        // Their spans were counted where they lie.
        running.jobs(jobs, |stats, found| collected.take(stats, Found { traces: 0, spans: 0, bytes: 0, ..found })).await?;
        cut(&mut collected.candidates, request.limit);
    }
    let candidates = collected.candidates;
    let traces = read_out(&mut running, &search, candidates).await?;
    Ok(SearchAnswer { traces, stats: running.stats.clone() })
}

/// Slices read by each thread before what was found is judged: few at first, because the newest often have enough.
const FIRST_WAVE_SLICES: usize = 2;
const WAVE_SLICES: usize = 8;

/// What was found so far.
struct Collected<'p> {
    limit: usize,
    progress: &'p dyn Progress<SearchAnswer>,
    candidates: Vec<Candidate>,
    hits: Vec<u32>,
}

impl Collected<'_> {
    fn take(&mut self, stats: &mut super::answer::QueryStats, found: Found) -> Result<(), EngineError> {
        stats.inspected_traces = stats.inspected_traces.saturating_add(found.traces);
        stats.inspected_spans += found.spans;
        stats.inspected_bytes += found.bytes;
        self.hits.extend(found.hits);
        self.candidates.extend(found.candidates);
        if self.candidates.len() > 2 * self.limit {
            cut(&mut self.candidates, self.limit);
        }
        self.progress.so_far(SearchAnswer { traces: Vec::new(), stats: stats.clone() });
        Ok(())
    }

    /// Whether as many as are wanted start after `time`. They are in order.
    fn are_newer_than(&self, time: u64) -> bool {
        self.candidates.len() >= self.limit && self.candidates.last().is_some_and(|last| last.start > time)
    }
}

/// Keeps the newest.
fn cut(candidates: &mut Vec<Candidate>, limit: usize) {
    candidates.sort_unstable_by_key(|candidate| newest_first(candidate.start, candidate.id));
    candidates.truncate(limit);
}

impl Search {
    fn slice(&self, slice: &Slice) -> Result<Found, EngineError> {
        let none = super::expr::Attributes::default();
        let attributes = match &self.looking {
            Looking::Spans(plan) => &plan.attributes,
            Looking::Tags(_) => &none,
        };
        let mut view = PartView::new(&*slice.part, attributes, &self.budget)?;
        view.starts = slice.range;
        let (from, to) = slice.rows;
        let here = slice.number.map_or(&[][..], |number| self.shared.between(number, slice.traces.0, slice.traces.1));
        let table = Arc::clone(&view.traces.table);
        let rows = u64::from(to - from);
        let mut found = Found {
            candidates: Vec::new(),
            hits: Vec::new(),
            traces: (slice.traces.1 - slice.traces.0) as u32,
            spans: rows,
            bytes: slice.part.bytes() * rows / u64::from(slice.part.rows().max(1)),
        };
        let sets = match &self.looking {
            Looking::Tags(plan) => {
                let mut matching = tag_search::matching(plan, &view, slice)?;
                found.hits = here.iter().map(|(_, shared)| *shared).collect();
                matching.retain(|trace| here.binary_search_by_key(trace, |(trace, _)| *trace).is_err());
                if let Some(only) = &slice.only {
                    matching.retain(|trace| only.binary_search(trace).is_ok());
                }
                return self.choose(slice, found, matching, |_| Vec::new());
            }
            Looking::Spans(plan) => {
                let evaluator = Evaluator { view: &view, from, to };
                let clear = |rows: &mut Bits| Shared::clear(here, &table, from, rows);
                if let Some(filter) = plan.span_filter() {
                    let mut rows = view.select_in(filter, &slice.wanted(&table), from)?;
                    for (trace, shared) in here {
                        let range = table.rows(*trace as usize);
                        if rows.any_in((range.start - from) as usize, (range.end - from) as usize) {
                            found.hits.push(*shared);
                        }
                    }
                    clear(&mut rows);
                    Sets::one(rows)
                } else {
                    found.hits = hits(plan, &view, here)?;
                    let mut rows = slice.wanted(&table);
                    clear(&mut rows);
                    self.clear_out_of_range(slice, &mut rows)?;
                    evaluator.run(&plan.plan, &rows)?
                }
            }
        };
        let evaluator = Evaluator { view: &view, from, to };
        match sets {
            Sets::One { rows, found: columns } => {
                let mut traces = Vec::new();
                evaluator.each_trace(&rows, |trace, _, _| traces.push(trace));
                self.choose(slice, found, traces, |trace| {
                    let range = table.rows(trace as usize);
                    let (first, end) = ((range.start - from) as usize, (range.end - from) as usize);
                    let shown = rows.ones_in(first, end).take(self.spans_per_set).map(|at| from + at as u32).collect();
                    let matched = rows.count_range(first, end) as u32;
                    let attribute =
                        |column: &super::pipeline::Found| Some((Arc::clone(column.name()), column.value(trace)?));
                    vec![FoundSet { rows: shown, matched, attributes: columns.iter().filter_map(attribute).collect() }]
                })
            }
            Sets::Many(groups) => {
                let set = |set: usize| {
                    let rows = groups.rows_of(set);
                    FoundSet {
                        rows: rows.iter().copied().take(self.spans_per_set).collect(),
                        matched: rows.len() as u32,
                        attributes: groups.attributes_of(set),
                    }
                };
                self.choose(slice, found, groups.traces(), |trace| groups.of_trace(trace).map(set).collect())
            }
        }
    }

    /// Clears the traces that do not overlap the range: they are not asked about, not even whether they can be evaluated.
    fn clear_out_of_range(&self, slice: &Slice, rows: &mut Bits) -> Result<(), EngineError> {
        let Some(range) = self.range else { return Ok(()) };
        let (table, times, from) = (slice.part.traces()?, slice.part.times()?, slice.rows.0);
        for trace in slice.traces.0..slice.traces.1 {
            if times.starts[trace] > range.max.0 || times.ends[trace] < range.min.0 {
                let rows_of = table.rows(trace);
                rows.clear_range((rows_of.start - from) as usize, (rows_of.end - from) as usize);
            }
        }
        Ok(())
    }

    /// Of these traces of the part, the newest in range.
    fn choose(
        &self,
        slice: &Slice,
        mut found: Found,
        traces: Vec<u32>,
        mut sets: impl FnMut(u32) -> Vec<FoundSet>,
    ) -> Result<Found, EngineError> {
        if traces.is_empty() {
            return Ok(found);
        }
        let (table, times) = (slice.part.traces()?, slice.part.times()?);
        let in_range = |trace: &u32| {
            let (start, end) = (times.starts[*trace as usize], times.ends[*trace as usize]);
            self.range.is_none_or(|range| start <= range.max.0 && end >= range.min.0)
        };
        let long_enough = |trace: &u32| match &self.looking {
            Looking::Tags(plan) => plan.fits_duration(times.duration(*trace as usize)),
            Looking::Spans(_) => true,
        };
        let mut chosen: Vec<u32> = traces.into_iter().filter(|trace| in_range(trace) && long_enough(trace)).collect();
        if chosen.len() > self.limit {
            chosen.sort_unstable_by_key(|trace| newest_first(times.starts[*trace as usize], table.ids[*trace as usize]));
            chosen.truncate(self.limit);
        }
        let mut bytes = 0;
        for trace in chosen {
            let sets = sets(trace);
            bytes += size_of::<Candidate>()
                + sets
                    .iter()
                    .map(|set| size_of::<FoundSet>() + set.rows.len() * 4 + set.attributes.len() * 40)
                    .sum::<usize>();
            found.candidates.push(Candidate {
                start: times.starts[trace as usize],
                id: table.ids[trace as usize],
                duration: times.duration(trace as usize),
                part: Arc::clone(&slice.part),
                trace,
                sets,
            });
        }
        self.budget.keep(bytes)?;
        Ok(found)
    }
}

/// Of the shared traces in a slice, those that may match: their numbers among all shared ones.
pub(crate) fn hits(plan: &SpansPlan, view: &PartView<'_>, here: &[(u32, u32)]) -> Result<Vec<u32>, EngineError> {
    let Some(filters) = plan.necessary().filter(|_| !here.is_empty()) else {
        return Ok(here.iter().map(|(_, shared)| *shared).collect());
    };
    let table = &view.traces.table;
    let rows: Vec<u32> = here.iter().flat_map(|(trace, _)| table.rows(*trace as usize)).collect();
    let mut out = Vec::new();
    for filter in filters {
        let mut at = 0;
        for row in view.select_of(filter, &rows)? {
            while table.rows(here[at].0 as usize).end <= row {
                at += 1;
            }
            if out.last() != Some(&here[at].1) {
                out.push(here[at].1);
            }
        }
    }
    Ok(out)
}

/// Reads the results out, in parallel, and puts them in order.
async fn read_out(
    running: &mut Running,
    search: &Arc<Search>,
    candidates: Vec<Candidate>,
) -> Result<Vec<TraceResult>, EngineError> {
    let mut by_part: HashMap<usize, Vec<(usize, Candidate)>> = HashMap::new();
    let count = candidates.len();
    for (place, candidate) in candidates.into_iter().enumerate() {
        by_part.entry(Arc::as_ptr(&candidate.part).cast::<()>() as usize).or_default().push((place, candidate));
    }
    let mut jobs = Vec::new();
    for (_, mut all) in by_part {
        // In the order of rows.
        all.sort_unstable_by_key(|(_, candidate)| candidate.trace);
        while !all.is_empty() {
            let rest = all.split_off(all.len().min(READ_TRACES));
            let lot = std::mem::replace(&mut all, rest);
            let search = Arc::clone(search);
            jobs.push(move || search.read(lot));
        }
    }
    let mut out: Vec<(usize, TraceResult)> = Vec::with_capacity(count);
    // Reading out is no job of its own to those who count.
    let (total, completed) = (running.stats.total_jobs, running.stats.completed_jobs);
    let wanted = jobs.len() as u32;
    running
        .jobs(jobs, |_, read| {
            out.extend(read);
            Ok(())
        })
        .await?;
    let failed = wanted - (running.stats.completed_jobs - completed);
    running.stats.total_jobs = total;
    running.stats.completed_jobs = completed.saturating_sub(failed);
    out.sort_unstable_by_key(|(place, _)| *place);
    Ok(out.into_iter().map(|(_, result)| result).collect())
}

impl Search {
    /// The results of candidates of one part, in the order of their traces.
    fn read(&self, candidates: Vec<(usize, Candidate)>) -> Result<Vec<(usize, TraceResult)>, EngineError> {
        let Some((_, first)) = candidates.first() else { return Ok(Vec::new()) };
        let part = Arc::clone(&first.part);
        let none = super::expr::Attributes::default();
        let (attributes, plan) = match &self.looking {
            Looking::Spans(plan) => (&plan.attributes, Some(plan)),
            Looking::Tags(_) => (&none, None),
        };
        let view = PartView::new(&*part, attributes, &self.budget)?;
        let table = &view.traces.table;
        let traces: Vec<u32> = candidates.iter().map(|(_, candidate)| candidate.trace).collect();
        let (root_names, root_services) = roots(&*part, &root_rows(&*part, table, &traces)?)?;
        let orphans = orphans(&*part, candidates.iter().map(|(_, c)| table.rows(c.trace as usize)))?;
        let services = match plan {
            Some(_) => services(&*part, candidates.iter().map(|(_, c)| table.rows(c.trace as usize)))?,
            None => vec![Vec::new(); candidates.len()],
        };
        let mut rows: Vec<u32> =
            candidates.iter().flat_map(|(_, c)| &c.sets).flat_map(|set| set.rows.iter().copied()).collect();
        rows.sort_unstable();
        rows.dedup();
        let spans = match plan {
            Some(plan) => spans(&view, plan, &rows)?,
            None => Vec::new(),
        };
        let mut out = Vec::with_capacity(candidates.len());
        let facts = root_names.into_iter().zip(root_services).zip(services.into_iter().zip(orphans));
        for ((place, candidate), ((root_name, root_service), (services, orphans))) in candidates.into_iter().zip(facts) {
            let span = |row: &u32| rows.binary_search(row).ok().map(|slot| spans[slot].clone());
            let span_sets = candidate.sets.into_iter().map(|set| SpanSetResult {
                spans: set.rows.iter().filter_map(span).collect(),
                matched: set.matched,
                attributes: set
                    .attributes
                    .into_iter()
                    .map(|(key, value)| AnswerAttribute {
                        key,
                        value: value.value().answer().unwrap_or_else(|| AnswerValue::Str(Arc::from("nil"))),
                    })
                    .collect(),
            });
            out.push((
                place,
                TraceResult {
                    trace_id: candidate.id,
                    root_service,
                    root_name,
                    start_unix_nano: candidate.start,
                    duration_nanos: candidate.duration,
                    span_sets: span_sets.collect(),
                    services,
                    orphans,
                },
            ));
        }
        Ok(out)
    }
}

type Names = Vec<Option<Arc<str>>>;

/// Names of root spans, and of their services.
fn roots(part: &dyn Part, roots: &[Option<u32>]) -> Result<(Names, Names), EngineError> {
    let rows: Vec<u32> = roots.iter().flatten().copied().collect();
    let read = |which| -> Result<Names, EngineError> {
        let column = part.column(which, Rows::At(&rows))?;
        let (mut texts, mut slots) = (Texts::default(), 0..rows.len() as u32);
        let text = |root: &Option<u32>| {
            let slot = root.and_then(|_| slots.next())?;
            let text = texts.get(&column.values, column.place(slot)?);
            Some(text).filter(|text| !text.is_empty())
        };
        Ok(roots.iter().map(text).collect())
    };
    Ok((read(Fixed::Name)?, read(Fixed::ServiceName)?))
}

/// Texts of a column, each made once.
#[derive(Default)]
struct Texts(HashMap<u32, Arc<str>, foldhash::fast::RandomState>);

impl Texts {
    fn get(&mut self, values: &Values, place: usize) -> Arc<str> {
        let make = || Arc::from(String::from_utf8_lossy(values.text(place).unwrap_or_default()));
        match values {
            Values::Codes(codes, _) => Arc::clone(self.0.entry(codes[place]).or_insert_with(make)),
            _ => make(),
        }
    }
}

/// How many spans of each of some traces, given by their rows in order, name a parent that is not there.
fn orphans(part: &dyn Part, traces: impl Iterator<Item = std::ops::Range<u32>> + Clone) -> Result<Vec<u32>, EngineError> {
    let rows: Vec<u32> = traces.clone().flatten().collect();
    let flags = part.column(Fixed::RowFlags, Rows::At(&rows))?;
    let Values::Small(flags) = &flags.values else { return Ok(vec![0; traces.count()]) };
    // A span that names itself has its parent in the trace.
    let is_orphan = |flags: &&i32| **flags & (flag::ORPHAN | flag::CYCLE_BROKEN) == flag::ORPHAN;
    let mut rest = &flags[..];
    let counted = traces.map(|rows| {
        let (of_trace, others) = rest.split_at(rows.len());
        rest = others;
        of_trace.iter().filter(is_orphan).count() as u32
    });
    Ok(counted.collect())
}

/// Spans and errors by service of some traces, given by their rows in order.
fn services(
    part: &dyn Part,
    traces: impl Iterator<Item = std::ops::Range<u32>> + Clone,
) -> Result<Vec<Vec<ServiceStats>>, EngineError> {
    let rows: Vec<u32> = traces.clone().flatten().collect();
    let names = part.column(Fixed::ServiceName, Rows::At(&rows))?;
    let status = part.column(Fixed::StatusCode, Rows::At(&rows))?;
    // A number for each name: 0 for none.
    let mut numbers = vec![0u32; rows.len()];
    let mut texts: Vec<Arc<str>> = vec![Arc::from("")];
    let mut known: HashMap<Arc<str>, u32> = HashMap::from([(Arc::clone(&texts[0]), 0)]);
    let mut by_code: HashMap<u32, u32, foldhash::fast::RandomState> = HashMap::default();
    let mut number = |text: &[u8]| {
        let text: Arc<str> = Arc::from(String::from_utf8_lossy(text));
        *known.entry(Arc::clone(&text)).or_insert_with(|| {
            texts.push(text);
            texts.len() as u32 - 1
        })
    };
    let mut set = |slot: usize, place: usize| {
        numbers[slot] = match &names.values {
            Values::Codes(codes, all) => {
                let code = codes[place];
                *by_code.entry(code).or_insert_with(|| number(all.get(code).unwrap_or_default()))
            }
            values => number(values.text(place).unwrap_or_default()),
        };
    };
    match &names.present {
        spanhouse_common::columns::Present::All => (0..names.values.len()).for_each(|at| set(at, at)),
        spanhouse_common::columns::Present::At(slots) => {
            slots.iter().enumerate().for_each(|(place, slot)| set(*slot as usize, place));
        }
    }
    let Values::Small(status) = &status.values else { return Ok(Vec::new()) };
    let mut counts: Vec<(u32, u32)> = vec![(0, 0); texts.len()];
    let mut out = Vec::new();
    let mut at = 0;
    for trace in traces {
        let mut touched: Vec<u32> = Vec::new();
        for slot in at..at + trace.len() {
            let (spans, errors) = &mut counts[numbers[slot] as usize];
            if *spans == 0 {
                touched.push(numbers[slot]);
            }
            *spans += 1;
            *errors += u32::from(status[slot] == STATUS_ERROR);
        }
        at += trace.len();
        let mut stats: Vec<ServiceStats> = Vec::with_capacity(touched.len());
        for number in touched {
            let (spans, errors) = std::mem::take(&mut counts[number as usize]);
            stats.push(ServiceStats { service: Arc::clone(&texts[number as usize]), spans, errors });
        }
        stats.sort_unstable_by(|a, b| a.service.cmp(&b.service));
        out.push(stats);
    }
    Ok(out)
}

/// What answers show of some spans.
fn spans(view: &PartView<'_>, plan: &SpansPlan, rows: &[u32]) -> Result<Vec<SpanResult>, EngineError> {
    let part = view.part;
    let at = Rows::At(rows);
    let (ids, starts, durations) =
        (part.column(Fixed::SpanId, at)?, part.column(Fixed::Start, at)?, part.column(Fixed::Duration, at)?);
    let (Values::Ids(ids), Values::Ints(starts), Values::Ints(durations)) = (&ids.values, &starts.values, &durations.values)
    else {
        return Ok(Vec::new());
    };
    let names = if plan.shows_name { Some(part.column(Fixed::Name, at)?) } else { None };
    let mut texts = Texts::default();
    let frame = view.frame(at);
    let mut fields = Vec::with_capacity(plan.shown.len());
    for id in &plan.shown {
        let key: Arc<str> = view.attributes.get(*id).bare_name().into();
        fields.push((key, frame.field(*id)?));
    }
    let mut out = Vec::with_capacity(rows.len());
    for slot in 0..rows.len() {
        let name = names.as_ref().map(|names| match names.place(slot as u32) {
            Some(place) => texts.get(&names.values, place),
            None => Arc::from(""),
        });
        let attributes = fields.iter().filter_map(|(key, field)| {
            let value = field.value(slot).answer()?;
            Some(AnswerAttribute { key: Arc::clone(key), value })
        });
        out.push(SpanResult {
            span_id: SpanId(ids[slot]),
            name,
            start_unix_nano: starts[slot] as u64,
            duration_nanos: durations[slot].max(0) as u64,
            attributes: attributes.collect(),
        });
    }
    Ok(out)
}

/// For tests and other answers: a cell as answers show it.
pub(crate) fn answer_of(cell: &Cell) -> Option<AnswerValue> {
    cell.value().answer()
}
