//! From call trees to request bodies: traces happen on a virtual clock, spans leave when they end, each sender exports its own.
//!
//! Owns ids, times, outcomes and batching. Does not own sending or the wall clock.
//!
//! A span is encoded once into the bucket of the 20 ms in which it ends, copied to its sender's buffer when the clock passes
//! that bucket, and copied into a body when the batch is full. Nothing is allocated per span.

use std::collections::BTreeMap;

use spanhouse_common::varint::{put_varint, varint_len};

use super::flows::{Mode, Node, Shop};
use super::rng::{Ids, Rng};
use super::shop::{SCOPES, SERVICES, encode_resource, encode_scope};
use super::template::{Links, Template};
use super::wire::put_bytes;

/// Granularity of the order in which spans leave.
pub(super) const TICK_NS: u64 = 20_000_000;
/// Spans that end within 2 s, which are nearly all, wait in a ring; the others in a map.
const RING: u64 = 100;

const USERS: usize = 5_000;
/// Traces with a failure, in a thousand.
const FAILING_PER_MILLE: u32 = 15;

#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub seed: u64,
    /// Spans per request.
    pub batch: u32,
    /// On the virtual clock.
    pub spans_per_second: f64,
    /// Where the virtual clock starts, in Unix nanoseconds.
    pub start_ns: u64,
    /// A batch leaves when its oldest span has waited this long, full or not.
    pub max_wait_ns: Option<u64>,
}

/// One request: an encoded `ExportTraceServiceRequest`.
#[derive(Debug)]
pub(super) struct Body {
    pub bytes: Vec<u8>,
    pub spans: u32,
}

/// What was generated, to be checked later: span ids follow from the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceRecord {
    pub id: [u8; 16],
    pub first_span: u64,
    pub spans: u32,
}

#[derive(Debug, Default)]
struct Bucket {
    bytes: Vec<u8>,
    spans: Vec<Queued>,
}

#[derive(Debug, Clone, Copy)]
struct Queued {
    sender: u16,
    scope: u8,
    len: u32,
}

#[derive(Debug)]
struct Sender {
    resource: Vec<u8>,
    scope_heads: [Vec<u8>; SCOPES],
    scopes: [Vec<u8>; SCOPES],
    spans: u32,
    oldest_ns: u64,
}

#[derive(Debug)]
pub(super) struct Generator {
    settings: Settings,
    shop: Shop,
    senders: Vec<Sender>,
    /// First sender of each service.
    first_sender: Vec<u16>,
    near: Vec<Bucket>,
    far: BTreeMap<u64, Bucket>,
    /// Ticks since the start.
    tick: u64,
    /// Spans the virtual rate still owes; negative after a large trace.
    owed: f64,
    rng: Rng,
    ids: Ids,
    users: Vec<u16>,
    /// Trace and span of recent messages, for batch consumers to link to.
    recent: [([u8; 16], u64); 16],
    next_recent: usize,
    pub spans: u64,
    pub traces: Vec<TraceRecord>,
}

/// The trace being generated.
struct Trace {
    id: [u8; 16],
    user: u32,
}

/// Where a call comes from.
#[derive(Clone, Copy)]
struct Caller {
    span: u64,
    service: usize,
    sender: u16,
}

impl Generator {
    pub(super) fn new(settings: Settings) -> Self {
        let mut rng = Rng::new(settings.seed);
        let mut senders = Vec::new();
        let mut first_sender = Vec::new();
        for service in &SERVICES {
            first_sender.push(senders.len() as u16);
            for _ in 0..service.instances {
                senders.push(Sender {
                    resource: encode_resource(service, &mut rng),
                    scope_heads: std::array::from_fn(|n| encode_scope(service, n)),
                    scopes: Default::default(),
                    spans: 0,
                    oldest_ns: 0,
                });
            }
        }
        Self {
            settings,
            shop: Shop::open(),
            senders,
            first_sender,
            near: (0..RING).map(|_| Bucket::default()).collect(),
            far: BTreeMap::new(),
            tick: 0,
            owed: 0.0,
            rng,
            ids: Ids::new(settings.seed),
            users: user_table(),
            recent: [([1; 16], 1); 16],
            next_recent: 0,
            spans: 0,
            traces: Vec::new(),
        }
    }

    pub(super) fn ids(&self) -> Ids {
        self.ids
    }

    /// Virtual nanoseconds since the start.
    pub(super) fn elapsed_ns(&self) -> u64 {
        self.tick * TICK_NS
    }

