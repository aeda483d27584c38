//! Disks that are full, read-only or broken: nothing false is acknowledged, nothing acknowledged is lost, and the server
//! recovers by itself.
//!
//! One tenant's broken store path or manifest is that tenant's trouble alone.
//!
//! Needs root for mounts, and strace for a disk that reports an error: part of the set of `harness::tools`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use prost::Message;
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_trace::Span;

use crate::harness::otlp::{PROTOBUF, attribute, new_id, request, trace};
use crate::harness::query::{expect_same_spans, spans};
use crate::harness::server::{Answer, Server, Setup};
use crate::harness::{SOON, eventually, tools};

/// A file system of its own, gone when dropped.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, size: &str) -> Result<Self, String> {
        tools::root()?;
        std::fs::create_dir_all(at).expect("a directory to mount on");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", &at.to_string_lossy()])?;
        Ok(Self(at.to_owned()))
    }

    fn remount(&self, how: &str) {
        run("mount", &["-o", &format!("remount,{how}"), &self.0.to_string_lossy()]).expect("a remount");
    }

    /// Takes all the space there is. Removing the file gives it back.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = std::fs::File::create(&path).expect("a file");
        for size in [1 << 20, 1 << 12] {
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazy: whoever still has a file open does not keep the mount.
        let _ = run("umount", &["-l", &self.0.to_string_lossy()]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

impl Server {
    /// Sends a trace; notes it if it was acknowledged.
    async fn try_send(&self, acked: &mut Vec<(u128, Vec<Span>)>) -> Answer {
        let id = new_id();
        let spans = trace(id, 50);
        let answer = self.post(&[PROTOBUF], request(spans.clone()).encode_to_vec()).await;
        if answer.status == 200 {
            acked.push((id, spans));
        }
        answer
    }

    async fn expect_all(&self, acked: &[(u128, Vec<Span>)]) {
        for (id, spans) in acked {
            self.expect_whole(*id, spans).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_recovers() {
    let setup = Setup::new().flushing_often();
    let mount = match Mount::tmpfs(&setup.home().join("small"), "64m") {
        Ok(mount) => mount,
        Err(why) => return tools::not_run("a_full_disk_refuses_and_recovers", &why),
    };
    let data = mount.0.join("data");
    let setup = setup.at(&data).expecting("flush failed").expecting("wal").expecting("WAL");
    let server = setup.start().await;
    let mut acked = Vec::new();
    for _ in 0..20 {
        assert_eq!(server.try_send(&mut acked).await.status, 200);
    }
    let ballast = mount.fill();
    // Room left in the file system's last page or in an open segment may take a few more.
    let refused =
        eventually("a refusal", async || Some(server.try_send(&mut acked).await).filter(|a| a.status != 200)).await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    let wait: u64 = refused.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    server.until_metric("spanhouse_ingester_wal_write_failures_total", |n| n >= 1.0).await;
    // Reads go on.
    server.expect_all(&acked).await;

    // A start on the full disk works too: what is stored can be read while there is no room to write.
    server.kill();
    let server = setup.start_unready().await;
    server.expect_all(&acked).await;
    std::fs::remove_file(ballast).expect("the ballast goes");
    eventually("ready", async || server.get("/ready").await.status.eq(&200).then_some(())).await;
    server.expect_all(&acked).await;
    let before = acked.len();

    // And once more without a restart in between.
    let ballast = mount.fill();
    eventually("a refusal", async || Some(server.try_send(&mut acked).await).filter(|a| a.status == 429)).await;
    std::fs::remove_file(ballast).expect("the ballast goes");
    eventually("taking spans again", async || Some(server.try_send(&mut acked).await).filter(|a| a.status == 200)).await;
    assert!(acked.len() > before);
    eventually("ready again", async || server.get("/ready").await.status.eq(&200).then_some(())).await;
    server.expect_all(&acked).await;
    server.kill();
    let server = setup.start().await;
    server.expect_all(&acked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_is_named_and_what_is_stored_is_served() {
    let setup = Setup::new().expecting("Read-only file system").expecting("query failed");
    let mount = match Mount::tmpfs(&setup.home().join("frozen"), "8m") {
        Ok(mount) => mount,
        Err(why) => return tools::not_run("a_read_only_disk_is_named_and_what_is_stored_is_served", &why),
    };
    let setup = setup.at(&mount.0.join("data"));
    // Nothing is there yet: there is nothing to serve, so the start fails and says why.
    mount.remount("ro");
    let mut process = setup.spawn();
    let status = process.ended(SOON).await;
    assert!(!status.success());
    let log = eventually("the reason", async || Some(process.log()).filter(|log| log.contains("error:"))).await;
    assert!(log.contains(&*mount.0.to_string_lossy()) && log.contains("Read-only"), "unclear: {log}");
    drop(process);

    mount.remount("rw");
    let mut acked = Vec::new();
    let server = setup.start().await;
    assert_eq!(server.try_send(&mut acked).await.status, 200);
    server.kill();

    // Now there is: it is served, nothing new is taken, and both are told.
    mount.remount("ro");
    let server = setup.start_unready().await;
    assert_eq!(server.get("/ready").await.status, 503);
    assert_eq!(server.try_send(&mut acked).await.status, 503);
    server.expect_all(&acked).await;
    mount.remount("rw");
    eventually("ready again", async || server.get("/ready").await.status.eq(&200).then_some(())).await;
    assert_eq!(server.try_send(&mut acked).await.status, 200);
    server.expect_all(&acked).await;
}

/// An strace that makes one system call of a running process fail; it detaches when dropped.
struct Injection(Child);

impl Injection {
    async fn attach(process: u32, inject: &str, log: &Path) -> Result<Self, String> {
        tools::root()?;
        tools::strace()?;
        let call = inject.split(':').next().unwrap_or_default();
        let child = Command::new("strace")
            .args([
                "-f",
                "-p",
                &process.to_string(),
                "-e",
                &format!("trace={call}"),
                "-e",
                &format!("inject={inject}"),
                "-o",
            ])
            .arg(log)
            .stdout(Stdio::null())
            .stderr(Stdio::from(std::fs::File::create(log.with_extension("err")).expect("a file")))
            .spawn()
            .map_err(|e| e.to_string())?;
        let mut strace = Self(child);
        let said = || std::fs::read_to_string(log.with_extension("err")).unwrap_or_default();
        eventually("strace attached", async || {
            let ended = strace.0.try_wait().expect("the state of strace").is_some();
            (ended || said().contains("attached")).then_some(())
        })
        .await;
        if said().contains("attached") { Ok(strace) } else { Err(said()) }
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        crate::harness::server::signal(self.0.id(), "INT");
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_is_never_acknowledged() {
    let setup = Setup::new().expecting("wal").expecting("WAL").expecting("Input/output error");
    let server = setup.start().await;
    let mut acked = Vec::new();
    assert_eq!(server.try_send(&mut acked).await.status, 200);
    for round in 1..=3 {
        let log = setup.home().join(format!("strace-{round}"));
        let strace = match Injection::attach(server.process.id(), "fdatasync:error=EIO:when=1", &log).await {
            Ok(strace) => strace,
            Err(why) => return tools::not_run("a_failed_sync_is_never_acknowledged", &why),
        };
        let refused = server.try_send(&mut acked).await;
        assert_eq!(refused.status, 503, "acknowledged although the sync failed: {}", refused.text());
        drop(strace);
        server.until_metric("spanhouse_ingester_wal_sync_failures_total", |n| n >= f64::from(round)).await;
        eventually("taking spans again", async || Some(server.try_send(&mut acked).await).filter(|a| a.status == 200)).await;
        assert_eq!(server.get("/ready").await.status, 200);
    }
    let segments = std::fs::read_dir(setup.data_dir().join("wal")).expect("the WAL's directory").count();
    assert!(segments > 3, "a segment whose sync failed was used again");
    server.expect_all(&acked).await;
    server.kill();
    let server = setup.start().await;
    server.expect_all(&acked).await;
}

/// What is in the way goes to blocks although it is not due: a sender that waits gets through.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_wal_refuses_and_relieves_itself() {
    let setup = Setup::new().with("WAL_SEGMENT_BYTES", "1MiB").with("WAL_MAX_BYTES", "4MiB").with("FLUSH_MAX_AGE", "1h");
    let server = setup.start().await;
    let mut sent = Vec::new();
    for _ in 0..60 {
        let id = new_id();
        let mut spans = trace(id, 2);
        let text = Value::StringValue(format!("{id:032x}").repeat(4096));
        spans[0].attributes.push(attribute("large", text));
        let body = request(spans.clone()).encode_to_vec();
        eventually("room in the WAL", async || {
            let answer = server.post(&[PROTOBUF], body.clone()).await;
            assert!(matches!(answer.status, 200 | 429), "{}", answer.text());
            (answer.status == 200).then_some(())
        })
        .await;
        sent.push((id, spans));
    }
    server.expect_all(&sent).await;
    server.kill();
    let server = setup.start().await;
    server.expect_all(&sent).await;
}

const TENANT: &str = "x-scope-orgid";

/// Traces of several tenants that were taken.
#[derive(Default)]
struct Taken(Vec<(&'static str, u128, Vec<Span>)>);

impl Taken {
    async fn send(&mut self, server: &Server, tenant: &'static str) -> u16 {
        let id = new_id();
        let spans = trace(id, 10);
        let answer = server.post(&[PROTOBUF, (TENANT, tenant)], request(spans.clone()).encode_to_vec()).await;
        if answer.status == 200 {
            self.0.push((tenant, id, spans));
        }
        answer.status
    }

    async fn expect_all(&self, server: &Server) {
        for (tenant, id, sent) in &self.0 {
            expect_same_spans(spans(&server.trace_as(*id, &[(TENANT, tenant)]).await), sent);
        }
    }

    fn spans_of(&self, tenant: &str) -> usize {
        self.0.iter().filter(|(of, ..)| *of == tenant).map(|(.., spans)| spans.len()).sum()
    }
}

fn tenant_dir(setup: &Setup, tenant: &str) -> PathBuf {
    setup.data_dir().join("blocks/tenants").join(tenant)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenants_broken_path_keeps_no_other_waiting() {
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1s").with("MULTITENANCY_ENABLED", "true").expecting("flush failed");
    let server = setup.start().await;
    let mut taken = Taken::default();
    assert_eq!(taken.send(&server, "broken").await, 200);
    server.until_flushed(10).await;
    // A file where the directory of blocks should be: every put fails.
    let (blocks, aside) = (tenant_dir(&setup, "broken").join("blocks"), setup.home().join("aside"));
    std::fs::rename(&blocks, &aside).expect("the blocks go aside");
    std::fs::write(&blocks, "in the way").expect("a file");
    assert_eq!(taken.send(&server, "broken").await, 200);
    server.until_metric("spanhouse_ingester_flush_failures_total", |failures| failures >= 2.0).await;
    for _ in 0..3 {
        assert_eq!(taken.send(&server, "fine").await, 200);
        let expected = 10 + taken.spans_of("fine");
        server.until_metric("spanhouse_ingester_flushed_spans_total", |flushed| flushed >= expected as f64).await;
    }
    assert_eq!(server.metric("spanhouse_ingester_flush_stopped_tenants").await, Some(0.0), "it may pass");
    std::fs::remove_file(&blocks).expect("the file goes");
    std::fs::rename(&aside, &blocks).expect("the blocks come back");
    server.until_flushed(50).await;
    taken.expect_all(&server).await;
    server.terminate(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_stops_its_tenant_and_no_other() {
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1s").with("MULTITENANCY_ENABLED", "true");
    let setup = setup.expecting("flush failed").expecting("until this is repaired").expecting("is damaged");
    let setup = setup.expecting("comes back at the next start");
    let server = setup.start().await;
    let mut taken = Taken::default();
    assert_eq!(taken.send(&server, "broken").await, 200);
    server.until_flushed(10).await;
    let manifest = tenant_dir(&setup, "broken").join("manifest");
    let versions = std::fs::read_dir(&manifest).expect("versions").count();
    let next = manifest.join(format!("{:020}.json", versions + 1));
    std::fs::write(&next, "not a manifest").expect("a file");
    assert_eq!(taken.send(&server, "broken").await, 200);
    server.until_metric("spanhouse_ingester_flush_stopped_tenants", |tenants| tenants == 1.0).await;
    let status = server.get("/status").await.text();
    assert!(status.contains("flush of tenant broken") && status.contains("is damaged"), "{status}");
    assert_eq!(server.get("/ready").await.status, 200, "the others are served");
    // Each further span would pin a segment.
    assert_eq!(taken.send(&server, "broken").await, 503);
    assert_eq!(taken.send(&server, "fine").await, 200);
    server.until_metric("spanhouse_ingester_flushed_spans_total", |flushed| flushed >= 20.0).await;
    assert_eq!(server.process.log().matches("until this is repaired").count(), 1, "told once");
    // A stop does not wait for it.
    assert!(server.terminate(SOON).await < SOON / 2);
    let server = setup.start().await;
    assert_eq!(taken.send(&server, "fine").await, 200);
    server.until_metric("spanhouse_ingester_flush_stopped_tenants", |tenants| tenants == 1.0).await;
    std::fs::remove_file(&next).expect("the damage goes");
    server.until_metric("spanhouse_ingester_flush_stopped_tenants", |tenants| tenants == 0.0).await;
    assert_eq!(taken.send(&server, "broken").await, 200);
    server.until_flushed(30).await;
    taken.expect_all(&server).await;
    server.terminate(SOON).await;
}

/// A manifest that is gone says nothing of what blocks hold: its tenant's records stay in the WAL, the others are served.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_manifest_does_not_fail_the_start() {
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1s").with("MULTITENANCY_ENABLED", "true");
    let setup = setup.expecting("must be repaired").expecting("until this is repaired").expecting("step=");
    let mut taken = Taken::default();
    let server = setup.start().await;
    assert_eq!(taken.send(&server, "broken").await, 200);
    server.until_flushed(10).await;
    server.terminate(SOON).await;
    let patient = setup.clone().with("FLUSH_MAX_AGE", "1h");
    let server = patient.start().await;
    assert_eq!(taken.send(&server, "broken").await, 200);
    server.kill();
    let (manifest, aside) = (tenant_dir(&setup, "broken").join("manifest"), setup.home().join("aside"));
    std::fs::rename(&manifest, &aside).expect("the manifest goes");
    let server = setup.start().await;
    assert_eq!(server.metric("spanhouse_ingester_flush_stopped_tenants").await, Some(1.0));
    assert_eq!(taken.send(&server, "broken").await, 503);
    assert_eq!(taken.send(&server, "fine").await, 200);
    server.until_flushed(10).await;
    server.terminate(SOON).await;
    std::fs::rename(&aside, &manifest).expect("the manifest comes back");
    let server = setup.start().await;
    server.until_flushed(10).await;
    taken.expect_all(&server).await;
    server.terminate(SOON).await;
}
