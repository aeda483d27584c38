//! Which rows a question about tags is asked of: those a filter holds for, of some parts.
//!
//! Owns that traces in several parts are joined where a row cannot be judged by itself. Does not own what is read of the rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use spanhouse_common::columns::Rows;

use super::super::EngineError;
use super::super::answer::QueryStats;
use super::super::budget::Budget;
use super::super::expr::{AttrId, Expr};
use super::super::filter::PartView;
use super::super::plan::{Plan, SetExpr, SpansPlan, Step, compile};
use super::super::run::{Running, Slice};
use super::super::search::hits;
use super::super::shared::Shared;
use super::super::value::Cell;
use crate::traceql::ast::{Attribute, FieldExpr, Pipeline, PipelineExpr, SpansetExpr, Stage, Static};

/// What a job read of its rows.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) bytes: u64,
    /// No other job needs to start.
    pub(super) enough: bool,
}

/// One pass over rows.
#[derive(Debug)]
pub(super) struct Scan {
    plan: SpansPlan,
    /// A row alone does not tell.
    joins: bool,
    shared: Arc<Shared>,
    budget: Budget,
    enough: AtomicBool,
}

#[derive(Debug, Default)]
struct Seen {
    spans: u64,
    bytes: u64,
    /// Shared traces to join.
    joined: Vec<u32>,
}

impl Scan {
    /// Of the spans `filter` holds for. Also tells the numbers of the attributes that will be read.
    pub(super) fn new(
        running: &Running,
        filter: Option<&FieldExpr>,
        attributes: &[Attribute],
    ) -> Result<(Self, Vec<AttrId>), EngineError> {
        let all = FieldExpr::Static(Static::Bool(true));
        let compiled = |filter: &FieldExpr| {
            let spanset = SpansetExpr::Filter(filter.clone());
            let spans = PipelineExpr::Pipeline(Pipeline { stages: vec![Stage::Spanset(spanset)] });
            compile(&spans, |compiler| Ok(attributes.iter().map(|a| compiler.attributes.id(a)).collect::<Vec<_>>()))
        };
        // Somebody is typing it: a filter that cannot run is one that is not there yet.
        let (plan, ids) = filter.map_or_else(|| compiled(&all), |filter| compiled(filter).or_else(|_| compiled(&all)))?;
        let reads_trace = |expr: &Expr| plan.reads_trace(expr);
        let joins = filter_of(&plan).is_some_and(reads_trace) || ids.iter().any(|id| reads_trace(&Expr::Attr(*id)));
        let (shared, budget) = (Arc::clone(&running.shared), running.budget.clone());
        Ok((Self { plan, joins, shared, budget, enough: AtomicBool::new(false) }, ids))
    }

    /// Reads the parts with these numbers, then the traces that need joining.
    pub(super) async fn run(
        self,
        running: &mut Running,
        parts: impl Fn(usize) -> bool,
        read: impl Fn(&Slice, &PartView<'_>, Rows<'_>) -> Result<Read, EngineError> + Clone + Send + 'static,
    ) -> Result<(), EngineError> {
        let scan = Arc::new(self);
        let slices = running.slices().into_iter().filter(|slice| slice.number.is_some_and(&parts));
        let jobs: Vec<_> = slices
            .map(|slice| {
                let (scan, read) = (Arc::clone(&scan), read.clone());
                move || scan.slice(&slice, &read)
            })
            .collect();
        let mut joined = Vec::new();
        let count = |stats: &mut QueryStats, seen: &Seen| {
            stats.inspected_spans += seen.spans;
            stats.inspected_bytes += seen.bytes;
        };
        running
            .jobs(jobs, |stats, seen| {
                count(stats, &seen);
                joined.extend(seen.joined);
                Ok(())
            })
            .await?;
        let jobs = running.merged(joined, move |slice| scan.slice(&slice, &read));
        running
            .jobs(jobs, |stats, seen| {
                count(stats, &Seen { spans: 0, ..seen });
                Ok(())
            })
            .await
    }

    fn slice(
        &self,
        slice: &Slice,
        read: &impl Fn(&Slice, &PartView<'_>, Rows<'_>) -> Result<Read, EngineError>,
    ) -> Result<Seen, EngineError> {
        let mut seen = Seen::default();
        if self.enough.load(Relaxed) {
            return Ok(seen);
        }
        let view = PartView::new(&*slice.part, &self.plan.attributes, &self.budget)?;
        let (from, to) = slice.rows;
        seen.spans = u64::from(to - from);
        let here = match slice.number {
            Some(number) if self.joins => self.shared.between(number, slice.traces.0, slice.traces.1),
            _ => &[],
        };
        seen.joined = hits(&self.plan, &view, here)?;
        let filter = filter_of(&self.plan);
        let done = if filter.is_none() && here.is_empty() && slice.only.is_none() {
            read(slice, &view, Rows::Range(from, to))?
        } else {
            let mut rows = slice.wanted(&view.traces.table);
            if let Some(filter) = filter {
                rows = view.select_in(filter, &rows, from)?;
            }
            Shared::clear(here, &view.traces.table, from, &mut rows);
            let rows: Vec<u32> = rows.ones().map(|at| from + at as u32).collect();
            if rows.is_empty() { Read::default() } else { read(slice, &view, Rows::At(&rows))? }
        };
        seen.bytes = done.bytes;
        self.enough.fetch_or(done.enough, Relaxed);
        Ok(seen)
    }
}

/// The condition of a plan made by [`Scan::new`], unless all spans fulfil it.
fn filter_of(plan: &SpansPlan) -> Option<&Expr> {
    let Plan::Pipeline(steps) = &plan.plan else { return None };
    match steps.as_slice() {
        [Step::Spanset(SetExpr::Filter(Expr::Const(Cell::Bool(true))))] => None,
        [Step::Spanset(SetExpr::Filter(filter))] => Some(filter),
        _ => None,
    }
}
