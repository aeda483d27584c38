// Sends traces with clients of Jaeger and Zipkin and prints what must come back, as the mapping says of what they sent.
//
// Usage: node jaeger_in.mjs THRIFT_HTTP_URL AGENT_HOST AGENT_PORT ZIPKIN_URL, in a directory with the clients' node_modules.

import { createRequire } from "node:module";
import path from "node:path";

const TRACES = 10;
const [thriftUrl, agentHost, agentPort, zipkinUrl] = process.argv.slice(2);
const modules = path.join(process.cwd(), "node_modules");
const require = createRequire(path.join(modules, "here.js"));
const inside = (file) => require(path.join(modules, file));

// What a library makes of a span on its way to the wire, kept on the side.
function remember(owner, name, kept) {
  const inner = owner[name];
  owner[name] = function (...given) {
    const made = inner.apply(this, given);
    kept.push(made);
    return made;
  };
}

const hex = (buffer) => Buffer.from(buffer).toString("hex").padStart(16, "0");
const double = (value) => {
  const bytes = Buffer.alloc(8);
  bytes.writeDoubleBE(value);
  return { double: bytes.toString("hex") };
};
const text = (string) => ({ string });

function tagValue(tag) {
  if (tag.vType === 1 || tag.vType === "DOUBLE") return double(tag.vDouble);
  if (tag.vType === 2 || tag.vType === "BOOL") return { bool: tag.vBool };
  if (tag.vType === 4 || tag.vType === "BINARY") return { bytes: tag.vBinary.toString("hex") };
  return text(tag.vStr);
}

const tagMap = (tags) => Object.fromEntries(tags.map((tag) => [tag.key, tagValue(tag)]));
const KINDS = { internal: 1, server: 2, client: 3, producer: 4, consumer: 5 };

function take(attributes, key) {
  const value = attributes[key];
  delete attributes[key];
  return value;
}

// A span of Jaeger in Thrift, as it must come back.
function ofThrift(span, service) {
  const attributes = tagMap(span.tags);
  const kind = KINDS[take(attributes, "span.kind")?.string] ?? 0;
  const scope = take(attributes, "otel.library.name")?.string ?? "";
  if (scope) take(attributes, "otel.library.version");
  const status = { code: 0, message: "" };
  const word = take(attributes, "otel.status_code")?.string;
  if (word !== undefined || attributes.error?.bool === true) {
    status.code = { OK: 1, ERROR: 2 }[word] ?? 0;
    status.message = take(attributes, "otel.status_description")?.string ?? "";
  }
  if (attributes.error?.bool === true) {
    take(attributes, "error");
    status.code = 2;
  }
  const trace = hex(span.traceIdHigh) + hex(span.traceIdLow);
  const parent = hex(span.parentSpanId);
  const references = (span.references ?? []).map((reference) => ({
    trace: hex(reference.traceIdHigh) + hex(reference.traceIdLow),
    span: hex(reference.spanId),
    follows: reference.refType === 1 || reference.refType === "FOLLOWS_FROM",
  }));
  const zero = "0".repeat(16);
  const first = (follows) => references.find((r) => r.trace === trace && r.follows === follows)?.span;
  const chosen = parent !== zero ? parent : (first(false) ?? first(true) ?? "");
  const links = references
    .filter((reference) => reference.follows || reference.span !== chosen)
    .map(({ trace, span, follows }) => {
      return { trace, span, attributes: { "opentracing.ref_type": text(follows ? "follows_from" : "child_of") } };
    });
  const start = span.startTime.readBigInt64BE() * 1000n;
  const events = span.logs.map((log) => {
    const fields = tagMap(log.fields);
    const name = take(fields, "event")?.string ?? "";
    return { name, time: String(log.timestamp.readBigInt64BE() * 1000n), attributes: fields };
  });
  return {
    service,
    scope,
    trace,
    span: hex(span.spanId),
    parent: chosen,
    name: span.operationName,
    kind,
    start: String(start),
    end: String(start + span.duration.readBigInt64BE() * 1000n),
    status,
    attributes,
    events,
    links,
  };
}

