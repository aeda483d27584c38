//! Spanhouse as a library: what the binary and the tests are wired from.

pub mod allocator;
pub mod app;
pub mod archive;
pub mod blocks;
pub mod cli;
pub mod compact;
pub mod config;
pub mod delete;
pub mod loadgen;
pub mod query;
pub mod sampling;
pub mod serve;
pub mod tenants;
