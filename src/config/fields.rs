//! The table of settings: one row says where a value lives, what it is for and what Tempo does. Everything that reads or
//! prints settings walks this table, so nothing can be read that is not documented, and nothing documented that is not read.
//!
//! Owns names, purposes and comparisons. Does not own defaults (`Config::default`) or where values come from.

use super::Config;
use super::units::Value;

/// One setting.
pub(super) struct Field {
    /// Section and name, joined by a dot; top-level settings have no dot.
    pub path: &'static str,
    /// Purpose, unit and trade-off.
    pub doc: &'static str,
    /// Tempo's name and default, where it has the same setting.
    pub tempo: Option<&'static str>,
    pub set: fn(&mut Config, &str) -> Result<(), String>,
    pub get: fn(&Config) -> String,
}

impl Field {
    /// The variable that sets this field.
    pub(super) fn variable(&self) -> String {
        format!("{}{}", super::VARIABLE_PREFIX, self.path.replace('.', "_").to_ascii_uppercase())
    }
}

macro_rules! fields {
    ($($($part:ident).+ : $doc:literal $(, tempo $tempo:literal)?;)*) => {
        &[$(Field {
            path: fields!(@path $($part).+),
            doc: $doc,
            tempo: fields!(@tempo $($tempo)?),
            set: |config, text| { config.$($part).+ = Value::parse(text)?; Ok(()) },
            get: |config| config.$($part).+.show(),
        }),*]
    };
    (@path $first:ident) => { stringify!($first) };
    (@path $first:ident . $second:ident) => { concat!(stringify!($first), ".", stringify!($second)) };
    (@tempo) => { None };
    (@tempo $tempo:literal) => { Some($tempo) };
}