// A span of Zipkin in JSON, as it must come back.
function ofZipkin(span) {
  const attributes = {};
  const ends = [["localEndpoint", "net.host"], ["remoteEndpoint", "net.peer"]];
  for (const [key, prefix] of ends) {
    const endpoint = span[key] ?? {};
    if (key === "remoteEndpoint" && endpoint.serviceName) attributes["peer.service"] = text(endpoint.serviceName);
    if (endpoint.ipv6 || endpoint.ipv4) attributes[`${prefix}.ip`] = text(endpoint.ipv6 || endpoint.ipv4);
    if (endpoint.port) attributes[`${prefix}.port`] = { int: String(endpoint.port) };
  }
  const tags = { ...span.tags };
  const status = { code: 0, message: "" };
  const word = take(tags, "otel.status_code");
  if (word !== undefined) status.code = { OK: 1, ERROR: 2 }[word] ?? 0;
  if (tags.error !== undefined) status.code = 2;
  if (tags.error === "true") take(tags, "error");
  for (const [key, value] of Object.entries(tags)) {
    if (!/^(service|host|process|os|telemetry\.sdk)\./.test(key)) attributes[key] = text(value);
  }
  const start = BigInt(span.timestamp) * 1000n;
  return {
    service: span.localEndpoint.serviceName,
    scope: "",
    trace: span.traceId.padStart(32, "0"),
    span: span.id,
    parent: span.parentId && span.parentId !== span.id ? span.parentId : "",
    name: span.name ?? "",
    kind: { SERVER: 2, CLIENT: 3, PRODUCER: 4, CONSUMER: 5 }[span.kind] ?? 0,
    start: String(start),
    end: String(start + BigInt(span.duration ?? 0) * 1000n),
    status,
    attributes,
    events: (span.annotations ?? []).map((a) => ({ name: a.value, time: String(BigInt(a.timestamp) * 1000n), attributes: {} })),
    links: [],
  };
}

const sleep = (millis) => new Promise((done) => setTimeout(done, millis));

// Jaeger's own client, by packets or over HTTP.
async function jaegerClient(service, reporter) {
  const { initTracer, opentracing } = require("jaeger-client");
  const thrift = inside("jaeger-client/dist/src/thrift.js").default;
  const kept = [];
  const inner = thrift.spanToThrift;
  remember(thrift, "spanToThrift", kept);
  const config = { serviceName: service, sampler: { type: "const", param: 1 }, reporter, traceId128bit: true };
  const tracer = initTracer(config, { logger: { info() {}, error: (message) => console.error(message) } });
  for (let n = 0; n < TRACES; n++) {
    const root = tracer.startSpan(`root-${n}`, { tags: { "span.kind": "server", n, flag: n % 2 === 0, raw: Buffer.from([0, 255]) } });
    const child = tracer.startSpan("child", { childOf: root });
    child.setTag("text", "ü – 文");
    child.log({ event: "retry", attempt: n, final: false });
    if (n % 3 === 0) child.setTag("error", true);
    const follower = tracer.startSpan("follower", { references: [opentracing.followsFrom(root.context())] });
    await sleep(2);
    for (const span of [follower, child, root]) span.finish();
  }
  await new Promise((done) => tracer.close(done));
  // The client reports its packets as sent before the socket has taken them.
  await sleep(300);
  thrift.spanToThrift = inner;
  return kept.map((span) => ofThrift(span, service));
}

// The SDK of OpenTelemetry through one of its exporters.
async function sdk(service, exporter, made, of) {
  const { NodeTracerProvider, SimpleSpanProcessor } = require("@opentelemetry/sdk-trace-node");
  const { resourceFromAttributes } = require("@opentelemetry/resources");
  const { SpanKind, SpanStatusCode, context, trace } = require("@opentelemetry/api");
  let failed;
  const checked = {
    export: (spans, done) =>
      exporter.export(spans, (result) => {
        if (result.code !== 0) failed = result.error ?? new Error("no reason");
        done(result);
      }),
    shutdown: () => exporter.shutdown(),
    forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve(),
  };
  const provider = new NodeTracerProvider({
    resource: resourceFromAttributes({ "service.name": service, zone: "a" }),
    spanProcessors: [new SimpleSpanProcessor(checked)],
  });
  const tracer = provider.getTracer("jaeger-test", "1.2.3");
  for (let n = 0; n < TRACES; n++) {
    const root = tracer.startSpan(`root-${n}`, { kind: SpanKind.SERVER, attributes: { n, ok: n % 2 === 0 } });
    const within = trace.setSpan(context.active(), root);
    const links = [{ context: root.spanContext() }];
    const child = tracer.startSpan("call", { kind: SpanKind.CLIENT, links, attributes: { ratio: n / 7, text: "ü – 文" } }, within);
    child.addEvent("retry", { attempt: n, final: false });
    if (n % 3 === 0) child.setStatus({ code: SpanStatusCode.ERROR, message: "a call failed" });
    if (n % 3 === 1) child.setStatus({ code: SpanStatusCode.OK });
    child.end();
    root.end();
  }
  await provider.forceFlush();
  await sleep(300);
  await provider.shutdown();
  if (failed) throw failed;
  return made.splice(0).map((span) => of(span, service));
}

