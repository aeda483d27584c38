//! Trees and texts for property tests: any tree the parser may make, and any order of what it knows.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::ast::{
    Aggregate, Attribute, BinaryOp, FieldExpr, Hint, Intrinsic, Kind, MetricsExpr, MetricsFunction, MetricsQuery,
    ParentScope, Pipeline, PipelineExpr, Query, Relation, Root, ScalarExpr, ScalarFilter, Scope, SecondStage, SpansetExpr,
    SpansetOp, Stage, Static, Status, StructuralForm, UnaryOp,
};
use super::super::fold;
use super::super::lexer::WORDS;

/// Words, operators and values in any order, with and without blanks between them.
pub(super) fn tokens() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        3 => select(WORDS.to_vec()).prop_map(str::to_owned),
        4 => select(vec![
            ",", ".", "{", "}", "(", ")", "=", "!=", "=~", "!~", ">", ">=", "<", "<=", "+", "-", "/", "%", "*", "^", "&&", "||",
            "!", "|", ">>", "<<", "~", "!>", "!<<", "&>", "&<<", "&~", "{ }", "{ .a }", "count()", "| rate()", "by (name)",
        ])
        .prop_map(str::to_owned),
        3 => select(vec![
            ".a", "span.b", "resource.service.name", "span:", "trace:", "event:name", "parent.", "1", "2.5", "1s", "0", "\"x\"",
            "`y`", "\"", "'z'", "nil", "foo", "// c\n", "/* c */", "/*", "\\", "ä", "0x1", "9999999999999999999", ".\"q\"", "\n",
        ])
        .prop_map(str::to_owned),
    ];
    vec((token, select(vec!["", " "])), 0..24)
        .prop_map(|tokens| tokens.into_iter().map(|(token, blank)| token + blank).collect())
}

pub(super) fn query() -> impl Strategy<Value = Query> {
    let root = prop_oneof![pipeline_expr().prop_map(Root::Spans), metrics().prop_map(Root::Metrics)];
    let hint = ("[a-z_]{1,3}[0-9]", value()).prop_map(|(name, value)| Hint { name, value });
    (root, vec(hint, 0..3)).prop_map(|(root, hints)| Query { root, hints })
}

fn value() -> impl Strategy<Value = Static> {
    prop_oneof![
        any::<i64>().prop_map(Static::Int),
        number(),
        "[ -~\\n\\t\u{7f}\u{e4}]{0,8}".prop_map(|text| Static::Str(text.into())),
        any::<bool>().prop_map(Static::Bool),
        select(Status::ALL.to_vec()).prop_map(Static::Status),
        select(Kind::ALL.to_vec()).prop_map(Static::Kind),
    ]
}

fn number() -> impl Strategy<Value = Static> {
    prop_oneof![
        (-100..100_i64).prop_map(Static::Int),
        (-i64::MAX..=i64::MAX).prop_map(Static::Duration),
        any::<f64>().prop_filter("has a text", |value| value.is_finite()).prop_map(Static::Float),
    ]
}

fn intrinsic() -> impl Strategy<Value = Intrinsic> {
    use Intrinsic as I;
    select(vec![
        I::Name,
        I::Duration,
        I::Status,
        I::StatusMessage,
        I::Kind,
        I::ChildCount,
        I::SpanId,
        I::ParentId,
        I::TraceDuration,
        I::RootName,
        I::RootService,
        I::EventName,
        I::EventTimeSinceStart,
        I::LinkTraceId,
        I::LinkSpanId,
        I::InstrumentationName,
        I::InstrumentationVersion,
        I::NestedSetLeft,
        I::NestedSetRight,
        I::NestedSetParent,
        I::Parent,
    ])
}

fn attribute() -> impl Strategy<Value = Attribute> {
    let scope = select(vec![
        Scope::None,
        Scope::Span,
        Scope::Resource,
        Scope::Event,
        Scope::Link,
        Scope::Instrumentation,
        Scope::Parent(ParentScope::None),
        Scope::Parent(ParentScope::Span),
        Scope::Parent(ParentScope::Resource),
    ]);
    let name = prop_oneof!["[a-z0-9.]{0,8}", "[ -~\u{e4}\\n]{0,8}", Just("span.x".to_owned())];
    prop_oneof![
        intrinsic().prop_map(Attribute::Intrinsic),
        (scope, name).prop_map(|(scope, name)| Attribute::Scoped { scope, name: Arc::from(name) }),
    ]
}

