//! Adaptive sampling: probabilities that follow the traffic, so that each operation yields about as many traces a second as the
//! operator wants.
//!
//! A **period** is a stretch of wall-clock time of one calculation interval, counted from 1970, so that all processes mean the
//! same. Flow: the [`observer`] counts sampled root spans of a period; when it is over its counts go to the store
//! ([`shared`]); once a period somebody calculates new probabilities from the counts of all processes ([`calculate`]) and puts
//! them; everybody serves the newest it knows.
//!
//! **Who calculates**: the probabilities of a period are one object, put if absent, so the first process to put them has led
//! the period. It goes on at once in the next; the others give it some time and then try themselves. No lease has to be kept,
//! and two that calculate at once do no harm: one of them finds the object there and takes it.
//!
//! Knows no tenants: operations of services with one name are learned together, and whoever asks for a service is told their
//! names.
//!
//! Crash story: 1. counts in memory; 2. counts of a period put; 3. probabilities put; 4. old objects deleted. A kill before 2
//! loses one period's counts of one process, which then sees less traffic than there was; after 2 nothing is lost. A stop
//! in order puts what is counted of the period under way. Objects left by a kill in 4 are deleted in a later round.

pub mod calculate;
pub mod observer;
pub mod shared;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use object_store::ObjectStore;
use parking_lot::Mutex;
use spanhouse_common::time::{Clock, UnixNanos};
use tokio_util::sync::CancellationToken;

use self::calculate::{Learned, Targets, calculate};
pub use self::observer::Observer;
use self::shared::{Counted, Shared, SharedError, Taken};
use super::metrics::SamplingMetrics;
use super::strategy::{Operation, Operations, Strategy};

/// How often it is looked whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// How long a stop waits until the last counts are in the store.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct AdaptiveConfig {
    pub targets: Targets,
    /// Length of a period.
    pub calculation_interval: Duration,
    /// Periods that are read back for a calculation.
    pub aggregation_buckets: u32,
    /// How long counts have to arrive in the store before they are read.
    pub calculation_delay: Duration,
    /// What a client is told to keep of each operation in any case, traces a second.
    pub min_samples_per_second: f64,
    /// How long the process that led the last period is given before another tries.
    pub leader_patience: Duration,
    /// How often a process that does not lead reads the probabilities.
    pub reload_interval: Duration,
}

/// Learns probabilities and serves them.
#[derive(Debug)]
pub struct Adaptive {
    config: AdaptiveConfig,
    observer: Arc<Observer>,
    shared: Shared,
    clock: Arc<dyn Clock>,
    current: ArcSwap<Learned>,
    turn: Mutex<Turn>,
    metrics: SamplingMetrics,
}

/// Where this process is in the course of things.
#[derive(Debug, Default)]
struct Turn {
    /// Counts of periods that are over and not yet in the store, oldest first.
    unsaved: VecDeque<Counted>,
    /// Start of the last period whose probabilities are known to be there.
    settled: Option<UnixNanos>,
    /// Whether this process made them.
    leads: bool,
    reload_at: Duration,
    /// Set while the store fails, so that the same fault is told once.
    failing: bool,
}

impl Adaptive {
    /// Starts with what the store knows. If it does not answer, with nothing: clients begin at the initial probability.
    pub async fn open(
        config: AdaptiveConfig,
        store: Arc<dyn ObjectStore>,
        clock: Arc<dyn Clock>,
        metrics: SamplingMetrics,
    ) -> Self {
        let observer = Observer::new(Arc::clone(&clock), config.calculation_interval, metrics.clone());
        let adaptive = Self {
            shared: Shared::new(store, config.calculation_interval),
            observer: Arc::new(observer),
            clock,
            current: ArcSwap::default(),
            turn: Mutex::default(),
            metrics,
            config,
        };
        let loaded = adaptive.reload().await;
        adaptive.tell(loaded);
        adaptive
    }

    pub fn observer(&self) -> Arc<Observer> {
        Arc::clone(&self.observer)
    }

    /// The probabilities in force.
    pub fn learned(&self) -> Arc<Learned> {
        self.current.load_full()
    }

    /// What `service` is told now. One of which nothing is known begins at the initial probability.
    pub fn strategy(&self, service: &str) -> Strategy {
        let learned = self.current.load();
        let known = learned.services.get(service).into_iter().flatten();
        let list = known.map(|(name, operation)| Operation { name: Arc::clone(name), probability: operation.probability });
        let operations = Operations {
            default_probability: self.config.targets.initial_probability,
            lower_bound: self.config.min_samples_per_second,
            upper_bound: 0.0,
            list: list.collect(),
        };
        Strategy { rate: None, operations: Some(operations) }
    }

