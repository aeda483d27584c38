//! The only place that builds or reads a key.
//!
//! ```text
//! tenants/<enc>/tenant.json                    marker: the tenant exists
//! tenants/<enc>/blocks/<block id>.parquet      spans
//! tenants/<enc>/blocks/<block id>.filter       trace-id filter of that block
//! tenants/<enc>/filters/<pack id>.filters      trace-id filters of many blocks
//! tenants/<enc>/manifest/<version, 20 digits>.json
//! tenants/<enc>/checkpoints/<version, 20 digits>.json
//! tenants/<enc>/deletions/<nanoseconds since 1970, 20 digits>-<trace id>.json
//! sampling/throughput/<nanoseconds since 1970, 20 digits>-<uuid>.json
//! sampling/probabilities/<nanoseconds since 1970, 20 digits>.json
//! probe/<32 hex digits>                        written and deleted at start-up
//! ```
//!
//! `<enc>` is the tenant's name in a reversible lower-case encoding: `a-z`, `0-9` and `-` stay, every other byte becomes `_`
//! and two lower-case hex digits. So two tenants never share a directory, not even where names ignore case, and no name
//! (`..`, `a.parquet`) means anything to a file system.

use std::fmt::Write as _;

use object_store::path::Path;
use uuid::Uuid;

use crate::id::{BlockId, PackId, TenantId, TraceId};
use crate::time::UnixNanos;

const TENANTS: &str = "tenants";
const PROBE: &str = "probe";
const SAMPLING: &str = "sampling";
const THROUGHPUT: &str = "throughput";
const PROBABILITIES: &str = "probabilities";
const MARKER: &str = "tenant.json";
const BLOCKS: &str = "blocks";
const FILTERS: &str = "filters";
const PACK_SUFFIX: &str = ".filters";
const MANIFEST: &str = "manifest";
const CHECKPOINTS: &str = "checkpoints";
const DELETIONS: &str = "deletions";

/// The two objects of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockObject {
    Spans,
    Filter,
}

impl BlockObject {
    const fn extension(self) -> &'static str {
        match self {
            Self::Spans => "parquet",
            Self::Filter => "filter",
        }
    }
}

/// A tenant's name as a directory.
pub fn encode_tenant(tenant: &TenantId) -> String {
    let mut out = String::with_capacity(tenant.as_str().len());
    for byte in tenant.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => out.push(byte as char),
            // Writing to a string cannot fail.
            _ => drop(write!(out, "_{byte:02x}")),
        }
    }
    out
}

/// The tenant a directory belongs to, or `None` for a directory that is not one of ours.
pub fn decode_tenant(directory: &str) -> Option<TenantId> {
    let mut name = Vec::with_capacity(directory.len());
    let mut rest = directory.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'_' {
            let (hex, tail) = rest.split_at_checked(2)?;
            rest = tail;
            name.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        } else {
            name.push(byte);
        }
    }
    let tenant: TenantId = String::from_utf8(name).ok()?.parse().ok()?;
    // One name, one directory: `_61` for `a` is not what we write.
    (encode_tenant(&tenant) == directory).then_some(tenant)
}

/// The prefix whose children are the tenants.
pub fn tenants_prefix() -> Path {
    Path::from(TENANTS)
}

/// The tenant a child of [`tenants_prefix`] belongs to.
pub fn tenant_of(prefix: &Path) -> Option<TenantId> {
    let mut parts = prefix.parts();
    if parts.next()?.as_ref() != TENANTS {
        return None;
    }
    decode_tenant(parts.next()?.as_ref())
}

/// A key of the start-up probe. `number` is random: no two probes share a key.
pub fn probe(number: u128) -> Path {
    Path::from_iter([PROBE.to_owned(), format!("{number:032x}")])
}

/// Everything under it counts sampled traces.
pub fn sampling_throughputs() -> Path {
    Path::from_iter([SAMPLING, THROUGHPUT])
}

