//! A Jaeger process to an OTLP resource.

use std::borrow::Cow;

use hashbrown::HashMap;

use super::span::{Tag, TagValue};
use crate::otlp::build::{RESOURCE_ATTRIBUTES, Scalar, name, put_attribute};

/// The service name of a process that stands for a resource without attributes.
const NO_RESOURCE: &[u8] = b"OTLPResourceNoServiceName";

/// Tags are held until all are there, so there must be an end to them.
pub(super) const MAX_PROCESS_TAGS: usize = 1 << 16;

/// Writes the `Resource` of a process. Of equal keys the last value counts, in the place of the first.
pub(super) fn put_resource<'a>(service: &'a [u8], tags: &[Tag<'a>], out: &mut Vec<u8>) {
    out.clear();
    if service == NO_RESOURCE {
        return;
    }
    let mut places: HashMap<&[u8], usize> = HashMap::with_capacity(tags.len() + 1);
    let mut attributes: Vec<Tag<'a>> = Vec::with_capacity(tags.len() + 1);
    let service = (!service.is_empty()).then_some(Tag { key: b"service.name", value: TagValue::Text(service) });
    for tag in service.iter().chain(tags) {
        match places.get(tag.key) {
            Some(at) => attributes[*at] = *tag,
            None => {
                places.insert(tag.key, attributes.len());
                attributes.push(*tag);
            }
        }
    }
    for Tag { key, value } in &attributes {
        match (*key, value) {
            (b"hostname", value) if !places.contains_key(&b"host.name"[..]) => put("host.name".into(), *value, out),
            (b"jaeger.version", TagValue::Text(version)) => {
                let version = format!("Jaeger-{}", name(version));
                put_attribute(RESOURCE_ATTRIBUTES, "opencensus.exporterversion", Scalar::Text(&version), out);
            }
            (key, value) => put(name(key), *value, out),
        }
    }
}

fn put(key: Cow<'_, str>, value: TagValue<'_>, out: &mut Vec<u8>) {
    value.lend(|scalar| put_attribute(RESOURCE_ATTRIBUTES, &key, scalar, out));
}
