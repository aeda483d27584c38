"""A service "shop" with 500 traces of "/pay" a second, sampled as http://HOST:PORT/sampling says and sent by UDP to HOST:PORT.

Runs until it is killed.
"""

import sys
import time

from jaeger_client import RemoteControlledSampler, Tracer
from jaeger_client.local_agent_net import LocalAgentSender
from jaeger_client.reporter import Reporter

(host, sampling_port), (_, reporting_port) = (address.rsplit(":", 1) for address in sys.argv[1:])
channel = LocalAgentSender(host=host, sampling_port=int(sampling_port), reporting_port=int(reporting_port))
sampler = RemoteControlledSampler(channel=channel, service_name="shop", sampling_refresh_interval=0.2)
reporter = Reporter(channel=channel, flush_interval=0.1)
tracer = Tracer(service_name="shop", reporter=reporter, sampler=sampler)

due = time.monotonic()
while True:
    tracer.start_span("/pay").finish()
    due += 0.002
    time.sleep(max(0, due - time.monotonic()))
