//! The object store: opening it by URL, building keys, counting and timing operations, injecting faults.
