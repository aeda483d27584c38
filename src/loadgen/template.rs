//! Spans ready but for what differs between two of them: constant attributes are bytes already, the rest are slots of known length.
//!
//! Owns which attributes an operation carries (OpenTelemetry's semantic conventions). Does not own ids, times or outcomes.

use spanhouse_common::varint::put_varint;

use super::rng::Rng;
use super::shop::{SERVICES, Scope};
use super::wire::{EVENT_ATTRIBUTE, SPAN_ATTRIBUTE, Value, put_attribute, put_bytes};

/// An operation as `flows` names it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    HttpServer {
        method: &'static str,
        route: &'static str,
    },
    HttpClient {
        method: &'static str,
        route: &'static str,
        target: usize,
    },
    GrpcServer {
        service: &'static str,
        method: &'static str,
    },
    GrpcClient {
        service: &'static str,
        method: &'static str,
        target: usize,
    },
    Sql {
        operation: &'static str,
        table: &'static str,
        text: &'static str,
    },
    Cache {
        command: &'static str,
        key: &'static str,
    },
    Produce {
        topic: &'static str,
    },
    Consume {
        topic: &'static str,
    },
    /// A root that takes several messages at once.
    ConsumeBatch {
        topic: &'static str,
    },
    Work {
        name: &'static str,
    },
}

/// Values of `SpanKind`.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const CLIENT: u8 = 3;
const PRODUCER: u8 = 4;
const CONSUMER: u8 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    None,
    Parent,
    Recent,
}

#[derive(Debug)]
pub(super) struct Template {
    pub service: usize,
    pub scope: Scope,
    /// Fields name and kind.
    pub head: Vec<u8>,
    pub attributes: Vec<u8>,
    pub slots: Vec<Slot>,
    pub ok: Vec<u8>,
    pub failed: Vec<u8>,
    /// The event of a failure that began here, without its time: `exception` with type, message and stack trace.
    pub exception: Vec<u8>,
    /// Field status of a failed span.
    pub status: Vec<u8>,
    pub links: Links,
    pub remote_parent: bool,
    pub produces: bool,
    /// Own time in microseconds: at least, and up to this much more.
    pub own_us: (u32, u32),
}

/// An attribute whose value differs from span to span. Heads hold everything up to the part that differs.
#[derive(Debug)]
pub(super) enum Slot {
    Digits { head: Vec<u8>, digits: u32, tail: Vec<u8> },
    Hex { head: Vec<u8>, digits: u32 },
    Int { head: Vec<u8>, min: u32, spread: u32 },
    Choice(Vec<Vec<u8>>),
    User { head: Vec<u8> },
}

pub(super) const USER_DIGITS: u32 = 5;

/// The beginning of a text attribute whose text has `before` and `len` - `before.len()` more bytes.
fn text_head(key: &str, before: &str, len: usize) -> Vec<u8> {
    let mut any = vec![0x0a];
    put_varint(len as u64, &mut any);
    let mut pair = Vec::new();
    put_bytes(&mut pair, 0x0a, key.as_bytes());
    pair.push(0x12);
    put_varint((any.len() + len) as u64, &mut pair);
    pair.extend(any);
    let mut out = vec![SPAN_ATTRIBUTE];
    put_varint((pair.len() + len) as u64, &mut out);
    out.extend(pair);
    out.extend(before.as_bytes());
    out
}

fn digits(key: &str, before: &str, digits: u32, after: &str) -> Slot {
    let head = text_head(key, before, before.len() + digits as usize + after.len());
    Slot::Digits { head, digits, tail: after.as_bytes().to_vec() }
}

fn hex(key: &str, digits: u32) -> Slot {
    Slot::Hex { head: text_head(key, "", digits as usize), digits }
}

fn int(key: &str, min: u32, spread: u32) -> Slot {
    let mut head = Vec::new();
    put_bytes(&mut head, 0x0a, key.as_bytes());
    Slot::Int { head, min, spread }
}

