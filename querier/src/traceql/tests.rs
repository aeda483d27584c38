//! The language against its cases, against hostile texts, and against itself: what it prints, it reads.
//!
//! A case is a file of `querier/cases/language`: the query, a line `---`, a verdict, and what goes with it. `valid` goes with
//! the canonical text, `parse error` and `invalid` with a part of the message. Under `lenient`, `filter` goes with what is
//! understood, `unfiltered` with nothing and `refused` with a part of the message. A new case is a new file.

mod generate;

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::ast::{Attribute, FieldExpr, Intrinsic, Scope};
use super::{MAX_QUERY_BYTES, check, compile_regex, parse, parse_and_check, parse_attribute, parse_filter_leniently};

/// Fewer cases than this were not found, not removed.
const MIN_CASES: usize = 500;

fn cases(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the cases are beside the code") {
        let path = entry.expect("a folder entry").path();
        if path.is_dir() {
            cases(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "case") {
            found.push(path);
        }
    }
}

fn verdict(query: &str, lenient: bool) -> (&'static str, String) {
    if lenient {
        return match parse_filter_leniently(query) {
            Ok(Some(filter)) => ("filter", filter.to_string()),
            Ok(None) => ("unfiltered", String::new()),
            Err(error) => ("refused", error.to_string()),
        };
    }
    let tree = match parse(query) {
        Ok(tree) => tree,
        Err(error) => return ("parse error", error.to_string()),
    };
    let text = tree.to_string();
    assert_eq!(parse(&text).as_ref(), Ok(&tree), "the printed text is read as another tree");
    match check(&tree) {
        Ok(()) => ("valid", text),
        Err(error) => ("invalid", error.to_string()),
    }
}

#[test]
fn every_case_gets_its_verdict() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/language");
    let mut paths = Vec::new();
    cases(&root, &mut paths);
    paths.sort();
    let mut failures = String::new();
    for path in &paths {
        let text = std::fs::read_to_string(path).expect("a case is text");
        let (query, expected) = match text.strip_prefix("---\n") {
            Some(expected) => ("", expected),
            None => text.split_once("\n---\n").expect("a case has a line ---"),
        };
        let (kind, detail) = expected.split_once('\n').expect("a verdict ends its line");
        let detail = detail.strip_suffix('\n').unwrap_or(detail);
        let (got_kind, got) = verdict(query, path.starts_with(root.join("lenient")));
        let exact = matches!(kind, "valid" | "filter");
        if kind != got_kind || (exact && got != detail) || !got.contains(detail) {
            failures.push_str(&format!(
                "\n{}\n  query    {query}\n  expected {kind}: {detail}\n  got      {got_kind}: {got}",
                path.strip_prefix(&root).expect("below the root").display()
            ));
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(paths.len() >= MIN_CASES, "only {} cases", paths.len());
}

/// Runs on a stack as a server's threads have it: what overflows there, overflows here.
fn on_a_small_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(test).expect("a thread starts");
    thread.join().expect("the test passes on two megabytes of stack");
}

#[test]
fn deep_texts_are_refused_without_overflow() {
    on_a_small_stack(|| {
        for unit in [
            "{",
            "(",
            "!",
            "-",
            "{(",
            "{!",
            "{-",
            "{!-",
            "- ",
            "((",
            "{.a^",
            "{.a*-",
            "max(",
            "avg(-",
            "by(",
            "1.1",
            "1s",
            "0x",
            "\\",
            "[[:",
            "//",
            "/*",
            "{ } | by((",
            "\"",
            "`",
            "'",
        ] {
            let text = unit.repeat(MAX_QUERY_BYTES / unit.len());
            assert!(parse(&text).is_err(), "{unit}");
            let _ = parse_filter_leniently(&text);
        }
        for (start, unit) in [
            ("{", "("),
            ("{", "!"),
            ("{", "-"),
            ("{.a", "^.a"),
            ("{.a", "=nil"),
            ("{.a", "||.a"),
            ("{.a", " + .a"),
            ("{.a", "+.a=.a"),
            ("{}", "&&{}"),
            ("{}", ">>{}"),
            ("({}|{})", "||({}|{})"),
            ("count()", "+count()"),
            ("({}|rate())", "+({}|rate())"),
            ("({}|rate())", "+1"),
            ("{}|rate()", "|topk(1)"),
            ("{}|rate()", ">1"),
        ] {
            let text = start.to_owned() + &unit.repeat((MAX_QUERY_BYTES - 16) / unit.len());
            // Some are queries, most are not: an answer is all that counts.
            if let Ok(tree) = parse(&(text.clone() + if start.starts_with("{.a") { "}" } else { "" })) {
                let _ = check(&tree);
            }
            let _ = parse_filter_leniently(&text);
        }
        assert!(parse(&" ".repeat(MAX_QUERY_BYTES + 1)).is_err());
        assert!(parse(&("{}".to_owned() + &" ".repeat(MAX_QUERY_BYTES - 2))).is_ok());
    });
}

