//! The language: whatever the text, there is an answer, and what is printed of a query is read as the same query.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spanhouse_querier::traceql;

fuzz_target!(|text: &str| {
    let _ = traceql::parse_attribute(text);
    let _ = traceql::parse_filter_leniently(text);
    if let Ok(query) = traceql::parse(text) {
        let _ = traceql::parse_and_check(text);
        let printed = query.to_string();
        match traceql::parse(&printed) {
            Ok(again) => assert_eq!(again, query, "`{text}` is printed as `{printed}`, which is another query"),
            Err(error) => panic!("`{text}` is printed as `{printed}`, which is none: {error}"),
        }
    }
});
