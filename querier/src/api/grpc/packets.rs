//! Answers cut to messages that every client accepts.
//!
//! Clients take 4 MiB at once by default; we send 1 MiB, as Tempo does. Each message holds at least one item, each answer makes at
//! least one message, and each message has the metrics. What says that an answer is partial stands in the last one.

use prost::Message;
use spanhouse_proto::tempopb;

use crate::engine::answer::{QueryStats, SearchAnswer, SeriesAnswer, TagNamesAnswer, TagValuesAnswer};
use crate::wire;

const MAX_BYTES: usize = 1 << 20;

/// Room for metrics, status and message.
const RESERVED_BYTES: usize = 4096;

/// Tag and length of an item.
const FRAME_BYTES: usize = 6;

/// Cuts `items` where the next would not fit.
fn split<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut packets = vec![Vec::new()];
    let mut used = RESERVED_BYTES;
    for item in items {
        let bytes = size(&item) + FRAME_BYTES;
        match packets.last_mut() {
            Some(packet) if packet.is_empty() || used + bytes <= MAX_BYTES => {
                used += bytes;
                packet.push(item);
            }
            _ => {
                used = RESERVED_BYTES + bytes;
                packets.push(vec![item]);
            }
        }
    }
    packets
}

pub(super) fn search(answer: SearchAnswer) -> Vec<tempopb::SearchResponse> {
    let whole = wire::search(answer);
    let metrics = whole.metrics;
    let message = |traces| tempopb::SearchResponse { traces, metrics: metrics.clone() };
    split(whole.traces, Message::encoded_len).into_iter().map(message).collect()
}

pub(super) fn query_range(answer: SeriesAnswer) -> Vec<tempopb::QueryRangeResponse> {
    let whole = wire::query_range(answer);
    let metrics = whole.metrics;
    let message = |series| tempopb::QueryRangeResponse { series, metrics: metrics.clone(), ..Default::default() };
    let mut messages: Vec<_> = split(whole.series, Message::encoded_len).into_iter().map(message).collect();
    if let Some(last) = messages.last_mut() {
        (last.status, last.message) = (whole.status, whole.message);
    }
    messages
}

pub(super) fn query_instant(answer: SeriesAnswer) -> Vec<tempopb::QueryInstantResponse> {
    let whole = wire::query_instant(answer);
    let metrics = whole.metrics;
    let message = |series| tempopb::QueryInstantResponse { series, metrics: metrics.clone(), ..Default::default() };
    let mut messages: Vec<_> = split(whole.series, Message::encoded_len).into_iter().map(message).collect();
    if let Some(last) = messages.last_mut() {
        (last.status, last.message) = (whole.status, whole.message);
    }
    messages
}

pub(super) fn tag_names_v1(names: Vec<String>, stats: &QueryStats) -> Vec<tempopb::SearchTagsResponse> {
    split(names, String::len).into_iter().map(|names| wire::tag_names_v1(names, stats)).collect()
}

/// A scope that goes over several messages has its name in each.
pub(super) fn tag_names_v2(answer: TagNamesAnswer) -> Vec<tempopb::SearchTagsV2Response> {
    let TagNamesAnswer { scopes, stats } = answer;
    let tags = scopes.into_iter().flat_map(|scope| scope.tags.into_iter().map(move |tag| (scope.name, tag))).collect();
    let message = |tags: Vec<(&'static str, String)>| {
        let mut scopes: Vec<tempopb::SearchTagsV2Scope> = Vec::new();
        for (name, tag) in tags {
            match scopes.last_mut() {
                Some(scope) if scope.name == name => scope.tags.push(tag),
                _ => scopes.push(tempopb::SearchTagsV2Scope { name: name.to_owned(), tags: vec![tag] }),
            }
        }
        tempopb::SearchTagsV2Response {
            scopes,
            ..wire::tag_names_v2(TagNamesAnswer { scopes: Vec::new(), stats: stats.clone() })
        }
    };
    split(tags, |(_, tag): &(&'static str, String)| tag.len()).into_iter().map(message).collect()
}

pub(super) fn tag_values_v1(values: Vec<String>, stats: &QueryStats) -> Vec<tempopb::SearchTagValuesResponse> {
    split(values, String::len).into_iter().map(|values| wire::tag_values_v1(values, stats)).collect()
}

pub(super) fn tag_values_v2(answer: TagValuesAnswer) -> Vec<tempopb::SearchTagValuesV2Response> {
    let whole = wire::tag_values_v2(answer);
    let metrics = whole.metrics;
    let message = |tag_values| tempopb::SearchTagValuesV2Response { tag_values, metrics: metrics.clone() };
    split(whole.tag_values, Message::encoded_len).into_iter().map(message).collect()
}
