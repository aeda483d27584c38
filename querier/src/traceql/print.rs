//! The canonical text of a tree: labels of series, names of aggregates, and expressions in errors.
//!
//! Parsing the text gives an equal tree. Operands that are more than a value or an attribute stand in parentheses, so
//! precedence never matters to a reader.

use std::fmt::{self, Display, Formatter, Write as _};

use super::ast::{
    Aggregate, Attribute, BinaryOp, FieldExpr, Hint, Items, MetricsExpr, MetricsFunction, MetricsQuery, ParentScope,
    Pipeline, PipelineExpr, Query, Relation, Root, ScalarExpr, ScalarFilter, Scope, SecondStage, SpansetExpr, SpansetOp,
    Stage, Static, StructuralForm, UnaryOp,
};
use super::duration::format_duration;
use super::lexer::ends_name;

impl Display for Query {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.root {
            Root::Spans(spans) => spans.fmt(f)?,
            Root::Metrics(metrics) => metrics.fmt(f)?,
        }
        if self.hints.is_empty() {
            return Ok(());
        }
        f.write_str(" with (")?;
        list(&self.hints, f)?;
        f.write_char(')')
    }
}

impl Display for Hint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl Display for PipelineExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipeline(pipeline) => pipeline.fmt(f),
            Self::Binary { op, left, right } => write!(f, "({left}) {op} ({right})"),
        }
    }
}

impl Display for Pipeline {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, stage) in self.stages.iter().enumerate() {
            if index > 0 {
                f.write_str(" | ")?;
            }
            stage.fmt(f)?;
        }
        Ok(())
    }
}

impl Display for Stage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spanset(expr) => expr.fmt(f),
            Self::Scalar(filter) => filter.fmt(f),
            Self::Group(expr) => write!(f, "by({expr})"),
            Self::Coalesce => f.write_str("coalesce()"),
            Self::Select(attributes) => {
                f.write_str("select(")?;
                list(attributes, f)?;
                f.write_char(')')
            }
        }
    }
}

impl Display for SpansetExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(expr) => write!(f, "{{ {expr} }}"),
            Self::Binary { op, left, right } => {
                grouped(left, matches!(**left, Self::Binary { .. }), f)?;
                write!(f, " {op} ")?;
                grouped(right, matches!(**right, Self::Binary { .. }), f)
            }
        }
    }
}

impl Display for ScalarFilter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.left, self.op, self.right)
    }
}

impl Display for ScalarExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aggregate(aggregate) => aggregate.fmt(f),
            Self::Static(value) => value.fmt(f),
            Self::Binary { op, left, right } => {
                let is_negative = matches!(&**left, Self::Static(value) if negative(value));
                grouped(left, is_negative || matches!(**left, Self::Binary { .. }), f)?;
                write!(f, " {op} ")?;
                grouped(right, matches!(**right, Self::Binary { .. }), f)
            }
            Self::Pipeline(pipeline, aggregate) => write!(f, "({pipeline} | {aggregate})"),
        }
    }
}

impl Display for Aggregate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count => f.write_str("count()"),
            Self::Sum(operand) => write!(f, "sum({operand})"),
            Self::Avg(operand) => write!(f, "avg({operand})"),
            Self::Min(operand) => write!(f, "min({operand})"),
            Self::Max(operand) => write!(f, "max({operand})"),
        }
    }
}

impl Display for FieldExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(value) => value.fmt(f),
            Self::Attribute(attribute) => attribute.fmt(f),
            Self::Unary { op, inner } => {
                f.write_str(match op {
                    UnaryOp::Negate => "-",
                    UnaryOp::Not => "!",
                })?;
                grouped(inner, inner.is_compound(), f)
            }
            Self::Binary { op, left, right } => {
                // A sign in front would bind weaker than the operator, and take the whole with it.
                let is_negative = matches!(&**left, Self::Static(value) if negative(value));
                grouped(left, is_negative || left.is_compound(), f)?;
                write!(f, " {op} ")?;
                grouped(right, right.is_compound(), f)
            }
            Self::Exists { inner, negated } => {
                grouped(inner, inner.is_compound(), f)?;
                f.write_str(if *negated { " = nil" } else { " != nil" })
            }
            Self::OneOf { items, inner } => {
                f.write_str(if *items == Items::Events { "event:" } else { "link:" })?;
                grouped(inner, true, f)
            }
        }
    }
}

impl FieldExpr {
    fn is_compound(&self) -> bool {
        !matches!(self, Self::Static(_) | Self::Attribute(_))
    }
}

fn negative(value: &Static) -> bool {
    match value {
        Static::Int(value) | Static::Duration(value) => *value < 0,
        Static::Float(value) => value.is_sign_negative(),
        _ => false,
    }
}

fn grouped(expr: &impl Display, parentheses: bool, f: &mut Formatter<'_>) -> fmt::Result {
    if parentheses { write!(f, "({expr})") } else { expr.fmt(f) }
}

