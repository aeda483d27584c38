//! `/api/metrics`: the figures of the Monitor tab.
//!
//! The answer has no envelope: it is a family of gauges in the JSON form of OpenMetrics' protobuf.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use prost_types::Timestamp;
use spanhouse_common::id::TenantId;
use spanhouse_common::time::civil_date;
use spanhouse_proto::jaeger_metrics::{Metric, MetricFamily, gauge_value, metric_point};

use super::HttpDeps;
use super::answer::{envelope, respond};
use super::error::{Legacy, Refusal};
use super::params::{Pairs, Params, kind};
use crate::jaeger::figures;
use crate::jaeger::{Answer, MonitorFigure, MonitorRequest};
use crate::json::{Object, push_f64, push_quoted_int, push_str};

const HOUR_MILLIS: i64 = 3_600_000;
const STEP_MILLIS: i64 = 5_000;
const RATE_PER_MILLIS: i64 = 600_000;

pub(super) async fn latencies(state: State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, Legacy> {
    answer(state, pairs, headers, |params| {
        let text = params.get("quantile").unwrap_or_default();
        let quantile = text.parse::<f64>().ok().filter(|quantile| (0.0..=1.0).contains(quantile));
        let why = || Refusal::parameter("quantile", format!("{text:?} is not a number from 0 to 1"));
        quantile.map(MonitorFigure::Latency).ok_or_else(why)
    })
    .await
}

pub(super) async fn calls(state: State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, Legacy> {
    answer(state, pairs, headers, |_| Ok(MonitorFigure::Calls)).await
}

pub(super) async fn errors(state: State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, Legacy> {
    answer(state, pairs, headers, |_| Ok(MonitorFigure::Errors)).await
}

/// The shortest step there may be, in milliseconds.
pub(super) async fn min_step(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, Legacy> {
    deps.tenants(&headers)?;
    Ok(respond(envelope("1", 0, &[]), Params::new(pairs).pretty(), None).await?)
}

async fn answer(
    State(deps): State<HttpDeps>,
    pairs: Pairs,
    headers: HeaderMap,
    figure: impl FnOnce(&Params) -> Result<MonitorFigure, Refusal>,
) -> Result<Response, Legacy> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let figure = figure(&params)?;
    let request = read(&params, tenants, figure, deps.queries.deps().clock.now().0)?;
    let Answer { found, partial } = deps.queries.monitor(&request).await?;
    Ok(respond(written(&figures::family(&request, found)), params.pretty(), partial).await?)
}

fn read(params: &Params, tenants: Vec<TenantId>, figure: MonitorFigure, now: u64) -> Result<MonitorRequest, Refusal> {
    let services: Vec<String> = params.all("service").map(str::to_owned).collect();
    if services.is_empty() {
        return Err(Refusal::parameter("service", "please provide at least one service name"));
    }
    let by_operation = params.bool("groupByOperation")?;
    let mut kinds = Vec::new();
    for word in params.all("spanKind") {
        let number = kind(word).ok_or_else(|| Refusal::parameter("spanKind", format!("unsupported span kind: '{word}'")))?;
        kinds.push(number);
    }
    let positive = |name, default| match params.millis(name)? {
        Some(0) => Err(Refusal::parameter(name, "must be more than 0")),
        millis => Ok(millis.unwrap_or(default)),
    };
    Ok(MonitorRequest {
        tenants,
        figure,
        services,
        by_operation,
        kinds,
        end_ms: params.int("endTs")?.unwrap_or((now / 1_000_000) as i64).max(0),
        lookback_ms: params.millis("lookback")?.unwrap_or(HOUR_MILLIS),
        step_ms: positive("step", STEP_MILLIS)?,
        rate_per_ms: positive("ratePer", RATE_PER_MILLIS)?,
    })
}

fn written(family: &MetricFamily) -> String {
    let mut out = String::new();
    let mut object = Object::open(&mut out);
    push_str(&family.name, object.member("name"));
    push_str(family.r#type().as_str_name(), object.member("type"));
    object.text("unit", &family.unit);
    push_str(&family.help, object.member("help"));
    object.list_or_empty("metrics", &family.metrics, write_metric);
    object.close();
    out
}

fn write_metric(metric: &Metric, out: &mut String) {
    let mut object = Object::open(out);
    object.list_or_empty("labels", &metric.labels, |label, out| {
        let mut object = Object::open(out);
        push_str(&label.name, object.member("name"));
        push_str(&label.value, object.member("value"));
        object.close();
    });
    object.list_or_empty("metricPoints", &metric.metric_points, |point, out| {
        let mut object = Object::open(out);
        if let Some(metric_point::Value::GaugeValue(gauge)) = &point.value {
            let mut gauge_object = Object::open(object.member("gaugeValue"));
            match gauge.value {
                Some(gauge_value::Value::DoubleValue(value)) => push_f64(value, gauge_object.member("doubleValue")),
                Some(gauge_value::Value::IntValue(value)) => push_quoted_int(value, gauge_object.member("intValue")),
                None => {}
            }
            gauge_object.close();
        }
        if let Some(at) = &point.timestamp {
            push_str(&timestamp(at), object.member("timestamp"));
        }
        object.close();
    });
    object.close();
}

/// RFC 3339 in UTC with 0, 3, 6 or 9 digits of a fraction.
fn timestamp(at: &Timestamp) -> String {
    let (days, second) = (at.seconds.div_euclid(86_400), at.seconds.rem_euclid(86_400));
    let (year, month, day) = civil_date(days);
    let fraction = match at.nanos {
        0 => String::new(),
        nanos if nanos % 1_000_000 == 0 => format!(".{:03}", nanos / 1_000_000),
        nanos if nanos % 1_000 == 0 => format!(".{:06}", nanos / 1_000),
        nanos => format!(".{nanos:09}"),
    };
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{fraction}Z", second / 3_600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use axum::extract::Query;

    use super::*;
    use crate::jaeger::MonitorSeries;

    fn read_url(query: &str) -> Result<MonitorRequest, String> {
        let uri = format!("/?{query}").parse().unwrap();
        let params = Params::new(Query::try_from_uri(&uri).unwrap());
        read(&params, Vec::new(), MonitorFigure::Calls, 1_700_000_000_000_000_000).map_err(|refusal| refusal.message)
    }

    #[test]
    fn requests_and_their_defaults() {
        let plain = MonitorRequest {
            tenants: Vec::new(),
            figure: MonitorFigure::Calls,
            services: vec!["a".into(), "b c".into()],
            by_operation: false,
            kinds: Vec::new(),
            end_ms: 1_700_000_000_000,
            lookback_ms: 3_600_000,
            step_ms: 5_000,
            rate_per_ms: 600_000,
        };
        assert_eq!(read_url("service=a&service=b%20c&endTs=&spanKind=").unwrap(), plain);
        let full = MonitorRequest {
            by_operation: true,
            kinds: vec![2, 0, 5],
            end_ms: 7,
            lookback_ms: 0,
            step_ms: 60_000,
            rate_per_ms: 1,
            ..plain
        };
        let query = "service=a&service=b+c&groupByOperation=T&spanKind=server&spanKind=unspecified&spanKind=consumer&endTs=7&lookback=0\
                     &step=60000&ratePer=1";
        assert_eq!(read_url(query).unwrap(), full);
    }

    #[test]
    fn what_cannot_be_read() {
        let cases = [
            ("", "unable to parse param 'service': please provide at least one service name"),
            (
                "service=a&groupByOperation=yes",
                r#"unable to parse param 'groupByOperation': strconv.ParseBool: parsing "yes": invalid syntax"#,
            ),
            ("service=a&spanKind=SERVER", "unable to parse param 'spanKind': unsupported span kind: 'SERVER'"),
            ("service=a&endTs=x", r#"unable to parse param 'endTs': strconv.ParseInt: parsing "x": invalid syntax"#),
            ("service=a&lookback=-1", "unable to parse param 'lookback': -1 is negative"),
            ("service=a&step=0", "unable to parse param 'step': must be more than 0"),
            ("service=a&ratePer=1h", r#"unable to parse param 'ratePer': strconv.ParseInt: parsing "1h": invalid syntax"#),
        ];
        for (query, message) in cases {
            assert_eq!(read_url(query).unwrap_err(), message, "{query}");
        }
    }

    #[test]
    fn families_to_the_byte() {
        let request = |figure, by_operation| MonitorRequest { figure, by_operation, ..read_url("service=driver").unwrap() };
        let series = |operation: Option<&str>, points| MonitorSeries {
            service: "driver".into(),
            operation: operation.map(str::to_owned),
            points,
        };
        let points = vec![(1_785_575_526_000, 12.5), (1_785_575_526_500, f64::NAN), (0, 0.0)];
        assert_eq!(
            written(&figures::family(&request(MonitorFigure::Latency(0.95), false), vec![series(None, points)])),
            concat!(
                r#"{"name":"service_latencies","type":"GAUGE","help":"0.95th quantile latency, grouped by service","#,
                r#""metrics":[{"labels":[{"name":"service_name","value":"driver"}],"metricPoints":["#,
                r#"{"gaugeValue":{"doubleValue":12.5},"timestamp":"2026-08-01T09:12:06Z"},"#,
                r#"{"gaugeValue":{"doubleValue":"NaN"},"timestamp":"2026-08-01T09:12:06.500Z"},"#,
                r#"{"gaugeValue":{"doubleValue":0},"timestamp":"1970-01-01T00:00:00Z"}]}]}"#
            )
        );
        assert_eq!(
            written(&figures::family(&request(MonitorFigure::Calls, true), vec![series(Some("GET <x>"), Vec::new())])),
            concat!(
                r#"{"name":"service_operation_call_rate","type":"GAUGE","help":"calls/sec, grouped by service \u0026 operation","#,
                r#""metrics":[{"labels":[{"name":"service_name","value":"driver"},{"name":"operation","value":"GET \u003cx\u003e"}],"#,
                r#""metricPoints":[]}]}"#
            )
        );
        assert_eq!(
            written(&figures::family(&request(MonitorFigure::Errors, false), Vec::new())),
            concat!(
                r#"{"name":"service_error_rate","type":"GAUGE","help":"error rate, computed as a fraction of errors/sec over calls/sec, "#,
                r#"grouped by service","metrics":[]}"#
            )
        );
    }

    #[test]
    fn timestamps() {
        for (seconds, nanos, text) in [
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_709_251_199, 999_000_000, "2024-02-29T23:59:59.999Z"),
            (-1, 1_000, "1969-12-31T23:59:59.000001Z"),
            (4_107_542_400, 1, "2100-03-01T00:00:00.000000001Z"),
        ] {
            assert_eq!(timestamp(&Timestamp { seconds, nanos }), text);
        }
    }
}
