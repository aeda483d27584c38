//! `blocks verify`: every object of every block and every pack of filters, read whole and compared with everything that is
//! said of it.
//!
//! Owns the comparison with the manifest and the filter. Does not own packs ([`super::packs`]), nor the inside of a block ([`super::check`]). Repairs nothing.

use std::collections::BTreeSet;
use std::io::Write;

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;
use spanhouse_common::block::{BlockLocation, TraceIdFilter};
use spanhouse_common::id::TenantId;
use spanhouse_common::manifest::{BlockEntry, ManifestState};

use super::check::{self, Checked, Findings};
use super::{BlocksDeps, catalog};

/// What is wrong with one thing.
#[derive(Debug, Serialize)]
pub(super) struct Fault {
    pub(super) tenant: String,
    /// A block's or pack's id, or `manifest`.
    pub(super) what: String,
    pub(super) findings: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) tenants: u64,
    pub(super) blocks: u64,
    pub(super) filter_packs: u64,
    pub(super) spans: u64,
    pub(super) bytes: u64,
    pub(super) faults: Vec<Fault>,
}

/// Whether everything is as it should be.
pub(super) async fn run(
    deps: &BlocksDeps,
    tenant: Option<&TenantId>,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let report = verify(deps, tenant).await?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        for fault in &report.faults {
            writeln!(out, "tenant {}, {}:", fault.tenant, fault.what)?;
            fault.findings.iter().try_for_each(|finding| writeln!(out, "  {finding}"))?;
        }
        let Report { tenants, blocks, spans, .. } = report;
        let size = super::text::bytes(report.bytes);
        let verdict = match report.faults.len() {
            0 => "all as it should be".to_owned(),
            faults => format!("{faults} damaged"),
        };
        let packs = super::packs::count(report.filter_packs);
        writeln!(out, "{tenants} tenants, {blocks} blocks{packs}, {spans} spans, {size}: {verdict}")?;
    }
    Ok(report.faults.is_empty())
}

pub(super) async fn verify(deps: &BlocksDeps, tenant: Option<&TenantId>) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mut all = Vec::new();
    for tenant in catalog::tenants(deps, tenant).await? {
        report.tenants += 1;
        let mut fault = |text: String| {
            report.faults.push(Fault { tenant: tenant.to_string(), what: "manifest".into(), findings: vec![text] });
        };
        match catalog::blocks_of(deps, &tenant).await {
            Err(error) => fault(error.to_string()),
            Ok(blocks) => {
                if let Some(damage) = &blocks.damage {
                    fault(damage.clone());
                }
                all.push(blocks);
            }
        }
    }
    let total = all.iter().map(|blocks| blocks.state.total_bytes()).sum();
    let bar = catalog::progress("verify", total);
    for (of, (tenant, entry)) in all.iter().flat_map(|of| of.entries().map(move |block| (of, block))) {
        let findings = block(deps, tenant, entry, &of.state).await;
        let bytes = entry.size_bytes.saturating_add(entry.filter_bytes);
        bar.inc(bytes);
        report.blocks += 1;
        report.spans += entry.rows;
        report.bytes += bytes;
        if !findings.is_empty() {
            report.faults.push(Fault { tenant: tenant.to_string(), what: format!("block {}", entry.id), findings });
        }
    }
    for blocks in &all {
        for pack in blocks.state.packs.values() {
            let findings = super::packs::verify(deps, &blocks.tenant, &blocks.state, pack).await;
            bar.inc(pack.size_bytes);
            report.filter_packs += 1;
            report.bytes += pack.size_bytes;
            if !findings.is_empty() {
                let (tenant, what) = (blocks.tenant.to_string(), format!("filter pack {}", pack.id));
                report.faults.push(Fault { tenant, what, findings });
            }
        }
    }
    bar.finish_and_clear();
    Ok(report)
}

