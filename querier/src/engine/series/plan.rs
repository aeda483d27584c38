//! A metrics query made ready to run: its measurements, each once, and what is calculated of them.

use std::sync::Arc;

use super::super::EngineError;
use super::super::expr::{AttrId, Expr};
use super::super::plan::{SpansPlan, compile};
use crate::traceql::ast::{Attribute, BinaryOp, Intrinsic, MetricsExpr, MetricsFunction, MetricsQuery, SecondStage};

/// Values of an attribute listed by `compare()` without a number of its own.
const COMPARE_TOP: usize = 10;

/// One pass over the data.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) spans: SpansPlan,
    pub(crate) function: Function,
    pub(crate) by: Vec<AttrId>,
    /// What is measured, of each span.
    pub(crate) operand: Option<AttrId>,
    pub(crate) unit: Unit,
}

#[derive(Debug)]
pub(crate) enum Function {
    Rate,
    Count,
    Min,
    Max,
    Sum,
    Avg,
    Histogram,
    Quantile(Vec<f64>),
    Compare(Compare),
}

#[derive(Debug)]
pub(crate) struct Compare {
    pub(crate) filter: Expr,
    pub(crate) top: usize,
    /// Start (excluded) and end (included).
    pub(crate) window: Option<(u64, u64)>,
}

/// What the operand's whole numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Plain,
    /// Nanoseconds of a span: always shown as seconds.
    SpanDuration,
    /// Other nanoseconds: shown as seconds only where values are spread over buckets, as Tempo does.
    OtherDuration,
}

/// What is done with series.
#[derive(Debug)]
pub(crate) enum SeriesExpr {
    /// Index of a measurement.
    Measured(usize),
    Stage {
        input: Box<SeriesExpr>,
        stage: SecondStage,
    },
    Math {
        op: BinaryOp,
        left: Box<SeriesExpr>,
        right: Box<SeriesExpr>,
    },
    ScalarMath {
        op: BinaryOp,
        input: Box<SeriesExpr>,
        scalar: f64,
        scalar_left: bool,
    },
}

/// The whole query.
#[derive(Debug)]
pub(crate) struct SeriesPlan {
    pub(crate) measurements: Vec<Arc<Measurement>>,
    pub(crate) expr: SeriesExpr,
}

impl Function {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Count => "count_over_time",
            Self::Min => "min_over_time",
            Self::Max => "max_over_time",
            Self::Sum => "sum_over_time",
            Self::Avg => "avg_over_time",
            Self::Histogram => "histogram_over_time",
            Self::Quantile(_) => "quantile_over_time",
            Self::Compare(_) => "compare",
        }
    }
}

impl SeriesExpr {
    /// Of a measurement: how many uses it has, and of how many series only the largest at each moment matter to one.
    pub(crate) fn uses(&self, of: usize) -> (usize, Option<usize>) {
        match self {
            Self::Measured(at) => (usize::from(*at == of), None),
            Self::Stage { input, stage } => match (&**input, stage) {
                (Self::Measured(at), SecondStage::TopK(count)) if *at == of => (1, usize::try_from(*count).ok()),
                _ => input.uses(of),
            },
            Self::Math { left, right, .. } => {
                let (left, right) = (left.uses(of), right.uses(of));
                (left.0 + right.0, left.1.or(right.1))
            }
            Self::ScalarMath { input, .. } => input.uses(of),
        }
    }
}

impl SeriesPlan {
    /// How many of the largest series at each moment are all that is asked of a measurement, if not all series are.
    pub(crate) fn only_largest(&self, of: usize) -> Option<usize> {
        if let (1, most) = self.expr.uses(of) { most } else { None }
    }

    pub(crate) fn new(expr: &MetricsExpr) -> Result<Self, EngineError> {
        let mut known: Vec<(&MetricsQuery, Arc<Measurement>)> = Vec::new();
        let expr = build(expr, &mut known)?;
        Ok(Self { measurements: known.into_iter().map(|(_, measurement)| measurement).collect(), expr })
    }
}

