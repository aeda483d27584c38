//! The querier: answers the Tempo and Jaeger APIs from blocks and live data.
//!
//! Flow of a trace by id: [`api`] checks the request -> [`find_trace`] asks every source of a snapshot -> [`assemble`] makes
//! one trace of the pieces -> [`otlp`], [`json`] or [`llm`] writes it.
//!
//! Owns the read side: what a query means, its limits and its wire forms. Never writes to the store, knows no WAL file, and
//! sees live data only as a [`spanhouse_common::source::Source`].

pub mod api;
pub mod assemble;
pub mod engine;
pub mod filters;
pub mod find_trace;
pub mod jaeger;
pub mod json;
pub mod llm;
pub mod metrics;
#[cfg(any(test, feature = "test-util"))]
pub mod naive;
pub mod otlp;
pub mod sources;
pub mod trace_filter;
pub mod traceql;
mod ui_files;
pub mod wire;
pub mod zipkin;

#[cfg(any(test, feature = "test-util"))]
pub mod test_util;