fn list(items: &[impl Display], f: &mut Formatter<'_>) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

impl Display for MetricsExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(query) => query.fmt(f),
            Self::Stage { input, stage } => {
                // Second stages follow a function as it is, and mathematics as a whole.
                write!(f, "{input}{}{stage}", if matches!(stage, SecondStage::Filter { .. }) { " " } else { " | " })
            }
            Self::Math { op, left, right } => write!(f, "({left}) {op} ({right})"),
            Self::ScalarMath { op, input, scalar, scalar_left: true } => {
                let negative = scalar.is_sign_negative();
                grouped(&Static::Float(*scalar), negative, f)?;
                write!(f, " {op} ({input})")
            }
            Self::ScalarMath { op, input, scalar, scalar_left: false } => {
                write!(f, "({input}) {op} {}", Static::Float(*scalar))
            }
        }
    }
}

impl Display for SecondStage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopK(limit) => write!(f, "topk({limit})"),
            Self::BottomK(limit) => write!(f, "bottomk({limit})"),
            Self::Filter { op, value } => write!(f, "{op} {value}"),
        }
    }
}

impl Display for MetricsQuery {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} | {}", self.spans, self.function)?;
        if self.by.is_empty() {
            return Ok(());
        }
        f.write_str(" by (")?;
        list(&self.by, f)?;
        f.write_char(')')
    }
}

impl Display for MetricsFunction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name())?;
        match self {
            Self::Rate | Self::CountOverTime => {}
            Self::MinOverTime(attribute)
            | Self::MaxOverTime(attribute)
            | Self::SumOverTime(attribute)
            | Self::AvgOverTime(attribute)
            | Self::HistogramOverTime(attribute) => attribute.fmt(f)?,
            Self::QuantileOverTime(attribute, quantiles) => {
                attribute.fmt(f)?;
                for quantile in quantiles {
                    write!(f, ", {}", Static::Float(*quantile))?;
                }
            }
            Self::Compare { filter, top, window } => {
                write!(f, "{{ {filter} }}")?;
                match (top, window) {
                    (Some(top), Some((start, end))) => write!(f, ", {top}, {start}, {end}")?,
                    (None, Some((start, end))) => write!(f, ", 10, {start}, {end}")?,
                    (Some(top), None) => write!(f, ", {top}")?,
                    (None, None) => {}
                }
            }
        }
        f.write_char(')')
    }
}

impl Display for SpansetOp {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (relation, form) = match self {
            Self::And => return f.write_str("&&"),
            Self::Or => return f.write_str("||"),
            Self::Structural { relation, form } => (relation, form),
        };
        f.write_str(match form {
            StructuralForm::Plain => "",
            StructuralForm::Negated => "!",
            StructuralForm::Union => "&",
        })?;
        f.write_str(match relation {
            Relation::Child => ">",
            Relation::Parent => "<",
            Relation::Descendant => ">>",
            Relation::Ancestor => "<<",
            Relation::Sibling => "~",
        })
    }
}

impl Display for BinaryOp {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessEqual => "<=",
            Self::Greater => ">",
            Self::GreaterEqual => ">=",
            Self::Match => "=~",
            Self::NotMatch => "!~",
            Self::And => "&&",
            Self::Or => "||",
        })
    }
}

impl Display for Static {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            // Its digits are too many for a number without a sign.
            Self::Int(i64::MIN) => f.write_str("minInt"),
            Self::Int(value) => write!(f, "{value}"),
            // Always with a point or an exponent: without, it would be an int.
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Str(text) => quoted(text, f),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Duration(nanos) => f.write_str(&format_duration(*nanos)),
            Self::Status(status) => f.write_str(status.as_str()),
            Self::Kind(kind) => f.write_str(kind.as_str()),
        }
    }
}

fn quoted(text: &str, f: &mut Formatter<'_>) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

impl Display for Attribute {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (scope, name) = match self {
            Self::Intrinsic(intrinsic) => return f.write_str(intrinsic.as_str()),
            Self::Scoped { scope, name } | Self::StringForm { scope, name } => (scope, name),
            _ => return f.write_str(self.bare_name()),
        };
        f.write_str(self.prefix())?;
        // Bare, these would be read as a number, and as a scope.
        let ambiguous = match scope {
            Scope::None => name.starts_with(|c: char| c.is_ascii_digit()),
            Scope::Parent(ParentScope::None) => name.starts_with("span.") || name.starts_with("resource."),
            _ => false,
        };
        if !ambiguous && !name.is_empty() && !name.contains(|c| c == '"' || ends_name(c)) {
            return f.write_str(name);
        }
        f.write_char('"')?;
        for c in name.chars() {
            if matches!(c, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        f.write_char('"')
    }
}

impl Attribute {
    /// The scope with its dot, as the text starts; nothing for intrinsics.
    pub(super) fn prefix(&self) -> &'static str {
        match self {
            Self::Scoped { scope, .. } | Self::StringForm { scope, .. } => match scope {
                Scope::None => ".",
                Scope::Span => "span.",
                Scope::Resource => "resource.",
                Scope::Event => "event.",
                Scope::Link => "link.",
                Scope::Instrumentation => "instrumentation.",
                Scope::Parent(ParentScope::None) => "parent.",
                Scope::Parent(ParentScope::Span) => "parent.span.",
                Scope::Parent(ParentScope::Resource) => "parent.resource.",
            },
            _ => "",
        }
    }
}
