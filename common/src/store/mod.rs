//! The object store: opening it by URL, building keys, counting and timing operations, injecting faults.
//!
//! Owns the stack of wrappers around [`object_store::ObjectStore`], one concern each, and the layout of keys. Does not own
//! what the objects hold: blocks belong to [`crate::block`], versions to [`crate::manifest`].
//!
//! Only put-if-absent is asked of a store, the one conditional write all of them have, the local file system too.

#[cfg(any(test, feature = "test-util"))]
pub mod counting;
#[cfg(any(test, feature = "test-util"))]
pub mod faults;
pub mod instrument;
pub mod open;
pub mod paths;
pub mod probe;
pub mod put;
pub mod tenants;

pub use open::{OpenError, OpenOptions, open};
pub use paths::{BlockObject, TenantPaths};
pub use probe::{ProbeError, probe};
pub use put::put_new;
pub use tenants::{TenantRegistry, TenantsError};