/// Sampled traces one process counted in the period that starts at `period`. `id` is unique to the object.
pub fn sampling_throughput(period: UnixNanos, id: Uuid) -> Path {
    sampling_throughputs().join(format!("{:020}-{id}.json", period.0))
}

/// The period of a key under [`sampling_throughputs`].
pub fn sampling_throughput_of(key: &Path) -> Option<UnixNanos> {
    let (period, id) = key.filename()?.strip_suffix(".json")?.split_once('-')?;
    let _: Uuid = id.parse().ok()?;
    number(period).map(UnixNanos)
}

/// Everything under it says how to sample.
pub fn sampling_probabilities_prefix() -> Path {
    Path::from_iter([SAMPLING, PROBABILITIES])
}

/// How to sample from the period that starts at `period`.
pub fn sampling_probabilities(period: UnixNanos) -> Path {
    sampling_probabilities_prefix().join(format!("{:020}.json", period.0))
}

/// The period of a key under [`sampling_probabilities_prefix`].
pub fn sampling_probabilities_of(key: &Path) -> Option<UnixNanos> {
    version_of(key).map(UnixNanos)
}

/// The keys of one tenant.
#[derive(Clone, Debug)]
pub struct TenantPaths {
    root: Path,
}

impl TenantPaths {
    pub fn new(tenant: &TenantId) -> Self {
        Self { root: Path::from_iter([TENANTS, &encode_tenant(tenant)]) }
    }

    /// Everything of the tenant lies under it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn marker(&self) -> Path {
        self.root.clone().join(MARKER)
    }

    pub fn blocks(&self) -> Path {
        self.root.clone().join(BLOCKS)
    }

    pub fn block(&self, id: BlockId, object: BlockObject) -> Path {
        self.blocks().join(format!("{id}.{}", object.extension()))
    }

    pub fn filter_packs(&self) -> Path {
        self.root.clone().join(FILTERS)
    }

    pub fn filter_pack(&self, id: PackId) -> Path {
        self.filter_packs().join(format!("{id}{PACK_SUFFIX}"))
    }

    pub fn versions(&self) -> Path {
        self.root.clone().join(MANIFEST)
    }

    pub fn version(&self, version: u64) -> Path {
        self.versions().join(format!("{version:020}.json"))
    }

    pub fn checkpoints(&self) -> Path {
        self.root.clone().join(CHECKPOINTS)
    }

    pub fn checkpoint(&self, version: u64) -> Path {
        self.checkpoints().join(format!("{version:020}.json"))
    }

    pub fn deletions(&self) -> Path {
        self.root.clone().join(DELETIONS)
    }

    /// The record of a deletion.
    pub fn deletion(&self, time: UnixNanos, trace_id: TraceId) -> Path {
        self.deletions().join(format!("{:020}-{trace_id}.json", time.0))
    }
}

/// The block an object under [`TenantPaths::blocks`] belongs to.
pub fn block_of(key: &Path) -> Option<(BlockId, BlockObject)> {
    let (id, extension) = key.filename()?.rsplit_once('.')?;
    let object = [BlockObject::Spans, BlockObject::Filter].into_iter().find(|o| o.extension() == extension)?;
    Some((id.parse().ok()?, object))
}

/// The pack that an object under [`TenantPaths::filter_packs`] is.
pub fn pack_of(key: &Path) -> Option<PackId> {
    key.filename()?.strip_suffix(PACK_SUFFIX)?.parse().ok()
}

/// The number of a key under [`TenantPaths::versions`] or [`TenantPaths::checkpoints`].
pub fn version_of(key: &Path) -> Option<u64> {
    number(key.filename()?.strip_suffix(".json")?)
}

/// Time and trace of a key under [`TenantPaths::deletions`].
pub fn deletion_of(key: &Path) -> Option<(UnixNanos, TraceId)> {
    let (time, id) = key.filename()?.strip_suffix(".json")?.split_once('-')?;
    let is_ours = id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    Some((UnixNanos(number(time)?), id.parse().ok().filter(|_| is_ours)?))
}

