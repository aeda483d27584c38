//! Where archived traces go: into a tenant of their own, by the way all spans go.
//!
//! Owns the name of that tenant and the cutting of a trace into requests. Does not own how long it is kept: that is the retention of the
//! tenant, which the overrides file sets.
//!
//! Crash: a request is durable when [`Archive::archive`] has its answer. Of a trace that took several requests some may be there; archiving it
//! again completes it, and answers show identical spans once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spanhouse_common::budget::Share;
use spanhouse_common::id::TenantId;
use spanhouse_ingester::pipeline::{Accepted, Compression, Encoding, Ingest, IngestRequest};
use spanhouse_querier::assemble::{ResourceGroup, ScopeGroup, Trace};
use spanhouse_querier::jaeger::Archive;
use spanhouse_querier::otlp::encode_trace_protobuf;

/// A request is cut where it gets longer than this, in bytes of protobuf.
const REQUEST_BYTES: usize = 8 << 20;

/// How long archiving waits for memory that others hold.
const PATIENCE: Duration = Duration::from_secs(5);

/// Archives into `<tenant><suffix>` through the pipeline of an ingester.
pub struct Archiving<I> {
    suffix: String,
    ingest: Arc<I>,
    /// What requests are taken from.
    memory: Share,
}

impl<I> Archiving<I> {
    /// `suffix` must make a tenant's name of a tenant's name.
    pub fn new(suffix: &str, ingest: Arc<I>, memory: Share) -> Self {
        Self { suffix: suffix.to_owned(), ingest, memory }
    }

    fn name(&self, tenant: &TenantId) -> Option<TenantId> {
        format!("{tenant}{}", self.suffix).parse().ok()
    }
}

impl<I> std::fmt::Debug for Archiving<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archiving").field("suffix", &self.suffix).finish_non_exhaustive()
    }
}

#[async_trait]
impl<I: Ingest> Archive for Archiving<I> {
    /// A tenant whose name is too long for an archive has none but itself.
    fn tenant_of(&self, tenant: &TenantId) -> TenantId {
        self.name(tenant).unwrap_or_else(|| tenant.clone())
    }

    async fn archive(&self, tenant: &TenantId, trace: &Trace) -> Result<(), String> {
        let to = self.name(tenant);
        let to = to.ok_or_else(|| format!("{tenant}{} is too long for the name of a tenant", self.suffix))?;
        for part in parts(trace, REQUEST_BYTES) {
            let body = encode_trace_protobuf(&part);
            let lease = self.memory.take(body.len(), PATIENCE).await.map_err(|error| error.to_string())?;
            let request = IngestRequest {
                tenant: to.clone(),
                encoding: Encoding::OtlpProto,
                compression: Compression::Identity,
                body: Bytes::from(body),
            };
            let Accepted { refused, .. } = self.ingest.ingest(request).await.map_err(|error| error.to_string())?;
            drop(lease);
            if !refused.is_empty() {
                return Err(format!("not all spans were taken: {refused:?}"));
            }
        }
        Ok(())
    }
}

/// The trace in parts of about so many bytes, a span at least. The bytes of `ExportTraceServiceRequest` are those of a trace.
fn parts(trace: &Trace, bytes: usize) -> Vec<Trace> {
    let mut parts = vec![Trace::default()];
    let mut used = 0;
    for group in &trace.groups {
        for scope in &group.scopes {
            for span in &scope.spans {
                let spans = vec![span.clone()];
                let alone = Trace {
                    groups: vec![ResourceGroup {
                        resource: Arc::clone(&group.resource),
                        scopes: vec![ScopeGroup { scope: Arc::clone(&scope.scope), spans }],
                    }],
                };
                let size = alone.encoded_len();
                if used > 0 && used + size > bytes {
                    parts.push(Trace::default());
                    used = 0;
                }
                used += size;
                if let Some(part) = parts.last_mut() {
                    append(part, alone);
                }
            }
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Adds one span, to the group it belongs to if that is the last.
fn append(part: &mut Trace, alone: Trace) {
    for group in alone.groups {
        let same = part.groups.last_mut().filter(|last| Arc::ptr_eq(&last.resource, &group.resource));
        let Some(last) = same else {
            part.groups.push(group);
            continue;
        };
        for scope in group.scopes {
            match last.scopes.last_mut().filter(|last| Arc::ptr_eq(&last.scope, &scope.scope)) {
                Some(last) => last.spans.extend(scope.spans),
                None => last.scopes.push(scope),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use prost::Message as _;
    use spanhouse_common::id::{SpanId, TraceId};
    use spanhouse_common::model::{Resource, Scope, Span};
    use spanhouse_ingester::pipeline::IngestError;
    use spanhouse_proto::otlp_service::ExportTraceServiceRequest;

    use super::*;

    #[derive(Default)]
    struct Remembers(Mutex<Vec<(TenantId, Bytes)>>);

    impl Ingest for Remembers {
        async fn ingest(&self, request: IngestRequest) -> Result<Accepted, IngestError> {
            self.0.lock().push((request.tenant, request.body));
            Ok(Accepted::default())
        }
    }

    fn trace(groups: u64, spans: u64) -> Trace {
        let span = |n: u64| Span {
            trace_id: TraceId([1; 16]),
            span_id: SpanId(n.to_be_bytes()),
            name: "n".repeat(1000),
            ..Span::default()
        };
        let group = |group: u64| ResourceGroup {
            resource: Arc::new(Resource::default()),
            scopes: vec![ScopeGroup {
                scope: Arc::new(Scope::default()),
                spans: (group * spans..(group + 1) * spans).map(span).collect(),
            }],
        };
        Trace { groups: (0..groups).map(group).collect() }
    }

    #[test]
    fn parts_hold_every_span_once_and_are_small() {
        let whole = trace(3, 7);
        assert_eq!(parts(&whole, usize::MAX), std::slice::from_ref(&whole));
        for bytes in [1, 3_000, 10_000] {
            let parts = parts(&whole, bytes);
            assert!(parts.iter().all(|part| part.encoded_len() <= bytes.max(1_100)), "{bytes}");
            let ids = |trace: &Trace| {
                let spans = trace.groups.iter().flat_map(|group| &group.scopes).flat_map(|scope| &scope.spans);
                spans.map(|span| span.span_id).collect::<Vec<_>>()
            };
            assert_eq!(parts.iter().flat_map(ids).collect::<Vec<_>>(), ids(&whole), "{bytes}");
        }
        assert!(parts(&Trace::default(), 1).is_empty());
    }

    #[tokio::test]
    async fn a_trace_goes_to_the_tenant_of_the_archive() {
        let ingest = Arc::new(Remembers::default());
        let archiving = Archiving::new("-archive", Arc::clone(&ingest), Share::new("ingest", 1 << 20));
        let tenant: TenantId = "shop".parse().unwrap();
        assert_eq!(archiving.tenant_of(&tenant).as_str(), "shop-archive");
        archiving.archive(&tenant, &trace(1, 2)).await.unwrap();
        let (to, body) = ingest.0.lock().pop().unwrap();
        assert_eq!(to.as_str(), "shop-archive");
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        assert_eq!(request.resource_spans[0].scope_spans[0].spans.len(), 2);

        let long: TenantId = "x".repeat(145).parse().unwrap();
        let error = archiving.archive(&long, &trace(1, 1)).await.unwrap_err();
        assert!(error.ends_with("is too long for the name of a tenant"), "{error}");
        assert_eq!(archiving.tenant_of(&long), long);
        assert!(ingest.0.lock().is_empty());
    }
}