fn field_op() -> impl Strategy<Value = BinaryOp> {
    use BinaryOp as B;
    select(vec![
        B::Add,
        B::Sub,
        B::Mul,
        B::Div,
        B::Mod,
        B::Pow,
        B::Equal,
        B::NotEqual,
        B::Less,
        B::LessEqual,
        B::Greater,
        B::GreaterEqual,
        B::Match,
        B::NotMatch,
        B::And,
        B::Or,
    ])
}

fn comparison() -> impl Strategy<Value = BinaryOp> {
    use BinaryOp as B;
    select(vec![B::Equal, B::NotEqual, B::Less, B::LessEqual, B::Greater, B::GreaterEqual])
}

/// Folded as the parser folds: what it never makes, it need not read.
fn field() -> impl Strategy<Value = FieldExpr> {
    let leaf = prop_oneof![value().prop_map(FieldExpr::Static), attribute().prop_map(FieldExpr::Attribute)];
    leaf.prop_recursive(4, 16, 2, |inner| {
        prop_oneof![
            (field_op(), inner.clone(), inner.clone()).prop_map(|(op, left, right)| {
                if let (FieldExpr::Static(left), FieldExpr::Static(right)) = (&left, &right)
                    && let Some(value) = fold::apply(op, left, right)
                    && !matches!(value, Static::Float(value) if !value.is_finite())
                {
                    return FieldExpr::Static(value);
                }
                FieldExpr::Binary { op, left: Box::new(left), right: Box::new(right) }
            }),
            (select(vec![UnaryOp::Negate, UnaryOp::Not]), inner.clone()).prop_map(|(op, inner)| {
                match &inner {
                    FieldExpr::Static(value) => match fold::apply_unary(op, value) {
                        Some(value) => FieldExpr::Static(value),
                        None => FieldExpr::Unary { op, inner: Box::new(inner) },
                    },
                    _ => FieldExpr::Unary { op, inner: Box::new(inner) },
                }
            }),
            (inner, any::<bool>()).prop_map(|(inner, negated)| match inner {
                FieldExpr::Static(_) => FieldExpr::Static(Static::Bool(!negated)),
                inner => FieldExpr::Exists { inner: Box::new(inner), negated },
            }),
        ]
    })
}

fn spanset_op() -> impl Strategy<Value = SpansetOp> {
    let relation =
        select(vec![Relation::Child, Relation::Parent, Relation::Descendant, Relation::Ancestor, Relation::Sibling]);
    let form = select(vec![StructuralForm::Plain, StructuralForm::Negated, StructuralForm::Union]);
    prop_oneof![
        Just(SpansetOp::And),
        Just(SpansetOp::Or),
        (relation, form).prop_map(|(relation, form)| SpansetOp::Structural { relation, form }),
    ]
}

fn spanset() -> impl Strategy<Value = SpansetExpr> {
    field().prop_map(SpansetExpr::Filter).prop_recursive(3, 6, 2, |inner| {
        (spanset_op(), inner.clone(), inner).prop_map(|(op, left, right)| SpansetExpr::Binary {
            op,
            left: Box::new(left),
            right: Box::new(right),
        })
    })
}

fn aggregate() -> impl Strategy<Value = Aggregate> {
    prop_oneof![
        Just(Aggregate::Count),
        field().prop_map(Aggregate::Sum),
        field().prop_map(Aggregate::Avg),
        field().prop_map(Aggregate::Min),
        field().prop_map(Aggregate::Max),
    ]
}

/// With an aggregate somewhere: numbers alone are folded.
fn scalar() -> impl Strategy<Value = ScalarExpr> {
    let op = || select(vec![BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div, BinaryOp::Mod, BinaryOp::Pow]);
    aggregate().prop_map(ScalarExpr::Aggregate).prop_recursive(2, 4, 2, move |inner| {
        let number = || number().prop_map(ScalarExpr::Static);
        let pair = prop_oneof![(inner.clone(), inner.clone()), (inner.clone(), number()), (number(), inner)];
        (op(), pair).prop_map(|(op, (left, right))| ScalarExpr::Binary { op, left: Box::new(left), right: Box::new(right) })
    })
}