fn choice(key: &str, values: impl IntoIterator<Item = impl AsRef<str>>) -> Slot {
    let encode = |value: &str| {
        let mut out = Vec::new();
        put_attribute(&mut out, SPAN_ATTRIBUTE, key, Value::Text(value));
        out
    };
    Slot::Choice(values.into_iter().map(|value| encode(value.as_ref())).collect())
}

const USER_AGENTS: [&str; 6] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/137.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Version/18.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:139.0) Gecko/20100101 Firefox/139.0",
    "ShopApp/7.4.1 (Android 15; Pixel 9)",
    "ShopApp/7.4.0 (iOS 18.5; iPhone16,2)",
];

fn peers() -> impl Iterator<Item = String> {
    (0..48).map(|n| format!("10.42.{}.{}", n % 12, 7 + n * 5))
}

/// Splits a route at its parameter: `/product/{id}/reviews` is `/product/`, number, `/reviews`.
fn path_slot(route: &str) -> Result<Slot, &str> {
    match route.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?.1))) {
        Some((before, after)) => Ok(digits("url.path", before, 6, after)),
        None => Err(route),
    }
}

impl Template {
    pub(super) fn new(op: Op, service: usize, own_us: Option<(u32, u32)>) -> Self {
        let exception = SERVICES[service].language.exception();
        let mut event = Vec::new();
        put_bytes(&mut event, 0x12, b"exception");
        for (key, value) in ["exception.type", "exception.message", "exception.stacktrace"].into_iter().zip(exception) {
            put_attribute(&mut event, EVENT_ATTRIBUTE, key, Value::Text(value));
        }
        let mut status = Vec::new();
        put_bytes(&mut status, 0x12, exception[1].as_bytes());
        status.extend([0x18, 2]);
        let mut status_field = Vec::new();
        put_bytes(&mut status_field, 0x7a, &status);
        let mut template = Self {
            service,
            scope: Scope::Own,
            head: Vec::new(),
            attributes: Vec::new(),
            slots: Vec::new(),
            ok: Vec::new(),
            failed: Vec::new(),
            exception: event,
            status: status_field,
            links: Links::None,
            remote_parent: false,
            produces: false,
            own_us: (40, 600),
        };
        template.describe(op);
        if let Some(own) = own_us {
            template.own_us = own;
        }
        template
    }

    fn span(&mut self, scope: Scope, kind: u8, name: &str) {
        self.scope = scope;
        put_bytes(&mut self.head, 0x2a, name.as_bytes());
        self.head.extend([0x30, kind]);
        self.remote_parent = matches!(kind, SERVER | CONSUMER);
    }

    fn text(&mut self, key: &str, value: &str) {
        put_attribute(&mut self.attributes, SPAN_ATTRIBUTE, key, Value::Text(value));
    }

    fn int(&mut self, key: &str, value: i64) {
        put_attribute(&mut self.attributes, SPAN_ATTRIBUTE, key, Value::Int(value));
    }

    fn outcome(&mut self, key: &str, ok: i64, failed: i64) {
        put_attribute(&mut self.ok, SPAN_ATTRIBUTE, key, Value::Int(ok));
        put_attribute(&mut self.failed, SPAN_ATTRIBUTE, key, Value::Int(failed));
    }

    fn path(&mut self, route: &str) {
        match path_slot(route) {
            Ok(slot) => self.slots.push(slot),
            Err(constant) => self.text("url.path", constant),
        }
    }

