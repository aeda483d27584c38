//! The manifest: per tenant, the truth about which blocks exist, how far each WAL is covered and which traces are
//! deleted.
//!
//! Owns the chain of versions: what a commit may change ([`invariants`]), what its bytes are ([`codec`]), how it becomes the
//! one next version among racing writers ([`ManifestStore`]), and how a lost chain is made again from the blocks
//! ([`mod@rebuild`]). Does not own the blocks' objects: it never reads, writes or deletes one.
//!
#![doc = include_str!("FORMAT.md")]

pub mod codec;
mod directory;
mod error;
pub mod invariants;
mod io;
mod open;
mod packs;
pub mod rebuild;
mod state;
mod store;
mod tombstones;

#[cfg(test)]
mod races;

pub use directory::{Manifests, WriteManifestError};
pub use error::{CommitError, Damage, ManifestError};
pub use invariants::Violation;
pub use packs::{FilterPack, MAX_PACK_BYTES, MAX_PACKED_FILTERS, PackedFilter};
pub use rebuild::{RebuildError, Rebuilt, rebuild, write_rebuilt};
pub use state::{BlockEntry, Change, ManifestState, Nonce, WalRange, Window};
pub use store::{ManifestSettings, ManifestStore};
pub use tombstones::{MAX_TOMBSTONES, Tombstone, Tombstones, unbury};
