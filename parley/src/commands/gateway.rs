//! `parley gateway`: a gateway as a process of its own.

use super::server::{self, Configuration, Failure, Parts, Signals};
use crate::cli::GatewayArgs;
use std::process::ExitCode;
use std::time::Duration;

pub(super) fn run(args: &GatewayArgs) -> ExitCode {
    server::finish(serve(args))
}

fn serve(args: &GatewayArgs) -> Result<(), Failure> {
    let signals = Signals::install()?;
    let flags = server::gateway_flags(&args.gateway);
    let configuration = Configuration::load(args.config.as_deref(), &flags, &[])?;
    let config = &configuration.gateway.config;
    server::log(&config.log);
    configuration.judge()?;
    server::raise_open_files();
    server::make_data_dir(&args.data)?;
    let options = server::gateway_options(&configuration, &args.data)?;
    let sockets = options.writer_sockets.clone();
    let handle = server::start_gateway(options)?;
    let admin = server::start_admin(config.admin, Parts { gateway: Some(handle.monitor()), writer: None })?;
    server::await_gateway(&handle, &signals)?;
    println!("gateway  driver {}, {} shards", handle.driver(), handle.shards());
    println!("admin    http://{admin}/metrics  /readyz  /healthz");
    let sockets: Vec<_> = sockets.iter().map(|socket| socket.display().to_string()).collect();
    println!("storage  {}", sockets.join(", "));
    println!("ready {}", server::client_url(handle.addr(), &config.path));
    if signals.wait_while(|| handle.is_running()) {
        tracing::info!("draining: clients are seen off and come back elsewhere or later");
        handle.drain(Duration::from_millis(config.drain_timeout_ms));
    }
    let ended = server::judge_exit(handle.wait());
    tracing::info!("stopped");
    ended
}
