//! Packets that the kernel dropped because its buffer for a port was full: nothing but its own table of sockets tells of them.
//!
//! Owns finding a socket in that table, counting what was lost, and telling an operator what to do. Systems other than Linux have
//! no such table: there nothing is counted.

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::pipeline::Ingest;
use crate::receive::metrics::Protocol;
use crate::receive::receiver::Receiver;

/// How often the table is read.
const EVERY: Duration = Duration::from_secs(5);
/// A port that keeps losing packets says so this often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What a socket lost, as the kernel counts it.
#[derive(Debug)]
struct Drops {
    /// `None` where there is no telling.
    inode: Option<u64>,
    table: &'static str,
    /// The kernel's count, which begins again after 32 bits.
    seen: u32,
}

impl Drops {
    fn of(socket: &UdpSocket) -> Self {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok();
        let is_v6 = socket.local_addr().is_ok_and(|address| address.is_ipv6());
        Self {
            inode: link.as_deref().and_then(|link| inode_of(link.to_str()?)),
            table: if is_v6 { "/proc/self/net/udp6" } else { "/proc/self/net/udp" },
            seen: 0,
        }
    }

    /// Packets dropped since this was last asked.
    async fn more(&mut self) -> u64 {
        let Some(inode) = self.inode else { return 0 };
        let Ok(table) = tokio::fs::read_to_string(self.table).await else { return 0 };
        let Some(all) = dropped(&table, inode) else { return 0 };
        u64::from(all.wrapping_sub(std::mem::replace(&mut self.seen, all)))
    }
}

/// Of `socket:[4711]`.
fn inode_of(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The last column of the line of a socket.
fn dropped(table: &str, inode: u64) -> Option<u32> {
    const INODE: usize = 9;
    const DROPS: usize = 12;
    let mut sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = sockets.find(|columns| columns.get(INODE).and_then(|column| column.parse().ok()) == Some(inode))?;
    ours.get(DROPS)?.parse().ok()
}

/// Counts what a port loses before it is read.
pub(super) struct Losses<I> {
    receiver: Receiver<I>,
    protocol: Protocol,
    drops: Drops,
    untold: u64,
    told: Option<Instant>,
}

impl<I: Ingest> Losses<I> {
    pub(super) fn of(receiver: Receiver<I>, protocol: Protocol, socket: &UdpSocket) -> Self {
        // There from the start, so that a rule on it sees a zero.
        receiver.count_dropped(protocol, 0);
        Self { receiver, protocol, drops: Drops::of(socket), untold: 0, told: None }
    }

    /// Counts for as long as it runs.
    pub(super) async fn watch(&mut self) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.count().await;
        }
    }

    /// Counts what was lost since the last time.
    pub(super) async fn count(&mut self) {
        let more = self.drops.more().await;
        self.receiver.count_dropped(self.protocol, more);
        self.untold += more;
        if self.untold > 0 && self.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            let packets = std::mem::take(&mut self.untold);
            self.told = Some(Instant::now());
            tracing::warn!(
                protocol = ?self.protocol,
                packets,
                "the kernel dropped packets before they were read, its buffer was full: raise net.core.rmem_max to 4 MiB or more \
                 and start again, give this process more CPU, or let clients send by HTTP or gRPC, which wait"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_in_the_kernels_table() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            10465: 0100007F:D102 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 39 2 000000003ce266e5 7\n\
            11886: 0100007F:168F 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 3905025 2 00000000c0c8f966 6360\n";
        assert_eq!((dropped(table, 3_905_025), dropped(table, 39), dropped(table, 2)), (Some(6360), Some(7), None));
        assert_eq!((dropped("", 1), dropped("sl inode drops\n1 2\n", 2)), (None, None));
        assert_eq!((inode_of("socket:[4711]"), inode_of("pipe:[4711]"), inode_of("socket:[x]")), (Some(4711), None, None));
    }
}
