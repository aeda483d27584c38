//! The span tree of one trace: which row follows which, so that structure becomes arithmetic on row numbers.
//!
//! Rows are laid out in pre-order: a parent, then each child with all below it. `parent_delta` counts rows back to the parent
//! (0: none in this block), `subtree_size` counts the rows of the span's own subtree, itself included. So the descendants of row
//! `i` are exactly rows `i+1 .. i+subtree_size`, whatever the ids were.
//!
//! Ids from outside are not trusted: duplicates, cycles and orphans all get a place, and a flag that says so.

/// Bits of the `row_flags` column. Stored: never renumber.
pub mod flag {
    /// No parent id (or eight zero bytes).
    pub const ROOT: i32 = 1;
    /// Has a parent id, but the parent is not in this trace in this block.
    pub const ORPHAN: i32 = 1 << 1;
    /// Another span of this trace in this block has the same id.
    pub const DUPLICATE_ID: i32 = 1 << 2;
    /// The parent was ignored because the span is its own ancestor.
    pub const CYCLE_BROKEN: i32 = 1 << 3;
    /// `start_time` is 2^63 or later: read it as unsigned.
    pub const START_UNSIGNED: i32 = 1 << 4;
    /// The end time is 2^63 or later: `start_time + duration_ns`, wrapping, read as unsigned.
    pub const END_UNSIGNED: i32 = 1 << 5;
    /// The parent id was sent as eight zero bytes.
    pub const ZERO_PARENT: i32 = 1 << 6;
    /// The ingester had seen this span's ids, kind and start before.
    pub const MAYBE_DUPLICATE: i32 = 1 << 7;
}

/// What the tree needs to know of a span.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) span_id: u64,
    /// 0 for none.
    pub(crate) parent_id: u64,
    pub(crate) start: u64,
    pub(crate) is_server: bool,
    pub(crate) is_client: bool,
    /// Orders spans of one id and start, so that a tree does not depend on which came first.
    pub(crate) duration: u64,
}

impl Node {
    /// The order of spans that have one id and start.
    pub(super) fn tie(&self) -> (bool, u64, u64) {
        (!self.is_client, self.duration, self.parent_id)
    }
}

/// A trace laid out. All but `order` are by position.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Index of the node at each position.
    pub(crate) order: Vec<u32>,
    pub(crate) parent_delta: Vec<i32>,
    pub(crate) subtree_size: Vec<i32>,
    pub(crate) flags: Vec<i32>,
    /// Index of the node that is the trace's root: the earliest without parent.
    pub(crate) root: Option<u32>,
}

const NONE: u32 = u32::MAX;

/// The nodes that share one id, by what is asked of them: nothing stops a sender from giving all its spans one id, so no
/// question may walk through them.
#[derive(Clone, Copy, Debug)]
struct SameId {
    id: u64,
    count: u32,
    first: u32,
    first_client: u32,
    first_server: u32,
}

/// Nodes of which room is kept for the next trace: a trace of a million must not hold it while columns are merged.
const KEPT: usize = 1 << 16;

/// Forgets what is there, and its room if that is large.
fn release<T>(used: &mut Vec<T>) {
    used.clear();
    used.shrink_to(KEPT);
}

/// Working memory, reused from trace to trace.
#[derive(Debug, Default)]
pub(crate) struct TreeBuilder {
    by_id: Vec<(u64, u32)>,
    /// The distinct ids, ascending.
    ids: Vec<SameId>,
    parent: Vec<u32>,
    first_child: Vec<u32>,
    next_sibling: Vec<u32>,
    /// Start, id and index of the nodes, latest start first: pushing children in this order leaves each list earliest first.
    by_start: Vec<(u64, u64, u32)>,
    position: Vec<u32>,
    stack: Vec<u32>,
    flags: Vec<i32>,
    pub(crate) layout: Layout,
}

