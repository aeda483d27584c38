//! Metrics: the registry, name prefixes and bucket choices every role uses.
