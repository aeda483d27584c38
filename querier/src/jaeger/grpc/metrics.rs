//! `jaeger.api_v2.metrics.MetricsQueryService`: the figures of the Monitor tab.

use prost_types::Duration;
use spanhouse_common::id::TenantId;
use spanhouse_proto::jaeger_metrics::metrics_query_service_server::MetricsQueryService;
use spanhouse_proto::jaeger_metrics::{
    GetCallRatesRequest, GetErrorRatesRequest, GetLatenciesRequest, GetMetricsResponse, GetMinStepDurationRequest,
    GetMinStepDurationResponse, MetricsQueryBaseRequest,
};
use tonic::{Request, Response, Status};

use super::call::{refused, unary};
use super::values::{duration, time};
use crate::jaeger::figures::family;
use crate::jaeger::{Answer, JaegerQueries, MonitorFigure, MonitorRequest};

const NANOS_PER_MILLI: u64 = 1_000_000;

/// Milliseconds, for what a request leaves out: an hour, five seconds, ten minutes.
const LOOKBACK: i64 = 3_600_000;
const STEP: i64 = 5_000;
const RATE_PER: i64 = 600_000;

#[derive(Debug)]
pub(super) struct Service(pub(super) JaegerQueries);

impl Service {
    async fn answer(
        &self,
        tenant: TenantId,
        base: Option<MetricsQueryBaseRequest>,
        figure: MonitorFigure,
    ) -> Result<Answer<GetMetricsResponse>, Status> {
        let base = base.unwrap_or_default();
        if base.service_names.is_empty() {
            return Err(Status::invalid_argument("please provide at least one service name"));
        }
        let now = || self.0.deps().clock.now().0;
        // As many nanoseconds as fit are fewer milliseconds than fit.
        let millis = |nanos: u64| (nanos / NANOS_PER_MILLI) as i64;
        let or = |given, default| duration(given).map_or(default, |nanos| millis(nanos).max(1));
        let request = MonitorRequest {
            tenants: vec![tenant],
            figure,
            services: base.service_names,
            by_operation: base.group_by_operation,
            kinds: base.span_kinds,
            end_ms: millis(time(base.end_time).unwrap_or_else(now)),
            lookback_ms: or(base.lookback, LOOKBACK),
            step_ms: or(base.step, STEP),
            rate_per_ms: or(base.rate_per, RATE_PER),
        };
        let series = self.0.monitor(&request).await.map_err(|error| refused("failed to fetch metrics", &error))?;
        Ok(series.map(|series| GetMetricsResponse { metrics: Some(family(&request, series)) }))
    }
}

#[tonic::async_trait]
impl MetricsQueryService for Service {
    async fn get_min_step_duration(
        &self,
        request: Request<GetMinStepDurationRequest>,
    ) -> Result<Response<GetMinStepDurationResponse>, Status> {
        unary(&self.0, "/jaeger.api_v2.metrics.MetricsQueryService/GetMinStepDuration", request, async |_, _| {
            let min_step = Some(Duration { seconds: 0, nanos: NANOS_PER_MILLI as i32 });
            Ok(Answer::whole(GetMinStepDurationResponse { min_step }))
        })
        .await
    }

    async fn get_latencies(&self, request: Request<GetLatenciesRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        unary(&self.0, "/jaeger.api_v2.metrics.MetricsQueryService/GetLatencies", request, async |tenant, request| {
            if !(0.0..=1.0).contains(&request.quantile) {
                return Err(Status::invalid_argument("the quantile must be from 0 to 1"));
            }
            self.answer(tenant, request.base_request, MonitorFigure::Latency(request.quantile)).await
        })
        .await
    }

    async fn get_call_rates(&self, request: Request<GetCallRatesRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        unary(&self.0, "/jaeger.api_v2.metrics.MetricsQueryService/GetCallRates", request, async |tenant, request| {
            self.answer(tenant, request.base_request, MonitorFigure::Calls).await
        })
        .await
    }

    async fn get_error_rates(&self, request: Request<GetErrorRatesRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        unary(&self.0, "/jaeger.api_v2.metrics.MetricsQueryService/GetErrorRates", request, async |tenant, request| {
            self.answer(tenant, request.base_request, MonitorFigure::Errors).await
        })
        .await
    }
}
