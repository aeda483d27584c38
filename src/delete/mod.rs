//! `spanhouse delete`: hides traces by id, straight on the store, and lists what was deleted.
//!
//! Owns the options, the question that is asked first, and what is printed. Does not own what a deletion is nor what is on disk
//! after a crash ([`spanhouse_common::deletion`]). Works with and without a running server.

#[cfg(test)]
mod tests;

use std::io::{BufRead, Write};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use spanhouse_common::deletion::{Asker, Deletion, Deletions, MAX_REASON_BYTES, Record, Recorded, records};
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::time::UnixNanos;

use crate::blocks::BlocksDeps;
use crate::blocks::catalog::tenants;
use crate::blocks::text::{self, Table};

#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    spanhouse delete trace 2f3e0cee77ae5dc9c17ade3689eb2e54 --reason 'card number in an attribute'\n  \
    spanhouse delete trace 2f3e0cee77ae5dc9c17ade3689eb2e54 --tenant team-a --yes    without asking, for scripts\n  \
    spanhouse delete ls                                                              what was deleted, when and why\n\n\
    Works on the store itself, as --config, --data-dir and SPANHOUSE_STORAGE_URL name it, beside a running server or without one.")]
pub enum DeleteCommand {
    /// Hide one trace from every answer, for good
    #[command(
        long_about = "Hide one trace from every answer, for good.\n\n\
            The trace is gone from searches, metrics, tags and trace by id as soon as a server knows of it: a running one \
            looks within 5 seconds. Spans of it that arrive later stay hidden. Compaction takes it out of the blocks within 24 \
            hours; until then its bytes are still in the store. There is no way back.\n\n\
            A trace that is not there is deleted all the same: its spans may be on their way. Deleting twice is harmless. What was \
            deleted, when and why stays in the store: `spanhouse delete ls`.",
        after_help = "Examples:\n  \
            spanhouse delete trace 2f3e0cee77ae5dc9c17ade3689eb2e54\n  \
            spanhouse delete trace 2f3e0cee77ae5dc9c17ade3689eb2e54 --reason 'ticket 4711' --yes\n\n\
            Over HTTP the same is DELETE /api/traces/<id>, if deletion.enabled is set."
    )]
    Trace {
        /// In hex, as `spanhouse query search` prints it
        #[arg(value_name = "ID")]
        id: TraceId,
        /// Whose trace
        #[arg(long, value_name = "NAME", default_value = "single-tenant")]
        tenant: TenantId,
        /// Kept with the record of the deletion, at most 1024 bytes
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Do not ask first
        #[arg(long)]
        yes: bool,
    },
    /// List what was deleted, when, by which way and why
    Ls(LsOptions),
}

#[derive(Clone, Debug, Args)]
pub struct LsOptions {
    /// Only this tenant [default: all tenants]
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<TenantId>,
    /// JSON for programs instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Whom to ask before something is deleted.
pub trait Confirm {
    /// `None` where nobody can answer.
    fn answer(&mut self, question: &str) -> std::io::Result<Option<String>>;
}

/// Asks at the terminal, if standard input is one.
#[derive(Debug)]
pub struct AtTerminal;

impl Confirm for AtTerminal {
    fn answer(&mut self, question: &str) -> std::io::Result<Option<String>> {
        use std::io::IsTerminal;
        let input = std::io::stdin();
        if !input.is_terminal() {
            return Ok(None);
        }
        let mut out = std::io::stderr();
        write!(out, "{question} ")?;
        out.flush()?;
        let mut line = String::new();
        input.lock().read_line(&mut line)?;
        Ok(Some(line))
    }
}

/// Runs a command, its result going to `out`.
pub async fn run(command: DeleteCommand, deps: &BlocksDeps, ask: &mut impl Confirm, out: &mut impl Write) -> Result<()> {
    match command {
        DeleteCommand::Trace { id, tenant, reason, yes } => {
            let deletion = Deletion { tenant, trace_id: id, by: Asker::Cli, reason };
            delete(deletion, yes, deps, ask, out).await
        }
        DeleteCommand::Ls(options) => ls(&options, deps, out).await,
    }
}

async fn delete(
    deletion: Deletion,
    yes: bool,
    deps: &BlocksDeps,
    ask: &mut impl Confirm,
    out: &mut impl Write,
) -> Result<()> {
    let Deletion { tenant, trace_id, reason, .. } = &deletion;
    // What would be refused is, before anybody is asked.
    if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON_BYTES) {
        bail!("--reason is longer than {MAX_REASON_BYTES} bytes");
    }
    let known = tenants(deps, Some(tenant)).await;
    known.context("a tenant whose first spans came just now is there when they are in a block, see flush.max_age")?;
    if !yes {
        let question = format!("Delete trace {trace_id} of tenant {tenant} for good? It cannot be brought back. [y/N]");
        let answer = ask.answer(&question).context("asking at the terminal; --yes goes without")?;
        let is_yes = |answer: &str| matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
        if answer.is_some_and(|answer| !is_yes(&answer)) {
            bail!("nothing was deleted");
        }
    }
    let deletions = Deletions::new(Arc::clone(&deps.manifests), Arc::clone(&deps.clock));
    let deleted = deletions.delete(&deletion).await?;
    let version = deleted.manifest_version;
    if deleted.already {
        writeln!(
            out,
            "trace {trace_id} of tenant {tenant} was deleted within the last hour: nothing to do (manifest version {version})"
        )?;
    } else {
        writeln!(out, "deleted trace {trace_id} of tenant {tenant} (manifest version {version})")?;
    }
    writeln!(
        out,
        "A running server shows it for at most 5 s more. Its bytes leave the store within 24 hours, if a compactor runs."
    )?;
    Ok(())
}

