//! Expressions over one span: what stands between braces, and in `by(...)` and aggregates.
//!
//! Owns folding: what names no attribute becomes the value it has, as far as it has one that can be written down.

use super::super::ast::{Attribute, BinaryOp, FieldExpr, Intrinsic, Static, UnaryOp};
use super::super::error::ParseError;
use super::super::fold;
use super::{ADDITIVE, COMPARISON, Deep, LOGICAL, MULTIPLICATIVE, NOT, POWER, Parser};

impl Parser<'_> {
    /// An expression, and the longest way down in it.
    pub(in super::super) fn field_expr(&mut self) -> Result<(FieldExpr, u32), ParseError> {
        let expr = self.field()?;
        Ok((expr.node, expr.depth))
    }

    pub(super) fn field(&mut self) -> Result<Deep<FieldExpr>, ParseError> {
        self.field_from(LOGICAL)
    }

    /// An expression of operators that bind at least as strong as `weakest`.
    fn field_from(&mut self, weakest: u8) -> Result<Deep<FieldExpr>, ParseError> {
        let mut left = if weakest <= COMPARISON && self.at("nil") { self.nil_first()? } else { self.prefixed()? };
        while let Some((op, level)) = self.at_fixed().and_then(binary_op)
            && level >= weakest
        {
            self.advance();
            if matches!(op, BinaryOp::Equal | BinaryOp::NotEqual) && self.eat("nil") {
                left = self.exists(left, op)?;
                continue;
            }
            let right = if op == BinaryOp::Pow {
                self.nested(|parser| parser.field_from(POWER))?
            } else {
                self.field_from(level + 1)?
            };
            left = self.binary(op, left, right)?;
        }
        Ok(left)
    }

    /// `nil` on the left side, which only goes with `=` and `!=`.
    fn nil_first(&mut self) -> Result<Deep<FieldExpr>, ParseError> {
        self.advance();
        let op = match self.at_fixed() {
            Some("=") => BinaryOp::Equal,
            Some("!=") => BinaryOp::NotEqual,
            _ => return Err(self.unexpected(&["=", "!="])),
        };
        self.advance();
        if self.eat("nil") {
            // Nothing compares with nothing.
            return Ok(Deep::leaf(FieldExpr::Static(Static::Bool(false))));
        }
        let right = self.field_from(ADDITIVE)?;
        self.exists(right, op)
    }

    fn prefixed(&mut self) -> Result<Deep<FieldExpr>, ParseError> {
        // A sign takes all that binds stronger than it: `-.a * 2` is `-(.a * 2)`, `!.a = .b` is `(!.a) = .b`.
        let (op, weakest) = match self.at_fixed() {
            Some("-") => (UnaryOp::Negate, ADDITIVE + 1),
            Some("!") => (UnaryOp::Not, NOT + 1),
            _ => return self.operand(),
        };
        self.advance();
        let inner = self.nested(|parser| parser.field_from(weakest))?;
        if let FieldExpr::Static(value) = &inner.node
            && let Some(value) = fold::apply_unary(op, value)
        {
            return Ok(Deep::leaf(FieldExpr::Static(value)));
        }
        let depth = self.above(inner.depth)?;
        Ok(Deep { node: FieldExpr::Unary { op, inner: Box::new(inner.node) }, depth })
    }

    fn operand(&mut self) -> Result<Deep<FieldExpr>, ParseError> {
        if self.at("(") {
            return self.nested(|parser| {
                parser.advance();
                let inner = parser.field()?;
                parser.expect(")")?;
                Ok(inner)
            });
        }
        if let Some(value) = self.eat_static() {
            return Ok(Deep::leaf(FieldExpr::Static(value)));
        }
        match self.eat_attribute()? {
            Some(attribute) => Ok(Deep::leaf(FieldExpr::Attribute(attribute))),
            None => Err(self.unexpected(&[])),
        }
    }

    fn exists(&self, inner: Deep<FieldExpr>, op: BinaryOp) -> Result<Deep<FieldExpr>, ParseError> {
        let negated = op == BinaryOp::Equal;
        if let FieldExpr::Static(_) = inner.node {
            return Ok(Deep::leaf(FieldExpr::Static(Static::Bool(!negated))));
        }
        let depth = self.above(inner.depth)?;
        Ok(Deep { node: FieldExpr::Exists { inner: Box::new(inner.node), negated }, depth })
    }

    fn binary(
        &self,
        op: BinaryOp,
        mut left: Deep<FieldExpr>,
        mut right: Deep<FieldExpr>,
    ) -> Result<Deep<FieldExpr>, ParseError> {
        if let (FieldExpr::Static(left), FieldExpr::Static(right)) = (&left.node, &right.node)
            && let Some(value) = fold::apply(op, left, right)
            // Infinity and NaN have no text.
            && !matches!(value, Static::Float(value) if !value.is_finite())
        {
            return Ok(Deep::leaf(FieldExpr::Static(value)));
        }
        if !matches!(op, BinaryOp::Match | BinaryOp::NotMatch) {
            strip_trace_id(&left.node, &mut right.node);
            strip_trace_id(&right.node, &mut left.node);
        }
        let depth = self.above(left.depth.max(right.depth))?;
        Ok(Deep { node: FieldExpr::Binary { op, left: Box::new(left.node), right: Box::new(right.node) }, depth })
    }
}

/// Trace ids are shown without leading zeros, but people paste them with.
fn strip_trace_id(one: &FieldExpr, other: &mut FieldExpr) {
    if let FieldExpr::Attribute(Attribute::Intrinsic(Intrinsic::TraceId)) = one
        && let FieldExpr::Static(Static::Str(id)) = other
        && id.starts_with('0')
    {
        *id = id.trim_start_matches('0').into();
    }
}

fn binary_op(text: &str) -> Option<(BinaryOp, u8)> {
    Some(match text {
        "&&" => (BinaryOp::And, LOGICAL),
        "||" => (BinaryOp::Or, LOGICAL),
        "=~" => (BinaryOp::Match, COMPARISON),
        "!~" => (BinaryOp::NotMatch, COMPARISON),
        _ => return arithmetic(text).or_else(|| comparison(text).map(|op| (op, COMPARISON))),
    })
}

/// The operators between numbers, which stand between values and between whole queries alike.
pub(super) fn arithmetic(text: &str) -> Option<(BinaryOp, u8)> {
    Some(match text {
        "+" => (BinaryOp::Add, ADDITIVE),
        "-" => (BinaryOp::Sub, ADDITIVE),
        "*" => (BinaryOp::Mul, MULTIPLICATIVE),
        "/" => (BinaryOp::Div, MULTIPLICATIVE),
        "%" => (BinaryOp::Mod, MULTIPLICATIVE),
        "^" => (BinaryOp::Pow, POWER),
        _ => return None,
    })
}

/// The comparisons that numbers know.
pub(super) fn comparison(text: &str) -> Option<BinaryOp> {
    Some(match text {
        "=" => BinaryOp::Equal,
        "!=" => BinaryOp::NotEqual,
        "<" => BinaryOp::Less,
        "<=" => BinaryOp::LessEqual,
        ">" => BinaryOp::Greater,
        ">=" => BinaryOp::GreaterEqual,
        _ => return None,
    })
}
