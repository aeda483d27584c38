//! Spanhouse as a library: what the binary and the tests are wired from.

pub mod serve;