#[test]
fn the_deepest_trees_can_be_walked() {
    let texts = [
        format!("{{ .a{} }}", " || .a".repeat(990)),
        format!("{{ .a{} }}", " - .a".repeat(980) + " = 1"),
        format!("{{ }}{}", " && { .a }".repeat(980)),
        format!("({{ }} | {{ }}){}", " || ({ } | { })".repeat(480)),
        format!("{{ }} | count(){} > 1", " + count()".repeat(980)),
        format!("({{ }} | rate()){}", " + 1".repeat(980)),
        format!("{{ }} | rate(){}", " | topk(1)".repeat(980)),
        format!("({{ }} | rate()){}", " + ({ } | rate())".repeat(480)),
        format!("{{ {}.a{} }}", "(".repeat(60), " = .a)".repeat(60)),
        format!("{{ {}.a }}", "!".repeat(60)),
    ];
    on_a_small_stack(move || {
        for text in texts {
            let tree = parse(&text).expect("within the bounds");
            assert_eq!(tree.clone(), tree);
            assert!(format!("{tree:?}").len() > 100);
            assert!(tree.to_string().len() > 100);
            let _ = check(&tree);
            assert!(tree.attributes().len() <= 2000);
        }
    });
}

#[test]
fn chains_end_at_the_bound() {
    assert!(parse(&format!("{{ .a{} }}", " || .a".repeat(900))).is_ok());
    let error = parse(&format!("{{ .a{} }}", " || .a".repeat(1100))).expect_err("too long");
    assert!(error.to_string().contains("too many operators in one expression (limit: 1000)"), "{error}");
    let error = parse(&format!("{{ {}.a }}", "(".repeat(100))).expect_err("too deep");
    assert!(error.to_string().contains("nested too deeply (limit: 64)"), "{error}");
    // Wide is not deep: sides of a balanced tree, stages of a pipeline.
    assert!(parse(&format!("{{ }}{}", " | { }".repeat(20_000))).is_ok());
}

