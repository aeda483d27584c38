//! Figures of the Monitor tab as Jaeger's message: names, texts, labels and their order.

use prost_types::Timestamp;
use spanhouse_proto::jaeger_metrics::{
    GaugeValue, Label, Metric, MetricFamily, MetricPoint, MetricType, gauge_value, metric_point,
};

use super::{MonitorFigure, MonitorRequest, MonitorSeries};

/// The message for the answer to a request. Clients take the first label for the service.
pub fn family(request: &MonitorRequest, series: Vec<MonitorSeries>) -> MetricFamily {
    let (name, what) = match request.figure {
        MonitorFigure::Latency(quantile) => ("latencies", format!("{quantile:.2}th quantile latency")),
        MonitorFigure::Calls => ("call_rate", "calls/sec".to_owned()),
        MonitorFigure::Errors => {
            ("error_rate", "error rate, computed as a fraction of errors/sec over calls/sec".to_owned())
        }
    };
    let (prefix, also) = if request.by_operation { ("service_operation", " & operation") } else { ("service", "") };
    MetricFamily {
        name: format!("{prefix}_{name}"),
        r#type: MetricType::Gauge.into(),
        unit: String::new(),
        help: format!("{what}, grouped by service{also}"),
        metrics: series.into_iter().map(metric).collect(),
    }
}

fn metric(series: MonitorSeries) -> Metric {
    let label = |name: &str, value| Label { name: name.to_owned(), value };
    let labels =
        [Some(label("service_name", series.service)), series.operation.map(|operation| label("operation", operation))];
    Metric {
        labels: labels.into_iter().flatten().collect(),
        metric_points: series.points.into_iter().map(|(at, value)| point(at, value)).collect(),
    }
}

fn point(at_ms: i64, value: f64) -> MetricPoint {
    let gauge = GaugeValue { value: Some(gauge_value::Value::DoubleValue(value)) };
    let nanos = at_ms.rem_euclid(1000) as i32 * 1_000_000;
    MetricPoint {
        value: Some(metric_point::Value::GaugeValue(gauge)),
        timestamp: Some(Timestamp { seconds: at_ms.div_euclid(1000), nanos }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(figure: MonitorFigure, by_operation: bool) -> MonitorRequest {
        MonitorRequest {
            tenants: Vec::new(),
            figure,
            services: vec!["shop".into()],
            by_operation,
            kinds: Vec::new(),
            end_ms: 0,
            lookback_ms: 0,
            step_ms: 1,
            rate_per_ms: 1,
        }
    }

    #[test]
    fn names_and_texts_are_jaegers() {
        for (figure, by_operation, name, help) in [
            (MonitorFigure::Latency(0.95), false, "service_latencies", "0.95th quantile latency, grouped by service"),
            (
                MonitorFigure::Latency(0.5),
                true,
                "service_operation_latencies",
                "0.50th quantile latency, grouped by service & operation",
            ),
            (MonitorFigure::Calls, false, "service_call_rate", "calls/sec, grouped by service"),
            (
                MonitorFigure::Errors,
                true,
                "service_operation_error_rate",
                "error rate, computed as a fraction of errors/sec over calls/sec, grouped by service & operation",
            ),
        ] {
            let family = family(&asked(figure, by_operation), Vec::new());
            assert_eq!((family.name.as_str(), family.help.as_str(), family.r#type), (name, help, 1));
        }
    }

    #[test]
    fn the_service_is_the_first_label() {
        let series = MonitorSeries { service: "shop".into(), operation: Some("pay".into()), points: vec![(-1, 0.0)] };
        let family = family(&asked(MonitorFigure::Calls, true), vec![series]);
        let labels = family.metrics[0].labels.iter().map(|label| (label.name.as_str(), label.value.as_str()));
        assert_eq!(labels.collect::<Vec<_>>(), [("service_name", "shop"), ("operation", "pay")]);
        let point = &family.metrics[0].metric_points[0];
        assert_eq!(point.timestamp, Some(Timestamp { seconds: -1, nanos: 999_000_000 }));
        let zero = GaugeValue { value: Some(gauge_value::Value::DoubleValue(0.0)) };
        assert_eq!(point.value, Some(metric_point::Value::GaugeValue(zero)), "a zero is there");
    }
}
