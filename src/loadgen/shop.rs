//! The shop: its services, what their SDKs say of themselves, and how their exceptions look.
//!
//! Owns resources and instrumentation scopes. Does not own who calls whom (`flows`).

use spanhouse_common::varint::put_varint;

use super::rng::Rng;
use super::wire::{RESOURCE_ATTRIBUTE, Value, put_attribute, put_bytes};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    Java,
    Go,
    Python,
    Node,
    DotNet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub name: &'static str,
    pub language: Language,
    pub version: &'static str,
    /// Pods, each a sender of its own.
    pub instances: u16,
}

const fn service(name: &'static str, language: Language, version: &'static str, instances: u16) -> Service {
    Service { name, language, version, instances }
}

pub(super) const SERVICES: [Service; 22] = [
    service("frontend", Language::Node, "4.12.0", 4),
    service("checkout", Language::Go, "2.8.1", 3),
    service("cart", Language::DotNet, "1.19.3", 3),
    service("catalogue", Language::Go, "3.2.0", 3),
    service("search", Language::Java, "7.0.4", 3),
    service("recommendation", Language::Python, "0.9.7", 2),
    service("pricing", Language::Java, "5.1.2", 3),
    service("inventory", Language::Java, "2.2.9", 2),
    service("payment", Language::Java, "6.4.0", 2),
    service("fraud", Language::Python, "1.3.1", 2),
    service("shipping", Language::Go, "1.7.5", 2),
    service("mail", Language::Node, "2.0.2", 2),
    service("notification", Language::Node, "1.1.0", 2),
    service("account", Language::DotNet, "3.5.6", 2),
    service("auth", Language::Go, "4.0.0", 3),
    service("review", Language::Python, "2.6.0", 2),
    service("currency", Language::Go, "1.0.8", 2),
    service("ad", Language::Java, "3.3.3", 2),
    service("order", Language::Java, "8.2.1", 3),
    service("warehouse", Language::DotNet, "1.2.4", 2),
    service("analytics", Language::Python, "0.4.2", 2),
    service("report", Language::Java, "2.9.0", 1),
];

/// Number of a service by its name; the names in `flows` are checked by a test.
pub(super) fn service_number(name: &str) -> Option<usize> {
    SERVICES.iter().position(|s| s.name == name)
}

/// Which library made a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    HttpServer = 0,
    HttpClient = 1,
    Grpc = 2,
    Database = 3,
    Messaging = 4,
    Own = 5,
}

pub(super) const SCOPES: usize = 6;

impl Language {
    fn sdk(self) -> (&'static str, &'static str) {
        match self {
            Self::Java => ("java", "1.51.0"),
            Self::Go => ("go", "1.37.0"),
            Self::Python => ("python", "1.35.0"),
            Self::Node => ("nodejs", "2.0.1"),
            Self::DotNet => ("dotnet", "1.12.0"),
        }
    }

    fn runtime(self) -> (&'static str, &'static str) {
        match self {
            Self::Java => ("OpenJDK Runtime Environment", "21.0.7+6-LTS"),
            Self::Go => ("go", "go1.24.4"),
            Self::Python => ("cpython", "3.12.11"),
            Self::Node => ("nodejs", "22.16.0"),
            Self::DotNet => (".NET", "9.0.6"),
        }
    }

