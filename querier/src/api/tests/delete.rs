//! `DELETE`: off by default, what is refused, what is answered, and that answers after it know no such trace.

use object_store::memory::InMemory;
use spanhouse_common::deletion::{Asker, Deletions, Recorded, records};
use spanhouse_common::id::TraceId;
use spanhouse_common::manifest::Manifests;
use spanhouse_common::source::{LivePart, LiveReader, LiveView, Source};
use spanhouse_common::store::faults::{FaultConfig, FaultyStore};
use spanhouse_common::store::tenants::TenantRegistry;

use super::*;
use crate::engine::Engine;
use crate::find_trace::QueryBounds;
use crate::sources::Sources;

/// Live data that is the same for every tenant.
#[derive(Debug)]
struct AlwaysLive(Vec<StoredSpan>);

impl LiveReader for AlwaysLive {
    fn live(&self, _: &TenantId) -> LiveView {
        let source: Arc<dyn Source> = Arc::new(FakeSource::live(self.0.clone()));
        let part = LivePart {
            writer: spanhouse_common::id::WriterId::from_bytes([1; 16]),
            to: spanhouse_common::id::WalPosition { epoch: 1, sequence: 1 },
            source,
        };
        LiveView { parts: vec![part], manifest_version: 0 }
    }
}

struct World {
    store: Arc<FaultyStore>,
    deps: ApiDeps,
}

impl World {
    async fn new() -> Self {
        let store = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), FaultConfig::default(), 1));
        let clock = ManualClock::at(UnixNanos::from_seconds(1_700_000_000));
        let tenants = TenantRegistry::open(Arc::clone(&store) as _, Arc::clone(&clock) as _, 2).await.unwrap();
        let manifests = Arc::new(Manifests::new(Arc::clone(&store) as _, Arc::clone(&clock) as _, tenants));
        let mut other = example();
        other.span.trace_id = TraceId([7; 16]);
        let live = Arc::new(AlwaysLive(vec![example(), other]));
        let sources = Arc::new(Sources::new(live, Arc::clone(&manifests), Arc::clone(&clock) as _, 32 << 20));
        let engine = Engine::new(Arc::clone(&sources) as _, Share::new("queries", 256 << 20), QueryBounds::default());
        let deps = ApiDeps {
            snapshots: sources,
            engine: Arc::new(engine),
            deletions: Some(Deletions::new(manifests, clock)),
            ..deps(FakeSnapshots::of(Vec::new()))
        };
        Self { store, deps }
    }

    async fn delete(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        delete(&self.deps, path, headers).await
    }

    async fn found(&self) -> (u16, usize) {
        let search = ask(&self.deps, "/api/search?q=%7B%7D&start=1699999000&end=1700001000", &[]).await;
        let search: serde_json::Value = serde_json::from_str(search.text()).unwrap();
        (ask(&self.deps, &format!("/api/traces/{ID}"), &[]).await.status, search["traces"].as_array().unwrap().len())
    }

    async fn records(&self, tenant: &TenantId) -> Vec<Recorded> {
        self.store.set(FaultConfig::default());
        records(&*self.store, tenant).await.unwrap()
    }
}

async fn delete(deps: &ApiDeps, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let request = headers.iter().fold(Request::delete(path), |request, (name, value)| request.header(*name, *value));
    let answer = send(deps, request.body(Body::empty()).unwrap()).await;
    (answer.status, answer.text().to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_deleted_trace_is_gone() {
    let world = World::new().await;
    assert_eq!(world.found().await, (200, 2));
    assert_eq!(world.delete(&format!("/api/traces/{ID}?reason=no%20more"), &[]).await, (204, String::new()));
    assert_eq!(world.found().await, (404, 1));
    // Again, by the other path, and one that nobody sent.
    assert_eq!(world.delete(&format!("/api/v2/traces/{ID}"), &[]).await.0, 204);
    assert_eq!(world.delete("/api/traces/1f", &[]).await.0, 204);
    let recorded = world.records(&TenantId::single()).await;
    // Both at one time, so by id.
    let Recorded::Readable(record) = &recorded[1] else { panic!("{recorded:?}") };
    assert_eq!((record.by, record.reason.as_deref(), record.trace_id.to_string()), (Asker::Api, Some("no more"), ID.into()));
    assert_eq!(recorded.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused() {
    let world = World::new().await;
    let off = ApiDeps { deletions: None, ..world.deps.clone() };
    for version in ["/api/traces", "/api/v2/traces"] {
        let (status, text) = delete(&off, &format!("{version}/{ID}"), &[]).await;
        assert_eq!(status, 403);
        assert!(text.contains("deletion.enabled"), "{text}");
    }
    assert_eq!(world.delete("/api/traces/xyz", &[]).await.0, 400);
    assert_eq!(world.delete("/api/traces/0", &[]).await.0, 400);
    let long = format!("/api/traces/{ID}?reason={}", "x".repeat(1025));
    assert_eq!(world.delete(&long, &[]).await.0, 400);
    assert_eq!(world.found().await, (200, 2));

    let mut many = world.deps.clone();
    many.settings.multitenancy = true;
    let path = format!("/api/traces/{ID}");
    let (status, text) = delete(&many, &path, &[("x-scope-orgid", "a|b")]).await;
    assert_eq!((status, text.contains("one tenant")), (400, true), "{text}");
    assert_eq!(delete(&many, &path, &[]).await.0, 401);
    assert_eq!(delete(&many, &path, &[("x-scope-orgid", "a|a")]).await.0, 204);
    assert_eq!(ask(&many, &path, &[("x-scope-orgid", "a")]).await.status, 404);
    assert_eq!(ask(&many, &path, &[("x-scope-orgid", "b")]).await.status, 200, "another tenant's trace of that id");
    assert_eq!(world.records(&"a".parse().unwrap()).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn trouble_with_the_store_is_not_told_as_done() {
    let world = World::new().await;
    world.store.set(FaultConfig { error_before: 1.0, ..FaultConfig::default() });
    let path = format!("/api/traces/{ID}");
    let (status, text) = world.delete(&path, &[]).await;
    assert_eq!((status, text.contains("nothing was deleted")), (503, true), "{text}");
    // Every write happens and every reply is lost: the outcome is found out.
    world.store.set(FaultConfig { error_after: 1.0, ..FaultConfig::default() });
    let answer = world.delete(&path, &[]).await;
    world.store.set(FaultConfig::default());
    if answer.0 != 204 {
        assert!(answer.1.contains("again"), "{answer:?}");
        assert_eq!(world.delete(&path, &[]).await.0, 204);
    }
    assert_eq!(world.found().await, (404, 1));
}
