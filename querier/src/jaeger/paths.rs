//! Paths of calls: how requests come to a service and where they go on, as traces show it. What the deep dependency graph draws.
//!
//! A path runs from a root of a trace to a leaf, a step for each span that begins work of a service: where the service changes, or a
//! request is received. Owns this rule and the bounds. Pure.

use std::collections::{BTreeMap, HashMap};

use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::model::{Resource, Span};

use super::adjust::shown_service;
use super::model::KIND_SERVER;
use crate::assemble::Trace;

/// Paths that are told; of more the first found.
const MAX_PATHS: usize = 1_000;
/// Steps of a path; what is further from the root is left out.
const MAX_STEPS: usize = 64;
/// Traces named for each path.
const MAX_EXAMPLES: usize = 10;
/// Different steps that are remembered, whether a path is told with them or not. Names that are made up for each call would fill memory.
const MAX_NAMES: usize = 10_000;

/// Work of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    pub service: String,
    pub operation: String,
}

/// Collects the paths through one service, or one operation of it.
#[derive(Debug)]
pub struct Paths {
    service: String,
    operation: Option<String>,
    /// Steps that were met, by number.
    steps: Vec<Step>,
    numbers: HashMap<Step, u32>,
    /// By the numbers of their steps, with traces that have them.
    found: BTreeMap<Vec<u32>, Vec<TraceId>>,
    is_cut: bool,
}

impl Paths {
    pub fn new(service: String, operation: Option<String>) -> Self {
        let (steps, numbers, found) = (Vec::new(), HashMap::new(), BTreeMap::new());
        Self { service, operation, steps, numbers, found, is_cut: false }
    }

    /// Adds the paths of a trace. Work grows with its spans, not with the number of its paths' steps.
    pub fn add(&mut self, id: TraceId, trace: &Trace) {
        let spans: Vec<(&Span, &Resource)> = trace
            .groups
            .iter()
            .flat_map(|group| group.scopes.iter().flat_map(|scope| &scope.spans).map(|span| (span, &*group.resource)))
            .collect();
        let mut of_id: HashMap<SpanId, usize> = HashMap::with_capacity(spans.len());
        for (at, (span, _)) in spans.iter().enumerate() {
            of_id.entry(span.span_id).or_insert(at);
        }
        let parent = |span: &Span| span.parent_span_id.and_then(|id| of_id.get(&id)).copied();
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
        // Spans to look at, with the number of steps before each: every span is once among them.
        let mut open: Vec<(usize, usize)> = Vec::new();
        for (at, (span, _)) in spans.iter().enumerate().rev() {
            match parent(span) {
                Some(parent) if parent != at => children[parent].push(at),
                // A root, or a span whose parent is missing.
                _ => open.push((at, 0)),
            }
        }
        // The steps down to the span that is looked at; spans that call each other in a ring have no root and are not met.
        let mut path: Vec<u32> = Vec::new();
        while let Some((at, steps)) = open.pop() {
            path.truncate(steps);
            let (span, resource) = spans[at];
            let service = shown_service(resource);
            let is_step =
                span.kind == KIND_SERVER || path.last().is_none_or(|last| self.steps[*last as usize].service != service);
            if is_step {
                let step = Step { service: service.to_owned(), operation: span.name.clone() };
                let Some(number) = self.number(step).filter(|_| path.len() < MAX_STEPS) else {
                    self.is_cut = true;
                    self.keep(id, &path);
                    continue;
                };
                path.push(number);
            }
            if children[at].is_empty() {
                self.keep(id, &path);
            }
            open.extend(children[at].iter().map(|child| (*child, path.len())));
        }
    }

    /// `None` if there are too many.
    fn number(&mut self, step: Step) -> Option<u32> {
        if let Some(known) = self.numbers.get(&step) {
            return Some(*known);
        }
        if self.steps.len() == MAX_NAMES {
            return None;
        }
        let number = self.steps.len() as u32;
        self.steps.push(step.clone());
        self.numbers.insert(step, number);
        Some(number)
    }

    fn is_focal(&self, number: u32) -> bool {
        let step = &self.steps[number as usize];
        step.service == self.service && self.operation.as_ref().is_none_or(|operation| *operation == step.operation)
    }

    fn keep(&mut self, id: TraceId, path: &[u32]) {
        if !path.iter().any(|number| self.is_focal(*number)) {
            return;
        }
        if let Some(traces) = self.found.get_mut(path) {
            if traces.len() < MAX_EXAMPLES && traces.last() != Some(&id) {
                traces.push(id);
            }
        } else if self.found.len() < MAX_PATHS {
            self.found.insert(path.to_vec(), vec![id]);
        } else {
            self.is_cut = true;
        }
    }