    fn scopes(self) -> ([&'static str; SCOPES - 1], &'static str) {
        match self {
            Self::Java => (
                [
                    "io.opentelemetry.tomcat-10.0",
                    "io.opentelemetry.java-http-client",
                    "io.opentelemetry.grpc-1.6",
                    "io.opentelemetry.jdbc",
                    "io.opentelemetry.kafka-clients-0.11",
                ],
                "2.17.0-alpha",
            ),
            Self::Go => (
                [
                    "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp",
                    "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp/client",
                    "go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc",
                    "github.com/XSAM/otelsql",
                    "github.com/dnwe/otelsarama",
                ],
                "0.62.0",
            ),
            Self::Python => (
                [
                    "opentelemetry.instrumentation.asgi",
                    "opentelemetry.instrumentation.httpx",
                    "opentelemetry.instrumentation.grpc",
                    "opentelemetry.instrumentation.psycopg",
                    "opentelemetry.instrumentation.confluent_kafka",
                ],
                "0.56b0",
            ),
            Self::Node => (
                [
                    "@opentelemetry/instrumentation-http",
                    "@opentelemetry/instrumentation-undici",
                    "@opentelemetry/instrumentation-grpc",
                    "@opentelemetry/instrumentation-pg",
                    "@opentelemetry/instrumentation-kafkajs",
                ],
                "0.202.0",
            ),
            Self::DotNet => (
                [
                    "Microsoft.AspNetCore",
                    "System.Net.Http",
                    "OpenTelemetry.Instrumentation.GrpcNetClient",
                    "Npgsql",
                    "Confluent.Kafka",
                ],
                "9.0.6",
            ),
        }
    }

    /// Type, message and stack trace of an exception.
    pub(super) fn exception(self) -> [&'static str; 3] {
        match self {
            Self::Java => [
                "java.net.SocketTimeoutException",
                "Read timed out",
                "java.net.SocketTimeoutException: Read timed out\n\tat java.base/sun.nio.ch.NioSocketImpl.timedRead(NioSocketImpl.java:278)\n\tat java.base/sun.nio.ch.NioSocketImpl.implRead(NioSocketImpl.java:304)\n\tat java.base/java.net.Socket$SocketInputStream.read(Socket.java:1099)\n\tat org.postgresql.core.VisibleBufferedInputStream.readMore(VisibleBufferedInputStream.java:192)\n\tat org.postgresql.core.PGStream.receiveChar(PGStream.java:467)\n\tat org.postgresql.core.v3.QueryExecutorImpl.processResults(QueryExecutorImpl.java:2155)\n\tat com.zaxxer.hikari.pool.ProxyPreparedStatement.executeQuery(ProxyPreparedStatement.java:52)\n\tat shop.persistence.Repository.find(Repository.java:88)\n\tat shop.service.Handler.handle(Handler.java:41)\n\tat org.apache.catalina.core.StandardWrapperValve.invoke(StandardWrapperValve.java:167)\n\tat java.base/java.lang.Thread.run(Thread.java:1583)",
            ],
            Self::Go => [
                "*errors.errorString",
                "context deadline exceeded",
                "goroutine 8127 [running]:\ngo.opentelemetry.io/otel/sdk/trace.recordStackTrace()\n\t/go/pkg/mod/go.opentelemetry.io/otel/sdk@v1.37.0/trace/span.go:482 +0x25\ngo.opentelemetry.io/otel/sdk/trace.(*recordingSpan).RecordError(0xc0004c8000, {0xe1b3a0, 0x16f2c10})\n\t/go/pkg/mod/go.opentelemetry.io/otel/sdk@v1.37.0/trace/span.go:455 +0x3a8\nmain.(*server).PlaceOrder(0xc00011a2d0, {0xe21f70, 0xc0006a4b10})\n\t/src/server.go:214 +0x6d2\nnet/http.HandlerFunc.ServeHTTP(0xc0002a6d20)\n\t/usr/local/go/src/net/http/server.go:2294 +0x29",
            ],
            Self::Python => [
                "ValueError",
                "model returned no candidates",
                "Traceback (most recent call last):\n  File \"/app/.venv/lib/python3.12/site-packages/starlette/routing.py\", line 692, in __call__\n    await route.handle(scope, receive, send)\n  File \"/app/service/api.py\", line 118, in handle\n    result = await rank(user, items)\n  File \"/app/service/ranking.py\", line 57, in rank\n    raise ValueError(\"model returned no candidates\")\nValueError: model returned no candidates",
            ],
            Self::Node => [
                "Error",
                "connect ECONNREFUSED 10.42.7.19:8080",
                "Error: connect ECONNREFUSED 10.42.7.19:8080\n    at TCPConnectWrap.afterConnect [as oncomplete] (node:net:1611:16)\n    at async fetchWithRetry (/app/dist/http/client.js:61:22)\n    at async ProductPage.load (/app/dist/pages/product.js:34:18)\n    at async Router.handle (/app/node_modules/router/index.js:152:7)",
            ],
            Self::DotNet => [
                "StackExchange.Redis.RedisTimeoutException",
                "Timeout performing HGET (5000ms), inst: 0, qs: 12",
                "StackExchange.Redis.RedisTimeoutException: Timeout performing HGET (5000ms), inst: 0, qs: 12\n   at cart.cartstore.RedisCartStore.GetCartAsync(String userId) in /src/cartstore/RedisCartStore.cs:line 189\n   at cart.services.CartService.GetCart(GetCartRequest request, ServerCallContext context) in /src/services/CartService.cs:line 64\n   at Grpc.Shared.Server.UnaryServerMethodInvoker`3.Invoke(HttpContext httpContext, ServerCallContext serverCallContext, TRequest request)",
            ],
        }
    }
}

/// `InstrumentationScope scope = 1` of a ScopeSpans.
pub(super) fn encode_scope(service: &Service, number: usize) -> Vec<u8> {
    let (names, version) = service.language.scopes();
    let (name, version) = names.get(number).map_or((service.name, service.version), |name| (*name, version));
    let mut scope = Vec::new();
    put_bytes(&mut scope, 0x0a, name.as_bytes());
    put_bytes(&mut scope, 0x12, version.as_bytes());
    let mut out = Vec::new();
    put_bytes(&mut out, 0x0a, &scope);
    out
}

/// `Resource resource = 1` of a ResourceSpans, as an SDK with the Kubernetes detectors sends it.
pub(super) fn encode_resource(service: &Service, rng: &mut Rng) -> Vec<u8> {
    let mut resource = Vec::new();
    let (sdk, sdk_version) = service.language.sdk();
    let (runtime, runtime_version) = service.language.runtime();
    let (a, b) = (rng.next(), rng.next());
    let pod = format!("{}-{:010x}-{:05x}", service.name, mix_name(service.name) & 0xff_ffff_ffff, a & 0xf_ffff);
    let instance = format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    );
    let (node, zone) = (format!("node-{:02}.eu-west-1.compute.internal", b % 24), ["a", "b", "c"][(b % 3) as usize]);
    let zone = format!("eu-west-1{zone}");
    let mut text = |key, value: &str| put_attribute(&mut resource, RESOURCE_ATTRIBUTE, key, Value::Text(value));
    text("service.name", service.name);
    text("service.namespace", "shop");
    text("service.version", service.version);
    text("service.instance.id", &instance);
    text("deployment.environment.name", "production");
    text("telemetry.sdk.name", "opentelemetry");
    text("telemetry.sdk.language", sdk);
    text("telemetry.sdk.version", sdk_version);
    text("process.runtime.name", runtime);
    text("process.runtime.version", runtime_version);
    text("host.name", &pod);
    text("host.arch", "amd64");
    text("os.type", "linux");
    text("cloud.provider", "aws");
    text("cloud.availability_zone", &zone);
    text("k8s.cluster.name", "shop-eu");
    text("k8s.namespace.name", "shop");
    text("k8s.deployment.name", service.name);
    text("k8s.pod.name", &pod);
    text("k8s.node.name", &node);
    text("container.image.name", &format!("registry.example.com/shop/{}", service.name));
    put_attribute(&mut resource, RESOURCE_ATTRIBUTE, "process.pid", Value::Int((b % 400 + 1) as i64));
    put_attribute(&mut resource, RESOURCE_ATTRIBUTE, "container.image.tags", Value::Texts(&[service.version, "stable"]));
    let mut out = vec![0x0a];
    put_varint(resource.len() as u64, &mut out);
    out.extend(resource);
    out
}

/// The same replica-set hash in every run, as a deployment that did not change has.
fn mix_name(name: &str) -> u64 {
    name.bytes().fold(7, |hash, byte| super::rng::mix(hash ^ u64::from(byte)))
}