/// In the order in which they are printed; fields of a section stand together.
pub(super) const FIELDS: &[Field] = fields! {
    data_dir: "Directory of everything this process keeps: WAL, and blocks unless storage.url says otherwise. Locked while the server runs.";
    listen: "Address all servers bind to. 0.0.0.0 opens them to the network; without an authenticating proxy in front, anyone who reaches the ports reads and writes traces.", tempo "all interfaces for its own API; OTLP receivers localhost";
    target: "Roles this process runs. Only `all` exists in this version.", tempo "target: all";
    multitenancy_enabled: "Requires the X-Scope-OrgID header and keeps tenants apart. Off: everything belongs to `single-tenant`.", tempo "multitenancy_enabled: false";
    http_api_prefix: "Path before /api, as in /tempo, for a proxy that passes it on. /ready, /status and /metrics stay where they are.", tempo "http_api_prefix: empty";
    max_tenants: "Tenants that may exist; the first span of one more is refused. Guards against a client that makes up names.";
    retention: "How long spans are kept, counted from the later of their start and their arrival. Longer costs storage and slows queries over everything. `retention` in ingest.overrides_file sets it for a tenant; shortened, it deletes what it no longer covers.", tempo "block_retention: 336h";
    shutdown: "Time SIGTERM gives for answering requests in flight and flushing live data. What is not flushed stays in the WAL and is there after the next start.", tempo "server shutdown timeout: 30s";

    ports.otlp_grpc: "OTLP over gRPC. 0 takes any free port. A busy port is an error if set, a warning if it is the default.", tempo "4317";
    ports.otlp_http: "OTLP over HTTP: /v1/traces, protobuf and JSON.", tempo "4318";
    ports.http: "Query API as Grafana's Tempo data source speaks it, /ready, /status and /metrics.", tempo "server.http_listen_port: 3200";
    ports.grpc_query: "Streaming queries over gRPC. ports.http answers them too; this port is for clients that expect them apart.", tempo "server.grpc_listen_port: 9095";
    ports.jaeger: "Jaeger query API over HTTP, and Jaeger UI if jaeger.ui_dir is set. `off` turns a port off.";
    ports.jaeger_grpc_query: "Jaeger query API over gRPC: api_v2 and api_v3.";
    ports.jaeger_storage: "Remote storage for a stock Jaeger: storage v1 and v2 over gRPC, reading and writing.";
    ports.jaeger_thrift_http: "Spans as Jaeger Thrift over HTTP: /api/traces; and /api/sampling.", tempo "jaeger.thrift_http: 14268";
    ports.jaeger_grpc: "Spans as Jaeger protobuf over gRPC, and sampling strategies.", tempo "jaeger.grpc: 14250";
    ports.jaeger_compact: "UDP: spans as a Jaeger agent takes them, Thrift compact. What arrives faster than it is taken is lost, as ever with UDP.", tempo "jaeger.thrift_compact: 6831";
    ports.jaeger_binary: "UDP: the same as Thrift binary.", tempo "jaeger.thrift_binary: 6832";
    ports.zipkin_compact: "UDP: Zipkin spans as old agents took them, Thrift compact.";
    ports.zipkin: "Spans of Zipkin reporters (v1 and v2, JSON, Thrift and protobuf), Zipkin's query API, and its UI if zipkin.ui_dir is set.", tempo "zipkin: 9411";
    ports.sampling_http: "Sampling strategies for Jaeger clients over HTTP.";
    ports.sampling_grpc: "Sampling strategies over gRPC.";
    ports.max_connections_per_address: "Connections of one address to one port; more are closed at once, so that no host takes every place. A proxy in front may need more.";

    storage.url: "Where blocks live: `auto` is <data_dir>/blocks; or a directory, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.", tempo "storage.trace.backend";

    ingest.max_body_bytes: "Largest request body as it arrives, before decompression. Larger is refused with 413.", tempo "20MiB (HTTP), 4MiB (gRPC)";
    ingest.max_decoded_bytes: "Largest request body after decompression: the guard against compression bombs.", tempo "not limited apart from max_body";
    ingest.overrides_file: "YAML file of per-tenant limits and retention, re-read while running. `none`: the limits below hold for every tenant.", tempo "overrides.per_tenant_override_config";
    ingest.rate_limit_bytes: "Bytes per second one tenant may send; beyond it requests get 429 with Retry-After. Unlimited is safe: the memory budget refuses before the process suffers.", tempo "rate_limit_bytes: 30000000";
    ingest.burst_size_bytes: "Bytes one tenant may send at once before its rate applies.", tempo "burst_size_bytes: 30000000";
    ingest.max_trace_bytes: "Bytes of one trace while it is live; further spans are refused and named in partial_success.", tempo "max_bytes_per_trace: 5000000";
    ingest.max_attribute_bytes: "Spans with a longer attribute value are refused. Never cut, so that what comes out is what went in.", tempo "max_attribute_bytes: 2048, cut";

    wal.dir: "Directory of the write-ahead log. `auto` is <data_dir>/wal. A fast local disk makes acknowledgements fast.", tempo "storage.trace.wal.path";
    wal.segment_bytes: "Size at which a WAL file is closed and the next begins. Smaller files go sooner after a flush, larger ones cost fewer directory syncs.";
    wal.max_bytes: "Size of the whole WAL at which requests are refused with 429: bounds the disk and the replay after a crash.";
    wal.linger: "How long the first request of a group waits for others to share its fdatasync. Higher: fewer syncs, later acknowledgements.";
    wal.group_bytes: "A group is synced at once when it has this many bytes.";

    flush.max_age: "Age at which live spans become blocks. Lower: less memory and replay; higher: larger blocks, fewer objects.", tempo "max_block_duration: 30m";
    flush.cut_spans: "Live spans of a tenant at which they are flushed before their age.";
    flush.cut_bytes: "Live bytes of a tenant at which they are flushed before their age.", tempo "max_block_bytes: 500MiB";
    flush.window: "Blocks never span more than one window of span start time. 15m, 1h, 6h or 24h.", tempo "compaction_window: 1h";

    compaction.enabled: "Whether this process merges blocks, and removes deleted traces from them. Retention and sweeping go on without.", tempo "compactor.disabled: false";
    compaction.interval: "Time between two looks at what is to be merged, retired and swept. A look costs a request per tenant.", tempo "compaction_cycle: 30s";
    compaction.fan_in: "Blocks one merge takes, 2 to 32. Fewer: more rewrites for the same block size.", tempo "max_input_blocks: 4";
    compaction.target_bytes: "Size of a merged block; a block of half of it is never written again.", tempo "max_block_bytes: 100GiB";
    compaction.target_spans: "Spans of a merged block, as above.", tempo "max_compaction_objects: 6000000 traces";
    compaction.slack: "How long after its end a window is still open for spans that are under way. Later ones wait for others that are late.";
    compaction.query_grace: "How long the objects of a replaced block are kept: longer than any query runs.", tempo "compacted_block_retention: 1h";
    compaction.sweep_grace: "Age at which objects are deleted that no manifest ever named: longer than any flush or merge holds them before it commits. Not below an hour in production.";
    compaction.sweep_interval: "Time between two sweeps of a tenant for such objects. A sweep costs a LIST.";

    memory.total: "Budget of the whole process. `auto`: the smaller of 1 GiB and half of the cgroup limit. Ingest and queries refuse with a reason rather than exceed it.";
    memory.ingest: "Share of requests in flight and live spans. `auto`: 320/1024 of the total. Larger means larger blocks and longer bursts.";
    memory.query: "Share of all queries together. `auto`: 384/1024 of the total.";
    memory.per_query: "What one query may take; a query that would exceed it ends with an error that says so. `auto`: 256/1024 of the total.";
    memory.compaction: "Share of compaction. `auto`: 256/1024 of the total.";

    query.deadline: "Time a query may take before it ends with 504.", tempo "trace by id 10s, search 30s";
    query.max_trace_bytes: "Largest trace the trace-by-id API returns whole; of a larger one it returns a part and says so.", tempo "max_bytes_per_trace: 5000000";
    query.max_expression_bytes: "Longest query text; longer is refused. At most 131072.", tempo "max_query_expression_size_bytes: 131072";
    query.end_cutoff: "How far from the present searches, tags and metrics end. 0s shows spans the moment they are acknowledged; longer hides those whose traces are still arriving.", tempo "query_end_cutoff: 30s";
    query.default_search_range: "What searches and tags look back when a request has no time range.", tempo "query_backend_after: 15m";
    query.max_search_range: "Longest range of a search or a request for tags. 0s: any.", tempo "search.max_duration: 168h";
    query.default_limit: "Traces a search returns unless it asks for another number.", tempo "default_result_limit: 20";
    query.max_limit: "Most traces a search may ask for. Larger answers take memory.", tempo "max_result_limit: 262144";
    query.default_spans_per_set: "Spans shown of each trace found unless a search asks for another number.", tempo "3";
    query.max_spans_per_set: "Most spans a search may ask for of each trace.", tempo "max_spans_per_span_set: 100";
    query.max_metrics_range: "Longest range of a metrics query. 0s: any. Longer means more spans to read at once.", tempo "metrics.max_duration: 24h";
    query.max_metrics_intervals: "Most steps a metrics query may cut its range into.", tempo "metrics.max_intervals: 10000";
    query.max_exemplars: "Most exemplars of a metrics query, and how many it gets unless it asks for fewer.", tempo "metrics.max_exemplars: 100";
    query.max_series: "Most series of a metrics query; the rest is left out and the answer says so. 0: no limit but the query's memory.", tempo "max_response_series: 0";
    query.max_tag_bytes: "Bytes of all names or values that one request for tags returns; the rest is left out and a header says so.", tempo "max_bytes_per_tag_values_query: 1000000";
    query.multi_tenant_queries_enabled: "Whether X-Scope-OrgID may name several tenants, as in a|b.", tempo "multi_tenant_queries_enabled: true";

    jaeger.base_path: "Path before everything on ports.jaeger, as in /jaeger, for a proxy that passes it on.";
    jaeger.ui_dir: "Directory of a built Jaeger UI (index.html and static/), which ports.jaeger then serves. `none`: a page that says how to get one.";
    jaeger.ui_config_file: "Configuration of Jaeger UI: a .json file, or a .js file that defines UIConfig. Read anew with every page. `none`: its defaults.";
    jaeger.max_clock_skew_adjust: "How far spans in answers of the Jaeger APIs may be moved to mend clocks that differ between hosts. 0s: not at all, and a warning on the span says by how much they differ.";
    jaeger.archive: "`none`, or what is added to a tenant's name for the tenant that keeps its archived traces, as in -archive. Reads by id fall back to it, so nobody else may have such a name; `retention` in ingest.overrides_file says how long it keeps them.";

    mcp_server.enabled: "Serves /api/mcp, through which language models read traces with the rights of whoever reaches the port.", tempo "query_frontend.mcp_server.enabled: false";

    deletion.enabled: "Answers DELETE /api/traces/{id}, with the rights of whoever reaches the port: a deleted trace is gone from every answer for good. `spanhouse delete trace` works without it.";

    sampling.strategies_file: "JSON file of sampling strategies as Jaeger has it, by path or http(s) URL, re-read while running. `none`: every client is told default_probability.";
    sampling.reload_interval: "How often the strategy file is looked at. 0s: once, at the start.";
    sampling.default_probability: "What clients are told where the strategy file says nothing: the part of traces they keep, 0 to 1.";
    sampling.legacy_enums: "Writes strategy types as numbers on the bare path / of ports.sampling_http, for clients from before their names were written.";
    sampling.adaptive: "Learns the probability of each service and operation from the spans that arrive, in place of a strategy file. Needs clients that tag root spans with their sampler, as Jaeger's do. Processes on one store learn together, at a few requests to it a minute. So do tenants: whoever asks for a service is told the names of its operations.";
    sampling.target_samples_per_second: "Adaptive: traces a second that each operation should yield.";
    sampling.delta_tolerance: "Adaptive: how far from the target, as part of it, a probability is left alone. Lower moves it more often.";
    sampling.aggregation_buckets: "Adaptive: intervals that are read back for a calculation, 1 to 100.";
    sampling.calculation_buckets: "Adaptive: how many of these, the newest, the mean is taken of; newer ones weigh more. More moves slower and steadier.";
    sampling.calculation_interval: "Adaptive: time between two calculations. All processes on one store need the same.";
    sampling.calculation_delay: "Adaptive: age at which an interval's counts are read. Longer than spans take to arrive and processes to store their counts.";
    sampling.initial_sampling_probability: "Adaptive: where operations begin of which nothing is known.";
    sampling.min_sampling_probability: "Adaptive: no probability goes below it.";
    sampling.min_samples_per_second: "Adaptive: traces a second that clients keep of each operation in any case.";
    sampling.leader_lease_refresh_interval: "Adaptive: how long the process that calculated last is waited for before another does.";
    sampling.follower_lease_refresh_interval: "Adaptive: how often the others read what was calculated.";

    zipkin.ui_dir: "Folder of a built Zipkin UI (its index.html and assets), served under /zipkin on ports.zipkin. `none`: a page there says how to get one.";
    zipkin.autocomplete_keys: "Tags whose values Zipkin's UI offers, separated by commas. `auto`: the first hundred that spans have.";
    zipkin.lookback: "What requests to Zipkin's API look back that say nothing of it, and where names of tags and remote services are looked for. Longer means more data to look at.";

    log.level: "error, warn, info, debug or trace; or filters per module, as in `info,spanhouse_ingester=debug`. Of the HTTP/2 library only errors, unless `h2` is named: peers can make it warn without end.", tempo "log_level: info";
    log.format: "text for people, json for log collectors.", tempo "log_format: logfmt";
};

