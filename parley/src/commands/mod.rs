//! The commands, one file each, and what they share: `talk` asks the gateway, `show` makes lines for people.

mod chats;
mod check;
mod check_store;
mod echo;
mod gateway;
mod group;
mod history;
mod read;
mod schema;
mod send;
mod server;
pub(crate) mod show;
mod storage_writer;
mod store;
mod tail;
pub(crate) mod talk;
mod token;
mod up;

use crate::cli::Command;
use crate::client::ClientError;
use std::process::ExitCode;

/// Runs a command and says what came of it.
pub(crate) fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Up(args) => return up::run(&args),
        Command::Gateway(args) => return gateway::run(&args),
        Command::StorageWriter(args) => return storage_writer::run(&args),
        Command::Echo(args) => return echo::run(&args),
        Command::Check(args) => return check::run(&args),
        Command::CheckStore(args) => return check_store::run(&args),
        Command::Store(args) => return store::run(&args),
        Command::Schema(args) => return schema::run(&args),
        Command::Token(args) => token::run(&args),
        Command::Chat(args) => crate::chat::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Tail(args) => tail::run(&args),
        Command::History(args) => history::run(&args),
        Command::Chats(args) => chats::run(&args),
        Command::Read(args) => read::run(&args),
        Command::Group(args) => group::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &ClientError) -> ExitCode {
    eprintln!("parley: {error}");
    ExitCode::from(error.status() as u8)
}
