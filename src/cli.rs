//! The command line.
//!
//! Owns names, help texts and defaults of flags. Does not own what the commands do.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use spanhouse_common::id::{BlockId, TenantError};

use crate::blocks;
use crate::compact;
use crate::config::FlagOverrides;
use crate::delete::DeleteCommand;
use crate::loadgen;
use crate::query;

#[derive(Debug, Parser)]
#[command(
    name = "spanhouse",
    version,
    about = "A trace storage backend: OTLP, Jaeger and Zipkin in, Parquet blocks on disk or object storage, the APIs of Tempo, \
             Jaeger and Zipkin out",
    long_about = "A trace storage backend: spans come in by OTLP or as Jaeger and Zipkin clients send them, are on disk when they are \
                  acknowledged, become Parquet blocks on disk or object storage, and go out through the APIs of Grafana's Tempo \
                  data source, of Jaeger and of Zipkin.\n\n\
                  Without a command it runs the server: all roles in one process, data in ./data, on the ports of 127.0.0.1 that are \
                  listed at the end. /status and /metrics are on 3200.",
    after_long_help = after_long_help(),
    args_conflicts_with_subcommands = false
)]
pub struct Cli {
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXAMPLES: &str = "Examples:\n  \
                       spanhouse                                       run everything on ./data\n  \
                       spanhouse --config spanhouse.yaml               with a file; `spanhouse config print` shows all settings\n  \
                       spanhouse loadgen --rate 1000 --duration 1m     send a minute of a shop's traffic to it\n  \
                       spanhouse query search '{ status = error }'     find traces\n  \
                       spanhouse query trace <trace id>                see one in time\n  \
                       spanhouse tenants                               see who has how much, and how long it is kept\n  \
                       spanhouse blocks ls                             see what is stored\n  \
                       spanhouse compact plan                          see what is merged next, and why\n  \
                       spanhouse delete trace <trace id>               hide one for good\n\n\
                       Settings also come from the environment: SPANHOUSE_INGEST_MAX_BODY_BYTES=64MiB is ingest.max_body_bytes.";

fn after_long_help() -> String {
    format!("{EXAMPLES}\n\n{}", crate::app::ports_help())
}

/// Flags that change the configuration; `config print` and `blocks` obey them too.
#[derive(Clone, Debug, Default, Args)]
pub struct ServerArgs {
    /// YAML file of settings
    #[arg(long, value_name = "FILE", env = "SPANHOUSE_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Directory of WAL and blocks [default: ./data]
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Address all servers bind to [default: 127.0.0.1]
    #[arg(long, value_name = "ADDR", global = true)]
    pub listen: Option<String>,
    /// Roles to run; only `all` exists in this version
    #[arg(long, value_name = "NAME", global = true)]
    pub target: Option<String>,
}

impl ServerArgs {
    pub fn overrides(&self) -> FlagOverrides {
        FlagOverrides { data_dir: self.data_dir.clone(), listen: self.listen.clone(), target: self.target.clone() }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Send realistic traffic, measure it, and read it back
    Loadgen(Box<loadgen::Options>),
    /// Measure how long queries take over what loadgen sent
    Bench(loadgen::bench::Options),
    /// Ask a running server: search, show traces, list tags, draw metrics
    Query(Box<query::Options>),
    /// See which blocks are to be merged and why, and merge them by hand
    #[command(subcommand)]
    Compact(CompactCommand),
    /// List tenants: what each has stored, since when, and how long it is kept
    Tenants(BlocksScope),
    /// Look at stored blocks
    #[command(subcommand)]
    Blocks(BlocksCommand),
    /// Delete a trace by id, see what was deleted
    #[command(subcommand)]
    Delete(DeleteCommand),
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration in effect as YAML, with a comment per setting; secrets are masked
    Print,
}

#[derive(Debug, Subcommand)]
pub enum CompactCommand {
    /// Show which merges are due and what other blocks wait for; changes nothing
    Plan {
        #[command(flatten)]
        scope: BlocksScope,
    },
    /// Run every merge that is due now; may run beside a server
    Run {
        #[command(flatten)]
        scope: BlocksScope,
    },
}

impl CompactCommand {
    /// The command with its tenant's name checked.
    pub fn resolve(self) -> Result<compact::CompactCommand, TenantError> {
        let of = |scope: BlocksScope| Ok((scope.tenant.map(|name| name.parse()).transpose()?, scope.json));
        match self {
            Self::Plan { scope } => of(scope).map(|(tenant, json)| compact::CompactCommand::Plan { tenant, json }),
            Self::Run { scope } => of(scope).map(|(tenant, json)| compact::CompactCommand::Run { tenant, json }),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum BlocksCommand {
    /// List the blocks of the newest manifest version
    Ls {
        #[command(flatten)]
        scope: BlocksScope,
        /// Print a DuckDB statement over exactly these blocks instead
        #[arg(long, conflicts_with = "json")]
        sql: bool,
    },
    /// Show what one block says of itself: times, counts, row groups, filters, summaries
    Inspect {
        #[command(flatten)]
        scope: BlocksScope,
        /// Block id, as `blocks ls` prints it
        block: BlockId,
    },
    /// Read all blocks again and check everything that can be checked
    Verify {
        #[command(flatten)]
        scope: BlocksScope,
    },
    /// List stored bytes by column
    Columns {
        #[command(flatten)]
        scope: BlocksScope,
    },
    /// Write a new manifest from the blocks that are there, after it was lost; refuses beside a running server
    RebuildManifest {
        #[command(flatten)]
        scope: BlocksScope,
        /// Do it for every tenant
        #[arg(long, conflicts_with = "tenant", required_unless_present = "tenant")]
        all: bool,
    },
}

#[derive(Clone, Debug, Args)]
pub struct BlocksScope {
    /// Only this tenant [default: all tenants]
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// JSON for programs instead of a table
    #[arg(long)]
    pub json: bool,
}

impl BlocksCommand {
    /// The command with its tenant's name checked.
    pub fn resolve(self) -> Result<blocks::BlocksCommand, TenantError> {
        let of = |scope: BlocksScope| Ok((scope.tenant.map(|name| name.parse()).transpose()?, scope.json));
        Ok(match self {
            Self::Ls { scope, sql } => of(scope).map(|(tenant, json)| blocks::BlocksCommand::Ls { tenant, json, sql })?,
            Self::Inspect { scope, block: id } => {
                of(scope).map(|(tenant, json)| blocks::BlocksCommand::Inspect { tenant, id, json })?
            }
            Self::Verify { scope } => of(scope).map(|(tenant, json)| blocks::BlocksCommand::Verify { tenant, json })?,
            Self::Columns { scope } => of(scope).map(|(tenant, json)| blocks::BlocksCommand::Columns { tenant, json })?,
            Self::RebuildManifest { scope, .. } => {
                of(scope).map(|(tenant, json)| blocks::BlocksCommand::RebuildManifest { tenant, json })?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["spanhouse", "--data-dir", "/d", "--listen", "::1"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.server.overrides().listen.as_deref(), Some("::1"));
        let cli = Cli::try_parse_from(["spanhouse", "blocks", "ls", "--sql", "--tenant", "a", "--data-dir", "/d"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Blocks(BlocksCommand::Ls { sql: true, .. }))));
        assert_eq!(cli.server.data_dir, Some("/d".into()));
        assert!(Cli::try_parse_from(["spanhouse", "blocks", "inspect"]).is_err());
        assert!(Cli::try_parse_from(["spanhouse", "config", "print"]).is_ok());
        let cli = Cli::try_parse_from(["spanhouse", "delete", "trace", "aB", "--tenant", "a", "--data-dir", "/d"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Delete(DeleteCommand::Trace { yes: false, reason: None, .. }))));
        assert!(Cli::try_parse_from(["spanhouse", "delete", "trace", "xyz"]).is_err());
        assert!(Cli::try_parse_from(["spanhouse", "delete", "ls", "--json"]).is_ok());
        assert!(Cli::try_parse_from(["spanhouse", "loadgen", "--count", "10"]).is_ok());
        let cli =
            Cli::try_parse_from(["spanhouse", "query", "search", "{}", "--since", "2h", "--tenant", "a", "--json"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Query(options)) if options.server.json));
        assert!(
            Cli::try_parse_from(["spanhouse", "query", "metrics", "{} | rate()", "--since", "1h", "--start", "1"]).is_err()
        );
    }
}