    /// Does what is due, every second until `stop`; then puts what is counted.
    pub async fn run(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(TICK)).await.is_some() {
            if stop.run_until_cancelled(self.step()).await.is_none() {
                break;
            }
        }
        // A store that does not answer must not hold up the stop.
        if let Ok(saved) = tokio::time::timeout(STOP_PATIENCE, self.save(UnixNanos(u64::MAX))).await {
            self.tell(saved);
        }
    }

    /// Does what is due now.
    pub async fn step(&self) {
        let done = self.due().await;
        self.tell(done);
    }

    async fn due(&self) -> Result<(), SharedError> {
        let now = self.clock.now();
        let period = self.shared.period_of(now);
        self.save(period).await?;
        let (settled, patience) = {
            let turn = self.turn.lock();
            (
                turn.settled.is_some_and(|settled| settled >= period),
                if turn.leads { Duration::ZERO } else { self.config.leader_patience },
            )
        };
        if !settled && now >= period.saturating_add(patience) {
            self.settle(period).await?;
        }
        if self.clock.monotonic() >= self.turn.lock().reload_at {
            self.reload().await?;
        }
        Ok(())
    }

    /// Puts the counts of periods before `before`. What could not be put stays for the next attempt, as long as it would be read.
    async fn save(&self, before: UnixNanos) -> Result<(), SharedError> {
        let over = self.observer.take_before(before);
        let over = over.into_iter().map(|(period, throughput)| self.shared.counted(period, throughput));
        {
            let unsaved = &mut self.turn.lock().unsaved;
            unsaved.extend(over);
            let keep = (self.config.aggregation_buckets as usize).saturating_add(1);
            unsaved.drain(..unsaved.len().saturating_sub(keep));
        }
        // Each stays listed until it is there: this future may be dropped at any time.
        loop {
            let Some(next) = self.turn.lock().unsaved.front().cloned() else { return Ok(()) };
            self.shared.put_throughput(&next).await?;
            self.turn.lock().unsaved.pop_front();
        }
    }

    /// Sees to it that the probabilities of `period` are there, and takes them.
    async fn settle(&self, period: UnixNanos) -> Result<(), SharedError> {
        let before = self.shared.newest(period).await?;
        if let Some(there) = before.as_ref().filter(|learned| learned.period >= period) {
            self.take(there.clone(), false);
            return Ok(());
        }
        let before = before.unwrap_or_default();
        let until = self.shared.period_of(period.saturating_sub(self.config.calculation_delay));
        let buckets = self.shared.throughputs(until, self.config.aggregation_buckets).await?;
        let interval = self.config.calculation_interval;
        let learned = calculate(&self.config.targets, interval, period, &buckets, &before);
        if learned.services.is_empty() && before.services.is_empty() {
            // Nobody samples by what it is told: no object says so as well.
            self.take(Learned { period, ..Learned::default() }, false);
            return Ok(());
        }
        self.metrics.calculated();
        match self.shared.put_learned(&learned).await? {
            Taken::Ours => {
                self.take(learned, true);
                self.shared.sweep(until, self.config.aggregation_buckets).await;
            }
            Taken::Others => {
                let there = self.shared.newest(period).await?.unwrap_or(learned);
                self.take(there, false);
            }
        }
        Ok(())
    }

    async fn reload(&self) -> Result<(), SharedError> {
        let period = self.shared.period_of(self.clock.now());
        let newest = self.shared.newest(period).await?;
        self.turn.lock().reload_at = self.clock.monotonic() + self.config.reload_interval;
        if let Some(learned) = newest.filter(|learned| learned.period > self.current.load().period) {
            // What is newer than ours others have made.
            self.take(learned, false);
        }
        Ok(())
    }

    fn take(&self, learned: Learned, leads: bool) {
        self.metrics.learned(learned.services.values().map(|operations| operations.len()).sum());
        {
            let mut turn = self.turn.lock();
            turn.settled = turn.settled.max(Some(learned.period));
            turn.leads = leads;
        }
        self.current.store(Arc::new(learned));
    }

    /// Counts and logs a fault, once until it is over.
    fn tell(&self, result: Result<(), SharedError>) {
        let mut turn = self.turn.lock();
        match result {
            Ok(()) => {
                if std::mem::take(&mut turn.failing) {
                    tracing::info!("adaptive sampling goes on");
                }
            }
            Err(error) => {
                self.metrics.store_failed();
                if !std::mem::replace(&mut turn.failing, true) {
                    tracing::warn!(error = %error, "adaptive sampling stands still: the old probabilities stay in force");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
