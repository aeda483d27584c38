//! What a run came to: counts, latencies, the server's CPU and memory; for people and for programs.
//!
//! Owns the histogram, the reading of /proc and the table. Does not own sending or checking.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::LoadgenError;

/// Latencies in buckets 3 % wide: percentiles without keeping values.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    max: Duration,
}

const BUCKETS_PER_OCTAVE: f64 = 24.0;

impl Histogram {
    pub(super) fn new() -> Self {
        // 36 octaves above a microsecond: 19 hours.
        Self { counts: vec![0; 36 * BUCKETS_PER_OCTAVE as usize], max: Duration::ZERO }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let micros = latency.as_secs_f64() * 1e6;
        let bucket = (micros.max(1.0).log2() * BUCKETS_PER_OCTAVE) as usize;
        let last = self.counts.len() - 1;
        self.counts[bucket.min(last)] += 1;
        self.max = self.max.max(latency);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.max = self.max.max(other.max);
    }

    fn percentile_ms(&self, percentile: f64) -> f64 {
        let total: u64 = self.counts.iter().sum();
        let rank = (total as f64 * percentile / 100.0).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= rank {
                let upper = ((bucket + 1) as f64 / BUCKETS_PER_OCTAVE).exp2() / 1e3;
                return upper.min(self.max.as_secs_f64() * 1e3);
            }
        }
        0.0
    }

    pub(super) fn latency(&self) -> Latency {
        Latency { p50: self.percentile_ms(50.0), p99: self.percentile_ms(99.0), max: self.max.as_secs_f64() * 1e3 }
    }
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// CPU and memory of a process, from /proc.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProcessUse {
    pub cpu_seconds: f64,
    pub peak_bytes: u64,
}

/// The unit of utime and stime in /proc/PID/stat; the kernel's ABI fixes it at 100 on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

impl ProcessUse {
    pub(super) fn read(pid: u32) -> Result<Self, LoadgenError> {
        let failed = |reason: String| LoadgenError::Process { pid, reason };
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).map_err(|e| failed(e.to_string()));
        let (stat, status) = (read("stat")?, read("status")?);
        Self::parse(&stat, &status).ok_or_else(|| failed("unexpected content in /proc".into()))
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name in parentheses may hold spaces: count fields from its end.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = peak.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(Self { cpu_seconds: ticks / TICKS_PER_SECOND, peak_bytes: kib * 1024 })
    }
}

/// The server while the run went on, and until everything was in blocks if that was awaited.
#[derive(Clone, Debug, Serialize)]
pub struct ServerUse {
    pub cpu_seconds: f64,
    pub spans_per_cpu_second: f64,
    /// Since the server started.
    pub peak_memory_bytes: u64,
}

/// What reading back found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    pub traces: u64,
    pub whole_traces: u64,
    pub missing_spans: u64,
    /// Spans returned that were not sent, or returned more than once.
    pub surplus_spans: u64,
    pub seconds: f64,
    pub latency_ms: Latency,
    /// The first trace that is not as sent.
    pub example: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    pub spans: u64,
    pub traces: u64,
    pub requests: u64,
    pub bytes: u64,
    pub bytes_on_the_wire: u64,
    pub seconds: f64,
    pub spans_per_second: f64,
    pub ack_ms: Latency,
    pub retries: u64,
    /// Named as refused in partial_success.
    pub refused_spans: u64,
    /// In requests that were rejected for good, or given up.
    pub lost_spans: u64,
    /// The first complaint of the server or the connection.
    pub complaint: Option<String>,
    pub flush_wait_seconds: Option<f64>,
    pub server: Option<ServerUse>,
    pub verified: Option<Verified>,
}

impl Summary {
    /// Whether everything was taken, and found where that was asked: the exit code.
    pub fn is_clean(&self) -> bool {
        let whole = self.verified.as_ref().is_none_or(|v| v.whole_traces == v.traces && v.surplus_spans == 0);
        self.lost_spans == 0 && self.refused_spans == 0 && whole
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "{name:<22}{value}");
        row("spans", format!("{} in {} traces", grouped(self.spans), grouped(self.traces)))?;
        row("requests", format!("{}, {} retries", grouped(self.requests), grouped(self.retries)))?;
        let per_span = self.bytes as f64 / self.spans.max(1) as f64;
        row(
            "bytes",
            format!("{} ({per_span:.0} per span), {} sent", megabytes(self.bytes), megabytes(self.bytes_on_the_wire)),
        )?;
        row("time", format!("{:.2} s, {} spans/s", self.seconds, grouped(self.spans_per_second as u64)))?;
        row("ack latency", latency(&self.ack_ms))?;
        if self.refused_spans + self.lost_spans > 0 {
            row("not stored", format!("{} refused, {} lost", grouped(self.refused_spans), grouped(self.lost_spans)))?;
        }
        if let Some(complaint) = &self.complaint {
            row("first complaint", complaint.clone())?;
        }
        if let Some(seconds) = self.flush_wait_seconds {
            row("until in blocks", format!("{seconds:.2} s more"))?;
        }
        if let Some(server) = &self.server {
            let rate = grouped(server.spans_per_cpu_second as u64);
            row("server CPU", format!("{:.2} s, {rate} spans per CPU-second", server.cpu_seconds))?;
            row("server peak memory", megabytes(server.peak_memory_bytes))?;
        }
        if let Some(verified) = &self.verified {
            let text = format!("{} of {} traces whole", grouped(verified.whole_traces), grouped(verified.traces));
            row("read back", format!("{text}, in {:.2} s", verified.seconds))?;
            row("trace by id", latency(&verified.latency_ms))?;
            if verified.missing_spans + verified.surplus_spans > 0 {
                let (missing, surplus) = (grouped(verified.missing_spans), grouped(verified.surplus_spans));
                row("not as sent", format!("{missing} spans missing, {surplus} too many"))?;
            }
            if let Some(example) = &verified.example {
                row("for example", example.clone())?;
            }
        }
        Ok(())
    }
}

fn latency(latency: &Latency) -> String {
    format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", latency.p50, latency.p99, latency.max)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// 1,234,567
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_three_percent() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|n| histogram.record(Duration::from_micros(n * 100)));
        let latency = histogram.latency();
        assert!((50.0..52.0).contains(&latency.p50), "{latency:?}");
        assert!((99.0..=100.0).contains(&latency.p99) && latency.max == 100.0, "{latency:?}");
        assert_eq!(Histogram::new().latency().p99, 0.0);
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn proc_is_read() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4 1 0 0 0 150 50 0 0 20 0 3 0 1 1 1";
        let used = ProcessUse::parse(stat, "Name:\tx\nVmHWM:\t  2048 kB\n").unwrap();
        assert_eq!((used.cpu_seconds, used.peak_bytes), (2.0, 2 << 20));
        assert!(ProcessUse::parse("", "").is_none());
    }
}