/// One deletion as `ls` tells it.
#[derive(Debug, Serialize)]
struct Listed {
    tenant: TenantId,
    trace_id: String,
    time: UnixNanos,
    by: Option<Asker>,
    reason: Option<String>,
    /// The manifest hides the trace. If not, retention has taken what was hidden, or the deletion did not complete.
    hidden: bool,
    /// Why the record says no more.
    unreadable: Option<String>,
}

impl Listed {
    fn of(tenant: &TenantId, recorded: Recorded, hides: impl Fn(TraceId) -> bool) -> Self {
        let tenant = tenant.clone();
        match recorded {
            Recorded::Readable(Record { trace_id, time, by, reason, .. }) => Self {
                tenant,
                trace_id: trace_id.to_string(),
                time,
                by: Some(by),
                reason,
                hidden: hides(trace_id),
                unreadable: None,
            },
            Recorded::Unreadable { time, trace_id, why } => Self {
                tenant,
                trace_id: trace_id.to_string(),
                time,
                by: None,
                reason: None,
                hidden: hides(trace_id),
                unreadable: Some(why),
            },
        }
    }
}

async fn ls(options: &LsOptions, deps: &BlocksDeps, out: &mut impl Write) -> Result<()> {
    let mut all = Vec::new();
    for tenant in tenants(deps, options.tenant.as_ref()).await? {
        let tombstones = match deps.manifests.for_reading(&tenant).await? {
            Some(manifest) => Arc::clone(&manifest.refresh().await?.tombstones),
            None => Default::default(),
        };
        let found = records(deps.manifests.store().as_ref(), &tenant).await?;
        let hides = |id: TraceId| tombstones.contains_key(&id);
        all.extend(found.into_iter().map(|recorded| Listed::of(&tenant, recorded, hides)));
    }
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &all)?;
        writeln!(out)?;
        return Ok(());
    }
    let mut table = Table::new(&["TENANT", "TRACE", "DELETED", "BY", "HIDDEN", "REASON"]);
    for one in &all {
        let reason = one.reason.as_deref().unwrap_or("-");
        let reason =
            one.unreadable.as_ref().map_or_else(|| printable(reason), |why| format!("unreadable: {}", printable(why)));
        table.row([
            one.tenant.to_string(),
            one.trace_id.clone(),
            text::time(one.time),
            one.by.map_or_else(|| "?".to_owned(), |by| by.to_string()),
            if one.hidden { "yes" } else { "no" }.to_owned(),
            reason,
        ]);
    }
    if !all.is_empty() {
        table.write(out)?;
    }
    let deletions = if all.len() == 1 { "deletion" } else { "deletions" };
    writeln!(out, "{} {deletions}", all.len())?;
    if all.iter().any(|one| !one.hidden) {
        writeln!(out, "Not hidden any more: retention took what was hidden, or the deletion did not complete.")?;
    }
    Ok(())
}

/// One line that a terminal does not obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
