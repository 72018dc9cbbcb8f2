//! `parley storage-writer`: a storage-writer as a process of its own.

use super::server::{self, Configuration, Failure, Parts, Signals};
use crate::cli::StorageWriterArgs;
use std::process::ExitCode;

pub(super) fn run(args: &StorageWriterArgs) -> ExitCode {
    server::finish(serve(args))
}

fn serve(args: &StorageWriterArgs) -> Result<(), Failure> {
    let signals = Signals::install()?;
    let mut flags = server::path_flag("data", args.data.as_deref());
    flags.extend(super::schema::store_flags(&args.store));
    let cluster = super::schema::names_cluster(&args.store);
    flags.extend(args.admin.map(|address| ("admin".to_owned(), address.to_string())));
    let configuration = Configuration::load(args.config.as_deref(), &[], &flags)?;
    let config = &configuration.writer.config;
    server::log(&config.log);
    super::schema::refuse_unused(cluster, config)?;
    configuration.judge()?;
    server::raise_open_files();
    server::make_data_dir(&config.data)?;
    let writer = server::start_writer(&configuration, &signals)?;
    let parts = Parts { gateway: None, writer: Some(writer.clone()) };
    println!("admin    http://{}/metrics  /readyz  /healthz", server::start_admin(config.admin, parts)?);
    server::await_writer(&writer, &signals)?;
    println!("storage  {}", server::store_name(config));
    println!("ready {}", server::writer_socket(&config.socket, &config.data).display());
    if signals.wait_while(|| writer.failure().is_none()) {
        tracing::info!("draining: what was taken is committed and answered");
    }
    server::stop_writer(&writer)?;
    tracing::info!("stopped");
    Ok(())
}
