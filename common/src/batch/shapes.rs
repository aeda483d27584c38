//! Shapes: the keys of an item's attributes in order, each with the kind of its value.
//!
//! Items made by the same code have the same keys in the same order, so a batch keeps each such sequence once, as a path in a
//! trie, and an item keeps the number of the path's last node beside its bare values. That takes 4 to 8 bytes an attribute
//! where a list of keys and values takes 16, and lets the block writer decide once per shape what happens to each attribute.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::{Sym, ValueKind};

/// A shape of one [`Shapes`] table; 0 is that of an item without attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape(pub u32);

impl Shape {
    pub const EMPTY: Self = Self(0);

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The last attribute of a shape, and the shape of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeNode {
    pub before: Shape,
    pub key: Sym,
    pub kind: ValueKind,
}

/// All shapes of a batch. A node comes after the one before it.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    nodes: Vec<ShapeNode>,
}

impl Shapes {
    /// Number of shapes, the empty one included: every [`Shape`] is below it.
    pub fn len(&self) -> usize {
        self.nodes.len() + 1
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// `None` for the empty shape.
    pub fn node(&self, shape: Shape) -> Option<&ShapeNode> {
        shape.index().checked_sub(1).map(|at| &self.nodes[at])
    }

    /// Every node with its shape, each after the one before it.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Shape, &ShapeNode)> + ExactSizeIterator {
        self.nodes.iter().enumerate().map(|(at, node)| (Shape(at as u32 + 1), node))
    }

    /// Keys and kinds in order, in place of what `out` held.
    pub fn elements(&self, shape: Shape, out: &mut Vec<(Sym, ValueKind)>) {
        out.clear();
        let mut at = shape;
        while let Some(node) = self.node(at) {
            out.push((node.key, node.kind));
            at = node.before;
        }
        out.reverse();
    }

    fn push(&mut self, node: ShapeNode) -> Shape {
        self.nodes.push(node);
        Shape(self.nodes.len() as u32)
    }

    /// Bytes this table holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<ShapeNode>()
    }

    pub(super) fn clear(&mut self) {
        self.nodes.clear();
    }

    pub(super) fn shrink(&mut self) {
        if self.nodes.capacity() > self.nodes.len() + self.nodes.len() / 4 {
            self.nodes.shrink_to_fit();
        }
    }
}

/// Finds or adds shapes one attribute at a time. Kept apart from [`Shapes`] because only building needs it; reused between
/// batches.
#[derive(Debug, Default)]
pub struct ShapeFinder {
    table: HashTable<Shape>,
    hasher: RandomState,
    /// By shape: the one that followed it last time.
    followed_by: Vec<Shape>,
}

impl ShapeFinder {
    /// The attribute that followed `shape` last time.
    #[inline]
    pub fn likely<'s>(&self, shapes: &'s Shapes, shape: Shape) -> Option<&'s ShapeNode> {
        self.followed_by.get(shape.index()).and_then(|next| shapes.node(*next))
    }

    /// `shape` with one more attribute.
    #[inline]
    pub fn with(&mut self, shapes: &mut Shapes, shape: Shape, key: Sym, kind: ValueKind) -> Shape {
        if let Some(next) = self.followed_by.get(shape.index())
            && shapes.node(*next).is_some_and(|node| node.key == key && node.kind == kind)
        {
            return *next;
        }
        self.find_or_add(shapes, ShapeNode { before: shape, key, kind })
    }

    fn find_or_add(&mut self, shapes: &mut Shapes, node: ShapeNode) -> Shape {
        let hasher = &self.hasher;
        let hash_of = |node: &ShapeNode| hasher.hash_one((node.before, node.key, node.kind));
        let hash = hash_of(&node);
        let found = self.table.find(hash, |shape| shapes.node(*shape) == Some(&node)).copied();
        let next = found.unwrap_or_else(|| {
            let next = shapes.push(node);
            let shapes = &*shapes;
            self.table.insert_unique(hash, next, |shape| shapes.node(*shape).map_or(0, hash_of));
            next
        });
        let at = node.before.index();
        if self.followed_by.len() <= at {
            self.followed_by.resize(at + 1, Shape::EMPTY);
        }
        self.followed_by[at] = next;
        next
    }

    /// Forgets everything but keeps the room, unless it grew beyond what the next batch is likely to need.
    pub fn reset(&mut self) {
        if self.table.capacity() > 1 << 14 {
            *self = Self::default();
        } else {
            self.table.clear();
            self.followed_by.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_found_again_and_reads_back_in_order() {
        let (mut shapes, mut finder) = (Shapes::default(), ShapeFinder::default());
        let mut build = |elements: &[(u32, ValueKind)]| {
            let all = elements.iter();
            all.fold(Shape::EMPTY, |shape, (key, kind)| finder.with(&mut shapes, shape, Sym(*key), *kind))
        };
        let (a, b) = ([(1, ValueKind::Str), (2, ValueKind::Int)], [(1, ValueKind::Str), (2, ValueKind::Str)]);
        let first = build(&a);
        let second = build(&b);
        assert_ne!(first, second);
        assert_eq!((build(&a), build(&b), build(&[])), (first, second, Shape::EMPTY));
        // One node for the key they share, and one for each end.
        assert_eq!(shapes.len(), 4);
        let mut out = Vec::new();
        shapes.elements(first, &mut out);
        assert_eq!(out, [(Sym(1), ValueKind::Str), (Sym(2), ValueKind::Int)]);
        shapes.elements(Shape::EMPTY, &mut out);
        assert!(out.is_empty());
    }
}
