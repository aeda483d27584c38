//! Zipkin's query API over the real binary: what a reporter posts is read back through every route, live and from blocks.

use serde_json::{Value as Json, json};
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;

use crate::harness::otlp::{attribute, now, of_service, span, span_id};
use crate::harness::server::{Answer, Server, Setup};
use crate::harness::{eventually, tools};

fn setup() -> Setup {
    Setup::new().with("PORTS_ZIPKIN", "0")
}

/// The port of Zipkin's API.
struct Zipkin<'s> {
    server: &'s Server,
    address: String,
}

impl<'s> Zipkin<'s> {
    fn of(server: &'s Server) -> Self {
        let address = server.process.port("Zipkin API").expect("the port is on").to_string();
        Self { server, address }
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Answer {
        let url = reqwest::Url::parse_with_params(&format!("http://{}{path}", self.address), parameters).unwrap();
        Answer::of(self.server.client.get(url)).await.unwrap()
    }

    async fn json(&self, path: &str, parameters: &[(&str, &str)]) -> Json {
        let answer = self.get(path, parameters).await;
        assert_eq!(answer.status, 200, "{path} {parameters:?}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.text()))
    }

    async fn post(&self, spans: &Json) {
        let request = self.server.client.post(format!("http://{}/api/v2/spans", self.address)).json(spans);
        assert_eq!(Answer::of(request).await.unwrap().status, 202);
    }

    /// Ids of the traces found, sorted.
    async fn found(&self, parameters: &[(&str, &str)]) -> Vec<String> {
        let traces = self.json("/api/v2/traces", parameters).await;
        let id = |trace: &Json| trace[0]["traceId"].as_str().unwrap().to_owned();
        let mut ids: Vec<String> = traces.as_array().unwrap().iter().map(id).collect();
        ids.sort();
        ids
    }
}

const ONE: &str = "4e441824ec2b6a44ffdc9bb9a6453df3";
const TWO: &str = "000000000000aff1";

/// A call of `front` to `back` over a shared id, and from there to a database that sends nothing; and a lone failed span.
fn sent() -> Json {
    let at = now() / 1_000 - 5_000_000;
    json!([
        { "traceId": ONE, "id": "0000000000000001", "name": "get /", "timestamp": at, "duration": 900_000, "kind": "SERVER",
          "localEndpoint": { "serviceName": "Front", "ipv4": "10.0.0.1", "port": 80 }, "remoteEndpoint": { "ipv6": "2001:db8::c001" },
          "annotations": [{ "timestamp": at + 10, "value": "ws" }], "tags": { "http.method": "GET", "http.status_code": "200" } },
        { "traceId": ONE, "parentId": "0000000000000001", "id": "0000000000000002", "name": "call", "timestamp": at + 100,
          "duration": 700_000, "kind": "CLIENT", "localEndpoint": { "serviceName": "Front" },
          "remoteEndpoint": { "serviceName": "back", "port": 9000 }, "tags": { "error": "500" } },
        { "traceId": ONE, "parentId": "0000000000000001", "id": "0000000000000002", "name": "call", "timestamp": at + 200,
          "duration": 600_000, "kind": "SERVER", "shared": true, "localEndpoint": { "serviceName": "back" } },
        { "traceId": ONE, "parentId": "0000000000000002", "id": "0000000000000003", "name": "select", "timestamp": at + 300,
          "duration": 1, "kind": "CLIENT", "localEndpoint": { "serviceName": "back" },
          "remoteEndpoint": { "serviceName": "mysql", "ipv4": "10.0.0.9", "port": 3306 }, "tags": { "sql.query": "select <1>" } },
        { "traceId": TWO, "id": "0000000000000001", "name": "job", "timestamp": at, "duration": 2_000,
          "localEndpoint": { "serviceName": "cron" }, "tags": { "error": "true", "span.kind": "internal" } },
    ])
}

fn sorted(spans: &Json) -> Vec<String> {
    let mut texts: Vec<String> = spans.as_array().unwrap().iter().map(Json::to_string).collect();
    texts.sort();
    texts
}

fn of_trace(spans: &Json, id: &str) -> Json {
    spans.as_array().unwrap().iter().filter(|span| span["traceId"] == id).cloned().collect()
}

async fn everything(zipkin: &Zipkin<'_>, sent: &Json) {
    assert_eq!(zipkin.json("/api/v2/services", &[]).await, json!(["Front", "back", "cron"]));
    for (service, names) in [("front", json!(["call", "get /"])), ("back", json!(["call", "select"])), ("nobody", json!([]))]
    {
        assert_eq!(zipkin.json("/api/v2/spans", &[("serviceName", service)]).await, names, "{service}");
    }
    for (service, names) in [("Front", json!(["back"])), ("back", json!(["mysql"])), ("cron", json!([]))] {
        assert_eq!(zipkin.json("/api/v2/remoteServices", &[("serviceName", service)]).await, names, "{service}");
    }
    // As they were sent, and the same below the path of the UI.
    for path in ["", "/zipkin"] {
        for id in [ONE, TWO] {
            let trace = zipkin.json(&format!("{path}/api/v2/trace/{id}"), &[]).await;
            assert_eq!(sorted(&trace), sorted(&of_trace(sent, id)));
        }
    }
    let many = zipkin.json("/api/v2/traceMany", &[("traceIds", &format!("{TWO},{ONE},abc"))]).await;
    assert_eq!(many.as_array().unwrap().len(), 2);
    assert_eq!(sorted(&many[0]), sorted(&of_trace(sent, TWO)));

    let all = [TWO.to_owned(), ONE.to_owned()];
    let (two, one) = all.split_at(1);
    let none: &[String] = &[];
    for (parameters, expected) in [
        (vec![], &all[..]),
        (vec![("serviceName", "FRONT")], one),
        (vec![("serviceName", "front"), ("spanName", "GET /")], one),
        (vec![("serviceName", "front"), ("spanName", "select")], none),
        (vec![("serviceName", "back"), ("remoteServiceName", "mysql")], one),
        (vec![("serviceName", "front"), ("remoteServiceName", "mysql")], none),
        (vec![("spanName", "all"), ("serviceName", "cron")], two),
        // Conditions on several spans of the service.
        (vec![("serviceName", "front"), ("annotationQuery", "http.method=GET and error=500")], one),
        (vec![("serviceName", "back"), ("annotationQuery", "http.method=GET")], none),
        (vec![("annotationQuery", "ws")], one),
        (vec![("annotationQuery", "error")], &all[..]),
        (vec![("annotationQuery", "error=true")], two),
        (vec![("annotationQuery", "http.status_code=200 and sql.query")], one),
        (vec![("annotationQuery", "span.kind=internal")], two),
        (vec![("minDuration", "800000")], one),
        (vec![("minDuration", "2000"), ("maxDuration", "2000")], two),
        (vec![("serviceName", "back"), ("minDuration", "1"), ("maxDuration", "1")], one),
        (vec![("endTs", "1000000000000")], none),
        (vec![("lookback", "1000")], none),
    ] {
        assert_eq!(zipkin.found(&parameters).await, expected, "{parameters:?}");
    }
    assert_eq!(zipkin.found(&[("limit", "1")]).await.len(), 1);
    let found = zipkin.json("/api/v2/traces", &[("serviceName", "cron")]).await;
    assert_eq!(sorted(&found[0]), sorted(&of_trace(sent, TWO)));

    let end = (now() / 1_000_000 + 1_000).to_string();
    let links = zipkin.json("/api/v2/dependencies", &[("endTs", &end), ("lookback", "600000")]).await;
    let link = |parent: &str, child: &str| {
        let is_it = |link: &&Json| link["parent"] == parent && link["child"] == child;
        links.as_array().unwrap().iter().find(is_it).cloned().unwrap_or_else(|| panic!("no {parent}-{child} in {links}"))
    };
    assert_eq!(link("Front", "back")["callCount"], 1);
    assert_eq!(link("back", "mysql"), json!({ "parent": "back", "child": "mysql", "callCount": 1 }));
    let long_ago = zipkin.json("/api/v2/dependencies", &[("endTs", "1000000000000"), ("lookback", "1000")]).await;
    assert_eq!(long_ago, json!([]));

    let keys = zipkin.json("/api/v2/autocompleteKeys", &[]).await;
    assert!(keys.as_array().unwrap().contains(&json!("http.method")), "{keys}");
    assert_eq!(zipkin.json("/api/v2/autocompleteValues", &[("key", "http.method")]).await, json!(["GET"]));
}

#[tokio::test]
async fn what_is_posted_is_read_back() {
    let server = setup().flushing_often().start().await;
    let zipkin = Zipkin::of(&server);
    let sent = sent();
    zipkin.post(&sent).await;
    everything(&zipkin, &sent).await;
    server.until_flushed(5).await;
    everything(&zipkin, &sent).await;
}

#[tokio::test]
async fn spans_of_opentelemetry_are_read_too() {
    let server = setup().start().await;
    let zipkin = Zipkin::of(&server);
    let trace = 0xabc;
    let mut child = span(trace, 3);
    child.attributes.push(attribute("peer.service", Value::StringValue("db".into())));
    server.send(&ExportTraceServiceRequest { resource_spans: vec![of_service("shop", vec![span(trace, 1), child])] }).await;
    let found = zipkin.json("/api/v2/traces", &[("serviceName", "shop"), ("annotationQuery", "http.status_code=500")]).await;
    let spans = found[0].as_array().unwrap();
    let failed = spans.iter().find(|span| span["name"] == "step 3").unwrap();
    assert_eq!(failed["traceId"], "0000000000000abc");
    assert_eq!(failed["id"], format!("{:016x}", u64::from_be_bytes(span_id(3).try_into().unwrap())));
    assert_eq!(failed["remoteEndpoint"], json!({ "serviceName": "db" }));
    let tags = &failed["tags"];
    assert_eq!(
        (&tags["error"], &tags["http.status_code"], &tags["cache.hit"]),
        (&json!("true"), &json!("500"), &json!("false"))
    );
    assert!(failed["annotations"][0]["value"].as_str().unwrap().starts_with("exception|{"), "{failed}");
}

#[tokio::test]
async fn refusals_and_pages() {
    let home = Setup::new();
    let ui = home.home().join("ui");
    std::fs::create_dir_all(ui.join("static")).unwrap();
    std::fs::write(ui.join("index.html"), "<base href=\"/zipkin/\">").unwrap();
    std::fs::write(ui.join("static/app.js"), "1").unwrap();
    let setup = home.with("PORTS_ZIPKIN", "0").with("ZIPKIN_UI_DIR", ui.to_str().unwrap());
    let server = setup.with("ZIPKIN_AUTOCOMPLETE_KEYS", "env, region").start().await;
    let zipkin = Zipkin::of(&server);
    for (path, status, text) in [
        ("/api/v2/trace/abc", 404, "0000000000000abc not found"),
        ("/api/v2/trace/x-y", 400, "x-y should be lower-hex encoded with no prefix"),
        ("/api/v2/traceMany", 400, "traceIds parameter is empty"),
        ("/api/v2/traceMany?traceIds=a", 400, "Use /api/v2/trace/{traceId} endpoint to retrieve a single trace"),
        ("/api/v2/spans", 400, "parameter serviceName is required"),
        ("/api/v2/dependencies", 400, "parameter endTs is required"),
        ("/api/v2/traces?limit=0", 400, "limit <= 0"),
        ("/api/v2/traces?maxDuration=5", 400, "maxDuration is only valid with minDuration"),
        ("/api/v2/nothing", 404, "404 page not found\n"),
        ("/zipkin/api/v2/nothing", 404, "404 page not found\n"),
        ("/zipkin/nothing.js", 404, "404 page not found\n"),
        ("/zipkin/static/app.js", 200, "1"),
        ("/zipkin/", 200, "<base href=\"/zipkin/\">"),
        ("/", 200, "<base href=\"/zipkin/\">"),
        ("/zipkin/traces/0000000000000abc", 200, "<base href=\"/zipkin/\">"),
        ("/zipkin/dependency", 200, "<base href=\"/zipkin/\">"),
    ] {
        let answer = zipkin.get(path, &[]).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, text), "{path}");
    }
    assert_eq!(zipkin.json("/api/v2/services", &[]).await, json!([]));
    assert_eq!(zipkin.json("/api/v2/traces", &[]).await, json!([]));
    assert_eq!(zipkin.json("/api/v2/autocompleteKeys", &[]).await, json!(["env", "region"]));
    assert_eq!(zipkin.json("/api/v2/autocompleteValues", &[("key", "other")]).await, json!([]));
    for path in ["/zipkin/config.json", "/config.json"] {
        let config: Json = serde_json::from_slice(&zipkin.get(path, &[]).await.body).unwrap();
        assert_eq!((&config["queryLimit"], &config["dependency"]["enabled"]), (&json!(10), &json!(true)));
    }
    let health = eventually("health", async || Some(zipkin.json("/health", &[]).await)).await;
    assert_eq!((&health["status"], &health["zipkin"]["status"]), (&json!("UP"), &json!("UP")));
    assert!(zipkin.json("/info", &[]).await["zipkin"]["version"].is_string());
}

