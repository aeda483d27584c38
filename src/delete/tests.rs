use object_store::{ObjectStoreExt, PutPayload};
use spanhouse_common::id::BlockId;
use spanhouse_common::manifest::Manifests;
use spanhouse_common::store::{self, BlockObject, TenantPaths, TenantRegistry};
use spanhouse_common::time::SystemClock;

use super::*;

/// A store with one tenant and nothing in it.
struct World {
    dir: tempfile::TempDir,
}

/// Answers what it is told, and keeps the questions.
struct Scripted(Option<&'static str>, Vec<String>);

impl Confirm for Scripted {
    fn answer(&mut self, question: &str) -> std::io::Result<Option<String>> {
        self.1.push(question.to_owned());
        Ok(self.0.map(str::to_owned))
    }
}

impl World {
    async fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        world.deps().await.manifests.for_writing(&TenantId::single()).await.unwrap();
        world
    }

    async fn deps(&self) -> BlocksDeps {
        let store_url = self.dir.path().join("store").display().to_string();
        let store = store::open(&store_url, &store::OpenOptions::new()).unwrap();
        let clock = SystemClock::shared();
        let tenants = TenantRegistry::open(Arc::clone(&store), Arc::clone(&clock) as _, 100).await.unwrap();
        let manifests = Arc::new(Manifests::new(store, Arc::clone(&clock) as _, tenants));
        BlocksDeps { manifests, store_url, data_dir: self.dir.path().to_path_buf(), clock }
    }

    async fn run(&self, command: DeleteCommand, ask: &mut Scripted) -> Result<String> {
        let mut out = Vec::new();
        run(command, &self.deps().await, ask, &mut out).await?;
        Ok(String::from_utf8(out)?)
    }

    async fn ls(&self) -> serde_json::Value {
        let command = DeleteCommand::Ls(LsOptions { tenant: None, json: true });
        serde_json::from_str(&self.run(command, &mut Scripted(None, vec![])).await.unwrap()).unwrap()
    }
}

fn trace(n: u8, tenant: &str, yes: bool) -> DeleteCommand {
    let reason = Some("ticket\x1b[31m 4711".to_owned());
    DeleteCommand::Trace { id: TraceId([n; 16]), tenant: tenant.parse().unwrap(), reason, yes }
}

#[tokio::test]
async fn asks_deletes_and_lists() {
    let world = World::new().await;
    // Somebody at a terminal says no, or nothing.
    for no in ["n\n", "\n", "", "yesterday\n"] {
        let mut ask = Scripted(Some(no), vec![]);
        let error = world.run(trace(1, "single-tenant", false), &mut ask).await.unwrap_err().to_string();
        assert_eq!((error.as_str(), ask.1.len()), ("nothing was deleted", 1), "{no:?}");
        assert!(ask.1[0].contains(&"01".repeat(16)) && ask.1[0].contains("single-tenant"), "{:?}", ask.1);
    }
    assert_eq!(world.ls().await, serde_json::json!([]));

    let mut ask = Scripted(Some("Y\n"), vec![]);
    let text = world.run(trace(1, "single-tenant", false), &mut ask).await.unwrap();
    assert!(text.starts_with(&format!("deleted trace {}", "01".repeat(16))) && text.contains("5 s"), "{text}");
    let mut nobody = Scripted(None, vec![]);
    world.run(trace(2, "single-tenant", true), &mut nobody).await.unwrap();
    assert_eq!(nobody.1.len(), 0, "--yes");
    world.run(trace(3, "single-tenant", false), &mut nobody).await.unwrap();
    let again = world.run(trace(3, "single-tenant", true), &mut nobody).await.unwrap();
    assert!(again.contains("nothing to do"), "{again}");

    let listed = world.ls().await;
    let of = |key: &str| listed.as_array().unwrap().iter().map(|one| one[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("trace_id"), ["01".repeat(16), "02".repeat(16), "03".repeat(16)]);
    assert_eq!((of("by"), of("hidden")), (vec!["cli".into(); 3], vec![true.into(); 3]));
    assert_eq!(listed[0]["reason"], "ticket\u{1b}[31m 4711");

    // What did not complete, and what is no record.
    let deps = world.deps().await;
    let key = TenantPaths::new(&TenantId::single()).deletion(UnixNanos(5), TraceId([9; 16]));
    deps.manifests.store().put(&key, PutPayload::from_static(b"{}\n")).await.unwrap();
    assert_eq!((&world.ls().await[0]["hidden"], &world.ls().await[0]["by"]), (&false.into(), &serde_json::Value::Null));
    let table = DeleteCommand::Ls(LsOptions { tenant: Some(TenantId::single()), json: false });
    let table = world.run(table, &mut nobody).await.unwrap();
    assert!(
        table.contains("1970-01-01T00:00:00Z") && table.contains("unreadable") && table.contains("4 deletions"),
        "{table}"
    );
    assert!(table.contains("ticket [31m 4711") && !table.contains('\u{1b}'), "{table}");
}

#[tokio::test]
async fn refuses_what_is_most_likely_a_mistake() {
    let world = World::new().await;
    let mut nobody = Scripted(None, vec![]);
    let error = format!("{:#}", world.run(trace(1, "singel-tenant", true), &mut nobody).await.unwrap_err());
    assert!(error.contains("no tenant `singel-tenant`; it has single-tenant") && error.contains("flush.max_age"), "{error}");
    let zeros = world.run(trace(0, "single-tenant", true), &mut nobody).await.unwrap_err().to_string();
    assert!(zeros.contains("all zeros"), "{zeros}");
    let long = DeleteCommand::Trace {
        id: TraceId([1; 16]),
        tenant: TenantId::single(),
        reason: Some("x".repeat(1025)),
        yes: false,
    };
    assert!(world.run(long, &mut nobody).await.unwrap_err().to_string().contains("1024 bytes"));
    assert_eq!((nobody.1.len(), world.ls().await), (0, serde_json::json!([])));
}

/// The manifest is lost, the records are not: the traces stay deleted.
#[tokio::test]
async fn a_rebuilt_manifest_keeps_traces_deleted() {
    use crate::blocks::{BlocksCommand, run as run_blocks};
    let world = World::new().await;
    let mut nobody = Scripted(None, vec![]);
    for n in [1, 2] {
        world.run(trace(n, "single-tenant", true), &mut nobody).await.unwrap();
    }
    let deps = world.deps().await;
    let paths = TenantPaths::new(&TenantId::single());
    // An object where blocks are, which makes it a loss.
    let block = paths.block(BlockId::generate(), BlockObject::Spans);
    deps.manifests.store().put(&block, PutPayload::from_static(b"no block")).await.unwrap();
    for version in 1..=3 {
        deps.manifests.store().delete(&paths.version(version)).await.unwrap();
    }
    let mut out = Vec::new();
    let rebuild = BlocksCommand::RebuildManifest { tenant: None, json: false };
    run_blocks(rebuild, &world.deps().await, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("2 traces stay deleted"), "{text}");
    let listed = world.ls().await;
    assert_eq!((&listed[0]["hidden"], &listed[1]["hidden"]), (&true.into(), &true.into()));
}