    fn describe(&mut self, op: Op) {
        match op {
            Op::HttpServer { method, route } => {
                self.span(Scope::HttpServer, SERVER, &format!("{method} {route}"));
                self.text("http.request.method", method);
                self.text("http.route", route);
                self.text("url.scheme", "http");
                self.text("network.protocol.version", "1.1");
                self.path(route);
                self.outcome("http.response.status_code", if method == "POST" { 201 } else { 200 }, 500);
                put_attribute(&mut self.failed, SPAN_ATTRIBUTE, "error.type", Value::Text("500"));
                self.slots.push(choice("network.peer.address", peers()));
                if SERVICES[self.service].name == "frontend" {
                    self.text("server.address", "shop.example.com");
                    self.slots.push(choice("user_agent.original", USER_AGENTS));
                    self.slots.push(choice("client.address", (0..200).map(|n| format!("203.0.{}.{}", n % 113, n + 20))));
                    let head = text_head("user.id", "u", 1 + USER_DIGITS as usize);
                    self.slots.push(Slot::User { head });
                } else {
                    self.slots.push(int("http.response.body.size", 180, 24_000));
                }
                self.own_us = (150, 1_800);
            }
            Op::HttpClient { method, route, target } => {
                let host = SERVICES[target].name;
                self.span(Scope::HttpClient, CLIENT, method);
                self.text("http.request.method", method);
                self.text("server.address", &format!("{host}.shop.svc.cluster.local"));
                self.int("server.port", 8080);
                self.slots.push(
                    match route.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?.1))) {
                        Some((before, after)) => {
                            digits("url.full", &format!("http://{host}.shop.svc.cluster.local:8080{before}"), 6, after)
                        }
                        None => choice("url.full", [format!("http://{host}.shop.svc.cluster.local:8080{route}")]),
                    },
                );
                self.outcome("http.response.status_code", if method == "POST" { 201 } else { 200 }, 500);
                put_attribute(&mut self.failed, SPAN_ATTRIBUTE, "error.type", Value::Text("500"));
                self.slots.push(choice("network.peer.address", peers()));
                self.text("network.protocol.version", "1.1");
                self.own_us = (90, 900);
            }
            Op::GrpcServer { service, method } | Op::GrpcClient { service, method, .. } => {
                let kind = if matches!(op, Op::GrpcServer { .. }) { SERVER } else { CLIENT };
                self.span(Scope::Grpc, kind, &format!("{service}/{method}"));
                self.text("rpc.system", "grpc");
                self.text("rpc.service", service);
                self.text("rpc.method", method);
                if let Op::GrpcClient { target, .. } = op {
                    self.text("server.address", &format!("{}.shop.svc.cluster.local", SERVICES[target].name));
                }
                self.int("server.port", 50051);
                self.outcome("rpc.grpc.status_code", 0, 13);
                self.text("network.type", "ipv4");
                self.slots.push(choice("network.peer.address", peers()));
                self.slots.push(int("network.peer.port", 32_768, 28_000));
                self.own_us = (80, 1_100);
            }
            Op::Sql { operation, table, text } => {
                self.span(Scope::Database, CLIENT, &format!("{operation} {table}"));
                self.text("db.system", "postgresql");
                self.text("db.namespace", SERVICES[self.service].name);
                self.text("db.operation.name", operation);
                self.text("db.collection.name", table);
                self.text("db.query.text", text);
                self.text("server.address", "pg-main.db.svc.cluster.local");
                self.int("server.port", 5432);
                self.slots.push(int("db.response.returned_rows", 0, 60));
                put_attribute(&mut self.failed, SPAN_ATTRIBUTE, "error.type", Value::Text("57014"));
                self.own_us = (350, 6_000);
            }
            Op::Cache { command, key } => {
                self.span(Scope::Database, CLIENT, command);
                self.text("db.system", "redis");
                self.text("db.operation.name", command);
                self.slots.push(digits("db.query.text", &format!("{command} {key}:"), 6, ""));
                self.text("server.address", "redis.shop.svc.cluster.local");
                self.int("server.port", 6379);
                self.text("network.type", "ipv4");
                self.int("network.peer.port", 6379);
                self.slots.push(choice("network.peer.address", peers().take(3)));
                self.own_us = (90, 700);
            }
            Op::Produce { topic } => {
                self.span(Scope::Messaging, PRODUCER, &format!("send {topic}"));
                self.messaging(topic, "send");
                self.produces = true;
                self.own_us = (250, 2_000);
            }
            Op::Consume { topic } => {
                self.span(Scope::Messaging, CONSUMER, &format!("process {topic}"));
                self.messaging(topic, "process");
                self.text("messaging.consumer.group.name", SERVICES[self.service].name);
                self.links = Links::Parent;
                self.own_us = (400, 5_000);
            }
            Op::ConsumeBatch { topic } => {
                self.span(Scope::Messaging, CONSUMER, &format!("receive {topic}"));
                self.messaging(topic, "receive");
                self.text("messaging.consumer.group.name", SERVICES[self.service].name);
                self.slots.push(int("messaging.batch.message_count", 4, 60));
                self.links = Links::Recent;
                self.own_us = (900, 9_000);
            }
            Op::Work { name } => {
                self.span(Scope::Own, INTERNAL, name);
                self.text("code.function.name", &format!("shop.{}.{name}", SERVICES[self.service].name));
                self.text("thread.name", "worker-pool-1");
                self.slots.push(int("thread.id", 20, 90));
                self.slots.push(int("shop.items", 1, 40));
                self.slots.push(choice("app.feature.variant", ["control", "rank-v2", "rank-v3-large", "new-checkout"]));
                self.slots.push(digits("app.order.id", "ord-", 9, ""));
                self.own_us = (40, 2_500);
            }
        }
    }

    fn messaging(&mut self, topic: &str, operation: &str) {
        self.text("messaging.system", "kafka");
        self.text("messaging.destination.name", topic);
        self.text("messaging.operation.type", operation);
        self.text("server.address", "kafka-0.kafka.svc.cluster.local");
        self.slots.push(hex("messaging.message.id", 32));
        self.slots.push(choice("messaging.destination.partition.id", (0..24).map(|n| n.to_string())));
        self.slots.push(int("messaging.kafka.offset", 1_000_000, 90_000_000));
    }
}