    /// Lets one tick happen: traces begin until there are `limit` spans, spans whose time has come go to their senders.
    pub(super) fn step(&mut self, limit: u64, out: &mut Vec<Body>) {
        self.owed += self.settings.spans_per_second * (TICK_NS as f64 / 1e9);
        let start = self.settings.start_ns + self.elapsed_ns();
        while self.owed > 0.0 && self.spans < limit {
            let at = start + u64::from(self.rng.below(TICK_NS as u32));
            self.owed -= f64::from(self.trace(at));
        }
        let tick = self.tick;
        let mut bucket = std::mem::take(&mut self.near[(tick % RING) as usize]);
        self.release(&bucket, out);
        bucket.bytes.clear();
        bucket.spans.clear();
        self.near[(tick % RING) as usize] = bucket;
        if let Some(far) = self.far.remove(&tick) {
            self.release(&far, out);
        }
        self.tick += 1;
        let now = start + TICK_NS;
        if let Some(wait) = self.settings.max_wait_ns {
            for sender in &mut self.senders {
                if sender.spans > 0 && now.saturating_sub(sender.oldest_ns) >= wait {
                    out.push(sender.export());
                }
            }
        }
    }

    /// Sends what is left, in order of end times, without waiting for them.
    pub(super) fn finish(&mut self, out: &mut Vec<Body>) {
        for tick in self.tick..self.tick + RING {
            let bucket = std::mem::take(&mut self.near[(tick % RING) as usize]);
            self.release(&bucket, out);
        }
        for bucket in std::mem::take(&mut self.far).into_values() {
            self.release(&bucket, out);
        }
        out.extend(self.senders.iter_mut().filter(|sender| sender.spans > 0).map(Sender::export));
    }

    fn release(&mut self, bucket: &Bucket, out: &mut Vec<Body>) {
        let mut at = 0;
        let now = self.settings.start_ns + self.elapsed_ns();
        for queued in &bucket.spans {
            let end = at + queued.len as usize;
            let sender = &mut self.senders[usize::from(queued.sender)];
            if sender.spans == 0 {
                sender.oldest_ns = now;
            }
            put_bytes(&mut sender.scopes[usize::from(queued.scope)], 0x12, &bucket.bytes[at..end]);
            sender.spans += 1;
            at = end;
            if sender.spans >= self.settings.batch {
                out.push(sender.export());
            }
        }
    }

    /// One trace that begins at `at`; returns its number of spans.
    fn trace(&mut self, at: u64) -> u32 {
        let number = self.traces.len() as u64 + 1;
        let trace = Trace {
            id: self.ids.trace(number),
            user: u32::from(self.users[self.rng.below(self.users.len() as u32) as usize]),
        };
        let total = self.shop.weights.last().copied().unwrap_or(1);
        let draw = self.rng.below(total);
        let flow = self.shop.weights.partition_point(|sum| *sum <= draw);
        let failing = self.rng.below(1000) < FAILING_PER_MILLE;
        let first_span = self.spans + 1;
        // The tree is lent out while the rest of `self` changes.
        let shop = std::mem::replace(&mut self.shop, Shop { templates: Vec::new(), flows: Vec::new(), weights: Vec::new() });
        let root = &shop.flows[flow];
        let service = shop.templates[root.template].service;
        let caller = Caller { span: 0, service, sender: self.instance(service) };
        self.call(&shop.templates, root, &trace, caller, at, failing);
        self.shop = shop;
        let spans = (self.spans + 1 - first_span) as u32;
        self.traces.push(TraceRecord { id: trace.id, first_span, spans });
        spans
    }

    fn instance(&mut self, service: usize) -> u16 {
        self.first_sender[service] + self.rng.below(u32::from(SERVICES[service].instances)) as u16
    }

    /// Generates a call and all below it; returns when it ended and whether it failed.
    fn call(
        &mut self,
        templates: &[Template],
        node: &Node,
        trace: &Trace,
        caller: Caller,
        start: u64,
        failing: bool,
    ) -> (u64, bool) {
        let template = &templates[node.template];
        self.spans += 1;
        let span = self.ids.span(self.spans);
        let sender = if template.service == caller.service { caller.sender } else { self.instance(template.service) };
        let this = Caller { span, service: template.service, sender };
        let own = 1_000 * u64::from(template.own_us.0) + self.skewed(template.own_us.1);
        let mut now = start + own / 3;
        let mut latest = now;
        let mut failed = false;
        // A failure begins in one of the calls below, or here if there is none.
        let carrier = if failing && !node.children.is_empty() {
            self.rng.below(node.children.len() as u32) as usize
        } else {
            usize::MAX
        };
        for (i, child) in node.children.iter().enumerate() {
            let fails = i == carrier;
            if !fails && !self.rng.percent(child.chance) {
                continue;
            }
            let times = child.repeat.0 + self.rng.below(child.repeat.1 - child.repeat.0 + 1);
            for round in 0..times {
                let gap = 1_000 * u64::from(self.rng.below(120));
                let begin = if child.mode == Mode::Detached { now + 2_000_000 + gap * 200 } else { now + gap };
                let (end, broke) = self.call(templates, child, trace, this, begin, fails && round + 1 == times);
                match child.mode {
                    Mode::Sequential => now = end,
                    Mode::Parallel => latest = latest.max(end),
                    Mode::Detached => continue,
                }
                // Some callers live with a failed call.
                failed |= broke && self.rng.percent(85);
            }
            let next_parallel = node.children.get(i + 1).is_some_and(|next| next.mode == Mode::Parallel);
            if !next_parallel {
                now = now.max(latest);
            }
            if failed && now >= latest {
                break;
            }
        }
        let origin = failing && carrier == usize::MAX;
        let end = now.max(latest) + own * 2 / 3;
        self.write(template, trace, (span, caller.span, sender), (start, end), (failed || origin, origin));
        (end, failed || origin)
    }

