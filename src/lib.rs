//! Spanhouse as a library: what the binary and the tests are wired from.

pub mod blocks;
pub mod serve;
