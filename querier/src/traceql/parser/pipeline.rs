//! Pipelines: spansets and what combines them, stages, aggregates and their comparisons.
//!
//! The same parentheses may hold spansets, whole pipelines, numbers or metrics, and only what is inside tells which. So one
//! rule reads operands of all kinds ([`Operand`]), and refuses operators that do not fit what it has read.

use super::super::ast::{
    Aggregate, BinaryOp, FieldExpr, MetricsExpr, Pipeline, PipelineExpr, Relation, Root, ScalarExpr, ScalarFilter,
    SpansetExpr, SpansetOp, Stage, Static, StructuralForm,
};
use super::super::error::ParseError;
use super::super::fold;
use super::expr::{arithmetic, comparison};
use super::{ADDITIVE, COMPARISON, Deep, LOGICAL, POWER, Parser};

/// What may stand beside an operator between pipelines.
#[derive(Debug)]
pub(super) enum Operand {
    Spanset {
        expr: SpansetExpr,
        /// In parentheses, or made of such only: may be a pipeline beside pipelines.
        wrapped: bool,
    },
    /// Pipelines in parentheses.
    Pipelines(PipelineExpr),
    /// Stages that nothing wraps: never beside an operator.
    Stages(Pipeline),
    Scalar(ScalarExpr),
    Filter(ScalarFilter),
    Metrics(MetricsExpr),
}

/// Where an operand stands, and so what it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the start of a query, outside and inside parentheses: anything.
    Start,
    /// A later stage: no pipelines in parentheses.
    Stage,
}

