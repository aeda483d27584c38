//! One tenant's manifest as a process holds it: the newest version it knows, and the way to make the next.
//!
//! Owns compare-and-swap by put-if-absent. Does not own what a change is for: flush, compaction and retention make theirs.
//! Any number of processes may hold the same manifest; within one, commits queue and reads never wait.
//!
//! A commit: 1. the change is made on, and checked against, the newest known state; 2. it is put as version n + 1 with a new
//! nonce; 3. whatever the reply, unless it is a plain yes, version n + 1 is read back and its nonce compared; 4. ours:
//! committed; another's: applied, and back to 1; nothing there: back to 2 **with the same bytes**; 5. every 64th version is
//! followed by a checkpoint.
//!
//! On disk after a kill: before 2 nothing. During 2 to 4, version n + 1 with our nonce or not, and perhaps a request still on
//! its way to exactly that key. After 4 the version. After 5 a checkpoint too; without it, readers start one earlier.
//!
//! Why nothing is applied twice: a change whose outcome is unknown is tried again under the same number and nonce only, until
//! that number is seen to be taken. By then a request still on its way can do nothing any more: put-if-absent fails for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use object_store::{Error, ObjectStore, PutMode, PutPayload};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::codec::{self, Content, Version};
use super::error::{CommitError, Damage, ManifestError};
use super::invariants;
use super::io::{ManifestIo, pause};
use super::open::{self, Loaded};
use super::state::{Change, ManifestState, Nonce};
use crate::fail_points::reached;
use crate::id::TenantId;
use crate::time::{Clock, UnixNanos};

/// Tries to have one version's outcome known, each above the store's own retries.
const PUT_TRIES: u32 = 8;

/// Repetitions of a change whose outcome is unknown.
const REPEATS: u32 = 5;

/// After so long without having seen the newest version, it is looked up by listing: versions may have been cleaned up, and
/// "there is no version n + 1" would then mean nothing. Clean-up waits for 7 days, so a process would have to sleep between
/// its look and its write for longer than that to do harm.
const STALE_AFTER: Duration = Duration::from_secs(3600);

/// How often a damaged manifest is looked at again.
const DAMAGE_CHECK_EVERY: Duration = Duration::from_secs(10);

/// A version that cannot be decoded so many times, each with tries of its own, is damaged.
const DAMAGED_READS: u32 = 3;

/// Attempts of unknown outcome that are remembered for their repetition.
const MAX_UNRESOLVED: usize = 64;

/// How a manifest is held.
#[derive(Clone, Debug)]
pub struct ManifestSettings {
    /// Versions per checkpoint. Fewer: faster starts, more and larger writes.
    pub checkpoint_every: u64,
    /// Lost races after which a commit is given up.
    pub max_tries: u32,
    /// Fixes nonces and waits, for tests. Two holders of one manifest must never share a seed.
    pub seed: Option<u64>,
    /// A planted bug for the tests' canary: take "exists" for a lost race without reading back.
    #[cfg(test)]
    pub(super) trust_already_exists: bool,
}

impl Default for ManifestSettings {
    fn default() -> Self {
        Self {
            checkpoint_every: 64,
            max_tries: 64,
            seed: None,
            #[cfg(test)]
            trust_already_exists: false,
        }
    }
}

/// One tenant's manifest.
pub struct ManifestStore {
    io: ManifestIo,
    clock: Arc<dyn Clock>,
    settings: ManifestSettings,
    current: ArcSwap<ManifestState>,
    damage: ArcSwapOption<Damage>,
    seen: Mutex<Seen>,
    /// Held by the one commit under way. Holds the attempts whose outcome is unknown.
    turn: tokio::sync::Mutex<Vec<Attempt>>,
    rng: Mutex<StdRng>,
}

/// When the newest version was last seen to be the newest, by both clocks: one stops while a machine sleeps, the other jumps.
#[derive(Clone, Copy, Debug)]
struct Seen {
    monotonic: Duration,
    wall: UnixNanos,
}

/// One version put, or about to be.
#[derive(Clone, Debug)]
struct Attempt {
    version: Version,
    bytes: Bytes,
    began: Seen,
}

/// Who got the place.
enum Winner {
    Ours,
    /// Boxed: a version is large, and most commits have no rival.
    Theirs(Option<Box<Version>>),
}

