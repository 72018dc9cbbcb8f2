//! `parley echo`: the gateway's data plane with an echo for a brain.

use super::server::{self, Failure, Signals};
use crate::cli::{DriverArg, EchoArgs};
use gateway::plane::{DriverChoice, Options};
use std::process::ExitCode;
use std::time::Duration;

/// How long echoes are seen off.
const DRAIN: Duration = Duration::from_secs(2);

pub(super) fn run(args: &EchoArgs) -> ExitCode {
    server::finish(serve(args))
}

fn serve(args: &EchoArgs) -> Result<(), Failure> {
    let signals = Signals::install()?;
    server::raise_open_files();
    let driver = match args.driver {
        DriverArg::Auto => DriverChoice::Auto,
        DriverArg::Uring => DriverChoice::Uring,
        DriverArg::Epoll => DriverChoice::Epoll,
    };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(1024) as u16);
    let shards = if args.shards == 0 { cores } else { args.shards };
    let options = Options { name: "echo".to_owned(), listen: args.listen, driver, shards, ..Options::default() };
    let handle = gateway::echo::serve_up_to(options, args.message_bytes_max).map_err(|error| Failure::of(&error))?;
    println!("echo     driver {}, {shards} shards", handle.driver());
    println!("ready {}", server::client_url(handle.addr(), "/"));
    if signals.wait_while(|| handle.is_running()) {
        handle.drain(DRAIN);
    }
    server::judge_exit(handle.join())
}
