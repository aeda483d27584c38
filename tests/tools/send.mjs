// Sends traces with the OpenTelemetry SDK and prints what must come back.
//
// Usage: node send.mjs GRPC_ENDPOINT HTTP_ENDPOINT, in a directory with node_modules.

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// Imports resolve beside this file, which has no node_modules; the working directory has.
const require = createRequire(pathToFileURL(`${process.cwd()}/`));
const { SpanKind, SpanStatusCode, ROOT_CONTEXT, trace } = require('@opentelemetry/api');
const { resourceFromAttributes } = require('@opentelemetry/resources');
const { BatchSpanProcessor, InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-node');
const exporters = {
  'node-proto': require('@opentelemetry/exporter-trace-otlp-proto').OTLPTraceExporter,
  'node-json': require('@opentelemetry/exporter-trace-otlp-http').OTLPTraceExporter,
  'node-grpc': require('@opentelemetry/exporter-trace-otlp-grpc').OTLPTraceExporter,
};

const TRACES = 15;

function value(v) {
  if (typeof v === 'boolean') return { bool: v };
  if (typeof v === 'string') return { string: v };
  if (Array.isArray(v)) return { array: v.map(value) };
  if (Number.isInteger(v)) return { int: String(v) };
  const bytes = Buffer.alloc(8);
  bytes.writeDoubleBE(v);
  return { double: bytes.toString('hex') };
}

const attributes = (of) => Object.fromEntries(Object.entries(of ?? {}).map(([key, v]) => [key, value(v)]));
const nanos = ([seconds, rest]) => String(BigInt(seconds) * 1000000000n + BigInt(rest));

const expected = (span, service) => ({
  service,
  scope: span.instrumentationScope.name,
  trace: span.spanContext().traceId,
  span: span.spanContext().spanId,
  parent: span.parentSpanContext?.spanId ?? '',
  name: span.name,
  kind: span.kind + 1,
  start: nanos(span.startTime),
  end: nanos(span.endTime),
  status: { code: span.status.code, message: span.status.message ?? '' },
  attributes: attributes(span.attributes),
  events: span.events.map((e) => ({ name: e.name, time: nanos(e.time), attributes: attributes(e.attributes) })),
  links: span.links.map((l) => ({ trace: l.context.traceId, span: l.context.spanId, attributes: attributes(l.attributes) })),
});

async function send(service, exporter) {
  const kept = new InMemorySpanExporter();
  let failed = null;
  const checked = {
    export: (spans, done) =>
      exporter.export(spans, (result) => {
        if (result.code !== 0) failed = result.error ?? new Error(`${service}: code ${result.code}`);
        done(result);
      }),
    shutdown: () => exporter.shutdown(),
    forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve(),
  };
  const provider = new NodeTracerProvider({
    resource: resourceFromAttributes({ 'service.name': service }),
    spanProcessors: [new BatchSpanProcessor(checked, { maxExportBatchSize: 64 }), new SimpleSpanProcessor(kept)],
  });
  const tracer = provider.getTracer('node-tests', '1.2.3');
  for (let n = 0; n < TRACES; n++) {
    const root = tracer.startSpan(`GET /käse/${n}`, { kind: SpanKind.SERVER }, ROOT_CONTEXT);
    root.setAttributes({
      text: 'grüße ✓ 𝄞',
      empty: '',
      yes: true,
      no: false,
      int: -n,
      large: Number.MAX_SAFE_INTEGER,
      double: 0.1 + n,
      tiny: 5e-324,
      texts: ['a', '', 'ü'],
      ints: [1, -2, 3],
      bools: [true, false],
      long: 'x'.repeat(5000),
    });
    const inside = trace.setSpan(ROOT_CONTEXT, root);
    for (let call = 0; call < 4; call++) {
      const links = [{ context: root.spanContext(), attributes: { why: 'root' } }];
      const child = tracer.startSpan('call', { kind: SpanKind.CLIENT, attributes: { n: call }, links }, inside);
      child.addEvent('sent', { bytes: 10 * call });
      tracer.startSpan('query', {}, trace.setSpan(inside, child)).end();
      child.end();
    }
    const failing = tracer.startSpan('fails', {}, inside);
    failing.recordException(new Error('no such käse'));
    failing.setStatus({ code: SpanStatusCode.ERROR, message: 'a call failed' });
    failing.end();
    root.end();
  }
  await provider.forceFlush();
  const spans = kept.getFinishedSpans().map((span) => expected(span, service));
  await provider.shutdown();
  if (failed) throw failed;
  return spans;
}

const [grpcUrl, httpUrl] = process.argv.slice(2);
const all = [];
for (const [service, Exporter] of Object.entries(exporters)) {
  all.push(...(await send(service, new Exporter({ url: service === 'node-grpc' ? grpcUrl : httpUrl }))));
}
process.stdout.write(JSON.stringify(all));