fn scalar_filter() -> impl Strategy<Value = ScalarFilter> {
    let number = || number().prop_map(ScalarExpr::Static);
    let sides = prop_oneof![(scalar(), number()), (number(), scalar()), (scalar(), scalar())];
    (comparison(), sides).prop_map(|(op, (left, right))| ScalarFilter { op, left, right })
}

fn pipeline() -> impl Strategy<Value = Pipeline> {
    let first = || {
        prop_oneof![
            spanset().prop_map(Stage::Spanset),
            scalar_filter().prop_map(Stage::Scalar),
            field().prop_map(Stage::Group),
            vec(attribute(), 1..3).prop_map(Stage::Select),
        ]
    };
    let later = prop_oneof![4 => first(), 1 => Just(Stage::Coalesce)];
    (first(), vec(later, 0..3)).prop_map(|(first, later)| {
        let mut stages = vec![first];
        stages.extend(later);
        Pipeline { stages }
    })
}

/// Of several pipelines one has stages: spansets alone are one spanset expression.
fn pipeline_expr() -> impl Strategy<Value = PipelineExpr> {
    let staged = pipeline().prop_map(|mut pipeline| {
        pipeline.stages.push(Stage::Coalesce);
        PipelineExpr::Pipeline(pipeline)
    });
    let several = staged.prop_recursive(2, 4, 2, |inner| {
        (spanset_op(), inner.clone(), inner).prop_map(|(op, left, right)| PipelineExpr::Binary {
            op,
            left: Box::new(left),
            right: Box::new(right),
        })
    });
    prop_oneof![pipeline().prop_map(PipelineExpr::Pipeline), several]
}

fn metrics_query() -> impl Strategy<Value = MetricsExpr> {
    let one = || attribute();
    let function = prop_oneof![
        Just(MetricsFunction::Rate),
        Just(MetricsFunction::CountOverTime),
        one().prop_map(MetricsFunction::MinOverTime),
        one().prop_map(MetricsFunction::MaxOverTime),
        one().prop_map(MetricsFunction::SumOverTime),
        one().prop_map(MetricsFunction::AvgOverTime),
        one().prop_map(MetricsFunction::HistogramOverTime),
        (one(), vec(0.0..2.0_f64, 1..3)).prop_map(|(one, quantiles)| MetricsFunction::QuantileOverTime(one, quantiles)),
    ];
    let compare = (field(), option::of((0..2000_i64, option::of((1..10_i64, 0..10_i64))))).prop_map(|(filter, numbers)| {
        MetricsFunction::Compare { filter, top: numbers.map(|(top, _)| top), window: numbers.and_then(|(_, window)| window) }
    });
    let query = prop_oneof![
        4 => (function, vec(attribute(), 0..3)),
        1 => (compare, Just(Vec::new())),
    ];
    (pipeline(), query).prop_map(|(pipeline, (function, by))| {
        MetricsExpr::Query(MetricsQuery { spans: PipelineExpr::Pipeline(pipeline), function, by })
    })
}

fn staged(input: impl Strategy<Value = MetricsExpr>) -> impl Strategy<Value = MetricsExpr> {
    let stage = prop_oneof![
        (0..100_i64).prop_map(SecondStage::TopK),
        (0..100_i64).prop_map(SecondStage::BottomK),
        (comparison(), number()).prop_map(|(op, value)| SecondStage::Filter { op, value }),
    ];
    (input, vec(stage, 0..3)).prop_map(|(input, stages)| {
        stages.into_iter().fold(input, |input, stage| MetricsExpr::Stage { input: Box::new(input), stage })
    })
}

fn metrics() -> impl Strategy<Value = MetricsExpr> {
    let op = || select(vec![BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div]);
    let math = staged(metrics_query()).prop_recursive(3, 6, 2, move |inner| {
        let scalar = -1000.0..1000.0_f64;
        prop_oneof![
            (op(), inner.clone(), inner.clone()).prop_map(|(op, left, right)| MetricsExpr::Math {
                op,
                left: Box::new(left),
                right: Box::new(right),
            }),
            (op(), inner, scalar, any::<bool>()).prop_map(|(op, input, scalar, scalar_left)| MetricsExpr::ScalarMath {
                op,
                input: Box::new(input),
                scalar,
                scalar_left,
            }),
        ]
    });
    staged(math)
}
