//! A token bucket of protobuf bytes per tenant, on the monotonic clock.
//!
//! A tenant without a rate has no bucket, and a bucket that is full again is as good as none: such buckets are dropped, so that
//! tenants that stopped sending cost nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use spanhouse_common::id::TenantId;
use spanhouse_common::time::Clock;

use super::limits::Limits;
use crate::pipeline::IngestError;

/// The wait the reference asks for, whatever the deficit: it spreads retries of many senders better than an exact time.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often full buckets are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct RateLimiter {
    clock: Arc<dyn Clock>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    by_tenant: HashMap<TenantId, Bucket>,
    swept: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: u64,
    burst: u64,
    tokens: f64,
    at: Duration,
}

impl Bucket {
    /// Adds what the time since the last look is worth. Changed limits count from now on.
    fn refill(&mut self, now: Duration, rate: u64, burst: u64) {
        let since = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * self.rate as f64).min(burst as f64);
        *self = Self { rate, burst, at: now, ..*self };
    }
}

impl RateLimiter {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, buckets: Mutex::default() }
    }

    pub fn admit(&self, tenant: &TenantId, bytes: u64, limits: &Limits) -> Result<(), IngestError> {
        let Some((rate, burst)) = limits.rate_and_burst() else { return Ok(()) };
        // Sending the same batch again can never help: no RetryInfo, so that the sender drops or splits it.
        if bytes > burst {
            let message = format!(
                "RATE_LIMITED: batch size ({bytes} bytes) exceeds ingestion limit (local: {rate} bytes/s, global: 0 bytes/s, \
                 burst: {burst} bytes) while adding {bytes} bytes for user {tenant}. consider reducing batch size or \
                 increasing rate limit."
            );
            return Err(IngestError::RateLimited { message, retry_after: None });
        }
        let now = self.clock.monotonic();
        let mut buckets = self.buckets.lock();
        buckets.sweep(now);
        let full = Bucket { rate, burst, tokens: burst as f64, at: now };
        let bucket = match buckets.by_tenant.get_mut(tenant) {
            Some(bucket) => bucket,
            None => buckets.by_tenant.entry(tenant.clone()).or_insert(full),
        };
        bucket.refill(now, rate, burst);
        if bucket.tokens >= bytes as f64 {
            bucket.tokens -= bytes as f64;
            return Ok(());
        }
        let message = format!(
            "RATE_LIMITED: ingestion rate limit (local: {rate} bytes/s, global: 0 bytes/s, burst: {burst} bytes) exceeded while \
             adding {bytes} bytes for user {tenant}. consider increasing the limit or reducing ingestion rate."
        );
        Err(IngestError::RateLimited { message, retry_after: Some(RETRY_AFTER) })
    }

    /// Tenants with a bucket right now.
    pub fn tenants(&self) -> usize {
        self.buckets.lock().by_tenant.len()
    }
}

impl Buckets {
    fn sweep(&mut self, now: Duration) {
        if now.saturating_sub(self.swept) < SWEEP_INTERVAL {
            return;
        }
        self.swept = now;
        self.by_tenant.retain(|_, bucket| {
            bucket.refill(now, bucket.rate, bucket.burst);
            bucket.tokens < bucket.burst as f64
        });
    }
}

#[cfg(test)]
mod tests {
    use spanhouse_common::time::{ManualClock, UnixNanos};

    use super::*;

    fn limits(rate: u64, burst: Option<u64>) -> Limits {
        Limits { ingestion_rate_bytes: Some(rate), ingestion_burst_bytes: burst, ..Limits::default() }
    }

    fn limiter() -> (Arc<ManualClock>, RateLimiter) {
        let clock = ManualClock::at(UnixNanos(0));
        (Arc::clone(&clock), RateLimiter::new(clock))
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (clock, limiter) = limiter();
        let (tenant, limits) = (TenantId::single(), limits(100, Some(1000)));
        limiter.admit(&tenant, 1000, &limits).unwrap();
        limiter.admit(&tenant, 1, &limits).unwrap_err();
        clock.advance(Duration::from_millis(10));
        limiter.admit(&tenant, 1, &limits).unwrap();
        limiter.admit(&tenant, 1, &limits).unwrap_err();
        clock.advance(Duration::from_secs(3600));
        limiter.admit(&tenant, 1000, &limits).unwrap();
        limiter.admit(&tenant, 1, &limits).unwrap_err();
    }

    #[test]
    fn the_long_run_is_the_rate_whatever_the_batches() {
        let (clock, limiter) = limiter();
        let (tenant, limits) = (TenantId::single(), limits(1000, None));
        let mut sent = 0;
        for step in 0..10_000_u64 {
            let bytes = step * 7919 % 400;
            sent += limiter.admit(&tenant, bytes, &limits).map_or(0, |()| bytes);
            clock.advance(Duration::from_millis(10));
        }
        // 100 seconds and one burst.
        assert!((99_000..=101_000).contains(&sent), "{sent}");
    }

    #[test]
    fn texts_and_waits_as_the_reference_has_them() {
        let (_, limiter) = limiter();
        let (tenant, limits) = (TenantId::single(), limits(10, Some(20)));
        let refusal = |bytes| match limiter.admit(&tenant, bytes, &limits) {
            Err(IngestError::RateLimited { message, retry_after }) => (message, retry_after),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            refusal(21),
            (
                "RATE_LIMITED: batch size (21 bytes) exceeds ingestion limit (local: 10 bytes/s, global: 0 bytes/s, burst: 20 bytes) \
                 while adding 21 bytes for user single-tenant. consider reducing batch size or increasing rate limit."
                    .into(),
                None
            )
        );
        limiter.admit(&tenant, 20, &limits).unwrap();
        assert_eq!(
            refusal(5),
            (
                "RATE_LIMITED: ingestion rate limit (local: 10 bytes/s, global: 0 bytes/s, burst: 20 bytes) exceeded while adding \
                 5 bytes for user single-tenant. consider increasing the limit or reducing ingestion rate."
                    .into(),
                Some(RETRY_AFTER)
            )
        );
    }

    #[test]
    fn changed_limits_take_effect_at_once() {
        let (clock, limiter) = limiter();
        let tenant = TenantId::single();
        limiter.admit(&tenant, 10, &limits(10, None)).unwrap();
        limiter.admit(&tenant, 10, &Limits::default()).unwrap();
        clock.advance(Duration::from_secs(1));
        limiter.admit(&tenant, 10, &limits(1000, None)).unwrap();
        clock.advance(Duration::from_secs(1));
        limiter.admit(&tenant, 1000, &limits(1000, None)).unwrap();
    }

    #[test]
    fn idle_tenants_are_forgotten() {
        let (clock, limiter) = limiter();
        let limits = limits(10, None);
        for n in 0..100 {
            limiter.admit(&format!("t{n}").parse().unwrap(), 10, &limits).unwrap();
        }
        assert_eq!(limiter.tenants(), 100);
        clock.advance(SWEEP_INTERVAL);
        limiter.admit(&TenantId::single(), 1, &limits).unwrap();
        assert_eq!(limiter.tenants(), 1);
        limiter.admit(&TenantId::single(), u64::MAX, &Limits::default()).unwrap();
    }
}
