use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::generate::{Body, Generator, Settings};
use super::wire::{Field, scan, scan_messages};

const START: u64 = 1_750_000_000_000_000_000;

fn settings(seed: u64) -> Settings {
    Settings { seed, batch: 500, spans_per_second: 20_000.0, start_ns: START, max_wait_ns: None }
}

fn generate(seed: u64, spans: u64) -> (Generator, Vec<Body>) {
    let mut generator = Generator::new(settings(seed));
    let mut bodies = Vec::new();
    while generator.spans < spans {
        generator.step(spans, &mut bodies);
    }
    generator.finish(&mut bodies);
    (generator, bodies)
}

#[derive(Debug, Default, Clone)]
struct Span {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    kind: u64,
    start: u64,
    end: u64,
    attributes: BTreeMap<String, String>,
    events: usize,
    links: usize,
    status: u64,
}

/// Reads every span of a body; fails on bytes that are not OTLP.
fn read(body: &[u8], out: &mut Vec<(String, Span)>) -> Option<()> {
    scan_messages(body, 1, &mut |resource_spans| {
        let mut service = String::new();
        scan_messages(resource_spans, 1, &mut |resource| {
            scan_messages(resource, 1, &mut |attribute| {
                let (key, value) = pair(attribute)?;
                if key == "service.name" {
                    service = value;
                }
                Some(())
            })
        })?;
        scan_messages(resource_spans, 2, &mut |scope_spans| {
            scan_messages(scope_spans, 2, &mut |span| {
                out.push((service.clone(), read_span(span)?));
                Some(())
            })
        })
    })
}

fn read_span(bytes: &[u8]) -> Option<Span> {
    let mut span = Span::default();
    scan(bytes, &mut |number, field| {
        match (number, field) {
            (1, Field::Bytes(id)) => span.trace = id.to_vec(),
            (2, Field::Bytes(id)) => span.id = id.to_vec(),
            (4, Field::Bytes(id)) => span.parent = id.to_vec(),
            (5, Field::Bytes(name)) => span.name = String::from_utf8(name.to_vec()).ok()?,
            (6, Field::Number(kind)) => span.kind = kind,
            (7, Field::Number(time)) => span.start = time,
            (8, Field::Number(time)) => span.end = time,
            (9, Field::Bytes(attribute)) => {
                let (key, value) = pair(attribute)?;
                assert!(span.attributes.insert(key, value).is_none(), "a key twice");
            }
            (11, Field::Bytes(event)) => {
                span.events += 1;
                scan_messages(event, 3, &mut |attribute| pair(attribute).map(drop))?;
            }
            (13, Field::Bytes(link)) => {
                span.links += 1;
                scan(link, &mut |_, _| Some(()))?;
            }
            (15, Field::Bytes(status)) => scan(status, &mut |number, field| {
                if let (3, Field::Number(code)) = (number, field) {
                    span.status = code;
                }
                Some(())
            })?,
            (16, Field::Number(_)) => {}
            other => panic!("unexpected field {other:?}"),
        }
        Some(())
    })?;
    Some(span)
}

fn pair(bytes: &[u8]) -> Option<(String, String)> {
    let (mut key, mut value) = (None, None);
    scan(bytes, &mut |number, field| {
        match (number, field) {
            (1, Field::Bytes(text)) => key = Some(String::from_utf8(text.to_vec()).ok()?),
            (2, Field::Bytes(any)) => scan(any, &mut |_, field| {
                value = Some(match field {
                    Field::Bytes(text) => String::from_utf8_lossy(text).into_owned(),
                    Field::Number(number) => number.to_string(),
                });
                Some(())
            })?,
            _ => return None,
        }
        Some(())
    })?;
    Some((key?, value?))
}

