// Samples as http://HOST:PORT/sampling tells the client that is named: `jaeger-client` or `opentelemetry`.
//
// Each line of stdin is what is expected: {"service": {"operation": "all" or "none"}}. The line is printed again as soon as the
// clients, which ask every fifth of a second, sample like that; what they do instead after a while.

import { createRequire } from 'node:module';
import path from 'node:path';
import readline from 'node:readline';

const require = createRequire(path.join(process.cwd(), 'package.json'));
const [kind, address] = process.argv.slice(2);
const [host, port] = address.split(':');
const ROUNDS = 50;
const EVERY_MS = 200;

// A function from a service to a function that says whether a trace of an operation is kept.
const kinds = {
  'jaeger-client': () => {
    const { initTracer, InMemoryReporter } = require('jaeger-client');
    return (service) => {
      // Until it is told otherwise, half of what is expected is wrong.
      const sampler = { type: 'remote', param: 1, host, port: Number(port), refreshIntervalMs: EVERY_MS };
      const tracer = initTracer({ serviceName: service, sampler }, { reporter: new InMemoryReporter() });
      return (operation) => tracer.startSpan(operation).context().isSampled();
    };
  },
  opentelemetry: () => {
    const { JaegerRemoteSampler } = require('@opentelemetry/sampler-jaeger-remote');
    const { AlwaysOnSampler, NodeTracerProvider } = require('@opentelemetry/sdk-trace-node');
    return (service) => {
      const sampler = new JaegerRemoteSampler({
        endpoint: `http://${address}`,
        serviceName: service,
        initialSampler: new AlwaysOnSampler(),
        poolingInterval: EVERY_MS,
      });
      const tracer = new NodeTracerProvider({ sampler }).getTracer('test');
      return (operation) => (tracer.startSpan(operation).spanContext().traceFlags & 1) === 1;
    };
  },
};

const client = kinds[kind]();
const clients = {};

function sampled(service, operation) {
  clients[service] ??= client(service);
  let kept = 0;
  for (let i = 0; i < ROUNDS; i++) kept += clients[service](operation) ? 1 : 0;
  // One more or less is the client's lower bound.
  return kept === ROUNDS ? 'all' : kept <= 1 ? 'none' : `${kept} of ${ROUNDS}`;
}

const mapped = (object, f) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, f(key, value)]));

for await (const line of readline.createInterface({ input: process.stdin })) {
  const expected = JSON.parse(line);
  const deadline = Date.now() + 20_000;
  let found;
  do {
    await new Promise((done) => setTimeout(done, 100));
    found = mapped(expected, (service, names) => mapped(names, (operation) => sampled(service, operation)));
  } while (JSON.stringify(found) !== JSON.stringify(expected) && Date.now() < deadline);
  console.log(JSON.stringify(found));
}
process.exit(0);