fn build<'q>(
    expr: &'q MetricsExpr,
    known: &mut Vec<(&'q MetricsQuery, Arc<Measurement>)>,
) -> Result<SeriesExpr, EngineError> {
    Ok(match expr {
        MetricsExpr::Query(query) => {
            // Equal operands are measured once.
            let at = match known.iter().position(|(other, _)| *other == query) {
                Some(at) => at,
                None => {
                    known.push((query, Arc::new(measurement(query)?)));
                    known.len() - 1
                }
            };
            SeriesExpr::Measured(at)
        }
        MetricsExpr::Stage { input, stage } => {
            SeriesExpr::Stage { input: Box::new(build(input, known)?), stage: stage.clone() }
        }
        MetricsExpr::Math { op, left, right } => {
            SeriesExpr::Math { op: *op, left: Box::new(build(left, known)?), right: Box::new(build(right, known)?) }
        }
        MetricsExpr::ScalarMath { op, input, scalar, scalar_left } => SeriesExpr::ScalarMath {
            op: *op,
            input: Box::new(build(input, known)?),
            scalar: *scalar,
            scalar_left: *scalar_left,
        },
    })
}

fn measurement(query: &MetricsQuery) -> Result<Measurement, EngineError> {
    let operand = match &query.function {
        MetricsFunction::MinOverTime(attribute)
        | MetricsFunction::MaxOverTime(attribute)
        | MetricsFunction::SumOverTime(attribute)
        | MetricsFunction::AvgOverTime(attribute)
        | MetricsFunction::HistogramOverTime(attribute)
        | MetricsFunction::QuantileOverTime(attribute, _) => Some(attribute),
        MetricsFunction::Rate | MetricsFunction::CountOverTime | MetricsFunction::Compare { .. } => None,
    };
    let (spans, (by, operand_id, function)) = compile(&query.spans, |compiler| {
        let by = query.by.iter().map(|attribute| compiler.attributes.id(attribute)).collect();
        let operand = operand.map(|attribute| compiler.attributes.id(attribute));
        let function = match &query.function {
            MetricsFunction::Rate => Function::Rate,
            MetricsFunction::CountOverTime => Function::Count,
            MetricsFunction::MinOverTime(_) => Function::Min,
            MetricsFunction::MaxOverTime(_) => Function::Max,
            MetricsFunction::SumOverTime(_) => Function::Sum,
            MetricsFunction::AvgOverTime(_) => Function::Avg,
            MetricsFunction::HistogramOverTime(_) => Function::Histogram,
            MetricsFunction::QuantileOverTime(_, quantiles) => Function::Quantile(quantiles.clone()),
            MetricsFunction::Compare { filter, top, window } => Function::Compare(Compare {
                filter: compiler.filter(filter)?,
                top: top.map_or(COMPARE_TOP, |top| usize::try_from(top).unwrap_or(COMPARE_TOP)),
                window: window
                    .filter(|window| *window != (0, 0))
                    .map(|(start, end)| (start.max(0) as u64, end.max(0) as u64)),
            }),
        };
        Ok((by, operand, function))
    })?;
    let unit = match operand {
        Some(Attribute::Intrinsic(Intrinsic::Duration)) => Unit::SpanDuration,
        Some(Attribute::Intrinsic(Intrinsic::TraceDuration | Intrinsic::EventTimeSinceStart)) => Unit::OtherDuration,
        _ => Unit::Plain,
    };
    Ok(Measurement { spans, function, by, operand: operand_id, unit })
}

impl Measurement {
    /// Whether the filter of spans and all that is measured can be told span by span.
    pub(crate) fn needs_traces(&self) -> bool {
        let mut ids = self.by.clone();
        ids.extend(self.operand);
        let reads_trace = ids.iter().any(|id| self.spans.reads_trace(&Expr::Attr(*id)));
        let compares_trace = matches!(&self.function, Function::Compare(_));
        self.spans.span_filter().is_none() || reads_trace || compares_trace
    }

    /// Whether it is a comparison of spans that are selected one by one.
    pub(crate) fn needs_traces_only_for_compared(&self) -> bool {
        match &self.function {
            Function::Compare(compare) => self.spans.span_filter().is_some() && !self.spans.reads_trace(&compare.filter),
            _ => false,
        }
    }
}