#[test]
fn a_hundred_thousand_spans_are_a_believable_shop() {
    let (generator, bodies) = generate(7, 100_000);
    let bytes: usize = bodies.iter().map(|body| body.bytes.len()).sum();
    let mut spans = Vec::new();
    for body in &bodies {
        let before = spans.len();
        read(&body.bytes, &mut spans).expect("protobuf");
        assert_eq!(spans.len() - before, body.spans as usize);
        let services: HashSet<_> = spans[before..].iter().map(|(service, _)| service).collect();
        assert_eq!(services.len(), 1, "a sender exports its own spans");
    }
    assert_eq!(spans.len() as u64, generator.spans);
    let per_span = bytes as f64 / spans.len() as f64;
    assert!((330.0..=380.0).contains(&per_span), "{per_span} bytes per span");

    let ids: HashSet<_> = spans.iter().map(|(_, span)| span.id.clone()).collect();
    assert_eq!(ids.len(), spans.len(), "a span id twice");
    let mut traces: HashMap<Vec<u8>, Vec<&Span>> = HashMap::new();
    for (_, span) in &spans {
        assert!(span.end >= span.start && span.start >= START && (1..=5).contains(&span.kind) && !span.name.is_empty());
        traces.entry(span.trace.clone()).or_default().push(span);
    }
    assert_eq!(traces.len(), generator.traces.len());
    for trace in traces.values() {
        let ids: HashSet<_> = trace.iter().map(|span| &span.id).collect();
        assert_eq!(trace.iter().filter(|span| span.parent.is_empty()).count(), 1, "one root");
        assert!(trace.iter().all(|span| span.parent.is_empty() || ids.contains(&span.parent)), "parents exist");
    }
    for record in &generator.traces {
        let expected: BTreeSet<_> = (0..u64::from(record.spans))
            .map(|n| generator.ids().span(record.first_span + n).to_be_bytes().to_vec())
            .collect();
        let found: BTreeSet<_> = traces[&record.id.to_vec()].iter().map(|span| span.id.clone()).collect();
        assert_eq!(expected, found, "what --verify expects");
    }
    let mean = spans.len() as f64 / traces.len() as f64;
    assert!((10.0..=30.0).contains(&mean), "{mean} spans per trace");
    assert!(traces.values().any(|trace| trace.len() > 150), "no long tail");
    let failed =
        traces.values().filter(|trace| trace.iter().any(|span| span.status == 2)).count() as f64 / traces.len() as f64;
    assert!((0.01..=0.02).contains(&failed), "{failed} of the traces fail");
    assert!(spans.iter().any(|(_, span)| span.events == 1) && spans.iter().any(|(_, span)| span.links == 4));
    assert!(spans.iter().all(|(_, span)| span.events == 0 || span.status == 2));
    let mut users: HashMap<&String, usize> = HashMap::new();
    for (_, span) in &spans {
        if let Some(user) = span.attributes.get("user.id") {
            *users.entry(user).or_default() += 1;
        }
    }
    let busiest = *users.values().max().unwrap() as f64 / traces.len() as f64;
    assert!(users.len() > 1_500 && (0.005..=0.03).contains(&busiest), "{} users, the busiest in {busiest}", users.len());
    let services: HashSet<_> = spans.iter().map(|(service, _)| service).collect();
    assert_eq!(services.len(), super::shop::SERVICES.len());
}

#[test]
fn the_seed_decides_everything() {
    let bytes = |seed| generate(seed, 5_000).1.into_iter().map(|body| body.bytes).collect::<Vec<_>>();
    assert!(bytes(1) == bytes(1));
    assert!(bytes(1) != bytes(2));
}

#[test]
fn spans_leave_when_they_end_and_no_later_than_the_wait() {
    let wait = 1_000_000_000;
    let mut generator = Generator::new(Settings { max_wait_ns: Some(wait), batch: u32::MAX, ..settings(3) });
    let mut seen = 0;
    for _ in 0..200 {
        let mut bodies = Vec::new();
        generator.step(u64::MAX, &mut bodies);
        let now = START + generator.elapsed_ns();
        let mut spans = Vec::new();
        for body in bodies {
            read(&body.bytes, &mut spans).unwrap();
        }
        seen += spans.len();
        for (_, span) in spans {
            assert!(span.end <= now, "sent before it ended");
            assert!(now - span.end <= wait + 2 * super::generate::TICK_NS, "waited too long");
        }
    }
    assert!(seen as u64 > generator.spans / 2);
}

/// Prints the speed: `cargo test --release -p spanhouse generation_is_cheap -- --nocapture`.
#[test]
fn generation_is_cheap() {
    let spans = if cfg!(debug_assertions) { 20_000 } else { 2_000_000 };
    let begun = std::time::Instant::now();
    let mut generator = Generator::new(settings(1));
    let (mut bodies, mut bytes) = (Vec::new(), 0);
    while generator.spans < spans {
        generator.step(spans, &mut bodies);
        bytes += bodies.drain(..).map(|body| body.bytes.len()).sum::<usize>();
    }
    let rate = generator.spans as f64 / begun.elapsed().as_secs_f64();
    let per_trace = generator.spans as f64 / generator.traces.len() as f64;
    println!("{rate:.0} spans/s, {} MB, {per_trace:.1} spans per trace", bytes / 1_000_000);
    assert!(generator.spans >= spans);
}
