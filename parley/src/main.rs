//! The one binary of Parley: server, storage and clients, by subcommand. Each command is a file of `commands/`.

mod admin;
mod chat;
mod cli;
mod client;
mod commands;

use clap::Parser;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    commands::run(cli::Cli::parse().command)
}