impl Slot {
    pub(super) fn write(&self, out: &mut Vec<u8>, rng: &mut Rng, user: u32) {
        match self {
            Self::Digits { head, digits, tail } => {
                out.extend_from_slice(head);
                // A leading zero would not be a number people write.
                let low = 10u32.pow(digits - 1);
                put_digits(out, low + rng.below(low * 9), *digits);
                out.extend_from_slice(tail);
            }
            Self::Hex { head, digits } => {
                out.extend_from_slice(head);
                let mut left = *digits;
                while left > 0 {
                    let word = rng.next();
                    for nibble in 0..left.min(16) {
                        out.push(b"0123456789abcdef"[(word >> (nibble * 4) & 15) as usize]);
                    }
                    left -= left.min(16);
                }
            }
            Self::Int { head, min, spread } => {
                // Squaring makes small values common, as sizes and counts are.
                let random = u64::from(rng.below(1 << 16));
                let value = u64::from(*min) + ((random * random * u64::from(*spread)) >> 32);
                let len = spanhouse_common::varint::varint_len(value);
                out.extend([SPAN_ATTRIBUTE, (head.len() + 3 + len) as u8]);
                out.extend_from_slice(head);
                out.extend([0x12, (1 + len) as u8, 0x18]);
                put_varint(value, out);
            }
            Self::Choice(values) => out.extend_from_slice(&values[rng.below(values.len() as u32) as usize]),
            Self::User { head } => {
                out.extend_from_slice(head);
                put_digits(out, user, USER_DIGITS);
            }
        }
    }
}

/// Decimal with leading zeros.
fn put_digits(out: &mut Vec<u8>, mut value: u32, digits: u32) {
    let mut text = [b'0'; 10];
    for place in text[..digits as usize].iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out.extend_from_slice(&text[..digits as usize]);
}
