//! Which epochs of this writer the manifests know: a start must use a higher one.
//!
//! Owns the question to the manifests of all tenants. Does not own the epoch, which the WAL counts on by itself. The two differ
//! when a data directory was restored from a backup: the WAL would use positions again that a watermark covers already, and
//! replay would skip spans that were acknowledged under them.

use futures::{StreamExt, TryStreamExt, stream};
use spanhouse_common::id::{TenantId, WriterId};
use spanhouse_common::manifest::{ManifestError, Manifests};

/// Manifests opened at a time. The compactor opens each right after the start anyway; here they only come earlier.
const AT_A_TIME: usize = 32;

/// A manifest that is not whole may hide watermarks. So many more starts than any backup is old are left room for.
const ROOM_FOR_THE_UNSEEN: u64 = 1 << 20;

/// The highest epoch that may be taken, by any tenant's manifest. 0 if none knows the writer.
///
/// A damaged manifest does not fail it: that tenant alone must be repaired.
pub(crate) async fn highest(manifests: &Manifests, writer: WriterId) -> Result<u64, (TenantId, ManifestError)> {
    let epochs = stream::iter(manifests.tenants().known()).map(|tenant| async move {
        match manifests.for_reading(&tenant).await {
            Ok(None) => Ok((0, true)),
            Ok(Some(manifest)) => Ok((manifest.current().watermark(writer).epoch, manifest.damage().is_none())),
            Err(ManifestError::Damaged(damage)) => {
                tracing::error!(tenant = %tenant, error = %damage, "the manifest must be repaired");
                Ok((0, false))
            }
            Err(error) => Err((tenant, error)),
        }
    });
    let (highest, all_whole) = epochs
        .buffer_unordered(AT_A_TIME)
        .try_fold((0, true), |(highest, all), (epoch, whole)| async move { Ok((epoch.max(highest), whole && all)) })
        .await?;
    Ok(if all_whole { highest } else { highest.saturating_add(ROOM_FOR_THE_UNSEEN) })
}