    /// Whether some paths were left out, or their ends.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The paths in the order of their steps, with traces that have them.
    pub fn finish(&self) -> Vec<(Vec<&Step>, &[TraceId])> {
        let steps = |path: &[u32]| path.iter().map(|number| &self.steps[*number as usize]).collect::<Vec<_>>();
        let mut all: Vec<_> = self.found.iter().map(|(path, traces)| (steps(path), traces.as_slice())).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::naive::cases::parse_spans;
    use crate::test_util::trace_id;

    /// The paths of spans as the cases of queries write them, one a line.
    fn paths(spans: &str, service: &str, operation: Option<&str>) -> String {
        let mut paths = Paths::new(service.into(), operation.map(str::to_owned));
        paths.add(trace_id(), &crate::assemble::gather(vec![parse_spans(spans).unwrap()]));
        let text = |step: &&Step| format!("{}:{}", step.service, step.operation);
        let line = |(path, _): (Vec<&Step>, _)| path.iter().map(text).collect::<Vec<_>>().join(" ");
        paths.finish().into_iter().map(line).collect::<Vec<_>>().join("\n")
    }

    const SHOP: &str = "trace=1 id=1 service=web name=page kind=server\n\
        trace=1 id=2 parent=1 service=web name=call kind=client\n\
        trace=1 id=3 parent=2 service=cart name=add kind=server\n\
        trace=1 id=4 parent=3 service=cart name=query kind=client\n\
        trace=1 id=5 parent=1 service=web name=again kind=server\n\
        trace=1 id=6 parent=5 service=pay name=charge\n\
        trace=1 id=7 parent=3 service=db name=read";

    #[test]
    fn a_step_is_where_the_service_changes_or_a_request_is_received() {
        assert_eq!(paths(SHOP, "web", None), "web:page cart:add\nweb:page cart:add db:read\nweb:page web:again pay:charge");
        assert_eq!(paths(SHOP, "cart", None), "web:page cart:add\nweb:page cart:add db:read");
        assert_eq!(paths(SHOP, "web", Some("again")), "web:page web:again pay:charge");
        assert_eq!(paths(SHOP, "cart", Some("query")), "", "no step of its own");
        assert_eq!(paths(SHOP, "nobody", None), "");
    }

    #[test]
    fn missing_parents_rings_and_shared_ids_end() {
        assert_eq!(paths("trace=1 id=2 parent=9 service=a name=x", "a", None), "a:x");
        let ring = "trace=1 id=1 parent=2 service=a name=x\ntrace=1 id=2 parent=1 service=b name=y\ntrace=1 id=3 parent=3 service=a name=z";
        assert_eq!(paths(ring, "a", None), "a:z");
        let shared = "trace=1 id=1 service=a name=x kind=client\ntrace=1 id=1 service=b name=y kind=server\n\
            trace=1 id=2 parent=1 service=c name=z";
        assert_eq!(paths(shared, "b", None), "b:y");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut long = String::new();
        for n in 1..=MAX_STEPS + 5 {
            long += &format!("trace=1 id={n:x} parent={:x} service=s{n} name=x\n", n - 1);
        }
        let mut paths = Paths::new("s1".into(), None);
        let trace = |spans: &str| crate::assemble::gather(vec![parse_spans(spans).unwrap()]);
        paths.add(trace_id(), &trace(&long));
        assert!(paths.is_cut() && paths.finish()[0].0.len() == MAX_STEPS);
        let mut wide = String::from("trace=1 id=1 service=a name=root\n");
        for n in 2..MAX_PATHS + 10 {
            wide += &format!("trace=1 id={n:x} parent=1 service=b{n} name=x\n");
        }
        let mut paths = Paths::new("a".into(), None);
        for n in 0..MAX_EXAMPLES as u128 + 5 {
            paths.add(TraceId(n.to_be_bytes()), &trace(&wide));
        }
        assert!(paths.is_cut());
        let found = paths.finish();
        assert_eq!(found.len(), MAX_PATHS);
        assert!(found.iter().all(|(steps, traces)| steps.len() == 2 && traces.len() == MAX_EXAMPLES));
        drop(found);
        let mut names = String::from("trace=1 id=1 service=a name=root\n");
        for n in 2..MAX_NAMES + 10 {
            names += &format!("trace=1 id={n:x} parent=1 service=b name=x{n}\n");
        }
        paths.add(trace_id(), &trace(&names));
        assert_eq!(paths.steps.len(), MAX_NAMES);
    }
}