async fn block(deps: &BlocksDeps, tenant: &TenantId, entry: &BlockEntry, state: &ManifestState) -> Vec<String> {
    let mut findings = Findings::default();
    let location = BlockLocation::of(tenant, entry);
    let store: &dyn ObjectStore = deps.manifests.store().as_ref();
    let (parquet, filter) = futures::join!(read(store, &location.parquet), read(store, &location.filter));
    let checked = match &parquet {
        Err(error) => {
            findings.add(error.clone());
            None
        }
        Ok(parquet) => {
            if parquet.len() as u64 != entry.size_bytes {
                findings.add(format!("{} bytes long, the manifest says {}", parquet.len(), entry.size_bytes));
            } else if crc32c::crc32c(parquet) != entry.crc32c {
                findings.add("its checksum is not the one in the manifest: bytes have changed".to_owned());
            }
            match check::check(parquet, &mut findings).await {
                Ok(checked) => Some(checked),
                Err(error) => {
                    findings.add(format!("cannot be read: {error:#}"));
                    None
                }
            }
        }
    };
    match &filter {
        Err(error) => findings.add(error.clone()),
        Ok(filter) => check_filter(filter, entry, checked.as_ref(), &mut findings),
    }
    if let (Ok(parquet), Some(checked)) = (&parquet, &checked) {
        if checked.meta.origin.tenant != *tenant {
            findings.add(format!("its footer says that it belongs to tenant {}", checked.meta.origin.tenant));
        }
        let replaced: BTreeSet<_> = checked.meta.origin.replaces.iter().chain(&entry.replaces).collect();
        for id in replaced.into_iter().filter(|id| state.blocks.contains_key(id)) {
            findings.add(format!("it was made of block {id}, which is there too: their spans are stored twice"));
        }
        let mut said = checked.meta.entry_of(parquet, checked.tail_bytes, entry.filter_bytes);
        // A rebuilt manifest says also what the inputs had replaced.
        if entry.replaces == checked.meta.origin.replaces {
            said.replaces.clone_from(&entry.replaces);
        }
        compare(&said, entry, &mut findings);
    }
    findings.finish()
}

pub(super) async fn read(store: &dyn ObjectStore, path: &object_store::path::Path) -> Result<Bytes, String> {
    let object = async { store.get(path).await?.bytes().await };
    object.await.map_err(|error| match error {
        object_store::Error::NotFound { .. } => format!("the object {path} is missing"),
        other => format!("the object {path} cannot be read: {other}"),
    })
}

fn check_filter(filter: &Bytes, entry: &BlockEntry, checked: Option<&Checked>, findings: &mut Findings) {
    if filter.len() as u64 != entry.filter_bytes {
        findings.add(format!("the filter is {} bytes long, the manifest says {}", filter.len(), entry.filter_bytes));
    }
    match TraceIdFilter::from_bytes(filter) {
        Err(error) => findings.add(error.to_string()),
        Ok(filter) => {
            let hidden = checked.and_then(|c| c.trace_ids.iter().find(|id| !filter.may_contain(**id)));
            if let Some(id) = hidden {
                findings.add(format!("the filter hides trace {id}, which is in the block"));
            }
        }
    }
}

/// The manifest's word against the block's own, field by field. Size and checksum were compared before.
fn compare(own: &BlockEntry, manifest: &BlockEntry, findings: &mut Findings) {
    let (Ok(serde_json::Value::Object(own)), Ok(serde_json::Value::Object(manifest))) =
        (serde_json::to_value(own), serde_json::to_value(manifest))
    else {
        return;
    };
    for (field, said) in manifest.iter().filter(|(field, _)| !["size_bytes", "crc32c"].contains(&field.as_str())) {
        if own.get(field) != Some(said) {
            let own = own.get(field).unwrap_or(&serde_json::Value::Null);
            findings.add(format!("{field}: the manifest says {said}, the block {own}"));
        }
    }
}