impl Parser<'_> {
    /// A whole query but for its hints.
    pub(super) fn root(&mut self) -> Result<Root, ParseError> {
        let operand = self.chain(false)?;
        Ok(match operand.node {
            Operand::Metrics(metrics) => {
                Root::Metrics(self.second_stages(Deep { node: metrics, depth: operand.depth })?.node)
            }
            Operand::Pipelines(pipelines) => Root::Spans(pipelines),
            Operand::Spanset { expr, .. } => Root::Spans(alone(Stage::Spanset(expr))),
            Operand::Filter(filter) => Root::Spans(alone(Stage::Scalar(filter))),
            Operand::Stages(pipeline) => Root::Spans(PipelineExpr::Pipeline(pipeline)),
            Operand::Scalar(_) => return Err(self.unexpected(&[])),
        })
    }

    /// Operands and operators, then stages, then perhaps a function that makes metrics of them.
    fn chain(&mut self, in_parentheses: bool) -> Result<Deep<Operand>, ParseError> {
        let first = match self.at_fixed() {
            Some("by") | Some("select") => {
                let stage = self.stage()?;
                Deep { node: Operand::Stages(Pipeline { stages: vec![stage.node] }), depth: stage.depth }
            }
            _ => self.operand_from(LOGICAL, Place::Start)?,
        };
        if !self.at("|") {
            return Ok(first);
        }
        let mut depth = first.depth;
        let mut stages = match first.node {
            Operand::Spanset { expr, .. } => vec![Stage::Spanset(expr)],
            Operand::Filter(filter) => vec![Stage::Scalar(filter)],
            Operand::Stages(pipeline) => pipeline.stages,
            Operand::Pipelines(_) | Operand::Scalar(_) => return Err(self.unexpected(&[])),
            // Second stages: of a whole query, not of an operand.
            Operand::Metrics(_) => return Ok(first),
        };
        while self.eat("|") {
            if self.at_metrics_function() {
                let spans = Deep { node: PipelineExpr::Pipeline(Pipeline { stages }), depth: self.above(depth)? };
                let query = self.metrics_query(spans)?;
                let metrics = if in_parentheses { self.second_stages(query)? } else { query };
                return Ok(Deep { node: Operand::Metrics(metrics.node), depth: metrics.depth });
            }
            if in_parentheses && self.at_aggregate() {
                let operand = self.operand_from(LOGICAL, Place::Stage)?;
                depth = depth.max(operand.depth);
                match operand.node {
                    Operand::Scalar(ScalarExpr::Aggregate(aggregate)) => {
                        let depth = self.above(depth)?;
                        let node = ScalarExpr::Pipeline(Box::new(Pipeline { stages }), aggregate);
                        return Ok(Deep { node: Operand::Scalar(node), depth });
                    }
                    Operand::Filter(filter) => stages.push(Stage::Scalar(filter)),
                    _ => return Err(self.unexpected(&[])),
                }
                continue;
            }
            let stage = self.stage()?;
            depth = depth.max(stage.depth);
            stages.push(stage.node);
        }
        Ok(Deep { node: Operand::Stages(Pipeline { stages }), depth: self.above(depth)? })
    }

    fn stage(&mut self) -> Result<Deep<Stage>, ParseError> {
        match self.at_fixed() {
            Some("by") => {
                self.advance();
                let expr = self.in_parentheses()?;
                return Ok(Deep { node: Stage::Group(expr.node), depth: self.above(expr.depth)? });
            }
            Some("select") => {
                self.advance();
                return Ok(Deep::leaf(Stage::Select(self.attributes()?)));
            }
            Some("coalesce") => {
                self.advance();
                self.expect("(")?;
                self.expect(")")?;
                return Ok(Deep::leaf(Stage::Coalesce));
            }
            _ => {}
        }
        let operand = self.operand_from(LOGICAL, Place::Stage)?;
        let node = match operand.node {
            Operand::Spanset { expr, .. } => Stage::Spanset(expr),
            Operand::Filter(filter) => Stage::Scalar(filter),
            _ => return Err(self.unexpected(&[])),
        };
        Ok(Deep { node, depth: self.above(operand.depth)? })
    }

    /// Operands joined by operators that bind at least as strong as `weakest`.
    fn operand_from(&mut self, weakest: u8, place: Place) -> Result<Deep<Operand>, ParseError> {
        let mut left = self.operand_alone(place)?;
        while let Some(text) = self.at_fixed()
            && let Some((joint, level)) = joint(&left.node, text)
            && level >= weakest
        {
            let op_index = self.next;
            self.advance();
            let right_index = self.next;
            let right = if level == POWER {
                self.nested(|parser| parser.operand_from(POWER, place))?
            } else {
                self.operand_from(level + 1, place)?
            };
            left = self.join(joint, left, right, op_index, right_index)?;
        }
        Ok(left)
    }

    fn operand_alone(&mut self, place: Place) -> Result<Deep<Operand>, ParseError> {
        if let Some(value) = self.eat_number() {
            return Ok(Deep::leaf(Operand::Scalar(ScalarExpr::Static(value))));
        }
        match self.at_fixed() {
            Some("{") => {
                let filter = self.filter()?;
                let depth = self.above(filter.depth)?;
                Ok(Deep { node: Operand::Spanset { expr: SpansetExpr::Filter(filter.node), wrapped: false }, depth })
            }
            Some("-") => {
                let sign = self.next;
                self.advance();
                let inner = self.nested(|parser| parser.operand_from(ADDITIVE + 1, place))?;
                // Only of numbers: aggregates and metrics have no sign.
                match inner.node {
                    Operand::Scalar(ScalarExpr::Static(value)) => {
                        let value = fold::apply_unary(super::super::ast::UnaryOp::Negate, &value).unwrap_or(value);
                        Ok(Deep::leaf(Operand::Scalar(ScalarExpr::Static(value))))
                    }
                    _ => Err(self.unexpected_at(sign, &[])),
                }
            }
            Some("(") => self.nested(|parser| parser.parentheses(place)),
            _ => match self.aggregate()? {
                Some(aggregate) => Ok(Deep {
                    node: Operand::Scalar(ScalarExpr::Aggregate(aggregate.node)),
                    depth: self.above(aggregate.depth)?,
                }),
                None => Err(self.unexpected(&[])),
            },
        }
    }

    fn parentheses(&mut self, place: Place) -> Result<Deep<Operand>, ParseError> {
        self.advance();
        let inner = match place {
            Place::Start => self.chain(true)?,
            Place::Stage => self.operand_from(LOGICAL, place)?,
        };
        let node = match inner.node {
            Operand::Spanset { expr, .. } => Operand::Spanset { expr, wrapped: true },
            Operand::Filter(_) if place == Place::Stage => return Err(self.unexpected(&[])),
            Operand::Filter(filter) => Operand::Pipelines(alone(Stage::Scalar(filter))),
            Operand::Stages(pipeline) => Operand::Pipelines(PipelineExpr::Pipeline(pipeline)),
            node @ (Operand::Pipelines(_) | Operand::Scalar(_) | Operand::Metrics(_)) => node,
        };
        self.expect(")")?;
        Ok(Deep { node, depth: self.above(inner.depth)? })
    }

    /// `{ expression }` or `{ }`.
    pub(super) fn filter(&mut self) -> Result<Deep<FieldExpr>, ParseError> {
        self.expect("{")?;
        if self.eat("}") {
            return Ok(Deep::leaf(FieldExpr::Static(Static::Bool(true))));
        }
        let expr = self.field()?;
        self.expect("}")?;
        Ok(expr)
    }

    fn in_parentheses(&mut self) -> Result<Deep<FieldExpr>, ParseError> {
        self.expect("(")?;
        let expr = self.field()?;
        self.expect(")")?;
        Ok(expr)
    }

    fn at_aggregate(&self) -> bool {
        matches!(self.at_fixed(), Some("count" | "sum" | "avg" | "min" | "max"))
    }

    fn aggregate(&mut self) -> Result<Option<Deep<Aggregate>>, ParseError> {
        let make = match self.at_fixed() {
            Some("count") => {
                self.advance();
                self.expect("(")?;
                self.expect(")")?;
                return Ok(Some(Deep::leaf(Aggregate::Count)));
            }
            Some("sum") => Aggregate::Sum,
            Some("avg") => Aggregate::Avg,
            Some("min") => Aggregate::Min,
            Some("max") => Aggregate::Max,
            _ => return Ok(None),
        };
        self.advance();
        let operand = self.in_parentheses()?;
        Ok(Some(Deep { node: make(operand.node), depth: self.above(operand.depth)? }))
    }

    /// A number or duration, worked out.
    pub(super) fn number(&mut self) -> Result<Static, ParseError> {
        let start = self.next;
        match self.operand_from(ADDITIVE, Place::Stage)?.node {
            Operand::Scalar(ScalarExpr::Static(value)) => Ok(value),
            _ => Err(self.unexpected_at(start, &[])),
        }
    }

    fn join(
        &self,
        joint: Joint,
        left: Deep<Operand>,
        right: Deep<Operand>,
        op_index: usize,
        right_index: usize,
    ) -> Result<Deep<Operand>, ParseError> {
        let depth = self.above(left.depth.max(right.depth))?;
        let node = match (joint, left.node, right.node) {
            (
                Joint::Spansets(op),
                Operand::Spanset { expr: left, wrapped: one },
                Operand::Spanset { expr: right, wrapped: other },
            ) => Operand::Spanset {
                expr: SpansetExpr::Binary { op, left: Box::new(left), right: Box::new(right) },
                wrapped: one && other,
            },
            (Joint::Spansets(op), left, right) => {
                let left = pipelines(left).ok_or_else(|| self.unexpected_at(right_index, &[]))?;
                let right = pipelines(right).ok_or_else(|| self.unexpected_at(right_index, &[]))?;
                Operand::Pipelines(PipelineExpr::Binary { op, left: Box::new(left), right: Box::new(right) })
            }
            (Joint::Compare(op), Operand::Scalar(left), Operand::Scalar(right)) => {
                if matches!((&left, &right), (ScalarExpr::Static(_), ScalarExpr::Static(_))) {
                    // Nothing here depends on a trace.
                    return Err(self.unexpected(&[]));
                }
                Operand::Filter(ScalarFilter { op, left, right })
            }
            (Joint::Arithmetic(op), Operand::Scalar(left), Operand::Scalar(right)) => {
                if let (ScalarExpr::Static(left), ScalarExpr::Static(right)) = (&left, &right) {
                    let value = self.fold_numbers(op, left, right, op_index)?;
                    return Ok(Deep::leaf(Operand::Scalar(ScalarExpr::Static(value))));
                }
                Operand::Scalar(ScalarExpr::Binary { op, left: Box::new(left), right: Box::new(right) })
            }
            (Joint::Arithmetic(op), left, right) => {
                return self.metrics_math(op, Deep { node: left, depth }, right, op_index, right_index);
            }
            _ => return Err(self.unexpected_at(right_index, &[])),
        };
        Ok(Deep { node, depth })
    }

    fn fold_numbers(&self, op: BinaryOp, left: &Static, right: &Static, op_index: usize) -> Result<Static, ParseError> {
        if matches!(op, BinaryOp::Mod | BinaryOp::Pow) {
            return Err(self.unexpected_at(op_index, &[]));
        }
        match fold::apply(op, left, right) {
            Some(Static::Float(value)) if !value.is_finite() => Err(self.error_at(op_index, "division by zero")),
            Some(value) => Ok(value),
            None => Err(self.error_at(op_index, "division by zero")),
        }
    }

    pub(super) fn error_at(&self, index: usize, message: &str) -> ParseError {
        ParseError::new(self.tokens[index.min(self.tokens.len() - 1)].at, message)
    }
}