impl ManifestStore {
    /// Reads the newest version. Writes nothing; a tenant that was never written to is at version 0.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        tenant: TenantId,
        clock: Arc<dyn Clock>,
        settings: ManifestSettings,
    ) -> Result<Self, ManifestError> {
        Ok(Self::open_loaded(store, tenant, clock, settings).await?.0)
    }

    /// As [`ManifestStore::open`], and makes version 1 if there is none. **Must** return before the first block of a tenant
    /// is put: blocks without a manifest are taken for a lost manifest.
    pub async fn open_or_create(
        store: Arc<dyn ObjectStore>,
        tenant: TenantId,
        clock: Arc<dyn Clock>,
        settings: ManifestSettings,
    ) -> Result<Self, CommitError> {
        let (manifest, walked) = Self::open_loaded(store, tenant, clock, settings).await?;
        if manifest.current().version == 0 {
            manifest.create(&mut *manifest.turn.lock().await).await?;
        } else if walked >= manifest.settings.checkpoint_every {
            // Whoever should have written it was killed first.
            manifest.write_checkpoint(&manifest.current()).await;
        }
        Ok(manifest)
    }

    async fn open_loaded(
        store: Arc<dyn ObjectStore>,
        tenant: TenantId,
        clock: Arc<dyn Clock>,
        settings: ManifestSettings,
    ) -> Result<(Self, u64), ManifestError> {
        let seen = Seen { monotonic: clock.monotonic(), wall: clock.now() };
        let io = ManifestIo::new(store, tenant);
        let Loaded { state, damage, walked } = open::load(&io).await?;
        let rng = settings.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64);
        let manifest = Self {
            io,
            clock,
            settings,
            current: ArcSwap::from_pointee(state),
            damage: ArcSwapOption::empty(),
            seen: Mutex::new(seen),
            turn: tokio::sync::Mutex::default(),
            rng: Mutex::new(rng),
        };
        manifest.note_damage(damage);
        Ok((manifest, walked))
    }

    pub fn tenant(&self) -> &TenantId {
        &self.io.tenant
    }

    /// The newest version this process knows. Costs nothing.
    pub fn current(&self) -> Arc<ManifestState> {
        self.current.load_full()
    }

    /// Why [`ManifestStore::current`] may lack something and nothing can be committed. Answers from it are not complete.
    pub fn damage(&self) -> Option<Arc<Damage>> {
        self.damage.load_full()
    }

    /// Reads on to the newest version: one small request if there is nothing new. Never waits for a commit.
    ///
    /// On an error [`ManifestStore::current`] still is the last whole version known.
    pub async fn refresh(&self) -> Result<Arc<ManifestState>, ManifestError> {
        if let Some(damage) = self.damage() {
            if !self.older_than(*self.seen.lock(), DAMAGE_CHECK_EVERY) {
                return Err(Damage::clone(&damage).into());
            }
            return self.reload().await;
        }
        if self.is_stale() { self.reload().await } else { self.walk(None).await }
    }

    /// Commits `change`, which must still fit if others committed first.
    pub async fn commit(&self, change: Change) -> Result<Arc<ManifestState>, CommitError> {
        self.commit_with(|_| Some(change.clone())).await
    }

    /// As [`ManifestStore::commit`], and repeats the very same change some times while its outcome is unknown.
    pub async fn commit_until_known(&self, change: Change) -> Result<Arc<ManifestState>, CommitError> {
        let mut tries = 0;
        loop {
            match self.commit(change.clone()).await {
                Err(error) if error.is_unknown() && tries < REPEATS => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(200 << tries)).await;
                }
                known => return known,
            }
        }
    }

    /// Commits what `build` makes of the newest state; it is asked again whenever another commit came first. `None` gives up.
    ///
    /// The state returned holds the change; an empty change costs nothing and returns the newest state known.
    pub async fn commit_with(
        &self,
        mut build: impl FnMut(&ManifestState) -> Option<Change>,
    ) -> Result<Arc<ManifestState>, CommitError> {
        let mut unresolved = self.turn.lock().await;
        self.require_whole().await?;
        if self.current().version == 0 {
            self.create(&mut unresolved).await?;
        }
        for tries in 1..=self.settings.max_tries {
            let state = self.current();
            let change = build(&state).ok_or(CommitError::Abandoned)?;
            if change.is_empty() {
                return Ok(state);
            }
            let attempt = match self.attempt_before(&mut unresolved, &change) {
                Some(attempt) => attempt,
                None => {
                    invariants::check(&state, &change)?;
                    change.add.iter().try_for_each(invariants::check_entry)?;
                    change.add_packs.iter().try_for_each(invariants::check_pack)?;
                    self.attempt(&state, change)?
                }
            };
            let won = self.put(&mut unresolved, &attempt).await?;
            if let Some(committed) = won {
                drop(unresolved);
                if attempt.version.version % self.settings.checkpoint_every.max(1) == 0 {
                    self.write_checkpoint(&committed).await;
                }
                return Ok(committed);
            }
            let longest = pause(tries).as_millis() as u64;
            let wait = self.rng.lock().random_range(0..=longest);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        Err(CommitError::Contended { tries: self.settings.max_tries })
    }

    /// Version 1, an empty change: the proof that the tenant's manifest exists.
    async fn create(&self, unresolved: &mut Vec<Attempt>) -> Result<(), CommitError> {
        let attempt = self.attempt(&ManifestState::default(), Change::default())?;
        self.put(unresolved, &attempt).await.map(drop)
    }

    /// Sees to it that the newest version is known and the chain whole, else nothing may be written.
    async fn require_whole(&self) -> Result<(), CommitError> {
        if self.damage().is_some() {
            self.refresh().await?;
        } else if self.is_stale() {
            self.reload().await?;
        }
        Ok(())
    }

    fn attempt(&self, state: &ManifestState, change: Change) -> Result<Attempt, CommitError> {
        let version = Version {
            version: state.version.saturating_add(1),
            nonce: Nonce(self.rng.lock().random()),
            time: self.clock.now(),
            content: Content::Change { parent: state.nonce, change },
        };
        let bytes = codec::encode_version(self.tenant(), &version).map_err(CommitError::TooLarge)?;
        Ok(Attempt { version, bytes, began: self.now() })
    }

    /// The attempt of the same change whose outcome was never known, to be taken up where it was left.
    fn attempt_before(&self, unresolved: &mut Vec<Attempt>, change: &Change) -> Option<Attempt> {
        unresolved.retain(|attempt| !self.older_than(attempt.began, STALE_AFTER));
        let same = |attempt: &&Attempt| matches!(&attempt.version.content, Content::Change { change: c, .. } if c == change);
        unresolved.iter().find(same).cloned()
    }

    /// Puts the attempt and finds out who got its place: the state with it, or `None` if another's version is there, which
    /// is then applied. The attempt is in `unresolved` whenever this is left without knowing, even by being dropped.
    async fn put(
        &self,
        unresolved: &mut Vec<Attempt>,
        attempt: &Attempt,
    ) -> Result<Option<Arc<ManifestState>>, CommitError> {
        let nonce = attempt.version.nonce;
        if !unresolved.iter().any(|a| a.version.nonce == nonce) {
            if unresolved.len() == MAX_UNRESOLVED {
                unresolved.remove(0);
            }
            unresolved.push(attempt.clone());
        }
        let winner = self.contest(attempt).await?;
        unresolved.retain(|a| a.version.nonce != nonce);
        match winner {
            Winner::Ours => {
                let mut state = self.current();
                // Already there if a refresh of another task met the version first.
                if state.version < attempt.version.version {
                    open::follow(self.tenant(), Arc::make_mut(&mut state), &attempt.version).map_err(|d| self.damaged(d))?;
                    *self.seen.lock() = attempt.began;
                    self.publish(state);
                }
                reached("manifest-published");
                Ok(Some(self.current()))
            }
            Winner::Theirs(found) => {
                self.walk(found.map(|version| *version)).await?;
                Ok(None)
            }
        }
    }

    async fn contest(&self, attempt: &Attempt) -> Result<Winner, CommitError> {
        let number = attempt.version.version;
        let key = self.io.paths.version(number);
        let (mut tries, mut unreadable) = (0, 0);
        loop {
            reached("manifest-before-put");
            let payload = PutPayload::from_bytes(attempt.bytes.clone());
            let Err(error) = self.io.store.put_opts(&key, payload, PutMode::Create.into()).await else {
                reached("manifest-put");
                return Ok(Winner::Ours);
            };
            #[cfg(test)]
            if self.settings.trust_already_exists && matches!(error, Error::AlreadyExists { .. }) {
                return Ok(Winner::Theirs(None));
            }
            // "Exists" may be our own earlier request whose reply was lost, or S3's 409 for nothing at all; any other error
            // may hide a success. Only what is there counts.
            match self.io.read_version(number).await {
                Ok(Some(found)) if found.nonce == attempt.version.nonce => return Ok(Winner::Ours),
                Ok(Some(found)) => return Ok(Winner::Theirs(Some(Box::new(found)))),
                Ok(None) => unreadable = 0,
                Err(ManifestError::Damaged(damage)) => {
                    unreadable += 1;
                    if unreadable == DAMAGED_READS {
                        // Whose it is cannot be known, but what is wrong can: the next commit says so, and reads are flagged.
                        self.note_damage(Some(damage));
                        return Err(CommitError::Unknown { version: number, source: Arc::new(error) });
                    }
                }
                Err(read) => {
                    tracing::debug!(tenant = %self.tenant(), version = number, error = %read, "outcome not readable")
                }
            }
            tries += 1;
            if tries == PUT_TRIES || is_lasting(&error) {
                return Err(CommitError::Unknown { version: number, source: Arc::new(error) });
            }
            tokio::time::sleep(pause(tries)).await;
        }
    }

    /// Reads on from the newest known version, beginning with `first` if that is the next.
    async fn walk(&self, first: Option<Version>) -> Result<Arc<ManifestState>, ManifestError> {
        let mut state = self.current();
        let mut first = first.filter(|version| version.version == state.version.saturating_add(1));
        loop {
            let seen = self.now();
            let next = match first.take() {
                Some(next) => Ok(Some(next)),
                None => self.io.read_version(state.version.saturating_add(1)).await,
            };
            let failed = match next {
                Ok(Some(next)) => match open::follow(self.tenant(), Arc::make_mut(&mut state), &next) {
                    Ok(()) => continue,
                    Err(damage) => ManifestError::Damaged(damage),
                },
                Ok(None) => {
                    *self.seen.lock() = seen;
                    self.publish(state);
                    return Ok(self.current());
                }
                Err(error) => error,
            };
            self.publish(state);
            if let ManifestError::Damaged(damage) = &failed {
                self.note_damage(Some(damage.clone()));
            }
            return Err(failed);
        }
    }

    /// Starts from the listing again.
    async fn reload(&self) -> Result<Arc<ManifestState>, ManifestError> {
        // Asked before the load: what another task learns meanwhile may be newer than what the load saw.
        let (seen, known) = (self.now(), self.current().version);
        let loaded = match open::load(&self.io).await {
            Ok(loaded) => loaded,
            Err(error) => {
                if let ManifestError::Damaged(damage) = &error {
                    self.note_damage(Some(damage.clone()));
                }
                return Err(error);
            }
        };
        let mut damage = loaded.damage;
        if damage.is_none() && loaded.state.version < known {
            // Versions this process has read are gone: going on would write other ones in their place.
            let tenant = self.tenant().clone();
            damage = Some(Damage::Missing { tenant, version: loaded.state.version.saturating_add(1), newest: known });
        }
        *self.seen.lock() = seen;
        self.publish(Arc::new(loaded.state));
        self.note_damage(damage.clone());
        damage.map_or_else(|| Ok(self.current()), |damage| Err(damage.into()))
    }

    /// Makes `state` the current one unless a newer one is. The chain is one, so the higher number holds all of the lower.
    fn publish(&self, state: Arc<ManifestState>) {
        self.current.rcu(|current| if current.version < state.version { Arc::clone(&state) } else { Arc::clone(current) });
    }

    /// Saves later starts from reading every version. Best effort: the versions say it all.
    async fn write_checkpoint(&self, state: &ManifestState) {
        let key = self.io.paths.checkpoint(state.version);
        let failed = match codec::encode_checkpoint(self.tenant(), self.clock.now(), state) {
            Ok(bytes) => match self.io.store.put_opts(&key, PutPayload::from_bytes(bytes), PutMode::Create.into()).await {
                Ok(_) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => return reached("checkpoint-put"),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        tracing::warn!(tenant = %self.tenant(), version = state.version, error = failed, "checkpoint not written");
    }

    fn now(&self) -> Seen {
        Seen { monotonic: self.clock.monotonic(), wall: self.clock.now() }
    }

    fn older_than(&self, then: Seen, age: Duration) -> bool {
        let now = self.now();
        let wall = Duration::from_nanos(now.wall.0.abs_diff(then.wall.0));
        now.monotonic.saturating_sub(then.monotonic) >= age || wall >= age
    }

    fn is_stale(&self) -> bool {
        self.older_than(*self.seen.lock(), STALE_AFTER)
    }

    fn note_damage(&self, damage: Option<Damage>) {
        if let Some(damage) = &damage
            && self.damage().as_deref() != Some(damage)
        {
            tracing::error!(tenant = %self.tenant(), error = %damage, "the manifest is damaged: reads are flagged, writes refused");
        }
        self.damage.store(damage.map(Arc::new));
    }

    fn damaged(&self, damage: Damage) -> ManifestError {
        self.note_damage(Some(damage.clone()));
        damage.into()
    }
}

/// Whether an error will be the same at the next try.
fn is_lasting(error: &Error) -> bool {
    matches!(
        error,
        Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::InvalidPath { .. }
    )
}

impl fmt::Debug for ManifestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.current();
        f.debug_struct("ManifestStore")
            .field("tenant", self.tenant())
            .field("version", &state.version)
            .field("blocks", &state.blocks.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
