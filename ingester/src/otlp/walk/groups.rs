//! What stands around the spans of a request: resources and scopes, and which groups of a request must stay apart.
//!
//! Owns finding a group's resource and scope before its spans are read, and the ordinals of equal ones. Does not own the spans.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use spanhouse_common::batch::{Interner, ResourceEntry, SpanBatch, Sym};
use spanhouse_common::id::TraceId;
use spanhouse_common::model::{Scope, typed_json};

use super::super::values::{self, ValueError};
use super::super::wire::{Malformed, Reader, put_bytes};
use crate::pipeline::RefusalReason;

/// One `ResourceSpans` message: its resource may stand anywhere in it, so it is found before any span is read.
pub(super) struct Group<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) content: usize,
}

pub(super) struct Groups<'a> {
    pub(super) all: Vec<Group<'a>>,
    /// Distinct resources of the request: the resource, or the reason to refuse every span of it. And in how many groups it occurs.
    pub(super) contents: Vec<Content>,
}

pub(super) struct Content {
    pub(super) resource: Result<spanhouse_common::model::Resource, RefusalReason>,
    pub(super) groups: usize,
}

impl<'a> Groups<'a> {
    pub(super) fn of_request(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let mut groups = Self { all: Vec::new(), contents: Vec::new() };
        let mut known: HashMap<Vec<u8>, usize, RandomState> = HashMap::default();
        let mut by_json: HashMap<String, usize, RandomState> = HashMap::default();
        while let Some(tag) = reader.tag()? {
            if tag.number != 1 {
                reader.unknown(tag)?;
                continue;
            }
            let bytes = reader.bytes_of(tag)?;
            let head = Head::of(bytes, 1, 2)?;
            let content = match known.get(&head.key) {
                Some(&content) => content,
                None => {
                    let resource = match values::resource(&head.message) {
                        Ok(resource) => {
                            let schema_url = values::text(head.schema_url)?.to_owned();
                            Ok(spanhouse_common::model::Resource { schema_url, group_unknown: head.unknown, ..resource })
                        }
                        Err(ValueError::TooDeep) => Err(RefusalReason::AttributeTooDeep),
                        Err(ValueError::Malformed(error)) => return Err(error),
                    };
                    // Groups whose bytes differ may still say the same, and must stay apart all the same.
                    let mut json = String::new();
                    if let Ok(resource) = &resource {
                        typed_json::write_resource(resource, &mut json);
                    }
                    let content = *by_json.entry(json).or_insert(groups.contents.len());
                    if content == groups.contents.len() {
                        groups.contents.push(Content { resource, groups: 0 });
                    }
                    known.insert(head.key, content);
                    content
                }
            };
            groups.contents[content].groups += 1;
            groups.all.push(Group { bytes, content });
        }
        Ok(groups)
    }
}

/// What stands around the repeated part of a `ResourceSpans` or `ScopeSpans` message.
pub(super) struct Head<'a> {
    /// The resource or scope message. Given twice, protobuf merges the two: that is, joins their bytes.
    pub(super) message: Vec<u8>,
    pub(super) schema_url: &'a [u8],
    pub(super) unknown: Vec<u8>,
    /// Everything above in one string, to tell groups apart.
    pub(super) key: Vec<u8>,
}

impl<'a> Head<'a> {
    pub(super) fn of(bytes: &'a [u8], message_field: u32, repeated_field: u32) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let mut head = Head { message: Vec::new(), schema_url: &[], unknown: Vec::new(), key: Vec::new() };
        while let Some(tag) = reader.tag()? {
            if tag.number == message_field {
                head.message.extend_from_slice(reader.bytes_of(tag)?);
            } else if tag.number == repeated_field {
                reader.bytes_of(tag)?;
            } else if tag.number == 3 {
                head.schema_url = reader.text_of(tag)?.as_bytes();
            } else {
                values::keep(&mut reader, tag, &mut head.unknown)?;
            }
        }
        put_bytes(1, &head.message, &mut head.key);
        put_bytes(2, head.schema_url, &mut head.key);
        put_bytes(3, &head.unknown, &mut head.key);
        Ok(head)
    }
}

/// Gives each row its resource entry. Equal resources in several groups of one request get ordinals, but only as many as it
/// takes to keep the groups *of each trace* apart: an exporter that repeats itself must not multiply the dictionary.
pub(super) struct ResourceTable<'a> {
    pub(super) groups: &'a Groups<'a>,
    pub(super) group: usize,
    /// By content: entry index of each ordinal.
    pub(super) entries: Vec<Vec<u32>>,
    /// By content and trace: the last group seen and its ordinal.
    pub(super) seen: HashMap<(usize, TraceId), (usize, u32), RandomState>,
}

impl<'a> ResourceTable<'a> {
    pub(super) fn new(groups: &'a Groups<'a>) -> Self {
        Self { groups, group: 0, entries: vec![Vec::new(); groups.contents.len()], seen: HashMap::default() }
    }

    pub(super) fn enter(&mut self, group: usize) {
        self.group = group;
    }

    pub(super) fn ordinal(&mut self, content: usize, trace: TraceId) -> u32 {
        if self.groups.contents[content].groups == 1 {
            return 0;
        }
        let seen = self.seen.entry((content, trace)).or_insert((self.group, 0));
        if seen.0 != self.group {
            *seen = (self.group, seen.1 + 1);
        }
        seen.1
    }