fn alone(stage: Stage) -> PipelineExpr {
    PipelineExpr::Pipeline(Pipeline { stages: vec![stage] })
}

/// The operand as pipelines in parentheses, if it is.
fn pipelines(operand: Operand) -> Option<PipelineExpr> {
    match operand {
        Operand::Spanset { expr, wrapped: true } => Some(alone(Stage::Spanset(expr))),
        Operand::Pipelines(pipelines) => Some(pipelines),
        _ => None,
    }
}

#[derive(Debug, Clone, Copy)]
enum Joint {
    Spansets(SpansetOp),
    Compare(BinaryOp),
    Arithmetic(BinaryOp),
}

/// What the operator means behind such an operand, and its precedence; `None` if it cannot follow.
fn joint(left: &Operand, text: &str) -> Option<(Joint, u8)> {
    match left {
        Operand::Spanset { .. } | Operand::Pipelines(_) => {
            let op = spanset_op(text)?;
            let level = if matches!(op, SpansetOp::And | SpansetOp::Or) { LOGICAL } else { COMPARISON };
            Some((Joint::Spansets(op), level))
        }
        Operand::Scalar(_) => match comparison(text) {
            Some(op) => Some((Joint::Compare(op), COMPARISON)),
            None => arithmetic(text).map(|(op, level)| (Joint::Arithmetic(op), level)),
        },
        Operand::Metrics(_) => arithmetic(text)
            .filter(|(op, _)| !matches!(op, BinaryOp::Mod | BinaryOp::Pow))
            .map(|(op, level)| (Joint::Arithmetic(op), level)),
        Operand::Stages(_) | Operand::Filter(_) => None,
    }
}

fn spanset_op(text: &str) -> Option<SpansetOp> {
    let form = match text.as_bytes() {
        b"&&" => return Some(SpansetOp::And),
        b"||" => return Some(SpansetOp::Or),
        [b'!', ..] => StructuralForm::Negated,
        [b'&', ..] => StructuralForm::Union,
        _ => StructuralForm::Plain,
    };
    let relation = match text.trim_start_matches(['!', '&']) {
        ">" => Relation::Child,
        "<" => Relation::Parent,
        ">>" => Relation::Descendant,
        "<<" => Relation::Ancestor,
        "~" => Relation::Sibling,
        _ => return None,
    };
    Some(SpansetOp::Structural { relation, form })
}