impl TreeBuilder {
    /// Takes in the nodes of one trace. Whether two of them have the same id.
    pub(crate) fn index(&mut self, nodes: &[Node]) -> bool {
        self.by_id.clear();
        self.by_id.extend(nodes.iter().zip(0..).map(|(node, at)| (node.span_id, at)));
        self.by_id.sort_unstable();
        self.ids.clear();
        for same in self.by_id.chunk_by_mut(|a, b| a.0 == b.0) {
            if same.len() > 1 {
                // The earliest speaks for its id, whichever came first.
                same.sort_unstable_by_key(|(_, at)| {
                    let node = &nodes[*at as usize];
                    (node.start, node.tie(), *at)
                });
            }
            let first = |wanted: fn(&Node) -> bool| {
                same.iter().find(|(_, at)| wanted(&nodes[*at as usize])).map_or(NONE, |(_, at)| *at)
            };
            self.ids.push(SameId {
                id: same[0].0,
                count: same.len() as u32,
                first: same[0].1,
                first_client: first(|node| node.is_client),
                first_server: first(|node| node.is_server),
            });
        }
        release(&mut self.by_id);
        self.ids.len() < nodes.len()
    }

    /// Lays out the trace that was indexed last. The result is in [`TreeBuilder::layout`] until the next call.
    pub(crate) fn lay_out(&mut self, nodes: &[Node]) {
        let count = nodes.len();
        let layout = &mut self.layout;
        layout.order.clear();
        layout.parent_delta.clear();
        layout.subtree_size.clear();
        layout.flags.clear();
        layout.root = None;
        if count == 1 {
            layout.order.push(0);
            layout.parent_delta.push(0);
            layout.subtree_size.push(1);
            let is_root = nodes[0].parent_id == 0;
            let is_own_parent = nodes[0].parent_id == nodes[0].span_id;
            layout.flags.push(match (is_root, is_own_parent) {
                (true, _) => flag::ROOT,
                (_, true) => flag::ORPHAN | flag::CYCLE_BROKEN,
                _ => flag::ORPHAN,
            });
            layout.root = is_root.then_some(0);
            return;
        }
        self.find_parents(nodes);
        release(&mut self.ids);
        self.by_start.clear();
        self.by_start.extend(nodes.iter().zip(0..).map(|(node, at)| (node.start, node.span_id, at)));
        self.by_start.sort_unstable_by(|a, b| {
            let tie = |at: u32| (nodes[at as usize].tie(), at);
            (b.0, b.1).cmp(&(a.0, a.1)).then_with(|| tie(b.2).cmp(&tie(a.2)))
        });
        self.first_child.clear();
        self.first_child.resize(count, NONE);
        self.next_sibling.clear();
        self.next_sibling.resize(count, NONE);
        self.position.clear();
        self.position.resize(count, NONE);
        for (_, _, at) in &self.by_start {
            let parent = self.parent[*at as usize];
            if parent != NONE {
                self.next_sibling[*at as usize] = self.first_child[parent as usize];
                self.first_child[parent as usize] = *at;
            }
        }
        for (_, _, at) in self.by_start.iter().rev() {
            if nodes[*at as usize].parent_id == 0 {
                self.layout.root = Some(*at);
                break;
            }
        }
        // Roots before orphans, each earliest first.
        for wanted in [flag::ROOT, flag::ORPHAN] {
            for rank in (0..count).rev() {
                let at = self.by_start[rank].2;
                if self.parent[at as usize] == NONE && self.flags[at as usize] & wanted != 0 {
                    self.descend(at);
                }
            }
        }
        // What is left hangs below a cycle: cut each at its earliest span.
        for rank in (0..count).rev() {
            let at = self.by_start[rank].2;
            if self.position[at as usize] == NONE {
                self.parent[at as usize] = NONE;
                self.flags[at as usize] |= flag::CYCLE_BROKEN;
                self.descend(at);
            }
        }
        for used in [&mut self.first_child, &mut self.next_sibling] {
            release(used);
        }
        release(&mut self.by_start);
        let layout = &mut self.layout;
        layout.subtree_size.resize(count, 1);
        layout.parent_delta.resize(count, 0);
        for position in (0..count).rev() {
            let at = layout.order[position] as usize;
            let parent = self.parent[at];
            if parent != NONE {
                let parent_position = self.position[parent as usize] as usize;
                layout.parent_delta[position] = (position - parent_position) as i32;
                layout.subtree_size[parent_position] += layout.subtree_size[position];
            }
        }
        layout.flags.extend(layout.order.iter().map(|at| self.flags[*at as usize]));
    }

