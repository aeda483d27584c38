//! What the process says of itself: `/status`, `/ready`, `/metrics`.

use std::sync::Arc;

use spanhouse_common::id::TenantId;
use spanhouse_common::telemetry::Telemetry;
use spanhouse_compactor::CompactorStatus;
use spanhouse_ingester::Ingester;
use spanhouse_ingester::admission::{Admission, limits::Limits};
use spanhouse_querier::api::{BuildInfo, ServiceStatus, StatusDeps};

use super::ports::Bound;
use crate::config::{Config, MemoryShares};

/// Writes the limits in force, of everybody or of one tenant, as YAML.
pub(super) type LimitsText = Arc<dyn Fn(Option<&TenantId>) -> String + Send + Sync>;

pub(super) fn limits_of(admission: &Arc<Admission>) -> LimitsText {
    let admission = Arc::clone(admission);
    let write = |limits: &Limits, indent: &str| {
        let fields = serde_json::to_value(limits).unwrap_or_default();
        let lines = fields.as_object().into_iter().flatten().map(|(name, value)| format!("{indent}{name}: {value}\n"));
        lines.collect::<String>()
    };
    Arc::new(move |tenant| {
        if let Some(tenant) = tenant {
            return write(&admission.limits(tenant), "");
        }
        let overrides = admission.overrides();
        let mut text = format!("defaults:\n{}", write(&overrides.defaults(), "  "));
        if overrides.tenants() > 0 {
            text.push_str("overrides:\n");
        }
        for (tenant, limits) in overrides.named() {
            text.push_str(&format!("  \"{tenant}\":\n{}", write(limits, "    ")));
        }
        text
    })
}

pub(super) fn status(
    config: &Config,
    shares: &MemoryShares,
    ports: &[Bound],
    ingester: &Ingester,
    limits: LimitsText,
    compactor: CompactorStatus,
    telemetry: &Arc<Telemetry>,
) -> StatusDeps {
    let yaml = config.to_yaml(Some(shares));
    let (ports, telemetry) = (ports.to_vec(), Arc::clone(telemetry));
    let ready = ingester.readiness();
    let state = ingester.readiness();
    StatusDeps {
        build: BuildInfo { version: env!("CARGO_PKG_VERSION").into(), ..BuildInfo::default() },
        ready: Arc::new(move || ready.check()),
        config: Arc::new(move || yaml.clone()),
        services: Arc::new(move || {
            let ingester = state.check().map_or_else(|why| why, |()| "Running".to_owned());
            let mut all = vec![ServiceStatus { name: "ingester".into(), state: ingester }];
            let stopped = state.stopped_tenants().into_iter();
            all.extend(stopped.map(|(tenant, why)| ServiceStatus {
                name: format!("flush of tenant {tenant}"),
                state: format!("Stopped: {why}"),
            }));
            all.push(ServiceStatus { name: "querier".into(), state: "Running".into() });
            all.extend(ports.iter().map(|port| ServiceStatus { name: port.name.into(), state: port.state() }));
            all
        }),
        limits,
        compactor: Arc::new(move || compactor.text()),
        metrics: Arc::new(move || telemetry.encode()),
    }
}
