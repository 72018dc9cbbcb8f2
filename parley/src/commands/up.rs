//! `parley up`: gateway and storage-writer in one process, and how to try them.

use super::server::{self, Configuration, Failure, Parts, Signals};
use crate::cli::UpArgs;
use parley_config::Engine;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Tenths of the drain's time that the clients get; the rest is the storage-writer's.
const CLIENTS_TENTHS: u64 = 9;

pub(super) fn run(args: &UpArgs) -> ExitCode {
    server::finish(serve(args))
}

fn serve(args: &UpArgs) -> Result<(), Failure> {
    let signals = Signals::install()?;
    let gateway_flags = server::gateway_flags(&args.gateway);
    let mut writer_flags = server::path_flag("data", args.data.as_deref());
    writer_flags.extend(super::schema::store_flags(&args.store));
    let mut configuration = Configuration::load(args.config.as_deref(), &gateway_flags, &writer_flags)?;
    let data = configuration.writer.config.data.clone();
    server::log(&configuration.gateway.config.log);
    super::schema::refuse_unused(super::schema::names_cluster(&args.store), &configuration.writer.config)?;
    configuration.judge()?;
    server::raise_open_files();
    server::make_data_dir(&data)?;
    // One process, one socket: the storage-writer's.
    let socket = server::writer_socket(&configuration.writer.config.socket, &data);
    configuration.gateway.config.writer.sockets = vec![socket];
    super::schema::apply_for_up(&configuration)?;
    let writer = server::start_writer(&configuration, &signals)?;
    server::await_writer(&writer, &signals)?;
    let gateway = server::start_gateway(server::gateway_options(&configuration, &data)?)?;
    let config = &configuration.gateway.config;
    let parts = Parts { gateway: Some(gateway.monitor()), writer: Some(writer.clone()) };
    let admin = server::start_admin(config.admin, parts)?;
    server::await_gateway(&gateway, &signals)?;
    say_ready(&gateway, &configuration, &data, admin);
    let asked = signals.wait_while(|| gateway.is_running() && writer.failure().is_none());
    if asked {
        tracing::info!("draining: clients are seen off and come back elsewhere or later");
        gateway.drain(Duration::from_millis(config.drain_timeout_ms * CLIENTS_TENTHS / 10));
    } else if let Some(failure) = writer.failure() {
        // Nothing can be made durable any more: nobody is kept waiting.
        gateway.drain(Duration::ZERO);
        gateway.wait();
        return Err(Failure::new(failure.to_string()));
    }
    let ended = server::judge_exit(gateway.wait());
    server::stop_writer(&writer)?;
    tracing::info!("stopped");
    ended
}

fn say_ready(gateway: &gateway::Handle, configuration: &Configuration, data: &Path, admin: SocketAddr) {
    let config = &configuration.gateway.config;
    let url = server::client_url(gateway.addr(), &config.path);
    // Only what differs from the clients' defaults needs saying.
    let mut options = String::new();
    if url != "ws://127.0.0.1:7400/ws" {
        options.push_str(&format!(" --url {url}"));
    }
    if data != Path::new("data") && data != Path::new("./data") {
        options.push_str(&format!(" --data {}", data.display()));
    }
    println!("gateway  {url}  driver {}, {} shards", gateway.driver(), gateway.shards());
    println!("admin    http://{admin}/metrics  /readyz  /healthz");
    println!("data     {}", data.display());
    if configuration.writer.config.store == Engine::Scylla {
        println!("storage  {}", server::store_name(&configuration.writer.config));
    }
    println!("try      parley chat --as alice{options}");
    println!("         parley chat --as bob{options}      (another terminal; then type /dm alice)");
    println!("ready {url}");
}
