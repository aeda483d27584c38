//! Operations: what each service does, with how many spans.
//!
//! Owns where that is known from: summaries of blocks where they list all operations and no deleted trace lies in the block, else
//! rows. What rows of a part say is the same for ever and kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use spanhouse_common::columns::{Fixed, Part, Rows, Values};
use spanhouse_common::source::SourceError;

use super::super::answer::{OperationStats, OperationsAnswer};
use super::super::run::Running;
use super::super::texts::Texts;
use super::super::{EngineError, OperationsRequest};
use super::mark_cut;

/// Bytes of operations that are kept of parts, about: of those asked for last.
const KEPT_BYTES: usize = 4 << 20;

/// Rows read at once.
const STRETCH: u32 = 1 << 16;

/// A service, what it does and the kind of span.
type Operation = (Arc<str>, Arc<str>, i32);

/// The operations of a part.
type Found = HashMap<Operation, u64, foldhash::fast::RandomState>;

/// The operations in parts that no summary tells of.
#[derive(Debug, Default)]
pub(crate) struct KeptOperations(Mutex<Vec<(u64, Arc<Found>)>>);

fn bytes_of((service, name, _): &Operation) -> usize {
    service.len() + name.len() + 96
}

impl KeptOperations {
    /// All operations of a part, and how many of its spans were read to know.
    fn of(&self, part: &dyn Part) -> Result<(Arc<Found>, u64), EngineError> {
        let key = part.identity();
        {
            let mut kept = self.0.lock();
            if let Some(at) = kept.iter().position(|(known, _)| *known == key) {
                let found = kept.remove(at);
                let operations = Arc::clone(&found.1);
                kept.push(found);
                return Ok((operations, 0));
            }
        }
        let operations = Arc::new(read(part)?);
        let size = |found: &Found| found.keys().map(bytes_of).sum::<usize>();
        let mut kept = self.0.lock();
        let mut sum = size(&operations) + kept.iter().map(|(_, found)| size(found)).sum::<usize>();
        while sum > KEPT_BYTES && !kept.is_empty() {
            sum -= size(&kept.remove(0).1);
        }
        if sum <= KEPT_BYTES {
            kept.push((key, Arc::clone(&operations)));
        }
        Ok((operations, u64::from(part.rows())))
    }
}

fn read(part: &dyn Part) -> Result<Found, SourceError> {
    let mut texts = Texts::default();
    let mut counts: HashMap<(u32, u32, i32), u64, foldhash::fast::RandomState> = HashMap::default();
    let rows = part.rows();
    let mut from = 0;
    while from < rows {
        let to = rows.min(from + STRETCH);
        let at = Rows::Range(from, to);
        let slots = (to - from) as usize;
        let services = texts.numbers(&part.column(Fixed::ServiceName, at)?, slots);
        let names = texts.numbers(&part.column(Fixed::Name, at)?, slots);
        let kinds = part.column(Fixed::Kind, at)?;
        let Values::Small(kinds) = &kinds.values else {
            return Err(SourceError::Damaged { what: part.name(), why: "kinds of another type".into() });
        };
        for ((service, name), kind) in services.into_iter().zip(names).zip(kinds) {
            *counts.entry((service, name, *kind)).or_default() += 1;
        }
        from = to;
    }
    let text = |number: u32| Arc::clone(texts.text(number));
    Ok(counts.into_iter().map(|((service, name, kind), spans)| ((text(service), text(name), kind), spans)).collect())
}

/// What is added up, as much as the answer may have.
struct Sum {
    all: BTreeMap<Operation, u64>,
    bytes: usize,
    max_bytes: usize,
    over: bool,
    service: Option<String>,
}

impl Sum {
    fn add(&mut self, (service, name, kind): (&str, &str, i32), spans: u64) {
        if self.service.as_deref().is_some_and(|wanted| wanted != service) {
            return;
        }
        let key: Operation = (service.into(), name.into(), kind);
        if let Some(known) = self.all.get_mut(&key) {
            *known = known.saturating_add(spans);
            return;
        }
        if self.bytes.saturating_add(bytes_of(&key)) > self.max_bytes {
            self.over = true;
            return;
        }
        self.bytes += bytes_of(&key);
        self.all.insert(key, spans);
    }
}

pub(crate) async fn operations(
    mut running: Running,
    request: &OperationsRequest,
    kept: &Arc<KeptOperations>,
) -> Result<OperationsAnswer, EngineError> {
    let mut sum =
        Sum { all: BTreeMap::new(), bytes: 0, max_bytes: request.max_bytes, over: false, service: request.service.clone() };
    let opened = Arc::clone(&running.opened);
    let is_told: Vec<bool> = opened
        .summaries
        .iter()
        .zip(&opened.hiding)
        .map(|(summary, hiding)| hiding.is_empty() && !summary.operations_cut)
        .collect();
    for (at, summary) in opened.summaries.iter().enumerate().filter(|(at, _)| is_told[*at]) {
        // Opened only because traces in others may reach into it.
        let is_asked = opened
            .summary_of
            .iter()
            .zip(&opened.ranges)
            .any(|(of, range)| *of == Some(at) && request.range.is_none_or(|asked| asked.overlaps(range)));
        if is_asked {
            let operations = summary.operations.iter();
            operations.for_each(|known| sum.add((&known.service, &known.name, known.kind), known.spans));
        }
    }
    let is_read = |part: usize| {
        !opened.summary_of[part].is_some_and(|summary| is_told[summary])
            && request.range.is_none_or(|asked| asked.overlaps(&opened.ranges[part]))
    };
    let jobs: Vec<_> = (0..opened.parts.len())
        .filter(|part| is_read(*part))
        .map(|part| {
            let (part, kept) = (Arc::clone(&opened.parts[part]), Arc::clone(kept));
            move || kept.of(&*part)
        })
        .collect();
    running
        .jobs(jobs, |stats, (found, spans)| {
            stats.inspected_spans += spans;
            found.iter().for_each(|((service, name, kind), spans)| sum.add((service, name, *kind), *spans));
            Ok(())
        })
        .await?;
    running.budget.keep(sum.bytes)?;
    let mut stats = running.stats.clone();
    if sum.over {
        mark_cut(&mut stats, request.max_bytes, "operations");
    }
    let operations = sum.all.into_iter().map(|((service, name, kind), spans)| OperationStats { service, name, kind, spans });
    Ok(OperationsAnswer { operations: operations.collect(), stats })
}
