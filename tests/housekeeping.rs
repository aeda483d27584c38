//! What an operator sees and does beside a running server: tenants and their retention, the plan of merges, merging by hand.

use prost::Message;
use serde_json::Value as Json;

use crate::harness::eventually;
use crate::harness::otlp::{PROTOBUF, new_id, request, response, span, trace};
use crate::harness::query::v2;
use crate::harness::server::{Server, Setup};

const SPANS: u64 = 5;

fn json(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Sends a trace of a tenant.
async fn send(server: &Server, tenant: &str, id: u128) {
    let body = request(trace(id, SPANS)).encode_to_vec();
    let answer = server.post(&[PROTOBUF, ("X-Scope-OrgID", tenant)], body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

async fn blocks_of(setup: &Setup, tenant: &str) -> usize {
    let all = json(&setup.said(&["blocks", "ls", "--json"]));
    let all = all.as_array().expect("tenants");
    all.iter().find(|of| of["tenant"] == tenant).map_or(0, |of| of["blocks"].as_array().expect("blocks").len())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_tenants_and_merges_what_the_plan_says() {
    let setup = Setup::new().flushing_often();
    let overrides = setup.home().join("overrides.yaml");
    std::fs::write(&overrides, "defaults: {retention: 48h}\noverrides: {team-a: {retention: 720h}}\n").expect("written");
    let setup = setup
        .with("MULTITENANCY_ENABLED", "true")
        .with("INGEST_OVERRIDES_FILE", &overrides.to_string_lossy())
        .with("COMPACTION_ENABLED", "false")
        .with("COMPACTION_FAN_IN", "3");
    let server = setup.start().await;
    let mut traces = Vec::new();
    for (tenant, blocks) in [("team-a", 3), ("team-b", 1)] {
        for n in 1..=blocks {
            let id = new_id();
            send(&server, tenant, id).await;
            eventually("a block more", async || (blocks_of(&setup, tenant).await == n).then_some(())).await;
            traces.push((tenant, id));
        }
    }

    let listed = json(&setup.said(&["tenants", "--json"]));
    let of = |n: usize, key: &str| listed[n][key].clone();
    for (n, tenant, blocks, hours, from) in
        [(0, "team-a", 3, 720, "overrides tenant"), (1, "team-b", 1, 48, "overrides defaults")]
    {
        assert_eq!(of(n, "tenant"), tenant, "{listed}");
        assert_eq!((of(n, "blocks"), of(n, "spans")), (blocks.into(), (blocks * SPANS).into()), "{listed}");
        assert_eq!((of(n, "retention_seconds"), of(n, "retention_from")), ((hours * 3600).into(), from.into()), "{listed}");
        assert!(of(n, "bytes").as_u64().is_some_and(|bytes| bytes > 1000), "{listed}");
    }
    let table = setup.said(&["tenants"]);
    assert!(table.contains("2 tenants, 20 spans in blocks") && table.contains("720h"), "{table}");
    let typo = setup.command(&["tenants", "--tenant", "team-c"]);
    assert!(!typo.status.success() && String::from_utf8_lossy(&typo.stderr).contains("it has team-a, team-b"), "{typo:?}");

    let plan = json(&setup.said(&["compact", "plan", "--json"]));
    let merges = plan[0]["merges"].as_array().expect("merges");
    assert_eq!(merges.len(), 1, "{plan}");
    assert!(merges[0]["why"].as_str().is_some_and(|why| why == "3 blocks of level 0"), "{plan}");
    let waiting = plan[1]["waiting"].as_array().expect("waiting");
    assert!(
        waiting[0]["why"].as_str().is_some_and(|why| why.starts_with("window open"))
            && plan[1]["merges"] == Json::Array(vec![]),
        "{plan}"
    );
    let table = setup.said(&["compact", "plan"]);
    assert!(table.contains("due: 1 merges of 3 blocks with 15 spans; left as they are: 1 blocks"), "{table}");
    assert_eq!(blocks_of(&setup, "team-a").await, 3, "a plan changes nothing");

    let done = json(&setup.said(&["compact", "run", "--json"]));
    assert_eq!(done.as_array().expect("merges").len(), 1, "{done}");
    assert_eq!(done[0]["inputs"], merges[0]["inputs"], "{done}");
    assert_eq!(done[0]["result"]["spans_out"], 3 * SPANS, "{done}");
    assert_eq!(blocks_of(&setup, "team-a").await, 1);
    assert!(setup.said(&["compact", "run"]).starts_with("nothing to merge"));

    // The server finds what was merged beside it.
    for (tenant, id) in traces {
        let answer = server
            .get_with(&format!("/api/v2/traces/{id:032x}"), &[("X-Scope-OrgID", tenant), ("Accept", "application/protobuf")])
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(crate::harness::query::spans(&v2(&answer)).count(), SPANS as usize);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overrides_file_is_read_again_while_the_server_runs() {
    let setup = Setup::new();
    let overrides = setup.home().join("overrides.yaml");
    std::fs::write(&overrides, "").expect("written");
    let server = setup.with("INGEST_OVERRIDES_FILE", &overrides.to_string_lossy()).start().await;
    let limits = async || server.get("/status/overrides").await.text();
    assert!(limits().await.contains("336h"), "{}", limits().await);
    std::fs::write(&overrides, "overrides: {single-tenant: {retention: 77h, max_attribute_bytes: 3}}\n").expect("written");
    eventually("the new limits", async || limits().await.contains("77h").then_some(())).await;
    let answer = server.post(&[PROTOBUF], request(vec![span(new_id(), 1)]).encode_to_vec()).await;
    let partial = response(&answer).partial_success.expect("a refused span");
    assert!(partial.rejected_spans == 1 && partial.error_message.contains("attribute"), "{partial:?}");
}
