//! The servers that a scenario is about, as flags: started for the run, or running already.

use crate::cpu::{Probe, Probes};
use crate::net::Url;
use crate::tokens::Tokens;
use crate::{DriverArg, spawn};
use clap::Args;
use std::path::PathBuf;

/// Which servers.
#[derive(Args)]
pub(crate) struct TargetArgs {
    /// Builds the server, and starts gateway and storage-writer as processes of their own; ends them afterwards.
    #[arg(long, conflicts_with_all = ["url", "gateway_pid", "writer_pid"])]
    pub(crate) spawn: bool,
    /// Starts this program instead of building one.
    #[arg(long, value_name = "PATH", requires = "spawn")]
    pub(crate) program: Option<PathBuf>,
    /// Driver of the spawned gateway; without --spawn only the name in the report.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) driver: DriverArg,
    /// Shards of the spawned gateway; 0: one per core.
    #[arg(long, default_value_t = 0)]
    pub(crate) shards: u16,
    /// A directory with a gateway.toml or a storage-writer.toml for the spawned servers.
    #[arg(long, value_name = "DIR", requires = "spawn")]
    pub(crate) config: Option<PathBuf>,
    /// Address of a running gateway.
    #[arg(long, default_value = "ws://127.0.0.1:7400/ws")]
    pub(crate) url: String,
    /// Data directory of the server, for its development key [default: ./data; with --spawn a temporary one].
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Process of a running gateway, for its CPU time.
    #[arg(long, value_name = "PID")]
    pub(crate) gateway_pid: Option<u32>,
    /// Process of a running storage-writer, for its CPU time.
    #[arg(long, value_name = "PID")]
    pub(crate) writer_pid: Option<u32>,
}

/// The servers. Dropping it ends those that were started.
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) tokens: Tokens,
    pub(crate) probes: Probes,
    pub(crate) driver: String,
    pub(crate) servers: Option<spawn::Servers>,
}

impl TargetArgs {
    /// Starts them, with variables in their environment, or finds them.
    pub(crate) fn open(&self, environment: &[(String, String)]) -> Result<Target, String> {
        if self.spawn {
            let options = spawn::Options {
                driver: self.driver.name(),
                shards: self.shards,
                data: self.data.clone(),
                config: self.config.clone(),
                keyspace: None,
            };
            let program = self.program.clone().map_or_else(spawn::build, Ok)?;
            let servers = spawn::Servers::start_program(&program, &options, environment)?;
            return Ok(Target {
                url: Url::parse(&servers.url)?,
                tokens: Tokens::load(&servers.data)?,
                probes: servers.probes(),
                driver: servers.driver.clone(),
                servers: Some(servers),
            });
        }
        let probe = |pid: Option<u32>| pid.map(|pid| Probe { pid });
        Ok(Target {
            url: Url::parse(&self.url)?,
            tokens: Tokens::load(&self.data.clone().unwrap_or_else(|| PathBuf::from("data")))?,
            probes: Probes { gateway: probe(self.gateway_pid), writer: probe(self.writer_pid), cluster: None },
            driver: self.driver.name(),
            servers: None,
        })
    }
}