    fn find_parents(&mut self, nodes: &[Node]) {
        self.parent.clear();
        self.flags.clear();
        for (at, node) in nodes.iter().enumerate() {
            let mut flags = 0;
            let mut parent = NONE;
            if let Some(same) = self.same_id(node.span_id).filter(|same| same.count > 1) {
                flags |= flag::DUPLICATE_ID;
                // Zipkin style: client and server share one id, and the server's parent is the client.
                if node.is_server {
                    parent = same.first_client;
                }
            }
            if node.parent_id == 0 {
                flags |= flag::ROOT;
            } else if parent == NONE {
                let named = self.same_id(node.parent_id);
                match named.map(|same| if same.first_server == NONE { same.first } else { same.first_server }) {
                    Some(other) if other as usize != at => parent = other,
                    Some(_) => flags |= flag::CYCLE_BROKEN | flag::ORPHAN,
                    None => flags |= flag::ORPHAN,
                }
            }
            self.parent.push(parent);
            self.flags.push(flags);
        }
    }

    /// [`TreeBuilder::index`] and [`TreeBuilder::lay_out`].
    #[cfg(test)]
    fn build(&mut self, nodes: &[Node]) {
        self.index(nodes);
        self.lay_out(nodes);
    }

    fn same_id(&self, id: u64) -> Option<&SameId> {
        self.ids.binary_search_by_key(&id, |same| same.id).ok().map(|at| &self.ids[at])
    }