/// The path of free-form options: any name may follow.
pub(super) const OPTIONS: &str = "storage.options";
pub(super) const OPTIONS_DOC: &str = "Options of the object store by their usual names (aws_region, aws_endpoint, aws_access_key_id, allow_http ...). \
     Prefer the environment for secrets; they are never printed.";

/// The known path that is closest to `unknown`, if it is close enough to be what was meant.
pub(super) fn nearest(unknown: &str) -> Option<&'static str> {
    let sections = FIELDS.iter().filter_map(|f| f.path.split_once('.')).map(|(section, _)| section);
    let known = FIELDS.iter().map(|f| f.path).chain([OPTIONS]).chain(sections);
    let unknown_name = unknown.rsplit('.').next().unwrap_or(unknown);
    // A right name in the wrong section is a better guess than a similar path.
    let scored = known.map(|path| {
        let name = path.rsplit('.').next().unwrap_or(path);
        let by_name = if name == unknown_name { 1 } else { usize::MAX };
        (distance(unknown, path).min(by_name), path)
    });
    scored.min().filter(|(score, path)| *score <= 2 + path.len() / 4).map(|(_, path)| path)
}

/// Edit distance (insert, delete, replace).
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_reads_what_it_prints_and_has_its_own_variable() {
        let mut variables = std::collections::BTreeSet::new();
        for field in FIELDS {
            let mut config = Config::default();
            let shown = (field.get)(&config);
            (field.set)(&mut config, &shown).unwrap_or_else(|e| panic!("{}: {e}", field.path));
            assert_eq!((field.get)(&config), shown, "{}", field.path);
            assert!(variables.insert(field.variable()), "{} is ambiguous", field.variable());
        }
    }

    #[test]
    fn the_nearest_key_is_named() {
        assert_eq!(nearest("ingest.max_body_byte"), Some("ingest.max_body_bytes"));
        assert_eq!(nearest("ingst"), Some("ingest"));
        assert_eq!(nearest("multi_tenancy_enabled"), Some("multitenancy_enabled"));
        assert_eq!(nearest("max_body_bytes"), Some("ingest.max_body_bytes"));
        assert_eq!(nearest("nothing.like.it.at.all"), None);
    }
}
