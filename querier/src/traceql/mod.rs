//! TraceQL, the language: text to a checked syntax tree and back. Pure code, no data.

pub mod ast;
