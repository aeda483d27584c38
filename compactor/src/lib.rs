//! The compactor: applies retention and sweeps objects nothing refers to.
