"""Samples as jaeger-client is told by http://HOST:PORT/sampling.

Each line of stdin is what is expected: {"service": {"operation": "all" or "none"}}. The line is printed again as soon as the
clients, which ask every fifth of a second, sample like that; what they do instead after a while.
"""

import json
import sys
import time

from jaeger_client import ConstSampler, RemoteControlledSampler, Tracer
from jaeger_client.local_agent_net import LocalAgentSender
from jaeger_client.reporter import InMemoryReporter

ROUNDS = 50
host, port = sys.argv[1].rsplit(":", 1)
tracers = {}


def tracer(service):
    if service not in tracers:
        channel = LocalAgentSender(host=host, sampling_port=int(port), reporting_port=1)
        # Until it is told otherwise, half of what is expected is wrong.
        sampler = RemoteControlledSampler(
            channel=channel, service_name=service, init_sampler=ConstSampler(True), sampling_refresh_interval=0.2
        )
        tracers[service] = Tracer(service_name=service, reporter=InMemoryReporter(), sampler=sampler)
    return tracers[service]


def sampled(service, operation):
    kept = 0
    for _ in range(ROUNDS):
        span = tracer(service).start_span(operation)
        kept += span.is_sampled()
        span.finish()
    # One more or less is the client's lower bound.
    return "all" if kept == ROUNDS else "none" if kept <= 1 else f"{kept} of {ROUNDS}"


for line in sys.stdin:
    expected = json.loads(line)
    deadline = time.monotonic() + 20
    while True:
        found = {service: {name: sampled(service, name) for name in names} for service, names in expected.items()}
        if found == expected or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    print(json.dumps(found), flush=True)