    fn descend(&mut self, root: u32) {
        self.stack.push(root);
        while let Some(at) = self.stack.pop() {
            if self.position[at as usize] != NONE {
                continue;
            }
            self.position[at as usize] = self.layout.order.len() as u32;
            self.layout.order.push(at);
            // Pushed in reverse, popped earliest first.
            let from = self.stack.len();
            let mut child = self.first_child[at as usize];
            while child != NONE {
                // A child cut from its parent to break a cycle already has a place.
                if self.parent[child as usize] == at {
                    self.stack.push(child);
                }
                child = self.next_sibling[child as usize];
            }
            self.stack[from..].reverse();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(span_id: u64, parent_id: u64, start: u64) -> Node {
        Node { span_id, parent_id, start, is_server: false, is_client: false, duration: 0 }
    }

    #[test]
    fn children_follow_their_parent_by_start() {
        let mut tree = TreeBuilder::default();
        tree.build(&[node(4, 2, 30), node(3, 1, 50), node(1, 0, 10), node(2, 1, 20), node(9, 77, 5)]);
        assert_eq!(tree.layout.order, [2, 3, 0, 1, 4]);
        assert_eq!(tree.layout.parent_delta, [0, 1, 1, 3, 0]);
        assert_eq!(tree.layout.subtree_size, [4, 2, 1, 1, 1]);
        assert_eq!(tree.layout.flags, [flag::ROOT, 0, 0, 0, flag::ORPHAN]);
        assert_eq!(tree.layout.root, Some(2));
    }

    #[test]
    fn cycles_are_cut_at_their_earliest_span() {
        let mut tree = TreeBuilder::default();
        tree.build(&[node(1, 2, 20), node(2, 1, 10), node(3, 3, 1)]);
        assert_eq!(tree.layout.order, [2, 1, 0]);
        assert_eq!(tree.layout.parent_delta, [0, 0, 1]);
        assert_eq!(tree.layout.flags, [flag::CYCLE_BROKEN | flag::ORPHAN, flag::CYCLE_BROKEN, 0]);
    }

    #[test]
    fn a_shared_id_puts_the_server_below_the_client() {
        let mut tree = TreeBuilder::default();
        let client = Node { is_client: true, ..node(5, 1, 10) };
        let server = Node { is_server: true, ..node(5, 1, 11) };
        tree.build(&[node(1, 0, 0), server, node(6, 5, 12), client]);
        assert_eq!(tree.layout.order, [0, 3, 1, 2]);
        assert_eq!(tree.layout.parent_delta, [0, 1, 1, 1]);
    }

    /// The oracle: walks through everything for each question.
    fn parent_by_search(nodes: &[Node], at: usize) -> Option<usize> {
        let node = nodes[at];
        let with = |id: u64, wanted: fn(&Node) -> bool| {
            let all = (0..nodes.len()).filter(|at| nodes[*at].span_id == id && wanted(&nodes[*at]));
            all.min_by_key(|at| (nodes[*at].start, nodes[*at].tie(), *at))
        };
        let client = if node.is_server { with(node.span_id, |n| n.is_client) } else { None };
        if client.is_some() || node.parent_id == 0 {
            return client;
        }
        let named = with(node.parent_id, |n| n.is_server).or_else(|| with(node.parent_id, |_| true));
        named.filter(|other| *other != at)
    }

    #[test]
    fn many_spans_of_one_id_take_no_longer_than_others() {
        const SPANS: u64 = 100_000;
        let server = |n| Node { is_server: true, ..node(7, 0, n) };
        // Servers without a client, and children of an id that many spans share, none of them a server.
        let servers: Vec<Node> = (0..SPANS).map(server).collect();
        let children: Vec<Node> =
            (0..SPANS).map(|n| if n % 2 == 0 { node(7, 0, n) } else { node(1000 + n, 7, n) }).collect();
        let began = std::time::Instant::now();
        let mut tree = TreeBuilder::default();
        tree.build(&servers);
        assert!(tree.layout.flags.iter().all(|flags| *flags == flag::ROOT | flag::DUPLICATE_ID));
        tree.build(&children);
        assert_eq!(tree.layout.subtree_size[0], SPANS as i32 / 2 + 1);
        // Some 20 ms; looking through them took 9 s.
        assert!(began.elapsed() < std::time::Duration::from_secs(3), "{:?}", began.elapsed());
    }

    proptest! {
        #[test]
        fn parents_are_those_a_search_finds(ids in prop::collection::vec((1u64..9, 0u64..10, 0u8..3), 2..40)) {
            let nodes: Vec<Node> = ids.iter().map(|(id, parent, kind)| Node {
                is_server: *kind == 1, is_client: *kind == 2, ..node(*id, *parent, 0)
            }).collect();
            let mut tree = TreeBuilder::default();
            tree.index(&nodes);
            tree.find_parents(&nodes);
            for at in 0..nodes.len() {
                prop_assert_eq!(parent_by_search(&nodes, at).map_or(NONE, |other| other as u32), tree.parent[at]);
            }
        }

        #[test]
        fn any_ids_give_a_whole_forest(ids in prop::collection::vec((1u64..12, 0u64..14, 0u64..5, 0u8..3), 1..60)) {
            let nodes: Vec<Node> = ids.iter().map(|(id, parent, start, kind)| Node {
                is_server: *kind == 1, is_client: *kind == 2, ..node(*id, *parent, *start)
            }).collect();
            let mut tree = TreeBuilder::default();
            tree.build(&nodes);
            let layout = &tree.layout;
            let mut seen = layout.order.clone();
            seen.sort_unstable();
            prop_assert!(seen.iter().enumerate().all(|(want, got)| want as u32 == *got));
            for (at, delta) in layout.parent_delta.iter().enumerate() {
                let size = layout.subtree_size[at] as usize;
                prop_assert!(size >= 1 && at + size <= nodes.len());
                if *delta > 0 {
                    let parent = at - *delta as usize;
                    prop_assert!(at + size <= parent + layout.subtree_size[parent] as usize);
                }
            }
            let roots: i32 = layout.parent_delta.iter().zip(&layout.subtree_size).filter(|(d, _)| **d == 0).map(|(_, s)| s).sum();
            prop_assert_eq!(roots as usize, nodes.len());
        }
    }
}