/// A number as keys have it.
fn number(digits: &str) -> Option<u64> {
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    #[test]
    fn keys_as_documented() {
        let paths = TenantPaths::new(&tenant("Team.a"));
        let id = BlockId::from_bytes([7; 16]);
        assert_eq!(paths.marker().as_ref(), "tenants/_54eam_2ea/tenant.json");
        assert_eq!(
            paths.block(id, BlockObject::Spans).as_ref(),
            "tenants/_54eam_2ea/blocks/07070707-0707-0707-0707-070707070707.parquet"
        );
        let pack = paths.filter_pack(PackId::from_bytes([7; 16]));
        assert_eq!(pack.as_ref(), "tenants/_54eam_2ea/filters/07070707-0707-0707-0707-070707070707.filters");
        assert_eq!(pack_of(&pack), Some(PackId::from_bytes([7; 16])));
        assert_eq!((pack_of(&paths.block(id, BlockObject::Filter)), block_of(&pack)), (None, None));
        assert_eq!(paths.version(12).as_ref(), "tenants/_54eam_2ea/manifest/00000000000000000012.json");
        assert_eq!(block_of(&paths.block(id, BlockObject::Filter)), Some((id, BlockObject::Filter)));
        assert_eq!(version_of(&paths.checkpoint(u64::MAX)), Some(u64::MAX));
        assert_eq!(version_of(&Path::from("tenants/a/manifest/1.json")), None);
        let deletion = paths.deletion(UnixNanos(1_700_000_000_000_000_000), TraceId([0xab; 16]));
        let name = "01700000000000000000-abababababababababababababababab.json";
        assert_eq!(deletion.as_ref(), format!("tenants/_54eam_2ea/deletions/{name}"));
        assert_eq!(deletion_of(&deletion), Some((UnixNanos(1_700_000_000_000_000_000), TraceId([0xab; 16]))));
        let bad =
            ["1-ab.json", "01700000000000000000-AB.json", "99999999999999999999-abababababababababababababababab.json"];
        assert!(bad.iter().all(|name| deletion_of(&paths.deletions().join(*name)).is_none()));
        assert_eq!(tenant_of(paths.root()), Some(tenant("Team.a")));
        let period = UnixNanos(60_000_000_000);
        let counts = sampling_throughput(period, Uuid::from_bytes([7; 16]));
        let id = "07070707-0707-0707-0707-070707070707";
        assert_eq!(counts.as_ref(), format!("sampling/throughput/00000000060000000000-{id}.json"));
        let told = sampling_probabilities(period);
        assert_eq!(told.as_ref(), "sampling/probabilities/00000000060000000000.json");
        assert_eq!((sampling_throughput_of(&counts), sampling_throughput_of(&told)), (Some(period), None));
        assert_eq!((sampling_probabilities_of(&told), sampling_probabilities_of(&counts)), (Some(period), None));
    }

    #[test]
    fn foreign_directories_are_no_tenants() {
        for bad in ["", "A", "_", "_4", "_zz", "_61", "a_4A", "_00", "_+1", "a b"] {
            assert_eq!(decode_tenant(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn tenants_survive_the_encoding(name in "[a-zA-Z0-9!\\-_.*'()]{1,150}") {
            prop_assume!(name != "." && name != "..");
            let encoded = encode_tenant(&tenant(&name));
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_'));
            prop_assert_eq!(decode_tenant(&encoded), Some(tenant(&name)));
            // The key is the text itself: object_store escapes nothing in it.
            let key = Path::from(encoded.as_str());
            prop_assert_eq!(key.as_ref(), encoded.as_str());
        }

        #[test]
        fn names_that_differ_in_case_differ_on_disk(a in "[aAbB_.]{1,6}", b in "[aAbB_.]{1,6}") {
            prop_assume!(a != b && a != "." && a != ".." && b != "." && b != "..");
            let (a, b) = (encode_tenant(&tenant(&a)), encode_tenant(&tenant(&b)));
            prop_assert_ne!(a.to_lowercase(), b.to_lowercase());
        }
    }
}
