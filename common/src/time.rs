//! Time: nanoseconds since 1970 as the wire has them, half-open ranges, and the clock everything else asks.
//!
//! Decisions about durability, leases and flush use [`Clock::monotonic`] or arrival time, never the time inside a span.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970, unsigned as OTLP has them: values from 2^63 exist on the wire and are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct UnixNanos(pub u64);

impl UnixNanos {
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    pub const fn as_seconds(self) -> u64 {
        self.0 / 1_000_000_000
    }

    pub fn saturating_sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by.as_nanos().min(u128::from(u64::MAX)) as u64))
    }

    pub fn saturating_add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by.as_nanos().min(u128::from(u64::MAX)) as u64))
    }
}

/// In UTC, to the second.
impl fmt::Display for UnixNanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.as_seconds() / 86_400, self.as_seconds() % 86_400);
        let (year, month, day) = civil_date(i64::try_from(days).unwrap_or(i64::MAX));
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
    }
}

/// Year, month and day of a number of days since 1970, by the Gregorian calendar. Of days beyond what 64 bits of nanoseconds reach the date
/// means nothing.
pub fn civil_date(days: i64) -> (i64, i64, i64) {
    // Counted from 1 March of year 0, so that leap days come last.
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let of_era_year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * of_era_year + of_era_year / 4 - of_era_year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (of_era_year + era * 400 + i64::from(month <= 2), month, day)
}

/// Both ends included: the first and last start or end a set of spans has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeRange {
    pub min: UnixNanos,
    pub max: UnixNanos,
}

impl TimeRange {
    /// Holds no time at all; grows with [`TimeRange::include`].
    pub const EMPTY: Self = Self { min: UnixNanos(u64::MAX), max: UnixNanos(0) };
    /// Holds every time.
    pub const ALL: Self = Self { min: UnixNanos(0), max: UnixNanos(u64::MAX) };

    pub fn include(&mut self, at: UnixNanos) {
        self.min = self.min.min(at);
        self.max = self.max.max(at);
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// Where time comes from. Tests put a [`ManualClock`] in its place.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Wall-clock time: for what users see and for retention.
    fn now(&self) -> UnixNanos;
    /// Time since some fixed point, never going back: for intervals and deadlines.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self { origin: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> UnixNanos {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixNanos(since.as_nanos() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// A clock that moves only when told to.
#[cfg(any(test, feature = "test-util"))]
#[derive(Debug)]
pub struct ManualClock {
    wall: std::sync::atomic::AtomicU64,
    mono: std::sync::atomic::AtomicU64,
}

#[cfg(any(test, feature = "test-util"))]
impl ManualClock {
    pub fn at(now: UnixNanos) -> Arc<Self> {
        Arc::new(Self { wall: now.0.into(), mono: 0.into() })
    }

    pub fn advance(&self, by: Duration) {
        use std::sync::atomic::Ordering::SeqCst;
        self.wall.fetch_add(by.as_nanos() as u64, SeqCst);
        self.mono.fetch_add(by.as_nanos() as u64, SeqCst);
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Clock for ManualClock {
    fn now(&self) -> UnixNanos {
        UnixNanos(self.wall.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.mono.load(std::sync::atomic::Ordering::SeqCst))
    }
}