#[test]
fn regexes_match_whole_texts_as_re2_reads_them() {
    for (pattern, matching, other) in [
        ("GET", "GET", "GETS"),
        ("a|b", "b", "ab"),
        ("a.b", "a\nb", "ab"),
        ("", "", "a"),
        (".*health.*", "/health/x", "/heal"),
        ("(?i)get", "GeT", "gets"),
        ("/users/{id}", "/users/{id}", "/users/1"),
        ("/users/{id}/x{2}", "/users/{id}/xx", "/users/{id}/x"),
        ("a{,2}", "a{,2}", "aa"),
        ("a{2,}", "aaa", "a"),
        (r"\Qa.b\E+", "a.bb", "axb"),
        (r"\Qa.b", "a.b", "axb"),
        (r"\<b\>", "<b>", "b"),
        (r"\d+", "12", "١٢"),
        (r"\w+", "ab", "äb"),
        (r"[\d.]+", "1.2", "1,2"),
        (r"[^\s]+", "ab", "a b"),
        (r"[\s]+", " \t", "a"),
        ("[[]", "[", "]"),
        ("[]a]+", "]a", "["),
        ("[a&&b]+", "&a", "c"),
        ("[!--]+", "-", "a"),
        ("[[:alpha:]-]+", "a-", "1"),
        (r"\x{41}\p{Greek}", "Aα", "Ba"),
        ("ä+", "ää", "a"),
        (r"\\{2}a", r"\\a", r"\{2}a"),
        ("(a)|(b)", "b", "ab"),
        ("(?P<x>a)(?<y>b)(?:c)(?is)D", "abcd", "abc"),
        (r"[()]+\)", "()()", "()("),
    ] {
        let regex = compile_regex(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        assert!(regex.is_match(matching.as_bytes()), "{pattern} matches {matching}");
        assert!(!regex.is_match(other.as_bytes()), "{pattern} does not match {other}");
    }
}

/// What closes a group that it did not open would end what is put around it, and match parts of a text.
#[test]
fn regexes_stay_within_their_anchors() {
    for pattern in ["a)|(b", ")", "(", "a)(", "(a))", r"\Q(\E)", "(?x)a #", "(?ix:a b)", "(?u)a", "(?R)a"] {
        assert!(compile_regex(pattern).is_err(), "{pattern}");
    }
}

#[test]
fn huge_regexes_are_errors() {
    for pattern in [
        "(".repeat(60_000),
        "[".repeat(60_000),
        "{".repeat(120_000),
        "}".repeat(120_000),
        "a".repeat(120_000),
        "[[:".repeat(40_000),
    ] {
        // Whether it compiles is not the point: it must not take long, much memory, or the process with it.
        let _ = compile_regex(&pattern);
    }
    assert!(compile_regex(r"(?:\pL{1000}){1000}").is_err());
    let many = format!("{{ true{} }}", " && .a =~ \"x\"".repeat(101));
    let error = parse(&many).expect_err("too many");
    assert!(error.to_string().contains("too many regular expressions in one query (limit: 100)"), "{error}");
    assert_eq!(parse_filter_leniently(&many), Ok(None));
    let query = format!("{{ .a =~ \"{}\" }}", "(x{1000}){1000}");
    let error = parse_and_check(&query).expect_err("too large");
    assert!(error.to_string().starts_with("invalid regex: "), "{error}");
}

#[test]
fn attributes_are_read_alone() {
    let scoped = |scope, name: &str| Attribute::Scoped { scope, name: name.into() };
    for (text, expected, canonical, bare) in [
        ("resource.service.name", scoped(Scope::Resource, "service.name"), "resource.service.name", "service.name"),
        ("span.http.url", scoped(Scope::Span, "http.url"), "span.http.url", "http.url"),
        (".foo", scoped(Scope::None, "foo"), ".foo", "foo"),
        ("span.\"a b\"", scoped(Scope::Span, "a b"), "span.\"a b\"", "a b"),
        ("span:status", Attribute::Intrinsic(Intrinsic::Status), "status", "status"),
        ("trace:rootService", Attribute::Intrinsic(Intrinsic::RootService), "rootServiceName", "rootServiceName"),
        ("event:name", Attribute::Intrinsic(Intrinsic::EventName), "event:name", "event:name"),
    ] {
        let attribute = parse_attribute(text).expect("an attribute");
        assert_eq!(attribute, expected);
        assert_eq!((attribute.text().as_str(), attribute.bare_name()), (canonical, bare));
    }
    for text in ["", "service.name", "5", ".a .b", "{ .a }", ".a = 1", "trace:nothing", "\"a\""] {
        assert!(parse_attribute(text).is_err(), "{text}");
    }
}

#[test]
fn trees_tell_what_an_engine_asks() {
    let query = parse(
        "{ .a = 1 && span.b != nil } >> { name = \"x\" } | by(resource.c) | max(duration) > 1 | select(.a) | \
         quantile_over_time(span.d, .5) by (kind) with (x=1, x=true, sample=0.5, exemplars=10, x=false)",
    )
    .expect("a query");
    let names: Vec<String> = query.attributes().into_iter().map(Attribute::text).collect();
    assert_eq!(names, [".a", "span.b", "name", "resource.c", "duration", ".a", "span.d", "kind"]);
    assert!(query.is_metrics());
    let hints: Vec<&str> = query.hints.iter().map(|hint| hint.name.as_str()).collect();
    assert_eq!(hints, ["x", "x", "sample", "exemplars", "x"]);
    assert!(!parse("{ }").expect("a query").is_metrics());
}

#[test]
fn lenient_filters_keep_within_bounds() {
    on_a_small_stack(|| {
        let chain = format!("{{ span.a = 1{} }}", " && span.a = 1".repeat(9_000));
        assert_eq!(parse_filter_leniently(&chain), Ok(None));
        let chain = format!("{{ span.a = 1{} }}", " && span.a = 1".repeat(900));
        assert!(matches!(parse_filter_leniently(&chain), Ok(Some(FieldExpr::Binary { .. }))));
        let long = format!("{{ span.a = \"{}\" }}", "x".repeat(MAX_QUERY_BYTES));
        assert_eq!(parse_filter_leniently(&long), Ok(None));
        let nested = format!("{{ {}span.a = 1", "(".repeat(100_000));
        assert_eq!(parse_filter_leniently(&nested), Ok(None));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_tokens_get_an_answer(text in generate::tokens()) {
        if let Ok(tree) = parse(&text) {
            let printed = tree.to_string();
            prop_assert_eq!(parse(&printed), Ok(tree.clone()), "{}", printed);
            let _ = check(&tree);
        }
        let _ = parse_filter_leniently(&text);
        let _ = parse_attribute(&text);
    }

    #[test]
    fn any_text_gets_an_answer(text in "[ -~\\n\u{e4}\u{1f600}]{0,60}") {
        let _ = parse_and_check(&text);
        let _ = parse_filter_leniently(&text);
        let _ = compile_regex(&text);
    }

    #[test]
    fn printed_trees_are_read_as_they_were(tree in generate::query()) {
        let printed = tree.to_string();
        prop_assert_eq!(parse(&printed), Ok(tree.clone()), "{}", printed);
    }

    #[test]
    fn printed_durations_are_read_as_they_were(nanos in 0..=i64::MAX) {
        let text = super::format_duration(nanos);
        prop_assert_eq!(super::duration::parse(&text), Some(nanos), "{}", text);
    }
}
