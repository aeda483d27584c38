//! How much memory this process may plan with, and who gets what.
//!
//! Owns the cgroup limit and the division into shares. Does not own the shares themselves (`common::budget`).

use std::fs;

use super::units::ByteSize;
use super::{ConfigError, MemoryConfig};

/// The budget in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryShares {
    pub total: ByteSize,
    pub ingest: ByteSize,
    pub query: ByteSize,
    pub per_query: ByteSize,
    pub compaction: ByteSize,
}

/// Unset shares are 1024ths of the total; what is left over (64 of 1024) is for the process itself.
const INGEST: u64 = 320;
const QUERY: u64 = 384;
const PER_QUERY: u64 = 256;
const COMPACTION: u64 = 256;

/// Below this the process cannot hold one request of the largest size next to one query.
const SMALLEST_TOTAL: ByteSize = ByteSize::mib(128);

impl MemoryConfig {
    /// Divides the budget; `cgroup_limit` as [`cgroup_limit`] found it.
    pub fn shares(&self, cgroup_limit: Option<u64>) -> Result<MemoryShares, ConfigError> {
        let automatic = ByteSize(cgroup_limit.map_or(u64::MAX, |limit| limit / 2).min(1 << 30)).max(SMALLEST_TOTAL);
        let total = self.total.0.unwrap_or(automatic);
        let part = |set: Option<ByteSize>, of_1024: u64| set.unwrap_or(ByteSize(total.0 / 1024 * of_1024));
        let shares = MemoryShares {
            total,
            ingest: part(self.ingest.0, INGEST),
            query: part(self.query.0, QUERY),
            per_query: part(self.per_query.0, PER_QUERY),
            compaction: part(self.compaction.0, COMPACTION),
        };
        if total < SMALLEST_TOTAL {
            return Err(ConfigError::invalid(
                "memory.total",
                format!("{total} is less than the minimum of {SMALLEST_TOTAL}"),
            ));
        }
        let planned =
            [shares.ingest, shares.query, shares.compaction].iter().try_fold(0u64, |sum, share| sum.checked_add(share.0));
        if planned.is_none_or(|sum| sum > total.0) {
            let text = format!(
                "ingest {}, query {} and compaction {} together exceed the total of {total}",
                shares.ingest, shares.query, shares.compaction
            );
            return Err(ConfigError::invalid("memory.total", text));
        }
        if shares.per_query > shares.query {
            let text =
                format!("{} is more than all queries together have (memory.query {})", shares.per_query, shares.query);
            return Err(ConfigError::invalid("memory.per_query", text));
        }
        Ok(shares)
    }
}

/// The memory limit the container gives this process: cgroup v2, else v1, else none.
pub fn cgroup_limit() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let v2 = own.lines().find_map(|line| line.strip_prefix("0::")).map(|path| format!("/sys/fs/cgroup{path}/memory.max"));
    let v1 = own.lines().find_map(|line| line.split_once(":memory:"));
    let v1 = v1.map(|(_, path)| format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"));
    let candidates = [
        v2.as_deref(),
        Some("/sys/fs/cgroup/memory.max"),
        v1.as_deref(),
        Some("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ];
    let limits = candidates
        .into_iter()
        .flatten()
        .filter_map(|path| fs::read_to_string(path).ok())
        .filter_map(|text| parse_limit(&text));
    limits.min()
}

/// `max` (v2) and values near 2^63 (v1) mean that there is no limit.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Auto, Config};

    #[test]
    fn shares_follow_the_total() {
        let memory = Config::default().memory;
        let all = memory.shares(None).unwrap();
        assert_eq!((all.total, all.ingest, all.query), (ByteSize::gib(1), ByteSize::mib(320), ByteSize::mib(384)));
        assert_eq!((all.per_query, all.compaction), (ByteSize::mib(256), ByteSize::mib(256)));
        let small = memory.shares(Some(1 << 30)).unwrap();
        assert_eq!((small.total, small.ingest), (ByteSize::mib(512), ByteSize::mib(160)));
        assert_eq!(memory.shares(Some(64 << 30)).unwrap(), all);

        let greedy = MemoryConfig { ingest: Auto(Some(ByteSize::mib(900))), ..memory };
        assert!(greedy.shares(None).unwrap_err().to_string().contains("together exceed the total of 1GiB"));
        assert!(MemoryConfig { per_query: Auto(Some(ByteSize::mib(400))), ..memory }.shares(None).is_err());
        assert!(MemoryConfig { total: Auto(Some(ByteSize::mib(1))), ..memory }.shares(None).is_err());
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
        assert_eq!(parse_limit("536870912\n"), Some(1 << 29));
    }
}