    /// Up to `us` microseconds in nanoseconds, mostly far less: latencies have a long tail.
    fn skewed(&mut self, us: u32) -> u64 {
        let x = u64::from(self.rng.below(1 << 10));
        (u64::from(us) * 1_000 * ((x * x) >> 10)) >> 10
    }

    fn write(
        &mut self,
        template: &Template,
        trace: &Trace,
        (span, parent, sender): (u64, u64, u16),
        (start, end): (u64, u64),
        (failed, origin): (bool, bool),
    ) {
        let due = (end.saturating_sub(self.settings.start_ns) / TICK_NS).max(self.tick);
        let bucket =
            if due - self.tick < RING { &mut self.near[(due % RING) as usize] } else { self.far.entry(due).or_default() };
        let out = &mut bucket.bytes;
        let begin = out.len();
        out.extend_from_slice(&[0x0a, 16]);
        out.extend_from_slice(&trace.id);
        out.extend_from_slice(&[0x12, 8]);
        out.extend_from_slice(&span.to_be_bytes());
        if parent != 0 {
            out.extend_from_slice(&[0x22, 8]);
            out.extend_from_slice(&parent.to_be_bytes());
        }
        out.extend_from_slice(&template.head);
        out.push(0x39);
        out.extend_from_slice(&start.to_le_bytes());
        out.push(0x41);
        out.extend_from_slice(&end.to_le_bytes());
        out.extend_from_slice(&template.attributes);
        for slot in &template.slots {
            slot.write(out, &mut self.rng, trace.user);
        }
        out.extend_from_slice(if failed { &template.failed } else { &template.ok });
        if origin {
            let mut event = vec![0x09];
            event.extend((end - (end - start) / 8).to_le_bytes());
            event.extend_from_slice(&template.exception);
            put_bytes(out, 0x5a, &event);
        }
        match template.links {
            Links::None => {}
            Links::Parent => put_link(out, &trace.id, parent),
            Links::Recent => {
                for n in 1..=4 {
                    let (id, span) = self.recent[(self.next_recent + n * 3) % self.recent.len()];
                    put_link(out, &id, span);
                }
            }
        }
        if failed {
            out.extend_from_slice(&template.status);
        }
        // Sampled; and known whether the parent is remote, and whether it is.
        let flags = 0x101 | if template.remote_parent && parent != 0 { 0x200u32 } else { 0 };
        out.extend_from_slice(&[0x85, 0x01]);
        out.extend_from_slice(&flags.to_le_bytes());
        let len = (out.len() - begin) as u32;
        bucket.spans.push(Queued { sender, scope: template.scope as u8, len });
        if template.produces {
            self.recent[self.next_recent] = (trace.id, span);
            self.next_recent = (self.next_recent + 1) % self.recent.len();
        }
    }
}

fn put_link(out: &mut Vec<u8>, trace: &[u8; 16], span: u64) {
    out.extend_from_slice(&[0x6a, 28, 0x0a, 16]);
    out.extend_from_slice(trace);
    out.extend_from_slice(&[0x12, 8]);
    out.extend_from_slice(&span.to_be_bytes());
}

impl Sender {
    /// Everything collected as one request.
    fn export(&mut self) -> Body {
        let lens: [usize; SCOPES] = std::array::from_fn(|n| self.scope_heads[n].len() + self.scopes[n].len());
        let mut inner = self.resource.len();
        for (spans, len) in self.scopes.iter().zip(lens) {
            if !spans.is_empty() {
                inner += 1 + varint_len(len as u64) + len;
            }
        }
        let mut bytes = Vec::with_capacity(inner + 8);
        bytes.push(0x0a);
        put_varint(inner as u64, &mut bytes);
        bytes.extend_from_slice(&self.resource);
        for ((spans, head), len) in self.scopes.iter_mut().zip(&self.scope_heads).zip(lens) {
            if !spans.is_empty() {
                bytes.push(0x12);
                put_varint(len as u64, &mut bytes);
                bytes.extend_from_slice(head);
                bytes.append(spans);
            }
        }
        Body { bytes, spans: std::mem::take(&mut self.spans) }
    }
}

/// Users by popularity: a draw from the table follows Zipf's law, so that the busiest user has about 1 % of all traces.
fn user_table() -> Vec<u16> {
    const DRAWS: usize = 1 << 14;
    let weight = |user: usize| ((user + 1) as f64).powf(-0.65);
    let total: f64 = (0..USERS).map(weight).sum();
    let mut table = Vec::with_capacity(DRAWS);
    let mut sum = 0.0;
    for user in 0..USERS {
        sum += weight(user);
        let until = (sum / total * DRAWS as f64).round() as usize;
        table.resize(until.max(table.len()), (user * 7919 % 65_521) as u16);
    }
    table
}
