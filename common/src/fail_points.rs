//! Named places at which a test lets the process die as by kill -9, to see what the next one makes of what is on disk.
//!
//! Owns the names and the dying. Does not own the promises, which are in the crash stories of the modules that have the points.
//! Outside of tests nothing of it is compiled but empty functions. Not the `fail` crate, whose actions end a thread at most.

/// Set to `<name>:<n>`, the process dies when it reaches the point for the n-th time. Read in builds for tests only.
pub const VARIABLE: &str = "CRASH_AT";

/// Every point, about as a span meets them.
pub const NAMES: [&str; 26] = [
    "wal-segment-opened",
    "wal-written",
    "wal-synced",
    "wal-published",
    "flush-built",
    "flush-filter-put",
    "flush-spans-put",
    "flush-committed",
    "wal-segment-removed",
    "manifest-before-put",
    "manifest-put",
    "manifest-published",
    "merge-fetched",
    "merge-made",
    "merge-filter-put",
    "merge-spans-put",
    "merge-committed",
    "pack-read",
    "pack-put",
    "pack-committed",
    "deletion-recorded",
    "deletion-buried",
    "sweep-listed",
    "delete-begins",
    "delete-under-way",
    "checkpoint-put",
];

/// Says that a point is reached.
#[inline(always)]
pub fn reached(name: &'static str) {
    #[cfg(any(test, feature = "test-util"))]
    dying::at(name);
    #[cfg(not(any(test, feature = "test-util")))]
    let _ = name;
}

#[cfg(any(test, feature = "test-util"))]
mod dying {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    struct Plan {
        name: String,
        left: AtomicU32,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

    fn plan() -> Option<Plan> {
        let text = std::env::var(super::VARIABLE).ok()?;
        let (name, times) = text.split_once(':')?;
        assert!(super::NAMES.contains(&name), "{}: no fail point `{name}`", super::VARIABLE);
        Some(Plan { name: name.to_owned(), left: AtomicU32::new(times.parse().ok()?) })
    }

    pub(super) fn at(name: &'static str) {
        debug_assert!(super::NAMES.contains(&name), "`{name}` is no known fail point");
        let Some(plan) = PLAN.get_or_init(plan) else { return };
        if plan.name == name && plan.left.fetch_sub(1, SeqCst) == 1 {
            // Nothing is flushed, dropped or told: as a kill.
            std::process::abort();
        }
    }
}
