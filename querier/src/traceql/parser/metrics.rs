//! Functions over time, their second stages, and arithmetic between them.

use super::super::ast::{
    Attribute, BinaryOp, MetricsExpr, MetricsFunction, MetricsQuery, PipelineExpr, ScalarExpr, SecondStage, Static,
};
use super::super::error::ParseError;
use super::super::lexer::Token;
use super::expr::comparison;
use super::pipeline::Operand;
use super::{Deep, Parser};

/// Durations have a unit, and what arithmetic would make of it is not defined.
const NO_DURATIONS: &str = "duration cannot be used as a scalar operand in metric arithmetic";

impl Parser<'_> {
    pub(super) fn at_metrics_function(&self) -> bool {
        self.at_fixed().is_some_and(|word| word.ends_with("_over_time") || matches!(word, "rate" | "compare"))
    }

    /// A function and its `by (...)`, over the spans in front of it.
    pub(super) fn metrics_query(&mut self, spans: Deep<PipelineExpr>) -> Result<Deep<MetricsExpr>, ParseError> {
        let name = self.at_fixed().unwrap_or_default();
        self.advance();
        self.expect("(")?;
        let mut depth = spans.depth;
        let function = match name {
            "rate" => MetricsFunction::Rate,
            "count_over_time" => MetricsFunction::CountOverTime,
            "min_over_time" => MetricsFunction::MinOverTime(self.operand_attribute()?),
            "max_over_time" => MetricsFunction::MaxOverTime(self.operand_attribute()?),
            "sum_over_time" => MetricsFunction::SumOverTime(self.operand_attribute()?),
            "avg_over_time" => MetricsFunction::AvgOverTime(self.operand_attribute()?),
            "histogram_over_time" => MetricsFunction::HistogramOverTime(self.operand_attribute()?),
            "quantile_over_time" => {
                let attribute = self.operand_attribute()?;
                MetricsFunction::QuantileOverTime(attribute, self.quantiles()?)
            }
            _ => {
                let filter = self.filter()?;
                depth = depth.max(filter.depth);
                let top = if self.eat(",") { Some(self.int()?) } else { None };
                let window = if top.is_some() && self.eat(",") {
                    let start = self.int()?;
                    self.expect(",")?;
                    // Two zeros say that there is none.
                    Some((start, self.int()?)).filter(|window| *window != (0, 0))
                } else {
                    None
                };
                MetricsFunction::Compare { filter: filter.node, top, window }
            }
        };
        self.expect(")")?;
        let grouped = !matches!(function, MetricsFunction::Compare { .. });
        let by = if grouped && self.eat("by") { self.attributes()? } else { Vec::new() };
        let depth = self.above(depth)?;
        Ok(Deep { node: MetricsExpr::Query(MetricsQuery { spans: spans.node, function, by }), depth })
    }

    fn operand_attribute(&mut self) -> Result<Attribute, ParseError> {
        self.eat_attribute()?.ok_or_else(|| self.unexpected(&["an attribute"]))
    }

    fn quantiles(&mut self) -> Result<Vec<f64>, ParseError> {
        self.expect(",")?;
        let mut quantiles = Vec::new();
        loop {
            match self.peek() {
                Token::Int(value) => quantiles.push(*value as f64),
                Token::Float(value) => quantiles.push(*value),
                _ => return Err(self.unexpected(&["INTEGER", "FLOAT"])),
            }
            self.advance();
            if !self.eat(",") {
                return Ok(quantiles);
            }
        }
    }

    fn int(&mut self) -> Result<i64, ParseError> {
        let Token::Int(value) = self.peek() else { return Err(self.unexpected(&["INTEGER"])) };
        self.advance();
        Ok(*value)
    }

    /// `| topk(5)`, `> 3` and the like, any number of them.
    pub(super) fn second_stages(&mut self, input: Deep<MetricsExpr>) -> Result<Deep<MetricsExpr>, ParseError> {
        let mut metrics = input;
        loop {
            let stage = if self.eat("|") {
                let make = match self.at_fixed() {
                    Some("topk") => SecondStage::TopK,
                    Some("bottomk") => SecondStage::BottomK,
                    _ => return Err(self.unexpected(&["topk", "bottomk"])),
                };
                self.advance();
                self.expect("(")?;
                let limit = self.int()?;
                self.expect(")")?;
                make(limit)
            } else if let Some(op) = self.at_fixed().and_then(comparison) {
                self.advance();
                let start = self.next;
                let value = self.number()?;
                let has_duration = self.tokens[start..self.next].iter().any(|one| matches!(one.token, Token::Duration(_)));
                // A sign is no arithmetic, and leaves a duration one.
                if has_duration && !matches!(value, Static::Duration(_)) {
                    return Err(self.error_at(start, NO_DURATIONS));
                }
                SecondStage::Filter { op, value }
            } else {
                return Ok(metrics);
            };
            let depth = self.above(metrics.depth)?;
            metrics = Deep { node: MetricsExpr::Stage { input: Box::new(metrics.node), stage }, depth };
        }
    }

    /// `left op right`, of which one at least must be metrics. The depth of `left` is that of the result.
    pub(super) fn metrics_math(
        &self,
        op: BinaryOp,
        left: Deep<Operand>,
        right: Operand,
        op_index: usize,
        right_index: usize,
    ) -> Result<Deep<Operand>, ParseError> {
        if matches!(op, BinaryOp::Mod | BinaryOp::Pow) {
            return Err(self.unexpected_at(op_index, &[]));
        }
        let metrics = match (left.node, right) {
            (Operand::Metrics(left), Operand::Metrics(right)) => {
                MetricsExpr::Math { op, left: Box::new(left), right: Box::new(right) }
            }
            (Operand::Metrics(input), Operand::Scalar(ScalarExpr::Static(value))) => {
                let scalar = plain(&value).ok_or_else(|| self.error_at(right_index, NO_DURATIONS))?;
                MetricsExpr::ScalarMath { op, input: Box::new(input), scalar, scalar_left: false }
            }
            (Operand::Scalar(ScalarExpr::Static(value)), Operand::Metrics(input)) => {
                let scalar = plain(&value).ok_or_else(|| self.error_at(op_index, NO_DURATIONS))?;
                MetricsExpr::ScalarMath { op, input: Box::new(input), scalar, scalar_left: true }
            }
            _ => return Err(self.unexpected_at(right_index, &[])),
        };
        Ok(Deep { node: Operand::Metrics(metrics), depth: left.depth })
    }
}

fn plain(value: &Static) -> Option<f64> {
    match value {
        Static::Int(value) => Some(*value as f64),
        Static::Float(value) => Some(*value),
        _ => None,
    }
}