#[tokio::test]
async fn without_a_ui_a_page_says_how_to_get_one() {
    let server = setup().start().await;
    let answer = Zipkin::of(&server).get("/", &[]).await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("zipkin.ui_dir"), "{}", answer.text());
}

/// Needs a built UI in the folder that `SPANHOUSE_TEST_ZIPKIN_UI_DIR` names, and Chromium.
#[tokio::test]
async fn its_own_ui_shows_what_is_stored() {
    let Some(ui) = std::env::var_os("SPANHOUSE_TEST_ZIPKIN_UI_DIR") else {
        return tools::not_asked("its_own_ui_shows_what_is_stored", "SPANHOUSE_TEST_ZIPKIN_UI_DIR names no built Zipkin UI");
    };
    let setup = setup().with("ZIPKIN_UI_DIR", ui.to_str().unwrap());
    let server = setup.start().await;
    let zipkin = Zipkin::of(&server);
    zipkin.post(&sent()).await;
    let end = now() / 1_000_000 + 1_000;
    let pages = [
        (format!("?serviceName=front&lookback=15m&limit=10&endTs={end}"), ["get /", "900.000ms"]),
        (format!("traces/{ONE}"), ["mysql", "select"]),
    ];
    for (page, texts) in pages {
        let profile = setup.home().join("browser");
        let body = tools::page(&format!("http://{}/zipkin/{page}", zipkin.address), &profile);
        for text in texts {
            assert!(body.contains(text), "{page} lacks {text}: {body}");
        }
    }
}

#[tokio::test]
async fn tenants_are_kept_apart() {
    let server = setup().with("MULTITENANCY_ENABLED", "true").start().await;
    let zipkin = Zipkin::of(&server);
    let post = |tenant: &'static str, spans: Json| {
        let request = server.client.post(format!("http://{}/api/v2/spans", zipkin.address)).header("x-scope-orgid", tenant);
        Answer::of(request.json(&spans))
    };
    let spans = sent();
    assert_eq!(post("a", of_trace(&spans, ONE)).await.unwrap().status, 202);
    assert_eq!(post("b", of_trace(&spans, TWO)).await.unwrap().status, 202);
    let services = |header: &'static str, tenant: &'static str| {
        let request = server.client.get(format!("http://{}/api/v2/services", zipkin.address)).header(header, tenant);
        async move { Answer::of(request).await.unwrap().text() }
    };
    assert_eq!(services("x-scope-orgid", "a").await, r#"["Front","back"]"#);
    assert_eq!(services("x-tenant", "b").await, r#"["cron"]"#);
    assert_eq!(zipkin.get("/api/v2/services", &[]).await.status, 401);
}