// Zipkin's own library.
async function zipkinJs(service) {
  const { Tracer, BatchRecorder, ExplicitContext, Annotation, jsonEncoder } = require("zipkin");
  const { HttpLogger } = require("zipkin-transport-http");
  const kept = [];
  const encode = (span) => {
    const json = jsonEncoder.JSON_V2.encode(span);
    kept.push(JSON.parse(json));
    return json;
  };
  const logger = new HttpLogger({ endpoint: `${zipkinUrl}/api/v2/spans`, jsonEncoder: { encode }, httpInterval: 50 });
  logger.on("error", (error) => console.error(error));
  const recorder = new BatchRecorder({ logger });
  const ctx = new ExplicitContext();
  const tracer = new Tracer({ ctxImpl: ctx, recorder, localServiceName: service, traceId128Bit: true });
  for (let n = 0; n < TRACES; n++) {
    tracer.scoped(() => {
      const root = tracer.createRootId();
      tracer.setId(root);
      tracer.recordServiceName(service);
      tracer.recordRpc(`root-${n}`);
      tracer.recordAnnotation(new Annotation.ServerRecv());
      tracer.recordBinary("text", "ü – 文");
      tracer.scoped(() => {
        tracer.setId(tracer.createChildId());
        tracer.recordServiceName(service);
        tracer.recordRpc("call");
        tracer.recordAnnotation(new Annotation.ClientSend());
        tracer.recordAnnotation(new Annotation.ServerAddr({ serviceName: "db", port: 5432 }));
        tracer.recordMessage("retry");
        if (n % 3 === 0) tracer.recordBinary("error", "timed out");
        tracer.recordAnnotation(new Annotation.ClientRecv());
      });
      tracer.recordAnnotation(new Annotation.ServerSend());
    });
  }
  await sleep(1000);
  logger.close?.();
  return kept.map(ofZipkin);
}

const spans = [
  ...(await jaegerClient("jaeger-client-node-udp", { agentHost, agentPort: Number(agentPort), flushIntervalMs: 100 })),
  ...(await jaegerClient("jaeger-client-node-http", { collectorEndpoint: thriftUrl, flushIntervalMs: 100 })),
];
const { JaegerExporter } = require("@opentelemetry/exporter-jaeger");
const thrifts = [];
remember(inside("@opentelemetry/exporter-jaeger/build/src/transform.js"), "spanToThrift", thrifts);
spans.push(...(await sdk("otel-jaeger-node-http", new JaegerExporter({ endpoint: thriftUrl }), thrifts, ofThrift)));
const packets = new JaegerExporter({ host: agentHost, port: Number(agentPort), flushTimeout: 1000 });
spans.push(...(await sdk("otel-jaeger-node-udp", packets, thrifts, ofThrift)));
const { ZipkinExporter } = require("@opentelemetry/exporter-zipkin");
const zipkins = [];
remember(inside("@opentelemetry/exporter-zipkin/build/src/transform.js"), "toZipkinSpan", zipkins);
const zipkin = new ZipkinExporter({ url: `${zipkinUrl}/api/v2/spans` });
spans.push(...(await sdk("otel-zipkin-node", zipkin, zipkins, (span) => ofZipkin(JSON.parse(JSON.stringify(span))))));
spans.push(...(await zipkinJs("zipkin-js")));
process.stdout.write(JSON.stringify(spans));