    pub(super) fn index(&mut self, content: usize, trace: TraceId, batch: &mut SpanBatch, interner: &mut Interner) -> u32 {
        let ordinal = self.ordinal(content, trace);
        while self.entries[content].len() <= ordinal as usize {
            let Ok(resource) = &self.groups.contents[content].resource else { break };
            let mut resource = resource.clone();
            resource.ordinal = self.entries[content].len() as u32;
            let mut json = String::new();
            typed_json::write_resource(&resource, &mut json);
            let service = resource.service_name().unwrap_or_default().to_owned();
            let entry = ResourceEntry {
                json: known_text(interner, batch, json.as_bytes()),
                service_name: known_text(interner, batch, service.as_bytes()),
            };
            batch.resources.push(entry);
            self.entries[content].push(batch.resources.len() as u32 - 1);
        }
        self.entries[content][ordinal as usize]
    }
}

/// One `ScopeSpans` message of the `ResourceSpans` being walked.
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) content: usize,
}

/// A distinct scope of the request.
struct ScopeContent {
    scope: Result<Scope, RefusalReason>,
    /// Entry index of each ordinal.
    entries: Vec<u32>,
    /// The last group it occurs in, and in how many parts of that.
    group: usize,
    parts: usize,
}

/// Gives each row its scope entry, as [`ResourceTable`] does for resources: equal scopes in several parts of one group get
/// ordinals, but only as many as it takes to keep the parts *of each trace* apart.
#[derive(Default)]
pub(super) struct ScopeTable {
    known: HashMap<Vec<u8>, usize, RandomState>,
    by_json: HashMap<String, usize, RandomState>,
    contents: Vec<ScopeContent>,
    /// By content and trace: the last group and part seen and its ordinal.
    seen: HashMap<(usize, TraceId), (usize, usize, u32), RandomState>,
    group: usize,
    part: usize,
}

impl ScopeTable {
    /// Finds the scopes of the next group.
    pub(super) fn enter<'a>(&mut self, group: &'a [u8]) -> Result<Vec<Part<'a>>, Malformed> {
        self.group += 1;
        let mut parts = Vec::new();
        let mut reader = Reader::new(group);
        while let Some(tag) = reader.tag()? {
            if tag.number != 2 {
                reader.unknown(tag)?;
                continue;
            }
            let bytes = reader.bytes_of(tag)?;
            let head = Head::of(bytes, 1, 2)?;
            let content = match self.known.get(&head.key) {
                Some(&content) => content,
                None => self.learn(head)?,
            };
            let of = &mut self.contents[content];
            of.parts = if of.group == self.group { of.parts + 1 } else { 1 };
            of.group = self.group;
            parts.push(Part { bytes, content });
        }
        Ok(parts)
    }

    fn learn(&mut self, head: Head<'_>) -> Result<usize, Malformed> {
        let scope = match values::scope(&head.message) {
            Ok(scope) => {
                let schema_url = values::text(head.schema_url)?.to_owned();
                Ok(Scope { schema_url, group_unknown: head.unknown, ..scope })
            }
            Err(ValueError::TooDeep) => Err(RefusalReason::AttributeTooDeep),
            Err(ValueError::Malformed(error)) => return Err(error),
        };
        let mut json = String::new();
        if let Ok(scope) = &scope {
            typed_json::write_scope(scope, &mut json);
        }
        let content = *self.by_json.entry(json).or_insert(self.contents.len());
        if content == self.contents.len() {
            self.contents.push(ScopeContent { scope, entries: Vec::new(), group: 0, parts: 0 });
        }
        self.known.insert(head.key, content);
        Ok(content)
    }

    /// The next part of the group begins. The error is why all its spans are refused.
    pub(super) fn enter_part(&mut self, content: usize) -> Option<RefusalReason> {
        self.part += 1;
        self.contents[content].scope.as_ref().err().copied()
    }

    fn ordinal(&mut self, content: usize, trace: TraceId) -> u32 {
        if self.contents[content].parts == 1 {
            return 0;
        }
        let seen = self.seen.entry((content, trace)).or_insert((self.group, self.part, 0));
        if seen.0 != self.group {
            *seen = (self.group, self.part, 0);
        } else if seen.1 != self.part {
            *seen = (self.group, self.part, seen.2 + 1);
        }
        seen.2
    }

    pub(super) fn index(&mut self, content: usize, trace: TraceId, batch: &mut SpanBatch, interner: &mut Interner) -> u32 {
        let ordinal = self.ordinal(content, trace);
        let ScopeContent { scope, entries, .. } = &mut self.contents[content];
        while entries.len() <= ordinal as usize {
            let Ok(scope) = scope else { break };
            scope.ordinal = entries.len() as u32;
            let mut json = String::new();
            typed_json::write_scope(scope, &mut json);
            let json = known_text(interner, batch, json.as_bytes());
            batch.scopes.push(json);
            entries.push(batch.scopes.len() as u32 - 1);
        }
        entries[ordinal as usize]
    }
}

/// Interns what is valid UTF-8 already.
pub(super) fn known_text(interner: &mut Interner, batch: &mut SpanBatch, text: &[u8]) -> Sym {
    let Ok(sym) = interner.intern(&mut batch.strings, text, |_| Ok::<(), std::convert::Infallible>(()));
    sym
}
